"""Floating point operations of whole runs at Stable Diffusion 1.5's full size, counted and not computed.

The networks are built from their configs on the meta device, which knows shapes and no numbers; torch's counter then
sees every matrix product and convolution of diffusers' loop and of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from rawdiff.conditions import Conditions, Context
from rawdiff.plan import Plan, Window, make_plan
from rawdiff.predict import Exact, prepare
from rawdiff.sampler import make_sampler

__all__ = ["RUNS", "diffusers_flops", "networks", "our_flops", "plan_of"]

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


def diffusers_flops(plan: Plan, unet: Any, nets: Sequence[Any], size: tuple[int, int]) -> int:
    """What diffusers' pipelines compute in the networks: every net at both halves at every evaluation.

    A ControlNet outside its window is run, at scale 0. All evaluations are the same, so that one is counted.
    """
    from diffusers.models.controlnets.multicontrolnet import MultiControlNetModel

    height, width = size
    x = torch.empty(2, 4, height // 8, width // 8, device=META)
    text, hint = torch.empty(2, 77, 768, device=META), torch.empty(2, 3, height, width, device=META)
    t = torch.empty((), device=META)

    def step() -> None:
        residuals: dict[str, Any] = {}
        if nets:
            hints, scales = [hint] * len(nets), [1.0] * len(nets)
            down, middle = MultiControlNetModel(list(nets))(x, t, text, hints, scales, return_dict=False)
            residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        unet(x, t, encoder_hidden_states=text, return_dict=False, **residuals)

    return len(plan) * _counted(step)[0]


def our_flops(plan: Plan, unet: Any, nets: Sequence[Any], size: tuple[int, int], exact: Exact) -> int:
    """What our loop computes in the networks, `prepare` included; rows with the same active nets are the same."""
    height, width = size
    text, hint = torch.empty(1, 77, 768, device=META), torch.empty(1, 3, height, width, device=META)
    conditions = Conditions((Context(text, text),), (hint,) * len(nets))
    total, predict = _counted(lambda: prepare(plan, conditions, unet, nets, exact=exact))
    x, known = torch.empty(1, 4, height // 8, width // 8, device=META), {}
    for row in plan.rows:
        active = tuple(weight != 0.0 for weight in row.control)
        if active not in known:
            known[active] = _counted(lambda row=row: predict(x, row))[0]
        total += known[active]
    return total
