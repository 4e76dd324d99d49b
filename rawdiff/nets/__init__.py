"""Forwards of our own over diffusers' and transformers' modules, which serve as containers of weights.

The flow from layer to layer is written out here, so that a UNet can be run in two halves with the ControlNets
beside the first, and so that anything can be looked at on its way:

    text.encode(text_encoder, ids)          -> context          what the prompt says, one vector a token
    text.encode_inner(text_encoder, ids)    -> context, pooled  the same as SDXL reads it (`added`: and sizes)
    unet.encode(unet, x, emb, context)      -> skips, middle    the half that reads
    controlnet.residuals(net, x, ...)       -> one residual for each skip and the middle
    unet.decode(unet, skips, middle, ...)   -> out              the half that writes
    vae.decode(vae, latents)                -> picture

In the place of a time embedding and of a context may stand what `tables` holds of them from before the first step,
and one half of guidance may stand for both (`halves`); `exact` names each kind of work that is so left out. A network
may be told the guidance (`guidance`). `calls` has each of these as a value that can be recorded.

Each module says in its `check` what it cannot run, when the weights are loaded and not in the loop.
"""

from rawdiff.nets import (
    added,
    attention,
    blocks,
    calls,
    controlnet,
    derived,
    exact,
    guidance,
    halves,
    memory,
    resnet,
    tables,
    text,
    tiles,
    unet,
    vae,
)

__all__ = [
    "added",
    "attention",
    "blocks",
    "calls",
    "controlnet",
    "derived",
    "exact",
    "guidance",
    "halves",
    "memory",
    "resnet",
    "tables",
    "text",
    "tiles",
    "unet",
    "vae",
]
