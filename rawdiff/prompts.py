"""Prompts: from words to token numbers to contexts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rawdiff.limits import check_text
from rawdiff.nets import text
from rawdiff.nets.memory import telling_out_of_memory
from rawdiff.probes import NO_PROBE, ProbeLike
from rawdiff.say import Say, say_on_stderr
from rawdiff.vocabulary import Vocabulary

__all__ = ["encode_prompts", "tokenize"]


def tokenize(vocabulary: Vocabulary, prompts: Sequence[str], length: int, say: Say) -> Tensor:
    """Token numbers [N,length] int64, padded; what does not fit is cut, and `say` is told what."""
    tokenizer, rows = vocabulary.tokenizer, []
    for prompt in prompts:
        check_text("prompt", prompt)
        whole = vocabulary.numbers(prompt)
        if len(whole) > length:
            cut = tokenizer.decode(whole[length - 1 : -1]).strip()
            say(f"prompt of {len(whole)} tokens cut to {length}; left out: {cut!r}")
            whole = [*whole[: length - 1], whole[-1]]
        rows.append([*whole, *[tokenizer.pad_token_id] * (length - len(whole))])
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
    length = min(int(vocabulary.tokenizer.model_max_length), int(encoder.config.max_position_embeddings))
    with probe("tokens", host=True):
        ids = tokenize(vocabulary, different, length, say)
    device = next(encoder.parameters()).device
    with probe("text encoder"), telling_out_of_memory("the text encoder", device):
        context = text.encode(
            encoder, ids.to(device), clip_skip, start=vocabulary.start, vectors=vocabulary.vectors
        )
    return context[[different.index(prompt) for prompt in prompts]]
