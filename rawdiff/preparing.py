"""Preparing a run: words, maps, a picture to begin from, LoRAs and a sampler become tables, tensors and an account."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor

from rawdiff import images, recipe
from rawdiff.arguments import (
    build_sampler,
    check_callables,
    check_fit,
    check_flags,
    check_second,
    check_size_ids,
    check_whole,
    count_prompts,
    given_latents,
    second_prompts,
    spread_prompts,
    spread_scales,
)
from rawdiff.beginning import Beginning, begin_from, is_extra, part_way
from rawdiff.binding import WATCH, account_of, set_up, undone_on_error
from rawdiff.conditions import Conditions, SizeIds
from rawdiff.controls import Control, choose_size, gather, make_hints
from rawdiff.geometry import Size, latent_size
from rawdiff.limits import check_strength
from rawdiff.nets.exact import EVERYTHING, Exact
from rawdiff.nets.exact import check as check_exact
from rawdiff.nets.guidance import is_told
from rawdiff.noise import Noise, check_seeds, random_seed
from rawdiff.parts import Parts
from rawdiff.plan import make_plan
from rawdiff.probes import NO_PROBE, ProbeLike
from rawdiff.remarks import remarks
from rawdiff.run import Run
from rawdiff.say import Say, say_on_stderr
from rawdiff.state import start
from rawdiff.step import check_watch
from rawdiff.syntax import PLAIN, Tag, check_syntax, check_untagged, take_all_tags
from rawdiff.texts import encode_texts, texts_of

__all__ = ["prepare"]


@undone_on_error
def prepare(
    self: Parts,
    prompt: str | Sequence[str],
    *,
    negative: str | Sequence[str] = "",
    prompt_2: str | Sequence[str] | None = None,
    negative_2: str | Sequence[str] | None = None,
    depth: Any = None,
    normal: Any = None,
    canny: Any = None,
    controls: Sequence[Control] = (),
    size: Size | None = None,
    size_ids: SizeIds | None = None,
    steps: int | None = None,
    guidance: float | Sequence[float] | Tensor | None = None,
    rescale: float = 0.0,
    guidance_end: float = 1.0,
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
    blend: bool | None = None,
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
    brought to the model's native area; `size_ids` is what else SDXL is told of sizes. `steps` is 20 unless
    `timesteps` or `sigmas` are given. `guidance` (1 or less: off; a latent consistency model is told it), `negative`
    and `seed` may be lists, one for each image; a single seed counts up, None draws one (see `run.seeds`). After the
    share `guidance_end` of the run guidance is off, which halves the work of what is left (approximate: another
    picture). Where the model says so (SDXL), an empty negative prompt is none: zeros, and " " the empty text.
    `prompt_2` and `negative_2` are for SDXL's second text encoder, where it shall not read what the first does (empty:
    it shall).
    `sampler` is a name ("dpm++ 2m karras"), a diffusers scheduler or a Sampler. `latents` [B,4,h,w] replace the first
    draw of noise.

    `image` (as the maps) is what the run begins from, for the last `strength` of its steps (above 0 to 1; 0.8).
    With a `mask` of its size only what is white there is painted anew (strength 1): by the model's inpainting
    UNet, or else by putting the rest back after each step, which `blend` has done with the inpainting UNet too (another
    picture, in which nothing drifts outside the mask). The pictures get the rest pasted back unless `paste` is False.
    Where there is an image, `size` follows from it, and `fit` holds for it too.

    `loras` are paths (or names of the model's own), each alone or with its scale, [("style.safetensors", 0.8)], merged
    into the weights of the UNet that the run takes, and of the text encoder; they stay there when it is done, until
    another run is prepared or goes on, or `put_on(unet, ())` takes them off. `embeddings` likewise, each alone or with
    its trigger. `syntax` is how prompts are read: "plain" (all is text, the rest of
    a long one is cut), or "a1111": weights, BREAK, prompt editing, as many tokens as there are, and `<lora:name:0.8>`
    for LoRAs that the model brings (see `rawdiff.syntax`).

    `exact` says which work is done once instead of at each step (all of it, and no picture changes by more than
    rounding). What `watch` names is kept of each step; with () nothing is, and a Step is stale once the run has gone
    on. `say` is told what a person should know, a line at a time. Raises UsageError (SizeError), InputError,
    WeightsError.
    """
    check_callables(say=say, probe=probe)
    check_flags(guess=guess, depth_invert=depth_invert)
    check_whole("clip skip", clip_skip)
    check_fit(fit)
    check_watch(watch)
    check_exact(exact)
    two = self.defaults.two_encoders
    check_size_ids(size_ids, told=two)
    check_second(two=two, prompt_2=prompt_2, negative_2=negative_2)
    distinct = count_prompts(prompt, count)
    strength, masked = check_strength(image, mask, strength, paste, blend, latents), mask is not None
    channels = self.channels(masked=masked)
    extra = masked and is_extra(blend, channels)
    prompts = spread_prompts("prompt", prompt, distinct, count)
    negatives = spread_prompts("negative prompt", negative, distinct, count)
    syntax = check_syntax(syntax)
    tags: tuple[Tag, ...] = ()
    if syntax != PLAIN:
        prompts, tags = take_all_tags(prompts, negatives)
    second = second_prompts(prompt_2, negative_2, (prompts, negatives), distinct, count)
    if syntax != PLAIN and second is not None:
        check_untagged("second", [*second[0], *second[1]])
    scales = spread_scales(self.defaults.guidance if guidance is None else guidance, distinct, count)
    seeds = check_seeds(random_seed(len(prompts)) if seed is None else seed, len(prompts))
    wanted = gather(depth, normal, canny, controls)
    for control in wanted:
        self.net_source(control.kind, control.net)  # before anything slow begins
    added, words = self.extras.loras(loras, tags), self.extras.embeddings(embeddings)
    readers = self.readers(words)
    schedule: dict[str, Any] = {"steps": steps, "timesteps": timesteps, "sigmas": sigmas, "eta": eta}
    made, spec = build_sampler(sampler, self.scheduler, self.defaults.sampler, **schedule)
    made = made if image is None else part_way(made, strength)
    windows = [control.window for control in wanted]
    texts = texts_of(syntax, (prompts, negatives), second, made)
    levels: dict[str, Any] = {"guidance": scales, "rescale": rescale, "windows": windows}
    levels |= {"guidance_end": guidance_end, "distilled": is_told(self.unet.config)}
    plan = make_plan(made, **levels, contexts=texts.rows, device=self.device)
    known = [(reader.vocabulary, reader.length) for reader in readers]
    for line in remarks(texts, known, plan, triggers=bool(words)):
        say(line)
    absent = [
        not any(texts) for texts in zip(negatives, negatives if second is None else second[1], strict=True)
    ]

    with probe("hints", host=True):
        samples = [images.open_source(control.source) for control in wanted]
        given = None if image is None else images.open_source(image)
        size = choose_size(size, self.defaults.native_size, samples, given)
        self.check_memory(size, len(prompts), guided=plan.guided, masked=masked, added=added, controls=wanted)
        fitting: dict[str, Any] = {"fit": fit, "depth_range": depth_range, "depth_invert": depth_invert}
        hints = make_hints(wanted, samples, size, say=say, **fitting)
        init = None
        if given is not None:
            masking = images.open_source(mask) if masked else None
            init = images.make_init_image(given, masking, size, fit=fit, say=say)
    unfamiliar = self.defaults.unfamiliar(size)
    if unfamiliar is not None:
        say(unfamiliar)
    for control in wanted:
        self.net(control.kind, control.net, probe=probe)
    unet = self.unet_for(masked=masked, probe=probe)

    # Words, then the picture: a frugal runner has one network at a time on the device.
    told: dict[str, Any] = {"say": say, "probe": probe}
    self.runner.stage(self.text_encoders)
    self.put_on(unet, added, probe)
    encoding: dict[str, Any] = {"guided": plan.guided, "clip_skip": clip_skip}
    if self.defaults.zeros:
        encoding["zeros"] = absent
    contexts = encode_texts(readers, texts, **encoding, **told)
    noise = Noise(seeds, latent_size(size), self.device)
    dtype = torch.promote_types(self.dtype, torch.float32)
    if init is not None:
        way: dict[str, Any] = {"strength": strength, "dtype": dtype, "runner": self.runner, **told}
        begun = begin_from(init, plan, noise, self.vae, channels=channels, extra=extra, **way)
    else:
        first = noise.draw(0) if latents is None else given_latents(latents, noise)
        begun = Beginning(start(plan, first.to(dtype), draws=int(latents is None)))
    shown = tuple(hint.tensor[None] for hint in hints)
    ids = (size_ids or SizeIds()).tensor(size) if two else None
    conditions = Conditions(contexts, shown, begun.inpaint, ids)

    account = recipe.of_run(
        account_of(self, masked=masked),
        prompts=prompts,
        negatives=negatives,
        second=second,
        size=size,
        size_ids=size_ids,
        zeros=self.defaults.zeros,
        seeds=seeds,
        guidance=scales,
        rescale=rescale,
        guidance_end=guidance_end,
        clip_skip=clip_skip,
        guess=guess,
        sampler=spec,
        controls=[c.describe(h, self.net_hashes(c), **fitting) for c, h in zip(wanted, hints, strict=True)],
        latents=None if latents is None else sha256(first.cpu().numpy().tobytes()).hexdigest(),
        image=None if init is None else init.describe(strength, paste, extra),
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
        tiled=begun.tiled,
    )
    keeping: dict[str, Any] = {
        "blend": begun.blend,
        "paste": None if init is None or paste is False else init.paste,
    }
    setup = set_up(self, plan, conditions, wanted, hints, account, origin, added, exact, **told, **keeping)
    return Run(setup, begun.state, noise, watch=watch)
