"""The embedded model's tokenizer, learned from captions, and its untrained text encoder.

    python -m scripts.embedded.text            # writes the tokenizer's folder

The vocabulary: 256 bytes, the same with `</w>` (so that every text can be spelled and nothing unknown ends a prompt),
the merges learned, and the two specials.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from scripts.embedded.captions import captions
from scripts.embedded.training import ASSETS
from scripts.embedded.world import sample_scenes

__all__ = ["WIDTH", "build_text_encoder", "load_tokenizer", "token_ids", "write_tokenizer"]

WIDTH = 128
LENGTH = 77
START, END = "<|startoftext|>", "<|endoftext|>"
# Words that people write and captions lack: they get tokens too, and meet the model as empty words.
COMMON = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "that",
    "is",
    "with",
    "for",
    "as",
    "at",
    "by",
    "from",
    "on",
    "it",
    "an",
    "be",
    "are",
    "this",
    "picture",
    "photo",
    "scene",
    "image",
    "three",
    "two",
    "four",
    "small",
    "large",
    "big",
    "little",
    "bright",
    "dark",
    "light",
    "colour",
    "color",
    "white",
    "black",
    "grey",
    "brown",
    "gold",
    "silver",
    "standing",
    "lying",
    "behind",
    "front",
    "above",
    "under",
    "between",
    "near",
    "far",
    "room",
    "house",
    "street",
    "city",
    "mountain",
    "sea",
    "river",
    "forest",
    "tree",
    "sky",
    "floor",
    "wall",
    "table",
]


def _merges(words: Counter[str], count: int) -> list[tuple[str, str]]:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=count, end_of_word_suffix="</w>", show_progress=False, min_frequency=2
    )
    tokenizer.train_from_iterator(
        (w for w, n in sorted(words.items()) for _ in range(max(2, min(n, 200)))), trainer
    )
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in merges]


def write_tokenizer(folder: Path) -> None:
    """Learn the merges from 4,000 captions and write vocab.json, merges.txt, tokenizer.json, tokenizer_config.json."""
    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    text = " ".join(captions(sample_scenes(4000, 77), 77)).replace(",", " , ")
    words = Counter(text.split()) + Counter(dict.fromkeys(COMMON, 2))
    pairs = _merges(words, 520)
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*symbols, *(s + "</w>" for s in symbols), *("".join(p) for p in pairs), START, END]
    vocab = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    CLIPTokenizer(vocab=vocab, merges=pairs, model_max_length=LENGTH).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text(
        "\n".join(["#version: 0.2", *(" ".join(p) for p in pairs)]) + "\n", encoding="utf-8"
    )
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": LENGTH,
        "bos_token": START,
        "eos_token": END,
        "unk_token": END,
        "pad_token": END,
        "add_prefix_space": False,
        "do_lower_case": True,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def load_tokenizer(folder: Path = ASSETS / "tokenizer") -> object:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(folder)


def token_ids(tokenizer: object, texts: Sequence[str]) -> torch.Tensor:
    """Captions as the text encoder takes them [B,77]."""
    given = tokenizer(
        list(texts), padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt"
    )
    return given.input_ids


def build_text_encoder(tokenizer: object) -> torch.nn.Module:
    """An untrained CLIPTextModel of two layers for `tokenizer`."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            hidden_act="quick_gelu",
            attn_implementation="eager",  # at 77 tokens faster to train on a CPU than the fused kernel
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


if __name__ == "__main__":
    write_tokenizer(ASSETS / "tokenizer")
