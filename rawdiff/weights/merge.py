"""Checkpoints of one family as their weighted sum, named as a model is:

    merge:A@0.6+B@0.4          folders, files, aliases or hub ids, each with its weight; the weights add up to 1
    merge:A@1+B@1+C@-1         what B has beyond C, added to A
    merge:A@0.7+B@0.5=1.2      a sum other than 1 has to be said

UNet, text encoders and VAE are summed tensor by tensor, in fp32 and rounded once; everything else (tokenizer,
scheduler, ControlNets, defaults) is the first's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rawdiff.errors import UsageError, WeightsError
from rawdiff.weights.fill import check_finite
from rawdiff.weights.tensorfile import TensorFile

__all__ = ["MERGED", "PREFIX", "Feeds", "Summed", "check_configs", "parse"]

PREFIX = "merge:"
MERGED = ("unet", "text_encoder", "text_encoder_2", "vae")
"""The parts that are summed."""

Feeds = Mapping[str, tuple[TensorFile, str]]
"""For each tensor of a module, the file and the name there (`fill.plan_fill`)."""

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_TERM = re.compile(rf"(?P<source>.+?)@(?P<weight>{_NUMBER})(?P<end>\+|$)")
_SUM = re.compile(rf"(?P<terms>.+@{_NUMBER})=(?P<sum>{_NUMBER})")
_TOLERANCE = 1e-6
_DECIDES_NOTHING = {
    "sample_size",
    "dropout",
    "attention_dropout",
    "initializer_range",
    "initializer_factor",
} | {
    *(
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "dtype",
        "torch_dtype",
        "architectures",
        "projection_dim",
    ),
    *("transformers_version", "force_upcast", "upcast_attention"),
}
"""Entries of a config that change no number that a network computes here."""


def parse(text: str) -> list[tuple[str, float]]:
    """What is merged, and how much of each, of `merge:A@0.6+B@0.4`; raises UsageError."""
    example = "such as merge:first.safetensors@0.6+second.safetensors@0.4"
    said = _SUM.fullmatch(text.removeprefix(PREFIX))
    terms = text.removeprefix(PREFIX) if said is None else said["terms"]
    found, place = [], 0
    while place < len(terms):
        match = _TERM.match(terms, place)
        if match is None:
            raise UsageError(
                f"model {text[:120]!a}: {terms[place:][:60]!a} has no weight; expected SOURCE@WEIGHT, {example}"
            )
        found.append((match["source"], float(match["weight"])))
        place = match.end()
    if terms.endswith("+") or len(found) < 2:
        odd = re.search(r"@([^@]*?)\+", found[0][0]) if len(found) == 1 else None
        if odd is not None:  # a source may hold @ and +, but then there is one only
            raise UsageError(
                f"model {text[:120]!a}: {odd[1][:60]!a} is no weight; expected SOURCE@WEIGHT, {example}"
            )
        raise UsageError(f"model {text[:120]!a}: expected two sources or more with a + between, {example}")
    if any(source.startswith(PREFIX) for source, _ in found):
        raise UsageError(
            f"model {text[:120]!a}: a merge in a merge; write all of its sources with one merge:"
        )
    total = sum(weight for _, weight in found)  # weights beyond fp64 add up to inf or NaN
    expected = 1.0 if said is None else float(said["sum"])
    if not abs(total - expected) <= _TOLERANCE:
        hint = (
            f"; write ={total:g} behind it if you mean that" if said is None and math.isfinite(total) else ""
        )
        raise UsageError(
            f"model {text[:120]!a}: its weights add up to {total:g}, expected {expected:g}{hint}"
        )
    return found


def check_configs(part: str, names: Sequence[str], configs: Sequence[Mapping[str, Any]]) -> None:
    """Raise WeightsError where two networks of the same shapes compute differently (other heads, another scale)."""
    first = configs[0]
    for name, other in zip(names[1:], configs[1:], strict=True):
        for key in sorted({*first, *other}):
            if key.startswith("_") or key in _DECIDES_NOTHING:
                continue
            if _plain(first.get(key)) != _plain(other.get(key)):
                raise WeightsError(
                    f"{name}: its {part} has {key}={str(other.get(key))[:60]}, expected {str(first.get(key))[:60]}, as "
                    f"{names[0]} has: only models of one family can be merged"
                )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


class Summed:
    """The weighted sum of several files' tensors as a file, in a module's names.

    Each tensor is read once from each file, and no more than the sum and one of them are held, or
    a block of each. What has weight 0 is
    checked by its header and not read, so that the others stay what they are to the bit.
    """

    def __init__(self, terms: Sequence[tuple[Feeds, float]]) -> None:
        self._terms = [(feeds, weight) for feeds, weight in terms if weight != 0.0] or list(terms[:1])
        self.path: Path = next(iter(terms[0][0].values()))[0].path
        self._first = terms[0][0]

    def feeds(self) -> dict[str, tuple[TensorFile, str]]:
        """What `fill` takes."""
        return {target: (self, target) for target in self._first}

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of each tensor by the module's name."""
        return {target: tuple(file.shapes()[name]) for target, (file, name) in self._first.items()}

    def dtypes(self) -> Mapping[str, str]:
        """Dtype of each sum."""
        first, _ = self._terms[0]  # of those that are summed, which decides
        held = {file: file.dtypes() for file in {file for file, _ in first.values()}}
        return {
            target: "F64" if held[file][name] == "F64" else "F32" for target, (file, name) in first.items()
        }

    def key(self, name: str) -> str:
        """How messages call a tensor: by its name in the first file."""
        file, own = self._first[name]
        return file.key(own)

    def read(self, name: str) -> Tensor:
        """The sum in fp32 (fp64 of files in fp64), in memory of its own.

        Raises WeightsError for NaN or Inf in a term, ResourceError.
        """
        found = (feeds[name] for feeds, _ in self._terms)
        return self._sum(name, (file.read(own) for file, own in found))

    def blocks(self, name: str, count: int) -> Iterator[Tensor]:
        """The same sum, `count` values at a time, in memory that may be used again.

        Raises WeightsError for NaN or Inf in a term, ResourceError.
        """
        found = (feeds[name] for feeds, _ in self._terms)
        for terms in zip(*(file.blocks(own, count) for file, own in found), strict=True):
            yield self._sum(name, iter(terms))

    def _sum(self, name: str, terms: Iterator[Tensor]) -> Tensor:
        """What `terms` add up to, in the memory of the first if that is fp32."""
        total: Tensor | None = None
        for feeds, weight in self._terms:
            file, own = feeds[name]
            tensor = next(terms)  # zip would hold the last one meanwhile
            check_finite(tensor, file.path, file.key(own))
            if total is None:
                total = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
                total = total if weight == 1.0 else total.mul_(weight)
            else:
                total.add_(tensor, alpha=weight)
            del tensor
        assert total is not None
        return total

    def close(self) -> None:
        """Nothing: whoever opened the files closes them."""
