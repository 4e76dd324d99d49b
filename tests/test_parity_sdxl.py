"""SDXL against diffusers' XL pipelines: per step, at the end, as pictures; and each subject matters."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rawdiff import Control, Exact, Model, Run, SizeIds, nets, predict
from rawdiff.conditions import Conditions, Context
from rawdiff.graphs import Frugal, Graphs
from tests.reference import END, STEP, check, error, hint, load, matters, reference, silent
from tests.small_models import TEXT_WIDTH, small_scheduler, small_text_encoder
from tests.small_sdxl import SECOND_WIDTH, sdxl_controlnet, sdxl_unet, second_encoder, small_sdxl

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # diffusers' own

SIZE = (64, 48)
PROMPT, NEGATIVE = "a red cube on grass", "the blue sphere"
STEPS = 4
IDS = SizeIds(original=(512, 768), crop=(16, 40), target=(1024, 640))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(small_sdxl(tmp_path_factory.mktemp("model") / "sdxl"))


@pytest.fixture(scope="module")
def controls(model: Model) -> list[Control]:
    own = [sdxl_controlnet(model.unet, seed) for seed in (40, 41)]
    return [
        Control("some", hint(SIZE, k), weight=weight, start=start, end=end, net=net)
        for k, (net, weight, start, end) in enumerate(
            zip(own, (0.8, 0.5), (0.25, 0.0), (1.0, 0.5), strict=True)
        )
    ]


def scheduler() -> Any:
    return small_scheduler("DDIMScheduler")


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


def told(
    model: Model, run: Run, change: Callable[[Conditions], Conditions] = lambda given: given, **options: Any
) -> Run:
    """A run like this one (not yet begun, without nets) whose networks are told, or run, otherwise."""
    other, given = run.fork(), change(run.conditions)
    network = predict.prepare(run.setup.plan, given, model.unet, **options)
    other.setup = replace(run.setup, conditions=given, predict=network)
    return other


def in_contexts(change: Callable[[Context], Context]) -> Callable[[Conditions], Conditions]:
    return lambda given: replace(given, contexts=tuple(map(change, given.contexts)))


def test_text(model: Model) -> None:
    fresh = prepared(model)
    run = check(prepared(model), diffused(model))
    matters(run, prepared(model, NEGATIVE))
    matters(run, prepared(model, guidance=4.0))
    matters(run, prepared(model, seed=4))

    def columns(which: slice) -> Callable[[Context], Context]:
        def cleared(context: Context) -> Context:
            cond = context.cond.clone()
            cond[..., which] = 0.0
            return replace(context, cond=cond)

        return cleared

    for change in (
        columns(slice(TEXT_WIDTH)),  # the first encoder's
        columns(slice(TEXT_WIDTH, None)),  # the second's
        lambda c: replace(c, cond_pooled=torch.zeros_like(c.cond_pooled)),
        lambda c: replace(c, uncond_pooled=c.cond_pooled),
    ):
        matters(run, told(model, fresh, in_contexts(change)))
    matters(run, told(model, fresh, lambda given: replace(given, ids=given.ids * 0.5)))
    assert fresh.conditions.contexts[0].cond.shape[-1] == TEXT_WIDTH + SECOND_WIDTH


def test_its_own_sampler(model: Model) -> None:
    """Euler's, as SDXL's folders have it."""
    run = check(
        model.prepare(PROMPT, size=SIZE, seed=3, steps=STEPS, say=silent),
        reference(
            model,
            model.scheduler,
            PROMPT,
            seeds=[3],
            size=SIZE,
            num_inference_steps=STEPS,
            guidance_scale=4.0,
        ),
    )
    assert run.sampler.name == "EulerDiscreteScheduler"
    matters(run, model.prepare(NEGATIVE, size=SIZE, seed=3, steps=STEPS, say=silent))


def test_negative_prompt(model: Model) -> None:
    run = check(prepared(model, negative=NEGATIVE), diffused(model, negative_prompt=NEGATIVE))
    matters(run, prepared(model))


def test_an_absent_negative_prompt_is_zeros_and_an_empty_one_is_not(model: Model) -> None:
    absent = prepared(model)
    context = absent.conditions.contexts[0]
    assert context.uncond is not None
    assert not context.uncond.any()
    assert context.uncond_pooled is not None
    assert not context.uncond_pooled.any()
    run = check(prepared(model, negative=" "), diffused(model, negative_prompt=""))
    matters(run, absent)


def test_where_zeros_are_not_forced(model: Model, tmp_path: Path) -> None:
    other = load(small_sdxl(tmp_path / "sdxl", zeros=False))
    run = check(prepared(other), diffused(other))
    matters(run, prepared(model))  # the same weights


def test_without_guidance(model: Model) -> None:
    run = check(prepared(model, guidance=1.0), diffused(model, guidance_scale=1.0))
    matters(run, prepared(model))
    context = run.conditions.contexts[0]
    assert (context.uncond, context.uncond_pooled) == (None, None)


def test_rescale(model: Model) -> None:
    run = check(prepared(model, rescale=0.7), diffused(model, guidance_rescale=0.7))
    matters(run, prepared(model))


@pytest.mark.parametrize("clip_skip", [1, 2])
def test_clip_skip(model: Model, clip_skip: int) -> None:
    """From the layer before the last on, of the positive prompt alone; pooled text knows of none."""
    run = check(
        prepared(model, clip_skip=clip_skip, negative=NEGATIVE),
        diffused(model, clip_skip=clip_skip, negative_prompt=NEGATIVE),
    )
    other = prepared(model, negative=NEGATIVE)
    pooled = [one.conditions.contexts[0].cond_pooled for one in (run, other)]
    assert torch.equal(pooled[0], pooled[1])
    matters(run, other)


def test_batch(model: Model) -> None:
    """Two pictures of a size that is not square, each with a negative prompt of its own."""
    size, prompts, negatives = (40, 104), [PROMPT, "blue"], ["red", NEGATIVE]
    options: dict[str, Any] = {"size": size, "seed": [3, 11], "steps": 3}
    run = check(
        prepared(model, prompts, negative=negatives, **options),
        diffused(model, prompts, negative_prompt=negatives, size=size, seeds=[3, 11], num_inference_steps=3),
    )
    matters(run, prepared(model, prompts, negative=negatives[::-1], **options))
    absent = prepared(model, prompts, negative=["red", ""], **options)
    for k, negative in enumerate(["red", ""]):  # a picture does not depend on its batch
        alone = prepared(model, prompts[k], negative=negative, **{**options, "seed": [3, 11][k]})
        for ours, theirs in zip(
            vars(absent.conditions.contexts[0]).values(),
            vars(alone.conditions.contexts[0]).values(),
            strict=True,
        ):
            assert error(ours[k], theirs[0]) <= STEP if theirs.any() else not ours[k].any()


def test_size_ids(model: Model) -> None:
    asked = {"original_size": IDS.original, "crops_coords_top_left": IDS.crop, "target_size": IDS.target}
    run = check(prepared(model, size_ids=IDS), diffused(model, **asked))
    matters(run, prepared(model))
    for name, other in (("original", None), ("crop", (0, 0)), ("target", None)):
        matters(run, prepared(model, size_ids=replace(IDS, **{name: other})))
    negative = SizeIds(original=(256, 256), crop=(8, 0), target=(640, 1024))
    led_away = check(
        prepared(model, size_ids=replace(IDS, negative=negative)),
        diffused(
            model,
            **asked,
            negative_original_size=negative.original,
            negative_crops_coords_top_left=negative.crop,
            negative_target_size=negative.target,
        ),
    )
    matters(run, led_away.fork())
    # diffusers gives the second picture of a batch the wrong ones of these.
    both = prepared(model, [PROMPT, PROMPT], size_ids=replace(IDS, negative=negative), seed=[5, 3])
    list(both)
    assert error(both.latents[1], led_away.latents[0]) <= END


@pytest.mark.parametrize("count", [1, 2])
def test_nets(model: Model, controls: list[Control], count: int) -> None:
    """With weights and windows."""
    chosen = controls[:count]
    run = check(prepared(model, controls=chosen), diffused(model, controls=chosen))
    weights = np.array([row.control for row in run.plan.rows])
    assert ((weights == 0).any(axis=0) & (weights != 0).any(axis=0)).all()
    for k, control in enumerate(chosen):
        black = dataclasses.replace(control, source=np.zeros_like(control.source))
        weaker = dataclasses.replace(control, weight=0.5 * control.weight)
        always = dataclasses.replace(control, start=0.0, end=1.0)
        matters(run, prepared(model, controls=[*chosen[:k], *chosen[k + 1 :]]))
        for other in (black, weaker, always):
            matters(run, prepared(model, controls=[*chosen[:k], other, *chosen[k + 1 :]]))


def test_guess(model: Model, controls: list[Control]) -> None:
    options: dict[str, Any] = {"controls": controls, "size_ids": IDS, "negative": NEGATIVE}
    asked = {"original_size": IDS.original, "crops_coords_top_left": IDS.crop, "target_size": IDS.target}
    run = check(
        prepared(model, guess=True, **options),
        diffused(model, controls=controls, guess_mode=True, negative_prompt=NEGATIVE, **asked),
    )
    matters(run, prepared(model, guess=False, **options))


def test_nets_with_everything_else(model: Model, controls: list[Control]) -> None:
    prompts = [PROMPT, "blue"]
    chosen = [dataclasses.replace(control, start=0.0, end=1.0) for control in controls]
    run = check(
        prepared(model, prompts, controls=chosen, clip_skip=1, seed=8),
        diffused(model, prompts, chosen, clip_skip=1, seeds=[8, 9]),
    )
    matters(run, prepared(model, prompts, controls=chosen, seed=8))
    # A net that is told nothing beside the time, with a UNet that is.
    plain = sdxl_controlnet(model.unet, 44)
    plain.register_to_config(addition_embed_type=None)
    chosen[0] = dataclasses.replace(chosen[0], net=plain)
    check(prepared(model, controls=chosen), diffused(model, controls=chosen))


@pytest.mark.filterwarnings("ignore:.*upcast_vae.*")
@pytest.mark.parametrize("with_nets", [False, True])
def test_image_to_image(model: Model, controls: list[Control], with_nets: bool) -> None:
    picture, strength = hint(SIZE, 7), 0.6
    chosen = [dataclasses.replace(controls[0], start=0.0, end=1.0)] if with_nets else []
    run = check(
        prepared(model, controls=chosen, image=picture, strength=strength),
        diffused(model, controls=chosen, image=picture, strength=strength),
    )
    matters(run, prepared(model, controls=chosen, image=picture[::-1].copy(), strength=strength))
    if with_nets:
        matters(run, prepared(model, image=picture, strength=strength))


@pytest.mark.parametrize("channels", [4, 9])
def test_inpainting(model: Model, channels: int) -> None:
    """By putting back what stays, and by a UNet that sees it."""
    names = ("source", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    parts = {name: getattr(model, name) for name in (*names, "scheduler", "device", "dtype", "defaults")}
    unet = model.unet if channels == 4 else sdxl_unet(5, in_channels=9)
    other = Model(unet=unet, **parts)
    mask = np.zeros(SIZE, dtype=np.float32)
    mask[16:48, 8:32] = 1.0
    options: dict[str, Any] = {"image": hint(SIZE, 7), "strength": 0.8}
    run = check(
        prepared(other, mask=mask, paste=False, **options), diffused(other, mask=mask, unet=unet, **options)
    )
    moved = np.roll(mask, 16, axis=1)
    matters(run, prepared(other, mask=moved, paste=False, **options))


@pytest.mark.parametrize(
    "exact",
    [Exact(kv=False), Exact(time=False), Exact(prefix=False), Exact(time=False, prefix=False)],
    ids=["kv", "time", "prefix", "time and prefix"],
)
def test_exact_tricks(model: Model, controls: list[Control], exact: Exact) -> None:
    options: dict[str, Any] = {"controls": controls, "negative": NEGATIVE, "seed": [3, 4], "size_ids": IDS}
    one, other = (prepared(model, [PROMPT, "blue"], exact=way, **options) for way in (Exact(), exact))
    for ours, theirs in zip(one, other, strict=True):
        assert error(ours.state.x, theirs.state.x) <= STEP
        theirs.state = theirs.state.changed(ours.state.x, other.setup.plan)


def test_one_half_stands_for_both_until_the_time_is_told(model: Model) -> None:
    """What is told with the time differs from half to half, so the first ResNet is where they part."""
    seen: dict[str, int] = {}
    block = model.unet.down_blocks[0].resnets[0]
    layers = {"conv_in": model.unet.conv_in, "conv1": block.conv1, "conv2": block.conv2}
    handles = [
        layer.register_forward_hook(lambda m, args, out, name=name: seen.update({name: len(args[0])}))
        for name, layer in layers.items()
    ]
    next(prepared(model))
    assert seen == {"conv_in": 1, "conv1": 1, "conv2": 2}
    next(prepared(model, exact=Exact(prefix=False)))
    assert seen == {"conv_in": 2, "conv1": 2, "conv2": 2}
    for handle in handles:
        handle.remove()


def test_little_memory_and_recorded_work(model: Model) -> None:
    """Guidance's halves in turn; and replayed from recordings, with another row, prompt and sizes, to the bit."""
    graphs = Graphs(torch.device("cpu"))
    for way in (Exact(), Exact(kv=False, time=False, prefix=False, scale=False)):
        recorded = 0
        for options in ({}, {"size_ids": IDS, "negative": NEGATIVE}):
            run = prepared(model, exact=way, **options)
            runs = [
                told(model, run, exact=way, runner=runner) for runner in (Frugal(torch.device("cpu")), graphs)
            ]
            for step, low, replayed in zip(run, *runs, strict=True):
                assert error(low.state.x, step.state.x) <= END
                assert torch.equal(replayed.state.x, step.state.x)
            assert len(graphs) == recorded or not recorded
            recorded = len(graphs)


