"""Zero terminal SNR with trailing spacing and v (Lin et al. 2023, arXiv 2305.08891), guidance rescale included."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch

from rawdiff import Control, Model, Run
from rawdiff.errors import UsageError
from rawdiff.weights.scheduler_names import NAMES, accepted
from rawdiff.weights.schedulers import scheduler_from_name
from tests.reference import check, hint, load, matters, reference, silent
from tests.small_models import small_controlnet, small_folder, small_scheduler

pytestmark = pytest.mark.filterwarnings(  # diffusers' own
    "ignore:__array__ implementation:DeprecationWarning",
    "ignore:__array_wrap__ must accept:DeprecationWarning",
)

SIZE = (64, 48)
STEPS = 7
PROMPT = "a red cube"
ZERO_SNR: dict[str, Any] = {
    "timestep_spacing": "trailing",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "steps_offset": 1,  # which trailing spacing has no use for, and without which diffusers' pipeline warns
}
BY_SIGMA = {
    "EulerDiscreteScheduler": "scheduling_euler_discrete",
    "EulerAncestralDiscreteScheduler": "scheduling_euler_ancestral_discrete",
}
"""Those that begin at a sigma of 4096, where diffusers' own step in fp32 loses 2e-5 to cancellation."""


def scheduler(name: str, **changes: Any) -> Any:
    config = {**ZERO_SNR, "clip_sample": False, **changes}
    return small_scheduler(name, **{key: value for key, value in config.items() if key in accepted(name)})


def classes() -> list[str]:
    """Every scheduler known here whose class has it."""
    every = dict.fromkeys(entry.scheduler for entry in NAMES.values())
    return [name for name in every if "rescale_betas_zero_snr" in accepted(name)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(small_folder(tmp_path_factory.mktemp("model") / "plain", nets=()))


@pytest.fixture(scope="module")
def control(model: Model) -> Control:
    return Control("some", hint(SIZE, 0), weight=0.8, net=small_controlnet(model.unet, 40))


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lets diffusers' step compute in fp64: its module sees a torch whose float32 is float64.

    What goes in and comes out is fp32, as it was, and the bound is everybody's.
    """

    class Wide:
        float32 = torch.float64

        def __getattr__(self, name: str) -> Any:
            return getattr(torch, name)

    def widen(name: str) -> None:
        if name in BY_SIGMA:
            module = importlib.import_module(f"diffusers.schedulers.{BY_SIGMA[name]}")
            monkeypatch.setattr(module, "torch", Wide())

    return widen


def prepared(model: Model, sampler: Any, **options: Any) -> Run:
    defaults = {"size": SIZE, "steps": STEPS, "guidance": 5.0, "seed": 3, "say": silent}
    return model.prepare(PROMPT, sampler=sampler, **{**defaults, **options})


def diffused(model: Model, sampler: Any, controls: Any = (), **call: Any) -> Any:
    call = {"size": SIZE, "num_inference_steps": STEPS, "guidance_scale": 5.0, **call}
    return reference(model, sampler, PROMPT, controls, seeds=[3], **call)


def test_which_have_it() -> None:
    assert {"DDIMScheduler", "DDPMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"} <= {
        *classes()
    }


@pytest.mark.parametrize("name", classes())
def test_with_rescale(model: Model, name: str, wide: Any) -> None:
    own = scheduler(name)
    run = prepared(model, own, rescale=0.7)
    first = run.plan.rows[0]
    assert first.t == 999
    assert first.signal / first.sigma < 1e-3
    wide(name)
    run = check(run, diffused(model, own, guidance_rescale=0.7))
    matters(run, prepared(model, own))
    ordinary = scheduler(name, rescale_betas_zero_snr=False)
    matters(run, prepared(model, ordinary, rescale=0.7))


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler"])
def test_with_a_net(model: Model, control: Control, name: str, wide: Any) -> None:
    own = scheduler(name)
    run = prepared(model, own, controls=[control])
    wide(name)
    matters(check(run, diffused(model, own, [control])), prepared(model, own))


def test_the_first_step_of_no_signal_is_told_by_v() -> None:
    """At a signal of zero x says nothing of x0, and v all of it: x0 = -v; a table in numbers, none infinite."""
    from rawdiff.sampler import make_sampler

    table = make_sampler(scheduler("DDIMScheduler"), steps=STEPS)
    first = table.rows[0]
    assert (first.signal, first.sigma) == (0.0, 1.0)
    assert (first.x0_a, first.x0_b) == (0.0, -1.0)
    assert all(abs(row.weights).max() < 100 for row in table.rows)


@pytest.mark.parametrize("name", ["euler", "ddim", "dpm++ 2m", "unipc"])
def test_it_is_the_models_and_stays_with_another_sampler(name: str) -> None:
    base = scheduler("DDIMScheduler").config
    assert scheduler_from_name(name, base).config.rescale_betas_zero_snr is True


def test_a_sampler_that_cannot_is_refused() -> None:
    base = scheduler("DDIMScheduler").config
    with pytest.raises(UsageError, match="zero terminal SNR, which HeunDiscreteScheduler does not have"):
        scheduler_from_name("heun", base)
