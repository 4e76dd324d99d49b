"""What has no table is refused by name, and runs by its own step; the sampler's state is a value."""

from __future__ import annotations

import io
from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rawdiff.errors import NotTabular, UsageError
from rawdiff.sampler import SamplerTable, SchedulerSampler, make_sampler, set_schedule, tabulate
from rawdiff.sampler.drive import hush
from tests.sampler_cases import BY_ID, CASES, SDE_TREE, SHAPE, Case, Reference, walk

NOT_AFFINE = [
    Case("clip", "DDIMScheduler", {"clip_sample": True}),
    Case("wide clip", "DDIMScheduler", {"clip_sample": True, "clip_sample_range": 200.0}),
    Case("ddim threshold", "DDIMScheduler", {"clip_sample": False, "thresholding": True}),
    Case("ddpm clip", "DDPMScheduler", {"clip_sample": True}),
    Case("heun clip", "HeunDiscreteScheduler", {"clip_sample": True}),
    Case("dpm threshold", "DPMSolverMultistepScheduler", {"thresholding": True}),
    Case("unipc threshold", "UniPCMultistepScheduler", {"thresholding": True}),
    Case("deis threshold", "DEISMultistepScheduler", {"thresholding": True}),
    Case("sa threshold", "SASolverScheduler", {"thresholding": True}),
    Case("lcm clip", "LCMScheduler", {"clip_sample": True}),
]


@pytest.mark.parametrize("case", NOT_AFFINE, ids=lambda case: case.id)
def test_what_is_not_linear_runs_by_its_own_step(case: Case) -> None:
    scheduler = set_schedule(case.make(), steps=8)
    with pytest.raises(NotTabular, match=f"^{case.scheduler}: its step is not linear") as refused:
        tabulate(scheduler)
    assert "\n" not in str(refused.value)
    made = make_sampler(scheduler)
    assert isinstance(made, SchedulerSampler)
    assert made.why == str(refused.value)
    assert walk(made, Reference(scheduler, dtype=torch.float32)) == 0


@pytest.mark.parametrize("case", [*CASES, SDE_TREE], ids=lambda case: case.id)
def test_rows_agree_with_the_table(case: Case) -> None:
    arguments = dict(case.arguments)
    settings: dict[str, Any] = {"eta": arguments.pop("eta", 0.0), "arguments": arguments}
    scheduler = set_schedule(case.make(), steps=6)
    made, own = tabulate(scheduler, **settings), SchedulerSampler(scheduler, **settings)
    assert (own.order, own.init_scale, own.prediction_type) == (
        made.order,
        made.init_scale,
        made.prediction_type,
    )
    for a, b in zip(made.rows, own.rows, strict=True):
        for key in ("t", "in_scale", "signal", "sigma", "x0_a", "x0_b", "draws"):
            assert getattr(a, key) == pytest.approx(getattr(b, key), rel=1e-6, abs=1e-7), (key, a.index)


@pytest.mark.parametrize("case", [*CASES, SDE_TREE], ids=lambda case: case.id)
def test_update_is_pure_and_its_state_can_be_saved(case: Case) -> None:
    """Every update is done thrice from one state, once through torch.save; all must agree to the bit."""
    arguments = dict(case.arguments)
    settings: dict[str, Any] = {"eta": arguments.pop("eta", 0.0), "arguments": arguments}
    scheduler = set_schedule(case.make(), steps=6)
    for sampler in (tabulate(scheduler, **settings), SchedulerSampler(scheduler, **settings)):
        x = torch.randn(SHAPE)
        s: Any = sampler.start(x)
        for i, row in enumerate(sampler.rows):
            file = io.BytesIO()
            torch.save({"x": x, "s": s}, file)
            file.seek(0)
            saved = torch.load(file, weights_only=True)
            out = torch.randn(SHAPE)
            noise = torch.randn(SHAPE) if row.draws else None
            copies = [x.clone(), out.clone(), None if noise is None else noise.clone()]
            x_next, s_next = sampler.update(i, x, out, noise, s)
            sampler.update(i, x * 2, -out, noise, s)  # a fork that goes elsewhere
            again, _ = sampler.update(i, saved["x"], out, noise, saved["s"])
            twice, _ = sampler.update(i, x, out, noise, s)
            assert torch.equal(again, x_next)
            assert torch.equal(twice, x_next)
            assert torch.equal(x, copies[0])
            assert torch.equal(out, copies[1])
            assert noise is None or torch.equal(noise, copies[2])
            x, s = x_next, s_next


