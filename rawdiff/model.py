"""The front door: load a model's parts, prepare a run, resume one.

model = rawdiff.load()                       # or a folder, or a hub id; controls=["depth"]
run = model.prepare("a red cube on grass", depth="room.png", size=(512, 768), steps=20, seed=7)
for step in run:
    step.x, step.uncond, step.cond, step.x0
run.image().save("cube.png")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rawdiff import weights
from rawdiff.arguments import check_callables, check_flags, check_nets
from rawdiff.controls import Control
from rawdiff.openvino import choose_runner
from rawdiff.parts import Parts
from rawdiff.preparing import prepare
from rawdiff.probes import NO_PROBE, ProbeLike
from rawdiff.resuming import resume
from rawdiff.run import Run
from rawdiff.say import Say, say_on_stderr

__all__ = ["Control", "Model", "Run", "load"]


def load(
    source: str | Path | None = None,
    *,
    controls: Sequence[str] = (),
    nets: Mapping[str, Any] | None = None,
    vae: str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    speed: str | None = None,
    memory: str | None = None,
    backend: str | None = None,
    offline: bool = False,
    revision: str | None = None,
    say: Say = say_on_stderr,
    probe: ProbeLike = NO_PROBE,
) -> Model:
    """Load a model's parts from a folder, a file, a hub id, a merge of these, or (by default) the embedded model.

    `controls` are kinds of ControlNets to load at once ("depth"); others are loaded when a run needs them.
    `nets` names sources for kinds where the model's own are not wanted, `vae` one of another VAE (a folder, file or
    hub id that is one or holds one). The device is the first GPU or
    else the CPU, the dtype fp16 or fp32 after it. `speed` is how the networks are run, "eager", "graph" (on CUDA) or
    "compile", by default the best without waiting for a compiler; `memory` is "normal", or "low": a part on the device
    at a time, guidance's halves in turn, the VAE in tiles (approximate). `backend` is "torch", or "openvino", which
    runs the UNet, ControlNets and VAE on a CPU in fp32 or bf16, without `speed` and memory "low". Raises
    WeightsError, HubError, ResourceError, UsageError.
    """
    check_callables(say=say, probe=probe)
    check_flags(offline=offline)
    known = check_nets(nets, controls)
    chosen = weights.choose_device(device)
    kind = weights.choose_dtype(chosen, dtype)
    runner = choose_runner(backend, speed, chosen, kind, memory, say=say)
    opened = weights.open_source(source, revision=revision, offline=offline, say=say)
    opened = weights.with_vae(opened, vae, offline=offline, say=say)
    place: dict[str, Any] = {"device": chosen, "dtype": kind}
    with probe("load"):
        defaults = weights.read_defaults(opened)
        second: dict[str, Any] = {}
        with probe("tokenizer", host=True):
            tokenizer = weights.load_tokenizer(opened)
            if defaults.two_encoders:
                second["tokenizer_2"] = weights.load_tokenizer(opened, "tokenizer_2")
        with probe("text encoder"):
            text_encoder = weights.load_text_encoder(opened, **place)
            runner.keep([text_encoder])
            if defaults.two_encoders:
                second["text_encoder_2"] = weights.load_text_encoder_2(opened, **place)
                runner.keep([second["text_encoder_2"]])
        with probe("unet"):
            unet = weights.load_unet(opened, **place)
            runner.keep([unet])
        with probe("vae"):
            vae = weights.load_vae(opened, device=chosen, dtype=weights.vae_dtype(opened, defaults, kind))
            runner.keep([vae])
        model = Model(
            source=opened,
            unet=unet,
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            scheduler=weights.load_scheduler(opened),
            device=chosen,
            dtype=kind,
            defaults=defaults,
            nets=known,
            runner=runner,
            offline=offline,
            say=say,
            **second,
        )
    for name in controls:
        model.net(name, probe=probe)
    return model


class Model(Parts):
    """A model's parts, each to be looked at and used by itself, and what makes runs of them."""

    prepare = prepare
    resume = resume
