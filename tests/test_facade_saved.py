"""Forks, and runs on disk: saved, resumed to the bit, refused."""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

import rawdiff
from rawdiff import Control, Model, Run, images
from rawdiff.errors import InputError, UsageError, WeightsError
from rawdiff.sampler import make_sampler
from tests.cli_run import depth_map
from tests.cli_run import rawdiff as command
from tests.reference import error, grey_levels, hint, silent
from tests.small_models import small_controlnet, small_folder, small_scheduler
from tests.small_runs import DEPTH, PROMPT, finished, prepared


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_folder(tmp_path_factory.mktemp("model") / "small")


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return rawdiff.load(folder, device="cpu")


@pytest.mark.parametrize("sampler", [None, "unipc", "euler a", "pndm"])
def test_a_fork_is_the_run_to_the_bit(model: Model, sampler: str | None) -> None:
    run = prepared(model, sampler=sampler)
    next(run)
    next(run)
    fork = run.fork()
    assert torch.equal(fork.x0, run.x0)
    straight = finished(prepared(model, sampler=sampler)).latents
    assert torch.equal(finished(fork).latents, straight)
    assert run.state.i == 2
    assert torch.equal(finished(run).latents, straight)
    changed = prepared(model, sampler=sampler)
    next(changed)
    other = changed.fork()
    other.change(other.latents * 0.9)
    assert error(finished(other).latents, finished(changed).latents) > 1e-3


def thresholding() -> Any:
    return small_scheduler("DPMSolverMultistepScheduler", thresholding=True, prediction_type="sample")


CONTROLLED: dict[str, Any] = {"depth": DEPTH, "size": (48, 32)}
IMAGE = hint((48, 40), 2)
MASK = np.pad(np.ones((24, 24), np.float32), ((8, 16), (8, 8)))
RESUMED: dict[str, dict[str, Any]] = {
    "plain": {},
    "history": {"sampler": "unipc"},
    "noise": {"sampler": "euler a"},
    "noise and history": {"sampler": "dpm++ 2m sde karras"},
    "controls": {**CONTROLLED, "controls": [Control("normal", DEPTH, derive=True, weight=0.5, end=0.5)]},
    "guess": {**CONTROLLED, "guess": True, "guidance": 3.0, "rescale": 0.5, "clip_skip": 1},
    "no guidance": {"guidance": 1.0},
    "batch": {"prompt": [PROMPT, "blue"], "seed": [3, 9], "guidance": [3.0, 1.0]},
    "latents": {"latents": torch.ones(1, 4, 6, 5), "sampler": "euler a"},
    "schedule": {"timesteps": [901, 501, 301, 1], "steps": None, "sampler": "ddpm"},
    "eta": {"eta": 0.5},
    "edited": {**CONTROLLED, "prompt": ["[red:blue:3] (cube:1.3)", "[red|on]"], "syntax": "a1111"},
    "image": {"image": IMAGE, "strength": 0.6, "sampler": "dpm++ 2m sde karras"},
    "mask": {"image": IMAGE, "mask": MASK, "strength": 0.8, "sampler": "euler a"},
    "mask, not pasted": {"image": IMAGE, "mask": MASK, "paste": False},
}


@pytest.mark.parametrize("case", RESUMED)
@pytest.mark.parametrize("after", [0, 2])
def test_resumed_to_the_bit(model: Model, folder: Path, tmp_path: Path, case: str, after: int) -> None:
    options = RESUMED[case]
    straight = finished(prepared(model, **options))
    run = prepared(model, **options)
    for _ in range(after):
        next(run)
    path = run.save(tmp_path / "run.safetensors")
    again = rawdiff.load(folder, device="cpu").resume(path, say=silent)
    assert again.seeds == run.seeds
    assert again.state.i == after
    assert again.recipe == json.loads(json.dumps(dict(run.recipe)))
    if after:
        assert torch.equal(again.x0, run.x0)
    assert torch.equal(finished(again).latents, straight.latents)
    assert grey_levels(again.image(), straight.image()) == 0
    assert [h.kind for h in again.hints] == [h.kind for h in run.hints]


