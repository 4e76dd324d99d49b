from __future__ import annotations

EPILOG = ""


def sampler() -> None:
    """TODO."""
