"""What a prompt's text means: a syntax, read by pure functions that know no tokens and no tensors.

    weights.py   (word:1.2), ((word)), [word], BREAK and escapes: runs of text, each with its weight
    editing.py   [from:to:0.5] and [one|other]: which text stands at which step
    tags.py      <lora:name:0.8>: taken out of the text
    chunks.py    token numbers, each with its weight, in chunks of what a text encoder takes

Under `PLAIN`, as in diffusers, all of it is text. `A1111` is the language of AUTOMATIC1111's stable-diffusion-webui
as of version 1.10. Where this differs: BREAK breaks inside brackets too, numbers have at most nine digits,
brackets weigh to a depth of 64, a | outside of square brackets leaves their editing as it is, a prompt's change comes
as its documentation says (there it comes a step late), AND joins no prompts, and the shorter of prompt and negative
prompt is filled up with empty chunks, as with that program's setting "Pad prompt/negative prompt". Every function
takes any text: what is not balanced is read as that program reads it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from rawdiff.errors import UsageError
from rawdiff.syntax.chunks import Chunk, chunked
from rawdiff.syntax.editing import Schedule, schedule
from rawdiff.syntax.tags import Tag, check_untagged, take_all_tags, take_tags
from rawdiff.syntax.weights import WeightedText, find_unbalanced, parse_weights

__all__ = [
    "A1111",
    "PLAIN",
    "SYNTAXES",
    "Chunk",
    "Schedule",
    "Tag",
    "WeightedText",
    "check_syntax",
    "check_untagged",
    "chunked",
    "find_markup",
    "find_misread",
    "parse_weights",
    "schedule",
    "take_all_tags",
    "take_tags",
]

PLAIN, A1111 = "plain", "a1111"
SYNTAXES = (PLAIN, A1111)

_MARKUP = re.compile(
    r"\([^()]*:\s*[+-]?[0-9.]+\s*\)|\[[^\[\]]*:\s*[0-9.]+\s*\]|<lora:[^<>]*>|\bBREAK\b", re.ASCII
)


_AND = re.compile(r"\bAND\b")


def find_misread(text: str) -> Iterator[str]:
    """Lines on what in a text of `A1111` was hardly meant as it is read here."""
    line = find_unbalanced(text)
    if line is not None:
        yield line
    if _AND.search(text):
        yield "AND is read as a word: it joins no prompts here"


def check_syntax(given: object) -> str:
    """`given` if it is a syntax; None is plain. Raises UsageError."""
    if given is None:
        return PLAIN
    if not isinstance(given, str) or given not in SYNTAXES:
        shown = " ".join(repr(given).split())[:60]
        raise UsageError(f"prompt syntax {shown}: expected {' or '.join(SYNTAXES)}")
    return given


def find_markup(text: str) -> str | None:
    """The first piece of a plain prompt that would hardly be there if it was not meant as `A1111`, or None."""
    found = _MARKUP.search(text)
    return None if found is None else found[0]
