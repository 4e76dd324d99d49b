"""The front door: load a model's parts, prepare a run, resume one.

model = rawdiff.load()                       # or a folder, or a hub id; controls=["depth"]
run = model.prepare("a red cube on grass", depth="room.png", size=(512, 768), steps=20, seed=7)
for step in run:
    step.x, step.uncond, step.cond, step.x0
run.image().save("cube.png")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rawdiff import images, recipe, saved, weights
from rawdiff.arguments import (
    build_sampler,
    check_callables,
    check_fit,
    check_flags,
    check_nets,
    check_path,
    check_whole,
    count_prompts,
    given_latents,
    rebuild_sampler,
    shown,
    spread_prompts,
    spread_scales,
)
from rawdiff.conditions import Conditions, Context
from rawdiff.controls import Control, choose_size, gather, make_hints, recall
from rawdiff.errors import UsageError
from rawdiff.geometry import Size, latent_size
from rawdiff.loop import Constrain
from rawdiff.noise import Noise, check_seeds, random_seed
from rawdiff.parts import Parts
from rawdiff.plan import Plan, make_plan
from rawdiff.predict import EVERYTHING, Exact, prepare
from rawdiff.probes import NO_PROBE, ProbeLike
from rawdiff.prompts import encode_prompts
from rawdiff.run import Run, Setup
from rawdiff.say import Say, say_on_stderr
from rawdiff.state import start
from rawdiff.step import check_watch

__all__ = ["Control", "Model", "Run", "load"]

WATCH = ("x", "uncond", "cond", "guided", "x0")
"""What a run prepared from Python keeps of each step."""


def load(
    source: str | Path | None = None,
    *,
    controls: Sequence[str] = (),
    nets: Mapping[str, Any] | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    offline: bool = False,
    revision: str | None = None,
    say: Say = say_on_stderr,
    probe: ProbeLike = NO_PROBE,
) -> Model:
    """Load a model's parts from a folder, a file, a hub id, or (by default) the embedded model.

    `controls` are kinds of ControlNets to load at once ("depth"); others are loaded when a run needs them.
    `nets` names sources for kinds where the model's own are not wanted. The device is the first GPU or
    else the CPU, the dtype fp16 or fp32 after it. Raises WeightsError, HubError, ResourceError,
    UsageError.
    """
    check_callables(say=say, probe=probe)
    check_flags(offline=offline)
    known = check_nets(nets, controls)
    chosen = weights.choose_device(device)
    kind = weights.choose_dtype(chosen, dtype)
    opened = weights.open_source(source, revision=revision, offline=offline, say=say)
    place: dict[str, Any] = {"device": chosen, "dtype": kind}
    with probe("load"):
        with probe("tokenizer", host=True):
            tokenizer = weights.load_tokenizer(opened)
        with probe("text encoder"):
            text_encoder = weights.load_text_encoder(opened, **place)
        with probe("unet"):
            unet = weights.load_unet(opened, **place)
        with probe("vae"):
            vae = weights.load_vae(opened, **place)
        model = Model(
            source=opened,
            unet=unet,
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            scheduler=weights.load_scheduler(opened),
            device=chosen,
            dtype=kind,
            defaults=weights.read_defaults(opened),
            nets=known,
            offline=offline,
            say=say,
        )
    for name in controls:
        model.net(name, probe=probe)
    return model


class Model(Parts):
    """A model's parts, each to be looked at and used by itself, and `prepare`, which makes runs of them."""

    def prepare(
        self,
        prompt: str | Sequence[str],
        *,
        negative: str | Sequence[str] = "",
        depth: Any = None,
        normal: Any = None,
        canny: Any = None,
        controls: Sequence[Control] = (),
        size: Size | None = None,
        steps: int | None = None,
        guidance: float | Sequence[float] | Tensor | None = None,
        rescale: float = 0.0,
        clip_skip: int = 0,
        guess: bool = False,
        seed: int | Sequence[int] | None = None,
        count: int = 1,
        sampler: Any = None,
        eta: float = 0.0,
        timesteps: Sequence[int] | None = None,
        sigmas: Sequence[float] | None = None,
        latents: Tensor | None = None,
        fit: images.Fit = None,
        depth_range: images.DepthRange = None,
        depth_invert: bool = False,
        exact: Exact = EVERYTHING,
        watch: Sequence[str] = WATCH,
        say: Say = say_on_stderr,
        probe: ProbeLike = NO_PROBE,
    ) -> Run:
        """Prepare a run of `count` images for each prompt; nothing is denoised until it is iterated.

        `depth`, `normal` and `canny` are maps (path, PIL, array or tensor) for the model's own nets,
        `controls` the long form. `size` is (height, width) in pixels; without it the first map's shape,
        brought to the model's native area. `steps` is 20 unless `timesteps` or `sigmas` are given.
        `guidance` (1 or less: off), `negative` and `seed` may be lists, one for each image; a single seed
        counts up, None draws one (see `run.seeds`). `sampler` is a name ("dpm++ 2m karras"), a diffusers
        scheduler or a Sampler. `latents` [B,4,h,w] replace the first draw of noise. `exact` says which work
        is done once instead of at each step (all of it, and no picture changes by more than rounding). What
        `watch` names is kept of each step; with () nothing is, and a Step is stale once the run has gone on.
        `say` is told what a person should know, a line at a time. Raises UsageError (SizeError), InputError,
        WeightsError.
        """
        check_callables(say=say, probe=probe)
        check_flags(guess=guess, depth_invert=depth_invert)
        check_whole("clip skip", clip_skip)
        check_fit(fit)
        check_watch(watch)
        distinct = count_prompts(prompt, count)
        prompts = spread_prompts("prompt", prompt, distinct, count)
        negatives = spread_prompts("negative prompt", negative, distinct, count)
        scales = spread_scales(self.defaults.guidance if guidance is None else guidance, distinct, count)
        seeds = check_seeds(random_seed(len(prompts)) if seed is None else seed, len(prompts))
        wanted = gather(depth, normal, canny, controls)
        for control in wanted:
            self.net_source(control.kind, control.net)  # before anything slow begins
        schedule: dict[str, Any] = {"steps": steps, "timesteps": timesteps, "sigmas": sigmas, "eta": eta}
        made, spec = build_sampler(sampler, self.scheduler, self.defaults.sampler, **schedule)
        windows = [control.window for control in wanted]
        plan = make_plan(made, guidance=scales, rescale=rescale, windows=windows, device=self.device)
        if any(negatives) and not plan.guided:
            say("the negative prompt has no effect: guidance is off")

        with probe("hints", host=True):
            samples = [images.open_source(control.source) for control in wanted]
            size = choose_size(size, self.defaults.native_size, samples)
            self.check_memory(size, len(prompts), guided=plan.guided)
            options: dict[str, Any] = {"fit": fit, "depth_range": depth_range, "depth_invert": depth_invert}
            hints = make_hints(wanted, samples, size, say=say, **options)
        for control in wanted:
            self.net(control.kind, control.net, probe=probe)
        texts: dict[str, Any] = {"say": say, "probe": probe}
        cond = encode_prompts(self.tokenizer, self.text_encoder, prompts, clip_skip=clip_skip, **texts)
        uncond = (
            encode_prompts(self.tokenizer, self.text_encoder, negatives, **texts) if plan.guided else None
        )
        conditions = Conditions((Context(cond, uncond),), tuple(hint.tensor[None] for hint in hints))

        noise = Noise(seeds, latent_size(size), self.device)
        first = noise.draw(0) if latents is None else given_latents(latents, noise)
        account = recipe.of_run(
            self._account(),
            prompts=prompts,
            negatives=negatives,
            size=size,
            seeds=seeds,
            guidance=scales,
            rescale=rescale,
            clip_skip=clip_skip,
            guess=guess,
            sampler=spec,
            controls=[
                c.describe(h, self.net_hashes(c), **options) for c, h in zip(wanted, hints, strict=True)
            ],
            latents=None if latents is None else sha256(first.cpu().numpy().tobytes()).hexdigest(),
        )
        origin = recipe.origin(
            self.source,
            sampler=sampler if isinstance(sampler, str) else None,
            inputs=[opened.name for opened in samples],
            nets=[self.named_net(control) for control in wanted],
        )
        setup = self._setup(plan, conditions, wanted, hints, account, origin, exact, say, probe)
        state = start(
            plan, first.to(torch.promote_types(self.dtype, torch.float32)), draws=int(latents is None)
        )
        return Run(setup, state, noise, watch=watch)

    def resume(
        self,
        path: str | Path,
        *,
        run: Run | None = None,
        sampler: Any = None,
        modules: Sequence[Any] = (),
        constrain: Constrain | None = None,
        exact: Exact = EVERYTHING,
        watch: Sequence[str] = WATCH,
        say: Say = say_on_stderr,
        probe: ProbeLike = NO_PROBE,
    ) -> Run:
        """Go on with a run that `Run.save` wrote, to the bit.

        With `run`, one just prepared, the two recipes must be the same. `sampler` is needed where the run was
        prepared with a scheduler or Sampler of one's own, `modules` (one for each control) where it was with
        modules, `constrain` where `Run.constrain` was in force: no file holds these, and without them it
        would be another run; so it is with another `exact`. Raises InputError for a file that is damaged, or
        made with other weights, recipe or versions, UsageError for a part that has to be given again.
        """
        path = check_path("path", path)
        check_callables(say=say, probe=probe)
        if run is not None and not isinstance(run, Run):
            raise UsageError(f"run {shown(run)}: expected a run that was just prepared")
        held = saved.load(path, self.device)
        if run is not None:
            saved.check_same(path, held.recipe, run.recipe)
        account, own = held.recipe, self._account()
        saved.check_same(path, {key: account.get(key) for key in own}, own)
        held.check_constraint(constrain)
        wanted = recall(path, account["controls"], modules)
        made, spec = rebuild_sampler(path, account["sampler"], sampler, self.scheduler)
        saved.check_same(path, {"sampler": account["sampler"]}, {"sampler": spec})
        windows = [control.window for control in wanted]
        plan = make_plan(
            made,
            guidance=account["guidance"],
            rescale=account["rescale"],
            windows=windows,
            device=self.device,
        )
        held.check_table(plan)
        size, seeds = (account["size"][0], account["size"][1]), account["seeds"]
        self.check_memory(size, len(seeds), guided=plan.guided)
        hints = tuple(
            images.Hint(entry["kind"], tensor[0], entry["sha256"], entry["hint"])
            for entry, tensor in zip(account["controls"], held.conditions.hints, strict=True)
        )
        setup = self._setup(plan, held.conditions, wanted, hints, account, held.origin, exact, say, probe)
        for control, entry in zip(wanted, account["controls"], strict=True):
            name = f"controlnet {control.kind}"
            saved.check_same(path, {name: entry["weights"]}, {name: self.net_hashes(control)})
        noise = Noise(seeds, latent_size(size), self.device)
        resumed = Run(setup, held.state, noise, watch=watch, x0=held.x0)
        if held.constraint is not None:
            resumed.constrain(constrain, forget=held.constraint["forget"])
        return resumed

    def _account(self) -> dict[str, Any]:
        """What of an account is the model's."""
        return recipe.of_model(self.source, self.hashes(), self.dtype)

    def _setup(
        self,
        plan: Plan,
        conditions: Conditions,
        controls: Sequence[Control],
        hints: tuple[images.Hint, ...],
        account: Mapping[str, Any],
        origin: Mapping[str, Any],
        exact: Exact,
        say: Say,
        probe: ProbeLike,
    ) -> Setup:
        loaded = [self.net(control.kind, control.net, probe=probe) for control in controls]
        names = [control.kind for control in controls]
        options: dict[str, Any] = {"names": names, "guess": bool(account["guess"]), "exact": exact}
        predict = prepare(plan, conditions, self.unet, loaded, **options, probe=probe)
        return Setup(plan, conditions, predict, self.vae, account, origin, hints, say, probe)
