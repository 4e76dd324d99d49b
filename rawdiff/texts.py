"""What each picture of a run is told at each of its rows: texts that a syntax makes of prompts, and their contexts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from rawdiff.conditions import Context
from rawdiff.errors import UsageError, WeightsError
from rawdiff.limits import check_text
from rawdiff.probes import NO_PROBE, ProbeLike
from rawdiff.prompts import Encoded, Reader, chunks_of, cut, encode_chunks, encode_prompts
from rawdiff.sampler import Sampler, number_steps
from rawdiff.say import Say, once, say_on_stderr
from rawdiff.syntax import PLAIN, Chunk, find_markup, find_misread, schedule
from rawdiff.vocabulary import Vocabulary

__all__ = ["Both", "Texts", "encode_texts", "halves_of", "notes_on", "numbers_of", "texts_of"]

Both = tuple[Sequence[str], Sequence[str]]
"""Prompts and negative prompts, one of each for each picture."""


@dataclass(frozen=True)
class Texts:
    """The texts of a run's contexts, and the number of each row's."""

    syntax: str
    contexts: tuple[tuple[Both, ...], ...]
    """Each for the first text encoder, and for the second where that reads another; no two contexts are the same."""
    rows: tuple[int, ...]

    def read_by(self, k: int) -> tuple[Both, ...]:
        """What the first text encoder (0) or the second (1) reads in each context."""
        return tuple(context[min(k, len(context) - 1)] for context in self.contexts)

    @property
    def pictures(self) -> int:
        """How many pictures there are."""
        return len(self.contexts[0][0][0])


def texts_of(syntax: str, first: Both, second: Both | None, sampler: Sampler) -> Texts:
    """The texts at each row of a sampler: a function of the prompts and of its steps.

    `second` are those for the second text encoder, where that reads others than the first.
    """
    words = [first] if second is None else [first, second]
    if syntax == PLAIN:
        whole = tuple((tuple(prompts), tuple(negatives)) for prompts, negatives in words)
        return Texts(syntax, (whole,), (0,) * len(sampler.rows))
    steps = number_steps(sampler)
    schedules = {text: schedule(text, steps[-1] + 1) for text in _every([words])}

    def told(texts: Sequence[str], step: int) -> tuple[str, ...]:
        return tuple(next(text for start, text in reversed(schedules[own]) if start <= step) for own in texts)

    numbered: dict[tuple[Both, ...], int] = {}
    rows = [
        numbered.setdefault(
            tuple((told(prompts, step), told(negatives, step)) for prompts, negatives in words), len(numbered)
        )
        for step in steps
    ]
    return Texts(syntax, tuple(numbered), tuple(rows))


def _every(contexts: Iterable[Iterable[Both]]) -> dict[str, None]:
    """Every text once, in order."""
    return dict.fromkeys(text for context in contexts for both in context for half in both for text in half)


def notes_on(texts: Texts) -> Iterator[str]:
    """Lines on what was hardly meant as it is read: markup in plain prompts, lone brackets and AND in others."""
    if texts.syntax != PLAIN:
        yield from dict.fromkeys(line for text in _every(texts.contexts) for line in find_misread(text))
        return
    for prompt in _every(texts.contexts):
        found = find_markup(prompt)
        if found is not None:
            yield f"{found[:60]!r} in the prompt is read as plain text; the prompt syntax a1111 reads it otherwise"
            return


def numbers_of(vocabulary: Vocabulary, length: int, k: int, texts: Texts, *, guided: bool) -> Iterator[int]:
    """Every token number that `encode_texts` has reader `k` encode, paddings aside; raises UsageError as it does.

    `vocabulary` is that reader's, `length` what it takes at once.
    """
    halves = (half for both in texts.read_by(k) for half in (both if guided else both[:1]))
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
    are added to the others, as that program does with "Pad prompt/negative prompt" (without it the two halves run by
    themselves there). Raises UsageError where that would lengthen one picture for another's sake.
    """
    if texts.syntax == PLAIN:
        found = _plainly(readers, texts, guided, clip_skip, say, probe)
    else:
        found = _in_chunks(readers, texts, guided, clip_skip, probe)
    cond = _joined([both[0] for both in found])
    uncond = _joined([both[1] for both in found if both[1] is not None]) if guided else None
    if uncond is not None and any(zeros):
        uncond = _silenced(uncond, [*zeros] * len(texts.contexts))
    count = len(texts.contexts)
    halves = (None, None) if uncond is None else uncond
    wholes = (halves[0], cond.pooled, halves[1])
    others = zip(*([None] * count if whole is None else whole.chunk(count) for whole in wholes), strict=True)
    return tuple(Context(c, *rest) for c, rest in zip(cond.context.chunk(count), others, strict=True))


def halves_of(texts: Texts, k: int, guided: bool) -> tuple[list[str], list[str]]:
    """All that reader `k` reads, the prompts of every context and, where it is read, the negative prompts."""
    prompts = [prompt for cond, _ in texts.read_by(k) for prompt in cond]
    return prompts, [negative for _, uncond in texts.read_by(k) for negative in uncond] if guided else []


def _plainly(
    readers: Sequence[Reader], texts: Texts, guided: bool, clip_skip: int, say: Say, probe: ProbeLike
) -> list[tuple[Encoded, Encoded | None]]:
    """What each reader says of the prompts, and of the negative prompts where there are any."""
    say_once = once(say)  # two tokenizers cut a text alike
    found = []
    for k, reader in enumerate(readers):
        prompts, negatives = halves_of(texts, k, guided)
        cond = encode_prompts(reader, prompts, clip_skip=clip_skip, say=say_once, probe=probe)
        uncond = encode_prompts(reader, negatives, say=say_once, probe=probe) if guided else None
        found.append((cond, uncond))
    return found


def _in_chunks(
    readers: Sequence[Reader], texts: Texts, guided: bool, clip_skip: int, probe: ProbeLike
) -> list[tuple[Encoded, Encoded | None]]:
    """The same under A1111's syntax, every text in as many chunks as the longest has."""
    halves = [halves_of(texts, k, guided) for k in range(len(readers))]
    with probe("tokens", host=True):
        chunks = [
            {text: chunks_of(reader.vocabulary, text, reader.length) for text in _every([[own]])}
            for reader, own in zip(readers, halves, strict=True)
        ]
        count = _count_chunks(texts, chunks)
    found = []
    for reader, (prompts, negatives), own in zip(readers, halves, chunks, strict=True):
        padded = {text: (*some, *[Chunk()] * (count - len(some))) for text, some in own.items()}
        cond = encode_chunks(reader, [padded[p] for p in prompts], clip_skip=clip_skip, probe=probe)
        uncond = encode_chunks(reader, [padded[n] for n in negatives], probe=probe) if guided else None
        found.append((cond, uncond))
    return found


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


def _count_chunks(texts: Texts, chunks: Sequence[Mapping[str, Sequence[Chunk]]]) -> int:
    """The most chunks that a picture's texts have, at any row, for any reader; each picture must need as many."""
    counts = [
        max(
            len(own.get(text, ()))
            for k, own in enumerate(chunks)
            for both in texts.read_by(k)
            for half in both
            for text in half[picture : picture + 1]
        )
        for picture in range(texts.pictures)
    ]
    if len(set(counts)) > 1:
        k = next(k for k, count in enumerate(counts) if count != counts[0])
        raise UsageError(
            f"prompt {k}: needs {counts[k]} chunks of tokens and prompt 0 {counts[0]}: padding would change a picture "
            "for another's sake; prepare them apart"
        )
    return counts[0]
