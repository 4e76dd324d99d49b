"""Limits and words that both doors know, the command line before anything heavy is imported."""

from __future__ import annotations

__all__ = ["FITS", "MAX_SEED"]

MAX_SEED = 2**32 - 1
"""The largest seed: torch's CPU generator repeats itself beyond."""

FITS = ("crop", "pad", "stretch")
"""What can be done to a map of another aspect."""
