"""The front door: load, prepare, iterate, stop, look, change; maps, prompts, pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

import rawdiff
from rawdiff import Control, Model, Run
from rawdiff.errors import InputError, NonFiniteError, ResourceError, StaleStep, UsageError
from rawdiff.probes import Probe
from rawdiff.sampler import make_sampler
from tests.reference import END, error, grey_levels, hint, silent
from tests.small_models import small_folder, small_scheduler
from tests.small_runs import DEPTH, PROMPT, finished, prepared


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_folder(tmp_path_factory.mktemp("model") / "small")


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return rawdiff.load(folder, device="cpu")


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


def test_guidance_as_a_tensor(model: Model) -> None:
    options: dict[str, Any] = {"count": 2, "steps": 2}
    tensor, listed = (prepared(model, guidance=g, **options) for g in (torch.tensor([2.0, 5.0]), [2.0, 5.0]))
    assert tensor.recipe == listed.recipe
    assert torch.equal(finished(tensor).latents, finished(listed).latents)
    assert prepared(model, guidance=torch.tensor(3.0), **options).recipe["guidance"] == [3.0, 3.0]


def test_the_recipe_holds_the_scheduler(model: Model) -> None:
    """A scheduler given as an object: its class and config, as JSON knows them; a Sampler: its rows' digest."""

    def spec(sampler: Any, **options: Any) -> dict[str, Any]:
        found: dict[str, Any] = prepared(model, sampler=sampler, **options).recipe["sampler"]
        json.dumps(found, allow_nan=False)
        return found

    first = spec(small_scheduler("DPMSolverMultistepScheduler", solver_order=2))
    other = spec(small_scheduler("DPMSolverMultistepScheduler", solver_order=3))
    assert first["class"] == "DPMSolverMultistepScheduler"
    assert first["config"]["beta_schedule"] == "scaled_linear"
    assert first["config"]["lambda_min_clipped"] == "-inf"
    assert {key for key in first if first[key] != other[key]} == {"config"}
    assert {k for k in first["config"] if first["config"][k] != other["config"][k]} == {"solver_order"}
    assert spec("euler a")["class"] == "EulerAncestralDiscreteScheduler"
    assert spec(None)["class"] == "DDIMScheduler"
    four, five = (make_sampler(small_scheduler(), steps=steps) for steps in (4, 5))
    assert (
        spec(four, steps=None)["rows"] == spec(make_sampler(small_scheduler(), steps=4), steps=None)["rows"]
    )
    assert spec(four, steps=None)["rows"] != spec(five, steps=None)["rows"]


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

    def encode(encoder: Any, ids: torch.Tensor, clip_skip: int = 0, **added: Any) -> torch.Tensor:
        lengths.append(len(ids))
        return original(encoder, ids, clip_skip, **added)

    monkeypatch.setattr(text, "encode", encode)
    run = prepared(model, [PROMPT, "blue", PROMPT], seed=[1, 2, 3])
    assert lengths == [2, 1]
    cond = run.conditions.contexts[0].cond
    assert torch.equal(cond[0], cond[2])
    assert not torch.equal(cond[0], cond[1])


# Decoding.


def test_a_vae_that_fails_in_half_precision(model: Model, folder: Path) -> None:
    half = rawdiff.load(folder, device="cpu", dtype="bf16")
    said: list[str] = []
    run = prepared(half, say=said.append)
    list(run)
    good = run.image()
    assert said == []
    from rawdiff.nets import vae as nets_vae

    original = nets_vae.decode

    def overflowing(vae: Any, x: torch.Tensor) -> torch.Tensor:
        picture = original(vae, x)
        return picture * torch.nan if vae.dtype != torch.float32 else picture

    nets_vae.decode = overflowing
    try:
        assert run.image().size == good.size
        assert said == ["the VAE gave NaN in bfloat16: decoding once more in fp32"]
        assert half.vae.dtype == torch.bfloat16
    finally:
        nets_vae.decode = original


GAVE_OUT = {
    "gpu": torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB"),
    "linux": RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
    "windows": RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"),
    "python": MemoryError(),
}


@pytest.mark.parametrize("case", GAVE_OUT)
@pytest.mark.parametrize("place", ["unet", "vae", "text", "hints"])
def test_memory_that_gives_out(model: Model, place: str, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from rawdiff import nets

    run = prepared(model, depth=DEPTH, size=(48, 32))

    def give_out(*_: Any, **__: Any) -> None:
        raise GAVE_OUT[case]

    function = {"unet": "decode", "vae": "decode", "text": "encode", "hints": "embed_hint"}[place]
    monkeypatch.setattr(getattr(nets, "controlnet" if place == "hints" else place), function, give_out)
    early = place in ("text", "hints")

    def work() -> None:
        finished(prepared(model, depth=DEPTH, size=(48, 32)) if early else run).image()

    with pytest.raises(ResourceError, match=r"out of memory on cpu in .*: take a smaller size") as caught:
        work()
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, MemoryError)  # whoever halves a batch finds it
    assert caught.value.exit_code == 6
    monkeypatch.undo()
    finished(run).image()  # the run stands where it stood


def test_other_faults_are_not_memory(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    from rawdiff import nets

    def fail(*_: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(nets.unet, "decode", fail)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        next(prepared(model))


def test_a_picture_of_nan_is_an_error(model: Model) -> None:
    from rawdiff.decode import decode

    with pytest.raises(NonFiniteError, match="NaN or Inf in the decoded picture"):
        decode(model.vae, torch.full((1, 4, 4, 4), torch.nan), say=silent)
