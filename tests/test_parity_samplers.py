"""Every sampler through a pipeline with guidance and a ControlNet: per step, at the end, as a picture."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rawdiff import Control, Model
from rawdiff.weights.schedulers import scheduler_from_name
from tests.reference import check, hint, load, reference, silent
from tests.small_models import small_controlnet, small_folder, small_scheduler

pytestmark = pytest.mark.filterwarnings(  # diffusers' own, in Heun and its kin
    "ignore:__array__ implementation:DeprecationWarning",
    "ignore:__array_wrap__ must accept:DeprecationWarning",
)

SIZE = (64, 48)
STEPS = 7

NAMES = [
    "ddim", "ddpm", "pndm", "pndm prk", "euler", "euler karras", "euler exponential", "euler beta",
    "euler a", "heun", "heun karras", "dpm2", "dpm2 a", "lms", "lms karras", "dpm++ 2m", "dpm++ 2m karras",
    "dpm++ 2m sde", "dpm++ 2m sde karras", "dpm++ 3m", "dpm++ 3m sde", "dpm++ 2s", "dpm++ 2s sde",
    "dpm++ 3s", "deis", "deis 3", "unipc", "unipc 3", "unipc bh1", "sa-solver", "lcm", "tcd",
]  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(small_folder(tmp_path_factory.mktemp("model") / "plain", nets=()))


@pytest.fixture(scope="module")
def control(model: Model) -> Control:
    return Control("some", hint(SIZE, 0), weight=0.8, net=small_controlnet(model.unet, 40))


def compare(model: Model, control: Control, scheduler: Any, ours: Any = None, **call: Any) -> None:
    options = {"controls": [control], "size": SIZE, "guidance": 5.0, "seed": 3, "say": silent}
    schedule = {key: value for key, value in call.items() if key in ("timesteps", "sigmas", "eta")}
    if not {"timesteps", "sigmas"} & set(call):
        schedule["steps"], call["num_inference_steps"] = STEPS, STEPS
    run = model.prepare("a red cube", sampler=scheduler if ours is None else ours, **options, **schedule)
    theirs = reference(
        model, scheduler, "a red cube", [control], seeds=[3], size=SIZE, guidance_scale=5.0, **call
    )
    check(run, theirs)


@pytest.mark.parametrize("name", NAMES)
def test_by_name(model: Model, control: Control, name: str) -> None:
    compare(model, control, scheduler_from_name(name, model.scheduler.config), ours=name)


@pytest.mark.parametrize(
    ("name", "prediction"),
    [
        *(
            (name, "v_prediction")
            for name in ("ddim", "euler", "euler a", "dpm++ 2m", "unipc", "heun", "lms")
        ),
        *((name, "sample") for name in ("ddim", "ddpm", "euler", "dpm++ 2m", "unipc", "deis")),
    ],
)
def test_what_the_network_predicts(model: Model, control: Control, name: str, prediction: str) -> None:
    base = small_scheduler("DDIMScheduler", prediction_type=prediction)
    compare(model, control, scheduler_from_name(name, base.config))


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_spacing(model: Model, control: Control, name: str, spacing: str) -> None:
    compare(model, control, small_scheduler(name, timestep_spacing=spacing))


@pytest.mark.parametrize("name", ["ddim", "tcd"])
def test_eta(model: Model, control: Control, name: str) -> None:
    compare(model, control, scheduler_from_name(name, model.scheduler.config), eta=0.6)


def test_timesteps_of_ones_own(model: Model, control: Control) -> None:
    compare(
        model, control, small_scheduler("DPMSolverMultistepScheduler"), timesteps=[940, 700, 420, 200, 31]
    )


def test_sigmas_of_ones_own(model: Model, control: Control) -> None:
    compare(model, control, small_scheduler("EulerDiscreteScheduler"), sigmas=[14.0, 6.0, 2.5, 1.0, 0.3, 0.0])


def test_a_sampler_without_a_table(model: Model, control: Control) -> None:
    """Dynamic thresholding is not linear: the scheduler's own step runs."""
    scheduler = small_scheduler(
        "DPMSolverMultistepScheduler", thresholding=True, prediction_type="sample", sample_max_value=2.0
    )
    compare(model, control, scheduler)


@pytest.mark.parametrize("name", ["dpm++ sde", "dpm++ sde karras"])
def test_dpm_sde(model: Model, control: Control, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its Brownian tree is replaced, on diffusers' side, by a Brownian path made of our run's draws."""
    import diffusers.schedulers.scheduling_dpmsolver_sde as module

    class Path:
        """A step asks for the path from its beginning to its middle, then from its beginning to its end."""

        def __init__(self, x: Tensor, *_: Any, **__: Any) -> None:
            self.generator = torch.Generator().manual_seed(3)
            self.shape = x.shape
            self.begin, self.middle = -1.0, -1.0
            self.draw()  # the first draw of a run is its beginning

        def draw(self) -> Tensor:
            return torch.randn(self.shape, generator=self.generator)

        def __call__(self, sigma: Any, sigma_next: Any) -> Tensor:
            begin, end = float(sigma), float(sigma_next)
            if abs(begin - self.begin) > 1e-4 * begin:
                self.begin, self.middle = begin, end
                self.walked = (begin - end) ** 0.5 * self.draw()
            else:
                self.walked = self.walked + (self.middle - end) ** 0.5 * self.draw()
            return self.walked / (begin - end) ** 0.5

    scheduler = scheduler_from_name(name, model.scheduler.config)
    options = {"controls": [control], "size": SIZE, "guidance": 5.0, "seed": 3, "say": silent, "steps": STEPS}
    run = model.prepare("a red cube", sampler=scheduler, **options)
    monkeypatch.setattr(module, "BrownianTreeNoiseSampler", Path)
    theirs = reference(
        model, scheduler, "a red cube", [control],
        seeds=[3], size=SIZE, guidance_scale=5.0, num_inference_steps=STEPS,
    )  # fmt: skip
    check(run, theirs)
