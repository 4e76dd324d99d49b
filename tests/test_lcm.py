"""Latent consistency models: told their guidance, or taught by a LoRA; equal to diffusers on one half alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import rawdiff
from rawdiff import Control, Model, Run, weights
from rawdiff.errors import UsageError, WeightsError
from rawdiff.nets import guidance
from rawdiff.nets.exact import EVERYTHING
from rawdiff.plan import make_plan
from rawdiff.predict import prepare
from rawdiff.weights import build, fill
from rawdiff.weights.choose import read_json
from rawdiff.weights.single import FAMILIES
from tests.checkpoints import write_header
from tests.cli_run import rawdiff as command
from tests.lora_files import kohya, random_changes, write
from tests.reference import check, hint, load, matters, reference, silent
from tests.small_models import small_controlnet, small_folder, small_scheduler, small_unet
from tests.test_loras_run import merged_by_hand

SIZE = (64, 48)
PROMPT = "a red cube on grass"
STEPS = 5
WIDTH = 16
LCM = "LatentConsistencyModelPipeline"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(small_folder(tmp_path_factory.mktemp("model") / "plain", nets=(), scheduler="LCMScheduler"))


@pytest.fixture(scope="module")
def model(plain: Model) -> Model:
    """The same with a UNet that is told its guidance."""
    parts: dict[str, Any] = {
        name: getattr(plain, name)
        for name in ("source", "vae", "text_encoder", "tokenizer", "scheduler", "device", "dtype", "defaults")
    }
    return Model(unet=told_unet(), **parts)


def told_unet() -> Any:
    unet = small_unet(7, time_cond_proj_dim=WIDTH)
    with torch.no_grad():  # as a trained one's: the guidance shows
        unet.time_embedding.cond_proj.weight.mul_(6.0)
    return unet


def prepared(model: Model, **options: Any) -> Run:
    defaults = {"size": SIZE, "steps": STEPS, "guidance": 7.3, "seed": 3, "say": silent}
    return model.prepare(options.pop("prompt", PROMPT), **{**defaults, **options})


def diffused(model: Model, controls: Any = (), **call: Any) -> Any:
    call = {"seeds": [3], "size": SIZE, "num_inference_steps": STEPS, "guidance_scale": 7.3, **call}
    return reference(model, model.scheduler, call.pop("prompt", PROMPT), controls, **call)


@contextmanager
def rows_seen(unet: Any) -> Iterator[list[int]]:
    """How many rows go through the UNet's first convolution, each time."""
    seen: list[int] = []
    handle = unet.conv_in.register_forward_hook(lambda m, args, out: seen.append(len(args[0])))
    try:
        yield seen
    finally:
        handle.remove()


# Told the guidance.


@pytest.mark.parametrize("time", [True, False])
@pytest.mark.parametrize("scale", [7.3, 1.0, 13.7])
def test_against_diffusers(model: Model, scale: float, time: bool) -> None:
    """With the table of times and without; a guidance of 1 is told too."""
    exact = replace(EVERYTHING, time=time)
    run = check(
        prepared(model, guidance=scale, exact=exact), diffused(model, pipeline=LCM, guidance_scale=scale)
    )
    matters(run, prepared(model, guidance=scale + 1.0))
    matters(run, prepared(model, guidance=scale, prompt="the blue sphere"))


def test_a_batch(model: Model) -> None:
    prompts = [PROMPT, "the sphere", "blue"]
    run = check(
        prepared(model, prompt=prompts, seed=[3, 11, 5]),
        diffused(model, prompt=prompts, pipeline=LCM, seeds=[3, 11, 5]),
    )
    matters(run, prepared(model, prompt=prompts, seed=[3, 11, 5], guidance=4.0))


