"""Runs with LoRAs: equal to diffusers over weights merged by hand, and by peft; every run draws with its own."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import rawdiff
from rawdiff import Model, Probe, Run, images
from rawdiff.errors import InputError, UsageError, WeightsError
from rawdiff.weights import read_lora
from tests import small_runs
from tests.lora_files import (
    Changes,
    Networks,
    State,
    kohya,
    peft,
    product,
    random_changes,
    same,
    state,
    write,
)
from tests.reference import END, Reference, check, error, load, matters, reference, silent
from tests.small_models import small_folder, small_scheduler

SIZE = (48, 40)
PROMPT = "a red cube on grass"
CALL = {**small_runs.CALL, "num_inference_steps": 5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_folder(tmp_path_factory.mktemp("model") / "small", nets=())


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return load(folder)


@pytest.fixture(scope="module")
def pristine(model: Model) -> State:
    return state(networks(model))


@pytest.fixture(autouse=True)
def weights_as_in_the_file(model: Model, pristine: State) -> Iterator[None]:
    """Whatever a test did: with LoRAs taken off every weight is what it was, to the bit."""
    yield
    model.put_on(model.unet, ())
    assert same(state(networks(model)), pristine)


def networks(model: Model) -> Networks:
    return {"unet": model.unet, "text_encoder": model.text_encoder}


def prepared(model: Model, *loras: Any, **options: Any) -> Run:
    return small_runs.called(model, PROMPT, loras=loras, **{"steps": 5, **options})


def finished(run: Run) -> Tensor:
    list(run)
    return run.latents


@pytest.fixture(scope="module")
def changes(model: Model) -> list[Changes]:
    """One of attention alone and one of everything, convolutions too."""
    nets = networks(model)
    return [random_changes(nets, 1), random_changes(nets, 2, layers=".", strength=0.1)]


@pytest.fixture(scope="module")
def files(changes: list[Changes], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("loras")
    return [write(folder / f"{k}.safetensors", kohya(one)) for k, one in enumerate(changes)]


def merged_by_hand(model: Model, *pairs: tuple[Changes, float]) -> Model:
    """A model of its own whose weights have the products added by plain arithmetic."""
    model.put_on(model.unet, ())  # a copy of the weights in the file
    other = copy.copy(model)
    other.unet, other.text_encoder = copy.deepcopy(model.unet), copy.deepcopy(model.text_encoder)
    nets = networks(other)
    with torch.no_grad():
        for changes, scale in pairs:
            for (part, name), change in changes.items():
                layer = nets[part].get_submodule(name)
                layer.weight += (scale * change.scale * product(change)).reshape(layer.weight.shape)
    return other


def merged_reference(model: Model, *pairs: tuple[Changes, float]) -> Reference:
    return reference(merged_by_hand(model, *pairs), small_scheduler(), PROMPT, **CALL)


# ------------------------------------------------------------------------------------------------- parity


def test_one(model: Model, files: list[Path], changes: list[Changes]) -> None:
    theirs = merged_reference(model, (changes[0], 0.8))
    run = check(prepared(model, (files[0], 0.8)), theirs)
    matters(run, prepared(model))
    matters(run, prepared(model, (files[0], 0.7)))
    matters(run, prepared(model, (files[0], -0.8)))


def test_two_with_convolutions(model: Model, files: list[Path], changes: list[Changes]) -> None:
    pairs = [(files[0], 0.5), (files[1], 0.9)]
    theirs = merged_reference(model, (changes[0], 0.5), (changes[1], 0.9))
    run = check(prepared(model, *pairs), theirs)
    for left in ([], pairs[:1], pairs[1:]):
        matters(run, prepared(model, *left))
    assert torch.equal(finished(prepared(model, *pairs[::-1])), run.latents)


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_each_network_counts(model: Model, changes: list[Changes], tmp_path: Path, part: str) -> None:
    own = {key: change for key, change in changes[0].items() if key[0] == part}
    path = write(tmp_path / "x.safetensors", kohya(own))
    run = check(prepared(model, path), merged_reference(model, (own, 1.0)))
    matters(run, prepared(model))


def test_a_batch_with_negative_and_clip_skip(model: Model, files: list[Path], changes: list[Changes]) -> None:
    prompts, negatives = [PROMPT, "the blue sphere"], ["blue", ""]
    call = {**CALL, "seeds": [3, 4], "negative_prompt": negatives, "clip_skip": 1}
    other = merged_by_hand(model, (changes[0], 1.0))
    theirs = reference(other, small_scheduler(), prompts, **call)
    options: dict[str, Any] = {"size": SIZE, "steps": 5, "guidance": 5.0, "seed": [3, 4], "clip_skip": 1}
    options |= {"sampler": small_scheduler(), "say": silent, "negative": negatives}
    run = check(model.prepare(prompts, loras=[files[0]], **options), theirs)
    matters(run, model.prepare(prompts, **options))


def test_against_peft(model: Model, tmp_path: Path) -> None:
    """diffusers' own way, the factors beside each layer; its readers lose alphas, so that is the rank here."""
    pytest.importorskip("peft")
    from diffusers import StableDiffusionPipeline

    held, _ = peft(random_changes(networks(model), 1, alpha=float))
    names = {
        key.replace(".text_model.", "."): value for key, value in held.items()
    }  # as transformers has it now
    path = write(tmp_path / "x.safetensors", names)
    other = merged_by_hand(model)
    pipeline = StableDiffusionPipeline(
        vae=other.vae, text_encoder=other.text_encoder, tokenizer=other.tokenizer, unet=other.unet,
        scheduler=small_scheduler(), safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_lora_weights(str(tmp_path), weight_name=path.name, adapter_name="x")
    pipeline.set_adapters(["x"], [0.8])
    found = pipeline(
        PROMPT, height=SIZE[0], width=SIZE[1], num_inference_steps=5, guidance_scale=5.0, output_type="latent",
        generator=torch.Generator().manual_seed(3),
    ).images  # fmt: skip
    run = prepared(model, (path, 0.8))
    assert error(finished(run), found) <= END
    matters(run, prepared(model))


# --------------------------------------------------------------------------- every run draws with its own


def test_runs_take_turns(model: Model, files: list[Path]) -> None:
    """What was computed from the weights once (keys and values, tables of times) is right again when they are."""
    sets: list[list[Any]] = [[(files[0], 0.8)], [], [(files[1], 1.0), (files[0], -0.5)]]
    straight = [finished(prepared(model, *loras, steps=3)) for loras in sets]
    runs = [prepared(model, *loras, steps=3) for loras in sets]
    for steps in zip(*runs, strict=True):
        assert len({float(step.cond.sum()) for step in steps}) == 3
    for run, expected in zip(runs, straight, strict=True):
        assert torch.equal(run.latents, expected)
    assert error(straight[0], straight[1]) >= 100 * END


def test_without_the_change_of_turns_a_run_would_be_another(
    model: Model, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = prepared(model, files[0])
    straight = finished(run.fork())
    prepared(model)
    monkeypatch.setattr(type(model.adapters), "set", lambda *_: None)
    assert error(finished(run), straight) >= 100 * END
    monkeypatch.undo()
    model.adapters.set(())


def test_runs_of_one_kind_merge_once(model: Model, files: list[Path]) -> None:
    def merges(*loras: Any) -> int:
        probe = Probe("cpu")
        list(prepared(model, *loras, probe=probe))
        return probe.table().count("loras")

    assert [merges((files[0], 0.8)), merges((files[0], 0.8)), merges(), merges()] == [1, 0, 1, 0]
    assert model.adapters.applied == ()


def test_set_by_hand(model: Model, files: list[Path]) -> None:
    """Nobody's LoRAs are taken off in silence, and no run goes on with others."""
    run = prepared(model, files[0])
    next(run)
    model.adapters.set([(read_lora(files[1]), 1.0)])
    for way in (lambda: next(run), lambda: prepared(model), lambda: prepared(model, files[0])):
        with pytest.raises(
            UsageError, match=r"LoRAs were changed by hand \(adapters.set\): call model.adapters.cl"
        ):
            way()
    model.adapters.clear()  # as it says
    straight = finished(prepared(model, files[0]))
    assert torch.equal(finished(run), straight)


def test_what_fails_leaves_none_on(model: Model, pristine: State, files: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="clip skip 50"):
        prepared(model, files[0], clip_skip=50)
    assert same(state(networks(model)), pristine)
    run = prepared(model, files[0])
    assert not same(state(networks(model)), pristine)
    with pytest.raises(UsageError, match="clip skip 50"):  # where another's were on
        prepared(model, files[1], clip_skip=50)
    assert same(state(networks(model)), pristine)
    next(run)
    assert not same(state(networks(model)), pristine)
    saved = run.save(tmp_path / "half.run")
    model.put_on(model.unet, ())
    with pytest.raises(UsageError, match="watch"):
        model.resume(saved, watch=("nothing",), sampler=small_scheduler(), say=silent)
    assert same(state(networks(model)), pristine)
    model.adapters.set([(read_lora(files[1]), 1.0)])  # by hand, and so left alone
    with pytest.raises(UsageError, match="changed by hand"):
        prepared(model, files[0])
    assert [lora.path for lora, _ in model.adapters.applied] == [files[1]]
    model.adapters.clear()


def test_a_finished_runs_stay_until_they_are_taken_off(
    model: Model, pristine: State, files: list[Path]
) -> None:
    list(prepared(model, files[0]))
    assert not same(state(networks(model)), pristine)
    model.put_on(model.unet, ())
    assert same(state(networks(model)), pristine)


def test_saved_and_resumed(model: Model, folder: Path, files: list[Path], tmp_path: Path) -> None:
    run = prepared(model, (files[0], 0.8), sampler="unipc")
    next(run)
    next(run)
    path = run.save(tmp_path / "half.run")
    again = rawdiff.load(folder, device="cpu").resume(path, say=silent)
    assert again.recipe == json.loads(json.dumps(dict(run.recipe)))
    straight = finished(run)
    assert torch.equal(finished(again), straight)
    told = [images.read_recipe(one.save_image(tmp_path / f"{k}.png")) for k, one in enumerate((run, again))]
    assert told[0] == told[1]
    assert told[0]["made"]["loras"] == [str(files[0])]
    prepared(model)
    assert torch.equal(finished(model.resume(path, say=silent)), straight)
    last = files[0].read_bytes()
    try:
        write(files[0], kohya(random_changes(networks(model), 9)))
        with pytest.raises(InputError, match=r"half.run: the saved run differs in loras"):
            model.resume(path, say=silent)
        files[0].unlink()
        with pytest.raises(WeightsError, match="no such file or directory"):
            model.resume(path, say=silent)
    finally:
        files[0].write_bytes(last)


def test_a_changed_file_is_read_again(model: Model, changes: list[Changes], tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", kohya(changes[0]))
    run = prepared(model, path)
    first = finished(run.fork())
    assert model.extras.loras([path])[0].lora is model.adapters.applied[0][0]  # read once
    write(path, kohya(random_changes(networks(model), 9)))
    other = prepared(model, path)
    assert error(finished(other), first) >= 100 * END
    assert torch.equal(finished(run), first)


# --------------------------------------------------------------------------------------- names, accounts


def test_a_config_that_appears_is_read(model: Model, tmp_path: Path) -> None:
    own = {key: change for key, change in random_changes(networks(model), 1).items() if key[0] == "unet"}
    held = {
        f"base_model.model.{name}.lora_{letter}.weight": value
        for (_, name), change in own.items()
        for letter, value in (("A", change.down), ("B", change.up))
    }
    path = write(tmp_path / "adapter_model.safetensors", held)
    first = prepared(model, path)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "lora_alpha": 8}')
    second = prepared(model, path)
    assert first.recipe["loras"][0]["config"] is None
    assert second.recipe["loras"][0]["config"] is not None
    assert error(finished(second), finished(first)) >= 100 * END


def test_a_name_of_the_models_own(folder: Path, files: list[Path], tmp_path: Path) -> None:
    import shutil

    copied = tmp_path / "model"
    shutil.copytree(folder, copied)
    (copied / "loras").mkdir()
    shutil.copy(files[0], copied / "loras" / "paper.safetensors")
    table = json.loads((copied / "rawdiff.json").read_text())
    (copied / "rawdiff.json").write_text(json.dumps({**table, "loras": {"paper": "loras/paper.safetensors"}}))
    named = load(copied)
    run = prepared(named, ("paper", 0.7))
    assert torch.equal(finished(run), finished(prepared(named, (files[0], 0.7))))
    assert run.recipe["loras"][0]["name"] == "paper"
    with pytest.raises(
        UsageError, match=r"lora 'papr': this model brings none .* \(it has paper\); .* \./papr"
    ):
        prepared(named, "papr")


@pytest.mark.parametrize(
    ("loras", "words"),
    [
        ({"neon": "../neon.safetensors"}, "is no folder inside a model"),
        ({"a.b": "neon.safetensors"}, "the name 'a.b'; expected letters"),
        ({"none": "neon.safetensors"}, "the name 'none'"),
        (["neon"], "loras must map names to files"),
        ({"neon": 5}, "loras must map names to files"),
    ],
)
def test_a_model_that_names_its_loras_wrongly(folder: Path, tmp_path: Path, loras: Any, words: str) -> None:
    from rawdiff.weights import read_defaults

    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_bytes((folder / "unet" / "config.json").read_bytes())
    table = {"name": "x", "native_size": [64, 64], "loras": loras}
    (tmp_path / "rawdiff.json").write_text(json.dumps(table))
    with pytest.raises(WeightsError, match=words):
        read_defaults(tmp_path)


WRONG: list[tuple[Any, str]] = [
    ("x.safetensors", r"loras 'x.safetensors': expected a list"),
    ([5], "loras: found 5, expected a path, a name, or a pair of one and its scale"),
    ([("x.safetensors", 1, 2)], "expected a path, a name, or a pair"),
    ([""], "expected a path, a name, or a pair"),
    ([("x.safetensors", "much")], "scale of lora x.safetensors 'much': expected a finite number"),
    ([("x.safetensors", float("nan"))], "scale of lora x.safetensors nan: expected a finite number"),
    (["none-of-it"], r"this model brings none of that name \(it has none\)"),
]


@pytest.mark.parametrize(("loras", "words"), WRONG)
def test_what_is_no_lora(model: Model, loras: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        model.prepare(PROMPT, loras=loras, say=silent)


def test_one_that_does_not_fit_is_refused_before_anything(model: Model, tmp_path: Path) -> None:
    from tests.lora_files import small_networks

    path = write(tmp_path / "x.safetensors", kohya(random_changes(small_networks(shape="deep"), 5)))
    with pytest.raises(WeightsError, match="layers are not in this model"):
        prepared(model, path)
    assert model.adapters.applied == ()


def test_copies_of_weights_count_in_the_estimate(
    model: Model, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rawdiff.nets.memory import least_bytes

    needed = least_bytes(model.unet.config, model.vae.config, SIZE, 1, 4)
    copies = model.adapters.more_bytes([(read_lora(files[0]), 1.0)])
    layers = set(random_changes(networks(model), 1))
    nets = networks(model)
    assert copies == sum(4 * nets[part].get_submodule(name).weight.numel() for part, name in layers)
    monkeypatch.setattr("rawdiff.weights.devices.free_bytes", lambda device: needed + copies - 1)
    prepared(model)
    with pytest.raises(UsageError, match="take a smaller size"):
        prepared(model, files[0])
    monkeypatch.setattr("rawdiff.weights.devices.free_bytes", lambda device: needed + copies)
    prepared(model, files[0])
