"""Small networks with a plan and conditions, and what diffusers' own modules say of them at a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from rawdiff.conditions import Conditions, Context
from rawdiff.plan import Plan, Window, make_plan
from rawdiff.predict import Exact, prepare
from rawdiff.sampler import make_sampler
from tests.small_models import TEXT_WIDTH, small_controlnet, small_scheduler, small_unet

BOUND = 1e-5
NAMES = tuple(field.name for field in fields(Exact))
EVERYTHING, NOTHING = Exact(), Exact(**dict.fromkeys(NAMES, False))

SHAPES: dict[str, dict[str, Any]] = {
    "deep": {"shape": "deep"},
    "topless": {"shape": "topless"},
    "linear": {"shape": "linear"},  # as Stable Diffusion 2: heads per level, linear projections
    "cross at the top": {"shape": "deep", "only_cross_attention": (True, False, False)},
    "upcast": {"shape": "plain", "upcast_attention": True},
    "scaled": {"shape": "plain", "mid_block_scale_factor": 2**0.5},
    "scale and shift": {"shape": "plain", "resnet_time_scale_shift": "scale_shift"},
}


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


class Case:
    """Networks, a plan of three steps of which the second net misses the last, and what they are given."""

    def __init__(
        self,
        nets: int = 0,
        guess: bool = False,
        pooled: bool = False,
        guidance: Sequence[float] = (4.0,),
        hints: int = 1,
        size: tuple[int, int] = (8, 6),
        prediction_type: str = "epsilon",
        steps: int = 3,
        **shape: Any,
    ) -> None:
        self.guess, self.size, self.batch = guess, size, len(guidance)
        self.unet = small_unet(1, **{"shape": "deep", **shape})
        self.nets = [small_controlnet(self.unet, 40 + k) for k in range(nets)]
        if pooled:
            self.nets[0].register_to_config(global_pool_conditions=True)
        self.scheduler = small_scheduler(prediction_type=prediction_type)
        windows = [Window(0.8), Window(1.1, 0.0, 0.7)][:nets]
        self.plan: Plan = make_plan(
            make_sampler(self.scheduler, steps=steps), guidance=guidance, windows=windows
        )
        cond, uncond = (randn(self.batch, 77, TEXT_WIDTH, seed=seed) for seed in (1, 2))
        shown = tuple(randn(hints, 3, 8 * size[0], 8 * size[1], seed=50 + k) for k in range(nets))
        self.given = Conditions((Context(cond, uncond if self.plan.guided else None),), shown)

    def prepared(self, exact: Exact = EVERYTHING, **options: Any) -> Any:
        return prepare(self.plan, self.given, self.unet, self.nets, guess=self.guess, exact=exact, **options)


def diffused(case: Case, x: Tensor, i: int) -> Tensor:
    """What diffusers' pipelines have for the networks' output at row `i`, guidance done."""
    row, context = case.plan.rows[i], case.given.contexts[0]
    both = x if context.uncond is None else torch.cat([x, x])
    text = context.cond if context.uncond is None else torch.cat([context.uncond, context.cond])
    t = torch.tensor(row.t)
    down: list[Tensor] = []
    middle: Any = None
    for k, net in enumerate(case.nets):
        alone = case.guess or net.config.global_pool_conditions
        seen, told = (x, context.cond) if alone else (both, text)
        hint = case.given.hints[k].repeat(len(seen) // len(case.given.hints[k]), 1, 1, 1)
        residuals, last = net(
            seen, t, told, hint, conditioning_scale=row.control[k], guess_mode=case.guess, return_dict=False
        )
        if alone and context.uncond is not None:
            residuals = [torch.cat([torch.zeros_like(r), r]) for r in residuals]
            last = torch.cat([torch.zeros_like(last), last])
        down = [a + b for a, b in zip(down, residuals, strict=True)] if down else list(residuals)
        middle = last if middle is None else middle + last
    extra: dict[str, Any] = {}
    if case.nets:
        extra = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
    out: Tensor = case.unet(both, t, text, return_dict=False, **extra)[0]
    if context.uncond is None:
        return out
    uncond, cond = out.chunk(2)
    return uncond + torch.tensor(row.guidance).view(-1, 1, 1, 1) * (cond - uncond)
