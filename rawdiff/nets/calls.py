"""One run of one network as a value: what is fixed about it are its fields, what varies its arguments.

Two calls with the same fields are equal, so that what was recorded of one can be found again; arguments and results
are tensors, or tuples and holders of tensors, and no Python number is among them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from rawdiff.nets import controlnet, unet, vae
from rawdiff.nets.added import Added
from rawdiff.nets.attention import Text
from rawdiff.nets.controlnet import Residuals
from rawdiff.nets.resnet import Time

__all__ = [
    "ControlResiduals",
    "DecodePicture",
    "EncodePicture",
    "NetCall",
    "UNetDecode",
    "UNetEncode",
    "kind",
]


_kinds: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


def kind(net: Any) -> str:
    """What a network is like, in every process: its class, and how many numbers its weights are."""
    found = _kinds.get(net)
    if found is None:
        found = f"{type(net).__name__} of {sum(weight.numel() for weight in net.parameters())}"
        _kinds[net] = found
    return found


@dataclass(frozen=True)
class NetCall:
    """A call of a network."""

    net: Any

    @property
    def weight(self) -> Tensor | None:
        """One that moves in memory whenever the network's other weights do.

        The kernel of a convolution: it alone tells channels last from first, and not where it is of one pixel.
        """
        kernels = (w for w in self.net.parameters() if w.ndim == 4 and w.shape[1] > 1 and w.shape[3] > 1)
        return next(kernels, None)


@dataclass(frozen=True)
class UNetEncode(NetCall):
    """`unet.encode`: x [N,4,h,w], time, text -> the skips and the middle."""

    divide: bool

    def __call__(self, x: Tensor, time: Time, text: Text) -> tuple[tuple[Tensor, ...], Tensor]:
        skips, middle = unet.encode(self.net, x, time, text, self.divide)
        return tuple(skips), middle


@dataclass(frozen=True)
class UNetDecode(NetCall):
    """`unet.decode`: the skips and the middle, time, text -> what the UNet predicts [N,4,h,w]."""

    divide: bool

    def __call__(self, skips: tuple[Tensor, ...], middle: Tensor, time: Time, text: Text) -> Tensor:
        return unet.decode(self.net, skips, middle, time, text, self.divide)


@dataclass(frozen=True)
class ControlResiduals(NetCall):
    """`controlnet.residuals`; with `padded` the net sees the cond half alone, and zeros stand for the other."""

    padded: bool
    divide: bool

    def __call__(
        self,
        x: Tensor,
        time: Time,
        text: Text,
        features: Tensor,
        weight: Tensor,
        guess: Tensor | None,
        told: Added | None,
    ) -> Residuals:
        found = controlnet.residuals(self.net, x, time, text, features, weight, guess, self.divide, told)
        return Residuals(tuple(_pad(r) for r in found.skips), _pad(found.middle)) if self.padded else found


def _pad(residual: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(residual), residual])


@dataclass(frozen=True)
class DecodePicture(NetCall):
    """`vae.decode`: latents [B,4,h,w] -> picture [B,3,8h,8w]."""

    def __call__(self, latents: Tensor) -> Tensor:
        return vae.decode(self.net, latents)


@dataclass(frozen=True)
class EncodePicture(NetCall):
    """`vae.encode`: picture [B,3,8h,8w] -> mean and spread of the latents, one after the other, [B,8,h,w]."""

    def __call__(self, picture: Tensor) -> Tensor:
        return torch.cat(vae.encode(self.net, picture), dim=1)
