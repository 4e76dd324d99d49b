"""Lines on what of a run was hardly meant as it is read, or has no effect: told by a dry run too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rawdiff.plan import Plan
from rawdiff.prompts import tokenize
from rawdiff.say import Say, once
from rawdiff.syntax import PLAIN
from rawdiff.texts import Texts, halves_of, notes_on, numbers_of
from rawdiff.vocabulary import Vocabulary, unused

__all__ = ["Words", "remarks", "say_cut"]

Words = tuple[Vocabulary, int]
"""What a text encoder knows, and how many tokens it takes at once."""


def remarks(
    texts: Texts,
    readers: Sequence[Words],
    plan: Plan,
    *,
    triggers: bool,
) -> Iterator[str]:
    """Lines on the texts, on `triggers` that no text has, and on what guidance does not do in `plan`."""
    yield from notes_on(texts)
    if triggers:
        yield from unused(
            *(
                (vocabulary, numbers_of(vocabulary, length, k, texts, guided=plan.guided))
                for k, (vocabulary, length) in enumerate(readers)
            )
        )
    said = any(text for context in texts.contexts for _, negatives in context for text in negatives)
    if said and not plan.guided:
        told_it = "this model is told its guidance, and has no half for it"
        yield f"the negative prompt has no effect: {told_it if plan.distilled else 'guidance is off'}"
    if plan.guidance_end < 1.0 and all(scale <= 1.0 for scale in plan.guidance):
        yield "guidance end has no effect: guidance is off"


def say_cut(texts: Texts, readers: Sequence[Words], *, guided: bool, say: Say) -> None:
    """Tell what of plain texts does not fit, as `encode_texts` does."""
    say_once = once(say)
    for k, (vocabulary, length) in enumerate(readers if texts.syntax == PLAIN else ()):
        prompts, negatives = halves_of(texts, k, guided)
        tokenize(vocabulary, [*prompts, *negatives], length, say_once)
