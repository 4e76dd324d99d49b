"""A Run: a prepared denoising, to be iterated, stopped, looked at, changed, forked, saved and resumed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rawdiff import images, recipe, saved
from rawdiff.arguments import check_callables, check_flags, check_path, check_whole
from rawdiff.blend import Blend
from rawdiff.conditions import Conditions
from rawdiff.decode import decode_telling
from rawdiff.errors import UsageError
from rawdiff.geometry import FACTOR, Size, format_size
from rawdiff.graphs import Runner
from rawdiff.loop import Constrain, denoise
from rawdiff.noise import Noise
from rawdiff.plan import Plan
from rawdiff.predict import Predict
from rawdiff.probes import ProbeLike
from rawdiff.sampler import Sampler
from rawdiff.say import Say
from rawdiff.state import RunState, set_by_hand
from rawdiff.step import Step, check_watch

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Run", "Setup"]


@dataclass(frozen=True, eq=False)
class Setup:
    """All of a run that no step changes; forks share it."""

    plan: Plan
    conditions: Conditions
    predict: Predict
    vae: Any
    runner: Runner
    recipe: Mapping[str, Any]
    """Everything that decides the pictures, as plain values, but for what is done to the run by hand."""
    origin: Mapping[str, Any]
    """Where it came from, by name."""
    hints: tuple[images.Hint, ...]
    say: Say
    probe: ProbeLike
    blend: Blend | None = None
    """What a mask makes of x after each step, with an ordinary UNet or where it was asked for."""
    paste: images.Paste | None = None
    """What of the finished pictures is taken from the one that the run began from."""


class Run:
    """A prepared run. Iterating it denoises: each item is a Step, and what it watches is kept.

    Stop whenever you like and go on later: `for step in run`, `next(run)` and `list(run)` all continue from
    `state`, and setting `state` (or calling `change`) is how the run is led elsewhere. Raises
    NonFiniteError, ResourceError.
    """

    def __init__(
        self,
        setup: Setup,
        state: RunState,
        noise: Noise,
        *,
        watch: Sequence[str] = (),
        x0: Tensor | None = None,
    ) -> None:
        self.setup = setup
        self.watch = check_watch(watch)
        self._constrain: Constrain | None = None
        self._forget = False
        self._state = state
        self._noise = noise
        self._x0 = x0
        self._step: Step | None = None
        self._loop: Iterator[Step] | None = None
        self._tiled = False

    def __repr__(self) -> str:
        place = f"{self.state.i} of {len(self)} evaluations"
        return f"Run({self.sampler.name}, {format_size(self.size)}, {place}, seeds={list(self.seeds)})"

    def __len__(self) -> int:
        """Number of evaluations of the whole run."""
        return len(self.plan)

    def __iter__(self) -> Run:
        return self

    def __next__(self) -> Step:
        if self._step is not None:
            self._state, self._x0 = self._step.state, self._step.peek_x0()
            self._step = None
        if self._loop is None:
            self._loop = denoise(
                self._state,
                self.setup.plan,
                self.setup.predict,
                self._noise,
                watch=self.watch,
                blend=self.setup.blend,
                constrain=self._constrain,
                forget=self._forget,
                probe=self.setup.probe,
            )
        try:
            self._step = next(self._loop)
        except BaseException:
            self._loop = None
            raise
        return self._step.keep() if self.watch else self._step

    def _halt(self) -> None:
        """Let go of the loop; the next step begins a new one from the state."""
        self._state, self._x0 = self.state, self._x0_so_far()
        self._loop = self._step = None

    def _x0_so_far(self) -> Tensor | None:
        return self._x0 if self._step is None else self._step.peek_x0()

    def constrain(self, change: Constrain | None, *, forget: bool = False) -> None:
        """Let `change` (x after each step, and the row it goes into, to x) have its way from here on.

        With `forget` the sampler's history is forgotten each time. None ends it. A saved run remembers that
        there was one, and asks for it when it is resumed.
        """
        if change is not None:
            check_callables(constrain=change)
        check_flags(forget=forget)
        self._halt()
        self._constrain, self._forget = change, forget

    @property
    def state(self) -> RunState:
        """Where the run stands, and what it goes on from; may be set, to an earlier state say."""
        return self._state if self._step is None else self._step.state

    @state.setter
    def state(self, state: RunState) -> None:
        state = set_by_hand(state, self._state.x.shape)
        self._halt()
        self._state = state

    def change(self, x: Tensor, *, forget: bool = False) -> None:
        """Go on with other latents [B,4,h,w]; with `forget` the sampler's history is forgotten too."""
        check_flags(forget=forget)
        self.state = self.state.changed(x, self.setup.plan, forget=forget)

    @property
    def done(self) -> bool:
        """Whether no evaluation is left."""
        return self.state.row(self.setup.plan) is None

    @property
    def plan(self) -> Plan:
        """The rows of the run, restarts included."""
        return self.state.plan(self.setup.plan)

    @property
    def sampler(self) -> Sampler:
        """The sampler that the run goes on with."""
        return self.plan.sampler

    @property
    def conditions(self) -> Conditions:
        """Texts and hints as tensors."""
        return self.setup.conditions

    @property
    def hints(self) -> tuple[images.Hint, ...]:
        """What the ControlNets are shown."""
        return self.setup.hints

    @property
    def recipe(self) -> Mapping[str, Any]:
        """Everything that decides the pictures, as plain values.

        What is done to the run by hand (`constrain`, `change`, `state`) is not in it.
        """
        return self.setup.recipe

    @property
    def seeds(self) -> tuple[int, ...]:
        """One for each image."""
        return self._noise.seeds

    @property
    def size(self) -> Size:
        """(height, width) in pixels."""
        height, width = self._noise.size
        return FACTOR * height, FACTOR * width

    @property
    def tiled(self) -> bool:
        """Whether the picture that it began from, or those made of it last, went through the VAE in tiles."""
        return self._tiled or "tiles" in self.setup.origin

    @property
    def latents(self) -> Tensor:
        """The latents as they stand, [B,4,h,w] fp32."""
        return self.state.x

    @property
    def x0(self) -> Tensor:
        """The clean latents so far, [B,4,h,w] fp32, at the end the latents; UsageError before a step."""
        found = self.latents if self.done else self._x0_so_far()
        if found is None:
            raise UsageError("no step has been taken yet, so there is no picture: iterate the run first")
        return found

    def image(self, k: int = 0) -> Image:
        """Picture `k` of the batch; before the end, that of the x0 so far. What a mask keeps is pasted back into it."""
        if check_whole("image", k) >= len(self.seeds):
            raise UsageError(f"image {k}: this run has {len(self.seeds)}, numbered from 0")
        return self._decoded(self.x0[k : k + 1])[0]

    def images(self) -> list[Image]:
        """All pictures of the batch; before the end, those of the x0 so far."""
        return self._decoded(self.x0)

    def save_image(self, path: str | Path, k: int = 0, *, overwrite: bool = False) -> Path:
        """Write picture `k` of the finished run as a PNG with its recipe, as `rawdiff gen` does; never half-written.

        `rawdiff info` shows the recipe, `rawdiff gen --from` makes the picture again. Raises UsageError before the
        end and where no recipe could tell the picture (`image(k).save(path)` writes that one without): a run changed
        by hand, latents given, a Sampler or a net's module of one's own.
        """
        path = check_path("path", path)
        if not path.name:
            raise UsageError(f"path {str(path)!r}: expected a file, such as cube.png")
        path = path.with_name(images.picture_name(path.name))
        if not self.done:
            raise UsageError(
                f"{path}: the run stands before row {self.state.i} of {len(self)}: finish it first"
            )
        if self.state.by_hand:
            raise UsageError(f"{path}: no recipe can tell this picture: its run was changed by hand")
        image = self.image(k)
        made = {**self.setup.origin, **recipe.tool(self._noise.device, self.setup.runner.made_with)}
        told = recipe.tell(
            recipe.of_picture(self.recipe, k), made, (k, len(self.seeds)), image, tiled=self.tiled
        )
        return images.write_png(path, image, told, recipe.write_parameters(told), overwrite=overwrite)

    def _decoded(self, latents: Tensor) -> list[Image]:
        options: dict[str, Any] = {"say": self.setup.say, "probe": self.setup.probe}
        vae, runner = self.setup.vae, self.setup.runner
        pictures, self._tiled = decode_telling(vae, latents, runner=runner, **options)
        drawn = [images.to_pil(picture) for picture in pictures]
        paste = self.setup.paste
        return drawn if paste is None else [paste(picture) for picture in drawn]

    def fork(self) -> Run:
        """A run of its own from where this one stands."""
        x0 = self._x0_so_far()
        state, noise = self.state.copy(), self._noise.copy()
        other = Run(self.setup, state, noise, watch=self.watch, x0=None if x0 is None else x0.clone())
        other._constrain, other._forget = self._constrain, self._forget
        return other

    @torch.no_grad()
    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the run to one file, to be resumed bit for bit by `Model.resume`; never half-written."""
        return saved.save(
            check_path("path", path),
            self.recipe,
            self.setup.origin,
            self.conditions,
            self.setup.plan,
            self.state,
            self._x0_so_far(),
            blend=self.setup.blend,
            paste=self.setup.paste,
            constraint=None if self._constrain is None else {"forget": self._forget},
            overwrite=overwrite,
        )
