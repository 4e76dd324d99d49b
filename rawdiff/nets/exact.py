"""Which work is not done again at every step; every kind of it exact, and each to be switched off by itself."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["EVERYTHING", "Exact"]


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
    """Up to the query of the first cross attention nothing tells cond from uncond: one half stands for both."""
    scale: bool = True
    """Divisions by an output scale of exactly 1 are left out."""


EVERYTHING = Exact()
"""All of it."""
