"""Weights in a prompt: brackets read as stable-diffusion-webui 1.10 reads them.

    (word)      weight 1.1, and brackets multiply: ((word)) has 1.21
    (word:1.3)  weight 1.3
    [word]      weight 1/1.1
    \\( \\) \\[ \\] \\\\   the character itself; another backslash falls away
    BREAK       what follows begins a new chunk

A bracket that nobody closes holds to the end; one that nobody opened is text.
"""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["MAX_DEPTH", "WeightedText", "find_unbalanced", "parse_weights"]

MAX_DEPTH = 64
"""Brackets that are nested deeper are text: the work stays in proportion to the prompt."""

ROUND, SQUARE = 1.1, 1 / 1.1
SHOWN = 24
"""How much of a text a line shows."""

_PIECE = re.compile(
    r"""
    \\(?P<escaped>[()\[\]\\]?) |
    :\s*(?P<weight>[+-]?(?:[0-9]{1,9}(?:\.[0-9]{0,9})?|\.[0-9]{1,9}))\s*\) |
    (?P<bracket>[()\[\]]) |
    (?P<text>[^\\()\[\]:]+|:)
    """,
    re.VERBOSE,
)
_BREAK = re.compile(r"\bBREAK\b")


class WeightedText(NamedTuple):
    """A run of text, and how much it counts."""

    text: str
    weight: float


class _Runs:
    def __init__(self) -> None:
        self.found: list[list[list[str | float]]] = [[]]  # sections of [text, weight]
        self.all: list[list[str | float]] = []

    def add(self, text: str) -> None:
        run: list[str | float] = [text, 1.0]
        self.found[-1].append(run)
        self.all.append(run)

    def weigh(self, start: int, factor: float) -> None:
        for run in self.all[start:]:
            run[1] *= factor  # type: ignore[operator]


def parse_weights(text: str) -> tuple[tuple[WeightedText, ...], ...]:
    """Runs of `text` with their weights, in sections that BREAK parts; always at least one section, maybe empty.

    Neighbours of the same weight are one run, so that a word is a word though a bracket ends in it.
    """
    runs, _ = _read(text)
    return tuple(tuple(_joined(section)) for section in runs.found)


def find_unbalanced(text: str) -> str | None:
    """A line on brackets without a partner, and how they are read; None where each has one."""
    _, lone = _read(text)
    if not lone:
        return None
    place = lone[0]
    if text[place] in "([":
        line = (
            f"the bracket of {text[place : place + SHOWN]!r} is never closed: it weighs everything to the end"
        )
    else:
        line = f"the bracket of {text[max(0, place + 1 - SHOWN) : place + 1]!r} closes nothing: it is read as text"
    others = len(lone) - 1
    return line + (f" (and {others} other{'s' if others > 1 else ''})" if others else "")


def _read(text: str) -> tuple[_Runs, list[int]]:
    """The runs, and the places of brackets without a partner."""
    runs, lone = _Runs(), []
    opened: dict[str, list[tuple[int, int]]] = {"(": [], "[": []}  # the first run, and the bracket's place
    for match in _PIECE.finditer(text):
        bracket = match["bracket"]
        if match["escaped"] is not None:
            runs.add(match["escaped"])
        elif match["weight"] is not None and opened["("]:
            runs.weigh(opened["("].pop()[0], float(match["weight"]))
        elif bracket in ("(", "[") and len(opened["("]) + len(opened["["]) < MAX_DEPTH:
            opened[bracket].append((len(runs.all), match.start()))
        elif bracket == ")" and opened["("]:
            runs.weigh(opened["("].pop()[0], ROUND)
        elif bracket == "]" and opened["["]:
            runs.weigh(opened["["].pop()[0], SQUARE)
        else:
            if match["weight"] is not None or bracket in (")", "]"):
                lone.append(match.end() - 1)
            parts = _BREAK.split(match[0])
            for k, part in enumerate(parts):
                if k:
                    runs.found.append([])
                    part = part.lstrip()
                runs.add(part if k == len(parts) - 1 else part.rstrip())
    for kind, factor in (("(", ROUND), ("[", SQUARE)):
        for start, place in opened[kind]:
            runs.weigh(start, factor)
            lone.append(place)
    return runs, sorted(lone)


def _joined(section: list[list[str | float]]) -> list[WeightedText]:
    parts: list[tuple[list[str], float]] = []
    for text, weight in section:
        if not parts or parts[-1][1] != weight:
            parts.append(([], float(weight)))
        parts[-1][0].append(str(text))
    joined = (WeightedText("".join(texts), weight) for texts, weight in parts)
    return [run for run in joined if run.text]
