"""How a person is told things: a function that takes one line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable

__all__ = ["Say", "once", "say_nothing", "say_on_stderr"]

Say = Callable[[str], None]
"""Takes one line for a person."""


def say_on_stderr(line: str) -> None:
    """Print `line` on standard error."""
    print(line, file=sys.stderr)


def say_nothing(line: str) -> None:
    """Print nothing."""


def once(say: Say, told: Iterable[str] = ()) -> Say:
    """`say`, for each line the first time only, and never for those `told` already."""
    known = set(told)

    def say_once(line: str) -> None:
        if line not in known:
            known.add(line)
            say(line)

    return say_once
