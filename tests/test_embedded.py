"""The embedded model: its folder, diffusers' pipelines on it, and what its pictures show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL.Image import Image

import rawdiff
from rawdiff import Model
from scripts.embedded import metrics
from scripts.embedded.captions import captions
from scripts.embedded.inversion import WORD
from scripts.embedded.looks import LOOKS
from scripts.embedded.palette import COLOURS
from scripts.embedded.training import ASSETS
from scripts.embedded.world import Renders, Scenes, render, sample_scenes
from tests.reference import grey_levels, silent

PROMPT = "a red sphere to the left of a blue cube on grass in daylight"
NATIVE = (128, 128)


@pytest.fixture(scope="module")
def model() -> Model:
    return rawdiff.load(controls=["depth"], device="cpu")


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    return sample_scenes(12, 5150)


@pytest.fixture(scope="module")
def true(scenes: Scenes) -> Renders:
    return render(scenes, NATIVE)


def tensor(pictures: list[Image]) -> torch.Tensor:
    """[B,3,H,W] in 0..1."""
    return torch.stack([torch.from_numpy(np.array(p)).permute(2, 0, 1) / 255 for p in pictures])


def paint(model: Model, prompts: list[str], maps: torch.Tensor | None, **options: Any) -> torch.Tensor:
    made = []
    for k, prompt in enumerate(prompts):
        depth = None if maps is None else maps[k, 0]
        run = model.prepare(prompt, depth=depth, steps=20, seed=k, watch=(), say=silent, **options)
        list(run)
        made.append(run.image())
    return tensor(made)


# ------------------------------------------------------------------------------------------- the folder


NETWORKS = ("unet", "unet_inpaint", "vae", *(f"controlnet_{kind}" for kind in ("depth", "normal", "canny")))


def test_the_model_stays_within_forty_megabytes() -> None:
    size = sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file())
    assert 10_000_000 < size <= 40_000_000


def test_every_weight_is_fp16_and_the_text_encoder_keeps_its_prefix() -> None:
    from safetensors import safe_open

    files = sorted(ASSETS.rglob("*.safetensors"))
    assert {f.parent.name for f in files} == {*NETWORKS, "text_encoder", "loras", "embeddings"}
    for path in files:
        with safe_open(path, "pt") as held:
            for key in held.keys():  # noqa: SIM118 (not a mapping)
                if not key.endswith("position_ids"):
                    assert held.get_slice(key).get_dtype() == "F16", (path, key)
                assert path.parent.name != "text_encoder" or key.startswith("text_model."), key


def test_the_tokenizer_spells_everything_and_ends_at_77() -> None:
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(ASSETS / "tokenizer")
    vocab = json.loads((ASSETS / "tokenizer" / "vocab.json").read_text())
    assert tokenizer.model_max_length == 77
    assert sum(len(t.removesuffix("</w>")) == 1 for t in vocab) == 512
    ids = tokenizer("Zürich 日本 🙂 a red cube").input_ids
    assert ids.count(tokenizer.eos_token_id) == 1
    assert tokenizer.convert_ids_to_tokens(ids)[-4:-1] == ["a</w>", "red</w>", "cube</w>"]


def test_the_card_gives_data_recipe_figures_limits_and_licence() -> None:
    card = (ASSETS / "README.md").read_text()
    for word in ("Data", "Recipe", "Figures", "Limits", "Licence"):
        assert f"## {word}" in card


# ------------------------------------------------------------------------------------------- diffusers


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("depth", [False, True], ids=["text alone", "with depth"])
def test_diffusers_own_pipeline_loads_the_folder_and_makes_the_same_picture(
    model: Model, true: Renders, depth: bool
) -> None:
    from diffusers import ControlNetModel, StableDiffusionControlNetPipeline, StableDiffusionPipeline

    size = (96, 144)
    call: dict[str, Any] = {"guidance_scale": 4.0, "num_inference_steps": 8}
    generator = torch.Generator().manual_seed(7)
    source = torch.nn.functional.interpolate(true.disparity[:1], size, mode="bilinear")
    if depth:
        net = ControlNetModel.from_pretrained(ASSETS / "controlnet_depth")
        pipeline = StableDiffusionControlNetPipeline.from_pretrained(ASSETS, controlnet=net)
        call["image"] = source.expand(-1, 3, -1, -1)
    else:
        pipeline = StableDiffusionPipeline.from_pretrained(ASSETS)
        call |= {"height": size[0], "width": size[1]}
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(PROMPT, generator=generator, **call).images[0]

    options: dict[str, Any] = {"size": size, "guidance": 4.0, "steps": 8, "seed": 7, "say": silent}
    run = model.prepare(PROMPT, depth=source[0, 0] if depth else None, **options)
    list(run)
    assert grey_levels(run.image(), theirs) <= 1
    other = model.prepare(PROMPT, depth=None if depth else source[0, 0], **options)
    list(other)
    assert grey_levels(other.image(), theirs) > 20


# ------------------------------------------------------------------------------------------- pictures
# The bounds here are looser than the model card's: a dozen pictures, to notice that something broke.


def test_objects_stand_where_the_depth_map_has_them_in_the_asked_colours(
    model: Model, scenes: Scenes, true: Renders
) -> None:
    prompts = captions(scenes, 5150)
    made = paint(model, prompts, true.disparity)
    reading = metrics.read_colours(made)
    right, counted = metrics.score_colours(reading, scenes, true.ids)
    iou = float(metrics.score_silhouette(reading, true.ids).mean())
    sky, floor = metrics.score_surroundings(made, scenes, true.ids)
    alone = metrics.read_colours(paint(model, prompts, None))
    others = metrics.read_colours(paint(model, prompts[1:] + prompts[:1], true.disparity))
    chance, asked = metrics.score_colours(others, scenes, true.ids)
    assert right / counted >= 0.85
    assert right / counted > 2 * chance / asked
    assert iou >= 0.85
    assert float((sky & floor).float().mean()) >= 0.9
    assert float(metrics.score_silhouette(alone, true.ids).mean()) < 0.6 * iou


def test_the_prompt_decides_the_colour_and_the_seed_the_picture(model: Model) -> None:
    for name in ("red", "green", "blue"):
        made = paint(model, [f"a {name} sphere on sand in daylight"] * 2, None)
        reading = metrics.read_colours(made)
        for b in range(2):
            seen = torch.bincount(reading.colour[b][reading.solid[b]], minlength=len(COLOURS))
            assert int(seen.argmax()) == COLOURS.index(name)
        assert float((made[0] - made[1]).abs().mean()) > 0.01


def test_a_wheel_would_carry_every_file_of_the_model() -> None:
    names = {path.relative_to(ASSETS).as_posix() for path in ASSETS.rglob("*") if path.is_file()}
    expected = {
        "README.md",
        "model_index.json",
        "rawdiff.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/merges.txt",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        "tokenizer/vocab.json",
        *(f"{part}/config.json" for part in NETWORKS),
        *(f"{part}/diffusion_pytorch_model.safetensors" for part in NETWORKS),
        *(f"loras/{look}{layout}.safetensors" for look in LOOKS for layout in ("", "-diffusers")),
        f"embeddings/{WORD}.safetensors",
    }
    assert names == expected
    assert Path(rawdiff.__file__).parent in ASSETS.parents
