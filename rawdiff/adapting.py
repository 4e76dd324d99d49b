"""Which LoRAs are in a model's weights: every run has its own in them while it draws, and they stay until another's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from rawdiff import weights
from rawdiff.errors import UsageError
from rawdiff.extras import AddedLora
from rawdiff.probes import NO_PROBE, ProbeLike

__all__ = ["Adapting"]

_Pairs = tuple[tuple[weights.Lora, float], ...]


class Adapting:
    """The LoRAs of a model's text encoders and of each UNet that runs with them, one UNet's at a time.

    An inpainting UNet has the layers of the model's own by the same names, so that a LoRA fits either.
    """

    def __init__(self, text_encoders: Sequence[Any], device: torch.device) -> None:
        self._text_encoders, self._device = tuple(text_encoders), device
        self._of: dict[int, weights.Adapters] = {}
        self._on: dict[int, _Pairs] = {}

    def of(self, unet: Any) -> weights.Adapters:
        """The LoRAs of this UNet and the text encoders."""
        if id(unet) not in self._of:  # whose layers are held from here on, so that the id stays its own
            self._of[id(unet)] = weights.Adapters(unet, *self._text_encoders, device=self._device)
        return self._of[id(unet)]

    def put_on(self, unet: Any, added: Sequence[AddedLora], probe: ProbeLike = NO_PROBE) -> None:
        """Have exactly these in the weights of `unet` and of the text encoder, and none in another UNet.

        Raises UsageError where others were put on by hand, WeightsError, ResourceError.
        """
        wanted = {key: () for key, adapters in self._of.items() if adapters.applied}
        for key in wanted:
            if self._of[key].applied != self._on.get(key, ()):
                raise UsageError(
                    "the model's LoRAs were changed by hand (adapters.set): call model.adapters.clear(), and give them "
                    "to prepare, as loras=[(path, scale)]"
                )
        own: dict[int, _Pairs] = {}
        if added:
            self.of(unet)
            own[id(unet)] = tuple((one.lora, one.scale) for one in added)
        changes = {k: pairs for k, pairs in {**wanted, **own}.items() if self._of[k].applied != pairs}
        if not changes:
            return
        with probe("loras"):  # those to be taken off first: the text encoder is shared
            for key in sorted(changes, key=lambda key: bool(changes[key])):
                try:
                    self._of[key].set(changes[key])
                finally:
                    self._on[key] = self._of[key].applied

    @contextmanager
    def undone_on_error(self) -> Iterator[None]:
        """Inside, where something is raised after LoRAs were put on, all that runs have put on are taken off."""
        before = self._applied()
        try:
            yield
        except BaseException:
            found = self._applied()
            for key in found if found != before else ():
                if found[key] == self._on.get(key, ()):
                    self._of[key].clear()
                    self._on[key] = ()
            raise

    def _applied(self) -> dict[int, _Pairs]:
        return {key: adapters.applied for key, adapters in self._of.items() if adapters.applied}

    def more_bytes(self, unet: Any, added: Sequence[AddedLora]) -> int:
        """Bytes of the copies that `put_on` would keep; raises WeightsError for a LoRA that does not fit."""
        return self.of(unet).more_bytes([(one.lora, one.scale) for one in added])
