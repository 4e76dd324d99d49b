"""Numbers on command lines of training and measuring, as `type=` of argparse: a wrong one is one line, exit code 2."""

from __future__ import annotations

import argparse
from math import inf, isfinite

__all__ = ["amount", "counting", "positive", "share"]


def _number(text: str, least: float, most: float, expected: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = inf
    if not (isfinite(value) and least <= value <= most):
        raise argparse.ArgumentTypeError(f"{text!r}: expected {expected}")
    return value


def amount(text: str) -> int:
    """How many: a whole number of at least 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected at least 1")
    return value


def counting(text: str) -> float:
    """How much something counts: a number of at least 0."""
    return _number(text, 0, inf, "a number of at least 0")


def positive(text: str) -> float:
    """Minutes, or a rate: a number of at least a millionth of a millionth."""
    return _number(text, 1e-12, inf, "a number above 0")


def share(text: str) -> float:
    """A part of a whole, from 0 to 1."""
    return _number(text, 0, 1, "a number from 0 to 1")
