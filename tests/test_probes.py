"""Probes: nesting, merging, shares, and what a span costs."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from rawdiff.conditions import Conditions, Context
from rawdiff.loop import advance
from rawdiff.noise import Noise
from rawdiff.plan import make_plan
from rawdiff.predict import prepare
from rawdiff.probes import NO_PROBE, Node, Probe, ProbeLike, process_age_ms
from rawdiff.sampler import make_sampler
from rawdiff.state import start
from tests.small_models import TEXT_WIDTH, small_scheduler, small_unet


def spend(ms: float) -> None:
    end = time.perf_counter() + ms / 1e3
    while time.perf_counter() < end:
        pass


def test_spans_nest_and_merge() -> None:
    probe = Probe()
    for _ in range(3):
        with probe("step"):
            with probe("encode"):
                spend(2)
            with probe("decode"):
                spend(1)
    with probe("vae"):
        spend(1)
    root = probe.tree()
    assert list(root.children) == ["step", "vae"]
    step = root.children["step"]
    assert list(step.children) == ["encode", "decode"]
    assert step.count == 3
    assert step.children["encode"].count == 3
    assert step.children["encode"].total_ms >= 6
    assert step.children["decode"].total_ms >= 3
    assert 0 <= step.rest_ms < step.total_ms
    assert root.total_ms >= step.total_ms + root.children["vae"].total_ms
    json.dumps(root.as_dict())


def test_a_span_that_fails_is_closed() -> None:
    probe = Probe()
    with pytest.raises(ZeroDivisionError), probe("step"):
        raise ZeroDivisionError
    with probe("after"):
        pass
    assert list(probe.tree().children) == ["step", "after"]
    assert probe.tree().children["step"].count == 1


def test_the_total_includes_what_was_before() -> None:
    probe = Probe()
    probe.before("imports", 500.0)
    with probe("work"):
        spend(1)
    root = probe.tree()
    assert root.total_ms >= 501
    assert root.children["imports"].total_ms == 500
    lines = probe.table().splitlines()
    assert lines[0].split()[0] == "total"
    assert lines[0].endswith("100.0%")
    assert any(line.strip().startswith("imports") and " 500.0 ms" in line for line in lines)


def rows(table: str) -> list[tuple[int, str, float]]:
    """Depth, name and share of each line."""
    found = [re.match(r"( *)(.+?)  .* ([\d.]+)%$", line) for line in table.splitlines()]
    return [(len(m[1]) // 2, m[2], float(m[3])) for m in found if m]


def test_what_no_child_accounts_for_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line of its own inside each span that has children, so that the shares add up; below 1% none."""
    step = Node("step", 4, 900.0, {"encode": Node("encode", 4, 500.0), "decode": Node("decode", 4, 100.0)})
    decode = Node("vae", 1, 95.0, {"level": Node("level", 3, 90.0)})
    root = Node("total", 1, 1000.0, {"step": step, "vae": decode})
    probe = Probe()
    monkeypatch.setattr(Probe, "tree", lambda self: root)
    expected = [(0, "total", 100.0), (1, "step", 90.0), (2, "encode", 50.0), (2, "decode", 10.0)]
    expected += [(2, "(other)", 30.0), (1, "vae", 9.5), (2, "level", 9.0)]
    assert rows(probe.table()) == expected
    decode.total_ms = 60.0  # now 40 ms of the total are in no span
    decode.children["level"].total_ms = 55.0
    assert rows(probe.table())[-1] == (1, "(other)", 4.0)
    step.children["decode"].total_ms = 391.0  # 9 ms of 1000: not shown
    assert probe.table().count("(other)") == 1
    assert [node.name for _, node in root.walk()].count("(other)") == 0


def test_asking_twice_counts_once() -> None:
    probe = Probe()
    with probe("work"):
        spend(1)
    first = probe.tree().children["work"].total_ms
    assert probe.tree().children["work"].total_ms == first


def test_probes_take_less_than_a_hundredth_of_a_step() -> None:
    """The spans of a step times what a span costs, against a real step of a small net without probes.

    In processor time of this thread, the least of many repetitions, so that other processes do not matter. A
    real model's step takes a hundred times longer, and has the same spans.
    """
    context = Context(torch.zeros(1, 77, TEXT_WIDTH), torch.ones(1, 77, TEXT_WIDTH))
    plan = make_plan(make_sampler(small_scheduler(), steps=10), guidance=[5.0])
    predict = prepare(plan, Conditions((context,)), small_unet(1))
    noise = Noise([3], (8, 8))
    first = start(plan, noise.draw(0), draws=1)

    def steps(probe: ProbeLike) -> list[float]:
        """Milliseconds of each step."""
        times, state = [], first
        while state.row(plan) is not None:
            begin = time.thread_time()
            state, _ = advance(state, plan, predict, noise, probe=probe)
            times.append(1e3 * (time.thread_time() - begin))
        return times

    def span_ms(probe: ProbeLike, count: int = 500) -> float:
        best = math.inf
        for _ in range(20):
            begin = time.thread_time()
            for _ in range(count):
                with probe("span"):
                    pass
            best = min(best, 1e3 * (time.thread_time() - begin) / count)
        return best

    counting = Probe()
    steps(counting)
    spans = 1 + sum(node.count for _, node in counting.tree().walk() if node.name != "total") / len(plan)
    assert spans == 5  # the step itself, unet encode, unet decode, guidance, sampler
    step_ms = min(min(steps(NO_PROBE)) for _ in range(3))
    assert spans * span_ms(Probe()) < step_ms / 100
    assert spans * span_ms(NO_PROBE) < step_ms / 1000

    @contextmanager
    def slow(name: str, *, host: bool = False) -> Iterator[None]:
        spend(step_ms / 50)
        yield

    assert spans * span_ms(slow, 10) > step_ms / 100


def test_no_probe_nests() -> None:
    with NO_PROBE("a"), NO_PROBE("b", host=True), NO_PROBE("a"):
        pass


def test_process_age() -> None:
    age = process_age_ms()
    if age is None:
        pytest.skip("this system does not tell")
    spend(30)
    later = process_age_ms()
    assert later is not None
    assert 10 <= later - age < 5000
    assert age < 24 * 3600e3


@pytest.mark.gpu
def test_cuda_events() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    probe = Probe("cuda")
    a = torch.randn(2048, 2048, device="cuda")
    with probe("work"):
        for _ in range(20):
            a = a @ a
            a = a / a.norm()
    node = probe.tree().children["work"]
    assert node.total_ms > 0.1
    assert node.total_ms <= probe.tree().total_ms
