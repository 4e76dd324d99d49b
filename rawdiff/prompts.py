"""Prompts: from words to token numbers to contexts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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

__all__ = ["chunks_of", "cut", "encode_chunks", "encode_prompts", "text_length", "tokenize", "weigh"]


def text_length(vocabulary: Vocabulary, positions: int) -> int:
    """How many tokens are encoded at once, start and end among them: 77 for CLIP."""
    return min(int(vocabulary.tokenizer.model_max_length), positions)


def cut(vocabulary: Vocabulary, prompt: str, length: int) -> tuple[list[int], str]:
    """Token numbers of a prompt, from start to end token, at most `length`, and the text that is left out."""
    whole = vocabulary.numbers(prompt)
    if len(whole) <= length:
        return whole, ""
    left_out = vocabulary.tokenizer.decode(whole[length - 1 : -1]).strip()
    return [*whole[: length - 1], whole[-1]], left_out


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
    vocabulary: Vocabulary,
    encoder: Any,
    prompts: Sequence[str],
    *,
    clip_skip: int = 0,
    say: Say = say_on_stderr,
    probe: ProbeLike = NO_PROBE,
) -> Tensor:
    """Contexts [N,T,D] of `prompts` in the encoder's dtype; the same text is encoded once.

    T is the encoder's length, 77 for CLIP. Raises UsageError for text that cannot be encoded.
    """
    different = list(dict.fromkeys(prompts))
    length = text_length(vocabulary, encoder.config.max_position_embeddings)
    with probe("tokens", host=True):
        ids = tokenize(vocabulary, different, length, say)
    context = _encode(vocabulary, encoder, ids, clip_skip, probe)
    return context[[different.index(prompt) for prompt in prompts]]


def chunks_of(vocabulary: Vocabulary, prompt: str, length: int) -> tuple[Chunk, ...]:
    """A prompt's tokens and weights under A1111's syntax, in chunks of `length` with start and end."""
    check_text("prompt", prompt)
    sections = [
        [(vocabulary.words(run.text), run.weight) for run in section] for section in parse_weights(prompt)
    ]
    return chunked(sections, length - 2, vocabulary.comma)


@torch.no_grad()
def encode_chunks(
    vocabulary: Vocabulary,
    encoder: Any,
    prompts: Sequence[Sequence[Chunk]],
    *,
    clip_skip: int = 0,
    probe: ProbeLike = NO_PROBE,
) -> Tensor:
    """Contexts [N,C*T,D] of prompts of C chunks each, weighed, in the encoder's dtype; T as in `encode_prompts`.

    Each chunk is encoded by itself, the same one once. Raises UsageError for weights that overflow.
    """
    tokenizer = vocabulary.tokenizer
    length = text_length(vocabulary, encoder.config.max_position_embeddings)
    numbered: dict[Chunk, int] = {}
    rows = [[numbered.setdefault(chunk, len(numbered)) for chunk in prompt] for prompt in prompts]
    ends = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, length
    framed = [chunk.framed(*ends) for chunk in numbered]
    ids = torch.tensor([numbers for numbers, _ in framed], dtype=torch.int64)
    context = _encode(vocabulary, encoder, ids, clip_skip, probe)
    return weigh(context, torch.tensor([weights for _, weights in framed]))[torch.tensor(rows)].flatten(1, 2)


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


def _encode(vocabulary: Vocabulary, encoder: Any, ids: Tensor, clip_skip: int, probe: ProbeLike) -> Tensor:
    device = next(encoder.parameters()).device
    with probe("text encoder"), telling_out_of_memory("the text encoder", device):
        return text.encode(
            encoder, ids.to(device), clip_skip, start=vocabulary.start, vectors=vocabulary.vectors
        )