class Own:
    """A scheduler of one's own, as little as one needs; `bend` makes its step what a test wants."""

    order = 1
    init_noise_sigma = 1.0

    def __init__(self, bend: Any) -> None:
        self.bend = bend
        self.timesteps = torch.tensor([900, 600, 300])
        self.seen: list[torch.Tensor] = []

    def set_timesteps(self, num_inference_steps: int) -> None:
        self.timesteps = torch.linspace(900, 100, num_inference_steps).long()

    def scale_model_input(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x

    def step(self, out: torch.Tensor, t: torch.Tensor, x: torch.Tensor, return_dict: bool = True) -> Any:
        self.seen.append(out)
        return SimpleNamespace(prev_sample=self.bend(x - 0.1 * sum(self.seen)))


def test_a_scheduler_of_ones_own() -> None:
    made = make_sampler(Own(lambda x: x), steps=5)
    assert isinstance(made, SamplerTable)
    assert made.state_size == 1
    bent = make_sampler(Own(torch.tanh), steps=5)
    assert isinstance(bent, SchedulerSampler)
    x, s = torch.randn(SHAPE), bent.start(torch.randn(SHAPE))
    seen = torch.zeros(SHAPE)
    for i in range(5):
        out = torch.randn(SHAPE)
        seen = seen + out
        x_next, s = bent.update(i, x, out, None, s)
        torch.testing.assert_close(x_next, torch.tanh(x - 0.1 * seen))
        x = x_next


def test_whatever_a_scheduler_remembers_is_forked() -> None:
    """Memory in a dictionary or a deque, changed in place, is not shared between two ways a run may go."""

    class Hoarder(Own):
        def __init__(self) -> None:
            super().__init__(torch.tanh)
            self.kept = {"outs": deque[torch.Tensor]()}

        def step(self, out: torch.Tensor, t: torch.Tensor, x: torch.Tensor, return_dict: bool = True) -> Any:
            self.kept["outs"].append(out)
            return SimpleNamespace(prev_sample=torch.tanh(x - 0.1 * sum(self.kept["outs"])))

    made = make_sampler(Hoarder(), steps=3)
    assert isinstance(made, SchedulerSampler)
    x = torch.randn(SHAPE)
    for s in (made.start(x), made.start(x), made.update(0, x, x * 0, None, made.start(x))[1]):
        for out in (torch.randn(SHAPE), torch.randn(SHAPE)):
            torch.testing.assert_close(made.update(1, x, out, None, s)[0], torch.tanh(x - 0.1 * out))


def test_what_a_table_cannot_hold() -> None:
    def refused(bend: Any) -> str:
        with pytest.raises(NotTabular) as error:
            tabulate(Own(bend))
        return str(error.value)

    assert "not linear (it adds a constant)" in refused(lambda x: x + 1e-3)
    assert "not linear (a run scaled by 10000" in refused(lambda x: x.clamp(-900, 900))
    assert "not linear (a run scaled by" in refused(lambda x: x * x.abs())
    assert "draws from torch.rand" in refused(lambda x: x + torch.rand(x.shape))
    assert "draws noise more than once at row 0" in refused(
        lambda x: x + torch.randn(x.shape) + torch.randn(x.shape)
    )
    assert "its step fails (no such luck)" in refused(fail)


def fail(x: torch.Tensor) -> torch.Tensor:
    raise ZeroDivisionError("no\nsuch luck")


def test_a_scheduler_that_fails_says_so_before_the_run() -> None:
    with pytest.raises(UsageError, match=r"^Own: its step fails \(no such luck\)$"):
        make_sampler(Own(fail))
    with pytest.raises(UsageError, match="prediction_type not implemented yet: sample"):
        make_sampler(BY_ID["kdpm2"].make(prediction_type="sample"), steps=4)


@pytest.mark.parametrize(
    ("id", "changes"),
    [
        ("ddpm", {"variance_type": "fixed_large_log"}),
        ("unipc", {"solver_type": "bh1", "final_sigmas_type": "zero"}),
        ("ddim", {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}),
    ],
)
def test_what_is_nan_in_diffusers_is_refused(id: str, changes: dict[str, Any]) -> None:
    scheduler = set_schedule(BY_ID[id].make(**changes), steps=6)
    with pytest.raises(NotTabular, match=f"{BY_ID[id].scheduler}: its step is not finite at row"):
        tabulate(scheduler)
    with pytest.raises(UsageError, match="its own step gives NaN or infinity at row"):
        make_sampler(scheduler)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"steps": 0}, "steps 0: expected a whole number of at least 1"),
        ({"steps": True}, "steps True"),
        ({"steps": 2.5}, "steps 2.5"),
        ({"steps": 4, "timesteps": [3, 2]}, "steps and timesteps were given"),
        ({"timesteps": []}, "timesteps: expected at least one number"),
        ({"timesteps": [500, 500]}, r"timesteps \[500, 500\]: expected descending numbers"),
        ({"timesteps": [900.5, 3]}, r"timesteps \[900.5\]: DPMSolverMultistepScheduler takes whole numbers"),
        ({"timesteps": [float("nan")]}, "not a finite number"),
        ({"timesteps": [1500, 3]}, "timesteps: 1500 is beyond the model's last, 999"),
        ({"sigmas": [3.0, 0.0]}, "takes no sigmas of one's own"),
        ({"steps": 4, "eta": 0.5}, "eta 0.5: DPMSolverMultistepScheduler has none"),
        ({"steps": 4, "arguments": {"s_churn": 1.0}}, "its step takes no 's_churn'"),
        ({}, "its timesteps are not set"),
    ],
)
def test_settings_that_make_no_sense(given: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words) as error:
        make_sampler(BY_ID["dpm++ 2m"].make(), **given)
    assert "\n" not in str(error.value)