def test_each_image_is_told_its_own(model: Model) -> None:
    scales = [7.3, 2.0, 11.0]
    together = prepared(model, prompt=[PROMPT] * 3, guidance=scales, seed=[3, 4, 5])
    list(together)
    for k, scale in enumerate(scales):
        alone = check(
            prepared(model, guidance=scale, seed=3 + k),
            diffused(model, pipeline=LCM, guidance_scale=scale, seeds=[3 + k]),
        )
        difference = together.latents[k] - alone.latents[0]
        assert float(difference.abs().max() / alone.latents.abs().max()) <= 1e-4


def test_with_a_controlnet(model: Model) -> None:
    """Which is not told; diffusers' ControlNet pipeline runs such a UNet too."""
    controls = [Control("some", hint(SIZE, 0), weight=0.8, net=small_controlnet(small_unet(7), 40))]
    run = check(prepared(model, controls=controls), diffused(model, controls))
    matters(run, prepared(model))
    matters(run, prepared(model, controls=controls, guidance=3.0))


def test_one_half_is_run_and_the_negative_prompt_is_spoken_of(model: Model) -> None:
    said: list[str] = []
    with rows_seen(model.unet) as seen:
        run = prepared(model, negative="the blue sphere", say=said.append)
        list(run)
    assert seen == [1] * STEPS
    assert run.conditions.contexts[0].uncond is None
    assert not run.plan.guided
    assert len(said) == 1
    assert "no effect: this model is told its guidance" in said[0]


def test_the_guidance_is_in_the_row_of_the_table(model: Model) -> None:
    """No embedding is computed in the loop, and a row is as wide as the batch."""
    embedded: list[int] = []
    handle = model.unet.time_embedding.register_forward_hook(lambda m, args, out: embedded.append(len(out)))
    try:
        run = prepared(model, prompt=[PROMPT] * 2, guidance=[2.0, 9.0], seed=[1, 2])
        assert embedded == [2 * STEPS]
        list(run)
        assert embedded == [2 * STEPS]
    finally:
        handle.remove()


def test_a_sampler_begun_anew_is_told_the_same(model: Model) -> None:
    run = prepared(model, sampler=small_scheduler("PNDMScheduler"), steps=6)
    other = prepared(
        model, sampler=small_scheduler("PNDMScheduler"), steps=6, exact=rawdiff.Exact(time=False)
    )
    for one in (run, other):
        for step in one:
            if step.index == 2:
                step.state = step.state.changed(0.9 * step.state.x, one.setup.plan, forget=True)
    assert run.plan.distilled
    assert float((run.latents - other.latents).abs().max() / other.latents.abs().max()) <= 1e-5


def test_saved_and_resumed(model: Model, tmp_path: Path) -> None:
    straight = prepared(model)
    list(straight)
    half = prepared(model)
    for step in half:
        if step.index == 2:
            break
    half.save(tmp_path / "half.run")
    resumed = model.resume(tmp_path / "half.run", say=silent)
    list(resumed)
    assert torch.equal(resumed.latents, straight.latents)


def test_a_plan_for_the_other_kind_is_refused(model: Model, plain: Model) -> None:
    run = prepared(model)
    for unet, distilled in ((model.unet, False), (plain.unet, True)):
        plan = make_plan(run.plan.sampler, guidance=[4.0], distilled=distilled)
        with pytest.raises(UsageError, match=r"this UNet is (not )?told its guidance"):
            prepare(plan, run.conditions, unet)


def test_waves() -> None:
    """The scale less one, a thousand times, in sines and cosines of falling speed; an odd width is filled up."""
    found = guidance.waves([1.0, 1.5], 5)
    assert found.shape == (2, 5)
    assert found[0].tolist() == [0.0, 0.0, 1.0, 1.0, 0.0]
    angles = torch.tensor([500.0, 500.0 / 10000])
    assert torch.allclose(found[1, :4], torch.cat([angles.sin(), angles.cos()]), atol=1e-4)


# As a model.


