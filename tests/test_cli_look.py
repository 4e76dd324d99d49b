"""`rawdiff info`, `sampler`, `doctor`, `--version` and help."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from rawdiff import images
from rawdiff.cli.app import app
from rawdiff.cli.elsewhere import NAMES, named_here
from rawdiff.images import opencv
from rawdiff.jobs import health
from rawdiff.study.plot import draw_table
from rawdiff.study.sampler import find_sampler
from rawdiff.study.scene import Scene
from rawdiff.version import __version__
from tests.cli_run import all_files, blank, depth_map, rawdiff
from tests.small_models import small_folder, small_scheduler

pytest_plugins = ["tests.cli_fixtures"]
pytestmark = pytest.mark.usefixtures("here")


# ---- info


def test_info_tells_the_recipe_and_what_became_of_its_maps(here: Path) -> None:
    depth_map(here / "d.png")
    words = ["-p", "a red\ncube", "-n", "blurry", "--depth", "d.png", "--size", "72x48"]
    words += ["--steps", "1", "--seed", "7"]
    [path] = rawdiff("gen", *words, "--clip-skip", "1", "--eta", "0.5").ok().lines
    said = rawdiff("info", path).ok().out
    for name, value in {
        "pixels": "whole, 72x48", "prompt": "a red", "negative": "blurry", "size": "72x48", "seed": "7", "steps": "1",
        "sampler": "the model's own, DDIMScheduler", "guidance": "4.0", "clip skip": "1", "eta": "0.5",
        "depth": "d.png (the same), weight 1, 0-1", "id": images.read_recipe(path)["id"],
    }.items():  # fmt: skip
        assert re.search(rf"^  {name} +{re.escape(value)}$", said, re.MULTILINE), name
    assert re.search(rf"^  made by +rawdiff {__version__}, torch .*; float32 on cpu$", said, re.MULTILINE)
    depth_map(here / "d.png", turn=2.0)
    assert "d.png (changed)" in rawdiff("info", path).ok().out
    (here / "d.png").unlink()
    found = json.loads(rawdiff("info", path, "--json").ok().out)
    assert found["inputs"][0]["now"] == "not there"
    assert found["recipe"] == images.read_recipe(path)
    blank(path)
    assert re.search("pixels +changed: ", rawdiff("info", path).ok().out)
    data = (here / path).read_bytes()
    (here / path).write_bytes(data.replace(b"IDAT", b"IDAx"))
    assert re.search("pixels +damaged: ", rawdiff("info", path).ok().out)


def test_info_reads_another_programs_parameters(here: Path) -> None:
    info = PngInfo()
    info.add_text(
        "parameters", "a cat\nNegative prompt: dog\nSteps: 20, Sampler: Euler a, Seed: 5, Size: 512x512"
    )
    Image.new("RGB", (8, 8)).save(here / "a.png", pnginfo=info)
    said = rawdiff("info", "a.png").ok().out
    assert re.search(r"^  Prompt +a cat$", said, re.MULTILINE)
    assert re.search(r"^  Sampler +Euler a$", said, re.MULTILINE)
    assert "another program" in said
    refused = rawdiff("gen", "--from", "a.png")
    assert refused.code == 3
    assert "it has the parameters of another program" in refused.error


def test_info_of_what_has_no_recipe(here: Path) -> None:
    depth_map(here / "d.png")
    for name, words in {"d.png": "holds no rawdiff recipe", "none.png": "none.png"}.items():
        done = rawdiff("info", name)
        assert (done.code, done.out) == (3, "")
        assert words in done.error


def test_info_obeys_no_control_characters(here: Path) -> None:
    [path] = rawdiff("gen", "-p", "a \x1b[31mred\x1b[0m cube", "--size", "64x64", "--steps", "1").ok().lines
    assert "\x1b" not in rawdiff("info", path).ok().out


# ---- sampler


def test_sampler_prints_rows_and_matrices_that_are_the_tables(model: Path) -> None:
    said = rawdiff("sampler", "dpm++ 2m", "--steps", "4").ok()
    assert said.err == ""
    table: Any = find_sampler("dpm++ 2m", model, steps=4, say=print)
    values = json.loads(rawdiff("sampler", "dpm++ 2m", "--steps", "4", "--json").ok().out)
    for name in "PQR":
        assert np.array_equal(np.array(values[name]), getattr(table, name))
    assert np.array_equal(np.array(values["W"]), table.weights)
    assert [row["t"] for row in values["rows"]] == [row.t for row in table.rows]
    lines = said.lines
    assert lines[0] == "dpm++ 2m: 4 rows, predicts epsilon, 1 tensors beside x, starts from 1 x noise"
    start = lines.index("Q[i,j]: what x after row i has of the networks' output at row j")
    printed = [line.split()[1:] for line in lines[start + 2 : start + 6]]
    expected = [[f"{v:.4g}" if v else "." for v in row] for row in table.Q]
    assert printed == expected
    assert "  nothing" in lines[lines.index("R[i,j]: what x after row i has of the noise drawn at row j") + 1]
    last = [
        line.split() for line in lines[lines.index("W_i: [x_next; s_next] = W_i [x; out; noise; s]") + 2 :]
    ]
    assert len(last) == 8
    assert last[0][3:] == [f"{v:.4g}" if v else "." for v in table.weights[0, 0]]


def test_sampler_takes_timesteps_eta_and_the_models_own() -> None:
    noisy = rawdiff("sampler", "ddim", "--steps", "3", "--eta", "1").ok()
    assert noisy.lines[2].split() == ["row", "t", "sigma", "signal", "in_scale", "x0_a", "x0_b", "draws"]
    assert [line.split()[-1] for line in noisy.lines[3:6]] == ["1", "1", "1"]
    own = rawdiff("sampler", "default", "--steps", "3").ok()
    assert own.lines[0].startswith("DDIMScheduler: 3 rows")
    assert "ddpm: 2 rows" in rawdiff("sampler", "ddpm", "--timesteps", "900,100").ok().out
    assert rawdiff("sampler", "ddim", "--steps", "0").code == 2
    assert "did you mean" in rawdiff("sampler", "dimm").error


def test_sampler_without_a_table_says_why(here: Path) -> None:
    own = small_folder(here / "own", nets=())
    small_scheduler("DDIMScheduler", clip_sample=True).save_config(own / "scheduler")
    said = rawdiff("sampler", "default", "--steps", "2", "--model", "own").ok().out
    assert "no table: " in said
    values = json.loads(rawdiff("sampler", "default", "--steps", "2", "--model", "own", "--json").ok().out)
    assert (values["P"], values["W"]) == (None, None)
    assert values["why_no_table"]
    done = rawdiff("sampler", "default", "--steps", "2", "--model", "own", "--plot", "p.svg")
    assert done.code == 2
    assert "has no table to plot" in done.error


def test_sampler_lists_the_names() -> None:
    names = rawdiff("sampler").ok().lines
    assert {"ddim", "euler a", "dpm++ 2m karras", "unipc"} <= set(names)
    assert json.loads(rawdiff("sampler", "--json").ok().out) == names


@pytest.mark.parametrize("name", ["unipc", "ddim", "pndm prk"])
def test_the_plot_shows_what_is_not_zero(here: Path, model: Path, name: str) -> None:
    done = rawdiff("sampler", name, "--steps", "6", "--plot", "p.svg").ok()
    assert done.err == "plot: p.svg\n"
    table: Any = find_sampler(name, model, steps=6, say=print)
    root = ET.parse(here / "p.svg").getroot()
    notes = [r[0].text or "" for r in root.iter("{http://www.w3.org/2000/svg}rect") if len(r)]
    for letter in "PQR":
        matrix = getattr(table, letter)
        told = {note for note in notes if note.startswith(f"{letter}[")}
        assert told == {
            f"{letter}[{i},{j}] = {matrix[i, j]:.6g}" for i, j in zip(*np.nonzero(matrix), strict=True)
        }
    assert sum(note.startswith("row ") for note in notes) == np.count_nonzero(table.weights)


def test_the_plot_as_png_is_the_same_picture(here: Path, model: Path) -> None:
    rawdiff("sampler", "unipc", "--steps", "6", "--plot", "p.png").ok()
    table: Any = find_sampler("unipc", model, steps=6, say=print)
    scene = draw_table(table)
    with Image.open(here / "p.png") as image:
        assert image.size == (round(2 * scene.width), round(2 * scene.height))
        red, _, blue = image.getpixel((2 * 70, 2 * 110))  # P[0,0], above zero: warm
    assert red > blue + 50
    assert rawdiff("sampler", "unipc", "--steps", "6", "--plot", "p.png").code == 2
    before = (here / "p.png").read_bytes()
    rawdiff("sampler", "unipc", "--steps", "5", "--plot", "p.png", "--overwrite").ok()
    assert (here / "p.png").read_bytes() != before
    named = rawdiff("sampler", "unipc", "--steps", "2", "--plot", "p.jpg")
    assert "expected a name that ends in .svg or .png" in named.err
    crowded = rawdiff("sampler", "ddim", "--steps", "250", "--plot", "q.svg")
    assert crowded.code == 2
    assert "250 rows; expected at most 200" in crowded.err


def test_a_scene_escapes_what_it_writes() -> None:
    scene = Scene(10, 10, "<&>")
    scene.rectangle(0, 0, 5, 5, (1, 2, 3), 'a "<b>"')
    scene.words(1, 1, "<script>&", anchor="middle")
    root = ET.fromstring(scene.svg())
    assert [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")] == ["<script>&"]
    assert root[0].text == "<&>"


# ---- doctor


def test_doctor_looks_at_everything(here: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health.weights.source, "EMBEDDED", model)
    done = rawdiff("doctor").ok()
    for name in (
        "rawdiff",
        "python",
        "torch",
        "diffusers",
        "opencv",
        "scipy",
        "cpu",
        "output",
        "embedded model",
    ):
        assert re.search(rf"^(ok   |note )  {name} ", done.out, re.MULTILINE), name
    assert re.search(
        r"^ok {5,}unet/diffusion_pytorch_model.safetensors  [0-9a-f]{64}$", done.out, re.MULTILINE
    )
    assert "controls: depth; every tensor is there" in done.out
    assert done.err == ""
    assert all_files(here) == []
    found = [json.loads(line) for line in rawdiff("doctor", "--json").ok().lines]
    assert {"name", "state", "text"} == set(found[0])


def test_doctor_finds_what_is_broken(here: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health.weights.source, "EMBEDDED", model)
    own = small_folder(here / "own", nets=())
    path = own / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    broken = rawdiff("doctor", "--model", "own")
    assert broken.code == 4
    assert re.search(r"^FAULT  --model .*diffusion_pytorch_model.safetensors", broken.out, re.MULTILINE)
    assert re.fullmatch(r"error: 1 of \d+ checks failed: --model", broken.error)

    def no_opencv() -> Any:
        raise opencv.ResourceError("OpenCV does not load (libGL.so.1)")

    monkeypatch.setattr(health, "opencv", no_opencv)
    missing = rawdiff("doctor", "--out", "/proc/none")
    assert missing.code == 6
    assert missing.error.endswith("checks failed: opencv, output")
    assert "libGL.so.1" in missing.out


# ---- help


@pytest.mark.parametrize("command", ["gen", "batch", "bench", "info", "sampler", "doctor"])
def test_every_command_helps(command: str) -> None:
    for flag in ("--help", "-h"):
        said = rawdiff(command, flag).ok()
        assert f"Usage: rawdiff {command}" in said.out
        assert "--debug" in said.out
        assert said.err == ""


def test_help_groups_the_options_and_shows_examples() -> None:
    said = rawdiff("gen", "--help").ok().out
    for panel in ("What to draw", "Maps", "Sampling", "Model", "Output", "How it runs", "Examples"):
        assert panel in said
    for option in (
        "prompt", "negative", "size", "seed", "count", "from", "depth", "normal", "canny", "derive", "control", "fit",
        "depth-range", "depth-invert", "sampler", "steps", "timesteps", "sigmas", "guidance", "rescale", "clip-skip",
        "guess", "eta", "model", "net", "revision", "offline", "out", "overwrite", "preview", "save-hints", "batch",
        "dry-run", "device", "dtype", "json", "timings", "debug",
    ):  # fmt: skip
        assert re.search(rf"--{option}\b", said), option


def test_names_of_other_tools_lead_to_options_that_are_there() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    every = {name for one in commands.values() for parameter in one.params for name in parameter.opts}
    options = {name for parameter in commands["gen"].params for name in parameter.opts}
    for elsewhere in NAMES:
        assert f"--{elsewhere}" not in every
        assert f"-{elsewhere}" not in every
        assert named_here(f"--{elsewhere}", options) in options
    assert named_here("--colour", options) is None


def test_the_version() -> None:
    assert rawdiff("--version").ok().out == f"rawdiff {__version__}\n"


@pytest.mark.parametrize(
    "words", [["--steps", "5"], ["--eta", "0"], ["--plot", "a.svg"], ["--sigmas", "1,0"]]
)
def test_a_schedule_without_a_sampler_is_refused(here: Path, words: list[str]) -> None:
    done = rawdiff("sampler", *words)
    assert (done.code, done.out) == (2, "")
    assert f"{words[0]}: of which sampler?" in done.error


def test_a_plot_that_cannot_be_written_is_told_before_anything_is_printed(here: Path) -> None:
    (here / "taken.svg").write_text("mine")
    done = rawdiff("sampler", "ddim", "--steps", "2", "--plot", "taken.svg")
    assert (done.code, done.out) == (2, "")
    assert "plot taken.svg: exists already; choose another name, or --overwrite" in done.error
    assert (here / "taken.svg").read_text() == "mine"
    rawdiff("sampler", "ddim", "--steps", "2", "--plot", "taken.svg", "--overwrite").ok()
    done = rawdiff("sampler", "ddim", "--steps", "2", "--plot", "taken.svg/a.svg")
    assert (done.code, done.out) == (6, "")
    assert "taken.svg: is a file; choose a folder to write to" in done.error
    rawdiff("sampler", "ddim", "--steps", "2", "--plot", "new/deep/a.svg").ok()
    assert (here / "new/deep/a.svg").is_file()
    many = rawdiff("sampler", "ddim", "--steps", "300", "--plot", "many.svg")
    assert (many.code, many.out) == (2, "")
