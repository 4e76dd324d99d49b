"""diffusers' own networks, whole, run by OpenVINO inside diffusers' pipelines: what its users would do."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from rawdiff.nets.calls import DecodePicture
from rawdiff.openvino import OpenVino
from rawdiff.openvino.runner import KNOWN
from rawdiff.say import say_nothing

__all__ = ["by_openvino"]


@dataclass(frozen=True)
class WholeUNet:
    """The UNet as diffusers runs it: x [2B,4,h,w], t, text [2B,T,D], residuals -> [2B,4,h,w]."""

    net: Any

    def __call__(
        self, x: Tensor, t: Tensor, text: Tensor, skips: tuple[Tensor, ...] | None, middle: Tensor | None
    ) -> Tensor:
        found: Tensor = type(self.net).forward(
            self.net,
            x,
            t,
            text,
            down_block_additional_residuals=skips,
            mid_block_additional_residual=middle,
            return_dict=False,
        )[0]
        return found


@dataclass(frozen=True)
class WholeControlNet:
    """A ControlNet as diffusers runs it, its hint embedded at every step."""

    net: Any

    def __call__(
        self, x: Tensor, t: Tensor, text: Tensor, hint: Tensor, scale: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        skips, middle = type(self.net).forward(self.net, x, t, text, hint, scale, return_dict=False)
        return skips, middle


KNOWN[WholeUNet] = ("the whole UNet", lambda found: found[0])
KNOWN[WholeControlNet] = ("a whole ControlNet", lambda found: (list(found[:-1]), found[-1]))


def by_openvino(pipeline: Any) -> None:
    """Have a pipeline's networks, which are its own, run by OpenVINO."""
    runner = OpenVino(say=say_nothing)
    unet, vae = pipeline.unet, pipeline.vae

    def unet_forward(x: Tensor, t: Tensor, encoder_hidden_states: Tensor, **more: Any) -> tuple[Tensor]:
        skips = more.get("down_block_additional_residuals")
        middle = more.get("mid_block_additional_residual")
        residuals = None if skips is None else tuple(skips), middle
        return (runner(WholeUNet(unet), x, t.float(), encoder_hidden_states, *residuals),)

    def decode(latents: Tensor) -> Any:
        return SimpleNamespace(sample=runner(DecodePicture(vae), latents * vae.config.scaling_factor))

    unet.forward, vae.decode = unet_forward, decode
    together = getattr(pipeline, "controlnet", None)
    for net in () if together is None else getattr(together, "nets", [together]):
        net.forward = _control_forward(runner, net)


def _control_forward(runner: OpenVino, net: Any) -> Any:
    def forward(
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        controlnet_cond: Tensor,
        conditioning_scale: float,
        *rest: Any,
        **more: Any,
    ) -> Any:
        scale = torch.tensor(float(conditioning_scale))
        return runner(
            WholeControlNet(net), sample, timestep.float(), encoder_hidden_states, controlnet_cond, scale
        )

    return forward
