"""A LoRA file, read strictly: low-rank changes of layers, under the names that the file has for them.

Low-rank adaptation (Hu et al. 2021, arXiv 2106.09685) adds `scale * up @ down` to a layer's weight, where `down`
[r,in] and `up` [out,r] are small; `scale` is alpha / r. LoCon does so to convolutions: `down` has the kernel and
`up` is 1x1, or `mid` has the kernel between two that are 1x1 (LyCORIS, Yeh et al. 2023, arXiv 2309.14859). Each
tensor's role is told by how its name ends:

    kohya       .lora_down.weight  .lora_up.weight  .lora_mid.weight  .alpha
    diffusers   .lora.down.weight  _lora.down.weight  .lora_linear_layer.down.weight, and the same with up
    peft        .lora_A.weight (down)  .lora_B.weight (up), or .lora_A.default.weight

What stands before is the layer; `lora_layers` finds it in a model. `lora_alpha` reads what the metadata says of alpha.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from rawdiff.errors import WeightsError
from rawdiff.weights import digests
from rawdiff.weights.fill import FLOAT_DTYPES, check_finite, listed
from rawdiff.weights.header import DTYPES
from rawdiff.weights.lora_alpha import AlphaRules, config_beside, read_alphas
from rawdiff.weights.lora_kinds import refuse_other_kinds, say_what_it_is
from rawdiff.weights.sniff import open_checked, say_kind
from rawdiff.weights.tensorfile import SafetensorsFile

__all__ = ["Factors", "Lora", "read_lora"]

_KEY = re.compile(
    r"(?P<name>.+?)"
    r"(?:\.lora_(?P<kohya>down|up|mid)\.weight"
    r"|(?:\.lora|_lora|\.lora_linear_layer)\.(?P<diffusers>down|up)\.weight"
    r"|\.lora_(?P<peft>[AB])(?:\.[\w-]+)?\.weight"
    r"|(?:\.lora|_lora|\.lora_linear_layer)?\.(?P<alpha>alpha))"
)
_MAX_NAME = 500
_ROLES = {"A": "down", "B": "up"}


@dataclass(frozen=True, eq=False)
class Factors:
    """What a LoRA adds to one layer's weight, as factors on the CPU in the file's dtype.

    `down` [r,in] or [r,in,kh,kw]; `up` [out,r] or [out,r,1,1]; `mid` None or [r,r,kh,kw], and then `down` is 1x1.
    """

    name: str
    """The layer, as the file calls it."""
    keys: Mapping[str, str]
    """The names in the file of `down`, `up`, and of `mid` and `alpha` where it has them."""
    down: Tensor
    up: Tensor
    mid: Tensor | None
    scale: float
    """What `product` is weighed by: alpha / r, or alpha / sqrt(r) where the file says so (rsLoRA)."""

    @property
    def rank(self) -> int:
        """r, the width between the factors."""
        return self.down.shape[0]

    def product(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """`up @ down`, not yet weighed: [out, in * kh * kw]."""
        down, up = (factor.to(device, dtype).flatten(1) for factor in (self.down, self.up))
        if self.mid is None:
            return up @ down
        return torch.einsum("mnhw,om,ni->oihw", self.mid.to(device, dtype), up, down).flatten(1)

    def equals(self, other: Factors) -> bool:
        """Whether both add the same, to the bit."""
        pairs = ((self.down, other.down), (self.up, other.up), (self.mid, other.mid))
        return self.scale == other.scale and all(
            a is b or (a is not None and b is not None and a.dtype == b.dtype and torch.equal(a, b))
            for a, b in pairs
        )


@dataclass(frozen=True, eq=False)
class Lora:
    """A LoRA as read from a file; it fits a model or not, `Adapters` tells."""

    path: Path
    sha256: str
    """Of the file's bytes, in hexadecimal: what a recipe holds."""
    factors: tuple[Factors, ...] = field(repr=False)
    metadata: Mapping[str, str] = field(repr=False)
    """Free text from the file's header: what was trained, on what, by whom."""
    config: Path | None = None
    """The adapter_config.json beside it, where peft keeps alpha, if it was read."""

    def hashes(self) -> dict[str, str]:
        """SHA-256 of every file that was read, by name; raises WeightsError."""
        found = {self.path.name: self.sha256}
        return found if self.config is None else {**found, self.config.name: digests.sha256(self.config)}


def read_lora(path: str | Path) -> Lora:
    """Read a LoRA (kohya's, diffusers' or peft's layout; ranks may differ by layer) from a safetensors file.

    Raises WeightsError for what is no LoRA, is a DoRA, LoHa or LoKr, or is not whole: a factor without the other,
    ranks that differ, values that are not finite, an alpha that is not above 0.
    """
    path = Path(path)
    file = _open(path)
    with contextlib.closing(file):
        digest = digests.sha256(path)
        layers = _group(file)
        for keys in layers.values():
            _check_shapes(file, keys)
        config = config_beside(path, layers)
        rules = read_alphas(path, file.metadata, config, layers)
        factors = tuple(_read(file, name, keys, rules) for name, keys in layers.items())
    if digests.sha256(path) != digest:
        raise WeightsError(f"{path}: changed while it was read; run again when it is complete")
    return Lora(path, digest, factors, file.metadata, config)


