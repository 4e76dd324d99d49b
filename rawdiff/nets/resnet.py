"""The flow through one ResNet (He et al. 2015, arXiv 1512.03385) with the time embedding in its middle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from rawdiff.errors import WeightsError
from rawdiff.nets.halves import plus, spread

__all__ = ["Shifts", "Time", "check", "forward", "project", "width"]

KINDS = ("default", "scale_shift")


class Shifts:
    """One timestep as every ResNet of one network wants it, [1 or N,C,1,1] each: a row of the table of times."""

    def __init__(self, form: tuple[tuple[Any, int], ...], packed: Tensor) -> None:
        """`packed` [1 or N, sum of C], one piece of memory; `form`: each ResNet with its C."""
        self.form = form
        self._packed = packed
        columns = torch.split(packed[:, :, None, None], [width for _, width in form], dim=1)
        self._shifts = {block: column for (block, _), column in zip(form, columns, strict=True)}

    def tensors(self) -> list[Tensor]:
        """The piece of memory."""
        return [self._packed]

    @classmethod
    def rebuilt(cls, form: tuple[tuple[Any, int], ...], tensors: Sequence[Tensor]) -> Shifts:
        """The same over another piece of memory."""
        return cls(form, tensors[0])

    def rows(self, which: slice) -> Shifts:
        """Those of some of the texts, in the same memory."""
        return Shifts(self.form, self._packed[which])

    def of(self, block: Any) -> Tensor:
        """What `project` would say of this ResNet."""
        return self._shifts[block]


Time = Tensor | Shifts
"""The time embedding [1 or N,E], or what is made of it."""


def check(block: Any, what: str) -> None:
    """Raise WeightsError if this is not a ResnetBlock2D whose flow is written here."""
    name = type(block).__name__
    if name != "ResnetBlock2D":
        raise WeightsError(f"{what}: found a {name}, expected a ResnetBlock2D")
    if block.time_embedding_norm not in KINDS:
        raise WeightsError(
            f"{what}: time_embedding_norm={block.time_embedding_norm!r}, expected {' or '.join(KINDS)}"
        )
    for part in ("upsample", "downsample"):
        if getattr(block, part) is not None:
            raise WeightsError(f"{what}: has {part}, expected none: not supported yet")
    if block.time_emb_proj is None:
        raise WeightsError(f"{what}: no time_emb_proj, expected a ResNet that is told the time")


def width(block: Any) -> int:
    """How many numbers `project` says of each image."""
    return int(block.time_emb_proj.out_features)


def project(block: Any, emb: Tensor) -> Tensor:
    """What the time embedding [N,E] does in this ResNet: [N,C,1,1], or [N,2C,1,1] for scale and shift."""
    if not block.skip_time_act:
        emb = block.nonlinearity(emb)
    result: Tensor = block.time_emb_proj(emb)[:, :, None, None]
    return result


def forward(block: Any, x: Tensor, time: Time, divide: bool = False, skip: Tensor | None = None) -> Tensor:
    """`x` [N,C,h,w], its channels joined by those of a `skip`, through the ResNet.

    [2N,C,h,w] where the time has both halves and `x` stands for both. A skip that stands for both is gone through
    once. `divide` by the output scale even where that is 1.
    """
    shift = time.of(block) if isinstance(time, Shifts) else project(block, time)
    if skip is not None and skip.shape[0] < x.shape[0] and _separable(block, x):
        inner, past = _begin_apart(block, x, skip)
    else:
        x = x if skip is None else torch.cat([x, spread(skip, x.shape[0])], dim=1)
        inner = block.conv1(block.nonlinearity(block.norm1(x)))
        past = x if block.conv_shortcut is None else block.conv_shortcut(x)
    if block.time_embedding_norm == "default":
        inner = block.norm2(plus(inner, shift))
    else:
        rows = max(inner.shape[0], shift.shape[0])
        inner = spread(block.norm2(inner), rows)
        factor, shift = (shift if shift.shape[0] == 1 else spread(shift, rows)).chunk(2, dim=1)
        inner = inner * (1 + factor) + shift
    result: Tensor = plus(past, block.conv2(block.nonlinearity(inner)))
    scale = block.output_scale_factor
    return result / scale if divide or scale != 1.0 else result


def _separable(block: Any, x: Tensor) -> bool:
    """Whether no group of the norm has channels of `x` and others, and the convolutions are plain sums over them."""
    plain = all(type(part) is nn.Conv2d for part in (block.conv1, block.conv_shortcut))
    return plain and x.shape[1] * block.norm1.num_groups % block.norm1.num_channels == 0


def _begin_apart(block: Any, x: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
    """`conv1` and `conv_shortcut` of [x, skip], each as the sum of what either brings to it."""
    width, act = x.shape[1], block.nonlinearity
    own, other = slice(None, width), slice(width, None)
    inner = plus(
        _convolve(block.conv1, act(_normalise(block.norm1, x, own)), own, None),
        _convolve(block.conv1, act(_normalise(block.norm1, skip, other)), other, block.conv1.bias),
    )
    past = plus(
        _convolve(block.conv_shortcut, x, own, None),
        _convolve(block.conv_shortcut, skip, other, block.conv_shortcut.bias),
    )
    return inner, past


def _normalise(norm: Any, x: Tensor, channels: slice) -> Tensor:
    weight, bias = norm.weight[channels], norm.bias[channels]
    groups = len(weight) * norm.num_groups // norm.num_channels
    return functional.group_norm(x, groups, weight, bias, norm.eps)


def _convolve(layer: Any, x: Tensor, channels: slice, bias: Tensor | None) -> Tensor:
    return functional.conv2d(x, layer.weight[:, channels], bias, layer.stride, layer.padding)
