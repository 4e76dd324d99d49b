"""A model's parts, loaded, and the ControlNets that are loaded when a run needs them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from rawdiff import nets, weights
from rawdiff.controls import Control
from rawdiff.errors import UsageError, WeightsError
from rawdiff.geometry import Size
from rawdiff.graphs import EAGER, Frugal, Runner
from rawdiff.probes import NO_PROBE, ProbeLike
from rawdiff.say import Say, say_on_stderr

__all__ = ["Parts"]

PARTS = ("tokenizer", "text_encoder", "unet", "vae", "scheduler")
"""What every model has."""


class Parts:
    """The raw parts: `unet`, `vae`, `text_encoder`, `tokenizer`, `scheduler`, and ControlNets by `net`.

    Raises WeightsError for a part that cannot be run here.
    """

    def __init__(
        self,
        *,
        source: weights.Source,
        unet: Any,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        scheduler: Any,
        device: torch.device,
        dtype: torch.dtype,
        defaults: weights.Defaults,
        nets: Mapping[str, Any] | None = None,
        runner: Runner = EAGER,
        offline: bool = False,
        say: Say = say_on_stderr,
    ) -> None:
        _check(unet, vae, text_encoder)
        self.source, self.defaults = source, defaults
        self.unet, self.vae = unet, vae
        self.text_encoder, self.tokenizer = text_encoder, tokenizer
        self.scheduler = scheduler
        self.device, self.dtype = device, dtype
        self.runner = runner
        self._named = {} if nets is None else dict(nets)
        self._sources = {**defaults.controls, **self._named}
        self._loaded: dict[tuple[str, str], tuple[Any, weights.Source]] = {}
        self._offline, self._say = offline, say

    def __repr__(self) -> str:
        kinds = ", ".join(self.controls) or "no controls"
        return f"{type(self).__name__}({self.source.name!r}, {kinds}, {self.device}, {self.dtype})"

    @property
    def controls(self) -> dict[str, Any]:
        """The model's own ControlNets that are loaded so far, by kind."""
        return {key: net for (way, key), (net, _) in self._loaded.items() if way == "kind"}

    def net(self, kind: str, source: Any = None, *, probe: ProbeLike = NO_PROBE) -> Any:
        """The ControlNet for hints of this kind, loaded when first asked for.

        `source` (folder, hub id, or a module as it is) is for one that is not the model's own. Raises
        UsageError where none is known, WeightsError where it does not fit the UNet.
        """
        if isinstance(source, nn.Module):
            nets.controlnet.check(source, self.unet)
            return source
        wanted, key = self.net_source(kind, source), _key(kind, source)
        if key not in self._loaded:
            with probe("load"), probe(f"controlnet {kind}"):
                opened = weights.open_source(wanted, offline=self._offline, say=self._say)
                net = weights.load_controlnet(opened, device=self.device, dtype=self.dtype)
            nets.controlnet.check(net, self.unet)
            self.runner.keep([net])
            self._loaded[key] = net, opened
        return self._loaded[key][0]

    def net_source(self, kind: str, source: Any = None) -> Any:
        """Where `net` would take it from; raises UsageError where none is known."""
        wanted = self._sources.get(kind) if source is None else source
        if wanted is None:
            known = ", ".join(sorted(self._sources)) or "none"
            raise UsageError(
                f"control {kind!r}: this model names no such net (it names {known}): give one with net="
            )
        return wanted

    def save_memory(self) -> None:
        """Run from here on as with `memory="low"`; runs that are prepared stay as they are."""
        self.runner.drop()
        self.runner = Frugal(self.device)
        self.runner.keep([self.text_encoder, self.unet, self.vae, *(net for net, _ in self._loaded.values())])

    def hashes(self) -> dict[str, str]:
        """SHA-256 of the files that the parts were loaded from, ControlNets not included, by path."""
        return weights.hashes(self.source, *PARTS)

    def net_hashes(self, control: Control) -> dict[str, str] | None:
        """The same of a control's net, once it is loaded; None for a module, which has no file."""
        if control.is_module:
            return None
        return weights.hashes(self._loaded[_key(control.kind, control.net)][1], "controlnet")

    def named_net(self, control: Control) -> weights.Source | None:
        """Where a control's net came from, once it is loaded; None for the model's own and for a module."""
        if control.is_module or (control.net is None and control.kind not in self._named):
            return None
        return self._loaded[_key(control.kind, control.net)][1]

    def check_memory(self, size: Size, batch: int, *, guided: bool) -> None:
        """Raise SizeError where `batch` pictures of this size cannot fit into the memory that is free now."""
        options: dict[str, Any] = {"device": self.device, "dtype": self.dtype, "low": self.runner.frugal}
        weights.check_memory(self.unet.config, self.vae.config, size, batch=batch, guided=guided, **options)


def _key(kind: str, source: Any) -> tuple[str, str]:
    return ("kind", kind) if source is None else ("source", str(source))


def _check(unet: Any, vae: Any, text_encoder: Any) -> None:
    nets.unet.check(unet)
    nets.vae.check(vae)
    nets.text.check(text_encoder)
    if unet.config.in_channels != 4:
        raise WeightsError(f"unet: takes {unet.config.in_channels} channels, expected 4: not supported yet")