def test_resumed_after_forgetting(model: Model, tmp_path: Path) -> None:
    run = prepared(model, sampler="dpm++ 2m", steps=8)
    for step in run:
        if step.index == 2:
            run.change(run.latents * 0.8, forget=True)
        if step.index == 4:
            break
    path = run.save(tmp_path / "run.safetensors")
    again = model.resume(path)
    assert again.state.restarts == (3,)
    assert torch.equal(finished(again).latents, finished(run).latents)


def test_resumed_without_a_table(model: Model, tmp_path: Path) -> None:
    """A scheduler whose step is not linear keeps objects of its own; they are saved as values."""
    straight = finished(prepared(model, sampler=thresholding()))
    run = prepared(model, sampler=thresholding())
    next(run)
    next(run)
    path = run.save(tmp_path / "run.safetensors")
    with pytest.raises(UsageError, match=r"a scheduler of one's own, .*: give it again"):
        model.resume(path)
    again = model.resume(path, sampler=thresholding())
    assert torch.equal(finished(again).latents, straight.latents)


def test_resumed_with_modules(model: Model, tmp_path: Path) -> None:
    net = small_controlnet(model.unet, 77)
    controls = [Control("any", hint((48, 40), 1), net=net)]
    run = prepared(model, controls=controls)
    next(run)
    path = run.save(tmp_path / "run.safetensors")
    with pytest.raises(UsageError, match="modules as ControlNets: give them again"):
        model.resume(path)
    again = model.resume(path, modules=[net])
    assert torch.equal(finished(again).latents, finished(run).latents)


def test_resumed_with_modules_that_do_not_fit(model: Model, tmp_path: Path) -> None:
    net = small_controlnet(model.unet, 77)
    path = prepared(model, controls=[Control("any", hint((48, 40), 1), net=net)]).save(tmp_path / "run")
    for modules in ([net, net], [5], net, 5):
        with pytest.raises(UsageError, match="expected"):
            model.resume(path, modules=modules)  # type: ignore[arg-type]


def test_resumed_with_another_scheduler(model: Model, tmp_path: Path) -> None:
    """Even without a table the config shows that it is another, or that one was needed at all."""
    path = prepared(model, sampler=thresholding()).save(tmp_path / "run.safetensors")
    other = small_scheduler(
        "DPMSolverMultistepScheduler", thresholding=True, prediction_type="sample", sample_max_value=3.0
    )
    with pytest.raises(
        InputError, match=r"sampler\.config\.sample_max_value is 1\.0 in the file and 3\.0 now"
    ):
        model.resume(path, sampler=other)
    path = prepared(model, sampler="ddim").save(tmp_path / "named.safetensors")
    with pytest.raises(UsageError, match="was made with ddim, which it names itself: leave sampler out"):
        model.resume(path, sampler=thresholding())


@pytest.mark.parametrize("forget", [False, True])
def test_a_constraint_is_asked_for_again(model: Model, tmp_path: Path, forget: bool) -> None:
    """Dropped in silence, the resumed run would be another."""

    def hold(x: torch.Tensor, row: Any) -> torch.Tensor:
        x = x.clone()
        x[..., :3] *= 0.5
        return x

    def begun() -> Run:
        run = prepared(model, sampler="unipc")
        next(run)
        run.constrain(hold, forget=forget)
        next(run)
        return run

    run = begun()
    path = run.save(tmp_path / "run.safetensors")
    straight = finished(run).latents
    with pytest.raises(UsageError, match="was saved with a constraint in force: give it again, constrain="):
        model.resume(path)
    again = finished(model.resume(path, constrain=hold))
    assert torch.equal(again.latents, straight)
    assert again.state.restarts == run.state.restarts
    assert len(again.state.restarts) == (3 if forget else 0)
    lifted = begun()
    lifted.constrain(None)
    without = lifted.save(tmp_path / "without.safetensors")
    assert error(finished(model.resume(without)).latents, straight) > 1e-2
    with pytest.raises(UsageError, match=r"saved without a constraint: .* run.constrain"):
        model.resume(without, constrain=hold)


