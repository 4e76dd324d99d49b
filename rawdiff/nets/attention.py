"""The flow through one transformer over a picture's places, with the text's keys and values held or made on the way.

Vaswani et al. 2017, arXiv 1706.03762; as in latent diffusion, Rombach et al. 2022, arXiv 2112.10752: attention among
the places, attention to the text, a feed-forward layer with a gate (Shazeer 2020, arXiv 2002.05202).

Attention is what diffusers' AttnProcessor2_0 computes: torch's fused kernel in the networks' dtype. Like that
processor it takes no notice of `upcast_attention`; the kernels add up in fp32 by themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.nn import functional

from rawdiff.errors import WeightsError
from rawdiff.nets.halves import plus, spread

__all__ = ["KeyValues", "Text", "check", "cross_attentions", "forward", "project", "using"]

PROCESSOR = "AttnProcessor2_0"

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Queries, keys and values, [N,heads,L,d] and [N,heads,T,d] -> [N,heads,L,d]."""

_attend_by: Attend = functional.scaled_dot_product_attention

LEFT_OUT = ("spatial_norm", "group_norm", "norm_q", "norm_k", "norm_cross", "added_kv_proj_dim")
"""What an Attention may have and none of Stable Diffusion's has."""


class KeyValues:
    """One text context as keys and values of every cross attention of one network, [N,heads,T,d] each."""

    def __init__(self, pairs: Mapping[Any, tuple[Tensor, Tensor]]) -> None:
        self._pairs = pairs

    @property
    def form(self) -> tuple[Any, ...]:
        """The attentions, in order."""
        return tuple(self._pairs)

    def tensors(self) -> list[Tensor]:
        """Keys and values in turn, in the order of `form`."""
        return [tensor for pair in self._pairs.values() for tensor in pair]

    @classmethod
    def rebuilt(cls, form: tuple[Any, ...], tensors: Sequence[Tensor]) -> KeyValues:
        """The same over other tensors."""
        return cls(dict(zip(form, zip(tensors[::2], tensors[1::2], strict=True), strict=True)))

    def of(self, attention: Any) -> tuple[Tensor, Tensor]:
        """What `project` would say of this attention."""
        return self._pairs[attention]

    def halves(self) -> tuple[KeyValues, KeyValues]:
        """Those of guidance's uncond half and of its cond half alone, in the same memory."""
        parts = [[tensor.chunk(2)[k] for tensor in self.tensors()] for k in (0, 1)]
        return self.rebuilt(self.form, parts[0]), self.rebuilt(self.form, parts[1])


Text = Tensor | KeyValues
"""The text context [N,T,D], or what is made of it."""


def check(model: Any, what: str) -> None:
    """Raise WeightsError if this is not a Transformer2DModel whose flow is written here."""
    if type(model).__name__ != "Transformer2DModel" or not model.is_input_continuous:
        raise WeightsError(
            f"{what}: found a {type(model).__name__}, expected a Transformer2DModel of pictures"
        )
    for block in model.transformer_blocks:
        if block.norm_type != "layer_norm" or block.pos_embed is not None or block.attn2 is None:
            raise WeightsError(
                f"{what}: norm_type={block.norm_type!r}, positions={block.positional_embeddings!r}, "
                f"cross attention={block.cross_attention_dim!r}; "
                "expected 'layer_norm', None and a width: not supported yet"
            )
        gate = type(block.ff.net[0]).__name__
        if gate != "GEGLU":
            raise WeightsError(f"{what}: a feed-forward layer with {gate}, expected GEGLU: not supported yet")
        for name in ("attn1", "attn2"):
            _check_attention(getattr(block, name), f"{what}, {name}")


def _check_attention(attention: Any, what: str) -> None:
    processor = type(attention.processor).__name__
    if processor != PROCESSOR:
        raise WeightsError(f"{what}: its processor is {processor}, expected {PROCESSOR}: not supported yet")
    for part in LEFT_OUT:
        if getattr(attention, part) is not None:
            raise WeightsError(f"{what}: has {part}, expected none: not supported yet")
    if attention.residual_connection or attention.inner_kv_dim != attention.inner_dim:
        raise WeightsError(
            f"{what}: a connection past it, or fewer heads for keys than for queries: not supported yet"
        )


@contextmanager
def using(attend: Attend) -> Iterator[None]:
    """Let every attention inside be computed by `attend`."""
    global _attend_by
    before, _attend_by = _attend_by, attend
    try:
        yield
    finally:
        _attend_by = before


def cross_attentions(net: Any) -> Iterator[Any]:
    """Every attention of a UNet or ControlNet that looks at the text."""
    for block in net.modules():
        if type(block).__name__ == "BasicTransformerBlock":
            if block.only_cross_attention:
                yield block.attn1
            yield block.attn2


def project(attention: Any, context: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values [N,heads,T,d] of what is looked at, [N,T,D]."""
    return _split(attention.to_k(context), attention.heads), _split(attention.to_v(context), attention.heads)


def _split(x: Tensor, heads: int) -> Tensor:
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)  # [N,L,heads*d] -> [N,heads,L,d]


def forward(model: Any, x: Tensor, text: Text, divide: bool = False) -> Tensor:
    """`x` [N,C,h,w] through the transformer; [2N,C,h,w] where the text has both halves and `x` stands for both.

    `divide` by the attentions' output scales even where they are 1.
    """
    height, width = x.shape[2:]
    inner = model.norm(x)
    if model.use_linear_projection:
        inner = model.proj_in(inner.permute(0, 2, 3, 1).flatten(1, 2))
    else:
        inner = model.proj_in(inner).permute(0, 2, 3, 1).flatten(1, 2)
    for block in model.transformer_blocks:  # [N,h*w,C]
        inner = plus(
            _attend(block.attn1, block.norm1(inner), text if block.only_cross_attention else None, divide),
            inner,
        )
        inner = plus(_attend(block.attn2, block.norm2(inner), text, divide), inner)
        inner = _feed_forward(block.ff, block.norm3(inner)) + inner
    if model.use_linear_projection:
        inner = _as(x, model.proj_out(inner).unflatten(1, (height, width)).permute(0, 3, 1, 2))
    else:
        inner = model.proj_out(_as(x, inner.unflatten(1, (height, width)).permute(0, 3, 1, 2)))
    return plus(inner, x)


def _as(like: Tensor, x: Tensor) -> Tensor:
    return x.contiguous() if like.is_contiguous() else x  # which is channels last by its making


def _attend(attention: Any, x: Tensor, text: Text | None, divide: bool) -> Tensor:
    """Attention of the places `x` [N,L,C] to the text, or among themselves where that is None."""
    query = attention.to_q(x)
    if isinstance(text, KeyValues):
        key, value = text.of(attention)
    else:
        key, value = project(attention, x if text is None else text)
    query = _split(spread(query, key.shape[0]).contiguous(), attention.heads)
    seen = _attend_by(query, key, value)
    result: Tensor = attention.to_out[0](seen.transpose(1, 2).flatten(2).to(query.dtype))
    scale = attention.rescale_output_factor
    return result / scale if divide or scale != 1.0 else result


def _feed_forward(layers: Any, x: Tensor) -> Tensor:
    value, gate = layers.net[0].proj(x).chunk(2, dim=-1)
    result: Tensor = layers.net[2](value * functional.gelu(gate))
    return result
