"""`rawdiff batch` and its manifests: nothing drawn twice, nothing lost, nothing outside its folders."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
import unicodedata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st

from rawdiff import images, recipe
from rawdiff.errors import InputError, ResourceError, UsageError
from rawdiff.jobs import batch as batches
from rawdiff.jobs import workshop
from rawdiff.jobs.manifest import KEYS, read_manifest
from rawdiff.jobs.place import Place
from rawdiff.run import Run
from tests.cli_run import Result, all_files, blank, depth_map, pixels, rawdiff
from tests.small_models import small_folder

pytest_plugins = ["tests.cli_fixtures"]
pytestmark = pytest.mark.usefixtures("here")


def write(path: Path, *items: dict[str, Any] | str) -> Path:
    path.parent.mkdir(exist_ok=True)
    lines = [item if isinstance(item, str) else json.dumps(item) for item in items]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="surrogatepass")
    return path


def quick(prompt: str, **words: Any) -> dict[str, Any]:
    return {"prompt": prompt, "steps": 1, "size": "64x64", **words}


def pictures(folder: Path) -> list[str]:
    return [name for name in all_files(folder) if name.endswith(".png")]


def summary(done: Result) -> str:
    return next(line for line in done.err.splitlines() if " already there, " in line)


# ---- drawing


def test_a_batch_is_drawn_once_with_the_model_loaded_once(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[Any] = []
    load = workshop.load
    monkeypatch.setattr(workshop, "load", lambda *args, **rest: (loads.append(args), load(*args, **rest))[1])
    depth_map(write(here / "in" / "x").parent / "d.png", (64, 64))
    items = [quick("a", depth="d.png", seed=3), quick("b", count=2), "", quick("c", out="sub/c.png", seed=0)]
    path = write(here / "in" / "m.jsonl", *items)
    first = rawdiff("batch", path).ok()
    assert summary(first) == "4 drawn, 0 already there, 0 of 3 items failed"
    assert len(loads) == 1
    assert len(first.lines) == 4
    assert first.lines[0] == "output_images/a-3.png"
    assert first.lines[3] == "output_images/sub/c.png"
    before = {name: (here / "output_images" / name).read_bytes() for name in pictures(here / "output_images")}
    again = rawdiff("batch", path).ok()
    assert summary(again) == "0 drawn, 4 already there, 0 of 3 items failed"
    assert again.lines == first.lines
    assert len(loads) == 1  # not a weight was read
    assert {name: (here / "output_images" / name).read_bytes() for name in before} == before


def test_an_item_is_what_gen_draws(here: Path) -> None:
    words = quick("a red cube", negative="x", seed=5, guidance=3, sampler="euler a", clip_skip=1)
    [path] = rawdiff("batch", write(here / "m.jsonl", words)).ok().lines
    options = [word for key, value in words.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    [other] = rawdiff("gen", *options).ok().lines
    assert images.read_recipe(path) == images.read_recipe(other)
    assert (pixels(path) == pixels(other)).all()
    assert summary(rawdiff("batch", here / "m.jsonl").ok()).startswith("0 drawn, 1 already there")


def test_a_line_without_a_seed_keeps_the_one_it_was_given(here: Path) -> None:
    path = write(here / "m.jsonl", quick("a"), quick("b"))
    first = rawdiff("batch", path).ok().lines
    write(path, quick("b"), {"size": "64x64", "steps": 1, "prompt": "a"}, quick("a", guidance=2))
    again = rawdiff("batch", path).ok()
    assert summary(again).startswith("1 drawn, 2 already there")
    assert again.lines[:2] == first[::-1]


def test_the_same_picture_twice_is_drawn_once(here: Path) -> None:
    done = rawdiff(
        "batch", write(here / "m.jsonl", quick("a", seed=1), quick("a", seed=1, guidance=4.0))
    ).ok()
    assert summary(done).startswith("1 drawn, 1 already there")  # 4 is this model's own guidance
    assert done.lines[0] == done.lines[1]


@pytest.mark.parametrize("harm", ["missing", "truncated", "flipped", "other recipe", "not ours"])
def test_done_means_that_the_whole_picture_is_there(here: Path, harm: str) -> None:
    path = write(here / "m.jsonl", quick("a", seed=1), quick("b", seed=1))
    first, _ = (here / name for name in rawdiff("batch", path).ok().lines)
    data = first.read_bytes()
    if harm == "missing":
        first.unlink()
    elif harm == "truncated":
        first.write_bytes(data[:-40])
    elif harm == "flipped":
        place = data.index(b"IDAT") + 20
        first.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    elif harm == "other recipe":
        shutil.copy(here / rawdiff("gen", "-p", "z", "--steps", "1", "-o", "z.png").ok().lines[0], first)
    else:
        depth_map(first)
    again = rawdiff("batch", path).ok()
    assert summary(again).startswith("1 drawn, 1 already there")
    whole = here / again.lines[0]
    assert whole.read_bytes() == data
    if harm != "missing":
        assert whole != first  # what lay there was not touched


def test_a_changed_map_is_another_picture(here: Path) -> None:
    depth_map(here / "d.png", (64, 64))
    path = write(here / "m.jsonl", quick("a", depth="d.png", seed=1))
    rawdiff("batch", path).ok()
    depth_map(here / "d.png", (64, 64), turn=2.0)
    assert summary(rawdiff("batch", path).ok()).startswith("1 drawn, 0 already there")


def test_a_failed_item_does_not_stop_the_others(here: Path) -> None:
    depth_map(here / "d.png", (48, 72))
    path = write(
        here / "m.jsonl",
        quick("a", depth="none.png"),
        quick("b", size="63x64"),
        quick("c", steps=0),
        quick("d\ud800"),
        quick("e", depth="d.png"),
        quick("f", sampler="nosuch"),
        quick("g", seed=2**32),
        quick("h", clip_skip=9),
        quick("i", count=2, out="i.png"),
        quick("j", seed=1),
    )
    done = rawdiff("batch", path)
    assert done.code == 7
    assert done.lines == ["output_images/j-1.png"]
    said = done.err.splitlines()
    for line in (
        "line 1: ", "none.png: no such file", "line 2: size 63x64 is not a multiple of 8", "line 3: steps 0",
        "line 4: prompt: what stands at place 1", "line 5: ", "d.png: the depth map of 72x48 has another aspect",
        "line 6: sampler 'nosuch' is not known", "line 7: seed 4294967296", "line 8: clip skip 9",
        "line 9: out 'i.png': one name for 2 pictures",
    ):  # fmt: skip
        assert any(line in told for told in said), line
    assert said[-2:] == [
        "1 drawn, 0 already there, 9 of 10 items failed",
        "error: 9 of 10 items failed: line 1, 2, 3, 4, 5, 6, 7, 8, 9",
    ]


def test_what_fails_while_drawing_fails_alone(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = workshop.Workshop._draw

    def sometimes(self: Any, model: Any, job: Any, *rest: Any) -> Any:
        if job.picture["prompt"] == "b":
            raise MemoryError
        if job.picture["prompt"] == "c":
            raise ZeroDivisionError("oh")
        return draw(self, model, job, *rest)

    monkeypatch.setattr(workshop.Workshop, "_draw", sometimes)
    done = rawdiff("batch", write(here / "m.jsonl", *(quick(p, seed=1) for p in "abcd")))
    assert (done.code, done.lines) == (7, ["output_images/a-1.png", "output_images/d-1.png"])
    assert "line 2: out of memory at 64x64" in done.err
    assert "line 3: a defect in rawdiff (ZeroDivisionError: oh)" in done.err


def test_a_lost_device_ends_the_batch(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*args: Any) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(workshop.Workshop, "_draw", lost)
    done = rawdiff("batch", write(here / "m.jsonl", quick("a"), quick("b")))
    assert done.code == 6
    assert done.err.count("CUDA error") == 1
    assert "a batch goes on where it stopped" in done.err


def test_broken_weights_end_the_batch(here: Path) -> None:
    own = small_folder(here / "own", nets=())
    (own / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"\0" * 100)
    done = rawdiff("batch", write(here / "m.jsonl", quick("a"), quick("b")), "--model", own)
    assert done.code == 4
    assert "vae" in done.err.splitlines()[-1]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_drops_the_item_and_the_next_run_goes_on(
    here: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    path = write(here / "m.jsonl", *(quick(p, seed=1, steps=3) for p in "abc"))
    go_on, calls = Run.__next__, []

    def interrupted(self: Run) -> Any:
        calls.append(self)
        if len(calls) == 6:
            os.kill(os.getpid(), number)
        return go_on(self)

    monkeypatch.setattr(Run, "__next__", interrupted)
    done = rawdiff("batch", path)
    assert (done.code, done.lines) == (code, ["output_images/a-1.png"])
    assert summary(done) == "1 drawn, 0 already there, 0 of 3 items failed"
    assert pictures(here / "output_images") == ["a-1.png"]
    assert [n for n in all_files(here / "output_images") if n.startswith(".rawdiff-tmp")] == []
    again = rawdiff("batch", path).ok()
    assert summary(again) == "2 drawn, 1 already there, 0 of 3 items failed"


def test_a_dry_run_checks_every_item_and_draws_none(here: Path) -> None:
    path = write(here / "m.jsonl", quick("a", seed=1), quick("b", size="9x9"))
    done = rawdiff("batch", path, "--dry-run")
    assert done.code == 7
    assert done.lines[0] == "line 1: 64x64, 1 steps of DDIMScheduler, guidance 4, seed 1"
    assert "line 2: size 9x9" in done.err
    assert all_files(here) == ["m.jsonl"]


def test_a_dry_run_tells_the_recipes_of_what_is_not_there(here: Path) -> None:
    path = write(here / "m.jsonl", quick("a", seed=1, count=3))
    paths = rawdiff("batch", path).ok().lines
    recipes = [recipe.read(here / one) for one in paths]
    assert rawdiff("batch", path, "--dry-run").ok().lines == paths
    for k in (0, 2):
        (here / paths[k]).unlink()
    lines = rawdiff("batch", path, "--dry-run").ok().lines
    assert lines[:2] == [paths[1], "line 1: 64x64, 1 steps of DDIMScheduler, guidance 4, 2 of seeds 1 to 3"]
    assert lines[2:] == [f"seed {recipes[k]['picture']['seed']}: {recipes[k]['id']}" for k in (0, 2)]
    there, *told = map(json.loads, rawdiff("batch", path, "--dry-run", "--json").ok().lines)
    assert there == {"path": paths[1], "id": recipes[1]["id"], "drawn": False}
    assert [one["picture"] for one in told] == [recipes[k]["picture"] for k in (0, 2)]


def test_results_as_json(here: Path) -> None:
    path = write(here / "m.jsonl", quick("a", seed=1))
    [line] = rawdiff("batch", path, "--json").ok().lines
    one = json.loads(line)
    assert (one["path"], one["drawn"]) == ("output_images/a-1.png", True)
    [line] = rawdiff("batch", path, "--json").ok().lines
    assert json.loads(line) == {"path": one["path"], "id": one["id"], "drawn": False}
    assert "total" in rawdiff("batch", path, "--timings").ok().err


# ---- one folder, one process


def test_a_folder_is_held_by_one_process_at_a_time(here: Path) -> None:
    path = write(here / "m.jsonl", quick("a"))
    (here / "output_images").mkdir()
    with FileLock(str(here / "output_images" / batches.LOCK_NAME)):
        done = rawdiff("batch", path)
    assert done.code == 6
    assert "output_images: another batch is at work there" in done.error
    rawdiff("batch", path).ok()
    assert not (here / "output_images" / batches.LOCK_NAME).exists()


def test_the_lock_excludes_though_its_file_comes_and_goes(tmp_path: Path) -> None:
    """Threads open it anew each time, as processes do; some open a file that is removed before they hold it."""
    inside, seen, held, refused = [0], [0], [0], [0]

    def work() -> None:
        for _ in range(40):
            try:
                with batches.locked(tmp_path):
                    inside[0] += 1
                    seen[0], held[0] = max(seen[0], inside[0]), held[0] + 1
                    time.sleep(0.0005)
                    inside[0] -= 1
            except ResourceError:
                refused[0] += 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [1]
    assert held[0] + refused[0] == 160
    assert held[0] > 4
    assert list(tmp_path.iterdir()) == []


def test_a_manifest_copied_without_its_files_says_what_to_do(here: Path) -> None:
    (here / "first").mkdir()
    (here / "second").mkdir()
    depth_map(here / "first" / "d.png", (64, 64))
    lines = [quick("a", depth="d.png"), quick("b", lora="style.safetensors"), quick("c", image="e.png")]
    path = write(here / "first" / "m.jsonl", *lines)
    copied = here / "second" / "m.jsonl"
    copied.write_bytes(Path(path).read_bytes())
    done = rawdiff("batch", copied, "--dry-run")
    assert done.code == 7
    for k, name in enumerate(("d.png", "style.safetensors", "e.png"), start=1):
        assert (
            f"line {k}: {here / 'second' / name}: no such file; paths in {copied} are relative to its folder: copy the "
            "file there too, or run the manifest where its files are"
        ) in done.err
    rawdiff("batch", write(path, lines[0]), "--dry-run").ok()


def test_what_a_killed_process_left_is_swept_and_a_living_ones_is_not(here: Path) -> None:
    folder = here / "output_images"
    folder.mkdir()
    dead, mine, fresh = (
        folder / f".rawdiff-tmp-{n}" for n in (f"{2**22 + 1}-aa", f"{os.getpid()}-bb", f"{2**22 + 1}-cc")
    )
    for path in (dead, mine, fresh):
        path.write_bytes(b"half")
    for path in (dead, mine):
        os.utime(path, (1, 1))
    rawdiff("batch", write(here / "m.jsonl", quick("a"))).ok()
    assert (dead.exists(), mine.exists(), fresh.exists()) == (False, True, True)


def test_what_was_left_in_a_folder_that_an_item_names_is_swept_too(here: Path) -> None:
    left = here / "output_images" / "cubes" / f".rawdiff-tmp-{2**22 + 1}-aa"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    os.utime(left, (1, 1))
    rawdiff("batch", write(here / "m.jsonl", quick("a", out="cubes/a.png"))).ok()
    assert all_files(here / "output_images") == ["cubes", "cubes/a.png"]


def test_a_folder_of_a_name_too_long_fails_its_item_alone(here: Path) -> None:
    path = write(here / "m.jsonl", quick("a", out=f"{'a' * 300}/b.png"), quick("b", seed=1, out="b.png"))
    done = rawdiff("batch", path)
    assert (done.code, done.lines) == (7, ["output_images/b.png"])
    assert "defect" not in done.err
    assert summary(done) == "1 drawn, 0 already there, 1 of 2 items failed"


def test_nothing_is_swept_outside(here: Path) -> None:
    (here / "output_images").mkdir()
    (here / "outside").mkdir()
    (here / "output_images" / "link").symlink_to(here / "outside")
    left = here / "outside" / f".rawdiff-tmp-{2**22 + 1}-aa"
    left.write_bytes(b"half")
    os.utime(left, (1, 1))
    assert rawdiff("batch", write(here / "m.jsonl", quick("a", out="link/a.png"))).code == 7
    assert left.exists()


def test_a_folder_that_is_a_link_to_itself_fails_its_item_alone(here: Path) -> None:
    (here / "output_images").mkdir()
    (here / "output_images" / "loop").symlink_to("loop")
    path = write(here / "m.jsonl", quick("a", out="loop/a.png"), quick("b", seed=1, out="b.png"))
    done = rawdiff("batch", path)
    assert (done.code, done.lines) == (7, ["output_images/b.png"])
    assert "line 1: out 'loop/a.png': its folder cannot be followed; choose another name" in done.err


def test_no_process_is_asked_on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Signal 0 is Ctrl-C there."""
    assert batches._is_alive(os.getpid())
    monkeypatch.setattr(batches, "os", SimpleNamespace(name="nt", kill=lambda *_: pytest.fail("asked")))
    assert not batches._is_alive(os.getpid())


