"""The front door: load, prepare, iterate, stop, look, change, fork, save, resume."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

import rawdiff
from rawdiff import Control, Model, Run
from rawdiff.errors import (
    InputError,
    NonFiniteError,
    RawdiffError,
    SizeError,
    StaleStep,
    UsageError,
    WeightsError,
)
from rawdiff.probes import Probe
from tests.reference import END, error, grey_levels, hint, silent
from tests.small_models import small_controlnet, small_folder, small_scheduler, small_unet

PROMPT = "a red cube on grass"
DEPTH = np.linspace(0, 1, 96 * 64, dtype=np.float32).reshape(96, 64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_folder(tmp_path_factory.mktemp("model") / "small")


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return rawdiff.load(folder, device="cpu")


def prepared(model: Model, prompt: Any = PROMPT, **options: Any) -> Run:
    return model.prepare(prompt, **{"steps": 5, "seed": 7, "say": silent, "size": (48, 40), **options})


def finished(run: Run) -> Run:
    for _ in run:
        pass
    return run


# Iterating.


def test_the_way_in(model: Model, tmp_path: Path) -> None:
    """As the README has it."""
    PIL.Image.fromarray((DEPTH * 65535).astype(np.uint16)).save(tmp_path / "room.png")
    run = model.prepare(PROMPT, depth=tmp_path / "room.png", size=(48, 32), steps=4, seed=7, say=silent)
    seen = []
    for step in run:
        seen.append([step.x, step.uncond, step.cond, step.x0])
    run.image().save(tmp_path / "cube.png")
    assert len(seen) == 4
    with PIL.Image.open(tmp_path / "cube.png") as picture:
        assert picture.size == (32, 48)
    assert all(tensor.shape == (1, 4, 6, 4) for tensors in seen for tensor in tensors)
    assert not torch.equal(seen[0][3], seen[1][3])  # kept, each its own


def test_defaults(model: Model) -> None:
    run = model.prepare(PROMPT, say=silent)
    assert len(run) == 20
    assert run.size == (64, 64)
    assert run.recipe["guidance"] == [4.0]
    assert run.sampler.name == "DDIMScheduler"
    assert run.watch == ("x", "uncond", "cond", "guided", "x0")


def test_a_seed_nobody_chose_is_told(model: Model) -> None:
    first, second = prepared(model, seed=None, count=2), prepared(model, seed=None, count=2)
    assert first.seeds != second.seeds
    assert first.seeds[1] == first.seeds[0] + 1
    again = finished(prepared(model, seed=first.seeds[0], count=2))
    assert torch.equal(again.latents, finished(first).latents)


def test_the_same_seed_alone_and_in_a_batch(model: Model) -> None:
    batch = finished(prepared(model, seed=7, count=3, guidance=5.0))
    for k in range(3):
        alone = finished(prepared(model, seed=7 + k, guidance=5.0))
        assert grey_levels(batch.image(k), alone.image()) <= 1
        assert error(batch.latents[k], alone.latents[0]) <= END
    assert error(batch.latents[1], batch.latents[0]) > 0.1


def test_stopping_and_going_on(model: Model) -> None:
    straight = finished(prepared(model))
    run = prepared(model)
    for step in run:
        if step.index == 1:
            break
    assert run.state.i == 2
    assert next(run).index == 2
    rest = list(run)
    assert [step.index for step in rest] == [3, 4]
    assert torch.equal(run.latents, straight.latents)
    assert list(run) == []
    assert run.done


def test_looking_before_the_end(model: Model) -> None:
    run = prepared(model)
    with pytest.raises(UsageError, match="no step has been taken yet"):
        run.image()
    step = next(run)
    early = run.image()
    assert torch.equal(run.x0, step.x0)
    finished(run)
    assert torch.equal(run.x0, run.latents)
    assert grey_levels(early, run.image()) > 10


def test_nothing_is_kept_unless_watched(model: Model) -> None:
    run = prepared(model, watch=())
    first = next(run)
    assert first.x.shape == (1, 4, 6, 5)
    assert run.image().size == (40, 48)  # the x0 so far is there all the same
    next(run)
    with pytest.raises(StaleStep):
        _ = first.x
    watched = finished(prepared(model))
    assert torch.equal(finished(run).latents, watched.latents)


def test_going_back(model: Model) -> None:
    run = prepared(model, sampler="euler a")
    states = [run.state]
    for _ in run:
        states.append(run.state)
    end = run.latents
    run.state = states[2]
    assert run.state.i == 2
    assert not run.done
    assert torch.equal(finished(run).latents, end)


def test_interrupted(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle of a step: the run stands where it stood, its picture can be looked at, it goes on."""
    straight = finished(prepared(model))
    run = prepared(model)
    next(run)
    x0 = run.x0
    predict = run.setup.predict
    monkeypatch.setattr(type(predict), "__call__", interrupt)
    with pytest.raises(KeyboardInterrupt):
        next(run)
    monkeypatch.undo()
    assert run.state.i == 1
    assert torch.equal(run.x0, x0)
    assert run.image().size == (40, 48)
    assert torch.equal(finished(run).latents, straight.latents)


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def test_changing_latents_by_hand(model: Model) -> None:
    straight = finished(prepared(model, sampler="unipc"))

    def changed(forget: bool) -> Run:
        run = prepared(model, sampler="unipc")
        for step in run:
            if step.index == 2:
                run.change(run.latents * 0.7, forget=forget)
        return run

    kept, forgotten = changed(False), changed(True)
    assert kept.state.restarts == ()
    assert forgotten.state.restarts == (3,)
    assert error(kept.latents, straight.latents) > 1e-2
    assert error(kept.latents, forgotten.latents) > 1e-3
    with pytest.raises(UsageError, match="expected"):
        kept.change(torch.zeros(1, 4, 2, 2))


