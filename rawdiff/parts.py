"""A model's parts, loaded, and the ControlNets that are loaded when a run needs them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from rawdiff import nets, weights
from rawdiff.adapting import Adapting
from rawdiff.controls import Control
from rawdiff.copies import Planned, laid_out_bytes, pristine_bytes
from rawdiff.errors import UsageError, WeightsError
from rawdiff.extras import AddedEmbedding, AddedLora, Extras
from rawdiff.files import check_inpaint, part_hashes
from rawdiff.geometry import Size
from rawdiff.graphs import EAGER, Frugal, Runner
from rawdiff.nets.unet import INPAINT_CHANNELS, check_channels
from rawdiff.probes import NO_PROBE, ProbeLike
from rawdiff.prompts import Reader
from rawdiff.say import Say, say_on_stderr
from rawdiff.vocabulary import Ground, vocabularies

__all__ = ["Parts"]


class Parts:
    """The raw parts: `unet`, `vae`, `text_encoder`, `tokenizer`, `scheduler`, and ControlNets by `net`.

    SDXL's second text encoder and its tokenizer are `text_encoder_2` and `tokenizer_2`, None in other models. Raises
    WeightsError for a part that cannot be run here.
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
        text_encoder_2: Any = None,
        tokenizer_2: Any = None,
        nets: Mapping[str, Any] | None = None,
        runner: Runner = EAGER,
        offline: bool = False,
        say: Say = say_on_stderr,
    ) -> None:
        _check(unet, vae, text_encoder, text_encoder_2)
        self.source, self.defaults = source, defaults
        self.unet, self.vae = unet, vae
        self.text_encoder, self.tokenizer = text_encoder, tokenizer
        self.text_encoder_2, self.tokenizer_2 = text_encoder_2, tokenizer_2
        self.scheduler = scheduler
        self.device, self.dtype = device, dtype
        self.runner = runner
        self._named = {} if nets is None else dict(nets)
        self._sources = {**defaults.controls, **self._named}
        self._loaded: dict[tuple[str, str], tuple[Any, weights.Source]] = {}
        self._inpaint: Any = None
        self._offline, self._say = offline, say
        self.extras = Extras(source, defaults)
        self._adapting = Adapting(self.text_encoders, device)

    def __repr__(self) -> str:
        kinds = ", ".join(self.controls) or "no controls"
        return f"{type(self).__name__}({self.source.name!r}, {kinds}, {self.device}, {self.dtype})"

    @property
    def text_encoders(self) -> tuple[Any, ...]:
        """The one, or both."""
        return tuple(one for one in (self.text_encoder, self.text_encoder_2) if one is not None)

    @property
    def _tokenizers(self) -> tuple[Any, ...]:
        """One for each of the text encoders."""
        return (self.tokenizer, self.tokenizer_2)[: len(self.text_encoders)]

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
                told: dict[str, Any] = {"offline": self._offline, "say": self._say, "what": "ControlNet"}
                opened = weights.open_source(wanted, **told)
                net = weights.load_controlnet(opened, device=self.device, dtype=self.dtype)
            nets.controlnet.check(net, self.unet)
            self.runner.keep([net])
            self._loaded[key] = net, opened
        return self._loaded[key][0]

    def known_net(self, kind: str, source: Any = None) -> Any:
        """What `net` would give where it is loaded, else where it would be loaded from; raises UsageError."""
        if isinstance(source, nn.Module):
            return source
        loaded = self._loaded.get(_key(kind, source))
        if loaded is not None:
            return loaded[0]
        return Planned(self.net_source(kind, source), "controlnet", self._offline)

    def net_source(self, kind: str, source: Any = None) -> Any:
        """Where `net` would take it from; raises UsageError where none is known."""
        wanted = self._sources.get(kind) if source is None else source
        if wanted is None:
            known = ", ".join(sorted(self._sources)) or "none"
            raise UsageError(
                f"control {kind!r}: this model names no such net (it names {known}): give one, by "
                f"load(nets={{{kind!r}: ...}}) or Control(..., net=...)"
            )
        return wanted

    def unet_for(self, *, masked: bool, probe: ProbeLike = NO_PROBE) -> Any:
        """The UNet that runs with a mask, or without one.

        With one that is the model's inpainting UNet, loaded when first asked for, where it has one beside its own.
        Raises UsageError where none of the model's can, WeightsError.
        """
        if masked and self.defaults.inpaint is not None:
            if self._inpaint is None:
                with probe("load"), probe("inpainting unet"):
                    loaded = weights.load_unet(self.defaults.inpaint, device=self.device, dtype=self.dtype)
                nets.unet.check(loaded)
                check_inpaint(loaded.config, self.unet.config)
                self.runner.keep([loaded])
                self._inpaint = loaded
            return self._inpaint
        self.channels(masked=masked)
        return self.unet

    def _unet(self, masked: bool) -> Any:
        """The one that `unet_for` gives; None for one that is not loaded yet."""
        return self._inpaint if masked and self.defaults.inpaint is not None else self.unet

    def channels(self, *, masked: bool) -> int:
        """How many channels the UNet takes that runs with a mask, or without one; raises UsageError like `unet_for`."""
        own: int = self.unet.config.in_channels
        check_channels(own, masked=masked)
        return INPAINT_CHANNELS if masked and self.defaults.inpaint is not None else own

    @property
    def adapters(self) -> weights.Adapters:
        """The LoRAs in the model's own UNet and text encoder, put there by runs or, with `set`, by hand.

        A run's are in the weights from `prepare` on and stay when it is done, until another run is prepared or goes
        on, which has its own put there. `put_on(unet, ())` takes them off: each weight is what it was, to the bit.
        """
        return self._adapting.of(self.unet)

    def hold(
        self, runner: Runner, unet: Any, added: Sequence[AddedLora], probe: ProbeLike = NO_PROBE
    ) -> None:
        """Have a run's networks as it was prepared with them, by this runner; raises what `put_on` does."""
        if runner is not self.runner:
            raise UsageError(
                "the model was told to save memory after this run was prepared, and its networks were put away: "
                "prepare it again"
            )
        self.put_on(unet, added, probe)

    def put_on(self, unet: Any, added: Sequence[AddedLora], probe: ProbeLike = NO_PROBE) -> None:
        """Have exactly these LoRAs in the weights of a run's UNet and of the text encoder, and none in another UNet.

        The weights are then the same to the bit as they were with them before. Raises UsageError where others were put
        on by hand, WeightsError, ResourceError.
        """
        self._adapting.put_on(unet, added, probe)

    def undone_on_error(self) -> AbstractContextManager[None]:
        """Inside, where something is raised after LoRAs were put on, all that runs have put on are taken off."""
        return self._adapting.undone_on_error()

    def save_memory(self) -> None:
        """Run from here on as with `memory="low"`; runs that were prepared before refuse to go on (UsageError)."""
        self.runner.drop()
        self.runner = Frugal(self.device)
        inpaint = [] if self._inpaint is None else [self._inpaint]
        loaded = [net for net, _ in self._loaded.values()]
        self.runner.keep([*self.text_encoders, self.unet, *inpaint, self.vae, *loaded])

    def readers(self, added: Sequence[AddedEmbedding] = ()) -> tuple[Reader, ...]:
        """Who reads the prompts: each text encoder, with its tokenizer's words and the triggers of these.

        Raises UsageError, WeightsError where one does not fit.
        """
        configs = [encoder.config for encoder in self.text_encoders]
        grounds = [
            Ground(tokenizer, int(config.hidden_size), int(config.max_position_embeddings))
            for tokenizer, config in zip(self._tokenizers, configs, strict=True)
        ]
        words = vocabularies(grounds, [one.embedding for one in added])
        two = len(words) > 1
        return tuple(
            Reader(own, encoder, two) for own, encoder in zip(words, self.text_encoders, strict=True)
        )

    def hashes(self, *, masked: bool = False) -> dict[str, str]:
        """SHA-256 of the files of the parts, ControlNets not included, by path; `masked` as for `unet_for`.

        Raises WeightsError where a file is another now than the one that was loaded.
        """
        for part in (self._unet(masked), self.vae, self.scheduler, *self.text_encoders, *self._tokenizers):
            if part is not None:
                weights.check_unchanged(part)
        return part_hashes(self.source, self.defaults, masked=masked)

    def net_hashes(self, control: Control) -> dict[str, str] | None:
        """The same of a control's net, once it is loaded; None for a module, which has no file. Raises WeightsError."""
        if control.is_module:
            return None
        net, source = self._loaded[_key(control.kind, control.net)]
        weights.check_unchanged(net)
        return weights.hashes(source, "controlnet")

    def named_net(self, control: Control) -> weights.Source | None:
        """Where a control's net came from, once it is loaded; None for the model's own and for a module."""
        if control.is_module or (control.net is None and control.kind not in self._named):
            return None
        return self._loaded[_key(control.kind, control.net)][1]

    def more_bytes(self, *, masked: bool, added: Sequence[AddedLora] = (), nets: Sequence[Any] = ()) -> int:
        """Bytes of the copies of weights that a run would make on a CPU beyond those that are held now.

        Of what LoRAs change, as it was; and of the UNet and of `nets` (`known_net` gives them), as a backend lays them
        out. Nothing is loaded for it. Raises WeightsError for a LoRA that does not fit.
        """
        if self.device.type != "cpu":
            return 0
        inpaint = self.defaults.inpaint if masked else None
        unet = self._unet(masked)
        copies = 0
        if added and unet is not None:
            copies = self._adapting.more_bytes(unet, added)
        elif added:
            copies = pristine_bytes(weights.planned_layers(self.source, inpaint), added, self.dtype)
        own = Planned(inpaint, "unet") if unet is None else unet
        return copies + laid_out_bytes([own, *nets], self.runner, self.dtype)

    def check_memory(
        self,
        size: Size,
        batch: int,
        *,
        guided: bool,
        masked: bool = False,
        added: Sequence[AddedLora] = (),
        controls: Sequence[Control] = (),
    ) -> None:
        """Raise SizeError where `batch` pictures of this size cannot fit into the memory that is free now.

        Copies of weights count too (`more_bytes`). Raises WeightsError for a LoRA that does not fit.
        """
        options: dict[str, Any] = {"device": self.device, "dtype": self.dtype, "low": self.runner.frugal}
        used = {id(c.net) if c.is_module else _key(c.kind, c.net): c for c in controls}
        nets = [self.known_net(control.kind, control.net) for control in used.values()]
        options["beside"] = self.more_bytes(masked=masked, added=added, nets=nets)
        options["made_with"] = self.runner.made_with
        weights.check_memory(self.unet.config, self.vae.config, size, batch=batch, guided=guided, **options)


def _key(kind: str, source: Any) -> tuple[str, str]:
    if isinstance(source, weights.Source):
        return "source", f"{source} at {source.revision}"  # another commit is another net
    return ("kind", kind) if source is None else ("source", str(source))


def _check(unet: Any, vae: Any, text_encoder: Any, text_encoder_2: Any) -> None:
    nets.unet.check(unet)
    nets.vae.check(vae)
    nets.text.check(text_encoder)
    if text_encoder_2 is not None:
        nets.text.check(text_encoder_2, "text_encoder_2")
    nets.added.check(unet, text_encoder, text_encoder_2)
    if unet.config.in_channels not in (4, INPAINT_CHANNELS):
        raise WeightsError(
            f"unet: takes {unet.config.in_channels} channels, expected 4, or {INPAINT_CHANNELS} for inpainting"
        )
