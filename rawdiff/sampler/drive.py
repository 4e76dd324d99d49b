"""Driving a diffusers scheduler by hand: one private copy, its noise answered, its own faults corrected.

Two faults of diffusers' part-way starts are put right here unless asked for (`as_diffusers=True`). PNDM
steps from the first level to the second, then takes the next evaluation for the same step once more
although its timestep is already one further, so that the whole run is a level late; the schedule is rebuilt
for the levels that remain. LMS uses the coefficients of an order for which there is no history yet; the
order starts from one.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import itertools
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from rawdiff.errors import NotTabular, RawdiffError, UsageError

__all__ = ["Brownian", "Drive", "hush", "step_arguments"]


@contextlib.contextmanager
def hush() -> Iterator[None]:
    """Keep a scheduler's warnings (Python's and diffusers' log) out of sight."""
    log = logging.getLogger("diffusers")
    last = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(last)


class Answer(TorchFunctionMode):
    """While active, `torch.randn` and `randn_like` give the tensor they were given, and count.

    Any other source of randomness is refused: it would not be the run's own noise.
    """

    OTHERS = frozenset(
        {torch.rand, torch.rand_like, torch.randint, torch.normal, torch.bernoulli, torch.multinomial}
        | {torch.Tensor.normal_, torch.Tensor.uniform_, torch.Tensor.bernoulli_, torch.Tensor.exponential_}
    )

    def __init__(self, noise: Callable[[], torch.Tensor]) -> None:
        super().__init__()
        self.noise = noise

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.randn or func is torch.randn_like:
            noise = self.noise()
            first = args[0] if args else (kwargs or {})["size"]
            asked = (
                first.shape if isinstance(first, torch.Tensor) else args if isinstance(first, int) else first
            )
            if tuple(asked) != tuple(noise.shape):
                raise NotTabular(
                    f"the scheduler draws noise of shape {tuple(asked)}: expected x's, {tuple(noise.shape)}"
                )
            dtype = (kwargs or {}).get("dtype")
            return noise.clone() if dtype is None else noise.to(dtype, copy=True)
        if func in self.OTHERS:
            name = getattr(func, "__name__", "?")
            raise NotTabular(f"the scheduler draws from torch.{name}: only normal noise can be handed to it")
        return func(*args, **(kwargs or {}))


class Brownian:
    """Noise for a sampler that asks for increments of a Brownian motion over sigma (DPM++ SDE).

    A half-step asks for (sigma, middle) and its second half for (sigma, next): the second increment holds
    the first. Independent unit draws are joined accordingly, which gives the law of a Brownian tree from
    one draw an evaluation.
    """

    def __init__(
        self, draw: Callable[[], torch.Tensor], last: tuple[float, float, torch.Tensor] | None = None
    ) -> None:
        self.draw = draw
        self.last = last
        """Where the last increment began and ended, and its unit value."""

    def __call__(self, sigma: Any, sigma_next: Any) -> torch.Tensor:
        start, end = float(sigma), float(sigma_next)
        unit = self.draw()
        if self.last is not None:
            known_start, known_end, known = self.last
            share = (known_end - known_start) / (end - start)
            if abs(known_start - start) <= 1e-4 * start and 0 < share < 1:
                unit = share**0.5 * known + (1 - share) ** 0.5 * unit
        self.last = (start, end, unit)
        return unit


