"""Which parts a single file holds, told by its tensors' names, and one of them seen under its module's names."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from rawdiff.errors import WeightsError
from rawdiff.weights.disk import in_blocks
from rawdiff.weights.original import FLAT, THIRDS, TURNED, WHOLE, Names, places
from rawdiff.weights.renames import Ignorable
from rawdiff.weights.tensorfile import StoredFile

__all__ = ["BESIDE", "HELD", "IGNORED", "Held", "View", "find_parts", "unexplained"]


@dataclass(frozen=True)
class Held:
    """A part in a file: the prefix of its names, the layout below that, and a tensor that tells it."""

    part: str
    layout: str
    """A table of `original.places`, or `"plain"` for the names that its module has."""
    prefix: str
    mark: str
    other: str = ""
    """A tensor that the file must not have: it tells something else."""

    def is_in(self, keys: Collection[str]) -> bool:
        """Whether a file with these names holds it."""
        return self.prefix + self.mark in keys and not (self.other and self.prefix + self.other in keys)


_CLIP, _OPEN_CLIP = "embeddings.token_embedding.weight", "token_embedding.weight"
_UNET, _CONTROLNET = "input_blocks.0.0.weight", "zero_convs.0.0.weight"
_VAE, _PLAIN_VAE = "decoder.up.0.block.0.norm1.weight", "decoder.up_blocks.0.resnets.0.norm1.weight"

HELD: tuple[Held, ...] = (
    Held("unet", "unet", "model.diffusion_model.", _UNET),
    Held("unet", "unet", "", _UNET, other=_CONTROLNET),
    Held("unet", "plain", "", "up_blocks.0.resnets.0.norm1.weight"),
    Held("controlnet", "controlnet", "control_model.", _CONTROLNET),
    Held("controlnet", "controlnet", "", _CONTROLNET),
    Held("controlnet", "plain", "", "controlnet_cond_embedding.conv_in.weight"),
    Held("vae", "vae", "first_stage_model.", _VAE),
    Held("vae", "vae", "vae.", _VAE),
    Held("vae", "vae", "", _VAE),
    Held("vae", "plain", "", _PLAIN_VAE),
    Held("text_encoder", "plain", "cond_stage_model.transformer.", f"text_model.{_CLIP}"),
    Held("text_encoder", "plain", "cond_stage_model.transformer.", _CLIP),
    Held("text_encoder", "open_clip", "cond_stage_model.model.", _OPEN_CLIP),
    Held("text_encoder", "plain", "conditioner.embedders.0.transformer.", f"text_model.{_CLIP}"),
    Held("text_encoder_2", "open_clip", "conditioner.embedders.1.model.", _OPEN_CLIP),
)
"""Where the parts are, by what they are and in the order in which they are looked for."""

IGNORED: tuple[Ignorable, ...] = (
    Ignorable("a VAE's training", ("vae",), r"^(loss|model_ema)\."),
    Ignorable(
        "CLIP's temperature and mask", ("text_encoder", "text_encoder_2"), r"^(logit_scale|attn_mask)$"
    ),
    Ignorable(
        "pooled text, which SD1 and SD2 do not read", ("text_encoder",), r"^text_projection(\.weight)?$"
    ),
)
"""What a part's prefix may hold beside its network, by the name below the prefix."""

BESIDE: tuple[tuple[str, str], ...] = (
    ("noise schedule", r"betas|logvar|lvlb_weights|(alphas|sqrt|log|posterior)_\w+|denoiser\.(log_)?sigmas"),
    ("averaged weights", r"model_ema\..+"),
    ("training", r"global_step|epoch|loss\..+"),
    ("CLIP's temperature", r"(cond_stage_model|conditioner\.embedders\.[01])\.logit_scale"),
    ("what the UNet predicts", r"v_pred|ztsnr"),
)
"""What a file may hold beside its parts."""


def find_parts(keys: Collection[str]) -> dict[str, Held]:
    """The parts in a file with these names, each in the first layout that fits."""
    found: dict[str, Held] = {}
    for held in HELD:
        if held.part not in found and held.is_in(keys):
            found[held.part] = held
    return found


