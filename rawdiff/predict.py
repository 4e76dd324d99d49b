"""The networks and guidance as one function of x and a row.

`prepare` computes what no step changes (`Exact`): the text's keys and values, the table of times, the hints'
features. The cast to the networks' dtype and the cast back are here and nowhere else; guidance is computed in fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from rawdiff.conditions import Conditions, Context
from rawdiff.errors import UsageError
from rawdiff.nets import blocks, controlnet, unet
from rawdiff.nets.controlnet import Residuals
from rawdiff.nets.exact import EVERYTHING, Exact
from rawdiff.nets.exact import check as check_exact
from rawdiff.nets.halves import spread
from rawdiff.nets.memory import telling_out_of_memory
from rawdiff.nets.tables import Bound
from rawdiff.plan import Plan, Row
from rawdiff.probes import NO_PROBE, ProbeLike

__all__ = [
    "EVERYTHING",
    "INPAINT_CHANNELS",
    "Exact",
    "Hold",
    "Predict",
    "Prediction",
    "check_channels",
    "guide",
    "prepare",
]

INPAINT_CHANNELS = 9
"""What an inpainting UNet takes: the latents' 4, the mask, and 4 of the picture's latents outside it."""


class Prediction(NamedTuple):
    """What the networks said at one evaluation; every tensor [B,4,h,w] fp32 (fp64 from networks in fp64)."""

    guided: Tensor
    """What the sampler is given."""
    uncond: Tensor | None
    """None where the row has no guidance."""
    cond: Tensor
    residuals: tuple[Residuals | None, ...]
    """What `control` is, as it was computed: [B,...] too where both halves have the same."""

    @property
    def control(self) -> tuple[Residuals | None, ...]:
        """Each ControlNet's residuals in the networks' dtype, [B or 2B,...]; None for a net that was not run."""
        count = len(self.cond) * (1 if self.uncond is None else 2)
        return tuple(None if found is None else controlnet.repeat(found, count) for found in self.residuals)


class Predict(Protocol):
    """The networks, as the loop sees them."""

    def __call__(self, x: Tensor, row: Row, probe: ProbeLike = NO_PROBE) -> Prediction:
        """`x` [B,4,h,w] fp32, scaled for the networks."""
        ...


Hold = Callable[[ProbeLike], None]
"""Has the networks' weights be what a run was prepared with, whatever other runs did since."""


class _Control(NamedTuple):
    name: str
    network: Bound
    features: Tensor  # [1 or B,C,h,w]
    cond_only: bool
    guess: Tensor | None  # [n+1] fp32


