"""A VAE swapped by itself: its scale, its hash in the recipe, remade and saved, and refused where it does not fit."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import rawdiff
from rawdiff import Model, recipe, weights
from rawdiff.errors import InputError, UsageError, WeightsError
from tests import original_keys
from tests.checkpoints import UNET, original, small_checkpoint, write, write_header
from tests.cli_run import pixels
from tests.cli_run import rawdiff as command
from tests.reference import check, hint, matters, reference, silent
from tests.small_hub import SmallHub
from tests.small_models import small_folder, small_scheduler, small_unet, small_vae

pytest_plugins = ["tests.cli_fixtures", "tests.hub_fixtures"]

SCALE = 0.31


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that is a VAE and nothing else, of a scale of its own."""
    folder = tmp_path_factory.mktemp("vaes") / "other"
    small_vae(77, scaling_factor=SCALE).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def swapped(model: Path, other: Path) -> Model:
    return rawdiff.load(model, vae=other, device="cpu")


def drawn(model: Model, **options: Any) -> Any:
    given = {"size": (64, 64), "steps": 2, "seed": 3, "say": silent, **options}
    run = model.prepare("a red cube", **given)
    list(run)
    return run


def picture(run: Any) -> np.ndarray:
    return np.asarray(run.image())


def test_the_other_vae_decodes_and_the_rest_stays(model: Path, other: Path, swapped: Model) -> None:
    own = rawdiff.load(model, device="cpu")
    assert swapped.vae.config.scaling_factor == SCALE
    for name, value in small_vae(77).state_dict().items():
        assert torch.equal(swapped.vae.state_dict()[name], value), name
    with_other, with_own = drawn(swapped), drawn(own)
    assert torch.equal(with_other.latents, with_own.latents)
    assert not np.array_equal(picture(with_other), picture(with_own))


def test_parity_with_its_own_scale(swapped: Model, model: Path) -> None:
    """Image to image, where it both encodes and decodes."""
    own = small_scheduler()
    image = hint((64, 64), 1)
    options: dict[str, Any] = {"steps": 6, "guidance": 5.0, "strength": 0.6, "image": image, "sampler": own}
    run = swapped.prepare("a red cube", size=(64, 64), seed=3, say=silent, **options)
    theirs = reference(
        swapped, own, "a red cube", seeds=[3], size=(64, 64), image=image,
        strength=0.6, num_inference_steps=6, guidance_scale=5.0,
    )  # fmt: skip
    run = check(run, theirs)
    mine = rawdiff.load(model, device="cpu")
    matters(run, mine.prepare("a red cube", size=(64, 64), seed=3, say=silent, **options))


@pytest.mark.parametrize("form", ["folder in a model", "plain file", "original file", "ckpt"])
def test_every_form(model: Path, other: Path, swapped: Model, tmp_path: Path, form: str) -> None:
    vae = small_vae(77, scaling_factor=SCALE)
    if form == "folder in a model":
        source: Any = shutil.copytree(model, tmp_path / "whole")
        shutil.rmtree(tmp_path / "whole" / "vae")
        shutil.copytree(other, tmp_path / "whole" / "vae")
    else:
        configs = tmp_path / "configs"
        shutil.copytree(other, configs / "vae")
        named = vae.state_dict() if form == "plain file" else original("vae", vae)
        suffix = "ckpt" if form == "ckpt" else "safetensors"
        source = f"{write(tmp_path / f'vae.{suffix}', named)}#config={configs}"
    found = rawdiff.load(model, vae=source, device="cpu", say=silent)
    assert found.vae.config.scaling_factor == SCALE
    assert np.array_equal(picture(drawn(found)), picture(drawn(swapped)))


