"""Token numbers in chunks: a text encoder takes 75 at a time (and a start and an end), a prompt may have more.

As in stable-diffusion-webui 1.10: BREAK ends a chunk; where one is full, what follows the last comma among its last
twenty tokens moves to the next; what belongs together (the vectors of a trigger) is never cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Chunk", "chunked"]

BACKTRACK = 20
"""How far before a chunk's end a comma may be for what follows it to move."""


@dataclass(frozen=True)
class Chunk:
    """Some token numbers, without start, end and padding; a weight for each."""

    numbers: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()

    def framed(self, start: int, end: int, pad: int, length: int) -> tuple[list[int], list[float]]:
        """Numbers and weights with start, end and padding, `length` of each; what is added has weight 1."""
        rest = length - 2 - len(self.numbers)
        return [start, *self.numbers, end, *[pad] * rest], [1.0, *self.weights, 1.0, *[1.0] * rest]


def chunked(
    sections: Sequence[Sequence[tuple[Sequence[Sequence[int]], float]]], size: int, comma: int | None = None
) -> tuple[Chunk, ...]:
    """Chunks of at most `size` numbers, at least one; `sections` hold runs: words of token numbers, and a weight.

    `comma` is the token number of a comma.
    """
    chunks: list[Chunk] = []
    numbers: list[int] = []
    weights: list[float] = []
    last_comma = -1

    def end(keep: int | None = None) -> None:
        nonlocal numbers, weights, last_comma
        chunks.append(Chunk(tuple(numbers[:keep]), tuple(weights[:keep])))
        numbers, weights = ([], []) if keep is None else (numbers[keep:], weights[keep:])
        last_comma = -1

    for k, section in enumerate(sections):
        if k:
            end()
        for words, weight in section:
            for word in words:
                is_comma = len(word) == 1 and word[0] == comma
                full = len(numbers) == size
                if full and not is_comma and last_comma >= 0 and size - last_comma <= BACKTRACK:
                    end(last_comma + 1)
                if len(numbers) + len(word) > size:
                    end()
                if is_comma:
                    last_comma = len(numbers)
                numbers += word
                weights += [weight] * len(word)
    if numbers or not chunks:
        end()
    return tuple(chunks)
