"""What goes wrong on the command line: its exit code, its one line, and that nothing is left half-done."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from rawdiff.cli.terminal import Console
from rawdiff.errors import ResourceError, UsageError
from rawdiff.jobs import workshop
from rawdiff.nets.memory import least_bytes
from rawdiff.run import Run
from rawdiff.weights import devices
from tests.cli_run import Result, all_files, depth_map, pixels, rawdiff
from tests.small_models import small_folder

pytest_plugins = ["tests.cli_fixtures"]
pytestmark = pytest.mark.usefixtures("here")

QUICK = ("--steps", "2", "--size", "64x64")


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever loads weights fails the test."""

    def load(*args: Any, **options: Any) -> None:
        pytest.fail("weights were loaded")

    monkeypatch.setattr(workshop, "load", load)


def refused(done: Result, code: int, words: str) -> None:
    assert done.code == code, done.err
    assert words in done.error
    assert done.out == ""
    assert "Traceback" not in done.err


@pytest.mark.usefixtures("unloaded")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--size", "70x64"], "size 70x64 is not a multiple of 8: use 64x64 or 72x64"),
        (["--size", "0x64"], "size 0x64: each side must lie between 8 and 8192"),
        (["--size", "-64x64"], "expected WIDTHxHEIGHT"),
        (["--size", "64"], "expected WIDTHxHEIGHT"),
        (["--size", "99999x64"], "size 99999x64: each side must lie between 8 and 8192"),
        (["--size", "9999999x64"], "expected WIDTHxHEIGHT"),
        (["--steps", "0"], "steps 0: expected a whole number from 1"),
        (["--steps", "-1"], "steps -1: expected a whole number from 1"),
        (["--steps", "1.5"], "Invalid value for '--steps'"),
        (["--steps", "many"], "Invalid value for '--steps'"),
        (["--guidance", "nan"], "guidance nan: expected a number from 0"),
        (["--guidance", "inf"], "guidance inf: expected a number from 0"),
        (["--guidance", "-2"], "guidance -2.0: expected a number from 0"),
        (["--guidance", "x"], "Invalid value for '--guidance'"),
        (["--rescale", "nan"], "rescale nan: expected a number from 0 to 1"),
        (["--rescale", "2"], "rescale 2.0: expected a number from 0 to 1"),
        (["--eta", "2"], "eta 2.0: expected a number from 0 to 1"),
        (["--seed", "-1"], "seed -1: expected a whole number from 0 to 4294967295"),
        (["--seed", "4294967296"], "seed 4294967296: expected a whole number from 0 to 4294967295"),
        (["--seed", "1" * 5000], "seed"),
        (["--seed", "4294967295", "--count", "2"], "the last of 2 would be 4294967296"),
        (["--count", "0"], "count 0: expected a whole number from 1"),
        (["--batch", "0"], "batch 0: expected a whole number from 1 to 256"),
        (["--clip-skip", "-1"], "clip skip -1: expected a whole number from 0"),
        (["--clip-skip", "3"], "clip skip 3: this text encoder has 3 layers, so 0 to 2"),
        (["--negative", "a\udc80"], "negative prompt: what stands at place 1 is no character"),
        (["--sampler", "dpm 2mm"], "did you mean dpm"),
        (["--timesteps", "5,9"], "descending"),
        (["--fit", "squash"], "fit 'squash': expected crop, pad or stretch"),
        (["--depth-range", "9,1", "--depth", "d.png"], "expected finite LO below HI"),
        (["--depth-range", "near", "--depth", "d.png"], "depth range 'near': expected LO,HI"),
        (["--depth", ""], "control depth: its path is empty"),
        (["--control", "d.png"], "expected KIND=PATH[@weight[,start-end]]"),
        (["--control", "depth=d.png@1,0.9-0.1"], "window 0.9-0.1; expected 0 <= start < end <= 1"),
        (["--control", "pose=d.png"], "control 'pose': this model has no net for it (it has depth)"),
        (["--derive", "canny"], "derive canny: give the map to make it from"),
        (["--net", "depth"], "net 'depth': expected KIND=FOLDER or KIND=OWNER/NAME"),
        (["--net", "depth=a", "--net", "depth=b"], "net depth: named twice"),
        (["--device", "tpu"], "device"),
        (["--dtype", "fp16"], "fp16 on a CPU is up to a hundred times slower"),
        (["--dtype", "int8"], "expected fp16, bf16 or fp32"),
        (["--out", "picture.jpg"], "pictures are written as PNG"),
        (["--out", "a.png", "--count", "2"], "one file for 2 pictures"),
        (["--out", "folder", "--overwrite"], "overwrite: goes with --out FILE.png"),
        (["--out", ""], "out ''"),
        (["--model", ""], "model ''"),
        (["--model", "nosuchmodel"], "'nosuchmodel' is no file and no folder here and no alias"),
        (["--colour", "red"], "No such option: --colour"),
        (["--guidance_scale", "3"], "No such option: --guidance_scale; rawdiff calls it --guidance;"),
        (["--scheduler=ddim"], "No such option: --scheduler; rawdiff calls it --sampler;"),
        (["-W", "3"], "No such option: -W; rawdiff calls it --size;"),
        (["--strengh", "3"], "No such option: --strengh (Possible options: --paste, --steps, --strength)"),
        (["--prompt"], "Option '--prompt' requires an argument"),
        (["extra"], "unexpected extra argument"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_a_bad_argument_is_refused_before_weights_are_read(here: Path, words: list[str], said: str) -> None:
    depth_map(here / "d.png")
    refused(rawdiff("gen", "-p", "x", "--size", "72x48", *words), 2, said)
    assert all_files(here) == ["d.png"]


@pytest.mark.usefixtures("unloaded")
@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("a\0b", "prompt: holds a NUL character at place 1"),
        ("a\ud83d", "prompt: what stands at place 1 is no character"),
        ("\udcff", "prompt: what stands at place 0 is no character"),
    ],
    ids=["nul", "half a pair", "no UTF-8"],
)
def test_a_prompt_that_is_no_text_is_refused(prompt: str, said: str) -> None:
    refused(rawdiff("gen", "-p", prompt, *QUICK), 2, said)


