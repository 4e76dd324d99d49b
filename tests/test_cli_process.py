"""The command as a process of its own: how fast it answers, where it writes, how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rawdiff import images
from tests.cli_run import all_files, depth_map

pytest_plugins = ["tests.cli_fixtures"]

COMMAND = [sys.executable, "-m", "rawdiff"]
HEAVY = {"torch", "numpy", "diffusers", "transformers", "PIL", "cv2", "filelock"}


def environment(model: Path | None = None, **more: str) -> dict[str, str]:
    named = {} if model is None else {"RAWDIFF_MODEL": str(model)}
    return {**os.environ, "PYTHONWARNINGS": "default", **named, **more}


def run(folder: Path, *argv: str, model: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *argv],
        cwd=folder,
        env=environment(model),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_help_and_mistakes_are_answered_without_a_heavy_import(tmp_path: Path) -> None:
    code = (
        "import sys; from rawdiff.cli import main; codes = [main(argv) for argv in ("
        "['--help'], ['gen', '--help'], ['--version'], ['gen', '-p', 'x', '--steps', '0'], ['gen', '--size', '9x9'],"
        "['gen'], ['draw'])]; print(codes, sorted(n for n in sys.modules if n in " + repr(HEAVY) + "))"
    )
    start_s = os.times().children_user + os.times().children_system
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=True,
    )
    spent_s = os.times().children_user + os.times().children_system - start_s
    assert done.stdout.splitlines()[-1] == "[0, 0, 0, 2, 2, 2, 2] []"
    assert len(done.stderr.splitlines()) == 4
    assert spent_s < 1.5  # processor time of all seven; about 0.4 s


def test_a_picture_in_a_process_of_its_own(tmp_path: Path, model: Path) -> None:
    depth_map(tmp_path / "d.png", (64, 64))
    words = ["gen", "-p", "a red cube", "--depth", "d.png", "--steps", "2", "--seed", "7", "--timings"]
    done = run(tmp_path, *words, model=model)
    assert (done.returncode, done.stdout) == (0, "output_images/a-red-cube-7.png\n")
    assert "Warning" not in done.stderr
    assert "Traceback" not in done.stderr
    [total] = [line.split() for line in done.stderr.splitlines() if line.startswith("total ")]
    [start] = [line.split() for line in done.stderr.splitlines() if line.startswith("  start and imports ")]
    assert 300 < float(start[3]) < float(total[1])
    assert images.read_recipe(tmp_path / "output_images" / "a-red-cube-7.png")["picture"]["seed"] == 7


def test_an_error_is_one_line_on_standard_error(tmp_path: Path, model: Path) -> None:
    done = run(tmp_path, "gen", "-p", "x", "--depth", "none.png", model=model)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == "error: none.png: no such file\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_a_batch_with_a_summary_and_whole_files(
    tmp_path: Path, model: Path, number: int, code: int
) -> None:
    items = [{"prompt": f"picture {k}", "steps": 30, "size": "128x128", "seed": k} for k in range(500)]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, items)))
    words = [*COMMAND, "batch", "m.jsonl"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(words, cwd=tmp_path, env=environment(model), text=True, **pipes) as process:  # type: ignore[call-overload]
        first = process.stdout.readline()
        process.send_signal(number)
        rest, err = process.communicate(timeout=300)
    drawn = [first, *rest.splitlines(keepends=True)]
    assert process.returncode == code
    assert f"{len(drawn)} drawn, 0 already there, 0 of 500 items failed" in err
    assert "Traceback" not in err
    files = [name for name in all_files(tmp_path / "output_images") if name != ".rawdiff.lock"]
    assert files == sorted(line.strip().removeprefix("output_images/") for line in drawn)
    for name in files:
        images.open_source(tmp_path / "output_images" / name)


def test_a_closed_standard_output_is_no_error_of_ours(tmp_path: Path, model: Path) -> None:
    words = [*COMMAND, "sampler", "ddim", "--steps", "200"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(words, cwd=tmp_path, env=environment(model), text=True, **pipes) as process:  # type: ignore[call-overload]
        process.stdout.close()
        err = process.stderr.read()
    assert process.returncode == 128 + signal.SIGPIPE
    assert err == ""


@pytest.mark.slow
def test_a_batch_that_is_killed_leaves_whole_files_and_goes_on(tmp_path: Path, model: Path) -> None:
    items = [{"prompt": f"picture {k}", "steps": 2, "size": "64x64", "seed": k} for k in range(12)]
    items[1:] = [{**item, "steps": 40} for item in items[1:]]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, items)))
    words = [*COMMAND, "batch", "m.jsonl"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    folder = tmp_path / "output_images"
    with subprocess.Popen(words, cwd=tmp_path, env=environment(model), text=True, **pipes) as process:  # type: ignore[call-overload]
        process.stdout.readline()
        second = run(tmp_path, "batch", "m.jsonl", model=model)  # while the first is at work
        process.kill()
        process.communicate(timeout=300)
    if process.returncode == -signal.SIGKILL:  # else the first was done before the second began
        assert second.returncode in (0, 6)
    if second.returncode == 6:
        assert second.stderr == (
            "error: output_images: another batch is at work there; wait for it, or choose another folder with --out\n"
        )
    whole = [name for name in all_files(folder) if name.endswith(".png") and not name.startswith(".")]
    assert whole
    for name in whole:
        recipe = images.read_recipe(folder / name)
        assert images.pixels_sha256(images.open_source(folder / name).array) == recipe["made"]["pixels"]
    done = run(tmp_path, "batch", "m.jsonl", model=model)
    assert done.returncode == 0
    assert f"{12 - len(whole)} drawn, {len(whole)} already there, 0 of 12 items failed" in done.stderr
    assert len([name for name in all_files(folder) if name.endswith(".png")]) == 12
