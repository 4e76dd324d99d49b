"""Probes: nesting, merging, shares, and what a span costs."""

from __future__ import annotations

import json
import time

import pytest

from rawdiff.probes import NO_PROBE, Probe, process_age_ms


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


def test_asking_twice_counts_once() -> None:
    probe = Probe()
    with probe("work"):
        spend(1)
    first = probe.tree().children["work"].total_ms
    assert probe.tree().children["work"].total_ms == first


def test_a_span_is_cheap() -> None:
    """A step of tens of milliseconds holds about ten spans: 1% of it is more than 10 microseconds a span."""

    def cost_us(probe: object) -> float:
        best = 1e9
        for _ in range(5):
            start = time.perf_counter()
            for _ in range(1000):
                with probe("span"):  # type: ignore[operator]
                    pass
            best = min(best, 1e3 * (time.perf_counter() - start))
        return best

    assert cost_us(Probe()) < 25
    assert cost_us(NO_PROBE) < 3


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
    import torch

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
