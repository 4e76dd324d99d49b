"""The flow through one block of a UNet or ControlNet: its ResNets, its transformers and diffusers' samplers.

Shapes: `x` [N,C,h,w], `emb` [N,E] (the time embedding), `context` [N,T,D] (the text), all of one dtype; in the
place of the last two may stand what a run holds of them (`tables`). Where guidance has two halves, `x` may be
[B,C,h,w] for both, beside a context [2B,T,D], and grows to [2B,C,h,w] when it first meets that, or an `emb` of
both halves ([2B,E], in a network that is told pooled text with the time).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from rawdiff.errors import WeightsError
from rawdiff.nets import added, attention, resnet
from rawdiff.nets.added import Added
from rawdiff.nets.attention import Text
from rawdiff.nets.halves import plus
from rawdiff.nets.resnet import Time

__all__ = ["check_blocks", "check_config", "check_layers", "down", "embed_time", "middle", "up"]

DOWN = ("CrossAttnDownBlock2D", "DownBlock2D")
UP = ("CrossAttnUpBlock2D", "UpBlock2D")
MIDDLE = "UNetMidBlock2DCrossAttn"

PLAIN: Mapping[str, object] = {
    "attention_type": "default",
    "center_input_sample": False,
    "class_embed_type": None,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "num_class_embeds": None,
    "time_embedding_act_fn": None,
    "time_embedding_type": "positional",
}
"""Config entries whose other values need inputs or layers that the forwards here do not know."""


def check_config(net: Any, what: str) -> None:
    """Raise WeightsError if `net`'s config asks for what these forwards would silently leave out."""
    for key, expected in PLAIN.items():
        found = net.config.get(key, expected)
        if found != expected:
            raise WeightsError(
                f"{what}: config has {key}={found!r}, expected {expected!r}: not supported yet"
            )
    found = net.config.get("addition_embed_type")
    if found not in (None, added.KIND):
        raise WeightsError(
            f"{what}: config has addition_embed_type={found!r}, expected None or {added.KIND!r}: not supported yet"
        )


def check_blocks(blocks: Sequence[Any], known: Sequence[str], what: str) -> None:
    """Raise WeightsError if one of `blocks` is of a class whose flow is not written here."""
    for k, block in enumerate(blocks):
        name = type(block).__name__
        if name not in known:
            raise WeightsError(f"{what}: block {k} is a {name}, expected {' or '.join(known)}")


def check_layers(block: Any, what: str) -> None:
    """Raise WeightsError if one of a block's ResNets or transformers is not run here as diffusers runs it."""
    for k, part in enumerate(block.resnets):
        resnet.check(part, f"{what}, resnet {k}")
    for k, part in enumerate(_attentions(block)):
        if part is not None:
            attention.check(part, f"{what}, attention {k}")


def _attentions(block: Any) -> Sequence[Any]:
    """The transformers after its ResNets; None for each where it has none."""
    return block.attentions if "CrossAttn" in type(block).__name__ else [None] * len(block.resnets)


def embed_time(
    net: Any, t: Tensor, x: Tensor, told: Added | None = None, waves: Tensor | None = None
) -> Tensor:
    """The time embedding [N,E] for timesteps `t` ([1] or [N], fp32, may be fractional), in `x`'s dtype.

    Sinusoids (always fp32) and two linear layers: Ho et al. 2020, arXiv 2006.11239. What a network is `told` beside is
    added, and may be for both halves where `x` stands for both; `waves` [N,P] are those of the guidance scale, for a
    network that is told it (`guidance.waves`).
    """
    emb: Tensor = net.time_embedding(net.time_proj(t.expand(x.shape[0])).to(x.dtype), waves)
    return emb if told is None else plus(emb, added.embed(net, told))


def down(
    block: Any, x: Tensor, emb: Time, context: Text, divide: bool = False
) -> tuple[Tensor, list[Tensor]]:
    """One block of the reading half: the new `x`, and what it leaves for the writing half (its skips)."""
    skips = []
    for convolve, attend in zip(block.resnets, _attentions(block), strict=True):
        x = resnet.forward(convolve, x, emb, divide)
        if attend is not None:
            x = attention.forward(attend, x, context, divide)
        skips.append(x)
    for downsampler in block.downsamplers or ():
        x = downsampler(x)
        skips.append(x)
    return x, skips


def middle(block: Any, x: Tensor, emb: Time, context: Text, divide: bool = False) -> Tensor:
    """The block between the halves: a ResNet, then attention and ResNet in turn."""
    x = resnet.forward(block.resnets[0], x, emb, divide)
    for attend, convolve in zip(block.attentions, block.resnets[1:], strict=True):
        x = attention.forward(attend, x, context, divide)
        x = resnet.forward(convolve, x, emb, divide)
    return x


def up(
    block: Any,
    x: Tensor,
    skips: Sequence[Tensor],
    emb: Time,
    context: Text,
    size: Sequence[int],
    divide: bool = False,
) -> Tensor:
    """One block of the writing half; `skips` are its own, last in first out; `size` is the upsampled one."""
    for convolve, attend, skip in zip(block.resnets, _attentions(block), reversed(skips), strict=True):
        x = resnet.forward(convolve, x, emb, divide, skip)
        if attend is not None:
            x = attention.forward(attend, x, context, divide)
    for upsampler in block.upsamplers or ():
        x = upsampler(x, list(size))
    return x