def test_resumed_onto_a_prepared_run(model: Model, tmp_path: Path) -> None:
    run = prepared(model)
    next(run)
    path = run.save(tmp_path / "run.safetensors")
    assert model.resume(path, run=prepared(model)).state.i == 1
    with pytest.raises(
        InputError, match=r"differs in guidance and seeds: guidance\[0\] is 4\.0 in the file and 5\.0 now"
    ):
        model.resume(path, run=prepared(model, seed=8, guidance=5.0))


def test_resumed_with_other_weights(model: Model, tmp_path: Path) -> None:
    run = prepared(model)
    next(run)
    path = run.save(tmp_path / "run.safetensors")
    other = rawdiff.load(small_folder(tmp_path / "other", seed=5, nets=()), device="cpu")
    with pytest.raises(InputError, match=r"differs in weights: weights\.text_encoder/model.safetensors is "):
        other.resume(path)


def test_resumed_with_another_net(folder: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    model = rawdiff.load(copy, device="cpu")
    run = prepared(model, **CONTROLLED)
    next(run)
    path = run.save(tmp_path / "run.safetensors")
    shutil.rmtree(copy / "controlnet_depth")
    shutil.copytree(folder / "controlnet_normal", copy / "controlnet_depth")
    with pytest.raises(
        InputError, match=r"differs in controlnet depth: controlnet depth\.controlnet_depth/diffusion"
    ):
        rawdiff.load(copy, device="cpu").resume(path)


def test_another_precision(folder: Path, model: Model, tmp_path: Path) -> None:
    path = prepared(model).save(tmp_path / "run.safetensors")
    with pytest.raises(InputError, match="differs in dtype: dtype is float32 in the file and bfloat16 now"):
        rawdiff.load(folder, device="cpu", dtype="bf16").resume(path)


def test_saving_overwrites_nothing(model: Model, tmp_path: Path) -> None:
    path = prepared(model).save(tmp_path / "run.safetensors")
    before = path.read_bytes()
    with pytest.raises(UsageError, match="exists already"):
        prepared(model, seed=9).save(path)
    assert path.read_bytes() == before
    prepared(model, seed=9).save(path, overwrite=True)
    assert path.read_bytes() != before
    assert [p.name for p in tmp_path.iterdir()] == ["run.safetensors"]


# Pictures that carry their recipe.


PICTURES: dict[str, tuple[list[str], dict[str, Any]]] = {
    "plain": ([], {}),
    "words and numbers": (
        ["-n", "blue", "-g", "3", "--rescale", "0.5", "--clip-skip", "1", "--eta", "0.5"],
        {"negative": "blue", "guidance": 3.0, "rescale": 0.5, "clip_skip": 1, "eta": 0.5},
    ),
    "named sampler": (["-s", "euler a"], {"sampler": "euler a"}),
    "maps": (
        [
            "--control", "depth=d.png@0.5,0-0.6", "--derive", "normal", "--fit", "crop", "--guess",
            "--depth-range", "100,60000", "--depth-invert", "--net", "depth=own/controlnet_normal",
        ],
        {
            "controls": [Control("depth", "d.png", 0.5, 0.0, 0.6), Control("normal", "d.png", derive=True)],
            "fit": "crop", "guess": True, "depth_range": (100, 60000), "depth_invert": True,
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", PICTURES)
def test_a_picture_saved_from_python_is_the_one_that_gen_draws(
    folder: Path, tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same pixels, the same recipe to the last value; `info` reads it and `gen --from` makes it again."""
    words, options = PICTURES[case]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").symlink_to(folder)
    depth_map(tmp_path / "d.png", (48, 32))
    more = ("--model", "own", "--size", "32x48", "--steps", "3", "--seed", "7")
    [drawn] = command("gen", "-p", PROMPT, *more, *words).ok().lines
    nets = {"depth": "own/controlnet_normal"} if "--net" in words else None
    model = rawdiff.load("own", device="cpu", nets=nets)
    run = finished(prepared(model, size=(48, 32), steps=3, **options))
    path = run.save_image(tmp_path / "cube")
    assert path == tmp_path / "cube.png"
    assert images.read_recipe(path) == images.read_recipe(drawn)
    assert images.read_text(path)["parameters"] == images.read_text(drawn)["parameters"]
    assert re.search(r"^  pixels +whole, 32x48$", command("info", path).ok().out, re.MULTILINE)
    [again] = command("gen", "--from", path).ok().lines
    assert images.read_recipe(again) == images.read_recipe(path)


def test_every_picture_of_a_batch_has_its_own_recipe(model: Model, tmp_path: Path) -> None:
    options: dict[str, Any] = {"negative": ["", "green"], "seed": [3, 9], "guidance": [3.0, 1.0], "steps": 2}
    run = finished(prepared(model, [PROMPT, "blue"], **options))
    told = [images.read_recipe(run.save_image(tmp_path / f"{k}.png", k)) for k in range(2)]
    for k, (prompt, negative, seed, scale) in enumerate([(PROMPT, "", 3, 3.0), ("blue", "green", 9, 1.0)]):
        picture = told[k]["picture"]
        found = [picture[name] for name in ("prompt", "negative", "seed", "guidance")]
        assert found == [prompt, negative, seed, scale]
        assert told[k]["made"]["batch"] == [k, 2]
    with pytest.raises(UsageError, match="exists already"):
        run.save_image(tmp_path / "0.png")
    run.save_image(tmp_path / "0.png", 1, overwrite=True)
    assert images.read_recipe(tmp_path / "0.png")["id"] == told[1]["id"]
    with pytest.raises(UsageError, match="image 2: this run has 2"):
        run.save_image(tmp_path / "2.png", 2)
    with pytest.raises(UsageError, match="pictures are written as PNG"):
        run.save_image(tmp_path / "0.jpg")


def test_a_resumed_run_tells_the_same_recipe(model: Model, tmp_path: Path) -> None:
    PIL.Image.fromarray((DEPTH * 65535).astype("uint16")).save(tmp_path / "d.png")
    run = prepared(model, depth=tmp_path / "d.png", size=(48, 32), sampler="unipc")
    next(run)
    path = run.save(tmp_path / "run.safetensors")
    straight = finished(run).save_image(tmp_path / "a.png")
    again = finished(model.resume(path, say=silent)).save_image(tmp_path / "b.png")
    assert images.read_recipe(straight) == images.read_recipe(again)
    assert images.read_recipe(again)["made"]["inputs"] == [str(tmp_path / "d.png")]


BY_HAND: dict[str, Callable[[Run], Any]] = {
    "change": lambda run: run.change(run.latents * 0.9),
    "state": lambda run: setattr(run, "state", run.state),
    "step's state": lambda run: setattr(step := next(run), "state", step.state),
    "constraint": lambda run: run.constrain(lambda x, row: x),
}


@pytest.mark.parametrize("case", BY_HAND)
def test_a_run_changed_by_hand_has_no_recipe(model: Model, tmp_path: Path, case: str) -> None:
    """Nor has a fork of it, nor what is resumed from it."""
    run = prepared(model)
    next(run)
    untouched = run.fork()
    BY_HAND[case](run)
    next(run)
    constrain = (lambda x, row: x) if case == "constraint" else None
    resumed = model.resume(run.save(tmp_path / "run.safetensors"), constrain=constrain, say=silent)
    for other in (run, run.fork(), resumed):
        with pytest.raises(
            UsageError, match=r"cube\.png: no recipe can tell this picture: its run was changed by"
        ):
            finished(other).save_image(tmp_path / "cube.png")
    finished(untouched).save_image(tmp_path / "cube.png")


def test_what_no_recipe_can_tell(model: Model, tmp_path: Path) -> None:
    class Own(type(small_scheduler())):  # type: ignore[misc]
        """A scheduler that no name stands for."""

    net = small_controlnet(model.unet, 77)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"latents": torch.ones(1, 4, 6, 5)}, "its latents were given, not drawn from its seed"),
        (
            {"sampler": make_sampler(small_scheduler(), steps=2), "steps": None},
            "its sampler, DDIMScheduler, is one's",
        ),
        ({"sampler": Own()}, "its sampler, Own, is one's own"),
        ({"controls": [Control("any", hint((48, 40), 1), net=net)]}, "its any net was given as a module"),
    ]
    for options, words in cases:
        run = finished(prepared(model, **{"steps": 2, **options}))
        with pytest.raises(UsageError, match=f"no recipe can tell this picture: {words}"):
            run.save_image(tmp_path / "cube.png")
    run = prepared(model)
    next(run)
    with pytest.raises(UsageError, match=r"cube\.png: the run stands before row 1 of 5: finish it first"):
        run.save_image(tmp_path / "cube.png")
    assert list(tmp_path.iterdir()) == []


def _header(change: Callable[[dict[str, Any]], None]) -> Callable[[bytes], bytes]:
    def spoil(data: bytes) -> bytes:
        length = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8 : 8 + length])
        change(header)
        raw = json.dumps(header).encode()
        return struct.pack("<Q", len(raw)) + raw + data[8 + length :]

    return spoil


def _body(change: Callable[[dict[str, Any]], None]) -> Callable[[bytes], bytes]:
    def inner(header: dict[str, Any]) -> None:
        body = json.loads(header["__metadata__"]["rawdiff_run"])
        change(body)
        header["__metadata__"]["rawdiff_run"] = json.dumps(body)

    return _header(inner)


SPOILED: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "short": lambda data: data[: len(data) // 2],
    "longer": lambda data: data + b"\0",
    "a bit": lambda data: data[:-3] + bytes([data[-3] ^ 1]) + data[-2:],
    "html": lambda data: b"<!doctype html><html></html>",
    "text": lambda data: b"not a run",
    "pickle": lambda data: b"\x80\x04K\x01.",
    "no metadata": _header(lambda header: header.pop("__metadata__")),
    "other metadata": _header(lambda header: header.update(__metadata__={"format": "pt"})),
    "no digest": _header(lambda header: header["__metadata__"].pop("sha256")),
    "seed": _body(lambda body: body["recipe"].update(seeds=[8])),
    "place": _body(lambda body: body.update(i=3)),
    "not json": _header(lambda header: header["__metadata__"].update(rawdiff_run="{")),
}


@pytest.mark.parametrize("case", SPOILED)
def test_a_spoiled_file_is_refused(model: Model, tmp_path: Path, case: str) -> None:
    run = prepared(model)
    next(run)
    path = run.save(tmp_path / "run.safetensors")
    path.write_bytes(SPOILED[case](path.read_bytes()))
    with pytest.raises(InputError) as caught:
        model.resume(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", ["nowhere.safetensors", "."])
def test_no_file_to_resume(model: Model, tmp_path: Path, missing: str) -> None:
    with pytest.raises(InputError):
        model.resume(tmp_path / missing)


RECIPE_KEYS = (
    "seeds",
    "loras",
    "prompt",
    "size",
    "guess",
    "sampler",
    "controls",
    "image",
    "repeats",
    "weights",
)


def test_a_file_of_another_version(model: Model, tmp_path: Path) -> None:
    """Whole and unchanged, but not of this format: refused by its number, not by an accident."""
    from rawdiff import saved

    def resigned(change: Callable[[dict[str, Any]], None]) -> Callable[[bytes], bytes]:
        def inner(header: dict[str, Any]) -> None:
            body = json.loads(header["__metadata__"]["rawdiff_run"])
            change(body)
            header["__metadata__"]["rawdiff_run"] = text = json.dumps(body)
            header["__metadata__"]["sha256"] = saved.digest(text, tensors)

        return _header(inner)

    path = prepared(model).save(tmp_path / "run.safetensors")
    from safetensors.torch import load_file

    whole = path.read_bytes()
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    path.write_bytes(resigned(lambda body: body.update(format=99))(whole))
    with pytest.raises(InputError, match="saved run of format 99, expected 3"):
        model.resume(path)
    path.write_bytes(resigned(lambda body: body.pop("draws"))(whole))
    with pytest.raises(InputError, match="not a saved run that this version reads"):
        model.resume(path)
    spoiled: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
        *((lambda body, key=key: body["recipe"].pop(key), f"recipe has no '{key}'") for key in RECIPE_KEYS),
        (lambda body: body["recipe"].update(guidance=["x"]), "recipe.guidance is"),
        (lambda body: body["recipe"].update(seeds=[1, 2]), "recipe.seeds has 2 for 1 pictures"),
        (lambda body: body["recipe"].update(loras=[{"name": "x"}]), "recipe.loras is"),
        (lambda body: body["recipe"].update(more=1), "recipe has an unknown 'more'"),
        (lambda body: body.update(recipe=[]), "recipe is a list, expected an object"),
        (lambda body: body.update(i=-1), "i of the saved run is '-1', expected a row's number"),
        (lambda body: body.update(i="1"), "i of the saved run is '1', expected a row's number"),
        (lambda body: body.update(draws=True), "draws of the saved run is 'True'"),
        (lambda body: body.update(restarts=[-1]), "restarts of the saved run is '-1'"),
        (lambda body: body.update(i=6), r"stands before row 6, restarted at \[\], of 5: no such run"),
        (lambda body: body.update(restarts=[77]), r"restarted at \[77\], of 5: no such run"),
    ]
    for change, words in spoiled:
        path.write_bytes(resigned(change)(whole))
        with pytest.raises(InputError, match=words):
            model.resume(path, say=silent)
    path.write_bytes(resigned(lambda body: body["recipe"].update(noise=0))(whole))
    with pytest.raises(InputError, match="differs in noise: noise is 0 in the file and 1 now"):
        model.resume(path)


CHANGED = {
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "text encoder": "text_encoder/model.safetensors",
    "tokenizer": "tokenizer/tokenizer_config.json",
    "scheduler": "scheduler/scheduler_config.json",
    "net": "controlnet_depth/diffusion_pytorch_model.safetensors",
}


@pytest.mark.parametrize("part", CHANGED)
def test_a_file_that_changed_since_it_was_loaded_is_told(tmp_path: Path, part: str) -> None:
    """Somebody trains on beside: the recipe would tell of weights that did not draw the picture."""
    loaded = rawdiff.load(small_folder(tmp_path / "small"), device="cpu", controls=["depth"])
    options = CONTROLLED if part == "net" else {}
    run = prepared(loaded, **options)
    saved = run.save(tmp_path / "run.safetensors")
    path = tmp_path / "small" / CHANGED[part]
    path.write_bytes(path.read_bytes() + b"\n")
    words = re.escape(f"{path}: changed since it was loaded: run again, or load the model again")
    with pytest.raises(WeightsError, match=words):
        prepared(loaded, **options)
    with pytest.raises(WeightsError, match=words):
        loaded.resume(saved, say=silent)
    if part == "net":
        finished(prepared(loaded))  # which has nothing to do with it


def test_a_file_that_was_touched_is_the_same(tmp_path: Path) -> None:
    loaded = rawdiff.load(small_folder(tmp_path / "small"), device="cpu")
    prepared(loaded)
    path = tmp_path / "small" / CHANGED["unet"]
    os.utime(path, (1, 1))
    prepared(loaded)
    path.unlink()
    with pytest.raises(WeightsError, match="is gone since it was loaded"):
        prepared(loaded)
