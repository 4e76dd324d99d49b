"""The words that prompts are made of: a tokenizer's own, and triggers that stand for vectors of textual inversion.

Nothing is changed by it: the tokenizer is a copy with more words, and the vectors stand behind the rows of the text
encoder's own table. Results are those of diffusers' `load_textual_inversion`, which writes both into the model.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rawdiff.errors import UsageError, WeightsError
from rawdiff.weights import Embedding
from rawdiff.weights.embedding import SDXL_NAMES

__all__ = ["Ground", "Vocabulary", "add_words", "unused", "vocabularies"]


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """A tokenizer, and what its words beyond the text encoder's own stand for."""

    tokenizer: Any
    start: int = 0
    """The first token number that is not the text encoder's own."""
    vectors: Tensor | None = None
    """[M,D] fp64, one row for each token number from `start` on; None without any."""
    spans: Mapping[int, range] = field(default_factory=dict)
    """The token number of each trigger, and the numbers of all its vectors."""

    def numbers(self, prompt: str) -> list[int]:
        """Token numbers of a prompt of any length, from start token to end token, each trigger's vectors in a row."""
        found = self.tokenizer(prompt, verbose=False).input_ids
        return [number for one in found for number in self.spans.get(one, (one,))]

    def words(self, text: str) -> list[tuple[int, ...]]:
        """The same without start and end, and what must stay together (a trigger's vectors) together."""
        found = self.tokenizer(text, verbose=False).input_ids[1:-1]
        return [tuple(self.spans.get(one, (one,))) for one in found]

    def text(self, numbers: Sequence[int]) -> str:
        """What token numbers of a prompt say, each trigger once, and so where they begin inside one."""
        trigger = {number: first for first, span in self.spans.items() for number in span}
        owners = [trigger.get(number, number) for number in numbers]
        kept = [own for k, own in enumerate(owners) if k == 0 or own == numbers[k]]
        said = []
        for is_trigger, some in groupby(kept, self.spans.__contains__):
            if is_trigger:
                said += self.tokenizer.convert_ids_to_tokens(list(some))
            else:  # a copy of transformers' CLIPTokenizer, as triggers need one, leaves its marks of words' ends in
                said.append(self.tokenizer.decode(list(some)).replace("</w>", " ").strip())
        return " ".join(said)

    @property
    def comma(self) -> int | None:
        """The token number of a comma, where there is one."""
        found = self.tokenizer.convert_tokens_to_ids(",</w>")
        return None if found == self.tokenizer.unk_token_id else int(found)


class Ground(NamedTuple):
    """What words are added to: a tokenizer, with the width and the positions of the text encoder that it is for."""

    tokenizer: Any
    width: int
    positions: int


def vocabularies(grounds: Sequence[Ground], embeddings: Sequence[Embedding]) -> tuple[Vocabulary, ...]:
    """The vocabulary of each of a model's text encoders, with `embeddings` in it; raises what `add_words` does.

    WeightsError too for an embedding that was made for fewer text encoders than the model has, or for more.
    """
    for one in embeddings:
        _check_encoders(one, grounds)
    return tuple(
        add_words(ground.tokenizer, [one.of_encoder(k) for one in embeddings], ground.width, ground.positions)
        for k, ground in enumerate(grounds)
    )


def add_words(tokenizer: Any, embeddings: Sequence[Embedding], width: int, positions: int) -> Vocabulary:
    """The vocabulary with `embeddings` in it, for a text encoder of this width, with so many positions.

    As in diffusers the first vector is the trigger's, and TRIGGER_1, TRIGGER_2, ... are words for the others; a
    trigger is found in a prompt whatever its case, and inside of longer words. Raises WeightsError for vectors that
    do not fit, UsageError for a trigger that is a word already.
    """
    if not embeddings:
        return Vocabulary(tokenizer)
    start, own = len(tokenizer), tokenizer.get_vocab()
    length = min(int(tokenizer.model_max_length), positions)
    taken: dict[str, Embedding] = {}
    words: list[str] = []
    spans: dict[int, range] = {}
    for one in embeddings:
        _check_fit(one, width, length)
        count = len(one.vectors)
        for word in (one.trigger, *(f"{one.trigger}_{k}" for k in range(1, count))):
            other = taken.setdefault(word.lower(), one)
            if other is not one or {word, word.lower(), f"{word.lower()}</w>"} & own.keys():
                whose = f"a word of {other.path}" if other is not one else "a word of this model"
                raise UsageError(
                    f"{one.path}: its trigger {word!a} is {whose} already: choose another, with PATH=TRIGGER"
                )
            words.append(word)
        first = start + len(words) - count
        spans[first] = range(first, first + count)
    extended = copy.deepcopy(tokenizer)
    extended.add_tokens(words)
    if extended.convert_tokens_to_ids(words) != list(range(start, start + len(words))):
        raise WeightsError(f"the tokenizer has gaps in its numbers: expected {words[0]!a} to become {start}")
    return Vocabulary(extended, start, torch.cat([one.vectors.double() for one in embeddings]), spans)


def unused(*read: tuple[Vocabulary, Iterable[int]]) -> Iterator[str]:
    """A line on each trigger that is not among the token numbers that any text encoder reads: it has no effect.

    Each of `read` is the vocabulary of one, and those numbers.
    """
    left: list[str] = []
    for k, (vocabulary, encoded) in enumerate(read):
        numbers = sorted(vocabulary.spans.keys() - set(encoded))
        words = [str(vocabulary.tokenizer.convert_ids_to_tokens(number)) for number in numbers]
        left = words if k == 0 else [word for word in left if word in words]
    for word in left:
        yield f"the embedding {word!a} has no effect: no prompt has this word, as it is read"


def _check_encoders(one: Embedding, grounds: Sequence[Ground]) -> None:
    """Raise WeightsError unless it has vectors for each of a model's text encoders, of the width of each."""
    if len(grounds) == 1:
        if one.vectors_2 is not None:
            raise WeightsError(
                f"{one.path}: was made for a model with two text encoders (SDXL), and this model has one: expected "
                f"vectors of width {grounds[0].width} alone"
            )
        return
    if one.vectors_2 is None:
        raise WeightsError(
            f"{one.path}: its vectors of width {one.vectors.shape[1]} are for one text encoder, and this model has two "
            f"(SDXL): expected a file with {' and '.join(SDXL_NAMES)}"
        )
    for name, vectors, ground in zip(SDXL_NAMES, (one.vectors, one.vectors_2), grounds, strict=True):
        if vectors.shape[1] != ground.width:
            raise WeightsError(
                f"{one.path}: {name} has width {vectors.shape[1]}, expected {ground.width}, as this model's text "
                "encoder has"
            )


def _check_fit(one: Embedding, width: int, length: int) -> None:
    count, found = one.vectors.shape
    if found != width:
        raise WeightsError(
            f"{one.path}: its vectors have width {found}, expected {width}, as this model's text has"
        )
    if count > length - 2:
        raise WeightsError(
            f"{one.path}: has {count} vectors, expected at most {length - 2}: a prompt holds no more"
        )
