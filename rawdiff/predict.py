"""The networks and guidance as one function of x and a row (`prediction`).

`prepare` computes what no step changes (`Exact`): the text's keys and values, the table of times, the hints'
features. The cast to the networks' dtype and the cast back are here and nowhere else; guidance is computed in fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rawdiff.conditions import Conditions, Context
from rawdiff.errors import UsageError
from rawdiff.graphs import EAGER, Runner
from rawdiff.nets import blocks, calls, controlnet, guidance, unet
from rawdiff.nets.added import Added
from rawdiff.nets.controlnet import Residuals
from rawdiff.nets.derived import Derived
from rawdiff.nets.exact import EVERYTHING, Exact
from rawdiff.nets.exact import check as check_exact
from rawdiff.nets.halves import spread
from rawdiff.nets.memory import telling_out_of_memory
from rawdiff.nets.tables import BOTH, COND, UNCOND, Bound, Telling, taken
from rawdiff.plan import Plan, Row
from rawdiff.prediction import Predict, Prediction, guide
from rawdiff.probes import NO_PROBE, ProbeLike

__all__ = ["EVERYTHING", "Exact", "Hold", "Predict", "Prediction", "guide", "prepare"]

Hold = Callable[[ProbeLike], None]
"""Has the networks' weights be what a run was prepared with, whatever other runs did since."""


class _Control(NamedTuple):
    name: str
    network: Bound
    features: Derived  # [1 or B,C,h,w]
    cond_only: bool
    guess: Tensor | None  # [n+1] fp32


class _Networks:
    def __init__(
        self, network: Bound, exact: Exact, runner: Runner, hold: Hold | None, inpaint: Tensor | None
    ) -> None:
        self.network = network
        self.exact = exact
        self.runner = runner
        self.hold = hold
        self.dtype = network.net.conv_in.weight.dtype
        self.out_dtype = torch.promote_types(self.dtype, torch.float32)
        self.controls: list[_Control | None] = []
        self.inpaint = inpaint  # [1 or B,5,h,w]
        self._nets: dict[int, Any] = {-1: network.net}

    def add(self, control: _Control | None) -> None:
        """The next ControlNet; None for one that no row uses."""
        if control is not None:
            self._nets[len(self.controls)] = control.network.net
        self.controls.append(control)

    @torch.no_grad()
    def __call__(self, x: Tensor, row: Row, probe: ProbeLike = NO_PROBE) -> Prediction:
        self.runner.stage(self._nets.values())
        if self.hold is not None:
            self.hold(probe)
        self._refresh()
        half = x.to(self.dtype)
        try:
            self.runner.settle(self._nets.values(), lambda: self._halves(half, row, NO_PROBE))
            out, found = self._halves(half, row, probe)
        except BaseException:
            self.runner.drop()
            raise
        is_current = self.runner.until_next()
        if not row.guided:
            return Prediction(out, None, out, found, is_current)
        with probe("guidance"):
            uncond, cond = out.chunk(2)
            return Prediction(guide(uncond, cond, row), uncond, cond, found, is_current)

    def _halves(
        self, half: Tensor, row: Row, probe: ProbeLike
    ) -> tuple[Tensor, tuple[Residuals | None, ...]]:
        """The UNet's output [B or 2B,4,h,w] and the residuals, of as many halves as the row has."""
        if not (row.guided and self.runner.frugal):
            return self._run(half, row, BOTH if row.guided else COND, probe)
        uncond, some = self._run(half, row, UNCOND, probe)
        cond, others = self._run(half, row, COND, probe)
        return torch.cat([uncond, cond]), tuple(map(_both, some, others))

    def _run(
        self, half: Tensor, row: Row, which: int, probe: ProbeLike
    ) -> tuple[Tensor, tuple[Residuals | None, ...]]:
        """One pass: the UNet's output in fp32 and memory of its own, and each net's residuals."""
        full = torch.cat([half, half]) if which == BOTH and not self.exact.prefix else half
        seen = full if self.inpaint is None else torch.cat([full, spread(self.inpaint, len(full))], dim=1)
        net, text, divide = self.network.net, self.network.text(row.context, which), not self.exact.scale
        time = self.network.time(row.t, row.t_device(), row.context, which)
        if isinstance(time, Tensor):
            with probe("time embedding"):
                told = self.network.told(row.context, which)
                time = blocks.embed_time(net, time, seen, told, self.network.waves)

        def encode(probe: ProbeLike) -> tuple[tuple[Tensor, ...], Tensor]:
            with probe("unet encode"):
                return self.runner(calls.UNetEncode(net, divide), seen, time, text)  # type: ignore[no-any-return]

        nets = {
            k: work for k in range(len(self.controls)) if (work := self._control(k, half, full, row, which))
        }
        key = (seen.shape, self.dtype, which, id(net), *(id(self._nets[k]) for k in nets))
        *residuals, (skips, middle) = self.runner.together([*nets.values(), encode], probe, key)
        found = dict(zip(nets, residuals, strict=True))
        with probe("unet decode"):
            skips, middle = controlnet.join(skips, middle, residuals)
            out = self.runner(calls.UNetDecode(net, divide), skips, middle, time, text)
            out = out.to(self.out_dtype, copy=self.runner.overwrites)
        return out, tuple(found.get(k) for k in range(len(self.controls)))

    def _control(
        self, k: int, half: Tensor, full: Tensor, row: Row, which: int
    ) -> Callable[[ProbeLike], Residuals] | None:
        """Net `k`'s part of a pass, to be called; None where it has none."""
        control = self.controls[k]
        if control is None or row.control[k] == 0.0 or (control.cond_only and which == UNCOND):
            return None
        alone, network = control.cond_only, control.network
        read = COND if alone else which
        call = calls.ControlResiduals(network.net, alone and which == BOTH, not self.exact.scale)
        arguments = (
            half if alone else full,
            network.time(row.t, row.t_device(), row.context, read),
            network.text(row.context, read),
            control.features.tensors[0],
            row.control_device(k),
            control.guess,
            network.told(row.context, read),
        )

        def work(probe: ProbeLike) -> Residuals:
            with probe(control.name):
                return self.runner(call, *arguments, place=k)  # type: ignore[no-any-return]

        return work

    def _refresh(self) -> None:
        self.network.refresh()
        for control in self.controls:
            if control is not None:
                control.network.refresh()
                control.features.refresh()