class Drive:
    """A private copy of a scheduler, walked evaluation by evaluation from `begin`.

    `timesteps` are the evaluations' timesteps as the network gets them. Use it under `hush`.
    """

    def __init__(
        self,
        scheduler: Any,
        *,
        begin: int = 0,
        arguments: Mapping[str, Any] | None = None,
        as_diffusers: bool = False,
    ) -> None:
        self.scheduler = copy.deepcopy(scheduler)
        self.own = [float(t) for t in scheduler.timesteps]
        """The timesteps as the scheduler lists them, before `begin` and corrections."""
        self.name = type(scheduler).__name__
        self.begin = begin
        self.order = int(getattr(scheduler, "order", 1))
        self.arguments = dict(arguments or {})
        self.as_diffusers = as_diffusers
        kinds = {c.__name__ for c in type(scheduler).__mro__}
        self._lms = "LMSDiscreteScheduler" in kinds and not as_diffusers and "order" not in self.arguments
        self.brownian = "DPMSolverSDEScheduler" in kinds
        self.pndm = "PNDMScheduler" in kinds and not as_diffusers
        self._check()
        if begin and self.pndm:
            self._rebuild_pndm()
            self.timesteps: list[Any] = list(self.scheduler.timesteps)
        else:
            self.timesteps = list(self.scheduler.timesteps)[begin:]
        if hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(begin)

    def _check(self) -> None:
        total = len(self.scheduler.timesteps)
        if getattr(self.scheduler, "num_inference_steps", 1) is None and not getattr(
            self.scheduler, "custom_timesteps", False
        ):
            raise UsageError(f"{self.name}: its timesteps are not set; call set_timesteps or give steps")
        if not total:
            raise UsageError(f"{self.name}: its schedule is empty; take more steps")
        if not 0 <= self.begin < total or self.begin % self.order:
            raise UsageError(
                f"begin {self.begin}: expected a multiple of {self.order} (the order of {self.name}) "
                f"from 0 to {(total - 1) // self.order * self.order}"
            )
        accepted = inspect.signature(self.scheduler.step).parameters
        for argument in self.arguments:
            if argument not in accepted:
                raise UsageError(f"{self.name}: its step takes no {argument!r}")

    def _rebuild_pndm(self) -> None:
        """Lay out the levels that remain as `set_timesteps` does for a fresh run."""
        scheduler = self.scheduler
        first = int(scheduler.timesteps[self.begin])
        levels = [int(t) for t in scheduler._timesteps]  # ascending
        if first not in levels:
            raise UsageError(
                f"begin {self.begin}: timestep {first} lies inside a Runge-Kutta step of {self.name}"
            )
        down = [t for t in reversed(levels) if t <= first]
        if scheduler.config.skip_prk_steps:
            warm: list[int] = []
            rest = down if len(down) < 2 else [down[0], down[1], *down[1:]]
        else:
            if len(down) < 4:
                raise UsageError(
                    f"begin {self.begin}: {len(down)} levels remain, {self.name} warms up over 4: "
                    "begin earlier, or set skip_prk_steps"
                )
            half = scheduler.config.num_train_timesteps // scheduler.num_inference_steps // 2
            warm = [t for a, b in itertools.pairwise(down[:4]) for t in (a, b + half, b + half, b)]
            rest = down[3:]
        scheduler.prk_timesteps, scheduler.plms_timesteps = np.array(warm), np.array(rest)
        scheduler.timesteps = torch.tensor(warm + rest)

    def __len__(self) -> int:
        return len(self.timesteps)

    def origin(self, i: int) -> int:
        """Where a run restarted at evaluation `i` begins in the scheduler's own list of timesteps."""
        if not 0 <= i < len(self.timesteps):
            raise UsageError(f"row {i}: this sampler's rows are 0 to {len(self.timesteps) - 1}")
        if self.pndm:  # its list repeats a level, and a rebuilt one repeats another: go by the timestep
            return self.own.index(float(self.timesteps[i]))
        return self.begin + i

    def scale_input(self, i: int, x: torch.Tensor) -> torch.Tensor:
        """`scale_model_input` of evaluation `i`; must be called once before its `step`."""
        with self._refusals("scale_model_input"):
            return self.scheduler.scale_model_input(x, self.timesteps[i])  # type: ignore[no-any-return]

    def step(
        self, i: int, x: torch.Tensor, out: torch.Tensor, noise: Callable[[], torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The scheduler's own step: `(x_next, its pred_original_sample if it gives one)`.

        Whatever the scheduler raises becomes a UsageError of one line.
        """
        arguments = dict(self.arguments)
        if self._lms:
            arguments["order"] = min(i + 1, 4)
        if self.brownian:
            if not isinstance(self.scheduler.noise_sampler, Brownian):
                self.scheduler.noise_sampler = Brownian(noise)
            self.scheduler.noise_sampler.draw = noise
        with self._refusals("step"), Answer(noise), torch.no_grad():
            result = self.scheduler.step(out, self.timesteps[i], x, return_dict=True, **arguments)
        return result.prev_sample, getattr(result, "pred_original_sample", None)

    @contextlib.contextmanager
    def _refusals(self, what: str) -> Iterator[None]:
        try:
            yield
        except RawdiffError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UsageError(f"{self.name}: its {what} fails ({reason})") from error


def step_arguments(scheduler: Any, eta: float, arguments: Mapping[str, Any] | None) -> dict[str, Any]:
    """What to hand to `scheduler.step` beside x and the output; raises UsageError for an eta that it ignores."""
    accepted = inspect.signature(scheduler.step).parameters
    result = dict(arguments or {})
    if "eta" in accepted:
        if not 0.0 <= eta <= 1.0:
            raise UsageError(f"eta {eta}: expected a number from 0 to 1")
        result.setdefault("eta", eta)
    elif eta != 0.0:
        raise UsageError(f"eta {eta}: {type(scheduler).__name__} has none (DDIM and TCD do)")
    return result