def test_where_pictures_go(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here / "home"))
    path = write(here / "m.jsonl", quick("a", seed=1))
    assert rawdiff("batch", path, "--out", "~/mine").ok().lines == [str(here / "home" / "mine" / "a-1.png")]
    for out, said in (
        ("", "out '': expected a folder"),
        ("a.png", "out a.png: the name of a picture; expected"),
    ):
        done = rawdiff("batch", path, "--out", out)
        assert (done.code, done.out) == (2, "")
        assert said in done.error
    assert all_files(here) == ["home", "home/mine", "home/mine/a-1.png", "m.jsonl"]


# ---- names


def test_names_that_are_taken_are_refused_and_nothing_is_overwritten(here: Path) -> None:
    path = write(here / "m.jsonl", quick("a", seed=1, out="a.png"))
    rawdiff("batch", path).ok()
    before = (here / "output_images" / "a.png").read_bytes()
    write(path, quick("b", seed=1, out="a"), quick("b", seed=2, out="A.png"), quick("a", seed=1, out="a.png"))
    with pytest.raises(InputError, match=r"m.jsonl:2: out 'A.png' is taken by line 1 \(as 'a.png'"):
        read_manifest(path)
    write(path, quick("b", seed=1, out="a"), quick("c", seed=2, out="é.png"))
    (here / "output_images" / unicodedata.normalize("NFD", "É.png")).write_bytes(b"")
    done = rawdiff("batch", path)
    assert done.code == 7
    assert "line 1: out 'a.png': output_images holds 'a.png' already, with another recipe" in done.err
    assert done.err.count("already, with another recipe") == 2
    assert (here / "output_images" / "a.png").read_bytes() == before