def test_a_prompt_from_standard_input_must_be_utf_8_and_short() -> None:
    refused(
        rawdiff("gen", "-p", "-", *QUICK, stdin=b"a\xff"), 2, "prompt from standard input: no UTF-8 at byte 1"
    )
    refused(rawdiff("gen", "-p", "-", *QUICK, stdin=b"a" * (2**20 + 1)), 2, "more than 1048576 bytes")
    refused(rawdiff("gen", "-p", "-", *QUICK, stdin=b"a\0"), 2, "NUL character")


@pytest.mark.usefixtures("unloaded")
def test_a_size_that_cannot_fit_into_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "free_bytes", lambda device: 2**30)
    refused(rawdiff("gen", "-p", "x", "--size", "8192x8192"), 2, "size 8192x8192 needs at least")
    words = ("--size", "4096x4096", "--batch", "8", "--count", "8")
    refused(rawdiff("gen", "-p", "x", *words), 2, "in a batch of 8 needs at least")


def test_the_least_memory_is_of_the_right_order() -> None:
    # Stable Diffusion 1.5 at 512x512: PyTorch's own peak beyond the weights is about 1.9 GiB in fp32 on the VAE.
    unet = {"block_out_channels": [320, 640, 1280, 1280], "layers_per_block": 2}
    vae = {"block_out_channels": [128, 256, 512, 512]}
    needed = least_bytes(unet, vae, (512, 512), 1, 4)
    assert 0.3 * 2**30 < needed < 1.9 * 2**30
    assert least_bytes(unet, vae, (1024, 1024), 1, 4) > 3.9 * needed
    assert least_bytes(unet, vae, (512, 512), 64, 2) > needed
    assert least_bytes(unet, vae, (512, 512), 64, 2) == 2 * least_bytes(
        unet, vae, (512, 512), 64, 2, guided=False
    )
    tuples = {
        "block_out_channels": (320, 640, 1280, 1280),
        "layers_per_block": (2, 2, 2, 2),
    }  # as a module holds them
    assert least_bytes(tuples, vae, (512, 512), 64, 2) == least_bytes(unet, vae, (512, 512), 64, 2)
    assert least_bytes({}, {}, (8, 8), 1, 4) > 0  # configs are other people's
    free = devices.free_bytes(torch.device("cpu"))
    assert free is None or free > 2**20


@pytest.mark.usefixtures("unloaded")
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "d.png: no such file"),
        (lambda path: path.mkdir(), "d.png"),
        (lambda path: path.write_bytes(b""), "d.png"),
        (lambda path: path.write_bytes(b"GIF89a" + bytes(100)), "d.png"),
        (
            lambda path: depth_map(path, (48, 48)),
            "d.png: the depth map of 48x48 has another aspect than the picture's 72x48",
        ),
        (lambda path: path.write_bytes(depth_map(path).read_bytes()[:200]), "truncated"),
    ],
    ids=["missing", "folder", "empty", "gif", "aspect", "truncated"],
)
def test_a_bad_map_is_refused_before_weights_are_read(here: Path, make: Any, said: str) -> None:
    make(here / "d.png")
    refused(rawdiff("gen", "-p", "x", "--depth", "d.png", "--size", "72x48", "--steps", "2"), 3, said)
    assert not (here / "output_images").exists()


