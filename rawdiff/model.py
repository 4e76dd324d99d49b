"""The front door: load a model's parts, prepare a run, resume one.

model = rawdiff.load()                       # or a folder, or a hub id; controls=["depth"]
run = model.prepare("a red cube on grass", depth="room.png", size=(512, 768), steps=20, seed=7)
for step in run:
    step.x, step.uncond, step.cond, step.x0
run.image().save("cube.png")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
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
from rawdiff.beginning import Beginning, begin_from, part_way
from rawdiff.conditions import Conditions
from rawdiff.controls import Control, choose_size, gather, make_hints, recall
from rawdiff.errors import UsageError
from rawdiff.extras import AddedLora
from rawdiff.geometry import Size, latent_size
from rawdiff.limits import check_strength
from rawdiff.loop import Constrain
from rawdiff.nets.exact import check as check_exact
from rawdiff.nets.exact import without
from rawdiff.noise import Noise, check_seeds, random_seed
from rawdiff.parts import Parts
from rawdiff.plan import Plan, make_plan
from rawdiff.predict import EVERYTHING, Exact, check_channels, prepare
from rawdiff.probes import NO_PROBE, ProbeLike
from rawdiff.run import Run, Setup
from rawdiff.say import Say, say_on_stderr
from rawdiff.state import start
from rawdiff.step import check_watch
from rawdiff.syntax import PLAIN, check_syntax, take_all_tags
from rawdiff.texts import encode_texts, taken_for_text, texts_of
from rawdiff.vocabulary import unused

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
    """Load a model's parts from a folder, a hub id, or (by default) the embedded model.

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
        image: Any = None,
        mask: Any = None,
        strength: float | None = None,
        paste: bool | None = None,
        fit: images.Fit = None,
        depth_range: images.DepthRange = None,
        depth_invert: bool = False,
        loras: Sequence[Any] = (),
        embeddings: Sequence[Any] = (),
        syntax: str | None = None,
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
        scheduler or a Sampler. `loras` are paths (or names of the model's own), each alone or with its scale,
        [("style.safetensors", 0.8)], merged into the weights for as long as this run draws; `embeddings` likewise, each
        alone or with its trigger. `latents` [B,4,h,w] replace the first draw of noise. `syntax` is how prompts are
        read: "plain" (all of it is text, the rest of a long one is cut), or "a1111": weights, BREAK, prompt editing, as
        many tokens as there are, and `<lora:name:0.8>` for LoRAs that the model brings (see `rawdiff.syntax`).

        `image` (as the maps) is what the run begins from, for the last `strength` of its steps (above 0 to 1; 0.8).
        With a `mask` of its size only what is white there is painted anew (strength 1): by the model's inpainting
        UNet, or else by putting the rest back after each step. The pictures get the rest pasted back unless `paste`
        is False. Where they have an image, `size` follows from it, and `fit` holds for it too. `exact` says which work
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
        check_exact(exact)
        distinct = count_prompts(prompt, count)
        strength, masked = check_strength(image, mask, strength, paste, latents), mask is not None
        check_channels(self.unet.config.in_channels, masked=masked)
        prompts = spread_prompts("prompt", prompt, distinct, count)
        negatives = spread_prompts("negative prompt", negative, distinct, count)
        syntax = check_syntax(syntax)
        prompts, tags = (prompts, ()) if syntax == PLAIN else take_all_tags(prompts, negatives)
        scales = spread_scales(self.defaults.guidance if guidance is None else guidance, distinct, count)
        seeds = check_seeds(random_seed(len(prompts)) if seed is None else seed, len(prompts))
        wanted = gather(depth, normal, canny, controls)
        for control in wanted:
            self.net_source(control.kind, control.net)  # before anything slow begins
        added, words = self.extras.loras(loras, tags), self.extras.embeddings(embeddings)
        vocabulary = self.vocabulary(words)
        for line in unused(vocabulary, [*prompts, *negatives]):
            say(line)
        schedule: dict[str, Any] = {"steps": steps, "timesteps": timesteps, "sigmas": sigmas, "eta": eta}
        made, spec = build_sampler(sampler, self.scheduler, self.defaults.sampler, **schedule)
        made = made if image is None else part_way(made, strength)
        windows = [control.window for control in wanted]
        told = texts_of(syntax, prompts, negatives, made)
        for line in taken_for_text(told):
            say(line)
        plan = make_plan(
            made,
            guidance=scales,
            rescale=rescale,
            windows=windows,
            device=self.device,
            contexts=told.rows,
        )
        if any(negatives) and not plan.guided:
            say("the negative prompt has no effect: guidance is off")

        with probe("hints", host=True):
            samples = [images.open_source(control.source) for control in wanted]
            opened = None if image is None else images.open_source(image)
            size = choose_size(size, self.defaults.native_size, samples, opened)
            self.check_memory(size, len(prompts), guided=plan.guided, masked=masked, added=added)
            options: dict[str, Any] = {"fit": fit, "depth_range": depth_range, "depth_invert": depth_invert}
            hints = make_hints(wanted, samples, size, say=say, **options)
            init = None
            if opened is not None:
                masking = images.open_source(mask) if masked else None
                init = images.make_init_image(opened, masking, size, fit=fit, say=say)
        for control in wanted:
            self.net(control.kind, control.net, probe=probe)
        unet = self.unet_for(masked=masked, probe=probe)
        self.put_on(unet, added, probe)
        texts: dict[str, Any] = {"clip_skip": clip_skip, "say": say, "probe": probe}
        contexts = encode_texts(vocabulary, self.text_encoder, told, guided=plan.guided, **texts)
        noise = Noise(seeds, latent_size(size), self.device)
        dtype = torch.promote_types(self.dtype, torch.float32)
        if init is not None:
            way: dict[str, Any] = {
                "strength": strength,
                "channels": unet.config.in_channels,
                "dtype": dtype,
                "say": say,
            }
            begun = begin_from(init, plan, noise, self.vae, **way, probe=probe)
        else:
            first = noise.draw(0) if latents is None else given_latents(latents, noise)
            begun = Beginning(start(plan, first.to(dtype), draws=int(latents is None)))
        conditions = Conditions(contexts, tuple(hint.tensor[None] for hint in hints), begun.inpaint)
        account = recipe.of_run(
            self._account(masked=masked),
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
            image=None if init is None else init.describe(strength, paste),
            loras=[one.describe() for one in added],
            embeddings=[one.describe() for one in words],
            syntax=syntax,
            exact=exact,
        )
        origin = recipe.origin(
            self.source,
            sampler=sampler if isinstance(sampler, str) else None,
            inputs=[opened.name for opened in samples],
            nets=[self.named_net(control) for control in wanted],
            image=None if init is None else init.names,
            loras=[one.name for one in added],
            embeddings=[one.name for one in words],
        )
        pasted = None if init is None or paste is False else init.paste
        setup = self._setup(plan, conditions, wanted, hints, account, origin, added, exact, say, probe)
        setup = replace(setup, blend=begun.blend, paste=pasted)
        return Run(setup, begun.state, noise, watch=watch)

    def resume(
        self,
        path: str | Path,
        *,
        run: Run | None = None,
        sampler: Any = None,
        modules: Sequence[Any] = (),
        constrain: Constrain | None = None,
        watch: Sequence[str] = WATCH,
        say: Say = say_on_stderr,
        probe: ProbeLike = NO_PROBE,
    ) -> Run:
        """Go on with a run that `Run.save` wrote, to the bit.

        With `run`, one just prepared, the two recipes must be the same. `sampler` is needed where the run was
        prepared with a scheduler or Sampler of one's own, `modules` (one for each control) where it was with
        modules, `constrain` where `Run.constrain` was in force: no file holds these, and without them it
        would be another run. LoRAs are looked for where they were. Raises InputError for a file that is damaged, or
        made with other weights, recipe or versions, UsageError for a part that has to be given again.
        """
        path = check_path("path", path)
        check_callables(say=say, probe=probe)
        if run is not None and not isinstance(run, Run):
            raise UsageError(f"run {shown(run)}: expected a run that was just prepared")
        held = saved.load(path, self.device)
        if run is not None:
            saved.check_same(path, held.recipe, run.recipe)
        account = held.recipe
        own = self._account(masked=recipe.is_masked(account))
        saved.check_same(path, {key: account.get(key) for key in own}, own)
        held.check_constraint(constrain)
        wanted = recall(path, account["controls"], modules)
        made, spec = rebuild_sampler(path, account["sampler"], sampler, self.scheduler)
        saved.check_same(path, {"sampler": account["sampler"]}, {"sampler": spec})
        made = made if account["image"] is None else part_way(made, account["image"]["strength"])
        windows = [control.window for control in wanted]
        plan = make_plan(
            made,
            guidance=account["guidance"],
            rescale=account["rescale"],
            windows=windows,
            device=self.device,
            contexts=texts_of(
                check_syntax(account.get("syntax")), account["prompt"], account["negative"], made
            ).rows,
        )
        held.check_table(plan)
        size, seeds = (account["size"][0], account["size"][1]), account["seeds"]
        added = self.extras.loras([(entry["name"], entry["scale"]) for entry in account["loras"]])
        saved.check_same(path, {"loras": account["loras"]}, {"loras": [one.describe() for one in added]})
        masked = recipe.is_masked(account)
        self.check_memory(size, len(seeds), guided=plan.guided, masked=masked, added=added)
        hints = tuple(
            images.Hint(entry["kind"], tensor[0], entry["sha256"], entry["hint"])
            for entry, tensor in zip(account["controls"], held.conditions.hints, strict=True)
        )
        exact = without(account["repeats"])
        setup = self._setup(
            plan, held.conditions, wanted, hints, account, held.origin, added, exact, say, probe
        )
        setup = replace(setup, blend=held.blend, paste=held.paste)
        for control, entry in zip(wanted, account["controls"], strict=True):
            name = f"controlnet {control.kind}"
            saved.check_same(path, {name: entry["weights"]}, {name: self.net_hashes(control)})
        noise = Noise(seeds, latent_size(size), self.device)
        resumed = Run(setup, held.state, noise, watch=watch, x0=held.x0)
        if held.constraint is not None:
            resumed.constrain(constrain, forget=held.constraint["forget"])
        return resumed

    def _account(self, *, masked: bool) -> dict[str, Any]:
        """What of an account is the model's, in a run with a mask or without one."""
        return recipe.of_model(self.source, self.hashes(masked=masked), self.dtype)

    def _setup(
        self,
        plan: Plan,
        conditions: Conditions,
        controls: Sequence[Control],
        hints: tuple[images.Hint, ...],
        account: Mapping[str, Any],
        origin: Mapping[str, Any],
        added: Sequence[AddedLora],
        exact: Exact,
        say: Say,
        probe: ProbeLike,
    ) -> Setup:
        loaded = [self.net(control.kind, control.net, probe=probe) for control in controls]
        names = [control.kind for control in controls]
        options: dict[str, Any] = {"names": names, "guess": bool(account["guess"]), "exact": exact}
        unet = self.unet_for(masked=recipe.is_masked(account), probe=probe)
        options["hold"] = partial(self.put_on, unet, added)
        predict = prepare(plan, conditions, unet, loaded, **options, probe=probe)
        return Setup(plan, conditions, predict, self.vae, account, origin, hints, say, probe)