def test_a_file_without_a_vae_draws_with_another(
    model: Path, other: Path, swapped: Model, tmp_path: Path
) -> None:
    held = {
        name: value for name, value in small_checkpoint().items() if not name.startswith("first_stage_model.")
    }
    file = write(tmp_path / "model.safetensors", held)
    assert any(name.startswith(UNET) for name in held)
    with pytest.raises(WeightsError, match="holds no vae"):
        rawdiff.load(f"{file}#config={model}", device="cpu")
    found = rawdiff.load(f"{file}#config={model}", vae=other, device="cpu", say=silent)
    assert np.array_equal(picture(drawn(found, guidance=4.0)), picture(drawn(swapped)))


def test_a_file_by_itself_is_of_the_models_family(tmp_path: Path, model: Path) -> None:
    """Its scale is SDXL's beside an SDXL, without a word, and SD1's, with one, beside a model of its own."""
    vae = write_header(tmp_path / "vae.safetensors", dict(original_keys.vae()))
    scales = []
    for family in ("sd1", "sd2", "sdxl"):
        path = write_header(tmp_path / f"{family}.safetensors", original_keys.checkpoint(family))
        notes: list[str] = []
        opened = weights.with_vae(weights.open_source(path), str(vae), say=notes.append)
        scales.append(weights.read_config(opened, "vae")["scaling_factor"])
        assert notes == []
    assert scales == [0.18215, 0.18215, 0.13025]
    notes = []
    weights.with_vae(weights.open_source(model), str(vae), say=notes.append)
    assert len(notes) == 1
    assert "add #sdxl" in notes[0]


def beside(folder: Path, **changes: Any) -> Path:
    """A VAE's file with a config beside it, as one finds it in the folder of a model."""
    folder.mkdir(exist_ok=True)
    vae = small_vae(77, scaling_factor=SCALE)
    file = write(folder / "mine.safetensors", vae.state_dict())
    vae.save_config(folder)
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    return file


def test_a_config_beside_a_file_is_its_own(here: Path, swapped: Model) -> None:
    """Its scale and its form, said on one line; in the recipe with its hash."""
    file = beside(here / "vae")
    told: list[str] = []
    found = rawdiff.load(os.environ["RAWDIFF_MODEL"], vae=file, device="cpu", say=told.append)
    assert told == [
        f"{file}: with the config.json beside it (latents scaled by 0.31); #sd1, #sd2 or #sdxl is without"
    ]
    assert found.vae.config.scaling_factor == SCALE
    assert np.array_equal(picture(drawn(found)), picture(drawn(swapped)))
    words = ["gen", "-p", "a red cube", "--size", "64x64", "--steps", "1", "--seed", "3"]
    [path] = command(*words, "--vae", file).ok().lines
    assert {"other vae/config.json", "other vae/mine.safetensors"} <= recipe.read(path)["picture"][
        "weights"
    ].keys()
    [again] = command("gen", "--from", path).ok().lines
    assert recipe.read(again)["id"] == recipe.read(path)["id"]
    beside(here / "vae", scaling_factor=0.5)
    changed = command("gen", "--from", path)
    assert changed.code == 4
    assert "other vae/config.json has SHA-256" in changed.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("text", "option", "why"),
    [
        (
            '{"_class_name": "UNet2DConditionModel"}',
            "",
            "class 'UNet2DConditionModel', expected AutoencoderKL; it is a",
        ),
        ("{", "", "not valid JSON"),
        (None, "#sdxl", "#sdxl was asked for"),
    ],
)
def test_a_config_beside_a_file_that_is_not_used(
    tmp_path: Path, model: Path, text: str | None, option: str, why: str
) -> None:
    """For which reason is said, beside a model of a family and beside one of its own."""
    file = beside(tmp_path)
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    sdxl = write_header(tmp_path / "sdxl.safetensors", original_keys.checkpoint("sdxl"))
    for source in (sdxl, model):
        notes: list[str] = []
        opened = weights.with_vae(weights.open_source(source), f"{file}{option}", say=notes.append)
        expected = 0.13025 if source is sdxl or option else 0.18215
        assert weights.read_config(opened, "vae")["scaling_factor"] == expected
        assert f"{file}: the config.json beside it is not used: " in notes[0]
        assert why in notes[0]
        assert len(notes) == 1 + (source is model and not option)


