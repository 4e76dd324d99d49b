from __future__ import annotations

EPILOG = ""


def info() -> None:
    """TODO."""