def _open(path: Path) -> SafetensorsFile:
    try:
        descriptor, size_bytes, kind = open_checked(path)
    except ValueError as error:  # a NUL in the path
        raise WeightsError(f"{str(path)!a}: {error}; expected a file's path") from error
    try:
        if kind != "safetensors":
            raise WeightsError(f"{path}: is {say_kind(kind)}; expected a LoRA in safetensors")
        file = SafetensorsFile(path, descriptor, size_bytes)
        layout = file.metadata.get("format", "pt")
        if layout != "pt":
            raise WeightsError(f"{path}: written in the layout {layout[:40]!a}, expected PyTorch's (pt)")
        return file
    except BaseException:
        os.close(descriptor)
        raise


def _group(file: SafetensorsFile) -> dict[str, dict[str, str]]:
    """The names of each layer's tensors by their role; everything in the file has its place, or is an error."""
    layers: dict[str, dict[str, str]] = {}
    others: list[str] = []
    for key in file.entries:
        if len(key) > _MAX_NAME:
            raise WeightsError(f"{file.path}: a tensor's name has {len(key)} characters; expected a LoRA")
        match = _KEY.fullmatch(key)
        if match is None:
            others.append(key)
            continue
        found = match["kohya"] or match["diffusers"] or match["peft"] or match["alpha"]
        role = _ROLES.get(found, found)
        keys = layers.setdefault(match["name"], {})
        if role in keys:
            raise WeightsError(
                f"{file.path}: {keys[role]!a} and {key!a} are both {role}; expected one of them"
            )
        keys[role] = key
    if not file.entries:
        raise WeightsError(f"{file.path}: holds no tensors; expected a LoRA")
    refuse_other_kinds(file.path, others)
    if not any(role != "alpha" for keys in layers.values() for role in keys):
        raise WeightsError(f"{file.path}: is {say_what_it_is(file.entries)}; expected a LoRA")
    if others:
        raise WeightsError(
            f"{file.path}: {len(others)} of its {len(file.entries)} tensors are no part of a LoRA "
            f"({listed(others)}); expected down, up, mid and alpha"
        )
    _check_whole(file.path, layers)
    return layers


def _check_whole(path: Path, layers: Mapping[str, Mapping[str, str]]) -> None:
    for role in ("up", "down"):
        halves = [
            max(keys.items())[1] for keys in layers.values() if role not in keys
        ]  # alpha where nothing else
        if halves:
            raise WeightsError(
                f"{path}: {len(halves)} of its {len(layers)} layers have no {role} ({listed(halves)}); "
                "expected down and up of each"
            )


def _check_shapes(file: SafetensorsFile, keys: Mapping[str, str]) -> None:
    """The factors of one layer belong together, as the header has them: no value is read for that."""
    for role, key in keys.items():
        entry = file.entries[key]
        if role == "alpha":
            if math.prod(entry.shape) != 1 or DTYPES[entry.dtype][0] in (None, torch.bool):
                raise WeightsError(
                    f"{file.path}: {key!a} is {entry.dtype} of shape {entry.shape}, expected one number"
                )
            continue
        if entry.dtype not in FLOAT_DTYPES:
            raise WeightsError(
                f"{file.path}: {key!a} has dtype {entry.dtype}, expected one of {', '.join(FLOAT_DTYPES)}"
            )
        if len(entry.shape) not in (2, 4) or math.prod(entry.shape) == 0:
            raise WeightsError(
                f"{file.path}: {key!a} has shape {entry.shape}, expected a matrix or a convolution's kernel"
            )
        if (role == "up" or (role == "down" and "mid" in keys)) and math.prod(entry.shape[2:]) != 1:
            raise WeightsError(f"{file.path}: {key!a} has shape {entry.shape}, expected a kernel of 1x1")
    down, up = (file.entries[keys[role]].shape for role in ("down", "up"))
    if down[0] != up[1]:
        raise WeightsError(
            f"{file.path}: {keys['down']!a} has shape {down} and {keys['up']!a} {up}, expected one rank, "
            f"found {down[0]} and {up[1]}"
        )
    if "mid" in keys:
        mid = file.entries[keys["mid"]].shape
        if len(mid) != 4 or mid[:2] != (down[0], down[0]):
            raise WeightsError(
                f"{file.path}: {keys['mid']!a} has shape {mid}, expected ({down[0]}, {down[0]}, height, width)"
            )


def _read(file: SafetensorsFile, name: str, keys: Mapping[str, str], rules: AlphaRules) -> Factors:
    held = {role: file.read(key) for role, key in keys.items()}
    for role, tensor in held.items():
        if tensor.is_floating_point():
            check_finite(tensor, file.path, keys[role])
    scale = rules.scale(
        name, len(held["down"]), keys.get("alpha"), float(held["alpha"]) if "alpha" in held else None
    )
    return Factors(name, dict(keys), held["down"], held["up"], held.get("mid"), scale)
