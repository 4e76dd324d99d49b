"""Prompts: from words to token numbers to contexts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rawdiff.errors import UsageError
from rawdiff.limits import check_text
from rawdiff.nets import text
from rawdiff.nets.memory import telling_out_of_memory
from rawdiff.probes import NO_PROBE, ProbeLike
from rawdiff.say import Say, say_on_stderr
from rawdiff.syntax import Chunk, chunked, parse_weights
from rawdiff.vocabulary import Vocabulary

__all__ = [
    "Encoded",
    "Reader",
    "chunks_of",
    "cut",
    "encode_chunks",
    "encode_prompts",
    "text_length",
    "tokenize",
    "weigh",
]


class Reader(NamedTuple):
    """A text encoder with the words that it knows, and which of its layers is read."""

    vocabulary: Vocabulary
    encoder: Any
    inner: bool = False
    """Whether it is read as SDXL does (`text.encode_inner`)."""

    @property
    def length(self) -> int:
        """How many tokens are encoded at once."""
        return text_length(self.vocabulary, self.encoder.config.max_position_embeddings)


class Encoded(NamedTuple):
    """What texts become, in their encoder's dtype."""

    context: Tensor
    """[N,T,D], one vector a token."""
    pooled: Tensor | None
    """[N,P], one vector a text, of an encoder that says so."""

    def picked(self, rows: Sequence[int]) -> Encoded:
        """Those of some of the texts, which may come more than once."""
        return Encoded(self.context[list(rows)], None if self.pooled is None else self.pooled[list(rows)])


def text_length(vocabulary: Vocabulary, positions: int) -> int:
    """How many tokens are encoded at once, start and end among them: 77 for CLIP."""
    return min(int(vocabulary.tokenizer.model_max_length), positions)


def cut(vocabulary: Vocabulary, prompt: str, length: int) -> tuple[list[int], str]:
    """Token numbers of a prompt, from start to end token, at most `length`, and the text that is left out."""
    whole = vocabulary.numbers(prompt)
    if len(whole) <= length:
        return whole, ""
    return [*whole[: length - 1], whole[-1]], vocabulary.text(whole[length - 1 : -1])


def tokenize(vocabulary: Vocabulary, prompts: Sequence[str], length: int, say: Say) -> Tensor:
    """Token numbers [N,length] int64, padded; what does not fit is cut, and `say` is told what."""
    rows = []
    for prompt in prompts:
        check_text("prompt", prompt)
        numbers, left_out = cut(vocabulary, prompt, length)
        if left_out:
            count = len(vocabulary.numbers(prompt))
            say(f"prompt of {count} tokens cut to {length}; left out: {left_out!r}")
        rows.append([*numbers, *[vocabulary.tokenizer.pad_token_id] * (length - len(numbers))])
    return torch.tensor(rows, dtype=torch.int64)


@torch.no_grad()
def encode_prompts(
    reader: Reader,
    prompts: Sequence[str],
    *,
    clip_skip: int = 0,
    say: Say = say_on_stderr,
    probe: ProbeLike = NO_PROBE,
) -> Encoded:
    """`prompts` encoded, the same text once; T is the encoder's length, 77 for CLIP.

    Raises UsageError for text that cannot be encoded.
    """
    different = list(dict.fromkeys(prompts))
    with probe("tokens", host=True):
        ids = tokenize(reader.vocabulary, different, reader.length, say)
    return _encode(reader, ids, clip_skip, probe).picked([different.index(prompt) for prompt in prompts])


def chunks_of(vocabulary: Vocabulary, prompt: str, length: int) -> tuple[Chunk, ...]:
    """A prompt's tokens and weights under A1111's syntax, in chunks of `length` with start and end."""
    check_text("prompt", prompt)
    sections = [
        [(vocabulary.words(run.text), run.weight) for run in section] for section in parse_weights(prompt)
    ]
    return chunked(sections, length - 2, vocabulary.comma)


@torch.no_grad()
def encode_chunks(
    reader: Reader,
    prompts: Sequence[Sequence[Chunk]],
    *,
    clip_skip: int = 0,
    probe: ProbeLike = NO_PROBE,
) -> Encoded:
    """Prompts of C chunks each, encoded and weighed, their contexts [N,C*T,D]; T as in `encode_prompts`.

    Each chunk is encoded by itself, the same one once; a text's pooled vector is its first chunk's, not weighed, as in
    stable-diffusion-webui. Raises UsageError for weights that overflow.
    """
    tokenizer = reader.vocabulary.tokenizer
    numbered: dict[Chunk, int] = {}
    rows = [[numbered.setdefault(chunk, len(numbered)) for chunk in prompt] for prompt in prompts]
    ends = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, reader.length
    framed = [chunk.framed(*ends) for chunk in numbered]
    ids = torch.tensor([numbers for numbers, _ in framed], dtype=torch.int64)
    context, pooled = _encode(reader, ids, clip_skip, probe)
    weighed = weigh(context, torch.tensor([weights for _, weights in framed]))
    first = None if pooled is None else pooled[[own[0] for own in rows]]
    return Encoded(weighed[torch.tensor(rows)].flatten(1, 2), first)


def weigh(context: Tensor, weights: Tensor) -> Tensor:
    """Contexts [N,T,D] times one weight a token, [N,T]; each is then scaled back to the mean that it had.

    So does stable-diffusion-webui 1.10 (`sd_emphasis.py`, "Original"), which takes the mean over all texts that are
    encoded at once; here it is each chunk's own, so that a picture does not depend on its batch. Computed in fp32 at
    least. A context with weights of 1 alone stays as it is. Raises UsageError for weights that overflow.
    """
    weights = weights.to(context.device, torch.promote_types(context.dtype, torch.float32))
    exact = context.to(weights.dtype)
    weighed = exact * weights[..., None]
    mean, now = exact.mean((1, 2), keepdim=True), weighed.mean((1, 2), keepdim=True)
    scaled = (weighed * torch.where(now == 0, torch.ones_like(mean), mean / now)).to(context.dtype)
    if not bool(torch.isfinite(scaled).all()):
        raise UsageError("the prompt's weights are too large: expected some between -10 and 10, say")
    return torch.where((weights == 1.0).all(1)[:, None, None], context, scaled)


def _encode(reader: Reader, ids: Tensor, clip_skip: int, probe: ProbeLike) -> Encoded:
    vocabulary, encoder, inner = reader
    device = next(encoder.parameters()).device
    added: dict[str, Any] = {"start": vocabulary.start, "vectors": vocabulary.vectors}
    with probe("text encoder"), telling_out_of_memory("the text encoder", device):
        if not inner:
            return Encoded(text.encode(encoder, ids.to(device), clip_skip, **added), None)
        end = vocabulary.tokenizer.eos_token_id
        return Encoded(*text.encode_inner(encoder, ids.to(device), clip_skip, end=end, **added))