class _Networks:
    def __init__(self, network: Bound, exact: Exact, hold: Hold | None) -> None:
        self.network = network
        self.exact = exact
        self.hold = hold
        self.dtype = network.net.conv_in.weight.dtype
        self.out_dtype = torch.promote_types(self.dtype, torch.float32)
        self.controls: list[_Control | None] = []
        self.inpaint: Tensor | None = None  # [1 or B,5,h,w]

    @torch.no_grad()
    def __call__(self, x: Tensor, row: Row, probe: ProbeLike = NO_PROBE) -> Prediction:
        if self.hold is not None:
            self.hold(probe)
        half = x.to(self.dtype)
        full = torch.cat([half, half]) if row.guided and not self.exact.prefix else half
        seen = full if self.inpaint is None else torch.cat([full, spread(self.inpaint, len(full))], dim=1)
        found = tuple(self._control(k, half, full, row, probe) for k in range(len(self.controls)))
        net, text, divide = self.network.net, self.network.text(row.context, row.guided), not self.exact.scale
        with probe("unet encode"):
            time = self.network.time(row.t, row.t_device())
            emb = blocks.embed_time(net, time, seen) if isinstance(time, Tensor) else time
            skips, middle = unet.encode(net, seen, emb, text, divide)
        with probe("unet decode"):
            active = [residuals for residuals in found if residuals is not None]
            if active:
                total = active[0]
                for residuals in active[1:]:  # left to right: fp16 sums depend on the order
                    total = controlnet.add(total, residuals)
                joined = controlnet.add(Residuals(tuple(skips), middle), total)
                skips, middle = list(joined.skips), joined.middle
            out = unet.decode(net, skips, middle, emb, text, divide).to(self.out_dtype)
        if not row.guided:
            return Prediction(out, None, out, found)
        with probe("guidance"):
            uncond, cond = out.chunk(2)
            return Prediction(guide(uncond, cond, row), uncond, cond, found)

    def _control(self, k: int, half: Tensor, full: Tensor, row: Row, probe: ProbeLike) -> Residuals | None:
        control = self.controls[k]
        if control is None or row.control[k] == 0.0:
            return None
        with probe(control.name):
            network, alone = control.network, control.cond_only
            result = controlnet.residuals(
                network.net,
                half if alone else full,
                network.time(row.t, row.t_device()),
                network.text(row.context, row.guided and not alone),
                control.features,
                row.control_device(k),
                control.guess,
                not self.exact.scale,
            )
            if row.guided and alone:  # nothing for the uncond half
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
    exact: Exact = EVERYTHING,
    hold: Hold | None = None,
    probe: ProbeLike = NO_PROBE,
) -> Predict:
    """Bind the networks to a run: `net` is the UNet, `nets` the ControlNets in the plan's order.

    With `guess` the ControlNets see the cond half alone and their residuals fade towards the top; a net that
    pools its residuals sees the cond half alone always, without a word about the other nets. `exact` says
    what is computed once instead of at each step; what is, is as old as this call. `hold` is called now and before
    each evaluation, and has the weights be the same to the bit; where it is None nobody may change them before the
    run ends. `names` are for the probes. Raises WeightsError for a network that is not run faithfully.
    """
    check_exact(exact)
    unet.check(net)
    if hold is not None:
        hold(probe)
    dtype, device = net.conv_in.weight.dtype, net.conv_in.weight.device
    channels, inpaint = net.config.in_channels, conditions.inpaint
    check_channels(channels, masked=inpaint is not None)
    if inpaint is not None and channels != INPAINT_CHANNELS:
        raise UsageError(
            f"inpaint: this UNet takes {channels} channels, expected {INPAINT_CHANNELS}: mask its x by a Blend"
        )
    texts = [_on(context, device, dtype) for context in conditions.contexts]
    times = {row.t: row.t_device() for row in plan.rows}
    networks = _Networks(Bound(net, texts, times, exact), exact, hold)
    networks.inpaint = None if inpaint is None else inpaint.to(device, dtype)
    for k, (module, hint) in enumerate(zip(nets, conditions.hints, strict=True)):
        if not plan.active(k):
            networks.controls.append(None)
            continue
        controlnet.check(module, net)
        with probe("hint features"), telling_out_of_memory("the hints' features", device):
            features = controlnet.embed_hint(module, hint.to(device, dtype))
        alone = guess or controlnet.pools(module)
        seen = [(None, cond) for _, cond in texts] if alone else texts
        scales = controlnet.guess_scales(module) if guess else None
        networks.controls.append(
            _Control(
                name=f"controlnet {names[k] if names else k}",
                network=Bound(module, seen, times, exact),
                features=features,
                cond_only=alone,
                guess=None if scales is None else scales.to(device),
            )
        )
    return networks


def check_channels(channels: int, *, masked: bool) -> None:
    """Raise UsageError for a UNet that is made for inpainting, by its channels, in a run without a mask."""
    if channels == INPAINT_CHANNELS and not masked:
        raise UsageError(
            f"this model's UNet takes {channels} channels, for inpainting alone: give an image and a mask, or take "
            "another model"
        )


def _on(context: Context, device: torch.device, dtype: torch.dtype) -> tuple[Tensor | None, Tensor]:
    """A context of both halves [2B,T,D], uncond then cond, or None; and of the cond half [B,T,D]."""
    if context.uncond is None:
        return None, context.cond.to(device, dtype)
    both = torch.cat([context.uncond, context.cond]).to(device, dtype)
    return both, both[-len(context.cond) :]