def test_a_constraint(model: Model) -> None:
    """Half of the picture held at zero, from the second step on."""
    run = prepared(model)
    next(run)

    def hold(x: torch.Tensor, row: Any) -> torch.Tensor:
        x = x.clone()
        x[..., :3] = 0.0
        return x

    run.constrain(hold)
    finished(run)
    assert float(run.latents[..., :3].abs().max()) == 0.0
    assert float(run.latents[..., 3:].abs().min()) > 0.0


def test_latents_given(model: Model) -> None:
    own = torch.randn(1, 4, 6, 5, generator=torch.Generator().manual_seed(7))
    straight = finished(prepared(model))
    assert torch.equal(finished(prepared(model, latents=own)).latents, straight.latents)
    assert torch.equal(finished(prepared(model, latents=own[0])).latents, straight.latents)
    assert error(finished(prepared(model, latents=own + 0.1)).latents, straight.latents) > 1e-2


def test_probe(folder: Path) -> None:
    probe = Probe()
    model = rawdiff.load(folder, device="cpu", controls=["depth"], probe=probe)
    run = prepared(model, depth=DEPTH, fit="crop", probe=probe, steps=2)
    finished(run).image()
    tree = probe.tree()
    parts = {"tokenizer", "text encoder", "unet", "vae", "controlnet depth"}
    assert set(tree.children["load"].children) == parts
    names = {"load", "hints", "tokens", "text encoder", "hint features", "step", "vae decode"}
    assert set(tree.children) == names
    inside = {"controlnet depth", "unet encode", "unet decode", "guidance", "sampler"}
    assert set(tree.children["step"].children) == inside
    assert all(node.total_ms > 0 for _, node in tree.walk())
    assert sum(node.total_ms for node in tree.children.values()) <= tree.total_ms


# Maps and sizes.


