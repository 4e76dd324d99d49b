"""What options are called in diffusers, A1111 and ComfyUI, for whoever comes from there."""

from __future__ import annotations

from collections.abc import Collection

__all__ = ["NAMES", "named_here"]

NAMES: dict[str, str] = {
    elsewhere: here
    for here, others in {
        "guidance": ("cfg", "cfg-scale", "guidance-scale", "scale"),
        "rescale": ("guidance-rescale", "cfg-rescale"),
        "steps": ("num-inference-steps", "num-steps", "sampling-steps", "ddim-steps"),
        "sampler": ("scheduler", "sampler-name", "sampling-method"),
        "size": ("width", "height", "w", "resolution"),
        "count": ("num-images", "num-images-per-prompt", "n-iter", "n-samples"),
        "batch": ("batch-size",),
        "strength": ("denoise", "denoising", "denoising-strength"),
        "image": ("init-image", "init-img", "input", "input-image"),
        "mask": ("mask-image",),
        "model": ("ckpt", "checkpoint", "model-id", "base-model"),
        "net": ("controlnet", "control-net", "controlnet-model"),
        "control": (
            *("control-image", "conditioning-scale", "controlnet-conditioning-scale"),
            *("control-guidance-start", "control-guidance-end"),
        ),
        "guess": ("guess-mode",),
        "embedding": ("textual-inversion",),
        "dtype": ("precision", "fp16", "half", "torch-dtype"),
        "memory": ("lowvram", "medvram", "cpu-offload"),
        "out": ("output", "outdir", "output-dir"),
    }.items()
    for elsewhere in others
}
"""The name there, without dashes before it: the option here."""


def named_here(option: str, options: Collection[str]) -> str | None:
    """The one of `options` ("--steps", ...) that is what another tool calls `option`; None where none is."""
    here = "--" + NAMES.get(option.lstrip("-").replace("_", "-").lower(), "")
    return here if here in options else None
