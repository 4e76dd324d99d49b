"""Whole runs against diffusers' pipelines: per step, at the end, as pictures; and each subject matters."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rawdiff import Control, Model, Run
from tests.reference import check, hint, load, matters, reference, silent
from tests.small_models import small_controlnet, small_folder, small_scheduler

SIZE = (64, 48)
PROMPT, NEGATIVE = "a red cube on grass", "the blue sphere"
STEPS = 6


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(small_folder(tmp_path_factory.mktemp("model") / "deep", nets=(), shape="deep"))


@pytest.fixture(scope="module")
def nets(model: Model) -> list[Any]:
    return [small_controlnet(model.unet, seed) for seed in (40, 41, 42)]


def scheduler(name: str = "DDIMScheduler") -> Any:
    return small_scheduler(name)


def prepared(model: Model, prompt: Any = PROMPT, **options: Any) -> Run:
    defaults = {
        "size": SIZE,
        "steps": STEPS,
        "guidance": 5.0,
        "seed": 3,
        "sampler": scheduler(),
        "say": silent,
    }
    return model.prepare(prompt, **{**defaults, **options})


def diffused(model: Model, prompt: Any = PROMPT, controls: Any = (), **call: Any) -> Any:
    defaults = {"seeds": [3], "size": SIZE, "num_inference_steps": STEPS, "guidance_scale": 5.0}
    return reference(model, scheduler(), prompt, controls, **{**defaults, **call})


def test_text(model: Model) -> None:
    run = check(prepared(model), diffused(model))
    matters(run, prepared(model, "the blue sphere"))
    matters(run, prepared(model, guidance=4.0))
    matters(run, prepared(model, seed=4))


def test_negative_prompt(model: Model) -> None:
    run = check(prepared(model, negative=NEGATIVE), diffused(model, negative_prompt=NEGATIVE))
    matters(run, prepared(model))


@pytest.mark.parametrize("guidance", [1.0, 0.5])
def test_without_guidance(model: Model, guidance: float) -> None:
    run = check(prepared(model, guidance=guidance), diffused(model, guidance_scale=guidance))
    matters(run, prepared(model))
    assert run.conditions.contexts[0].uncond is None


@pytest.mark.parametrize("rescale", [0.7, 1.0])
def test_rescale(model: Model, rescale: float) -> None:
    run = check(prepared(model, rescale=rescale), diffused(model, guidance_rescale=rescale))
    matters(run, prepared(model))


@pytest.mark.parametrize("clip_skip", [1, 2])
def test_clip_skip(model: Model, clip_skip: int) -> None:
    """Of the positive prompt alone, as diffusers does."""
    run = check(
        prepared(model, clip_skip=clip_skip, negative=NEGATIVE),
        diffused(model, clip_skip=clip_skip, negative_prompt=NEGATIVE),
    )
    matters(run, prepared(model, negative=NEGATIVE))


def test_batch(model: Model) -> None:
    prompts, negatives = [PROMPT, "the sphere", "blue"], ["", "red", "grass"]
    run = check(
        prepared(model, prompts, negative=negatives, seed=[3, 11, 5]),
        diffused(model, prompts, negative_prompt=negatives, seeds=[3, 11, 5]),
    )
    matters(run, prepared(model, prompts, negative=negatives[::-1], seed=[3, 11, 5]))


def test_images_per_prompt(model: Model) -> None:
    run = check(
        prepared(model, [PROMPT, "blue"], count=2, seed=3),
        diffused(model, [PROMPT, "blue"], num_images_per_prompt=2, seeds=[3, 4, 5, 6]),
    )
    assert run.seeds == (3, 4, 5, 6)


@pytest.mark.parametrize("size", [(392, 520), (72, 40), (40, 104), (8, 16)])
def test_odd_sizes(model: Model, size: tuple[int, int]) -> None:
    steps = 1 if size[0] > 100 else 4
    check(
        prepared(model, size=size, steps=steps),
        diffused(model, size=size, num_inference_steps=steps),
    )


def controls_of(nets: list[Any], size: tuple[int, int] = SIZE) -> list[Control]:
    weights = [0.8, 0.5, 1.1]
    return [
        Control("some", hint(size, k), weight=weight, net=net)
        for k, (net, weight) in enumerate(zip(nets, weights, strict=False))
    ]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_nets(model: Model, nets: list[Any], count: int) -> None:
    controls = controls_of(nets[:count])
    run = check(prepared(model, controls=controls), diffused(model, controls=controls))
    for k, control in enumerate(controls):
        others = [*controls[:k], *controls[k + 1 :]]
        black = dataclasses.replace(control, source=np.zeros_like(control.source))
        weaker = dataclasses.replace(control, weight=0.5 * control.weight)
        matters(run, prepared(model, controls=others))
        matters(run, prepared(model, controls=[*controls[:k], black, *controls[k + 1 :]]))
        matters(run, prepared(model, controls=[*controls[:k], weaker, *controls[k + 1 :]]))


def test_nets_with_everything_else(model: Model, nets: list[Any]) -> None:
    size, prompts = (72, 56), [PROMPT, "the sphere", "blue"]
    controls = controls_of(nets[:2], size)
    options = {"controls": controls, "size": size, "seed": 8, "clip_skip": 1, "negative": [NEGATIVE] * 3}
    run = check(
        prepared(model, prompts, **options),
        diffused(
            model,
            prompts,
            controls,
            size=size,
            seeds=[8, 9, 10],
            clip_skip=1,
            negative_prompt=[NEGATIVE] * 3,
        ),
    )
    matters(run, prepared(model, prompts, **{**options, "clip_skip": 0}))
    matters(run, prepared(model, prompts, **{**options, "negative": ""}))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own
@pytest.mark.parametrize("name", ["DDIMScheduler", "PNDMScheduler", "HeunDiscreteScheduler"])
def test_windows(model: Model, nets: list[Any], name: str) -> None:
    """The windows count evaluations, of which PNDM and Heun have more than steps."""
    windows = [(0.0, 0.5), (0.25, 1.0), (0.3, 0.7)]
    controls = [
        dataclasses.replace(control, start=start, end=end)
        for control, (start, end) in zip(controls_of(nets), windows, strict=True)
    ]
    theirs = reference(
        model,
        scheduler(name),
        PROMPT,
        controls,
        seeds=[3],
        size=SIZE,
        num_inference_steps=5,
        guidance_scale=5.0,
    )
    options = {"steps": 5, "sampler": scheduler(name)}
    run = check(prepared(model, controls=controls, **options), theirs)
    weights = np.array([row.control for row in run.plan.rows])
    assert ((weights != 0).any(axis=0)).all()
    assert ((weights == 0).any(axis=0)).all()
    for k, control in enumerate(controls):
        always = dataclasses.replace(control, start=0.0, end=1.0)
        matters(run, prepared(model, controls=[*controls[:k], always, *controls[k + 1 :]], **options))


@pytest.mark.parametrize("guidance", [5.0, 1.0])
@pytest.mark.parametrize("count", [1, 2])
def test_guess(model: Model, nets: list[Any], guidance: float, count: int) -> None:
    controls = controls_of(nets[:count])
    options: dict[str, Any] = {"controls": controls, "guidance": guidance}
    run = check(
        prepared(model, guess=True, **options),
        diffused(model, controls=controls, guess_mode=True, guidance_scale=guidance),
    )
    matters(run, prepared(model, guess=False, **options))
    matters(run, prepared(model, guess=True, guidance=guidance))


def test_a_net_that_pools(model: Model) -> None:
    """`global_pool_conditions` shows the net the cond half alone."""
    net = small_controlnet(model.unet, 43)
    net.register_to_config(global_pool_conditions=True)
    controls = controls_of([net])
    run = check(prepared(model, controls=controls), diffused(model, controls=controls))
    matters(run, prepared(model))


def test_guidance_of_each_image(model: Model) -> None:
    """diffusers has one scale for all: each image alone is the reference."""
    scales, seeds = [5.0, 1.0, 9.0], [3, 4, 5]
    run = prepared(model, [PROMPT] * 3, guidance=scales, seed=seeds)
    list(run)
    for k, (scale, seed) in enumerate(zip(scales, seeds, strict=True)):
        theirs = diffused(model, guidance_scale=scale, seeds=[seed])
        alone = check(prepared(model, guidance=scale, seed=seed), theirs)
        difference = run.latents[k] - theirs.xs[-1][0]
        assert float(difference.abs().max() / theirs.xs[-1].abs().max()) <= 1e-4
        matters(alone, prepared(model, guidance=scale + 1, seed=seed))


def test_the_folder_through_both(tmp_path: Path) -> None:
    """A folder opened by rawdiff and by diffusers itself: a seed gives one picture."""
    import torch
    from diffusers import ControlNetModel, StableDiffusionControlNetPipeline

    from tests.reference import grey_levels

    folder = small_folder(tmp_path / "model", nets=("depth",))
    depth = np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64)
    run = load(folder).prepare(PROMPT, depth=depth, steps=4, seed=21, say=silent)
    list(run)
    net = ControlNetModel.from_pretrained(folder / "controlnet_depth", dtype=torch.float32)
    pipeline = StableDiffusionControlNetPipeline.from_pretrained(folder, controlnet=net, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline(
        PROMPT,
        image=torch.from_numpy(depth)[None, None].expand(1, 3, -1, -1),
        num_inference_steps=4,
        guidance_scale=4.0,
        generator=torch.Generator().manual_seed(21),
    ).images[0]
    assert run.size == (64, 64)
    assert grey_levels(run.image(), picture) <= 1
