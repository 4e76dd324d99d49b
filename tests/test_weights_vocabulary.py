"""CLIP's tokenizer from the package: known numbers, and the settings of each family."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from rawdiff import weights
from rawdiff.weights.single import FAMILIES
from rawdiff.weights.vocabulary import read_vocabulary
from tests import original_keys
from tests.checkpoints import write_header

KNOWN = {
    "a photo of a cat": [320, 1125, 539, 320, 2368],
    "A Photo of a CAT": [320, 1125, 539, 320, 2368],
    "hello world!": [3306, 1002, 256],
    "": [],
}
"""Numbers of OpenAI's tokenizer, start and end left out."""


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder: Path = tmp_path_factory.mktemp("files")
    found = {}
    for family in ("sd1", "sd2", "sdxl"):
        path = write_header(folder / f"{family}.safetensors", original_keys.checkpoint(family))
        found[family] = weights.load_tokenizer(path)
    found["sdxl 2"] = weights.load_tokenizer(path, "tokenizer_2")
    return found


def test_the_vocabulary() -> None:
    vocab, merges = read_vocabulary()
    assert len(vocab) == 49408
    assert len(merges) == 48894
    assert sorted(vocab.values()) == list(range(49408))
    assert (vocab["!"], vocab["!</w>"], vocab["<|startoftext|>"], vocab["<|endoftext|>"]) == (
        0,
        256,
        49406,
        49407,
    )


@pytest.mark.parametrize("text", KNOWN)
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_known_numbers(tokenizers: dict[str, Any], family: str, text: str) -> None:
    assert tokenizers[family](text).input_ids == [49406, *KNOWN[text], 49407]


@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_a_folder_with_the_same_vocabulary_gives_the_same_numbers(
    tokenizers: dict[str, Any], family: str, tmp_path: Path
) -> None:
    """transformers takes an exclamation mark for SD2's padding, which is what its folder pads with: so do files."""
    vocab, merges = read_vocabulary()
    (tmp_path / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    lines = ["#version: 0.2", *map(" ".join, merges)]
    (tmp_path / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    shutil.copy(FAMILIES / family / "tokenizer" / "tokenizer_config.json", tmp_path)
    folder = weights.load_tokenizer(tmp_path)
    texts = (*KNOWN, "It's 5 o'clock, naïve Zürich!", "日本 😀", "(masterpiece:1.2), a_b-c  d", "!! !")
    for text in texts:
        assert tokenizers[family](text).input_ids == folder(text).input_ids
    assert tokenizers[family]("!").input_ids[1] == {"sd1": 256, "sd2": 0}[family]


def test_padding_differs_between_families(tokenizers: dict[str, Any]) -> None:
    found = {name: t("cat", padding="max_length").input_ids for name, t in tokenizers.items()}
    assert {len(ids) for ids in found.values()} == {77}
    assert {name: ids[-1] for name, ids in found.items()} == {
        "sd1": 49407,
        "sd2": 0,
        "sdxl": 49407,
        "sdxl 2": 0,
    }
    assert all(ids[:3] == [49406, 2368, 49407] for ids in found.values())