@pytest.mark.parametrize("form", ["path", "npy", "array", "tensor", "pil"])
def test_maps_of_every_form(model: Model, tmp_path: Path, form: str) -> None:
    coarse = (DEPTH[::2, ::2] * 65535).round() / 65535
    depth = coarse.astype(np.float32)
    image = PIL.Image.fromarray((depth * 65535).round().astype(np.uint16))
    image.save(tmp_path / "depth.png")
    np.save(tmp_path / "depth.npy", depth)
    source: Any = {
        "path": str(tmp_path / "depth.png"),
        "npy": tmp_path / "depth.npy",
        "array": depth,
        "tensor": torch.from_numpy(depth),
        "pil": image,
    }[form]
    run = prepared(model, depth=source, size=(48, 32))
    expected = torch.from_numpy(depth).expand(3, -1, -1)
    assert torch.allclose(run.hints[0].tensor, expected, atol=1e-6)
    assert run.conditions.hints[0].shape == (1, 3, 48, 32)


def test_the_size_follows_the_map(model: Model) -> None:
    run = prepared(model, depth=DEPTH, size=None)  # 96x64 pixels, about 64x64 of area
    assert run.size == (72, 48)
    with pytest.raises(InputError, match="another aspect"):
        prepared(model, depth=DEPTH, size=(48, 48))
    assert prepared(model, depth=DEPTH, size=(48, 48), fit="pad").size == (48, 48)


def test_short_and_long_form_are_one(model: Model) -> None:
    short = finished(prepared(model, depth=DEPTH, size=(48, 32)))
    long = finished(prepared(model, controls=[Control("depth", DEPTH)], size=(48, 32)))
    assert torch.equal(short.latents, long.latents)
    without = finished(prepared(model, size=(48, 32)))
    assert error(without.latents, short.latents) > 100 * END


def test_derived_hints_and_two_of_a_kind(model: Model) -> None:
    controls = [
        Control("depth", DEPTH),
        Control("depth", DEPTH[::-1].copy(), weight=0.5, start=0.2, end=0.9),
        Control("normal", DEPTH, derive=True),
    ]
    run = finished(prepared(model, controls=controls, size=(48, 32)))
    assert [hint.kind for hint in run.hints] == ["depth", "depth", "normal"]
    assert [entry["weight"] for entry in run.recipe["controls"]] == [1.0, 0.5, 1.0]
    assert [row.control[1] for row in run.plan.rows] == [0.0, 0.5, 0.5, 0.5, 0.0]


def test_nets_from_elsewhere(model: Model, folder: Path) -> None:
    map_ = hint((48, 40), 3)
    by_kind = rawdiff.load(folder, device="cpu", nets={"scribble": folder / "controlnet_depth"})
    one = finished(prepared(by_kind, controls=[Control("scribble", map_)]))
    two = finished(prepared(model, controls=[Control("any", map_, net=folder / "controlnet_depth")]))
    three = finished(prepared(model, controls=[Control("any", map_, net=model.net("depth"))]))
    assert torch.equal(one.latents, two.latents)
    assert torch.equal(one.latents, three.latents)


# What is refused, and how.