@pytest.mark.parametrize(
    "out",
    [
        "../a.png", "/tmp/a.png", "a/../../b.png", "", ".", "..", "a/", "/", "a//b", ".hidden", "a\\b", "c:a", "a\nb",
        "a?", " a", "sub/.x",
    ],
)  # fmt: skip
def test_a_name_that_is_no_plain_one_is_refused(here: Path, out: str) -> None:
    done = rawdiff("batch", write(here / "m.jsonl", quick("a"), quick("b", out=out)))
    assert (done.code, done.out) == (3, "")
    assert f"{here / 'm.jsonl'}:2: out " in done.error
    assert all_files(here) == ["m.jsonl"]


def test_a_folder_that_is_a_link_out_is_refused(here: Path) -> None:
    (here / "elsewhere").mkdir()
    (here / "output_images").mkdir()
    (here / "output_images" / "sub").symlink_to(here / "elsewhere")
    done = rawdiff("batch", write(here / "m.jsonl", quick("a", out="sub/a.png")))
    assert done.code == 7
    assert "is a link that leads out of output_images" in done.err
    assert all_files(here / "elsewhere") == []


# ---- manifests


@pytest.mark.parametrize("key", ["depth", "control"])
@pytest.mark.parametrize(
    "way", ["../d.png", "/etc/hostname", "in/../../d.png", "link.png", "folder/d.png", "..\\d.png"]
)
def test_a_path_out_of_the_manifests_folder_is_refused(here: Path, key: str, way: str) -> None:
    depth_map(here / "d.png")
    folder = write(here / "in" / "m.jsonl").parent
    (folder / "link.png").symlink_to(here / "d.png")
    (folder / "folder").symlink_to(here)
    value = way if key == "depth" else [f"depth={way}@0.5"]
    path = write(folder / "m.jsonl", quick("a"), quick("b", **{key: value}))
    done = rawdiff("batch", path)
    assert (done.code, done.out) == (3, "")
    assert f"{path}:2: path " in done.error
    assert "leads out of the manifest's folder" in done.error
    assert not (here / "output_images").exists()


