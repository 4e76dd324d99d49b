"""CLIP's own tokenizer from the byte pairs in the package, for checkpoints that carry none.

The numbers are OpenAI's (Radford et al. 2021, arXiv 2103.00020): 256 bytes, the same 256 at the end of a word, 48,894
pairs in the order in which they are joined, start, end: 49,408 in all.
"""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["MERGES", "build_tokenizer", "read_vocabulary"]

MERGES = Path(__file__).resolve().parent.parent / "assets" / "clip" / "merges.txt.gz"


def read_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Number of each token, and the pairs in order."""
    lines = gzip.decompress(MERGES.read_bytes()).decode("utf-8").splitlines()
    pairs = [(first, second) for first, _, second in (line.partition(" ") for line in lines)]
    letters = _letters()
    tokens = [*letters, *(letter + "</w>" for letter in letters), *(a + b for a, b in pairs)]
    return {token: k for k, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}, pairs


def build_tokenizer(config: Mapping[str, Any]) -> Any:
    """A transformers CLIPTokenizer with the settings of a tokenizer_config.json (length, special tokens)."""
    from transformers import CLIPTokenizer

    names = ("model_max_length", "bos_token", "eos_token", "unk_token", "pad_token")
    vocab, merges = read_vocabulary()
    return CLIPTokenizer(vocab=vocab, merges=merges, **{name: config[name] for name in names})


def _letters() -> list[str]:
    """The characters that stand for bytes, in the order of their numbers: those that print, then the others."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = 256 - len(printable)
    return [chr(byte) for byte in printable] + [chr(256 + k) for k in range(others)]
