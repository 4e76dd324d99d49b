"""How much less than diffusers' loop the networks compute, at Stable Diffusion 1.5's full size."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rawdiff.predict import Exact
from scripts.speed.compare import pairs
from scripts.speed.flops import (
    RUNS,
    diffusers_flops,
    diffusers_step,
    networks,
    our_flops,
    our_steps,
    plan_of,
)
from scripts.speed.launches import operations

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


def test_what_a_step_launches(full: tuple[Any, list[Any]]) -> None:
    """Operations that compute, and none that only look at memory; each saving saves some."""
    unet, nets = full
    x, linear = torch.ones(2, 3, 8), torch.nn.Linear(8, 8, bias=False)
    assert operations(lambda: x.view(6, 8).t()) == 0
    assert operations(lambda: linear(x) + torch.empty(8)) == 2
    assert operations(lambda: x.clone().mul_(2)) == 2
    plan = plan_of(RUNS["one ControlNet"][0])
    theirs = operations(diffusers_step(unet, nets[:1], SIZE))
    without = operations(diffusers_step(unet, [], SIZE))
    ours = {
        name: next(operations(step) for step, _ in our_steps(plan, unet, nets[:1], SIZE, exact))
        for name, exact in {
            "everything": Exact(),
            "no kv": Exact(kv=False),
            "no time": Exact(time=False),
        }.items()
    }
    assert 1.3 * without < theirs < 1.8 * without
    assert ours["everything"] < ours["no kv"] - 20
    assert ours["everything"] < ours["no time"] - 20
    assert ours["everything"] < theirs
    half = plan_of(RUNS["two, one of them to half"][0])
    both, one = [(operations(step), count) for step, count in our_steps(half, unet, nets, SIZE, Exact())]
    assert both[1] == one[1] == 10
    assert both[0] > one[0] + 300
    assert one[0] == ours["everything"]


def test_ratios_of_each_arm_to_each() -> None:
    found = {"a": {"loop_ms": [10.0, 20.0]}, "b": {"loop_ms": [5.0, 10.0]}, "none": {"loop_ms": []}}
    lines = pairs(found).splitlines()
    assert lines[0] == "| loops, row by column | a | b |"
    assert lines[2] == "| a | 1 | 2.000 (2.000 to 2.000) |"
    assert lines[3] == "| b | 0.500 (0.500 to 0.500) | 1 |"


def test_the_benchmark_takes_a_model() -> None:
    """What `scripts/bench_vs_diffusers --model` compares."""
    from scripts.speed.subject import from_model

    subject = from_model("embedded", (), (), (64, 64), 1, torch.device("cpu"), torch.float32)
    assert subject.cond.shape == subject.uncond.shape == (1, 77, subject.unet.config.cross_attention_dim)
    assert not torch.equal(subject.cond, subject.uncond)
