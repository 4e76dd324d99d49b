"""A textual-inversion file, read strictly: the vectors that a word of somebody's own stands for.

Gal et al. 2022, arXiv 2208.01618: no network changes, the text encoder's table of words gets more rows. A file holds
one tensor, [D] or [N,D] (a word may stand for several vectors), or for a model with two text encoders (SDXL) one for
each, of as many vectors, in one of five layouts:

    {WORD: tensor}                                      diffusers; the trigger is WORD
    {"string_to_param": {"*": tensor}, "name": WORD}    a pickle of A1111's web UI; WORD, or the file's own name
    {"emb_params": tensor}                              the same in safetensors; the file's own name
    {"clip_l": tensor, "clip_g": tensor}                SDXL's; the file's own name
    tensor                                              a pickle of nothing else; the file's own name
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rawdiff.errors import UsageError, WeightsError
from rawdiff.limits import check_text
from rawdiff.weights import digests
from rawdiff.weights.fill import FLOAT_DTYPES, check_finite
from rawdiff.weights.sniff import open_checked, say_kind
from rawdiff.weights.tensorfile import SafetensorsFile
from rawdiff.weights.torchfile import read_pickle

__all__ = ["SDXL_NAMES", "Embedding", "check_trigger", "read_embedding"]

MAX_BYTES = 2**26
MAX_TRIGGER = 100
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
SDXL_NAMES = ("clip_l", "clip_g")
"""Of the tensors for SDXL's first text encoder and for its second."""


@dataclass(frozen=True, eq=False)
class Embedding:
    """An embedding as read from a file; it fits a model or not, `Vocabulary` tells."""

    path: Path
    sha256: str
    """Of the file's bytes, in hexadecimal: what a recipe holds."""
    trigger: str
    """The word that stands for it in a prompt."""
    vectors: Tensor = field(repr=False)
    """[N,D] on the CPU, in the file's dtype."""
    vectors_2: Tensor | None = field(default=None, repr=False)
    """The same for SDXL's second text encoder, [N,E]; None in a file for a model with one."""

    def of_encoder(self, k: int) -> Embedding:
        """The embedding for one of the text encoders that it was made for, the first (0) or the second (1)."""
        return (
            self
            if k == 0 or self.vectors_2 is None
            else replace(self, vectors=self.vectors_2, vectors_2=None)
        )


def read_embedding(path: str | Path, trigger: str | None = None) -> Embedding:
    """Read an embedding (diffusers', A1111's or SDXL's layout) from safetensors or, without running code, a pickle.

    `trigger` takes the place of the word that the file names. Raises WeightsError for what is no embedding, has
    other tensors beside it, or holds values that are not finite; UsageError for a trigger that is no word.
    """
    path = Path(path)
    found, sha256 = _read(path)
    word, tensors = _held(path, found)
    for name, tensor in tensors.items():
        _check_tensor(path, name, tensor)
    if trigger is None:
        try:
            trigger = check_trigger(word)
        except UsageError as error:
            raise WeightsError(f"{path}: names its own {error}; give one, as PATH=TRIGGER") from None
    else:
        check_trigger(trigger)
    vectors = [tensor.detach().reshape(-1, tensor.shape[-1]).clone() for tensor in tensors.values()]
    if len({len(one) for one in vectors}) > 1:
        found_rows = " and ".join(f"{name} {len(one)}" for name, one in zip(tensors, vectors, strict=True))
        raise WeightsError(f"{path}: has {found_rows} vectors, expected as many for both text encoders")
    return Embedding(path, sha256, trigger, *vectors)


def check_trigger(text: object) -> str:
    """`text` if a prompt can hold it as a word; raises UsageError."""
    word = check_text("trigger", text)
    if not word or word != word.strip() or not word.isprintable() or len(word) > MAX_TRIGGER:
        raise UsageError(f"trigger {word[:60]!a}: expected a word of 1 to {MAX_TRIGGER} characters")
    return word


