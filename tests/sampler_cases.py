"""Schedulers to test, and diffusers' own loop over them to test against."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
from torch.overrides import TorchFunctionMode

from rawdiff.sampler import SamplerTable, make_sampler
from rawdiff.sampler.drive import hush

SD: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
"""The betas of Stable Diffusion."""

SHAPE = (2, 4, 5, 6)
EPS_V_X0 = ("epsilon", "v_prediction", "sample")
EPS_V = ("epsilon", "v_prediction")
ALL_SPACINGS = ("leading", "trailing", "linspace")
SIGMAS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")


@dataclass(frozen=True)
class Case:
    """One scheduler with its settings, and what it can be varied in."""

    id: str
    scheduler: str
    settings: dict[str, Any] = field(default_factory=dict)
    predictions: tuple[str, ...] = EPS_V_X0
    spacings: tuple[str, ...] = ALL_SPACINGS
    sigmas: tuple[str, ...] = ()
    zero_snr: bool = False
    state: int = 0
    """Tensors carried beside x at 20 steps."""
    arguments: dict[str, Any] = field(default_factory=dict)
    fewest: int = 1

    def make(self, **changes: Any) -> Any:
        """The scheduler; construction says what it likes, unheard."""
        kind = getattr(diffusers, self.scheduler)
        betas = SD if self.scheduler != "EDMEulerScheduler" else {}
        with hush():
            return kind(**(betas | self.settings | changes))

    def variants(self) -> Iterator[dict[str, Any]]:
        """Every prediction type by every spacing of the timesteps, and each spacing of the sigmas."""
        for prediction in self.predictions:
            for spacing in self.spacings or ("",):
                yield {"prediction_type": prediction} | ({"timestep_spacing": spacing} if spacing else {})
            for flag in self.sigmas if prediction == "epsilon" else ():
                yield {"prediction_type": prediction, flag: True}
            if self.zero_snr and prediction != "epsilon":
                yield {
                    "prediction_type": prediction,
                    "timestep_spacing": "trailing",
                    "rescale_betas_zero_snr": True,
                }


MULTI, SINGLE = "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"
DEIS, UNIPC, SA = "DEISMultistepScheduler", "UniPCMultistepScheduler", "SASolverScheduler"
SDE = {"algorithm_type": "sde-dpmsolver++"}
MIN = {"final_sigmas_type": "sigma_min"}

CASES = [
    Case(
        "ddim",
        "DDIMScheduler",
        {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1},
        zero_snr=True,
    ),
    Case("ddim eta", "DDIMScheduler", {"clip_sample": False}, zero_snr=True, arguments={"eta": 0.7}),
    Case("ddpm", "DDPMScheduler", {"clip_sample": False}, zero_snr=True),
    Case("ddpm large", "DDPMScheduler", {"clip_sample": False, "variance_type": "fixed_large"}),
    Case("ddpm log", "DDPMScheduler", {"clip_sample": False, "variance_type": "fixed_small_log"}),
    Case("plms", "PNDMScheduler", {"skip_prk_steps": True}, EPS_V, state=3),
    Case("pndm prk", "PNDMScheduler", {}, EPS_V, state=5, fewest=4),
    Case("euler", "EulerDiscreteScheduler", sigmas=SIGMAS, zero_snr=True),
    Case("euler churn", "EulerDiscreteScheduler", arguments={"s_churn": 2.0, "s_noise": 1.01}),
    Case("euler a", "EulerAncestralDiscreteScheduler", predictions=EPS_V, zero_snr=True),
    Case("heun", "HeunDiscreteScheduler", sigmas=SIGMAS, state=1),
    Case("kdpm2", "KDPM2DiscreteScheduler", predictions=EPS_V, sigmas=SIGMAS, state=1),
    Case("kdpm2 a", "KDPM2AncestralDiscreteScheduler", predictions=EPS_V, sigmas=SIGMAS, state=1),
    Case("lms", "LMSDiscreteScheduler", sigmas=SIGMAS, state=3),
    Case("dpm++ 1", MULTI, {"solver_order": 1}),
    Case("dpm++ 2m", MULTI, sigmas=(*SIGMAS, "use_lu_lambdas"), zero_snr=True, state=1),
    Case("dpm++ 2m heun", MULTI, {"solver_type": "heun", "euler_at_final": True} | MIN, state=1),
    Case("dpm 2m", MULTI, {"algorithm_type": "dpmsolver"} | MIN, state=1),
    Case("dpm++ 3m", MULTI, {"solver_order": 3}, sigmas=SIGMAS, state=2),
    Case("dpm++ 2m sde", MULTI, SDE, sigmas=SIGMAS, zero_snr=True, state=1),
    Case("dpm++ 3m sde", MULTI, SDE | {"solver_order": 3}, state=2),
    Case("dpm++ 2s", SINGLE, {"lower_order_final": True}, spacings=(), sigmas=SIGMAS, state=1),
    Case("dpm++ 3s", SINGLE, {"solver_order": 3, "lower_order_final": True}, spacings=(), state=2),
    Case("dpm++ 2s sde", SINGLE, SDE | {"lower_order_final": True}, spacings=(), state=1),
    Case("deis", DEIS, sigmas=SIGMAS, state=1),
    Case("deis 3", DEIS, {"solver_order": 3}, state=2),
    Case("unipc", UNIPC, sigmas=SIGMAS, zero_snr=True, state=2),
    Case("unipc 3", UNIPC, {"solver_order": 3}, state=3),
    Case("unipc eps", UNIPC, {"predict_x0": False} | MIN, state=2),
    Case("unipc bh1", UNIPC, {"solver_type": "bh1", "disable_corrector": [0, 3]} | MIN, state=2),
    Case("sa-solver", SA, sigmas=SIGMAS, state=2),
    Case("sa-solver 3", SA, {"predictor_order": 3, "corrector_order": 4}, state=3),
    Case("sa-solver eps", SA, {"algorithm_type": "noise_prediction"}, state=2),
    Case("lcm", "LCMScheduler", {"clip_sample": False}, spacings=(), zero_snr=True),
    Case("tcd", "TCDScheduler", spacings=(), zero_snr=True, arguments={"eta": 0.3}),
    Case("tcd eta 0", "TCDScheduler", spacings=()),
    Case("edm euler", "EDMEulerScheduler", {}, EPS_V, ()),
]
BY_ID = {case.id: case for case in CASES}

SDE_TREE = Case("dpm++ sde", "DPMSolverSDEScheduler", predictions=EPS_V, sigmas=SIGMAS, state=1)
"""Apart: its noise comes from torchsde's tree instead of a generator."""


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference, relative to the largest entry."""
    return float((a.double() - b.double()).abs().max() / b.double().abs().max())


class Fp32Noise(TorchFunctionMode):
    """`torch.randn` draws in fp32 whatever dtype is asked for: a reference in fp64 gets the same noise."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.randn:
            return func(*args, **(kwargs or {}))
        dtype = kwargs.pop("dtype", None)
        return func(*args, **kwargs, dtype=torch.float32).to(dtype)