def test_bad_pictures_to_make_again(here: Path) -> None:
    refused(rawdiff("gen", "--from", "nothing.png"), 3, "nothing.png")
    depth_map(here / "d.png")
    refused(rawdiff("gen", "--from", "d.png"), 3, "d.png: holds no rawdiff recipe")
    done = rawdiff("gen", "-p", "x", *QUICK, "--seed", "1", "-o", "a.png").ok()
    data = (here / done.lines[0]).read_bytes()
    (here / "b.png").write_bytes(data[:-30])
    refused(rawdiff("gen", "--from", "b.png"), 3, "b.png: PNG is truncated")
    refused(rawdiff("gen", "--from", "a.png", "--steps", "0"), 2, "steps 0: expected a whole number from 1")


@pytest.mark.usefixtures("unloaded")
def test_an_output_folder_that_takes_no_files_is_found_before_weights_are_read(here: Path) -> None:
    (here / "file").write_text("")
    refused(rawdiff("gen", "-p", "x", *QUICK, "--out", "file/sub"), 6, "file/sub: cannot be written")
    refused(rawdiff("gen", "-p", "x", *QUICK, "--out", "/proc/sub"), 6, "/proc/sub: cannot be written")
    refused(rawdiff("batch", manifest(here), "--out", "/proc/sub"), 6, "/proc/sub: cannot be written")


def manifest(here: Path) -> Path:
    path = here / "m.jsonl"
    path.write_text('{"prompt": "x", "steps": 1}\n')
    return path


