"""The networks and guidance as one function of x and a row.

`prepare` computes what no step changes: the text contexts in the networks' dtype, the hints' features. The
cast to the networks' dtype and the cast back are here and nowhere else; guidance is computed in fp32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from rawdiff.conditions import Conditions
from rawdiff.nets import blocks, controlnet, unet
from rawdiff.nets.controlnet import Residuals
from rawdiff.nets.memory import telling_out_of_memory
from rawdiff.plan import Plan, Row
from rawdiff.probes import NO_PROBE, ProbeLike

__all__ = ["Predict", "Prediction", "guide", "prepare"]


class Prediction(NamedTuple):
    """What the networks said at one evaluation; every tensor [B,4,h,w] fp32 (fp64 from networks in fp64)."""

    guided: Tensor
    """What the sampler is given."""
    uncond: Tensor | None
    """None where the row has no guidance."""
    cond: Tensor
    control: tuple[Residuals | None, ...]
    """Each ControlNet's residuals in the networks' dtype, [B or 2B,...]; None for a net that was not run."""


class Predict(Protocol):
    """The networks, as the loop sees them."""

    def __call__(self, x: Tensor, row: Row, probe: ProbeLike = NO_PROBE) -> Prediction:
        """`x` [B,4,h,w] fp32, scaled for the networks."""
        ...


class _Control(NamedTuple):
    name: str
    net: Any
    features: Tensor  # [1 or B,C,h,w]
    cond_only: bool
    guess: Tensor | None  # [n+1] fp32


class _Networks:
    def __init__(self, net: Any, dtype: torch.dtype, both: list[Tensor | None], cond: list[Tensor]) -> None:
        self.unet = net
        self.dtype = dtype
        self.out_dtype = torch.promote_types(dtype, torch.float32)
        self.both = both  # per context: [2B,T,D], uncond then cond
        self.cond = cond  # per context: [B,T,D]
        self.controls: list[_Control | None] = []

    @torch.no_grad()
    def __call__(self, x: Tensor, row: Row, probe: ProbeLike = NO_PROBE) -> Prediction:
        t = row.t_device()
        half = x.to(self.dtype)
        full, context = half, self.cond[row.context]
        if row.guided:
            both = self.both[row.context]
            assert both is not None, "a guided row needs an uncond context"
            full, context = torch.cat([half, half]), both

        found = tuple(self._control(k, half, full, t, context, row, probe) for k in range(len(self.controls)))
        with probe("unet encode"):
            emb = blocks.embed_time(self.unet, t, full)
            skips, middle = unet.encode(self.unet, full, emb, context)
        with probe("unet decode"):
            active = [residuals for residuals in found if residuals is not None]
            if active:
                total = active[0]
                for residuals in active[1:]:  # left to right: fp16 sums depend on the order
                    total = controlnet.add(total, residuals)
                joined = controlnet.add(Residuals(tuple(skips), middle), total)
                skips, middle = list(joined.skips), joined.middle
            out = unet.decode(self.unet, skips, middle, emb, context).to(self.out_dtype)
        if not row.guided:
            return Prediction(out, None, out, found)
        with probe("guidance"):
            uncond, cond = out.chunk(2)
            return Prediction(guide(uncond, cond, row), uncond, cond, found)

    def _control(
        self, k: int, half: Tensor, full: Tensor, t: Tensor, context: Tensor, row: Row, probe: ProbeLike
    ) -> Residuals | None:
        control = self.controls[k]
        if control is None or row.control[k] == 0.0:
            return None
        with probe(control.name):
            x, text = (half, self.cond[row.context]) if control.cond_only else (full, context)
            features = control.features
            if len(features) > 1 and len(x) > len(features):
                features = torch.cat([features, features])
            result = controlnet.residuals(
                control.net, x, t, text, features, row.control_device(k), control.guess
            )
            if row.guided and control.cond_only:  # nothing for the uncond half
                result = Residuals(tuple(_pad(r) for r in result.skips), _pad(result.middle))
        return result


def _pad(residual: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(residual), residual])


def guide(uncond: Tensor, cond: Tensor, row: Row) -> Tensor:
    """Classifier-free guidance, `uncond + g*(cond - uncond)`, [B,4,h,w] fp32; g is each image's own.

    Ho and Salimans 2022, arXiv 2207.12598; rescaled as in Lin et al. 2023, arXiv 2305.08891, section 3.4.
    """
    guided = uncond + row.guidance_device() * (cond - uncond)
    if row.rescale == 0.0:
        return guided
    axes = (1, 2, 3)
    spread = cond.std(dim=axes, keepdim=True) / guided.std(dim=axes, keepdim=True)
    factor = row.rescale_device()
    return factor * (guided * spread) + (1 - factor) * guided


@torch.no_grad()
def prepare(
    plan: Plan,
    conditions: Conditions,
    net: Any,
    nets: Sequence[Any] = (),
    *,
    names: Sequence[str] = (),
    guess: bool = False,
    probe: ProbeLike = NO_PROBE,
) -> Predict:
    """Bind the networks to a run: `net` is the UNet, `nets` the ControlNets in the plan's order.

    With `guess` the ControlNets see the cond half alone and their residuals fade towards the top; a net that
    pools its residuals sees the cond half alone always, without a word about the other nets. `names` are for
    the probes.
    """
    dtype, device = net.conv_in.weight.dtype, net.conv_in.weight.device
    cond = [context.cond.to(device, dtype) for context in conditions.contexts]
    both = [
        None if context.uncond is None else torch.cat([context.uncond, context.cond]).to(device, dtype)
        for context in conditions.contexts
    ]
    networks = _Networks(net, dtype, both, cond)
    for k, (module, hint) in enumerate(zip(nets, conditions.hints, strict=True)):
        if not plan.active(k):
            networks.controls.append(None)
            continue
        with probe("hint features"), telling_out_of_memory("the hints' features", device):
            features = controlnet.embed_hint(module, hint.to(device, dtype))
        scales = controlnet.guess_scales(module) if guess else None
        networks.controls.append(
            _Control(
                name=f"controlnet {names[k] if names else k}",
                net=module,
                features=features,
                cond_only=guess or controlnet.pools(module),
                guess=None if scales is None else scales.to(device),
            )
        )
    return networks
