"""SDXL behind both doors: opened by what its configs say, saved, remade, adapted; and what is refused, how."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from rawdiff import Model, SizeIds, images, nets, weights
from rawdiff.conditions import Conditions, Context
from rawdiff.errors import UsageError, WeightsError
from rawdiff.prompts import weigh
from rawdiff.weights.build import PARTS, build_empty
from rawdiff.weights.choose import read_json
from rawdiff.weights.defaults import Defaults
from rawdiff.weights.original import Names, places, to_original
from rawdiff.weights.single import FAMILIES
from tests.checkpoints import UNET, VAE, clip_tensors, original, prefixed, write
from tests.cli_run import depth_map, pixels, rawdiff
from tests.reference import END, error, load, silent
from tests.small_models import TEXT_WIDTH, small_folder, small_text_encoder, small_unet, small_vae
from tests.small_sdxl import SECOND_WIDTH, sdxl_controlnet, sdxl_unet, second_encoder, small_sdxl

PROMPT, SIZE = "a red cube on grass", (64, 48)
IDS = SizeIds(original=(512, 768), crop=(16, 40), negative=SizeIds(target=(128, 128)))
OPTIONS: dict[str, Any] = {"size": SIZE, "steps": 3, "seed": 3, "say": silent}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_sdxl(tmp_path_factory.mktemp("model") / "sdxl", nets=("depth",))


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return load(folder)


def changed(folder: Path, to: Path, file: str, **values: Any) -> Path:
    """A copy of a model, a JSON file in it changed; None takes a key out."""
    shutil.copytree(folder, to)
    held = {**json.loads((to / file).read_text()), **values}
    (to / file).write_text(json.dumps({key: value for key, value in held.items() if value is not None}))
    return to


def latents(model: Model, prompt: str = PROMPT, **options: Any) -> Tensor:
    run = model.prepare(prompt, **{**OPTIONS, **options})
    list(run)
    return run.latents


# What it is, and what is told of it.


def test_its_full_size_fits_together() -> None:
    """The networks of the bundled configs, without weights: checked, and run to the shapes that they should have."""
    built = {
        part: build_empty(PARTS[part], read_json(FAMILIES / "sdxl" / part / "config.json"), part)
        for part in ("unet", "controlnet", "text_encoder", "text_encoder_2")
    }
    unet, net = built["unet"], built["controlnet"]
    nets.unet.check(unet)
    nets.controlnet.check(net, unet)
    nets.added.check(unet, built["text_encoder"], built["text_encoder_2"])
    with torch.device("meta"):
        x, t, context = torch.empty(2, 4, 128, 96), torch.empty(1), torch.empty(2, 77, 2048)
        told = nets.added.Added(torch.empty(2, 1280), torch.empty(2, 6))
        assert nets.unet.forward(unet, x, t, context, told).shape == x.shape
        features = nets.controlnet.embed_hint(net, torch.empty(1, 3, 1024, 768))
        found = nets.controlnet.residuals(net, x, t, context, features, torch.empty(()), told=told)
        assert (len(found.skips), found.middle.shape) == (9, (2, 1280, 32, 24))


def test_doctor_opens_every_part(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAWDIFF_MODEL", str(folder))
    assert "text_encoder_2/model.safetensors" in rawdiff("doctor").out
    held = tmp_path / "sdxl"
    shutil.copytree(folder, held)
    (held / "text_encoder_2" / "model.safetensors").unlink()
    monkeypatch.setenv("RAWDIFF_MODEL", str(held))
    said = rawdiff("doctor")
    assert said.code == 4
    assert "found no weight file; expected model.safetensors" in said.out + said.err


def test_it_is_told_by_its_config(folder: Path, tmp_path: Path) -> None:
    found = weights.read_defaults(folder)
    assert (found.two_encoders, found.zeros) == (True, True)
    without = changed(folder, tmp_path / "a", "model_index.json", force_zeros_for_empty_prompt=None)
    (without / "rawdiff.json").unlink()
    found = weights.read_defaults(without)
    assert (found.zeros, found.guidance, found.native_size) == (True, 5.0, (64, 64))
    unforced = changed(folder, tmp_path / "b", "model_index.json", force_zeros_for_empty_prompt=False)
    assert not weights.read_defaults(unforced).zeros
    odd = changed(folder, tmp_path / "c", "model_index.json", force_zeros_for_empty_prompt="no")
    with pytest.raises(WeightsError, match="force_zeros_for_empty_prompt is 'no', expected true or false"):
        weights.read_defaults(odd)
    plain = weights.read_defaults(small_folder(tmp_path / "sd1", nets=()))
    assert (plain.two_encoders, plain.zeros) == (False, False)


def test_its_vae_keeps_out_of_fp16(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = weights.read_defaults(folder)
    assert weights.vae_dtype(folder, defaults, torch.float16) == torch.float32
    assert weights.vae_dtype(folder, defaults, torch.bfloat16) == torch.bfloat16
    mended = changed(folder, tmp_path / "mended", "vae/config.json", force_upcast=False)
    assert weights.vae_dtype(mended, defaults, torch.float16) == torch.float16
    other = small_folder(tmp_path / "sd1", nets=())
    assert weights.vae_dtype(other, weights.read_defaults(other), torch.float16) == torch.float16
    monkeypatch.setattr(weights, "choose_dtype", lambda device, dtype: torch.float16)
    monkeypatch.setattr("rawdiff.weights.parts.choose_dtype", lambda device, dtype: dtype)
    half = load(folder)
    assert (half.vae.dtype, half.unet.dtype, half.text_encoder_2.dtype) == (
        torch.float32,
        torch.float16,
        torch.float16,
    )


def test_sizes_that_the_family_does_not_know() -> None:
    sdxl = Defaults("x", (1024, 1024), family="sdxl")
    line = sdxl.unfamiliar((512, 512))
    assert line is not None
    assert line.startswith("size 512x512: this model knows 1024x1024")
    assert sdxl.unfamiliar((2048, 2048))
    assert not sdxl.unfamiliar((832, 1216))


def test_a_part_of_the_conditions() -> None:
    cond, pooled = torch.arange(24.0).view(2, 3, 4), torch.arange(10.0).view(2, 5)
    given = Conditions((Context(cond, -cond, pooled, -pooled),), ids=SizeIds(crop=(8, 0)).tensor((64, 96)))
    assert given.ids is not None
    assert given.ids.tolist() == [[64, 96, 8, 0, 64, 96]] * 2
    [picked] = given.select([1]).contexts
    assert [part[0].tolist() for part in vars(picked).values()] == [
        part[1].tolist() for part in (cond, -cond, pooled, -pooled)
    ]
    cut = given.crop(1, 2, 4, 6).ids
    assert cut is not None
    assert cut.tolist() == [[64, 96, 16, 16, 32, 48]] * 2


# Files.


def test_one_file_is_the_folder(folder: Path, model: Model, tmp_path: Path) -> None:
    """In the original layout; the configs are the folder's, for none of the package is so small."""
    encoder = second_encoder(25)
    second = to_original(Names(places("open_clip", encoder.config.to_dict())), encoder.state_dict())
    path = write(
        tmp_path / "model.safetensors",
        {
            **prefixed(UNET, original("unet", sdxl_unet(0))),
            **prefixed(VAE, original("vae", small_vae(10))),
            **prefixed("conditioner.embedders.0.transformer.", clip_tensors(small_text_encoder(20))),
            **prefixed("conditioner.embedders.1.model.", second),
        },
    )
    single = load(f"{path}#config={folder}")
    assert single.defaults.two_encoders
    # A fixed guidance: the folder's rawdiff.json names another than the family's.
    assert torch.equal(latents(single, guidance=3.0), latents(model, guidance=3.0))
    assert {name.split("/")[-2] for name in single.hashes() if "config" in name} >= {
        "tokenizer_2",
        "text_encoder_2",
    }


