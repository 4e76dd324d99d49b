"""The comparison with diffusers: figures that outlive it, and steps that are marked for torch's own cudagraphs."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from rawdiff.plan import Window
from scripts.speed import arms, compare
from scripts.speed.arms import ARMS, Picture
from scripts.speed.subject import Subject, random_subject

CPU = torch.device("cpu")
SCRIPT = Path(__file__).parents[1] / "scripts" / "bench_vs_diffusers"


class Killed(BaseException):
    """Nothing catches it."""


@pytest.fixture(scope="module", params=[0, 1, 2])
def subject(request: pytest.FixtureRequest) -> Subject:
    windows = [Window(), Window(end=0.5)][: request.param]
    return random_subject("tiny", windows, (64, 64), 3, CPU, torch.float32)


def test_kept_after_each_arm_and_each_round() -> None:
    kept: list[dict[str, int]] = []

    def keep(found: Mapping[str, Any]) -> None:
        kept.append({name: len(of["loop_ms"]) for name, of in found.items()})

    made: Any = {name: lambda: lambda pixels: Picture(torch.zeros(1), None) for name in "ab"}
    compare.measure(made, CPU, warm_ups=1, runs=2, say=lambda line: None, keep=keep)
    assert kept == [{"a": 0}, {"a": 0, "b": 0}, {"a": 1, "b": 1}, {"a": 2, "b": 2}]


def test_a_killed_comparison_leaves_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = importlib.machinery.SourceFileLoader("bench_vs_diffusers", str(SCRIPT))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    script = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    loader.exec_module(script)
    runs = [0]

    def arm(pixels: bool) -> Picture:
        runs[0] += 1
        if runs[0] > 5:  # two to begin with, and three rounds
            raise Killed
        return Picture(torch.zeros(1, 4, 8, 8), None)

    monkeypatch.setitem(ARMS, "graph", lambda subject: arm)
    words = "--scale tiny --size 64x64 --steps 1 --device cpu --dtype fp32 --arms diffusers,graph --loops"
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *words.split(), "--warm-ups", "1", "--out", str(tmp_path)])
    with pytest.raises(Killed):
        script.main()
    name = "tiny-64x64-0nets-float32-cpu-loops"
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{name}.json", f"{name}.md"]
    found = json.loads((tmp_path / f"{name}.json").read_text())
    assert found["what"]["runs"] == "4 of 10"
    assert {name: len(of["loop_ms"]) for name, of in found["arms"].items()} == {"diffusers": 4, "graph": 4}
    assert "runs 4 of 10" in (tmp_path / f"{name}.md").read_text()
    assert "| graph | " in (tmp_path / f"{name}.md").read_text()


def test_each_step_is_marked(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the start, and after each step, which is also before the VAE; the picture is the same to the bit."""
    marks: list[str] = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: marks.append("mark"))
    forward = type(subject.unet).forward

    def counted(self: Any, *given: Any, **more: Any) -> Any:
        marks.append("unet")
        return forward(self, *given, **more)

    plain = arms._diffusers(subject)(True)
    assert marks == []
    monkeypatch.setattr(type(subject.unet), "forward", counted)
    marked = arms._diffusers(subject, marking=True)
    for _ in range(2):
        found = marked(True)
        assert torch.equal(found.latents, plain.latents)
        assert found.pixels is not None
        assert plain.pixels is not None
        assert torch.equal(found.pixels, plain.pixels)
    assert marks == 2 * ["mark", *3 * ["unet", "mark"]]


@pytest.mark.parametrize("name", ["diffusers-overhead", "diffusers-max"])
def test_what_torch_compiles_is_marked(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[bool] = []
    monkeypatch.setattr(arms, "_diffusers", lambda *place, marking=False: given.append(marking))
    subject: Any = None
    ARMS[name](subject)
    assert given == [True]
