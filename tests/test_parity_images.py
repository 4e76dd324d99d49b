"""Runs from a picture, and through a mask, against diffusers' pipelines; and each subject matters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rawdiff import Control, Model, Run
from rawdiff.sampler import make_sampler
from tests.reference import Reference, check, hint, load, matters, reference, silent
from tests.small_models import small_controlnet, small_folder, small_scheduler

SIZE = (64, 48)
STEPS = 6
PROMPT = "a red cube on grass"
IMAGE, OTHER = hint(SIZE, 20), hint(SIZE, 21)
SAMPLERS = {
    "ddim": "DDIMScheduler",
    "euler a": "EulerAncestralDiscreteScheduler",
    "pndm": "PNDMScheduler",
    "dpm++ 2m": "DPMSolverMultistepScheduler",
    "heun": "HeunDiscreteScheduler",
}


def box(top: int, bottom: int, left: int, right: int) -> np.ndarray:
    """A mask [H,W] with soft edges, white inside, a border of 0.6 and one of 0.4 around it."""
    mask = np.zeros(SIZE, np.float32)
    for level, margin in ((0.4, 6), (0.6, 3), (1.0, 0)):
        mask[max(0, top - margin) : bottom + margin, max(0, left - margin) : right + margin] = level
    return mask


MASK, OTHER_MASK = box(10, 40, 11, 30), box(30, 60, 20, 40)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(small_folder(tmp_path_factory.mktemp("model") / "plain", nets=(), shape="deep"))


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The same with an inpainting UNet beside it."""
    folder = small_folder(tmp_path_factory.mktemp("model") / "wide", nets=(), shape="deep", inpaint=True)
    return load(folder)


def scheduler(name: str) -> Any:
    return small_scheduler(SAMPLERS[name], steps_offset=1)


def prepared(model: Model, name: str = "ddim", **options: Any) -> Run:
    """With diffusers' own faults of part-way starts, that there may be something to compare."""
    made = make_sampler(scheduler(name), steps=STEPS, as_diffusers=True)
    defaults = {"sampler": made, "guidance": 5.0, "seed": 3, "say": silent, "size": SIZE}
    defaults |= {"paste": False} if "mask" in options else {}
    return model.prepare(PROMPT, **{**defaults, **options})


def diffused(model: Model, name: str = "ddim", controls: Any = (), **call: Any) -> Reference:
    unet = model.unet_for(masked=call.get("mask") is not None)
    defaults = {"seeds": [3], "size": SIZE, "num_inference_steps": STEPS, "guidance_scale": 5.0, "unet": unet}
    return reference(model, scheduler(name), PROMPT, controls, **{**defaults, **call})


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own
@pytest.mark.parametrize(
    ("name", "strength"),
    [("ddim", 0.6), ("ddim", 1.0), ("euler a", 0.5), ("pndm", 0.5), ("dpm++ 2m", 0.84), ("heun", 0.5)],
)
def test_image_to_image(plain: Model, name: str, strength: float) -> None:
    given: dict[str, Any] = {"image": IMAGE, "strength": strength}
    run = check(prepared(plain, name, **given), diffused(plain, name, **given))
    matters(run, prepared(plain, name, image=OTHER, strength=strength))
    matters(run, prepared(plain, name, image=IMAGE, strength=strength, seed=4))
    if strength < 1.0:
        other = prepared(plain, name, image=IMAGE, strength=min(1.0, strength + 0.17))
        assert len(other) > len(run)
        matters(run, other)
    matters(run, prepared(plain, name))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own
@pytest.mark.parametrize("channels", [4, 9])
@pytest.mark.parametrize(
    ("name", "strength"),
    [("ddim", 1.0), ("euler a", 0.5), ("pndm", 1.0), ("pndm", 0.67), ("dpm++ 2m", 1.0), ("dpm++ 2m", 0.5)],
)
def test_inpaint(plain: Model, wide: Model, name: str, strength: float, channels: int) -> None:
    model = plain if channels == 4 else wide
    given: dict[str, Any] = {"image": IMAGE, "mask": MASK, "strength": strength}
    run = check(prepared(model, name, **given), diffused(model, name, **given))
    assert (run.conditions.inpaint is None) == (run.setup.blend is not None) == (channels == 4)
    matters(run, prepared(model, name, **{**given, "mask": OTHER_MASK}))
    matters(run, prepared(model, name, **{**given, "image": OTHER}))
    matters(run, prepared(model, name, image=IMAGE, strength=strength))
    matters(run, prepared(model, name, **{**given, "strength": 1.0 if strength < 1.0 else 0.8}))


def controls(model: Model) -> list[Control]:
    nets = [small_controlnet(model.unet, seed) for seed in (40, 41)]
    windows = [{"weight": 0.8}, {"weight": 0.5, "end": 0.7}]
    return [
        Control("some", hint(SIZE, k), net=net, **window)
        for k, (net, window) in enumerate(zip(nets, windows, strict=True))
    ]


@pytest.mark.parametrize("way", ["image", "mask of 4", "mask of 9"])
def test_with_nets(plain: Model, wide: Model, way: str) -> None:
    """The mask's channels are the UNet's alone: a net of 4 channels goes with either."""
    model = wide if way.endswith("9") else plain
    given: dict[str, Any] = {"image": IMAGE, "strength": 0.67}
    given |= {} if way == "image" else {"mask": MASK}
    nets = controls(model)
    run = check(prepared(model, controls=nets, **given), diffused(model, controls=nets, **given))
    for k in range(2):
        matters(run, prepared(model, controls=[*nets[:k], *nets[k + 1 :]], **given))
    matters(run, prepared(model, controls=nets, **{**given, "image": OTHER}))
    matters(run, prepared(model, controls=nets))


@pytest.mark.parametrize("channels", [4, 9])
def test_a_batch_without_guidance(plain: Model, wide: Model, channels: int) -> None:
    model = plain if channels == 4 else wide
    given: dict[str, Any] = {"image": IMAGE, "mask": MASK, "strength": 0.84}
    theirs = diffused(model, seeds=[3, 11], guidance_scale=1.0, num_images_per_prompt=2, **given)
    run = check(prepared(model, count=2, seed=[3, 11], guidance=1.0, **given), theirs)
    matters(run, prepared(model, count=2, seed=[3, 12], guidance=1.0, **given))


def test_a_picture_of_a_batch_is_the_one_alone(plain: Model) -> None:
    given: dict[str, Any] = {"image": IMAGE, "mask": MASK, "strength": 0.5}
    both, alone = prepared(plain, count=2, **given), prepared(plain, seed=4, **given)
    list(both), list(alone)
    difference = float((both.latents[1] - alone.latents[0]).abs().max())
    assert difference <= 1e-4 * float(alone.latents.abs().max())