def test_paths_are_relative_to_the_manifest(here: Path) -> None:
    depth_map(write(here / "in" / "x").parent / "d@0.5.png", (64, 64))
    words = quick("a", control="depth=d@0.5.png@0.25,0-0.5", seed=1)
    [line] = rawdiff("batch", write(here / "in" / "m.jsonl", words)).ok().lines
    [control] = images.read_recipe(line)["picture"]["controls"]
    assert (control["weight"], control["end"]) == (0.25, 0.5)
    assert images.read_recipe(line)["made"]["inputs"] == [str(here / "in" / "d@0.5.png")]
    original = pixels(line)
    blank(line)
    assert (pixels(rawdiff("gen", "--from", line).ok().lines[0]) == original).all()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"\xff\xfe", "m.jsonl:1: not UTF-8 at byte 0"),
        (b'{"prompt": "a"}\n\n{"prompt": "\xe9"}', "m.jsonl:3: not UTF-8 at byte 29"),
        (b"", "holds no items"),
        (b"\n \n", "holds no items"),
        (b"a red cube", "m.jsonl:1: not valid JSON"),
        (b'{"prompt": "a"} {}', "m.jsonl:1: not valid JSON"),
        (b'["a"]', "m.jsonl:1: a JSON list; expected an object"),
        (b'{"prompt": "a", "guidance": NaN}', "m.jsonl:1: not valid JSON (NaN is not JSON)"),
        (b'{"prompt": "a", "prompt": "b"}', "m.jsonl:1: not valid JSON ('prompt': a key occurs twice)"),
        (b'{"prompt": "a", "clip-skip": 1, "clip_skip": 1}', "a key occurs twice, with a dash and with an underscore"),
        (b'{"prompt": "a", "setps": 3}', "unknown key 'setps'; did you mean steps?"),
        (b'{"prompt": "a", "negativ": ""}', "unknown key 'negativ'; did you mean negative or negative_2?"),
        (b'{"prompt": "a", "zzz": ""}', "unknown key 'zzz'; expected some of prompt, negative"),
        (b'{"prompt": "a", "model": "x"}', "unknown key 'model': it holds for the whole batch; give --model"),
        (b'{"prompt": 3}', "m.jsonl:1: prompt is 3; expected text"),
        (b'{"prompt": "a", "seed": 1.0}', "m.jsonl:1: seed is 1.0; expected a whole number"),
        (b'{"prompt": "a", "seed": true}', "m.jsonl:1: seed is true; expected a whole number"),
        (b'{"prompt": "a", "guess": 1}', "m.jsonl:1: guess is 1; expected true or false"),
        (b'{"prompt": "a", "size": [64, 64]}', "m.jsonl:1: size is [64, 64]; expected text"),
        (b'{"prompt": "a", "control": {"depth": "a"}}', "expected texts"),
        (b'{"prompt": "a", "timesteps": [1.5]}', "timesteps must be whole numbers"),
        (b'{"prompt": "a", "sigmas": "1,0"}', "sigmas is \"1,0\"; expected numbers"),
        (b'{"prompt": "a", "guidance": 1e999}', "m.jsonl:1: not valid JSON (1e999 is too large)"),
        (b"[" * 100000, "m.jsonl:1: not valid JSON"),
        (b'{"prompt": "a", "seed": ' + b"1" * 5000 + b"}", "m.jsonl:1: not valid JSON"),
    ],
)  # fmt: skip
def test_a_manifest_of_the_wrong_form_is_refused_whole(here: Path, text: bytes, words: str) -> None:
    (here / "m.jsonl").write_bytes(text)
    done = rawdiff("batch", "m.jsonl")
    assert (done.code, done.out) == (3, "")
    assert words in done.error
    assert all_files(here) == ["m.jsonl"]


