"""Prompt editing: which text a prompt is at each step.

    [from:to:0.5]   `from` for the first half of the steps, then `to`; a number without a point counts steps
    [to:5]          nothing for five steps, then `to`
    [from::0.5]     `from` for the first half, then nothing
    [one|other]     by turns, a step each

They may be nested. Square brackets with anything else in them, and brackets without a partner, stay as they are, for
`weights` to read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = ["Schedule", "Segment", "schedule"]

_NUMBER = re.compile(r"\s*([+-]?(?:[0-9]{1,9}(?:\.[0-9]{0,9})?|\.[0-9]{1,9}))\s*")
_PIECE = re.compile(r"(?:[^\\()\[\]:|]|\\.)+|.", re.DOTALL)


class Segment(NamedTuple):
    """The text from a step on, counted from 0."""

    start: int
    text: str


Schedule = tuple[Segment, ...]
"""From step 0 on; neighbours differ."""


@dataclass
class _Bracket:
    kind: str
    place: int
    """Of the bracket among the pieces; and so of what stands between the parts inside it."""
    colons: list[int] = field(default_factory=list)
    bars: list[int] = field(default_factory=list)


def schedule(prompt: str, steps: int) -> Schedule:
    """The texts of a prompt over so many steps: a function of the two alone."""
    changes: set[int] = set()
    found = [Segment(0, _text_at(prompt, 0, steps, changes))]
    for step in sorted(step for step in changes if 0 < step < steps):
        text = _text_at(prompt, step, steps, set())
        if text != found[-1].text:
            found.append(Segment(step, text))
    return tuple(found)


def _text_at(prompt: str, step: int, steps: int, changes: set[int]) -> str:
    """The text at one step; where it may change is added to `changes`. One pass, whatever the nesting."""
    pieces: list[str] = []
    opened: list[_Bracket] = []
    counts = {"(": 0, "[": 0}
    for match in _PIECE.finditer(prompt):
        piece = match[0]
        top = opened[-1] if opened else None
        if piece in counts:
            opened.append(_Bracket(piece, len(pieces)))
            counts[piece] += 1
        elif piece == ":" and top is not None:
            top.colons.append(len(pieces))
        elif piece == "|" and top is not None:
            top.bars.append(len(pieces))
        elif piece in (")", "]") and counts["(" if piece == ")" else "["]:
            kind, lone = "(" if piece == ")" else "[", False
            while True:  # what was opened inside and not closed is text
                bracket = opened.pop()
                counts[bracket.kind] -= 1
                if bracket.kind == kind:
                    break
                lone = True
            chosen = None if kind == "(" or lone else _chosen(pieces, bracket, step, steps, changes)
            if chosen is not None:
                pieces[bracket.place :] = chosen
                continue
        pieces.append(piece)
    return "".join(pieces)


def _chosen(
    pieces: list[str], bracket: _Bracket, step: int, steps: int, changes: set[int]
) -> list[str] | None:
    """What a square bracket comes to at this step; None for one that edits nothing."""
    begin, colons, bars = bracket.place + 1, bracket.colons, bracket.bars
    if bars and not colons:
        changes.update(range(1, steps))
        ends = [*bars, len(pieces)]
        k = step % len(ends)
        return pieces[begin if k == 0 else bars[k - 1] + 1 : ends[k]]
    if bars or len(colons) not in (1, 2) or len(pieces) != colons[-1] + 2:
        return None
    number = _NUMBER.fullmatch(pieces[-1])
    if number is None:
        return None
    when = int(float(number[1]) * steps) if "." in number[1] else int(number[1])
    changes.add(when)
    before = pieces[begin : colons[0]] if len(colons) == 2 else []
    after = pieces[colons[0] + 1 if len(colons) == 2 else begin : colons[-1]]
    return before if step < when else after
