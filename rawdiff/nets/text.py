"""CLIP's text encoder (Radford et al. 2021, arXiv 2103.00020): token numbers in, one vector a token out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from rawdiff.errors import UsageError, WeightsError

__all__ = ["check", "encode"]


def _inner(encoder: Any) -> Any:
    # Older transformers, and CLIPTextModelWithProjection, keep the layers one level down.
    return encoder.text_model if "text_model" in dict(encoder.named_children()) else encoder


def check(encoder: Any) -> None:
    """Raise WeightsError if this is not a CLIP text encoder whose flow is written here."""
    name = type(encoder).__name__
    if name not in ("CLIPTextModel", "CLIPTextModelWithProjection"):
        raise WeightsError(f"text_encoder: found a {name}, expected a CLIPTextModel")
    if getattr(encoder.config, "use_attention_mask", False):
        raise WeightsError("text_encoder: config has use_attention_mask=True: not supported yet")


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
    if not 0 <= clip_skip < len(layers):
        raise UsageError(
            f"clip skip {clip_skip}: this text encoder has {len(layers)} layers, so 0 to {len(layers) - 1}"
        )
    if vectors is None:
        x: Tensor = inner.embeddings(input_ids=ids)
    else:
        own = inner.embeddings.token_embedding.weight
        rows = functional.embedding(ids.clamp(max=start - 1), own)
        added = functional.embedding((ids - start).clamp(min=0), vectors.to(own))
        x = inner.embeddings(inputs_embeds=torch.where((ids < start)[..., None], rows, added))
    mask = causal_mask(ids.shape[1], x)
    for layer in layers[: len(layers) - clip_skip]:
        x = layer(x, mask)
    result: Tensor = inner.final_layer_norm(x)
    return result


def causal_mask(length: int, like: Tensor) -> Tensor:
    """[1,1,T,T]: 0 where a token may look (itself and before), the lowest number elsewhere."""
    lowest = torch.finfo(like.dtype).min
    return torch.full((1, 1, length, length), lowest, dtype=like.dtype, device=like.device).triu(1)
