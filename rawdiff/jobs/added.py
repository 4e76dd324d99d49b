"""LoRAs and embeddings of a request, opened; one that a recipe names must have the SHA-256 that it says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rawdiff.errors import WeightsError
from rawdiff.extras import AddedEmbedding, AddedLora, Extras
from rawdiff.jobs.extras import EmbeddingRequest, LoraRequest
from rawdiff.limits import is_name
from rawdiff.paths import is_file
from rawdiff.weights import digests

__all__ = ["open_embeddings", "open_loras"]


def open_loras(asked: Sequence[LoraRequest], extras: Extras, beside: Path | None) -> tuple[AddedLora, ...]:
    """The LoRAs, read; one of a recipe may lie beside the picture. Raises UsageError, WeightsError."""
    found = extras.loras([(_place("lora", one, extras, beside), one.scale) for one in asked])
    for lora, one in zip(found, asked, strict=True):
        if one.sha256 is not None and lora.config != one.config:
            raise WeightsError(
                f"{lora.lora.path}: the adapter_config.json beside it is not the one that the recipe's LoRA was read "
                "with: put that back, or name another with --lora PATH"
            )
    return tuple(replace(lora, name=one.name) for lora, one in zip(found, asked, strict=True))


def open_embeddings(
    asked: Sequence[EmbeddingRequest], extras: Extras, beside: Path | None
) -> tuple[AddedEmbedding, ...]:
    """The embeddings, read; one of a recipe may lie beside the picture. Raises UsageError, WeightsError."""
    found = extras.embeddings([(_place("embedding", one, extras, beside), one.trigger) for one in asked])
    return tuple(replace(embedding, name=one.name) for embedding, one in zip(found, asked, strict=True))


def _place(what: str, one: LoraRequest | EmbeddingRequest, extras: Extras, beside: Path | None) -> Path | str:
    """Where the file is, as `extras` is to be asked for it."""
    if one.sha256 is None:
        return one.name
    path = extras.find(what, one.name)
    places = [path]
    if beside is not None and not is_name(one.name):
        places = list(dict.fromkeys([path, beside / path, beside / path.name]))
    found = [place for place in places if is_file(place)]
    for place in found:
        if digests.sha256(place) == one.sha256:
            return one.name if is_name(one.name) else place
    said = f"its SHA-256 must begin with {one.sha256[:12]}"
    if not found:
        raise WeightsError(
            f"{one.name}: the recipe's {what} is not there ({said}): put it back, or name another with --{what} PATH"
        )
    raise WeightsError(
        f"{found[0]}: is not the recipe's {what} ({said}, this one's with {digests.sha256(found[0])[:12]}): put that "
        f"back, or name another with --{what} PATH"
    )