def unexplained(keys: Collection[str], parts: Mapping[str, Held]) -> list[str]:
    """Names that belong to no part and are not known to lie beside them."""
    prefixes = tuple(held.prefix for held in parts.values())
    outside = [key for key in keys if not key.startswith(prefixes)]
    return [key for key in outside if not any(re.fullmatch(pattern, key) for _, pattern in BESIDE)]


class View:
    """One part of a file as a file of its own, in the names and shapes of `module`; read from where it is."""

    def __init__(self, file: StoredFile, held: Held, config: Mapping[str, Any], *, ema: bool = False) -> None:
        self.path: Path = file.path
        self._file, self._held, self._ema = file, held, ema
        self._names = None if held.layout == "plain" else Names(places(held.layout, config))
        unused = rf"^transformer\.resblocks\.{config.get('num_hidden_layers')}\."
        shapes, dtypes = file.shapes(), file.dtypes()
        self._feeds: dict[str, tuple[str, str]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._dtypes: dict[str, str] = {}
        for name in [key.removeprefix(held.prefix) for key in shapes if key.startswith(held.prefix)]:
            if any(held.part in rule.parts and re.search(rule.pattern, name) for rule in IGNORED):
                continue
            if held.part == "text_encoder" and re.match(unused, name):
                continue  # SD2 reads the text one layer before the last, and diffusers' encoder ends there
            key = self._key_in_file(name)
            if key not in shapes:
                continue  # missing among the averaged weights: told by who fills the module
            for ours, how in self._targets(name):
                if ours in self._feeds:
                    twin = self._feeds[ours][0]
                    raise WeightsError(
                        f"{self.path}: {twin!a} and {key!a} are both {ours!a}; expected one of them"
                    )
                self._feeds[ours] = key, how
                self._shapes[ours] = _shape(shapes[key], how)
                self._dtypes[ours] = dtypes[key]

    def _targets(self, name: str) -> list[tuple[str, str]]:
        known = [(name, WHOLE)] if self._names is None else self._names.ours(name)
        return known if known else [(self._held.prefix + name, WHOLE)]

    def _key_in_file(self, name: str) -> str:
        # Lightning's averages have the names of the weights without their dots.
        key = self._held.prefix + name
        return f"model_ema.{key.removeprefix('model.').replace('.', '')}" if self._ema else key

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of each tensor by the module's name for it."""
        return self._shapes

    def dtypes(self) -> Mapping[str, str]:
        """Dtype of each tensor by the module's name for it, as safetensors names them."""
        return self._dtypes

    def key(self, name: str) -> str:
        """The name in the file of what the module calls `name`, there or missing."""
        if name in self._feeds:
            return self._feeds[name][0]
        place = None if self._names is None else self._names.original(name)
        return self._key_in_file(name if place is None else place[0])

    def read(self, name: str) -> Tensor:
        """One tensor as the module wants it, in memory of its own."""
        key, how = self._feeds[name]
        if how == TURNED:
            return self._file.read(key).t().contiguous()
        return self._file.read(key, self._rows(name)).reshape(self._shapes[name])

    def blocks(self, name: str, count: int) -> Iterator[Tensor]:
        """The values of what `read` gives, `count` at a time, in memory that may be used again."""
        key, how = self._feeds[name]
        if how == TURNED:
            return in_blocks(self.read(name), count)
        return self._file.blocks(key, count, self._rows(name))

    def _rows(self, name: str) -> tuple[int, int] | None:
        """Which third of the rows in the file; None for all."""
        how = self._feeds[name][1]
        if how not in THIRDS:
            return None
        length, k = self._shapes[name][0], THIRDS.index(how)
        return k * length, (k + 1) * length

    def close(self) -> None:
        """Give back the file."""
        self._file.close()


def _shape(shape: tuple[int, ...], how: str) -> tuple[int, ...]:
    """What a tensor of this shape becomes; what does not fit stays, to be refused by who wants another."""
    if how in THIRDS and shape and shape[0] % 3 == 0:
        return (shape[0] // 3, *shape[1:])
    if how == TURNED and len(shape) == 2:
        return shape[::-1]
    if how == FLAT and set(shape[2:]) <= {1}:
        return shape[:2]
    return shape