HARMS: dict[str, Any] = {
    "missing": lambda held: held.pop("decoder.conv_in.bias"),
    "misshapen": lambda held: held.update({"decoder.conv_in.bias": torch.zeros(3)}),
    "not finite": lambda held: held["decoder.conv_in.bias"].fill_(float("nan")),
    "too much": lambda held: held.update({"something.weight": torch.zeros(3)}),
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_dry_run_refuses_what_the_run_refuses(here: Path, harm: str) -> None:
    """The same line and exit code, of gen and of a batch."""
    file = beside(here / "vae")
    held = load_file(file)
    HARMS[harm](held)
    write(file, held)
    (here / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(file.read_bytes())
    file.unlink()
    words = ["gen", "-p", "a", "--size", "64x64", "--steps", "1", "--seed", "3", "--vae", here / "vae"]
    planned, run = command(*words, "--dry-run"), command(*words)
    assert (planned.code, run.code) == (4, 4)
    assert planned.out == ""
    assert planned.error == run.err.splitlines()[-1]
    (here / "m.jsonl").write_text(json.dumps({"prompt": "a", "steps": 1, "size": "64x64"}))
    for dry in ((), ("--dry-run",)):
        said = command("batch", "m.jsonl", "--vae", here / "vae", *dry)
        assert (said.code, said.err.splitlines()[-1]) == (4, planned.error)


# Recipes.


def test_gen_and_from(here: Path, model: Path, other: Path) -> None:
    words = ["gen", "-p", "a red cube", "--size", "64x64", "--steps", "2", "--seed", "3"]
    [path] = command(*words, "--vae", other).ok().lines
    [plain] = command(*words).ok().lines
    assert not np.array_equal(pixels(path), pixels(plain))
    found = recipe.read(path)
    digests = weights.hashes(other, "vae")
    assert {f"other vae/{name}": value for name, value in digests.items()}.items() <= found["picture"][
        "weights"
    ].items()
    assert not any(name.startswith("vae/") for name in found["picture"]["weights"])
    assert found["made"]["vae"] == {"name": str(other), "kind": "folder"}
    assert found["id"] != recipe.read(plain)["id"]
    [again] = command("gen", "--from", path).ok().lines
    assert np.array_equal(pixels(again), pixels(path))
    assert recipe.read(again)["id"] == found["id"]
    [dropped] = command("gen", "--from", path, "--vae", "none").ok().lines
    assert np.array_equal(pixels(dropped), pixels(plain))
    assert recipe.read(dropped)["id"] == recipe.read(plain)["id"]
    [added] = command("gen", "--from", plain, "--vae", other).ok().lines
    assert recipe.read(added)["id"] == found["id"]
    told = command("info", path).ok().lines
    assert [line.split() for line in told if line.split()[0] == "vae"] == [["vae", str(other)]]


def test_from_refuses_a_changed_or_missing_vae(here: Path, other: Path) -> None:
    mine = shutil.copytree(other, here / "mine")
    words = ["gen", "-p", "a red cube", "--size", "64x64", "--steps", "1", "--seed", "3"]
    [path] = command(*words, "--vae", mine).ok().lines
    config = mine / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"scaling_factor": 0.5}))
    changed = command("gen", "--from", path)
    assert changed.code == 4
    assert "other vae/config.json has SHA-256" in changed.error
    shutil.rmtree(mine)
    gone = command("gen", "--from", path)
    assert gone.code == 4
    assert "its vae is a folder" in gone.error
    assert "--vae" in gone.error


def test_a_batch(here: Path, other: Path) -> None:
    (here / "m.jsonl").write_text(
        json.dumps({"prompt": "a red cube", "steps": 2, "size": "64x64", "seed": 3})
    )
    [path] = command("batch", "m.jsonl", "--vae", other).ok().lines
    assert recipe.read(path)["made"]["vae"]["name"] == str(other)
    [same] = command("batch", "m.jsonl", "--vae", other).ok().lines
    assert same == path
    [plain] = command("batch", "m.jsonl").ok().lines
    assert plain != path
    (here / "n.jsonl").write_text(json.dumps({"prompt": "a", "vae": "x"}))
    refused = command("batch", "n.jsonl")
    assert refused.code == 3
    assert "give --vae on the command line" in refused.error


