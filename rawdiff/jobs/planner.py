"""From a request to a job: everything but the pictures, without a weight being read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from rawdiff import images, recipe, weights
from rawdiff.arguments import build_sampler, check_second, check_size_ids, second_prompts
from rawdiff.beginning import is_extra, part_way
from rawdiff.conditions import SizeIds
from rawdiff.controls import Control, choose_size, make_hints
from rawdiff.copies import Planned, laid_out_bytes, pristine_bytes
from rawdiff.errors import UsageError
from rawdiff.extras import AddedEmbedding, AddedLora, Extras
from rawdiff.files import part_hashes, unet_config
from rawdiff.geometry import Size
from rawdiff.graphs import Runner
from rawdiff.jobs.added import open_embeddings, open_loras
from rawdiff.jobs.job import Job, fitting_of, open_file, open_map
from rawdiff.jobs.recorded import recorded_scheduler
from rawdiff.jobs.request import Request
from rawdiff.limits import check_strength
from rawdiff.nets.exact import without
from rawdiff.nets.guidance import is_told
from rawdiff.nets.text import check_clip_skip
from rawdiff.nets.unet import INPAINT_CHANNELS
from rawdiff.noise import check_seeds, random_seed
from rawdiff.plan import check_guidance_end, make_plan
from rawdiff.probes import ProbeLike
from rawdiff.prompts import text_length
from rawdiff.remarks import remarks, say_cut
from rawdiff.sampler import Sampler
from rawdiff.say import Say, say_nothing
from rawdiff.syntax import check_syntax
from rawdiff.texts import texts_of
from rawdiff.vocabulary import Ground, vocabularies

__all__ = ["Planner"]


class Planner:
    """What is known of a model without its weights, and what that makes of requests."""

    def __init__(
        self,
        source: weights.Source,
        *,
        nets: Mapping[str, str],
        device: torch.device,
        dtype: torch.dtype,
        runner: Runner,
        offline: bool,
        say: Say,
        probe: ProbeLike,
    ) -> None:
        """`nets` are ControlNets that somebody named, by kind; `runner` is what will run the networks."""
        self.source, self.defaults = source, weights.read_defaults(source)
        self.device, self.dtype = device, dtype
        self.say, self.probe = say, probe
        self._runner, self._offline = runner, offline
        self._named = dict(nets)
        self._nets: dict[str, weights.Source] = {}
        self._extras = Extras(self.source, self.defaults)
        self._told: set[str] = set()
        """What was said of sizes: each line once, however many items have that size."""
        self._layers: dict[bool, weights.Layers] = {}
        """Of the UNet that runs with a mask (True) or without one, and of the text encoder."""

    @property
    def runner(self) -> Runner:
        """What runs the networks."""
        return self._runner

    def net(self, kind: str) -> weights.Source:
        """Where the ControlNet for hints of this kind is; raises UsageError where none is known."""
        if kind not in self._nets:
            known = {**self.defaults.controls, **self._named}
            if kind not in known:
                names = ", ".join(sorted(known)) or "none"
                raise UsageError(
                    f"control {kind!r}: this model has no net for it (it has {names}): name one with "
                    f"--net {kind}=FOLDER (or FILE) or --net {kind}=OWNER/NAME"
                )
            where: dict[str, Any] = {"offline": self._offline, "say": self.say}
            self._nets[kind] = weights.open_source(known[kind], what="ControlNet", **where)
        return self._nets[kind]

    def plan(
        self,
        request: Request,
        *,
        batch: int = 1,
        beside: Path | None = None,
        recorded: Mapping[str, Any] | None = None,
    ) -> Job:
        """Everything about `request` but the pictures; no weights are read, though their files are hashed.

        Maps that a recipe names are looked for where it says and in the folder `beside`. `batch` is how many will
        be drawn at once, `recorded` what a recipe says of its sampler, which it then is, to the last setting. Raises
        UsageError (SizeError), InputError, WeightsError, HubError.
        """
        request = request.untagged().check()
        strength = check_strength(request.image, request.mask, request.strength, request.paste, request.blend)
        masked = request.mask is not None
        unet = unet_config(self.source, self.defaults, masked=masked)
        channels = unet.get("in_channels", 4)
        extra = masked and is_extra(request.blend, channels)
        put_back = masked and (extra or channels != INPAINT_CHANNELS)
        end = 1.0 if request.guidance_end is None else float(request.guidance_end)
        check_guidance_end(end, distilled=is_told(unet))
        count = 1 if request.count is None else request.count
        seeds = check_seeds(random_seed(count) if request.seed is None else request.seed, count)
        asked = request.resolved()
        nets = [self.net(control.kind) for control in asked]
        for kind in self._named:  # one that no map is for, too: it may be mistyped
            self.net(kind)
        self._check_clip_skip(request.clip_skip or 0)
        second = {"prompt_2": request.prompt_2 or None, "negative_2": request.negative_2 or None}
        check_second(two=self.defaults.two_encoders, **second)
        sizes = None if request.size_ids == SizeIds() else request.size_ids
        check_size_ids(sizes, told=self.defaults.two_encoders)
        with self.probe("plan", host=True):
            with self.probe("loras and embeddings", host=True):
                loras = open_loras(request.loras or (), self._extras, beside)
                embeddings = open_embeddings(request.embeddings or (), self._extras, beside)
                self._check_fit(loras, embeddings, masked=masked)
            with self.probe("maps", host=True):
                samples = [open_map(control, beside) for control in asked]
                image, mask = (
                    None if f is None else open_file(f.path, f.sha256, name, f"--{name} PATH", beside)
                    for name, f in (("image", request.image), ("mask", request.mask))
                )
            size = choose_size(request.size, self.defaults.native_size, samples, image)
            guidance = float(self.defaults.guidance if request.guidance is None else request.guidance)
            copies = self._more_bytes([control.kind for control in asked], loras, masked=masked)
            guided = guidance > 1.0 and not is_told(unet)
            self._check_memory(unet, size, min(batch, count), guided=guided, beside=copies)
            fitting = fitting_of(request)
            controls = tuple(
                Control(c.kind, opened, *c.window, derive=bool(c.derive))
                for c, opened in zip(asked, samples, strict=True)
            )
            with self.probe("hints", host=True):
                hints = make_hints(controls, samples, size, say=say_nothing, **fitting)
                init = None
                if image is not None:
                    init = images.make_init_image(image, mask, size, fit=fitting["fit"], say=say_nothing)
            with self.probe("sampler, imports of diffusers", host=True):
                sampler, spec = self._sampler(request, recorded)
                if init is not None:
                    part_way(sampler, strength)  # raises where that leaves nothing to do
        self._tell_unfamiliar(size)  # once nothing is wrong with the request: an error is one line
        with self.probe("hashes", host=True):
            digests = part_hashes(self.source, self.defaults, masked=masked)
            own = [weights.hashes(net, "controlnet") for net in nets]
        negative = request.negative or ""
        options: dict[str, Any] = {
            "rescale": float(request.rescale or 0.0),
            "guidance_end": end,
            "clip_skip": request.clip_skip or 0,
            "guess": bool(request.guess),
            "exact": without(request.repeats),
            "syntax": check_syntax(request.syntax),
            "size_ids": sizes,
        }
        first = ([str(request.prompt)], [negative])
        account = recipe.of_run(
            recipe.of_model(self.source, digests, self.dtype),
            prompts=first[0],
            negatives=first[1],
            second=second_prompts(request.prompt_2, request.negative_2, first, 1, 1),
            size=size,
            zeros=self.defaults.zeros,
            seeds=seeds[:1],
            guidance=[guidance],
            sampler=spec,
            controls=[c.describe(h, d, **fitting) for c, h, d in zip(controls, hints, own, strict=True)],
            image=None if init is None else init.describe(strength, request.paste, extra),
            loras=[one.describe() for one in loras],
            embeddings=[one.describe() for one in embeddings],
            **options,
        )
        picture = recipe.of_picture(account, 0)
        del picture["seed"]  # each of the job's pictures has one of its own
        origin = recipe.origin(
            self.source,
            sampler=request.sampler,
            inputs=[control.path for control in asked],
            nets=[net if c.kind in self._named else None for c, net in zip(asked, nets, strict=True)],
            image=None if init is None else init.names,
            loras=[one.name for one in loras],
            embeddings=[one.name for one in embeddings],
        )
        if init is not None:
            options |= {"image": image, "mask": mask, "strength": strength}
            options |= {"paste": request.paste, "blend": request.blend}
        options |= {"negative": negative, "guidance": guidance, **fitting}
        options |= {"loras": loras, "embeddings": embeddings, **second}
        made = {**origin, **recipe.tool(self.device, self.runner.made_with)}
        return Job(request, size, seeds, controls, sampler, options, picture, made, put_back)

    def remark(self, job: Job) -> None:
        """Say what drawing the job would say of its texts and of guidance."""
        options = job.options
        first = [str(job.request.prompt)], [options["negative"]]
        second = second_prompts(options["prompt_2"], options["negative_2"], first, 1, 1)
        is_begun = options.get("image") is not None
        sampler = part_way(job.sampler, options["strength"]) if is_begun else job.sampler
        texts = texts_of(options["syntax"], first, second, sampler)
        added = options["embeddings"]
        words = vocabularies(self._grounds, [one.embedding for one in added])
        readers = [
            (own, text_length(own, ground.positions))
            for own, ground in zip(words, self._grounds, strict=True)
        ]
        told = is_told(unet_config(self.source, self.defaults, masked=options.get("mask") is not None))
        levels: dict[str, Any] = {"guidance": [options["guidance"]], "guidance_end": options["guidance_end"]}
        plan = make_plan(sampler, **levels, distilled=told, contexts=texts.rows)
        for line in remarks(texts, readers, plan, triggers=bool(added)):
            self.say(line)
        say_cut(texts, readers, guided=plan.guided, say=self.say)

    def _sampler(
        self, request: Request, recorded: Mapping[str, Any] | None
    ) -> tuple[Sampler, dict[str, Any]]:
        """The sampler, and what an account says of it."""
        own = weights.load_scheduler(self.source)
        given = request.sampler if recorded is None else recorded_scheduler(recorded, own)
        schedule: dict[str, Any] = {n: getattr(request, n) for n in ("steps", "timesteps", "sigmas")}
        return build_sampler(given, own, self.defaults.sampler, **schedule, eta=float(request.eta or 0.0))

    def _tell_unfamiliar(self, size: Size) -> None:
        line = self.defaults.unfamiliar(size)
        if line is not None and line not in self._told:
            self._told.add(line)
            self.say(line)

    def _check_clip_skip(self, clip_skip: int) -> None:
        for number in self._numbers:
            layers = weights.read_config(self.source, f"text_encoder{number}").get("num_hidden_layers")
            if isinstance(layers, int):
                check_clip_skip(clip_skip, layers)

    def _check_fit(
        self, loras: Sequence[AddedLora], embeddings: Sequence[AddedEmbedding], *, masked: bool
    ) -> None:
        """Whether each fits this model, told from its configs and its tokenizer."""
        inpaint = self.defaults.inpaint if masked else None
        if loras and masked not in self._layers:
            self._layers[masked] = weights.planned_layers(self.source, inpaint)
        for one in loras:
            self._layers[masked].match(one.lora)
        if embeddings:
            vocabularies(self._grounds, [one.embedding for one in embeddings])

    @property
    def _numbers(self) -> tuple[str, ...]:
        """What the names of the model's text encoders, and of their tokenizers, end in."""
        return ("", "_2") if self.defaults.two_encoders else ("",)

    @cached_property
    def _grounds(self) -> list[Ground]:
        """What the text encoders' words are, read once however many items there are."""
        found = []
        for number in self._numbers:
            config = weights.read_config(self.source, f"text_encoder{number}")
            tokenizer = weights.load_tokenizer(self.source, f"tokenizer{number}")
            width, positions = config.get("hidden_size", 512), config.get("max_position_embeddings", 77)
            found.append(Ground(tokenizer, width, positions))
        return found

    def _more_bytes(self, kinds: Sequence[str], loras: Sequence[AddedLora], *, masked: bool) -> int:
        """Bytes of the copies of weights that a run would make on a CPU, from the configs: see `Parts.more_bytes`."""
        if self.device.type != "cpu":
            return 0
        inpaint = self.defaults.inpaint if masked else None
        unet = Planned(self.source if inpaint is None else inpaint, "unet")
        nets = [Planned(self.net(kind), "controlnet") for kind in dict.fromkeys(kinds)]
        copies = pristine_bytes(self._layers[masked], loras, self.dtype) if loras else 0
        return copies + laid_out_bytes([unet, *nets], self.runner, self.dtype)

    def _check_memory(
        self, unet: Mapping[str, Any], size: Size, batch: int, *, guided: bool, beside: int
    ) -> None:
        vae = weights.read_config(self.source, "vae")
        place: dict[str, Any] = {
            "device": self.device,
            "dtype": self.dtype,
            "low": self.runner.frugal,
            "beside": beside,
            "made_with": self.runner.made_with,
        }
        weights.check_memory(unet, vae, size, batch=batch, guided=guided, **place)
