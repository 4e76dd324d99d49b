"""How much less than diffusers' loop the networks compute, at Stable Diffusion 1.5's full size."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rawdiff.predict import Exact
from scripts.speed.flops import RUNS, diffusers_flops, networks, our_flops, plan_of

SIZE = (512, 512)


@pytest.fixture(scope="module")
def full() -> tuple[Any, list[Any]]:
    return networks(2)


def test_full_size(full: tuple[Any, list[Any]]) -> None:
    unet, nets = full
    millions = [round(sum(p.numel() for p in net.parameters()) / 1e6) for net in (unet, *nets)]
    assert millions == [860, 361, 361]
    assert 1.5e12 < diffusers_flops(plan_of((), steps=1), unet, [], SIZE) < 1.7e12


@pytest.mark.parametrize("run", RUNS)
def test_the_bounds(full: tuple[Any, list[Any]], run: str) -> None:
    unet, nets = full
    windows, bound = RUNS[run]
    plan, some = plan_of(windows), nets[: len(windows)]
    assert len(plan) == 20
    theirs = diffusers_flops(plan, unet, some, SIZE)
    ours = {
        name: our_flops(plan, unet, some, SIZE, exact) / theirs
        for name, exact in {
            "everything": Exact(),
            "no kv": Exact(kv=False),
            "no prefix": Exact(prefix=False),
            "nothing": Exact(kv=False, time=False, prefix=False, scale=False),
        }.items()
    }
    assert ours["everything"] <= bound
    assert ours["everything"] < ours["no kv"] - 0.002
    assert ours["everything"] < ours["no prefix"] - 0.02
    assert ours["nothing"] <= 1.0


def test_the_benchmark_takes_a_model() -> None:
    """What `scripts/bench_vs_diffusers --model` compares."""
    from scripts.speed.subject import from_model

    subject = from_model("embedded", (), (), (64, 64), 1, torch.device("cpu"), torch.float32)
    assert subject.cond.shape == subject.uncond.shape == (1, 77, subject.unet.config.cross_attention_dim)
    assert not torch.equal(subject.cond, subject.uncond)