def test_saved_and_resumed(model: Path, swapped: Model, tmp_path: Path) -> None:
    whole = drawn(swapped)
    half = swapped.prepare("a red cube", size=(64, 64), steps=2, seed=3, say=silent)
    next(half)
    half.save(tmp_path / "half.run")
    resumed = swapped.resume(tmp_path / "half.run", say=silent)
    list(resumed)
    assert np.array_equal(picture(resumed), picture(whole))
    with pytest.raises(InputError, match=r"differs in weights: weights\.other vae/"):
        rawdiff.load(model, device="cpu").resume(tmp_path / "half.run", say=silent)


# What is refused.


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"latent_channels": 16}, "a VAE of 16 latent channels, expected 4"),
        ({"block_out_channels": [8, 16, 16]}, "a VAE of 4 pixels a latent, expected 8"),
        ({"_class_name": "UNet2DConditionModel"}, "class 'UNet2DConditionModel', expected AutoencoderKL"),
    ],
)
def test_one_that_does_not_fit(here: Path, other: Path, changes: dict[str, Any], words: str) -> None:
    """Before a weight is read, on one line, with the exit code of weights."""
    folder = shutil.copytree(other, here / "bad")
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    done = command("gen", "-p", "a", "--vae", folder, "--dry-run")
    assert (done.code, done.out) == (4, "")
    assert words in done.error
    assert str(folder) in done.error


def test_what_is_none_is_told_as_the_vae(here: Path, model: Path) -> None:
    """And not as the model, whose it is not."""
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(1, 4)}, here / "lora.safetensors")
    for name, code in (
        ("nope", 2),
        ("./nope.safetensors", 4),
        (str(model / "unet"), 4),
        ("lora.safetensors", 4),
    ):
        done = command("gen", "-p", "a", "--vae", name, "--dry-run")
        assert done.code == code
        assert "vae " in done.error.split(name)[0], done.error
    done = command("gen", "-p", "a", "--vae", "merge:here@0.5+there@0.5", "--dry-run")
    assert (done.code, "a merge is of whole models" in done.error) == (2, True)


def test_a_merge_is_refused(here: Path, model: Path) -> None:
    """Its recipe would have the files of one of them, and no weights."""
    done = command("gen", "-p", "a", "--vae", f"merge:{model}@0.5+{model}@0.5")
    assert done.code == 2
    assert "a merge is of whole models" in done.error
    with pytest.raises(UsageError, match="a merge is of whole models"):
        rawdiff.load(model, vae=weights.open_source(f"merge:{model}@0.5+{model}@0.5"), device="cpu")


def test_a_download_is_spoken_of(
    model: Path, served: SmallHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", served.url)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    told: list[str] = []
    found = weights.with_vae(weights.open_source(model), "owner/small", say=told.append)
    weights.hashes(found, "vae")
    assert "downloading vae/diffusion_pytorch_model.safetensors of owner/small (287.6 kB)" in told


def test_what_is_no_vae(model: Path, tmp_path: Path) -> None:
    small_unet(0).save_pretrained(tmp_path / "unet")
    with pytest.raises(WeightsError, match="expected AutoencoderKL; it is a unet"):
        rawdiff.load(model, vae=tmp_path / "unet")
    with pytest.raises(WeightsError, match="no such folder or file"):
        rawdiff.load(model, vae=tmp_path / "none")
    with pytest.raises(UsageError, match="vae: found int, expected a folder"):
        rawdiff.load(model, vae=3)  # type: ignore[arg-type]
    folder = small_folder(tmp_path / "without", nets=())
    shutil.rmtree(folder / "vae")
    with pytest.raises(WeightsError, match=r"no vae/ folder"):
        rawdiff.load(model, vae=folder)
