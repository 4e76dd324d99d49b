"""Floating point operations of whole runs at Stable Diffusion 1.5's full size, counted and not computed.

The networks are built from their configs on the meta device, which knows shapes and no numbers; torch's counter then
sees every matrix product and convolution of diffusers' loop and of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from rawdiff.conditions import Conditions, Context
from rawdiff.plan import Plan, Row, Window, make_plan
from rawdiff.predict import Exact, prepare
from rawdiff.sampler import make_sampler

__all__ = [
    "META",
    "RUNS",
    "diffusers_flops",
    "diffusers_step",
    "networks",
    "our_flops",
    "our_steps",
    "plan_of",
]

META = torch.device("meta")
GUIDANCE = 7.5

RUNS: dict[str, tuple[tuple[Window, ...], float]] = {
    "no ControlNet": ((), 0.97),
    "one ControlNet": ((Window(),), 0.945),
    "two, one of them to half": ((Window(), Window(end=0.5)), 0.84),
}
"""The ControlNets of a run, and how much of diffusers' work ours may be at 512x512 in 20 steps."""


def networks(count: int, device: torch.device = META) -> tuple[Any, list[Any]]:
    """A UNet of 860M parameters and `count` ControlNets of 361M: on the meta device none of them in memory."""
    from diffusers import ControlNetModel, UNet2DConditionModel

    options = {"cross_attention_dim": 768, "attention_head_dim": 8}
    with device:
        nets = [ControlNetModel(**options).eval() for _ in range(count)]
        return UNet2DConditionModel(sample_size=64, **options).eval(), nets


def plan_of(windows: Sequence[Window], steps: int = 20, device: torch.device = META) -> Plan:
    """DDIM with guidance for one image: as many evaluations as steps."""
    from diffusers import DDIMScheduler

    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    scheduler = DDIMScheduler(**betas, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    sampler = make_sampler(scheduler, steps=steps)
    return make_plan(sampler, guidance=[GUIDANCE], windows=windows, device=device)


def _counted(work: Callable[[], Any]) -> tuple[int, Any]:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        result = work()
    return counter.get_total_flops(), result


def diffusers_step(
    unet: Any, nets: Sequence[Any], size: tuple[int, int], device: torch.device = META
) -> Callable[[], Any]:
    """One evaluation as diffusers' pipelines make it: both halves, every net, its hint embedded again, guidance."""
    from diffusers.models.controlnets.multicontrolnet import MultiControlNetModel

    dtype, (height, width) = unet.dtype, size
    x = torch.empty(1, 4, height // 8, width // 8, device=device, dtype=dtype)
    text = torch.empty(2, 77, 768, device=device, dtype=dtype)
    hint = torch.empty(2, 3, height, width, device=device, dtype=dtype)
    t = torch.zeros((), device=device, dtype=torch.int64)
    several = len(nets) > 1
    control: Any = MultiControlNetModel(list(nets)) if several else next(iter(nets), None)
    given = ([hint] * len(nets), [1.0] * len(nets)) if several else (hint, 1.0)

    def step() -> Any:
        both, residuals = torch.cat([x, x]), {}
        if control is not None:
            down, middle = control(both, t, text, *given, return_dict=False)
            residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        uncond, cond = unet(both, t, encoder_hidden_states=text, return_dict=False, **residuals)[0].chunk(2)
        return uncond + GUIDANCE * (cond - uncond)

    return step


def our_steps(
    plan: Plan,
    unet: Any,
    nets: Sequence[Any],
    size: tuple[int, int],
    exact: Exact,
    device: torch.device = META,
) -> list[tuple[Callable[[], Any], int]]:
    """The same by our loop, prepared: a row for each set of active nets, and how many of the plan have that set."""
    dtype, (height, width) = unet.dtype, size
    text = torch.empty(1, 77, 768, device=device, dtype=dtype)
    hints = (torch.empty(1, 3, height, width, device=device),) * len(nets)
    predict = prepare(plan, Conditions((Context(text, text),), hints), unet, nets, exact=exact)
    x = torch.empty(1, 4, height // 8, width // 8, device=device)
    alike: dict[tuple[bool, ...], list[Row]] = {}
    for row in plan.rows:
        alike.setdefault(tuple(weight != 0.0 for weight in row.control), []).append(row)
    return [(partial(predict, x, rows[0]), len(rows)) for rows in alike.values()]


def diffusers_flops(plan: Plan, unet: Any, nets: Sequence[Any], size: tuple[int, int]) -> int:
    """What diffusers' pipelines compute in the networks: every net at both halves at every evaluation.

    A ControlNet outside its window is run, at scale 0. All evaluations are the same, so that one is counted.
    """
    return len(plan) * _counted(diffusers_step(unet, nets, size))[0]


def our_flops(plan: Plan, unet: Any, nets: Sequence[Any], size: tuple[int, int], exact: Exact) -> int:
    """What our loop computes in the networks, `prepare` included; rows with the same active nets are the same."""
    total, steps = _counted(lambda: our_steps(plan, unet, nets, size, exact))
    return total + sum(count * _counted(step)[0] for step, count in steps)
