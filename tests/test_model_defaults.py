"""What a model is meant for is what a run does where nobody says, and a size far from that is spoken of, once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import rawdiff
from rawdiff import weights
from rawdiff.weights import Defaults
from tests import original_keys
from tests.checkpoints import write_header
from tests.cli_run import rawdiff as command
from tests.reference import silent
from tests.small_models import small_folder

pytest_plugins = ["tests.cli_fixtures"]

MODEL_KNOWS = "this model knows"


def spoken(text: str) -> list[str]:
    return [line for line in text.splitlines() if MODEL_KNOWS in line]


# The defaults.


def test_scheduler_size_and_guidance_are_the_models_own(tmp_path: Path) -> None:
    """Of a folder without a word from us: what its configs say."""
    folder = small_folder(tmp_path / "model", nets=(), scheduler="EulerDiscreteScheduler")
    (folder / "rawdiff.json").unlink()
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"sample_size": [6, 12]}))
    scheduler = folder / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps(json.loads(scheduler.read_text()) | {"timestep_spacing": "trailing"}))
    run = rawdiff.load(folder, device="cpu").prepare("a cube", steps=4, seed=1, say=silent)
    assert run.size == (48, 96)
    assert run.recipe["guidance"] == [7.5]
    assert run.recipe["sampler"]["class"] == "EulerDiscreteScheduler"
    assert run.recipe["sampler"]["config"]["timestep_spacing"] == "trailing"
    assert run.plan.rows[0].t == 999.0


@pytest.mark.parametrize(
    ("option", "into", "side"), [("#epsilon", 4, 512), ("", 9, 512), ("", 4, 768), ("#v_prediction", 9, 768)]
)
def test_a_base_model_of_sd2_knows_512(tmp_path: Path, option: str, into: int, side: int) -> None:
    """One file does not tell its size, but what predicts noise was trained at 512, and what predicts v at 768."""
    path = write_header(tmp_path / "model.safetensors", original_keys.checkpoint("sd2", into))
    assert weights.read_defaults(f"{path}{option}").native_size == (side, side)


# Sizes.


@pytest.mark.parametrize(
    ("size", "largest", "expect"),
    [
        ((512, 512), None, None),
        ((512, 768), None, None),
        ((768, 768), None, None),  # 2.25 times
        ((776, 768), None, "things that repeat"),
        ((344, 344), None, None),  # two thirds of a side
        ((336, 336), None, "forms that fall apart"),
        ((64, 64), None, "forms that fall apart"),
        ((1024, 1024), None, "things that repeat"),
        ((1024, 1024), (1024, 1024), None),
        ((512, 2048), (1024, 1024), None),
        ((1032, 1024), (1024, 1024), "things that repeat"),
        ((768, 768), (520, 520), None),  # a largest size takes nothing away
    ],
)
def test_which_sizes_are_unfamiliar(size: Any, largest: Any, expect: str | None) -> None:
    line = Defaults("x", (512, 512), largest_size=largest).unfamiliar(size)
    if expect is None:
        assert line is None
    else:
        known = "512x512" + (f" to {largest[1]}x{largest[0]}" if largest else "")
        assert line == f"size {size[1]}x{size[0]}: this model knows {known}; expect {expect}"


@pytest.mark.parametrize(
    ("size", "lines"),
    [
        ("64x48", []),
        ("96x96", []),
        ("128x80", ["size 128x80: this model knows 64x64; expect things that repeat"]),
        ("40x40", ["size 40x40: this model knows 64x64; expect forms that fall apart"]),
    ],
)
def test_gen_warns_on_one_line(here: Path, size: str, lines: list[str]) -> None:
    done = command("gen", "-p", "a cube", "--size", size, "--steps", "1", "--seed", "1").ok()
    assert spoken(done.err) == lines
    assert len(done.lines) == 1  # the picture is drawn all the same
    dry = command("gen", "-p", "a cube", "--size", size, "--dry-run").ok()
    assert spoken(dry.err) == lines


def test_a_batch_says_it_once_for_a_size(here: Path) -> None:
    items = [{"prompt": "a", "size": size, "steps": 1} for size in ("128x80", "64x64", "128x80", "40x40")]
    (here / "m.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    assert [line.split(":")[0] for line in spoken(command("batch", "m.jsonl").ok().err)] == [
        "size 128x80",
        "size 40x40",
    ]


def test_python_is_told_too(model: Path) -> None:
    loaded = rawdiff.load(model, device="cpu")
    said: list[str] = []
    loaded.prepare("a cube", size=(80, 128), steps=1, seed=1, say=said.append)
    assert spoken("\n".join(said)) == ["size 128x80: this model knows 64x64; expect things that repeat"]
    said.clear()
    loaded.prepare("a cube", size=(64, 72), steps=1, seed=1, say=said.append)
    assert said == []


@pytest.mark.parametrize(
    ("size", "warned"), [("768x512", False), ("1024x384", False), ("128x128", False), ("1024x512", True)]
)
def test_the_embedded_model_holds_at_what_it_was_trained_at(
    monkeypatch: pytest.MonkeyPatch, size: str, warned: bool
) -> None:
    monkeypatch.delenv("RAWDIFF_MODEL", raising=False)
    done = command("gen", "-p", "a red cube on grass", "--size", size, "--dry-run").ok()
    assert bool(spoken(done.err)) is warned
