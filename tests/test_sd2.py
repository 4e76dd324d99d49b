"""Stable Diffusion 2: OpenCLIP's text tower, heads per level, linear projections and v, against diffusers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rawdiff import Control, Model, Run
from rawdiff.errors import WeightsError
from rawdiff.weights.choose import read_json
from rawdiff.weights.single import FAMILIES
from tests.checkpoints import write
from tests.reference import STEP, check, error, grey_levels, hint, load, matters, reference, silent
from tests.sd2_models import TEXT, sd2_checkpoint, sd2_folder
from tests.small_models import small_controlnet, small_folder, small_scheduler, small_unet

pytestmark = pytest.mark.filterwarnings(  # diffusers' own, in Euler
    "ignore:__array__ implementation:DeprecationWarning",
)

SIZE = (64, 48)
PROMPT, NEGATIVE = "a red cube on grass", "the blue sphere"
STEPS = 6
SCHEDULERS = ["DDIMScheduler", "PNDMScheduler", "EulerDiscreteScheduler"]
PREDICTIONS = ["v_prediction", "epsilon"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(sd2_folder(tmp_path_factory.mktemp("model") / "sd2"))


@pytest.fixture(scope="module")
def control(model: Model) -> Control:
    return Control("some", hint(SIZE, 0), weight=0.8, net=small_controlnet(model.unet, 40))


def scheduler(name: str = "DDIMScheduler", prediction: str = "v_prediction") -> Any:
    return small_scheduler(name, prediction_type=prediction)


def prepared(model: Model, **options: Any) -> Run:
    defaults = {"size": SIZE, "steps": STEPS, "guidance": 5.0, "seed": 3, "say": silent}
    return model.prepare(options.pop("prompt", PROMPT), **{**defaults, **options})


def diffused(model: Model, sampler: Any, controls: Any = (), **call: Any) -> Any:
    call = {"size": SIZE, "num_inference_steps": STEPS, "guidance_scale": 5.0, **call}
    return reference(model, sampler, PROMPT, controls, seeds=[3], **call)


def test_it_is_an_sd2(model: Model) -> None:
    """What is compared below has what sets the family apart."""
    assert model.text_encoder.config.hidden_act == "gelu"
    assert model.tokenizer.pad_token_id not in (model.tokenizer.eos_token_id, None)
    heads = [a.heads for name, a in model.unet.named_modules() if name.endswith("attn2")]
    assert set(heads) == {2, 4, 8}
    assert model.unet.config.use_linear_projection


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("controlled", [False, True])
def test_text_and_a_net(model: Model, control: Control, name: str, prediction: str, controlled: bool) -> None:
    controls = [control] if controlled else []
    own = scheduler(name, prediction)
    run = check(prepared(model, sampler=own, controls=controls), diffused(model, own, controls))
    matters(run, prepared(model, sampler=own, controls=controls, prompt=NEGATIVE))
    other = scheduler(name, next(p for p in PREDICTIONS if p != prediction))
    matters(run, prepared(model, sampler=other, controls=controls))
    if controlled:
        matters(run, prepared(model, sampler=own))


@pytest.mark.parametrize("clip_skip", [1, 2])
def test_clip_skip(model: Model, control: Control, clip_skip: int) -> None:
    own = scheduler()
    options: dict[str, Any] = {"sampler": own, "controls": [control], "negative": NEGATIVE}
    run = check(
        prepared(model, clip_skip=clip_skip, **options),
        diffused(model, own, [control], clip_skip=clip_skip, negative_prompt=NEGATIVE),
    )
    matters(run, prepared(model, **options))


def test_rescale(model: Model) -> None:
    own = scheduler()
    run = check(prepared(model, sampler=own, rescale=0.7), diffused(model, own, guidance_rescale=0.7))
    matters(run, prepared(model, sampler=own))


@pytest.mark.parametrize("without", ["activation", "padding"])
def test_its_activation_and_its_padding_matter(model: Model, without: str, tmp_path: Path) -> None:
    """A small encoder's activations are near zero, where both kinds are alike: the text tells more than the end."""
    text = {"hidden_act": "quick_gelu"} if without == "activation" else TEXT
    make = sd2_folder if without == "activation" else small_folder
    other = prepared(load(make(tmp_path / "other", nets=(), shape="sd2", text=text)), sampler=scheduler())
    run = prepared(model, sampler=scheduler())
    assert error(other.conditions.contexts[0].cond, run.conditions.contexts[0].cond) >= 100 * STEP


