from __future__ import annotations

EPILOG = ""


def doctor() -> None:
    """TODO."""