REFUSED: dict[str, tuple[dict[str, Any], type[RawdiffError], str]] = {
    "size": ({"size": (50, 40)}, SizeError, "size 40x50 is not a multiple of 8: use 40x48 or 40x56"),
    "size form": ({"size": 512}, UsageError, "size 512"),
    "steps": ({"steps": 0}, UsageError, "steps 0"),
    "guidance": ({"guidance": float("nan")}, UsageError, "guidance nan"),
    "guidance text": ({"guidance": "7"}, UsageError, "guidance '7'"),
    "guidance list": ({"guidance": [1.0, 2.0]}, UsageError, "guidance: 2 given for 1 images"),
    "rescale": ({"rescale": 2.0}, UsageError, r"rescale 2\.0"),
    "clip skip": ({"clip_skip": 3}, UsageError, "clip skip 3: this text encoder has 3 layers"),
    "seed": ({"seed": 2**32}, UsageError, "seed 4294967296"),
    "seed after": ({"seed": 2**32 - 1, "count": 2}, UsageError, "seed 4294967296"),
    "count": ({"count": 0}, UsageError, "count 0"),
    "prompt": ({"prompt": None}, UsageError, "prompt None"),
    "no prompt": ({"prompt": []}, UsageError, r"prompt \[\]"),
    "surrogate": ({"prompt": "cube \ud800"}, UsageError, "surrogate"),
    "nul": ({"prompt": "cube \0"}, UsageError, "NUL"),
    "negative": ({"negative": ["a", "b"]}, UsageError, "negative prompt: 2 given for 1 images"),
    "sampler": ({"sampler": "eular"}, UsageError, "sampler 'eular' is not known: did you mean"),
    "sampler form": ({"sampler": 3}, UsageError, "sampler 3: expected a name"),
    "eta": ({"eta": float("nan")}, UsageError, "eta nan"),
    "eta elsewhere": ({"eta": 0.5, "sampler": "euler"}, UsageError, "eta"),
    "two schedules": ({"timesteps": [900, 500]}, UsageError, "steps and timesteps"),
    "watch": ({"watch": ("eps",)}, UsageError, "watch 'eps'"),
    "latents": ({"latents": torch.zeros(1, 4, 2, 2)}, UsageError, r"latents of shape \[1, 4, 2, 2\]"),
    "latents nan": ({"latents": torch.full((1, 4, 6, 5), torch.nan)}, InputError, "NaN"),
    "no such net": (
        {"canny": DEPTH},
        UsageError,
        "control 'canny': this model names no such net .*depth, normal",
    ),
    "no control": ({"controls": ["depth"]}, UsageError, "controls holds a str"),
    "no source": ({"controls": [Control("depth", None)]}, UsageError, "no source"),
    "window": ({"controls": [Control("depth", DEPTH, start=0.6, end=0.2)]}, UsageError, "control window"),
    "no map": ({"depth": "nowhere.png"}, InputError, "nowhere.png"),
    "constant map": ({"depth": DEPTH * 0}, InputError, "constant"),
    "no net": ({"controls": [Control("depth", DEPTH, net="./nowhere")]}, WeightsError, "nowhere"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(model: Model, case: str) -> None:
    options, kind, words = REFUSED[case]
    with pytest.raises(kind, match=words) as caught:
        prepared(model, **{"size": (48, 32) if "depth" in str(options) else (48, 40), **options})
    assert "\n" not in str(caught.value)


def test_a_typing_mistake_is_an_error(model: Model) -> None:
    with pytest.raises(TypeError, match="guidence"):
        model.prepare(PROMPT, guidence=3.0)  # type: ignore[call-arg]


def test_a_net_of_another_family(model: Model) -> None:
    net = small_controlnet(small_unet(0, shape="deep"), 3)
    with pytest.raises(WeightsError, match="block_out_channels"):
        prepared(model, controls=[Control("any", hint((48, 40), 0), net=net)])


def test_an_inpainting_unet_is_refused(model: Model) -> None:
    with pytest.raises(WeightsError, match="9 channels"):
        Model(
            source=model.source, unet=small_unet(0, in_channels=9), vae=model.vae, scheduler=model.scheduler,
            text_encoder=model.text_encoder, tokenizer=model.tokenizer, device=model.device, dtype=model.dtype,
            defaults=model.defaults,
        )  # fmt: skip


def test_half_precision_on_a_cpu_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="fp16 on a CPU"):
        rawdiff.load(folder, device="cpu", dtype="fp16")


# Prompts.


def test_what_is_cut_is_said(model: Model) -> None:
    said: list[str] = []
    words = " ".join(["cube"] * 80 + ["sphere", "blue"])
    run = prepared(model, words, say=said.append)
    assert len(said) == 1
    assert said[0].startswith("prompt of 84 tokens cut to 77; left out: 'cube")
    assert said[0].endswith("sphere blue'")
    shorter = prepared(model, " ".join(["cube"] * 75))
    assert torch.equal(run.conditions.contexts[0].cond, shorter.conditions.contexts[0].cond)
    prepared(model, " ".join(["cube"] * 75), say=said.append)  # exactly full: nothing to say
    assert len(said) == 1


def test_a_negative_prompt_without_guidance_is_said(model: Model) -> None:
    said: list[str] = []
    prepared(model, negative="blue", guidance=1.0, say=said.append)
    assert said == ["the negative prompt has no effect: guidance is off"]


def test_the_same_text_is_encoded_once(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    from rawdiff.nets import text

    lengths = []
    original = text.encode

    def encode(encoder: Any, ids: torch.Tensor, clip_skip: int = 0) -> torch.Tensor:
        lengths.append(len(ids))
        return original(encoder, ids, clip_skip)

    monkeypatch.setattr(text, "encode", encode)
    run = prepared(model, [PROMPT, "blue", PROMPT], seed=[1, 2, 3])
    assert lengths == [2, 1]
    cond = run.conditions.contexts[0].cond
    assert torch.equal(cond[0], cond[2])
    assert not torch.equal(cond[0], cond[1])


# Forks, and runs on disk.


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


def test_resumed_onto_a_prepared_run(model: Model, tmp_path: Path) -> None:
    run = prepared(model)
    next(run)
    path = run.save(tmp_path / "run.safetensors")
    assert model.resume(path, run=prepared(model)).state.i == 1
    with pytest.raises(
        InputError, match=r"differs in guidance and seeds: guidance is \[4.0\] in the file and \[5.0\] now"
    ):
        model.resume(path, run=prepared(model, seed=8, guidance=5.0))


def test_resumed_with_other_weights(model: Model, tmp_path: Path) -> None:
    run = prepared(model)
    next(run)
    path = run.save(tmp_path / "run.safetensors")
    other = rawdiff.load(small_folder(tmp_path / "other", seed=5, nets=()), device="cpu")
    with pytest.raises(InputError, match=r"differs in weights: weights text_encoder/model.safetensors is "):
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
        InputError, match=r"differs in controlnet depth: controlnet depth controlnet_depth/diffusion"
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
    with pytest.raises(InputError, match="saved run of format 99, expected 1"):
        model.resume(path)
    path.write_bytes(resigned(lambda body: body.pop("draws"))(whole))
    with pytest.raises(InputError, match="not a saved run that this version reads"):
        model.resume(path)
    path.write_bytes(resigned(lambda body: body["recipe"].update(noise=0))(whole))
    with pytest.raises(InputError, match="differs in noise: noise is 0 in the file and 1 now"):
        model.resume(path)


# Decoding.


def test_a_vae_that_fails_in_half_precision(model: Model, folder: Path) -> None:
    half = rawdiff.load(folder, device="cpu", dtype="bf16")
    said: list[str] = []
    run = prepared(half, say=said.append)
    list(run)
    good = run.image()
    assert said == []
    from rawdiff import decode

    original = decode.nets_vae.decode

    def overflowing(vae: Any, x: torch.Tensor) -> torch.Tensor:
        picture = original(vae, x)
        return picture * torch.nan if vae.dtype != torch.float32 else picture

    decode.nets_vae.decode = overflowing
    try:
        assert run.image().size == good.size
        assert said == ["the VAE gave NaN in bfloat16: decoding once more in fp32"]
        assert half.vae.dtype == torch.bfloat16
    finally:
        decode.nets_vae.decode = original


def test_a_picture_of_nan_is_an_error(model: Model) -> None:
    from rawdiff.decode import decode

    with pytest.raises(NonFiniteError, match="NaN or Inf in the decoded picture"):
        decode(model.vae, torch.full((1, 4, 4, 4), torch.nan), say=silent)
