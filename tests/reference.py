"""diffusers' own pipelines over the very modules that a rawdiff model holds, and how far we are from them.

The pipelines are test subjects here and nothing else: rawdiff itself never imports them.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

import rawdiff
from rawdiff import Control, Model, Run

STEP = 1e-5
"""Largest relative error of a step, given the same x."""
END = 1e-4
"""Largest relative error of the final latents of a run."""


@dataclass
class Reference:
    """What a pipeline made: the latents after each evaluation, [B,4,h,w], and the pictures."""

    xs: list[Tensor]
    images: list[Image]


def silent(line: str) -> None:
    """Say nothing."""


def error(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference over the reference's own largest value."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def grey_levels(ours: Image, theirs: Image) -> int:
    """Largest difference of two pictures, in levels of 256."""
    return int(np.abs(np.asarray(ours).astype(int) - np.asarray(theirs).astype(int)).max())


def _pipeline(
    model: Model, scheduler: Any, nets: Sequence[Any], way: str = "", unet: Any = None, name: str = ""
) -> Any:
    """`way` is "", "Img2Img" or "Inpaint"; `name` is of a pipeline that is none of Stable Diffusion's."""
    import diffusers

    two = model.text_encoder_2 is not None
    name = name or f"StableDiffusion{'XL' if two else ''}{'ControlNet' if nets else ''}{way}Pipeline"
    kind = getattr(diffusers, name)
    encoder = model.text_encoder
    parts = {
        "vae": model.vae,
        "text_encoder": encoder,
        "tokenizer": model.tokenizer,
        "unet": model.unet if unet is None else unet,
        "scheduler": copy.deepcopy(scheduler),
        "feature_extractor": None,
    }
    if two:
        parts |= {"text_encoder_2": model.text_encoder_2, "tokenizer_2": model.tokenizer_2}
        parts |= {"force_zeros_for_empty_prompt": model.defaults.zeros, "add_watermarker": False}
    else:
        parts |= {"safety_checker": None, "requires_safety_checker": False}
        encoder.__dict__["text_model"] = encoder  # diffusers looks one level too deep when layers are skipped
    if nets:
        parts["controlnet"] = nets[0] if len(nets) == 1 else list(nets)
    pipeline = kind(**parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def reference(
    model: Model,
    scheduler: Any,
    prompt: str | list[str],
    controls: Sequence[Control] = (),
    *,
    seeds: Sequence[int],
    size: tuple[int, int],
    image: np.ndarray | None = None,
    mask: np.ndarray | None = None,
    unet: Any = None,
    pipeline: str = "",
    **call: Any,
) -> Reference:
    """Run diffusers' pipeline; `call` goes to it as it is (its names: guidance_scale, clip_skip, ...).

    `image` [H,W,3] and `mask` [H,W] choose image to image or inpainting, `unet` is in place of the model's own,
    `pipeline` names a class of diffusers that is none of Stable Diffusion's.
    """
    xs: list[Tensor] = []

    def record(pipeline: Any, i: int, t: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        xs.append(tensors["latents"].clone())
        return {}

    way = "" if image is None else "Img2Img" if mask is None else "Inpaint"
    called = _pipeline(model, scheduler, [control.net for control in controls], way, unet, pipeline)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    if controls:
        maps = [torch.from_numpy(control.source).permute(2, 0, 1)[None] for control in controls]
        one = len(controls) == 1
        call["image" if image is None else "control_image"] = maps[0] if one else maps
        call["controlnet_conditioning_scale"] = controls[0].weight if one else [c.weight for c in controls]
        call["control_guidance_start"] = [c.start for c in controls]
        call["control_guidance_end"] = [c.end for c in controls]
    elif way != "Img2Img":
        call["height"], call["width"] = size
    if image is not None:  # one for each seed: a single one is encoded with the first seed's noise for all
        call["image"] = torch.from_numpy(image).permute(2, 0, 1).repeat(len(seeds), 1, 1, 1)
    if mask is not None:
        call["mask_image"] = torch.from_numpy(mask).repeat(len(seeds), 1, 1, 1)
    images = called(
        prompt,
        generator=generators if len(generators) > 1 else generators[0],
        callback_on_step_end=record,
        **call,
    ).images
    return Reference(xs, images)


def run_fed(run: Run, theirs: Reference) -> float:
    """The largest relative error of a step, each taken from the very x that the reference had."""
    worst = 0.0
    for step in run:
        expected = theirs.xs[step.index]
        worst = max(worst, error(step.state.x, expected))
        step.state = step.state.changed(expected, run.setup.plan)
    assert run.state.i == len(theirs.xs)
    return worst


def check(run: Run, theirs: Reference, bound: float = STEP) -> Run:
    """Assert the three bounds of parity on a run not yet begun; returns it finished."""
    fed = run.fork()
    assert run_fed(fed, theirs) <= bound
    list(run)
    assert len(run) == len(theirs.xs)
    assert error(run.latents, theirs.xs[-1]) <= END
    pictures = run.images()
    assert len(pictures) == len(theirs.images)
    assert max(map(grey_levels, pictures, theirs.images)) <= 1
    return run


def matters(run: Run, other: Run) -> None:
    """Assert that a finished run differs from another (something taken away) by a hundred times the bound."""
    list(other)
    assert error(other.latents, run.latents) >= 100 * END


def hint(size: tuple[int, int], seed: int) -> np.ndarray:
    """A picture [H,W,3] float32 in 0..1, soft enough to pass a small net's strides."""
    coarse = np.random.default_rng(seed).random((size[0] // 8, size[1] // 8, 3), dtype=np.float32)
    return np.ascontiguousarray(coarse.repeat(8, axis=0).repeat(8, axis=1))


def load(folder: Any) -> Model:
    """A model on the CPU in fp32."""
    return rawdiff.load(folder, device="cpu")