def folder_of(path: Path) -> Path:
    """A folder as diffusers saves it, without a rawdiff.json."""
    folder = small_folder(path, nets=(), scheduler="LCMScheduler")
    told_unet().save_pretrained(folder / "unet")
    (folder / "rawdiff.json").unlink()
    return folder


def test_a_folder_and_its_defaults(tmp_path: Path) -> None:
    """Its own scheduler, and the guidance that diffusers' pipeline has where nobody says."""
    found = load(folder_of(tmp_path / "lcm"))
    run = check(
        prepared(found, guidance=None), reference(
            found, found.scheduler, PROMPT, seeds=[3], size=SIZE, num_inference_steps=STEPS, pipeline=LCM
        )
    )  # fmt: skip
    assert type(found.scheduler).__name__ == "LCMScheduler"
    assert run.recipe["guidance"] == [8.5]


def test_an_end_of_guidance_is_refused_before_weights_are_read(tmp_path: Path) -> None:
    """Nor does a dry run find nothing wrong with it."""
    folder = folder_of(tmp_path / "lcm")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"")
    words = ["gen", "-p", "a", "--model", folder, "--size", "64x64", "--guidance-end", "0.5"]
    for more in ([], ["--dry-run"]):
        done = command(*words, *more, "-o", tmp_path / "out")
        assert done.code == 2
        assert "guidance end 0.5: this model is told its guidance" in done.error


def test_a_file_in_diffusers_names(tmp_path: Path) -> None:
    """The layer tells what the bundled config does not: its width, and which scheduler goes with it."""
    config = read_json(FAMILIES / "sd1" / "unet" / "config.json") | {"time_cond_proj_dim": 256}
    module = build.build_empty(build.PARTS["unet"], config, "x")
    shapes = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    opened = weights.open_source(write_header(tmp_path / "lcm.safetensors", shapes))
    assert opened.single is not None
    assert weights.read_config(opened, "unet")["time_cond_proj_dim"] == 256
    assert type(weights.load_scheduler(opened)).__name__ == "LCMScheduler"
    with contextlib.closing(opened.single.open("unet", config)) as file:
        assert set(fill.plan_fill("unet", module, [file], "x")) == set(shapes)


# Taught by a LoRA.


def test_lora_with_guidance_off(plain: Model, tmp_path: Path) -> None:
    """LCM by a LoRA is an ordinary run with guidance 1: one half, as diffusers' Stable Diffusion pipeline does it."""
    changes = random_changes({"unet": plain.unet, "text_encoder": plain.text_encoder}, 1)
    path = write(tmp_path / "lcm.safetensors", kohya(changes))
    options: dict[str, Any] = {"sampler": "lcm", "guidance": 1.0, "steps": 4}
    other = merged_by_hand(plain, (changes, 1.0))
    other.scheduler = small_scheduler(
        "LCMScheduler", steps_offset=1
    )  # or else diffusers speaks of it; LCM has no use
    theirs = diffused(other, guidance_scale=1.0, num_inference_steps=4)
    with rows_seen(plain.unet) as seen:
        run = prepared(plain, loras=[path], **options)
        list(run.fork())
    assert seen == [1] * 4
    run = check(run, theirs)
    matters(run, prepared(plain, **options))
    with rows_seen(plain.unet) as seen:
        guided = prepared(
            plain, loras=[path], **{**options, "guidance": 2.0}, exact=rawdiff.Exact(prefix=False)
        )
        matters(run, guided)
    assert seen == [2] * 4


def test_an_inpainting_unet_that_is_told_other_things(tmp_path: Path) -> None:
    folder = small_folder(tmp_path / "model", nets=(), inpaint=True)
    small_unet(5, in_channels=9, time_cond_proj_dim=WIDTH).save_pretrained(folder / "unet_inpaint")
    found = load(folder)
    with pytest.raises(WeightsError, match="inpainting unet: time_cond_proj_dim is 16, expected None"):
        prepared(found, image=hint(SIZE, 1), mask=hint(SIZE, 2)[..., 0])
