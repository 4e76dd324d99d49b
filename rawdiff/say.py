"""How a person is told things: a function that takes one line."""

from __future__ import annotations

import sys
from collections.abc import Callable

__all__ = ["Say", "say_nothing", "say_on_stderr"]

Say = Callable[[str], None]
"""Takes one line for a person."""


def say_on_stderr(line: str) -> None:
    """Print `line` on standard error."""
    print(line, file=sys.stderr)


def say_nothing(line: str) -> None:
    """Print nothing."""
