"""Rows of words as lines of text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

__all__ = ["grid"]


def grid(rows: Sequence[Sequence[str]], left: int = 0) -> Iterator[str]:
    """Rows of words, each column as wide as it must be: the first `left` flush left, the others flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        words = [
            word.ljust(width) if k < left else word.rjust(width)
            for k, (word, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(words).rstrip()