def test_more_settings_that_make_no_sense() -> None:
    with pytest.raises(UsageError, match=r"eta 1\.5: expected a number from 0 to 1"):
        make_sampler(BY_ID["ddim"].make(), steps=4, eta=1.5)
    with pytest.raises(UsageError, match="steps 3: PNDMScheduler warms up over 4"):
        make_sampler(BY_ID["pndm prk"].make(), steps=3)
    with pytest.raises(UsageError, match="cannot be set"):
        make_sampler(BY_ID["ddim"].make(), steps=1001)
    with pytest.raises(UsageError, match="cannot be set"):
        make_sampler(BY_ID["dpm++ 2m"].make(use_karras_sigmas=True), timesteps=[900, 100])


@pytest.mark.parametrize("kind", [SamplerTable, SchedulerSampler])
def test_noise_must_be_given_where_it_is_drawn(kind: type) -> None:
    scheduler = set_schedule(BY_ID["euler a"].make(), steps=4)
    sampler: Any = tabulate(scheduler) if kind is SamplerTable else SchedulerSampler(scheduler)
    x = torch.randn(SHAPE)
    with pytest.raises(UsageError, match="row 0 of EulerAncestralDiscreteScheduler draws noise"):
        sampler.update(0, x, x, None, sampler.start(x))


def test_half_precision_outputs_meet_a_state_in_fp32() -> None:
    scheduler = set_schedule(BY_ID["unipc"].make(), steps=5)
    for sampler in (tabulate(scheduler), SchedulerSampler(scheduler)):
        x = torch.randn(SHAPE)
        s: Any = sampler.start(x)
        for i in range(5):
            x, s = sampler.update(i, x, torch.randn(SHAPE).half(), None, s)
            assert x.dtype == torch.float32


def test_nothing_is_heard_from_diffusers(caplog: pytest.LogCaptureFixture, capfd: Any) -> None:
    with hush():
        scheduler = BY_ID["dpm++ 2s"].make(lower_order_final=False)
    make_sampler(scheduler, steps=5)
    make_sampler(BY_ID["lcm"].make(), timesteps=[900, 500])
    assert not caplog.records
    assert capfd.readouterr() == ("", "")
