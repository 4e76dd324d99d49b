"""A Step: one evaluation, as seen by whoever watches."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import Tensor

from rawdiff.errors import StaleStep, UsageError
from rawdiff.nets.controlnet import Residuals
from rawdiff.plan import Row
from rawdiff.predict import Prediction
from rawdiff.state import RunState, set_by_hand

__all__ = ["WATCHABLE", "Step", "check_watch"]

WATCHABLE = ("x", "x_next", "uncond", "cond", "guided", "x0", "control")
"""What can be asked for."""


def check_watch(watch: Sequence[str]) -> tuple[str, ...]:
    """Raise UsageError for a name that is not in WATCHABLE."""
    if isinstance(watch, str):
        raise UsageError(f"watch {watch!r}: expected several names, such as ({watch!r},)")
    if not isinstance(watch, Collection):
        raise UsageError(f"watch {watch!r}: expected some of {', '.join(WATCHABLE)}, or () for none")
    for name in watch:
        if name not in WATCHABLE:
            raise UsageError(f"watch {name!r}: expected some of {', '.join(WATCHABLE)}")
    return tuple(watch)


class Step:
    """A view of one evaluation, valid until the next; `keep` makes it last. Tensors are [B,4,h,w] fp32.

    `x` is what went in and `x_next` what came out; the others are there if they were asked for in `watch`. To
    change what the run goes on with, set `state`.
    """

    def __init__(
        self, row: Row, x: Tensor, prediction: Prediction, state: RunState, watch: Sequence[str] = ()
    ) -> None:
        self.row = row
        self._state = state
        self.watch = frozenset(watch) | {"x", "x_next"}
        self._x = x
        self._prediction: Prediction | None = prediction
        self._kept: dict[str, Tensor | tuple[Residuals | None, ...]] = {}
        self._stale = False

    def __repr__(self) -> str:
        stale = ", stale" if self._stale else ""
        return f"Step({self.index}, t={self.row.t:g}, sigma={self.row.sigma:.4g}{stale})"

    @property
    def state(self) -> RunState:
        """What the run goes on from; may be set, and then raises UsageError for what is no state of it."""
        return self._state

    @state.setter
    def state(self, state: RunState) -> None:
        self._state = set_by_hand(state, self._x.shape)

    @property
    def index(self) -> int:
        """Number of the evaluation, from 0."""
        return self.row.index

    @property
    def x(self) -> Tensor:
        """The latents that went in."""
        return self._tensor("x")

    @property
    def x_next(self) -> Tensor:
        """The latents that came out."""
        return self._tensor("x_next")

    @property
    def uncond(self) -> Tensor:
        """The networks' output without the prompt; UsageError where guidance is off."""
        return self._tensor("uncond")

    @property
    def cond(self) -> Tensor:
        """The networks' output with the prompt."""
        return self._tensor("cond")

    @property
    def guided(self) -> Tensor:
        """What the sampler was given."""
        return self._tensor("guided")

    @property
    def x0(self) -> Tensor:
        """The clean latents that `guided` amounts to."""
        return self._tensor("x0")

    @property
    def control(self) -> tuple[Residuals | None, ...]:
        """Each ControlNet's residuals, in the networks' dtype; None for a net outside its window."""
        found = self._read("control")
        assert isinstance(found, tuple)
        return found

    def _tensor(self, name: str) -> Tensor:
        found = self._read(name)
        assert isinstance(found, Tensor)
        return found

    def _read(self, name: str) -> Tensor | tuple[Residuals | None, ...]:
        if self._stale:
            raise StaleStep(
                f"step {self.index} was read after the loop went on: call keep() on it before that"
            )
        if name not in self.watch:
            raise UsageError(f"step.{name} is not watched: prepare the run with watch=({name!r}, ...)")
        if name == "uncond" and not self.row.guided:
            raise UsageError(
                "step.uncond: guidance is off (a scale of 1 or less, or after guidance_end), so the networks were not "
                "run on it"
            )
        return self._value(name)

    def _value(self, name: str) -> Tensor | tuple[Residuals | None, ...]:
        if name in self._kept:
            return self._kept[name]
        if self._prediction is None:
            raise StaleStep(f"step {self.index} was read after the loop went on: {name} was not kept")
        match name:
            case "x":
                return self._x
            case "x_next":
                return self.state.x
            case "x0":
                return self.row.step.x0_a * self._x + self.row.step.x0_b * self._prediction.guided
            case _:
                found: Tensor | tuple[Residuals | None, ...] = getattr(self._prediction, name)
                return found

    def peek_x0(self) -> Tensor:
        """`x0`, watched or not."""
        found = self._value("x0")
        assert isinstance(found, Tensor)
        return found

    def keep(self) -> Step:
        """Copy what is watched, so that this Step stays readable; returns itself."""
        for name in sorted(self.watch):
            if name not in self._kept and not (name == "uncond" and not self.row.guided):
                self._kept[name] = _copied(self._read(name))
        return self

    def expire(self) -> None:
        """The loop goes on: what was not kept is no longer readable."""
        self._stale = not self._kept
        self._prediction = None


def _copied(value: Tensor | tuple[Residuals | None, ...]) -> Tensor | tuple[Residuals | None, ...]:
    if isinstance(value, Tensor):
        return value.clone()
    return tuple(
        None if r is None else Residuals(tuple(skip.clone() for skip in r.skips), r.middle.clone())
        for r in value
    )
