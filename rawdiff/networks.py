"""The networks of a run and guidance, as one function of x and a row: what is run anew at each evaluation.

The cast to the networks' dtype and the cast back are here and nowhere else; guidance is computed in fp32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rawdiff.graphs import Group, Runner
from rawdiff.nets import blocks, calls, controlnet
from rawdiff.nets.controlnet import Residuals
from rawdiff.nets.derived import Derived
from rawdiff.nets.exact import Exact
from rawdiff.nets.halves import spread
from rawdiff.nets.tables import BOTH, COND, UNCOND, Bound
from rawdiff.plan import Row
from rawdiff.prediction import Prediction, guide
from rawdiff.probes import NO_PROBE, ProbeLike

__all__ = ["ControlNet", "Hold", "Networks"]

Hold = Callable[[ProbeLike], None]
"""Has the networks' weights be what a run was prepared with, whatever other runs did since."""


class ControlNet(NamedTuple):
    """A ControlNet of a run, and what was computed for it before."""

    name: str
    network: Bound
    features: Derived  # [1 or B,C,h,w]
    cond_only: bool
    guess: Tensor | None  # [n+1] fp32


class Networks:
    """All networks of a run; calling it is one evaluation."""

    def __init__(
        self, network: Bound, exact: Exact, runner: Runner, hold: Hold | None, inpaint: Tensor | None
    ) -> None:
        self.network = network
        self.exact = exact
        self.runner = runner
        self.hold = hold
        self.dtype = network.net.conv_in.weight.dtype
        self.out_dtype = torch.promote_types(self.dtype, torch.float32)
        self.controls: list[ControlNet | None] = []
        self.inpaint = inpaint  # [1 or B,5,h,w]
        self._nets: dict[int, Any] = {-1: network.net}
        self._kinds = {-1: calls.kind(network.net)}

    def add(self, control: ControlNet | None) -> None:
        """The next ControlNet; None for one that no row uses."""
        if control is not None:
            self._nets[len(self.controls)] = control.network.net
            self._kinds[len(self.controls)] = calls.kind(control.network.net)
        self.controls.append(control)

    @torch.no_grad()
    def __call__(self, x: Tensor, row: Row, probe: ProbeLike = NO_PROBE) -> Prediction:
        self.runner.stage(self._nets.values())
        if self.hold is not None:
            self.hold(probe)
        self._refresh()
        half = x.to(self.dtype)
        try:
            question = (tuple(half.shape), self.dtype, row.guided, *self._kinds.values())
            self.runner.settle(self._nets.values(), lambda: self._halves(half, row, NO_PROBE), question)
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
        is_last = net.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
        order = "channels last" if is_last else "channels first"
        question = (tuple(seen.shape), self.dtype, which, order, *(self._kinds[k] for k in (-1, *nets)))
        group = Group(question, tuple(id(self._nets[k]) for k in (-1, *nets)))
        *residuals, (skips, middle) = self.runner.together([*nets.values(), encode], probe, group)
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