def test_bad_weights_are_a_fault_of_their_own_and_come_after_arguments(here: Path) -> None:
    own = small_folder(here / "own", nets=())
    (own / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    refused(
        rawdiff("gen", "-p", "x", *QUICK, "--model", "own"), 4, "expected diffusion_pytorch_model.safetensors"
    )
    refused(rawdiff("gen", "-p", "x", *QUICK, "--model", "own", "--steps", "0"), 2, "steps 0")
    refused(rawdiff("gen", "-p", "x", *QUICK, "--model", "./none"), 4, "./none: no such folder")
    assert not (here / "output_images").exists()


def test_offline_a_model_that_is_not_here_is_the_hubs_fault(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(here / "hub"))
    done = rawdiff("gen", "-p", "x", *QUICK, "--model", "some/model", "--offline")
    assert done.code == 5
    assert "some/model" in done.err.splitlines()[-1]


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_nan_stops_the_picture_and_nothing_is_written(here: Path, part: str) -> None:
    own = small_folder(here / "own", nets=())
    path = own / part / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    name = "conv_out.weight" if part == "unet" else "decoder.conv_out.weight"
    tensors[name] = 3e38 * tensors[name].sign()
    save_file(tensors, path)
    done = rawdiff("gen", "-p", "x", *QUICK, "--model", "own", "--guidance", "9")
    assert (done.code, done.out) == (6, "")
    assert "NaN or Inf" in done.err.splitlines()[-1]
    assert not (here / "output_images").exists()


def out_of_memory(monkeypatch: pytest.MonkeyPatch, at_most: int, error: Exception) -> list[int]:
    """Let drawing more than `at_most` pictures at once run out of memory; the batches that were tried."""
    tried: list[int] = []
    draw = workshop.Workshop._draw

    def limited(self: Any, model: Any, job: Any, first: int, count: int, *rest: Any) -> Any:
        tried.append(count)
        if count > at_most:
            raise error
        return draw(self, model, job, first, count, *rest)

    monkeypatch.setattr(workshop.Workshop, "_draw", limited)
    return tried


def test_out_of_memory_halves_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("gen", "-p", "x", *QUICK, "--seed", "1", "--count", "5", "--batch", "4")
    alone = [
        pixels(path) for path in rawdiff("gen", "-p", "x", *QUICK, "--seed", "1", "--count", "5").ok().lines
    ]
    tried = out_of_memory(monkeypatch, 2, torch.OutOfMemoryError("CUDA out of memory"))
    done = rawdiff(*words, "--out", "o").ok()
    assert tried == [4, 2, 2, 1]
    assert "out of memory with 4 pictures at once: going on with 2" in done.err
    assert done.lines == [f"o/x-{seed}.png" for seed in range(1, 6)]
    for path, expected in zip(done.lines, alone, strict=True):
        assert np.abs(pixels(path).astype(int) - expected).max() <= 1


def free_once_loaded(monkeypatch: pytest.MonkeyPatch, pictures: int) -> None:
    """Let there be room for anything until the weights are loaded, and for so many `pictures` at once from then on."""
    load = workshop.load

    def loaded(*args: Any, **options: Any) -> Any:
        monkeypatch.setattr(devices, "free_bytes", lambda device: pictures * 2**30)
        return load(*args, **options)

    def bytes_of(unet: Any, vae: Any, size: Any, batch: int, *rest: Any, **options: Any) -> int:
        return batch * 2**30

    monkeypatch.setattr(workshop, "load", loaded)
    monkeypatch.setattr(devices, "least_bytes", bytes_of)
    monkeypatch.setattr(devices, "free_bytes", lambda device: None)


def test_memory_that_the_weights_took_halves_the_batch_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fitted when it was planned is weighed again by `Model.prepare`."""
    free_once_loaded(monkeypatch, 1)
    done = rawdiff("gen", "-p", "x", *QUICK, "--seed", "1", "--count", "2", "--batch", "2").ok()
    assert "out of memory with 2 pictures at once: going on with 1" in done.err
    assert len(done.lines) == 2


def test_one_picture_that_the_weights_leave_no_memory_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    free_once_loaded(monkeypatch, 0)
    done = rawdiff("gen", "-p", "x", *QUICK)
    assert (done.code, done.out) == (2, "")
    assert done.err.splitlines()[-1] == (
        "error: size 64x64 needs at least 1.0 GiB, and 0.0 GiB are free on cpu: take a smaller size"
    )


def test_memory_that_torch_keeps_for_later_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"memory_reserved": 7 * 2**30, "memory_allocated": 2 * 2**30, "mem_get_info": (2**30, 80 * 2**30)}
    for name, value in said.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert devices.free_bytes(torch.device("cuda", 0)) == 6 * 2**30


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=["gpu", "python", "cpu"],
)
def test_out_of_memory_with_one_picture_is_told(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    out_of_memory(monkeypatch, 0, error)
    done = rawdiff("gen", "-p", "x", *QUICK)
    assert (done.code, done.out) == (6, "")
    assert done.err.splitlines()[-1].startswith("error: out of memory at 64x64 on cpu: take a smaller size")


def test_a_lost_device_and_a_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    out_of_memory(monkeypatch, 0, RuntimeError("CUDA error: an illegal memory access\nmore lines"))
    lost = rawdiff("gen", "-p", "x", *QUICK)
    assert lost.code == 6
    assert "cpu failed (CUDA error: an illegal memory access)" in lost.err.splitlines()[-1]
    out_of_memory(monkeypatch, 0, ZeroDivisionError("division\nby zero"))
    defect = rawdiff("gen", "-p", "x", *QUICK)
    assert defect.code == 1
    assert defect.err.splitlines()[-1].startswith(
        "error: a defect in rawdiff (ZeroDivisionError: division\\nby zero)"
    )
    assert "Traceback" not in defect.err


def test_a_full_disk_leaves_nothing_half_written(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def full(*args: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "link", full)
    done = rawdiff("gen", "-p", "x", *QUICK)
    assert (done.code, done.out) == (6, "")
    assert "the disk is full" in done.err.splitlines()[-1]
    assert all_files(here) == []
    monkeypatch.setattr(os, "link", link)


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_in_the_middle_leaves_nothing_half_written(
    here: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int, word: str
) -> None:
    go_on, last = Run.__next__, signal.getsignal(number)

    def interrupted(self: Run) -> Any:
        if self.state.i == 1 and self.seeds == (2,):
            os.kill(os.getpid(), number)
        return go_on(self)

    monkeypatch.setattr(Run, "__next__", interrupted)
    done = rawdiff("gen", "-p", "x", *QUICK, "--seed", "1", "--count", "3")
    assert done.code == code
    assert done.err.splitlines()[-1] == f"{word}; nothing half-written is left"
    assert done.lines == ["output_images/x-1.png"]
    assert all_files(here / "output_images") == ["x-1.png"]
    assert signal.getsignal(number) == last


def test_tracebacks_come_with_debug_alone(here: Path) -> None:
    usual = rawdiff("gen", "-p", "x", "--depth", "none.png", *QUICK)
    assert "Traceback" not in usual.err
    debug = rawdiff("gen", "-p", "x", "--depth", "none.png", *QUICK, "--debug")
    assert debug.code == usual.code == 3
    assert "Traceback" in debug.err
    assert debug.err.splitlines()[-1] == usual.error


def test_messages_stay_on_one_line_and_obey_nothing(here: Path) -> None:
    done = rawdiff("gen", "-p", "x", "--depth", "a\nb\x1b[31mc\u202e.png", *QUICK)
    assert done.code == 3
    assert r"a\nb\x1b[31mc\u202e.png: no such file" in done.error


LONG = "x" * 300


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--model", "~nosuchuser/x"), 4, "~nosuchuser/x: no such folder or file"),
        (
            ("--model", "~nosuchuser/x.safetensors#ema"),
            4,
            "~nosuchuser/x.safetensors#ema: no such folder or file",
        ),
        (("--lora", "~nosuchuser/x.safetensors"), 4, "~nosuchuser/x.safetensors: no such file"),
        (("--embedding", "~nosuchuser/e.pt"), 4, "~nosuchuser/e.pt: no such file"),
        (("--depth", "~nosuchuser/d.png"), 3, "~nosuchuser/d.png: no such file"),
        (("--model", LONG), 2, "is no file and no folder here and no alias"),
        (("--model", f"{LONG}.safetensors"), 4, "no such folder or file"),
        (("--lora", f"{LONG}.safetensors@0.5"), 4, "too long"),
        (("--embedding", f"{LONG}.pt=word"), 4, "too long"),
        (("--control", f"depth={LONG}.png@0.5"), 3, "too long"),
        (("--out", f"{LONG}.png"), 2, "too long"),
        (("--from", f"{LONG}.png"), 3, "too long"),
    ],
)
def test_paths_that_no_system_has(here: Path, words: tuple[str, ...], code: int, said: str) -> None:
    done = rawdiff("gen", "-p", "x", *QUICK, *words)
    refused(done, code, said)
    assert "a defect" not in done.err


def test_a_name_too_long_in_a_batch(here: Path) -> None:
    (here / "m.jsonl").write_text(json.dumps({"prompt": "x", "control": [f"depth={LONG}.png@0.5"]}))
    done = rawdiff("batch", "m.jsonl", "--out", "o")
    assert done.code == 7
    assert "too long" in done.err


def test_commands_that_are_none() -> None:
    refused(rawdiff("draw"), 2, "No such command 'draw'")
    refused(rawdiff("--colour"), 2, "No such option: --colour")
    refused(rawdiff("batch"), 2, "Missing argument 'FILE'")
    assert rawdiff().ok().out.count("Usage: rawdiff") == 1
    assert issubclass(workshop.DeviceFailedError, ResourceError)


def test_a_prompt_from_a_standard_input_that_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UsageError, match="prompt from standard input: that is closed; give it with --prompt"):
        Console(io.StringIO()).read_prompt()


def test_a_dry_run_refuses_the_names_that_a_run_refuses(here: Path) -> None:
    (here / "taken.png").write_bytes(b"mine")
    for words in (["taken.png"], ["a.jpg"], ["a.png", "--count", "2"], [""]):
        told = [rawdiff("gen", "-p", "x", *QUICK, "--out", *words, *more) for more in ([], ["--dry-run"])]
        assert [one.code for one in told] == [2, 2]
        assert told[0].error == told[1].error
    rawdiff("gen", "-p", "x", *QUICK, "--out", "new/a.png", "--dry-run").ok()
    assert all_files(here) == ["taken.png"]


def test_folders_made_for_a_picture_that_fails_go_again(here: Path) -> None:
    (here / "a").mkdir()
    done = rawdiff("gen", "-p", "x", *QUICK, "--depth", "none.png", "--out", "a/b/c")
    assert done.code != 0
    assert rawdiff("gen", "-p", "x", *QUICK, "--depth", "none.png", "--out", "d/e/f.png").code != 0
    assert [path.name for path in here.iterdir()] == ["a"]
    assert not any((here / "a").iterdir())


def test_what_an_encoding_has_no_sign_for_is_escaped() -> None:
    """Standard output that goes to a file on Windows is in a code page."""
    words = [sys.executable, "-m", "rawdiff", "prompt", "\u8d64\u3044 cube"]
    done = subprocess.run(words, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "cp1252"})
    assert done.returncode == 0, done.stderr
    assert b"\\u0126</w>" in done.stdout
    assert b"cube" in done.stdout