def test_a_manifest_that_is_no_file(here: Path) -> None:
    for name in ("none.jsonl", str(here), "a\0b"):
        done = rawdiff("batch", name)
        assert done.code == 3
        assert "cannot be read" in done.error


def test_windows_line_ends_and_a_byte_order_mark_do_no_harm(here: Path) -> None:
    (here / "m.jsonl").write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\r\n{"prompt": "b"}\r\n')
    assert [item.line for item in read_manifest(here / "m.jsonl")] == [1, 2]


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from([*KEYS, "x"]),
            st.none()
            | st.booleans()
            | st.integers()
            | st.floats()
            | st.text(max_size=9)
            | st.lists(st.text(max_size=9)),
            max_size=6,
        ),
        max_size=3,
    )
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_any_manifest_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, items: list[dict[str, Any]]
) -> None:
    path = write(tmp_path_factory.mktemp("m") / "m.jsonl", *items)
    try:
        found = read_manifest(path)
    except InputError:
        return
    assert all(isinstance(item.request, UsageError) or item.request.check() for item in found)


def test_wrong_pixels_under_the_right_text_are_not_done(here: Path) -> None:
    path = write(here / "m.jsonl", quick("a", seed=1))
    [first] = rawdiff("batch", path).ok().lines
    original = pixels(first)
    blank(first)
    assert "changed: not those that the recipe tells of, 64x64" in rawdiff("info", first).ok().out
    again = rawdiff("batch", path).ok()
    assert summary(again).startswith("1 drawn, 0 already there")
    assert (pixels(again.lines[0]) == original).all()
    assert "whole, 64x64" in rawdiff("info", again.lines[0]).ok().out
    assert summary(rawdiff("batch", path).ok()).startswith("0 drawn, 1 already there")


