"""From a request to pictures: planned without a weight being read, then drawn.

    workshop = Workshop("sd1.5")                 # finds the model; reads no weights
    job = workshop.plan(Request(prompt=...))     # opens maps, builds the sampler, hashes files: the recipe is known
    for drawn in workshop.draw(job):             # loads the weights when the first picture needs them
        drawn.image, drawn.recipe

Everything that can be wrong with a request is found by `plan`, in seconds, and the id of each picture is known by
then: a batch sees what it has already drawn without loading a network.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rawdiff import images, recipe, weights
from rawdiff.arguments import build_sampler
from rawdiff.beginning import part_way
from rawdiff.controls import Control, choose_size, make_hints
from rawdiff.errors import RawdiffError, ResourceError, UsageError
from rawdiff.extras import AddedEmbedding, AddedLora, Extras
from rawdiff.geometry import Size, format_size
from rawdiff.jobs.added import open_embeddings, open_loras
from rawdiff.jobs.job import Drawn, Job, Watcher, fitting_of, open_file, open_map
from rawdiff.jobs.prepared import Prepared
from rawdiff.jobs.recorded import recorded_scheduler
from rawdiff.jobs.request import Request
from rawdiff.limits import check_strength
from rawdiff.model import Model, load
from rawdiff.nets.exact import without
from rawdiff.nets.memory import is_out_of_memory
from rawdiff.noise import check_seeds, random_seed
from rawdiff.parts import part_hashes, unet_config
from rawdiff.probes import NO_PROBE, ProbeLike
from rawdiff.sampler import Sampler
from rawdiff.say import Say, say_nothing, say_on_stderr
from rawdiff.syntax import check_syntax
from rawdiff.vocabulary import add_words

__all__ = ["MODEL_VARIABLE", "DeviceFailedError", "Workshop", "named_model"]

MODEL_VARIABLE = "RAWDIFF_MODEL"
"""The environment variable that names a model where nobody else does."""


def named_model(given: str | None) -> str | None:
    """`given`, else what RAWDIFF_MODEL names, unless that is empty; None is the embedded model."""
    return given if given is not None else os.environ.get(MODEL_VARIABLE) or None


class DeviceFailedError(ResourceError):
    """The device gave out; nothing more can be computed on it by this process."""


class Workshop:
    """A model to be, what is planned with it, and what is drawn. Raises UsageError, WeightsError, HubError."""

    def __init__(
        self,
        source: str | Path | None = None,
        *,
        nets: Mapping[str, str] | None = None,
        device: str | torch.device | None = None,
        dtype: str | None = None,
        revision: str | None = None,
        offline: bool = False,
        say: Say = say_on_stderr,
        probe: ProbeLike = NO_PROBE,
    ) -> None:
        self.device = weights.choose_device(device)
        self.dtype = weights.choose_dtype(self.device, dtype)
        self.say, self.probe = say, probe
        self._offline = offline
        self.source = weights.open_source(source, revision=revision, offline=offline, say=say)
        self.defaults = weights.read_defaults(self.source)
        self._named = dict(nets or {})
        self._nets: dict[str, weights.Source] = {}
        self._model: Model | None = None
        self._prepared = Prepared()
        self._extras = Extras(self.source, self.defaults)
        self._layers: dict[bool, weights.Layers] = {}
        """Of the UNet that runs with a mask (True) or without one, and of the text encoder."""

    def describe(self) -> str:
        """Which model it is, where it runs, and how to get another, on one line."""
        own = self.source.name if self.source.kind != "embedded" else f"{self.defaults.name} (embedded)"
        another = f"another: --model FOLDER, ALIAS or OWNER/NAME, or {MODEL_VARIABLE}"
        return f"model: {own} on {self.device} in {str(self.dtype).removeprefix('torch.')}; {another}"

    def net(self, kind: str) -> weights.Source:
        """Where the ControlNet for hints of this kind is; raises UsageError where none is known."""
        if kind not in self._nets:
            known = {**self.defaults.controls, **self._named}
            if kind not in known:
                names = ", ".join(sorted(known)) or "none"
                raise UsageError(
                    f"control {kind!r}: this model has no net for it (it has {names}): name one with "
                    f"--net {kind}=FOLDER or --net {kind}=OWNER/NAME"
                )
            self._nets[kind] = weights.open_source(known[kind], offline=self._offline, say=self.say)
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
        strength = check_strength(request.image, request.mask, request.strength, request.paste)
        masked = request.mask is not None
        unet = unet_config(self.source, self.defaults, masked=masked)
        count = 1 if request.count is None else request.count
        seeds = check_seeds(random_seed(count) if request.seed is None else request.seed, count)
        asked = request.resolved()
        nets = [self.net(control.kind) for control in asked]
        for kind in self._named:  # one that no map is for, too: it may be mistyped
            self.net(kind)
        self._check_clip_skip(request.clip_skip or 0)
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
            self._check_memory(unet, size, min(batch, count), guided=guidance > 1.0)
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
        with self.probe("hashes", host=True):
            digests = part_hashes(self.source, self.defaults, masked=masked)
            own = [weights.hashes(net, "controlnet") for net in nets]
        negative = request.negative or ""
        options: dict[str, Any] = {
            "rescale": float(request.rescale or 0.0),
            "clip_skip": request.clip_skip or 0,
            "guess": bool(request.guess),
            "exact": without(request.repeats),
            "syntax": check_syntax(request.syntax),
        }
        account = recipe.of_run(
            recipe.of_model(self.source, digests, self.dtype),
            prompts=[str(request.prompt)],
            negatives=[negative],
            size=size,
            seeds=seeds[:1],
            guidance=[guidance],
            sampler=spec,
            controls=[c.describe(h, d, **fitting) for c, h, d in zip(controls, hints, own, strict=True)],
            image=None if init is None else init.describe(strength, request.paste),
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
            options |= {"image": image, "mask": mask, "strength": strength, "paste": request.paste}
        options |= {"negative": negative, "guidance": guidance, **fitting}
        options |= {"loras": loras, "embeddings": embeddings}
        return Job(
            request, size, seeds, controls, sampler, options, picture, {**origin, **recipe.tool(self.device)}
        )

    def model(self) -> Model:
        """The model with its weights, loaded when it is first asked for, which is said."""
        if self._model is None:
            self.say(self.describe())
            place: dict[str, Any] = {"device": self.device, "dtype": self.dtype, "offline": self._offline}
            source: Any = self.source
            self._model = load(source, nets=self._nets, say=self.say, probe=self.probe, **place)
        return self._model

    def draw(self, job: Job, *, batch: int = 1, watchers: Sequence[Watcher] = ()) -> Iterator[Drawn]:
        """The pictures of a job, `batch` at once; where memory gives out, half as many, and said.

        Raises NonFiniteError, ResourceError.
        """
        model, told, first = self.model(), set[str](), 0

        def say_once(line: str) -> None:
            if line not in told:
                told.add(line)
                self.say(line)

        while first < len(job.seeds):
            count = min(batch, len(job.seeds) - first)
            try:
                drawn = self._draw(model, job, first, count, say_once, watchers)
            except (RuntimeError, MemoryError) as error:
                if "CUDA error" in str(error) and not is_out_of_memory(error):
                    raise DeviceFailedError(
                        f"{self.device} failed ({str(error).splitlines()[0][:120]}): run it again; a batch goes on "
                        "where it stopped"
                    ) from error
                if not is_out_of_memory(error):
                    raise
                if count == 1 and isinstance(error, RawdiffError):  # told already
                    raise
                if count == 1:
                    raise ResourceError(
                        f"out of memory at {format_size(job.size)} on {self.device}: take a smaller size, fewer "
                        "nets, or half precision"
                    ) from error
                batch = count // 2
                self._prepared.forget()
            else:
                yield from drawn
                first += count
                continue
            if self.device.type == "cuda":  # outside the handler, where the failed run is no longer held
                torch.cuda.empty_cache()
            self.say(f"out of memory with {count} pictures at once: going on with {batch}")

    def _draw(
        self, model: Model, job: Job, first: int, count: int, say: Say, watchers: Sequence[Watcher]
    ) -> list[Drawn]:
        begun = time.perf_counter()
        watch = tuple({name for watcher in watchers for name in watcher.watch})
        run = self._prepared.run(model, job, first, count, watch=watch, say=say, probe=self.probe)
        for watcher in watchers:
            watcher.begin(run, first, job)
        try:
            for step in run:
                for watcher in watchers:
                    watcher.step(run, step)
        finally:
            for watcher in watchers:
                watcher.end()
        pictures = run.images()
        seconds = (time.perf_counter() - begun) / count
        return [
            Drawn(image, job.recipe(first + k, (k, count), image), seconds, run.hints)
            for k, image in enumerate(pictures)
        ]

    def _sampler(
        self, request: Request, recorded: Mapping[str, Any] | None
    ) -> tuple[Sampler, dict[str, Any]]:
        """The sampler, and what an account says of it."""
        own = weights.load_scheduler(self.source)
        given = request.sampler if recorded is None else recorded_scheduler(recorded, own)
        schedule: dict[str, Any] = {n: getattr(request, n) for n in ("steps", "timesteps", "sigmas")}
        return build_sampler(given, own, self.defaults.sampler, **schedule, eta=float(request.eta or 0.0))

    def _check_clip_skip(self, clip_skip: int) -> None:
        layers = weights.read_config(self.source, "text_encoder").get("num_hidden_layers")
        if isinstance(layers, int) and clip_skip >= layers:
            raise UsageError(
                f"clip skip {clip_skip}: this text encoder has {layers} layers, so 0 to {layers - 1}"
            )

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
            config = weights.read_config(self.source, "text_encoder")
            width, positions = config.get("hidden_size", 512), config.get("max_position_embeddings", 77)
            tokenizer = weights.load_tokenizer(self.source)
            add_words(tokenizer, [one.embedding for one in embeddings], width, positions)

    def _check_memory(self, unet: Mapping[str, Any], size: Size, batch: int, *, guided: bool) -> None:
        vae = weights.read_config(self.source, "vae")
        place: dict[str, Any] = {"device": self.device, "dtype": self.dtype}
        weights.check_memory(unet, vae, size, batch=batch, guided=guided, **place)
