"""What each picture of a run is told at each of its rows: texts that a syntax makes of prompts, and their contexts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rawdiff.conditions import Context
from rawdiff.errors import UsageError, WeightsError
from rawdiff.limits import check_text
from rawdiff.probes import NO_PROBE, ProbeLike
from rawdiff.prompts import Encoded, Reader, chunks_of, cut, encode_chunks, encode_prompts
from rawdiff.sampler import Sampler, number_steps
from rawdiff.say import Say, say_nothing, say_on_stderr
from rawdiff.syntax import PLAIN, Chunk, find_markup, schedule

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


def numbers_of(reader: Reader, texts: Texts, *, guided: bool) -> Iterator[int]:
    """Every token number that `encode_texts` has `reader` encode, paddings aside; raises UsageError as it does."""
    vocabulary, length = reader.vocabulary, reader.length
    halves = (half for both in texts.contexts for half in (both if guided else both[:1]))
    for text in dict.fromkeys(text for half in halves for text in half):
        if texts.syntax == PLAIN:
            yield from cut(vocabulary, check_text("prompt", text), length)[0]
        else:
            yield from (number for chunk in chunks_of(vocabulary, text, length) for number in chunk.numbers)


def encode_texts(
    readers: Sequence[Reader],
    texts: Texts,
    *,
    guided: bool,
    clip_skip: int = 0,
    zeros: Sequence[bool] = (),
    say: Say = say_on_stderr,
    probe: ProbeLike = NO_PROBE,
) -> tuple[Context, ...]:
    """The contexts; uncond too where the run is `guided`. `clip_skip` is the prompts' alone, as in diffusers.

    What several `readers` say of a token stands side by side. `zeros` tells of each picture whether its uncond is all
    zeros, whatever its negative prompt. Under A1111's syntax all have the length of the longest, in chunks: empty ones
    are added to the others, as that program does. Raises UsageError where that would lengthen one picture for
    another's sake.
    """
    prompts = [prompt for cond, _ in texts.contexts for prompt in cond]
    negatives = [negative for _, uncond in texts.contexts for negative in uncond] if guided else []
    told: dict[str, Any] = {"say": say, "probe": probe}
    found = [
        _read(
            reader,
            texts,
            prompts,
            negatives,
            clip_skip,
            {**told, "say": told["say"] if k == 0 else say_nothing},
        )
        for k, reader in enumerate(readers)
    ]
    cond = _joined([both[0] for both in found])
    uncond = _joined([both[1] for both in found if both[1] is not None]) if guided else None
    if uncond is not None and any(zeros):
        uncond = _silenced(uncond, [*zeros] * len(texts.contexts))
    count = len(texts.contexts)
    halves = (None, None) if uncond is None else uncond
    wholes = (halves[0], cond.pooled, halves[1])
    others = zip(*([None] * count if whole is None else whole.chunk(count) for whole in wholes), strict=True)
    return tuple(Context(c, *rest) for c, rest in zip(cond.context.chunk(count), others, strict=True))


def _read(
    reader: Reader,
    texts: Texts,
    prompts: Sequence[str],
    negatives: Sequence[str],
    clip_skip: int,
    told: dict[str, Any],
) -> tuple[Encoded, Encoded | None]:
    """What one encoder says of the prompts, and of the negative prompts where there are any."""
    if texts.syntax == PLAIN:
        cond = encode_prompts(reader, prompts, clip_skip=clip_skip, **told)
        return cond, encode_prompts(reader, negatives, **told) if negatives else None
    probe = told["probe"]
    with probe("tokens", host=True):
        chunks = {
            text: chunks_of(reader.vocabulary, text, reader.length)
            for text in dict.fromkeys([*prompts, *negatives])
        }
        count = _count_chunks(texts, chunks)
        padded = {text: (*own, *[Chunk()] * (count - len(own))) for text, own in chunks.items()}
    cond = encode_chunks(reader, [padded[p] for p in prompts], clip_skip=clip_skip, probe=probe)
    if not negatives:
        return cond, None
    return cond, encode_chunks(reader, [padded[n] for n in negatives], probe=probe)


def _joined(found: Sequence[Encoded]) -> Encoded:
    """The vectors of several encoders side by side; pooled text is the last one's."""
    if len({one.context.shape[1] for one in found}) > 1:
        raise WeightsError("the two text encoders take texts of different lengths: expected the same")
    return Encoded(torch.cat([one.context for one in found], dim=-1), found[-1].pooled)


def _silenced(found: Encoded, absent: Sequence[bool]) -> Encoded:
    """Zeros for each text that is `absent`."""
    here = torch.tensor(absent, device=found.context.device)
    pooled = None if found.pooled is None else found.pooled.masked_fill(here[:, None], 0.0)
    return Encoded(found.context.masked_fill(here[:, None, None], 0.0), pooled)


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
