"""What SDXL's networks are told beside time and text: pooled text and sizes, as a term of the time embedding.

Podell et al. 2023, arXiv 2307.01952, section 2.2: the size that a picture had, where it was cut out, the size that it
was brought to. A network says in its config whether it is told (`addition_embed_type`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from rawdiff.errors import WeightsError

__all__ = ["IDS", "KIND", "Added", "check", "embed", "takes"]

KIND = "text_time"
"""What a network's `addition_embed_type` says."""
IDS = 6
"""How many sizes: height and width of the original, top and left of the cut, height and width of the result."""


class Added(NamedTuple):
    """What is told with one text, for as many halves as there are."""

    pooled: Tensor
    """[N,P], one vector a text."""
    ids: Tensor
    """[N,6] fp32, in pixels."""


def takes(net: Any) -> bool:
    """Whether this UNet or ControlNet is told."""
    return bool(net.config.get("addition_embed_type") == KIND)


def embed(net: Any, added: Added) -> Tensor:
    """[N,E], to be added to the time embedding: sinusoids of the sizes (in fp32) behind the pooled text."""
    waves = net.add_time_proj(added.ids.flatten()).view(len(added.ids), -1)  # [N,6*C]
    result: Tensor = net.add_embedding(torch.cat([added.pooled, waves.to(added.pooled.dtype)], dim=1))
    return result


def check(unet: Any, encoder: Any, second: Any) -> None:
    """Raise WeightsError unless this UNet reads what these two text encoders (None for no second one) say."""
    if takes(unet) != (second is not None):
        found = unet.config.get("addition_embed_type")
        count, expected = ("one text encoder", None) if second is None else ("two text encoders", KIND)
        raise WeightsError(f"unet: addition_embed_type={found!r}, expected {expected!r} beside {count}")
    if second is None:
        return
    config, wide = unet.config, encoder.config.hidden_size + second.config.hidden_size
    if config.cross_attention_dim != wide:
        raise WeightsError(
            f"unet: reads text of width {config.cross_attention_dim}, expected {wide}, that of both text encoders"
        )
    expected = second.config.projection_dim + IDS * config.addition_time_embed_dim
    if config.projection_class_embeddings_input_dim != expected:
        raise WeightsError(
            f"unet: is told {config.projection_class_embeddings_input_dim} numbers beside the time, expected "
            f"{expected}: pooled text and {IDS} sizes (a refiner is told other things)"
        )