def _read(path: Path) -> tuple[Any, str]:
    """What the file holds, as it is, and its SHA-256."""
    try:
        descriptor, size_bytes, kind = open_checked(path)
    except ValueError as error:  # a NUL in the path
        raise WeightsError(f"{str(path)!a}: {error}; expected a file's path") from error
    try:
        if size_bytes > MAX_BYTES:
            raise WeightsError(
                f"{path}: has {size_bytes / 2**20:.0f} MiB; expected a textual-inversion embedding"
            )
        if kind not in ("safetensors", "zip", "pickle"):
            raise WeightsError(f"{path}: is {say_kind(kind)}; expected a textual-inversion embedding")
        sha256 = digests.sha256(path)
        if kind == "safetensors":
            file = SafetensorsFile(path, descriptor, size_bytes)
            found: Any = {key: _tensor(file, key) for key in file.entries}
        else:
            # The first implementation pickled a ParameterDict; it is inert, and only its tensors are looked at.
            found = read_pickle(path, descriptor, kind, "get it in safetensors", [nn.ParameterDict, set])
    finally:
        os.close(descriptor)
    if digests.sha256(path) != sha256:
        raise WeightsError(f"{path}: changed while it was read; run again when it is complete")
    return found, sha256


def _tensor(file: SafetensorsFile, key: str) -> Tensor:
    dtype = file.entries[key].dtype
    if dtype not in FLOAT_DTYPES:
        raise WeightsError(
            f"{file.path}: {key!a} has dtype {dtype}, expected one of {', '.join(FLOAT_DTYPES)}"
        )
    return file.read(key)


def _held(path: Path, found: Any) -> tuple[str, dict[str, Tensor]]:
    """The word that the file names, and by their own names its one tensor, or both of SDXL's."""
    if isinstance(found, Tensor):
        return path.stem, {path.stem: found}
    if not isinstance(found, Mapping):
        raise WeightsError(f"{path}: holds a {type(found).__name__}, expected a textual-inversion embedding")
    word: object = None
    held: Any = found
    if "string_to_param" in found:
        word, held = found.get("name"), found["string_to_param"]
        if isinstance(held, nn.ParameterDict):
            held = vars(held).get("_parameters")
    if not isinstance(held, Mapping) or not all(isinstance(value, Tensor) for value in held.values()):
        raise WeightsError(f"{path}: holds other things than tensors; expected a textual-inversion embedding")
    if held is found and set(held) == set(SDXL_NAMES):
        return path.stem, {name: held[name] for name in SDXL_NAMES}
    lone = [name for name in SDXL_NAMES if held is found and set(held) == {name}]
    if lone:
        raise WeightsError(f"{path}: holds {lone[0]} alone, expected both {' and '.join(SDXL_NAMES)} (SDXL)")
    if len(held) != 1:
        names = ", ".join(ascii(str(key)[:60]) for key in list(held)[:3])
        raise WeightsError(
            f"{path}: holds {len(held)} tensors{f' ({names})' if names else ''}; expected the one of a "
            "textual-inversion embedding"
        )
    [(key, tensor)] = held.items()
    if held is found and key != "emb_params":
        word = key
    word = word if isinstance(word, str) and word else path.stem
    return word, {word: tensor}


def _check_tensor(path: Path, word: str, tensor: Tensor) -> None:
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        raise WeightsError(f"{path}: {word!a} is not a plain dense tensor")
    if tensor.dtype not in _DTYPES:
        found = str(tensor.dtype).removeprefix("torch.")
        raise WeightsError(f"{path}: {word!a} has dtype {found}, expected a float")
    if tensor.ndim not in (1, 2) or tensor.numel() == 0:
        raise WeightsError(
            f"{path}: {word!a} has shape {tuple(tensor.shape)}, expected one vector [D] or several [N,D]"
        )
    size_bytes = tensor.numel() * tensor.element_size()
    if size_bytes > MAX_BYTES or not tensor.is_contiguous():  # a pickle's may repeat one number for ever
        raise WeightsError(
            f"{path}: {word!a} claims {size_bytes} bytes with strides {tensor.stride()}, expected a dense one of at "
            f"most {MAX_BYTES}"
        )
    check_finite(tensor.detach(), path, word)
