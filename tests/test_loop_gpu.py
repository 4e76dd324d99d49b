"""The loop on a GPU: the host never waits, and the numbers are those of the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import rawdiff
from rawdiff import Control, Run
from tests.reference import error, hint, silent
from tests.small_models import small_folder

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("whole_fp32", "own_cache")]
pytest_plugins = ["tests.gpu_fixtures"]

SIZE = (64, 48)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return small_folder(tmp_path_factory.mktemp("model") / "small", nets=("depth",))


def prepared(folder: Path, device: str, dtype: str, speed: str | None = None, **options: Any) -> Run:
    model = rawdiff.load(folder, device=device, dtype=dtype, speed=speed)
    controls = [Control("any", hint(SIZE, 0), net=folder / "controlnet_depth", end=0.6)]
    return model.prepare("a red cube", controls=controls, size=SIZE, seed=3, steps=8, say=silent, **options)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "pndm", "euler a", "lcm", "unipc", "dpm++ 2m sde"])
def test_the_host_never_waits(folder: Path, sampler: str) -> None:
    """Every step but the last, after which the flag for NaN is read."""
    run = prepared(folder, "cuda", "fp16", sampler=sampler, watch=())
    next(run)  # the first may set up libraries
    torch.cuda.set_sync_debug_mode("error")
    try:
        while run.state.i < len(run) - 1:
            next(run)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    next(run)
    assert run.done


def test_as_on_the_cpu(folder: Path) -> None:
    exact = prepared(folder, "cpu", "fp64")
    list(exact)
    for dtype, bound in (("fp32", 1e-4), ("fp16", 2e-2), ("bf16", 1e-1)):
        run = prepared(folder, "cuda", dtype)
        list(run)
        assert run.latents.device.type == "cuda"
        assert error(run.latents.double().cpu(), exact.latents) < bound
        assert run.image().size == (48, 64)


def test_saved_and_resumed(folder: Path, tmp_path: Path) -> None:
    """Without choices by measurement, which two models may make differently: other kernels give other bits."""
    run = prepared(folder, "cuda", "fp16", "eager", sampler="unipc")
    next(run)
    path = run.save(tmp_path / "run.safetensors")
    model = rawdiff.load(folder, device="cuda", dtype="fp16", speed="eager")
    again = model.resume(path)
    list(again)
    list(run)
    assert torch.equal(again.latents, run.latents)


def test_made_again(folder: Path) -> None:
    """By another model, which finds what the first measured: the same kernels, and the same bits."""
    first, second = (prepared(folder, "cuda", "fp16") for _ in range(2))
    list(first)
    list(second)
    assert torch.equal(first.latents, second.latents)
