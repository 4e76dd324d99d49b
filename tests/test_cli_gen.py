"""`rawdiff gen` through the real command: what it writes, says and repeats."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import rawdiff as package
from rawdiff import images, preparing
from rawdiff.cli import terminal
from rawdiff.errors import ResourceError
from rawdiff.jobs import place, preview
from tests.cli_run import Terminal, all_files, blank, depth_map, pixels, rawdiff
from tests.small_models import small_folder

pytest_plugins = ["tests.cli_fixtures"]
pytestmark = pytest.mark.usefixtures("here")

QUICK = ("--steps", "2", "--size", "64x64")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_folder(tmp_path_factory.mktemp("model") / "small", nets=("depth", "normal", "canny"))


def test_a_picture_from_words_and_a_map(here: Path, model: Path) -> None:
    depth_map(here / "d.png")
    done = rawdiff("gen", "-p", "a red cube", "--depth", "d.png", "--seed", "7", "--steps", "3").ok()
    assert done.out == "output_images/a-red-cube-7.png\n"
    assert all_files(here / "output_images") == ["a-red-cube-7.png"]
    said = done.err.splitlines()
    assert any(line.startswith("72x48, 3 steps of DDIMScheduler, guidance 4, seed 7") for line in said)
    assert any("model: " in line and "RAWDIFF_MODEL" in line and "--model" in line for line in said)
    assert any(line.startswith("depth from d.png: 16-bit PNG, 0..65535 taken as 0..1") for line in said)
    run = package.load(model).prepare(
        "a red cube", depth="d.png", seed=7, steps=3, size=(48, 72), say=lambda line: None
    )
    list(run)
    assert np.array_equal(np.asarray(run.image()), pixels(done.lines[0]))


def test_the_default_size_is_the_maps_shape_at_the_models_own_area(here: Path) -> None:
    depth_map(here / "wide.png", (64, 128))
    done = rawdiff("gen", "-p", "x", "--depth", "wide.png", "--steps", "1", "--json").ok()
    assert json.loads(done.out)["size"] == "96x48"  # 64x64 natively
    assert json.loads(rawdiff("gen", "-p", "x", "--steps", "1", "--json").ok().out)["size"] == "64x64"


def test_the_seed_is_printed_and_makes_the_picture_again() -> None:
    first = rawdiff("gen", "-p", "x", *QUICK).ok()
    [seed] = re.findall(r"seed (\d+)$", first.err, re.MULTILINE)
    second = rawdiff("gen", "-p", "x", *QUICK, "--seed", seed).ok()
    assert second.lines == [f"output_images/x-{seed}-2.png"]
    assert np.array_equal(pixels(first.lines[0]), pixels(second.lines[0]))
    third = rawdiff("gen", "-p", "x", *QUICK).ok()
    assert not np.array_equal(pixels(first.lines[0]), pixels(third.lines[0]))


def test_several_pictures_count_the_seed_up_in_batches_too() -> None:
    alone = rawdiff("gen", "-p", "x", *QUICK, "--seed", "5", "--count", "3", "--out", "alone").ok()
    assert alone.lines == [f"alone/x-{seed}.png" for seed in (5, 6, 7)]
    together = rawdiff(
        "gen", "-p", "x", *QUICK, "--seed", "5", "--count", "3", "--batch", "2", "--out", "more"
    ).ok()
    assert "seeds 5 to 7" in together.err
    for a, b in zip(alone.lines, together.lines, strict=True):
        difference = np.abs(pixels(a).astype(int) - pixels(b).astype(int))
        assert difference.max() <= 1
    one, other = pixels(alone.lines[0]).astype(int), pixels(alone.lines[1]).astype(int)
    assert np.abs(one - other).max() > 100
    recipe = images.read_recipe(together.lines[1])
    assert recipe["made"]["batch"] == [1, 2]
    assert recipe["id"] == images.read_recipe(alone.lines[1])["id"]


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--negative", "blurry, cut", "--guidance", "7.5", "--rescale", "0.7", "--clip-skip", "1"],
        ["--sampler", "dpm++ 2m karras", "--steps", "4"],
        ["--sampler", "ddim", "--eta", "0.5"],
        ["--sampler", "ddpm", "--timesteps", "900,500,100"],
        ["--sampler", "euler", "--sigmas", "10,3,1,0"],
        ["--depth", "d.png", "--normal", "n.png", "--guess"],
        ["--depth", "d.png", "--derive", "normal", "--derive", "canny", "--depth-invert", "--fit", "stretch"],
        ["--control", "depth=d.png@0.7,0-0.6", "--control", "depth=d.png@0.2", "--depth-range", "0,50000"],
        ["--guidance", "0", "--dtype", "bf16"],
    ],
    ids=lambda words: " ".join(words) or "plain",
)
def test_from_makes_the_same_pixels_from_the_text_alone(here: Path, words: list[str]) -> None:
    depth_map(here / "d.png")
    Image.fromarray(np.dstack([np.full((48, 72), v, np.uint8) for v in (128, 100, 250)])).save(here / "n.png")
    quick = [] if {"--steps", "--timesteps", "--sigmas"} & set(words) else ["--steps", "2"]
    first = rawdiff(
        "gen", "-p", "a red cube,\n on grass", "--seed", "3", "--size", "72x48", *words, *quick
    ).ok()
    expected, recipe = pixels(first.lines[0]), images.read_recipe(first.lines[0])
    blank(first.lines[0])
    assert pixels(first.lines[0]).max() == 0
    again = rawdiff("gen", "--from", first.lines[0], "--out", "again").ok()
    assert "not the same" not in again.err
    assert np.array_equal(pixels(again.lines[0]), expected)
    assert images.read_recipe(again.lines[0]) == recipe


def test_from_with_another_word_changes_that_alone(here: Path) -> None:
    depth_map(here / "d.png")
    depth_map(here / "e.png", turn=3.0)
    first = rawdiff(
        "gen", "-p", "x", *QUICK, "--seed", "3", "--control", "depth=d.png@0.5", "--fit", "crop"
    ).ok()
    other = rawdiff("gen", "--from", first.lines[0], "--steps", "3", "--seed", "4", "--depth", "e.png").ok()
    made, asked = (images.read_recipe(path)["picture"] for path in (first.lines[0], other.lines[0]))
    assert package_differences(made, asked) == ["controls[0].sha256", "sampler.steps", "seed"]
    assert f"not the same as {first.lines[0]} in controls[0].sha256, sampler.steps, seed" in other.err
    none = rawdiff("gen", "--from", first.lines[0], "--control", "none").ok()
    assert images.read_recipe(none.lines[0])["picture"]["controls"] == []


def package_differences(a: Any, b: Any) -> list[str]:
    from rawdiff.recipe import differences

    return differences(a, b)


def test_from_refuses_a_changed_or_missing_map_and_finds_one_beside_the_picture(here: Path) -> None:
    depth_map(here / "d.png")
    first = rawdiff(
        "gen", "-p", "x", *QUICK, "--seed", "3", "--depth", "d.png", "--fit", "crop", "-o", "p.png"
    ).ok()
    original = (here / "d.png").read_bytes()
    digest = images.read_recipe(first.lines[0])["picture"]["controls"][0]["sha256"]
    depth_map(here / "d.png", turn=2.0)
    changed = rawdiff("gen", "--from", "p.png")
    assert (changed.code, changed.out) == (3, "")
    assert (
        f"d.png: is not the recipe's depth map (its SHA-256 must begin with {digest[:12]}, this one's"
        in changed.error
    )
    (here / "d.png").unlink()
    missing = rawdiff("gen", "--from", "p.png")
    assert missing.code == 3
    assert "d.png: the recipe's depth map is not there" in missing.error
    (here / "moved").mkdir()
    (here / "p.png").rename(here / "moved" / "p.png")
    (here / "moved" / "d.png").write_bytes(original)
    assert rawdiff("gen", "--from", "moved/p.png").ok().lines == ["output_images/x-3.png"]


def test_from_refuses_changed_weights(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = small_folder(tmp_path / "own", nets=("depth",))
    depth_map(here / "d.png")
    words = ("--depth", "d.png", "--fit", "crop", "--model", "own")
    first = rawdiff("gen", "-p", "x", *QUICK, "--seed", "3", *words).ok()
    monkeypatch.setenv("RAWDIFF_MODEL", "nothing/such")  # the recipe's own model counts
    assert rawdiff("gen", "--from", first.lines[0]).code == 0
    small_folder(tmp_path / "later", nets=("depth",), seed=5)
    (own / "controlnet_depth").rename(tmp_path / "first_net")
    (tmp_path / "later" / "controlnet_depth").rename(own / "controlnet_depth")
    net = rawdiff("gen", "--from", first.lines[0])
    assert net.code == 4
    assert "the depth net is not what the picture was made with: controlnet_depth/diffusion" in net.error
    assert rawdiff("gen", "--from", first.lines[0], "--net", "depth=first_net").code == 0
    (own / "unet").rename(tmp_path / "first_unet")
    (tmp_path / "later" / "unet").rename(own / "unet")
    unet = rawdiff("gen", "--from", first.lines[0])
    assert unet.code == 4
    assert "the model own is not what the picture was made with: unet/diffusion" in unet.error
    assert rawdiff("gen", "--from", first.lines[0], "--model", "own").code == 0


def test_standard_output_holds_paths_or_json_alone(here: Path) -> None:
    done = rawdiff("gen", "-p", "x", *QUICK, "--count", "2", "--json", "--timings").ok()
    *pictures, timings = (json.loads(line) for line in done.lines)
    assert [set(p) for p in pictures] == [{"path", "id", "seed", "size", "seconds"}] * 2
    assert all(Path(p["path"]).is_file() and p["seconds"] > 0 for p in pictures)
    assert timings["timings"]["name"] == "total"


def test_timings_tell_of_every_part_and_of_the_start(here: Path) -> None:
    depth_map(here / "d.png")
    done = rawdiff("gen", "-p", "x", *QUICK, "--depth", "d.png", "--fit", "crop", "--timings").ok()
    tree = done.err[done.err.index("total ") :]
    for name in (
        "start and imports", "load", "tokenizer", "text encoder", "unet", "vae", "controlnet depth", "tokens",
        "hints", "step", "unet encode", "unet decode", "guidance", "sampler", "vae decode", "png", "hashes",
    ):  # fmt: skip
        assert re.search(rf"^ *{name} .* ms +\d+\.\d%$", tree, re.MULTILINE), name
    assert re.match(r"total +[\d.]+ ms +100.0%", tree)


def test_previews_are_small_pictures_of_every_step(here: Path) -> None:
    done = rawdiff("gen", "-p", "x", "--steps", "3", "--size", "520x64", "--seed", "1", "--preview").ok()
    folder = here / "output_images" / "x-1-steps"
    assert all_files(folder) == [f"step-{k}.png" for k in (1, 2, 3)]
    steps = [pixels(folder / name) for name in all_files(folder)]
    assert {step.shape for step in steps} == {(16, 168, 3)}  # 65x8 latents by a third, 21x2
    assert not np.array_equal(steps[0], steps[1])
    assert f"previews: {Path('output_images') / 'x-1-steps'}" in done.err
    assert done.lines == ["output_images/x-1.png"]
    refused = rawdiff("gen", "--from", folder / "step-1.png")
    assert refused.code == 3
    assert "holds no recipe of a picture" in refused.error


@pytest.mark.parametrize("memory", ["low", "normal"])
def test_previews_are_decoded_where_the_vae_is_put_away(
    here: Path, monkeypatch: pytest.MonkeyPatch, memory: str
) -> None:
    """The runner that puts it away fetches it; no other has to do with previews."""
    frugal = []

    def decode(*arguments: Any, runner: Any, **options: Any) -> Any:
        frugal.append(runner.frugal)
        return real(*arguments, runner=runner, **options)

    real = preview.decode
    monkeypatch.setattr(preview, "decode", decode)
    rawdiff("gen", "-p", "x", *QUICK, "--seed", "1", "--preview", "--memory", memory).ok()
    assert frugal == [memory == "low"] * 2


def test_the_last_preview_of_a_small_picture_is_the_picture(here: Path) -> None:
    rawdiff("gen", "-p", "x", *QUICK, "--seed", "1", "--preview", "--count", "2", "--batch", "2").ok()
    folder = here / "output_images"
    for seed in (1, 2):
        last, picture = (
            pixels(folder / "x-1-steps" / f"step-2-seed{seed}.png"),
            pixels(folder / f"x-{seed}.png"),
        )
        assert last.shape == picture.shape
        assert np.abs(last.astype(float) - picture).mean() < np.abs(128.0 - picture).mean()


def test_hints_are_saved_as_the_nets_saw_them(here: Path) -> None:
    depth_map(here / "d.png")
    words = ("--depth", "d.png", "--derive", "normal", "--size", "72x48", "--save-hints")
    done = rawdiff("gen", "-p", "x", "--steps", "1", "--seed", "1", *words).ok()
    assert all_files(here / "output_images") == ["x-1-depth.png", "x-1-normal.png", "x-1.png"]
    assert np.array_equal(
        np.asarray(Image.open(here / "output_images" / "x-1-depth.png")), np.asarray(Image.open("d.png"))
    )
    assert done.err.count("hint: ") == 2


def test_a_dry_run_draws_and_makes_nothing(here: Path) -> None:
    words = ("gen", "-p", "x", *QUICK, "--seed", "4", "--count", "2")
    plan = rawdiff(*words, "--dry-run").ok()
    assert plan.lines[0] == "64x64, 2 steps of DDIMScheduler, guidance 4, seeds 4 to 5"
    assert all_files(here) == []
    told = [json.loads(line) for line in rawdiff(*words, "--dry-run", "--json").ok().lines]
    done = rawdiff(*words).ok()
    drawn = [images.read_recipe(path) for path in done.lines]
    assert {one["made"].pop("pixels") for one in told} == {None}
    assert len({one["made"].pop("pixels") for one in drawn}) == 2
    assert told == drawn
    assert plan.lines[1:] == [f"seed {seed}: {one['id']}" for seed, one in zip((4, 5), told, strict=True)]
    assert rawdiff("gen", "-p", "x", "--size", "63x64", "--dry-run").code == 2


def test_a_file_of_ones_own_name_and_what_is_there_is_kept(here: Path) -> None:
    assert rawdiff("gen", "-p", "x", *QUICK, "-o", "sub/a.PNG", "--seed", "1").ok().lines == ["sub/a.PNG"]
    before = (here / "sub" / "a.PNG").read_bytes()
    taken = rawdiff("gen", "-p", "x", *QUICK, "-o", "sub/a.PNG", "--seed", "2")
    assert taken.code == 2
    assert "sub/a.PNG: exists already" in taken.error
    assert (here / "sub" / "a.PNG").read_bytes() == before
    rawdiff("gen", "-p", "x", *QUICK, "-o", "sub/a.PNG", "--seed", "2", "--overwrite").ok()
    assert (here / "sub" / "a.PNG").read_bytes() != before
    alike = rawdiff("gen", "-p", "x", *QUICK, "-o", "sub/A.png")
    assert alike.code == 2
    assert "but for case or accents" in alike.error


def test_the_prompt_comes_from_standard_input(here: Path) -> None:
    done = rawdiff("gen", "-p", "-", *QUICK, "--seed", "1", stdin="a blue\nsphere é\n").ok()
    assert images.read_recipe(done.lines[0])["picture"]["prompt"] == "a blue\nsphere é"


def test_a_person_is_asked_for_prompt_and_map(here: Path) -> None:
    depth_map(here / "d.png")
    screen = Terminal()
    done = rawdiff(
        "gen", *QUICK, "--fit", "crop", "--seed", "1", stdin=Terminal("a cube\nd.png\n"), err=screen
    )
    assert done.ok().lines == ["output_images/a-cube-1.png"]
    assert screen.text.startswith("What shall the picture show? Depth map (a path; empty for none)? ")
    assert len(images.read_recipe(done.lines[0])["picture"]["controls"]) == 1
    bare = rawdiff("gen", *QUICK, "--seed", "1", stdin=Terminal("a cube\n\n"), err=Terminal()).ok()
    assert images.read_recipe(bare.lines[0])["picture"]["controls"] == []
    known = rawdiff("gen", "-p", "a cube", *QUICK, stdin=Terminal(), err=Terminal()).ok()
    assert "What shall" not in known.err
    mapped = rawdiff(
        "gen", *QUICK, "--depth", "d.png", "--fit", "crop", stdin=Terminal("a cube\n"), err=Terminal()
    ).ok()
    assert "Depth map" not in mapped.err


def test_nobody_is_asked_without_a_terminal() -> None:
    done = rawdiff("gen", *QUICK, stdin="a cube\n\n")
    assert (done.code, done.out) == (2, "")
    assert done.error.startswith("error: no prompt")
    silent = rawdiff("gen", *QUICK, stdin=Terminal(), err=Terminal())
    assert silent.code == 2
    assert "standard input has ended" in silent.err


def test_the_bar_tells_steps_and_time_left_and_goes_away() -> None:
    screen = Terminal()
    rawdiff("gen", "-p", "x", *QUICK, "--count", "2", err=screen).ok()
    bars = [line for line in screen.text.replace("\n", "\r").split("\r") if "s/step" in line]
    assert len(bars) == 4
    assert re.fullmatch(r"picture 2-2 of 2  step 2/2  ━{24}  \d+\.\d\d s/step  0:00 left *", bars[-1])
    assert screen.text.endswith(" \r")
    assert "s/step" not in rawdiff("gen", "-p", "x", *QUICK).ok().err


def test_what_is_cut_of_a_long_prompt_is_told() -> None:
    done = rawdiff("gen", "-p", "red " * 80 + "sphere", *QUICK).ok()
    [line] = [line for line in done.err.splitlines() if "tokens cut to 77" in line]
    assert line.endswith("'red red red red red sphere'")


def test_a_net_of_ones_own(here: Path, model: Path) -> None:
    depth_map(here / "d.png")
    words = ("gen", "-p", "x", *QUICK, "--seed", "1", "--depth", "d.png", "--fit", "crop")
    own = rawdiff(*words, "--net", f"depth={model / 'controlnet_normal'}").ok()
    usual = rawdiff(*words).ok()
    assert np.abs(pixels(own.lines[0]).astype(int) - pixels(usual.lines[0])).max() > 1
    assert images.read_recipe(own.lines[0])["made"]["nets"] == [
        {"name": str(model / "controlnet_normal"), "kind": "folder"}
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--depth-range", "0,1"], "depth range: there is no depth map"),
        (["--depth-invert"], "depth invert: there is no depth map"),
        (["--fit", "crop"], "fit: there is no map"),
        (["--guess"], "guess: there is no map"),
        (["--save-hints"], "save hints: there is no map"),
    ],
)
def test_what_has_no_effect_without_a_map_is_refused(here: Path, words: list[str], said: str) -> None:
    done = rawdiff("gen", "-p", "x", *QUICK, *words)
    assert (done.code, done.out) == (2, "")
    assert said in done.error
    assert all_files(here) == []


def test_a_name_taken_while_drawing_costs_no_picture(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images_of = package.Run.images

    def meanwhile(run: Any) -> Any:
        (here / "x.png").write_bytes(b"another's")
        return images_of(run)

    monkeypatch.setattr(package.Run, "images", meanwhile)
    done = rawdiff("gen", "-p", "x", *QUICK, "--out", "x.png").ok()
    assert done.lines == ["x-2.png"]
    assert "x.png: was taken while the picture was drawn: it gets the next free name" in done.err
    assert (here / "x.png").read_bytes() == b"another's"
    assert images.read_recipe("x-2.png")["picture"]["prompt"] == "x"


@pytest.mark.parametrize("harm", ["files", "folder"])
def test_previews_that_cannot_be_written_cost_no_picture(
    here: Path, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    def full(*args: Any, **rest: Any) -> None:
        raise ResourceError("the disk is full")

    if harm == "files":
        monkeypatch.setattr(images, "write_png", full)
    else:
        monkeypatch.setattr("rawdiff.jobs.preview.Previews._make_home", full)
    done = rawdiff("gen", "-p", "x", *QUICK, "--seed", "1", "--preview").ok()
    assert done.lines == ["output_images/x-1.png"]
    assert done.err.count("no more previews: the disk is full") == 1


def test_the_time_a_person_takes_is_none_of_ours(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, told = [0.0], []

    class Slow(Terminal):
        def readline(self, *args: Any) -> str:
            clock[0] += 1000.0
            return super().readline(*args)

    monkeypatch.setattr(terminal.time, "monotonic", lambda: clock[0])
    start = place.start_probe

    def noted(device: Any, timings: bool, waited_ms: float) -> Any:
        told.append(waited_ms)
        return start(device, timings, waited_ms)

    monkeypatch.setattr("rawdiff.jobs.generate.start_probe", noted)
    monkeypatch.setattr("rawdiff.jobs.place.process_age_ms", lambda: 2_000_300.0)
    done = rawdiff("gen", *QUICK, "--timings", stdin=Slow("a cube\n\n"), err=Terminal()).ok()
    assert told == [2_000_000.0]
    assert re.search(r"start and imports +300\.0 ms", done.err)


def test_hints_and_words_are_made_once_for_all_pictures(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    depth_map(here / "d.png", (64, 64))
    made: list[str] = []
    for name in ("make_hints", "encode_texts"):
        own = getattr(preparing, name)
        monkeypatch.setattr(
            preparing,
            name,
            lambda *args, own=own, name=name, **rest: (made.append(name), own(*args, **rest))[1],
        )
    words = ("gen", "-p", "x", *QUICK, "--depth", "d.png", "--seed", "5", "--count", "5", "--batch", "2")
    together = rawdiff(*words).ok()
    assert made.count("make_hints") == 2  # for two at once, and for the one that is left
    assert made.count("encode_texts") == 2
    [alone] = rawdiff("gen", "-p", "x", *QUICK, "--depth", "d.png", "--seed", "7").ok().lines
    assert np.abs(pixels(alone).astype(int) - pixels(together.lines[2])).max() <= 1
    assert together.err.count("depth from d.png") == 1