def test_a_damaged_copy_does_not_hide_the_whole_one(here: Path) -> None:
    path = write(here / "m.jsonl", quick("a", seed=1))
    [first] = rawdiff("batch", path).ok().lines
    copy = here / "output_images" / "a-1-2.png"
    assert str(copy) < str(here / first)  # it is looked at first
    copy.write_bytes((here / first).read_bytes()[:-40])
    blank(shutil.copy(here / first, here / "output_images" / "a-1-3.png"))
    for _ in range(2):
        done = rawdiff("batch", path).ok()
        assert summary(done).startswith("0 drawn, 1 already there")
        assert done.lines == [first]
    assert len(pictures(here / "output_images")) == 3


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("a.jpg", "pictures are written as PNG"),
        ("CON.png", "device's name"),
        ("nul", "device's name"),
        ("aux/a.png", "device's name"),
    ],
)
def test_a_name_is_refused_as_gen_refuses_it(here: Path, out: str, words: str) -> None:
    done = rawdiff("batch", write(here / "m.jsonl", quick("a", out=out)))
    assert (done.code, done.out) == (3, "")
    assert words in done.error
    if out != "aux/a.png":
        alone = rawdiff("gen", "-p", "a", "--out", out if out != "nul" else "nul.png")
        assert alone.code == 2
        assert words in alone.error
    assert all_files(here) == ["m.jsonl"]


@pytest.mark.parametrize("number", ["1e400", "-1e400", "1" + "0" * 400])
@pytest.mark.parametrize("key", ["guidance", "eta", "sigmas"])
def test_a_number_beyond_floats_is_one_line(here: Path, key: str, number: str) -> None:
    value = f"[{number}, 0]" if key == "sigmas" else number
    (here / "m.jsonl").write_text(f'{{"prompt": "a", "{key}": {value}}}\n')
    done = rawdiff("batch", "m.jsonl")
    assert (done.code, done.out) == (3, "")
    assert "is too large" in done.error


def test_a_reader_that_has_gone_is_no_failed_item(here: Path) -> None:
    def gone(*args: Any, **rest: Any) -> None:
        raise BrokenPipeError

    item = quick("a", seed=1)
    with pytest.raises(BrokenPipeError):
        batches.draw_manifest(
            write(here / "m.jsonl", item), Place(), here / "o", say=lambda line: None, done=gone
        )