def test_a_saved_run_goes_on_to_the_bit(folder: Path, model: Model, tmp_path: Path) -> None:
    run = model.prepare(PROMPT, negative="blue", size_ids=IDS, **OPTIONS)
    next(run)
    path = run.save(tmp_path / "half.run")
    list(run)
    resumed = load(folder).resume(path, say=silent)
    for ours, theirs in zip(
        (resumed.conditions.ids, *vars(resumed.conditions.contexts[0]).values()),
        (run.conditions.ids, *vars(run.conditions.contexts[0]).values()),
        strict=True,
    ):
        assert torch.equal(ours, theirs)
    list(resumed)
    assert torch.equal(resumed.latents, run.latents)
    assert not torch.equal(resumed.latents, latents(model, negative="blue"))


def test_a_recipe_makes_it_again(
    folder: Path, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the command line with a net, and from Python with sizes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAWDIFF_MODEL", "")
    words = ("gen", "-p", PROMPT, "--steps", "2", "--size", "48x64", "--seed", "3", "--model", folder)
    first = rawdiff(*words, "--depth", depth_map(tmp_path / "d.png"), "--fit", "crop").ok().lines[0]
    assert images.read_recipe(first)["picture"]["zeros"] is True
    again = rawdiff("gen", "--from", first).ok().lines[0]
    assert np.array_equal(pixels(first), pixels(again))
    assert images.read_recipe(first) == images.read_recipe(again)
    run = model.prepare(PROMPT, size_ids=IDS, **OPTIONS)
    list(run)
    own = run.save_image("own.png")
    assert images.read_recipe(own)["picture"]["size_ids"] == IDS.describe()
    said = "original 768x512, crop at 40, 16, negative (target 128x128, crop at 0, 0)"
    assert said in rawdiff("info", own).ok().out
    again = rawdiff("gen", "--from", own).ok().lines[0]
    assert np.array_equal(pixels(own), pixels(again))
    assert images.read_recipe(own)["id"] == images.read_recipe(again)["id"]
    # A model that encodes empty prompts makes another picture, and does not do so unasked.
    changed(folder, tmp_path / "other", "model_index.json", force_zeros_for_empty_prompt=False)
    other = rawdiff("gen", "--from", own, "--model", "other").ok()
    assert "not the same as own.png in zeros" in other.err
    assert not np.array_equal(pixels(own), pixels(other.lines[0]))
    index, kept = folder / "model_index.json", (folder / "model_index.json").read_text()
    shutil.copy(tmp_path / "other" / "model_index.json", index)
    try:
        assert "would become another picture, in zeros" in rawdiff("gen", "--from", own).err
    finally:
        index.write_text(kept)


def test_little_memory(folder: Path, model: Model) -> None:
    """Both encoders, the UNet and the VAE come and go."""
    low = load(folder)
    low.save_memory()
    assert error(latents(low), latents(model)) <= END


# Prompts and adapters.


def test_weights_of_words_count_in_both_encoders(model: Model) -> None:
    run = model.prepare("a (red:1.4) cube", syntax="a1111", **OPTIONS)
    cond = run.conditions.contexts[0].cond
    ids = torch.tensor([model.tokenizer("a red cube", padding="max_length").input_ids])
    red = model.tokenizer("red").input_ids[1:-1]
    weight = torch.ones(1, 77)
    weight[0, [k for k, number in enumerate(ids[0].tolist()) if number in red]] = 1.4
    end = model.tokenizer.eos_token_id
    second = torch.where(ids == end, model.tokenizer_2.pad_token_id, ids)
    second[0, ids[0].tolist().index(end)] = end
    expected = [
        weigh(nets.text.encode_inner(encoder, numbers, end=end)[0], weight)
        for encoder, numbers in ((model.text_encoder, ids), (model.text_encoder_2, second))
    ]
    assert error(cond, torch.cat(expected, dim=-1)) <= 1e-6
    plain = model.prepare("a red cube", **OPTIONS)
    for columns in (slice(TEXT_WIDTH), slice(TEXT_WIDTH, None)):
        assert error(cond[..., columns], plain.conditions.contexts[0].cond[..., columns]) > 1e-3
    several = model.prepare("a red BREAK cube", negative="", syntax="a1111", **OPTIONS).conditions.contexts[0]
    assert several.cond.shape == (1, 154, TEXT_WIDTH + SECOND_WIDTH)
    assert several.uncond is not None
    assert not several.uncond.any()
    first = model.prepare("a red", **OPTIONS).conditions.contexts[0]
    assert several.cond_pooled is not None
    assert first.cond_pooled is not None
    assert error(several.cond_pooled, first.cond_pooled) <= 1e-6  # of the first chunk


def test_each_row_is_told_what_its_own_text_says(model: Model) -> None:
    """A prompt that changes in mid-run, in A1111's syntax: pooled text changes with it, in the table of times too."""
    options = {**OPTIONS, "steps": 4, "syntax": "a1111"}
    edited = model.prepare("a [red:blue:0.5] cube", **options)
    red, blue = (model.prepare(f"a {colour} cube", **options) for colour in ("red", "blue"))
    before = edited.state
    for k, step in enumerate(edited):
        for run, is_own in ((red, k < 2), (blue, k >= 2)):
            run.state = before
            difference = error(next(run).guided, step.guided)
            assert difference <= 1e-5 if is_own else difference > 1e-3
        before = step.state
    assert len(edited) == 4


@pytest.mark.parametrize("layout", ["kohya", "diffusers"])
def test_loras_of_every_network(model: Model, tmp_path: Path, layout: str) -> None:
    """Each of the three counts, and is afterwards what it was to the bit."""
    before = latents(model)
    fc1, to_k = "encoder.layers.0.mlp.fc1", "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
    places = {
        "text_encoder": (f"text_model.{fc1}", (2 * TEXT_WIDTH, TEXT_WIDTH)),
        "text_encoder_2": (f"text_model.{fc1}", (2 * SECOND_WIDTH, SECOND_WIDTH)),
        "unet": (to_k, (32, TEXT_WIDTH + SECOND_WIDTH)),
    }
    short = {"text_encoder": "lora_te1", "text_encoder_2": "lora_te2", "unet": "lora_unet"}
    found = []
    for k, (part, (layer, shape)) in enumerate(places.items()):
        own = {
            "text_encoder": model.text_encoder,
            "text_encoder_2": model.text_encoder_2,
            "unet": model.unet,
        }[part]
        name = layer if part == "unet" else next(n for n, _ in own.named_modules() if n.endswith(fc1))
        weight = own.get_submodule(name).weight
        assert tuple(weight.shape) == shape
        generator = torch.Generator().manual_seed(k)
        down, up = (torch.randn(s, generator=generator) for s in ((2, shape[1]), (shape[0], 2)))
        kohya = f"{short[part]}_{layer.replace('.', '_')}"
        keys = {
            "kohya": (f"{kohya}.lora_down.weight", f"{kohya}.lora_up.weight"),
            "diffusers": (f"{part}.{layer}.lora_A.weight", f"{part}.{layer}.lora_B.weight"),
        }[layout]
        path = tmp_path / f"{part}.safetensors"
        save_file(dict(zip(keys, (down, up), strict=True)), path)
        pristine = weight.clone()
        run = model.prepare(PROMPT, loras=[(str(path), 0.3)], **OPTIONS)
        next(run)
        assert error(weight - pristine, 0.3 * up @ down) <= 1e-4
        list(run)
        found.append(run.latents)
        assert weights.planned_layers(model.source).match(weights.read_lora(path))
    assert all(error(ours, before) > 100 * END for ours in found)
    assert torch.equal(latents(model), before)


# Refused.


def test_parts_that_do_not_belong_together(folder: Path, model: Model, tmp_path: Path) -> None:
    without = tmp_path / "without"
    shutil.copytree(folder, without)
    shutil.rmtree(without / "text_encoder_2")
    with pytest.raises(WeightsError, match="has no text_encoder_2/ folder"):
        load(without)
    base = {
        name: getattr(model, name) for name in ("source", "vae", "text_encoder", "tokenizer", "scheduler")
    }
    base |= {"device": model.device, "dtype": model.dtype, "defaults": model.defaults}
    second = {"text_encoder_2": model.text_encoder_2, "tokenizer_2": model.tokenizer_2}
    with pytest.raises(WeightsError, match="addition_embed_type='text_time', expected None beside one text"):
        Model(unet=model.unet, **base)
    with pytest.raises(WeightsError, match="addition_embed_type=None, expected 'text_time' beside two text"):
        Model(unet=small_unet(1), **base, **second)
    refiner = sdxl_unet(1, projection_class_embeddings_input_dim=24 + 5 * 8)
    with pytest.raises(
        WeightsError, match="is told 64 numbers beside the time, expected 72: pooled text and 6"
    ):
        Model(unet=refiner, **base, **second)
    narrow = sdxl_unet(1, cross_attention_dim=48)
    with pytest.raises(WeightsError, match="reads text of width 48, expected 80, that of both text encoders"):
        Model(unet=narrow, **base, **second)
    with pytest.raises(
        WeightsError, match="text_encoder_2: found a CLIPTextModel, expected a CLIPTextModelWith"
    ):
        Model(unet=model.unet, **base, **{**second, "text_encoder_2": model.text_encoder})


def test_a_vae_with_a_mean_of_its_own() -> None:
    vae = small_vae(10)
    vae.register_to_config(latents_mean=[0.1] * 4)
    with pytest.raises(
        WeightsError, match=r"vae: config has latents_mean=\[0.1, 0.1, 0.1, 0.1\], expected none"
    ):
        nets.vae.check(vae)


def test_a_net_of_another_family(model: Model) -> None:
    plain = sdxl_unet(1)
    plain.register_to_config(addition_embed_type=None)
    with pytest.raises(WeightsError, match="is told pooled text and sizes, 72 numbers, and the unet None"):
        nets.controlnet.check(sdxl_controlnet(model.unet, 40), plain)


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ((64, 64), r"size_ids \(64, 64\): expected a rawdiff.SizeIds"),
        (SizeIds(original=64), "original 64: expected two whole numbers"),  # type: ignore[arg-type]
        (SizeIds(crop=(0, -1)), "crop -1: expected a whole number, 0 or more"),
        (SizeIds(target=(0, 64)), "target 0: expected a whole number, 1 or more"),
        (SizeIds(negative=SizeIds(negative=SizeIds())), "the negative has a negative of its own"),
    ],
)
def test_sizes_that_make_no_sense(model: Model, ids: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        model.prepare(PROMPT, size_ids=ids, **OPTIONS)


def test_sizes_for_a_model_that_is_told_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="this model is told no sizes, only SDXL is"):
        load(small_folder(tmp_path / "sd1", nets=())).prepare(PROMPT, size_ids=SizeIds(), **OPTIONS)


def test_more_layers_are_skipped_than_the_smaller_encoder_has(model: Model, folder: Path) -> None:
    with pytest.raises(UsageError, match="clip skip 3: this text encoder has 3 layers, so 0 to 2"):
        model.prepare(PROMPT, clip_skip=3, **OPTIONS)
    said = rawdiff("gen", "-p", "x", "--model", folder, "--clip-skip", "3", "--dry-run")
    assert "clip skip 3: this text encoder has 3 layers" in said.error
