"""Half precision, against the same run in fp64: our state of fp32 errs less than diffusers' own of half."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import rawdiff
from rawdiff import Control
from tests.reference import error, hint, reference, silent
from tests.small_models import small_folder, small_scheduler

SIZE = (64, 48)
OPTIONS = {"size": SIZE, "steps": 12, "guidance": 5.0, "seed": 3, "say": silent}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_folder(tmp_path_factory.mktemp("model") / "small", nets=("depth",))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own
@pytest.mark.parametrize("name", ["DDIMScheduler", "DPMSolverMultistepScheduler"])
def test_half_precision(folder: Path, name: str) -> None:
    """bf16 here, since a CPU has no fp16 to speak of; the sampler's state is what is compared."""
    ends = {}
    for dtype in ("fp64", "fp32", "bf16"):
        model = rawdiff.load(folder, device="cpu", dtype=dtype)
        controls = [Control("any", hint(SIZE, 0), net=model.net("depth"))]
        run = model.prepare("a red cube", controls=controls, sampler=small_scheduler(name), **OPTIONS)
        assert run.latents.dtype == (torch.float64 if dtype == "fp64" else torch.float32)
        list(run)
        ends[dtype] = run.latents.double()
    theirs = reference(
        model, small_scheduler(name), "a red cube", controls,
        seeds=[3], size=SIZE, guidance_scale=5.0, num_inference_steps=12,
    ).xs[-1]  # fmt: skip
    assert theirs.dtype == torch.bfloat16
    assert error(ends["fp32"], ends["fp64"]) < 1e-5
    ours = error(ends["bf16"], ends["fp64"])
    assert 1e-5 < ours < error(theirs.double(), ends["fp64"])