def test_heads_per_level_matter(model: Model, tmp_path: Path) -> None:
    """The same weights split into other heads draw something else: the list in the config is heeded."""
    folder = sd2_folder(tmp_path / "other")
    file = folder / "unet" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"attention_head_dim": [4, 4, 4]}))
    run = prepared(model, sampler=scheduler())
    list(run)
    matters(run, prepared(load(folder), sampler=scheduler()))


def test_inpainting_by_a_unet_of_nine_channels(model: Model) -> None:
    parts: dict[str, Any] = {
        name: getattr(model, name)
        for name in ("source", "vae", "text_encoder", "tokenizer", "scheduler", "device", "dtype", "defaults")
    }
    nine = Model(unet=small_unet(5, shape="sd2", in_channels=9), **parts)
    image, mask = hint(SIZE, 3), np.zeros(SIZE, dtype=np.float32)
    mask[16:48, 8:32] = 1.0
    own = scheduler()
    masked: dict[str, Any] = {"sampler": own, "image": image, "paste": False}
    run = check(
        prepared(nine, mask=mask, **masked),
        diffused(nine, own, image=image, mask=mask, strength=1.0),
    )
    moved = np.roll(mask, 16, axis=1)
    matters(run, prepared(nine, mask=moved, **masked))
    matters(run, prepared(nine, mask=mask, sampler=own, image=hint(SIZE, 4), paste=False))


# In folders and in single files.


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_folder_and_a_file_draw_the_same(name: str, prediction: str, tmp_path: Path) -> None:
    """By the scheduler that the model itself names; the file holds the text tower in OpenCLIP's layout."""
    folder = sd2_folder(tmp_path / "model", scheduler=name, prediction_type=prediction)
    file = write(tmp_path / "model.safetensors", sd2_checkpoint())
    found = []
    for source in (folder, f"{file}#config={folder}"):
        model = load(source)
        assert type(model.scheduler).__name__ == name
        assert model.scheduler.config.prediction_type == prediction
        run = prepared(model)
        list(run)
        found.append(run.latents)
    assert torch.equal(*found)
    other = next(p for p in PREDICTIONS if p != prediction)
    matters(run, prepared(load(f"{file}#{other}#config={folder}")))


def test_the_folder_through_both(tmp_path: Path) -> None:
    """A folder opened by rawdiff and by diffusers itself, scheduler and all: a seed gives one picture."""
    from diffusers import ControlNetModel, StableDiffusionControlNetPipeline

    folder = sd2_folder(tmp_path / "model", nets=("depth",))
    depth = hint((64, 64), 1)[..., :1].repeat(3, axis=2)
    run = prepared(load(folder), controls=[Control("depth", depth)], size=(64, 64))
    list(run)
    net = ControlNetModel.from_pretrained(folder / "controlnet_depth", dtype=torch.float32)
    pipeline = StableDiffusionControlNetPipeline.from_pretrained(folder, controlnet=net, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline(
        PROMPT,
        image=torch.from_numpy(depth).permute(2, 0, 1)[None],
        num_inference_steps=STEPS,
        guidance_scale=5.0,
        generator=torch.Generator().manual_seed(3),
    ).images[0]
    assert grey_levels(run.image(), picture) <= 1


def test_a_net_of_another_family_is_refused(model: Model, control: Control) -> None:
    narrow = dataclasses.replace(
        control, net=small_controlnet(small_unet(0, shape="sd2", cross_attention_dim=16), 1)
    )
    with pytest.raises(WeightsError, match="made for this model's family"):
        prepared(model, controls=[narrow])


def test_the_bundled_configs_are_those_of_the_family() -> None:
    """What every SD2 in one file is built from."""
    text, unet = (read_json(FAMILIES / "sd2" / part / "config.json") for part in ("text_encoder", "unet"))
    assert (text["hidden_act"], text["num_hidden_layers"], text["hidden_size"]) == ("gelu", 23, 1024)
    assert unet["attention_head_dim"] == [5, 10, 20, 20]
