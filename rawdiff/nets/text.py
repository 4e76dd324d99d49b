"""CLIP's text encoder (Radford et al. 2021, arXiv 2103.00020): token numbers in, one vector a token out.

Stable Diffusion 1 and 2 read the last layer through the final norm; SDXL (Podell et al. 2023, arXiv 2307.01952) reads
the layer before the last as it is, and of its second encoder also one vector for the whole text.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from rawdiff.errors import UsageError, WeightsError

__all__ = ["check", "check_clip_skip", "encode", "encode_inner"]


WITH_PROJECTION = "CLIPTextModelWithProjection"
"""The class of an encoder that pools."""


def _inner(encoder: Any) -> Any:
    # Older transformers, and CLIPTextModelWithProjection, keep the layers one level down.
    return encoder.text_model if "text_model" in dict(encoder.named_children()) else encoder


def check(encoder: Any, part: str = "text_encoder") -> None:
    """Raise WeightsError if this is not a CLIP text encoder whose flow is written here."""
    name = type(encoder).__name__
    known = ("CLIPTextModel", "CLIPTextModelWithProjection") if part == "text_encoder" else (WITH_PROJECTION,)
    if name not in known:
        raise WeightsError(f"{part}: found a {name}, expected a {known[0]}")
    if getattr(encoder.config, "use_attention_mask", False):
        raise WeightsError(f"{part}: config has use_attention_mask=True: not supported yet")


def check_clip_skip(clip_skip: int, layers: int) -> None:
    """Raise UsageError when a text encoder of so many layers has not so many to leave out."""
    if not 0 <= clip_skip < layers:
        raise UsageError(
            f"clip skip {clip_skip}: this text encoder has {layers} layers, so 0 to {layers - 1}"
        )


def encode(
    encoder: Any, ids: Tensor, clip_skip: int = 0, *, start: int = 0, vectors: Tensor | None = None
) -> Tensor:
    """Context [N,T,D] of token numbers `ids` [N,T] (int64), in the encoder's dtype.

    With `vectors` [M,D] numbers from `start` on stand for these, not for rows of the encoder's own table. `clip_skip`
    leaves out that many of the last layers; the final norm is applied all the same, as Stable Diffusion does.
    Raises UsageError when there are not so many layers.
    """
    inner = _inner(encoder)
    layers = inner.encoder.layers
    check_clip_skip(clip_skip, len(layers))
    x = _embed(inner, ids, start, vectors)
    mask = causal_mask(ids.shape[1], x)
    for layer in layers[: len(layers) - clip_skip]:
        x = layer(x, mask)
    result: Tensor = inner.final_layer_norm(x)
    return result


def encode_inner(
    encoder: Any,
    ids: Tensor,
    clip_skip: int = 0,
    *,
    end: int,
    start: int = 0,
    vectors: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Context [N,T,D] as SDXL reads it, and from an encoder with a projection pooled text [N,P]; else as `encode`.

    The context is what goes into the last layer but `clip_skip`. Pooled text is the first token numbered `end` after
    all layers and the final norm, projected, whatever `clip_skip` is. (transformers takes the highest number for the
    end where a config says 2, as SDXL's do; with textual inversion that would be a trigger.) Raises UsageError.
    """
    inner = _inner(encoder)
    layers = inner.encoder.layers
    check_clip_skip(clip_skip, len(layers))
    x = _embed(inner, ids, start, vectors)
    mask = causal_mask(ids.shape[1], x)
    read = len(layers) - 1 - clip_skip
    for layer in layers[:read]:
        x = layer(x, mask)
    if type(encoder).__name__ != WITH_PROJECTION:
        return x, None
    context = x
    for layer in layers[read:]:
        x = layer(x, mask)
    places = (ids == end).int().argmax(1)
    pooled: Tensor = encoder.text_projection(
        inner.final_layer_norm(x[torch.arange(len(x), device=x.device), places])
    )
    return context, pooled


def _embed(inner: Any, ids: Tensor, start: int, vectors: Tensor | None) -> Tensor:
    if vectors is None:
        return inner.embeddings(input_ids=ids)  # type: ignore[no-any-return]
    own = inner.embeddings.token_embedding.weight
    rows = functional.embedding(ids.clamp(max=start - 1), own)
    added = functional.embedding((ids - start).clamp(min=0), vectors.to(own))
    result: Tensor = inner.embeddings(inputs_embeds=torch.where((ids < start)[..., None], rows, added))
    return result


def causal_mask(length: int, like: Tensor) -> Tensor:
    """[1,1,T,T]: 0 where a token may look (itself and before), the lowest number elsewhere."""
    lowest = torch.finfo(like.dtype).min
    return torch.full((1, 1, length, length), lowest, dtype=like.dtype, device=like.device).triu(1)