def test_forwards(model: Model) -> None:
    """The networks and the second encoder by themselves, against the modules that hold their weights."""
    unet = sdxl_unet(1)
    x, context, t = randn(2, 4, 9, 7), randn(2, 77, TEXT_WIDTH + SECOND_WIDTH, seed=1), torch.tensor([481.25])
    given = nets.added.Added(randn(2, 24, seed=2), 100 * randn(2, 6, seed=3).abs())
    kwargs = {"text_embeds": given.pooled, "time_ids": given.ids}
    theirs = unet(x, t[0], context, added_cond_kwargs=kwargs, return_dict=False)[0]
    assert error(nets.unet.forward(unet, x, t, context, given), theirs) <= STEP
    for k in (0, 1):
        other = nets.added.Added(*(part.flip(0) if k == j else part for j, part in enumerate(given)))
        assert error(nets.unet.forward(unet, x, t, context, other), theirs) > 100 * STEP
    encoder, ids = (
        second_encoder(3),
        torch.randint(0, 500, (2, 77), generator=torch.Generator().manual_seed(0)),
    )
    end = encoder.config.eos_token_id
    ids[0, 12:], ids[1, 76] = end, end
    found = encoder(ids, output_hidden_states=True)
    for skip in (0, 1, 3):
        hidden, pooled = nets.text.encode_inner(encoder, ids, skip, end=end)
        assert error(hidden, found.hidden_states[-(skip + 2)]) <= STEP
        assert error(pooled, found.text_embeds) <= STEP
    first = small_text_encoder(4)
    hidden, none = nets.text.encode_inner(first, ids, end=end)
    assert none is None
    assert error(hidden, first(ids, output_hidden_states=True).hidden_states[-2]) <= STEP


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