def _both(uncond: Residuals | None, cond: Residuals | None) -> Residuals | None:
    """The residuals of halves that were run in turn; of a net that sees cond alone there are those of cond."""
    if cond is None:
        return None
    others = (
        map(torch.zeros_like, (*cond.skips, cond.middle))
        if uncond is None
        else (*uncond.skips, uncond.middle)
    )
    *skips, middle = (torch.cat(pair) for pair in zip(others, (*cond.skips, cond.middle), strict=True))
    return Residuals(tuple(skips), middle)


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
    runner: Runner = EAGER,
    hold: Hold | None = None,
    probe: ProbeLike = NO_PROBE,
) -> Predict:
    """Bind the networks to a run: `net` is the UNet, `nets` the ControlNets in the plan's order.

    With `guess` the ControlNets see the cond half alone and their residuals fade towards the top; a net that
    pools its residuals sees the cond half alone always, without a word about the other nets. `exact` says
    what is computed once instead of at each step, and again when weights are changed in place. `hold` is called now
    and before each evaluation, to have the weights be this run's own; None where nobody else changes them. `runner` is
    how the networks' calls are run; a frugal one runs cond after uncond and not beside it. `names` are for the probes.
    Raises WeightsError for a network that is not run faithfully.
    """
    check_exact(exact)
    unet.check(net)
    runner.stage([net, *nets])
    if hold is not None:
        hold(probe)
    dtype, device = net.conv_in.weight.dtype, net.conv_in.weight.device
    channels, inpaint = net.config.in_channels, conditions.inpaint
    unet.check_channels(channels, masked=inpaint is not None)
    if inpaint is not None and channels != unet.INPAINT_CHANNELS:
        raise UsageError(
            f"inpaint: this UNet takes {channels} channels, expected {unet.INPAINT_CHANNELS}: mask its x by a Blend"
        )
    texts = [_on(context, conditions.ids, device, dtype) for context in conditions.contexts]
    times = {row.t: row.t_device() for row in plan.rows}
    count = guidance.width(net.config)
    if plan.distilled != (count is not None):
        raise UsageError(
            f"distilled: the plan says {plan.distilled}, but this UNet {'is not' if count is None else 'is'} told "
            "its guidance"
        )
    waves = None if count is None else guidance.waves(plan.guidance, count).to(device, dtype)
    seen_by_unet = None if inpaint is None else inpaint.to(device, dtype)
    networks = _Networks(
        Bound(net, taken(net, texts), times, exact, waves), exact, runner, hold, seen_by_unet
    )
    for k, (module, hint) in enumerate(zip(nets, conditions.hints, strict=True)):
        if not plan.active(k):
            networks.add(None)
            continue
        controlnet.check(module, net)
        with probe("hint features"), telling_out_of_memory("the hints' features", device):
            features = _features(module, hint.to(device, dtype))
        alone = guess or controlnet.pools(module)
        seen = [(None, cond) for _, cond in texts] if alone else list(texts)
        scales = controlnet.guess_scales(module) if guess else None
        networks.add(
            _Control(
                name=f"controlnet {names[k] if names else k}",
                network=Bound(module, taken(module, seen), times, exact),
                features=features,
                cond_only=alone,
                guess=None if scales is None else scales.to(device),
            )
        )
    return networks


def _features(net: Any, hint: Tensor) -> Derived:
    sources = net.controlnet_cond_embedding.parameters()
    return Derived(sources, lambda: [controlnet.embed_hint(net, hint)])


def _on(
    context: Context, ids: Tensor | None, device: torch.device, dtype: torch.dtype
) -> tuple[Telling | None, Telling]:
    """A context of both halves [2B,...], uncond then cond, or None; and of the cond half [B,...]."""
    count, pooled = len(context.cond), context.cond_pooled
    told = None
    if pooled is not None and ids is not None:
        told = Added(pooled.to(device, dtype), ids[1:].to(device).expand(count, -1))
    if context.uncond is None:
        return None, Telling(context.cond.to(device, dtype), told)
    both = torch.cat([context.uncond, context.cond]).to(device, dtype)
    if told is None or ids is None or context.uncond_pooled is None:
        return Telling(both), Telling(both[-count:])
    whole = Added(
        torch.cat([context.uncond_pooled.to(device, dtype), told.pooled]),
        ids.to(device).repeat_interleave(count, dim=0),
    )
    return Telling(both, whole), Telling(both[-count:], told)
