"""The arms of the comparison: each makes the same picture, by diffusers' pipelines or by rawdiff's loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rawdiff.conditions import Conditions, Context
from rawdiff.decode import decode
from rawdiff.graphs import Runner, make_runner
from rawdiff.loop import denoise
from rawdiff.noise import Noise
from rawdiff.openvino import choose_runner
from rawdiff.plan import make_plan
from rawdiff.predict import prepare
from rawdiff.sampler import make_sampler
from rawdiff.state import start
from scripts.speed import whole
from scripts.speed.subject import GUIDANCE, Subject, scheduler

__all__ = ["ARMS", "Arm", "Picture"]


class Picture(NamedTuple):
    """What an arm makes."""

    latents: Tensor
    """Final, [1,4,h,w]"""
    pixels: Tensor | None
    """[1,3,H,W], where it was asked to decode"""


Arm = Callable[[bool], Picture]
"""From latents and texts to final latents, and with True on to pixels."""


def _ignore(line: str) -> None:
    pass


def _diffusers(
    subject: Subject, prepared: Callable[[Any], None] = lambda pipeline: None, *, marking: bool = False
) -> Arm:
    """diffusers' pipeline, changed by `prepared`; `marking` tells torch's own cudagraphs where a step begins."""
    from diffusers import StableDiffusionControlNetPipeline, StableDiffusionPipeline

    parts: dict[str, Any] = {
        "vae": subject.vae,
        "text_encoder": None,
        "tokenizer": None,
        "unet": subject.unet,
        "scheduler": scheduler(),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }
    call: dict[str, Any] = {
        "prompt_embeds": subject.cond,
        "negative_prompt_embeds": subject.uncond,
        "num_inference_steps": subject.steps,
        "guidance_scale": GUIDANCE,
    }
    if marking:
        call["callback_on_step_end"] = _mark_step
    if subject.nets:
        one, windows = len(subject.nets) == 1, subject.windows
        nets, hints = list(subject.nets), list(subject.hints)
        pipeline = StableDiffusionControlNetPipeline(controlnet=nets[0] if one else nets, **parts)
        call["image"] = hints[0] if one else hints
        call["controlnet_conditioning_scale"] = windows[0].weight if one else [w.weight for w in windows]
        call["control_guidance_start"] = [w.start for w in windows]
        call["control_guidance_end"] = [w.end for w in windows]
    else:
        pipeline = StableDiffusionPipeline(**parts)
        call["height"], call["width"] = (8 * side for side in subject.latents.shape[2:])
    pipeline.set_progress_bar_config(disable=True)
    prepared(pipeline)

    @torch.no_grad()
    def arm(pixels: bool) -> Picture:
        given = subject.latents.to(subject.dtype).clone()
        if marking:
            torch.compiler.cudagraph_mark_step_begin()
        latents = pipeline(latents=given, output_type="latent", **call).images
        if not pixels:
            return Picture(latents, None)
        decoded = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
        if marking:  # the next step is computed in this one's memory
            decoded = decoded.clone()
        return Picture(latents, decoded)

    return arm


def _mark_step(pipeline: Any, index: int, t: Any, given: dict[str, Any]) -> dict[str, Any]:
    """The networks' outputs are used up: another step begins.

    The latents live on; the scheduler made them anew, outside of what is compiled, and so they need no copy.
    """
    torch.compiler.cudagraph_mark_step_begin()
    return given


def _channels_last(pipeline: Any) -> None:
    for part in (pipeline.unet, pipeline.vae, getattr(pipeline, "controlnet", None)):
        if part is not None:
            part.to(memory_format=torch.channels_last)


def _compiled(mode: str, channels_last: bool) -> Callable[[Any], None]:
    def change(pipeline: Any) -> None:
        if channels_last:
            _channels_last(pipeline)
        pipeline.unet.compile(mode=mode)
        if hasattr(pipeline, "controlnet"):  # the wrapper of several, too
            pipeline.controlnet.compile(mode=mode)
        pipeline.vae.decode = torch.compile(pipeline.vae.decode, mode=mode)

    return change


def _rawdiff(subject: Subject, speed: str, **options: Any) -> Arm:
    return _by(subject, make_runner(speed, subject.device, **options))


def _by(subject: Subject, runner: Runner) -> Arm:
    """rawdiff's loop, its networks run by `runner`."""

    @torch.no_grad()
    def arm(pixels: bool) -> Picture:
        sampler = make_sampler(scheduler(), steps=subject.steps)
        windows, device = subject.windows, subject.device
        plan = make_plan(sampler, guidance=[GUIDANCE], windows=windows, device=device)
        conditions = Conditions((Context(subject.cond, subject.uncond),), subject.hints)
        predict = prepare(plan, conditions, subject.unet, subject.nets, runner=runner)
        state = start(plan, subject.latents, draws=1)
        for step in denoise(state, plan, predict, Noise([0], subject.latents.shape[2:], device)):
            state = step.state
        return Picture(state.x, decode(subject.vae, state.x, runner=runner, say=_ignore) if pixels else None)

    return arm


ARMS: dict[str, Callable[[Subject], Arm]] = {
    "diffusers": _diffusers,
    "diffusers-last": lambda subject: _diffusers(subject, _channels_last),
    "diffusers-overhead": lambda subject: _diffusers(
        subject, _compiled("reduce-overhead", False), marking=True
    ),
    "diffusers-max": lambda subject: _diffusers(subject, _compiled("max-autotune", True), marking=True),
    "eager": lambda subject: _rawdiff(subject, "eager"),
    "graph": lambda subject: _rawdiff(subject, "graph"),
    "graph-serial": lambda subject: _rawdiff(subject, "graph", side_by_side=False),
    "graph-parallel": lambda subject: _rawdiff(subject, "graph", side_by_side=True),
    "compile": lambda subject: _rawdiff(subject, "compile"),
    "openvino": lambda subject: _by(
        subject, choose_runner("openvino", None, subject.device, subject.dtype, say=_ignore)
    ),
    "diffusers-openvino": lambda subject: _diffusers(subject.copied(), whole.by_openvino),
}
"""The first four are diffusers': eager, channels last, and compiled as its users do it; the others are rawdiff's.

The last is diffusers' loop again, over whole networks run by OpenVINO.
"""
