"""What each picture of a run is told at each of its rows: texts that a syntax makes of prompts, and their contexts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from rawdiff.conditions import Context
from rawdiff.errors import UsageError
from rawdiff.limits import check_text
from rawdiff.probes import NO_PROBE, ProbeLike
from rawdiff.prompts import chunks_of, cut, encode_chunks, encode_prompts, text_length
from rawdiff.sampler import Sampler, number_steps
from rawdiff.say import Say, say_on_stderr
from rawdiff.syntax import PLAIN, Chunk, find_markup, schedule
from rawdiff.vocabulary import Vocabulary

__all__ = ["Texts", "encode_texts", "numbers_of", "taken_for_text", "texts_of"]


@dataclass(frozen=True)
class Texts:
    """The texts of a run's contexts, and the number of each row's."""

    syntax: str
    contexts: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]
    """Prompts and negative prompts, one of each for each picture; no two contexts are the same."""
    rows: tuple[int, ...]


def texts_of(syntax: str, prompts: Sequence[str], negatives: Sequence[str], sampler: Sampler) -> Texts:
    """The texts at each row of a sampler: a function of the prompts and of its steps."""
    if syntax == PLAIN:
        return Texts(syntax, ((tuple(prompts), tuple(negatives)),), (0,) * len(sampler.rows))
    steps = number_steps(sampler)
    schedules = {text: schedule(text, steps[-1] + 1) for text in {*prompts, *negatives}}

    def told(texts: Sequence[str], step: int) -> tuple[str, ...]:
        return tuple(
            next(text for start, text in reversed(schedules[prompt]) if start <= step) for prompt in texts
        )

    numbered: dict[tuple[tuple[str, ...], tuple[str, ...]], int] = {}
    rows = [
        numbered.setdefault((told(prompts, step), told(negatives, step)), len(numbered)) for step in steps
    ]
    return Texts(syntax, tuple(numbered), tuple(rows))


def taken_for_text(texts: Texts) -> Iterator[str]:
    """A line on what of plain prompts looks as if it was meant to be more than text."""
    if texts.syntax != PLAIN:
        return
    for prompt in dict.fromkeys(text for both in texts.contexts[0] for text in both):
        found = find_markup(prompt)
        if found is not None:
            yield f"{found[:60]!r} in the prompt is read as plain text; the prompt syntax a1111 reads it otherwise"
            return


def numbers_of(vocabulary: Vocabulary, encoder: Any, texts: Texts, *, guided: bool) -> Iterator[int]:
    """Every token number that `encode_texts` encodes, paddings aside; raises UsageError as it does."""
    length = text_length(vocabulary, encoder.config.max_position_embeddings)
    halves = (half for both in texts.contexts for half in (both if guided else both[:1]))
    for text in dict.fromkeys(text for half in halves for text in half):
        if texts.syntax == PLAIN:
            yield from cut(vocabulary, check_text("prompt", text), length)[0]
        else:
            yield from (number for chunk in chunks_of(vocabulary, text, length) for number in chunk.numbers)


def encode_texts(
    vocabulary: Vocabulary,
    encoder: Any,
    texts: Texts,
    *,
    guided: bool,
    clip_skip: int = 0,
    say: Say = say_on_stderr,
    probe: ProbeLike = NO_PROBE,
) -> tuple[Context, ...]:
    """The contexts; uncond too where the run is `guided`. `clip_skip` is the prompts' alone, as in diffusers.

    Under A1111's syntax all have the length of the longest, in chunks: empty ones are added to the others, as that
    program does. Raises UsageError where that would lengthen one picture for another's sake.
    """
    prompts = [prompt for cond, _ in texts.contexts for prompt in cond]
    negatives = [negative for _, uncond in texts.contexts for negative in uncond] if guided else []
    options: dict[str, Any] = {"probe": probe}
    if texts.syntax == PLAIN:
        options["say"] = say
        cond = encode_prompts(vocabulary, encoder, prompts, clip_skip=clip_skip, **options)
        uncond = encode_prompts(vocabulary, encoder, negatives, **options) if guided else None
    else:
        with probe("tokens", host=True):
            length = text_length(vocabulary, encoder.config.max_position_embeddings)
            chunks = {
                text: chunks_of(vocabulary, text, length) for text in dict.fromkeys(prompts + negatives)
            }
            count = _count_chunks(texts, chunks)
            padded = {text: (*own, *[Chunk()] * (count - len(own))) for text, own in chunks.items()}
        cond = encode_chunks(
            vocabulary, encoder, [padded[p] for p in prompts], clip_skip=clip_skip, **options
        )
        uncond = (
            encode_chunks(vocabulary, encoder, [padded[n] for n in negatives], **options) if guided else None
        )
    halves = [None] * len(texts.contexts) if uncond is None else _parts(uncond, texts)
    return tuple(Context(c, u) for c, u in zip(_parts(cond, texts), halves, strict=True))


def _parts(tensor: Tensor, texts: Texts) -> list[Tensor]:
    return list(tensor.chunk(len(texts.contexts)))


def _count_chunks(texts: Texts, chunks: dict[str, tuple[Chunk, ...]]) -> int:
    """The most chunks that a picture's texts have, at any row; each picture must need as many."""
    pictures = [
        {text for both in texts.contexts for half in both for text in half[k : k + 1]}
        for k in range(len(texts.contexts[0][0]))
    ]
    counts = [max(len(chunks.get(text, ())) for text in own) for own in pictures]
    if len(set(counts)) > 1:
        k = next(k for k, count in enumerate(counts) if count != counts[0])
        raise UsageError(
            f"prompt {k}: needs {counts[k]} chunks of tokens and prompt 0 {counts[0]}: padding would change a picture "
            "for another's sake; prepare them apart"
        )
    return counts[0]
