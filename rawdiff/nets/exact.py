"""Which work is not done again at every step; every kind of it exact, and each to be switched off by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from rawdiff.errors import UsageError

__all__ = ["EVERYTHING", "Exact", "check", "without"]


@dataclass(frozen=True)
class Exact:
    """What a run computes once, or not at all, where diffusers' pipelines compute it at every step.

    Algebraically nothing changes by any of these; the last bits may, where another batch size picks another
    kernel (`scale` alone is the same to the bit). They are on by default, and there to be switched off one by
    one: to measure what each is worth, or to have the bits of a run that was made without.
    """

    kv: bool = True
    """The text's keys and values, of every context in every cross attention: once a run."""
    time: bool = True
    """Time embeddings and every ResNet's projection of them: once a run, a table with one row a timestep."""
    prefix: bool = True
    """Until something tells cond from uncond one half stands for both: up to the query of the first cross attention.

    In SDXL up to the first ResNet's time, with which pooled text is told.
    """
    scale: bool = True
    """Divisions by an output scale of exactly 1 are left out."""


EVERYTHING = Exact()
"""All of it."""


def check(exact: object) -> None:
    """Raise UsageError for what is no Exact."""
    if not isinstance(exact, Exact):
        raise UsageError(f"exact {exact!r}: expected an Exact, such as Exact(kv=False)")


def without(repeats: Sequence[str]) -> Exact:
    """Everything but the work of these names, which is then done at every step; UsageError for one that is none."""
    known = [field.name for field in fields(Exact)]
    for name in repeats:
        if name not in known:
            raise UsageError(f"exact: no work is called {name[:60]!a}; expected some of {', '.join(known)}")
    return Exact(**dict.fromkeys(repeats, False))