class Reference:
    """diffusers' own loop, as its pipelines write it, over a copy of `scheduler`.

    In fp64 unless said: in fp32 diffusers' Euler errs by 7e-5 of its own where sigma falls from 4096 at once.
    """

    def __init__(
        self,
        scheduler: Any,
        begin: int = 0,
        arguments: dict[str, Any] | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        self.dtype = dtype
        self.scheduler = copy.deepcopy(scheduler)
        self.timesteps = self.scheduler.timesteps[begin:]
        if hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(begin)
        self.arguments = arguments or {}
        self.generator = torch.Generator().manual_seed(11)
        self.takes_generator = "generator" in self.scheduler.step.__code__.co_varnames

    def step(self, i: int, x: torch.Tensor, out: torch.Tensor) -> Any:
        """diffusers' step, drawing its noise from `self.generator`."""
        x, out = x.to(self.dtype), out.to(self.dtype)
        with hush(), Fp32Noise():
            self.scheduler.scale_model_input(x, self.timesteps[i])
            extra = {"generator": self.generator} if self.takes_generator else {}
            return self.scheduler.step(out, self.timesteps[i], x, **extra, **self.arguments)


def walk(
    sampler: Any,
    reference: Reference,
    *,
    forgetful: bool = False,
    by_hand: bool = True,
    look: Callable[[int, torch.Tensor, torch.Tensor, Any], None] | None = None,
) -> float:
    """The largest error of a step of `sampler` against `reference`, given the same x, output and noise.

    Outputs are random; every third step x is changed by hand. The noise comes from a generator of the same
    seed, so that a row which draws too often or too seldom falls out of step. `forgetful` takes the state
    away.
    """
    assert len(sampler.rows) == len(reference.timesteps)
    inputs = torch.Generator().manual_seed(5)
    noises = torch.Generator().manual_seed(11)

    def random() -> torch.Tensor:
        return torch.randn(SHAPE, generator=inputs)

    x = random() * sampler.rows[0].sigma
    s = sampler.start(x)
    worst = 0.0
    for i, row in enumerate(sampler.rows):
        if forgetful:
            s = sampler.start(x)
        out = random()
        noise = torch.randn(SHAPE, generator=noises) if row.draws else None
        expected = reference.step(i, x, out)
        x_next, s = sampler.update(i, x, out, noise, s)
        if look:
            look(i, x, out, expected)
        worst = max(worst, relative(x_next, expected.prev_sample))
        x = expected.prev_sample.float()
        if by_hand and i % 3 == 1:
            x = x + 0.3 * x.abs().max() * random()
    assert torch.equal(noises.get_state(), reference.generator.get_state()), "draws differ"
    return worst


def table(case: Case, scheduler: Any, steps: int, **more: Any) -> tuple[SamplerTable, Reference]:
    """The table of `scheduler` at `steps`, and the loop to hold it against."""
    arguments = dict(case.arguments)
    made = make_sampler(scheduler, steps=steps, eta=arguments.pop("eta", 0.0), arguments=arguments)
    assert isinstance(made, SamplerTable), made.why
    with hush():
        scheduler.set_timesteps(steps)
    # diffusers' pipelines hand their eta, 0 by default, to every step that takes one.
    extra = {"eta": 0.0} if case.scheduler in ("DDIMScheduler", "TCDScheduler") else {}
    return made, Reference(scheduler, arguments=extra | case.arguments, **more)
