"""<lora:name:0.8> in a prompt: asks for a LoRA, and is no part of the text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rawdiff.errors import UsageError
from rawdiff.limits import is_name

__all__ = ["Tag", "check_untagged", "take_all_tags", "take_tags"]

_TAG = "<lora:"
_TOKEN = re.compile(r"[<>]|[^<>]+")
_SCALE = re.compile(r"\s*[+-]?(?:[0-9]{1,9}(?:\.[0-9]{0,9})?|\.[0-9]{1,9})\s*")


class Tag(NamedTuple):
    """The name of a LoRA that the model brings, and how much of it."""

    name: str
    scale: float


def take_tags(text: str) -> tuple[str, tuple[Tag, ...]]:
    """`text` without its tags, and those; raises UsageError for a tag that names none.

    A space that would stand doubled, at the beginning or at the end goes with the tag.
    """
    found: list[Tag] = []
    closed: list[str] = []
    opened: list[list[str]] = []  # each from a < on, without a > so far
    place = 0
    while (match := _TOKEN.match(text, place)) is not None:
        token, place = match[0], match.end()
        if token == "<":
            opened.append([])
        (opened[-1] if opened else closed).append(token)
        if token != ">" or not opened:
            continue
        whole = "".join(opened.pop())
        if not whole.startswith(_TAG):  # and then no < before this > begins a tag
            closed += [*(piece for one in opened for piece in one), whole]
            opened.clear()
            continue
        found.append(_tag(whole, whole[len(_TAG) : -1]))
        before = opened[-1] if opened else closed  # what the tag kept apart may be another
        if text[place : place + 1] == " " and (not before or before[-1].endswith(" ")):
            place += 1
        if place == len(text) and before:
            before[-1] = before[-1].removesuffix(" ")
    return "".join([*closed, *(piece for one in opened for piece in one)]), tuple(found)


def take_all_tags(prompts: Sequence[str], negatives: Sequence[str]) -> tuple[list[str], tuple[Tag, ...]]:
    """The same of the prompts of one run, which is drawn with one set of weights; raises UsageError for several."""
    found = [take_tags(prompt) for prompt in prompts]
    if any(tags != found[0][1] for _, tags in found):
        raise UsageError(
            "the prompts ask for different LoRAs: a run is drawn with the same; prepare them apart"
        )
    check_untagged("negative", negatives)
    return [text for text, _ in found], found[0][1]


def check_untagged(name: str, texts: Iterable[str]) -> None:
    """Raise UsageError for a tag in what is read beside the prompts: "negative" ones, or a "second" text encoder's."""
    if any(take_tags(text)[1] for text in texts):
        raise UsageError(
            f"the {name} prompt asks for a LoRA, which would serve both prompts: move it to the prompt"
        )


def _tag(whole: str, inner: str) -> Tag:
    name, colon, scale = inner.partition(":")
    name, shown = name.strip(), repr(whole[:80])
    if not is_name(name):
        raise UsageError(
            f"{shown}: {name[:60]!r} is no name of a LoRA that a model brings; a file is given by its path, with "
            "--lora PATH@scale"
        )
    if colon and _SCALE.fullmatch(scale) is None:
        raise UsageError(f"{shown}: {scale[:60]!r} is no scale, such as 0.8; expected <lora:name:0.8>")
    return Tag(name, float(scale) if colon else 1.0)
