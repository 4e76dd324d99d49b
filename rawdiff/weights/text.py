"""The tokenizer: words to numbers, with the limits that the text encoder really has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rawdiff.errors import WeightsError
from rawdiff.weights.choose import read_json
from rawdiff.weights.digests import read_from, states
from rawdiff.weights.files import Where, part_files, read_config
from rawdiff.weights.source import Source, open_source
from rawdiff.weights.vocabulary import build_tokenizer

__all__ = ["load_tokenizer"]

_CLASSES = ("CLIPTokenizer", "CLIPTokenizerFast")
_ABSENT = 10**6
"""transformers gives a tokenizer whose config names no `model_max_length` the length 1e30."""
_SHORTEST = 3
"""The start, a word and the end."""


def load_tokenizer(source: Where = None, part: str = "tokenizer") -> Any:
    """The CLIPTokenizer of a model (Radford et al. 2021, arXiv 2103.00020); SDXL's second is `"tokenizer_2"`.

    Its `model_max_length` is the text encoder's number of positions where the folder does not say: without it
    transformers assumes 1e30 and prompts run past the encoder's end. A file's tokenizer is CLIP's own. Raises
    WeightsError, HubError.
    """
    opened = open_source(source)
    files = part_files(opened, part)
    found = states(files)
    if opened.single is not None:
        configs = open_source(opened.single.configs)
        tokenizer, folder = _of_file(configs, part), configs.folder(part)
    else:
        tokenizer, folder = _of_folder(files), files[0].parent
    length = _length(tokenizer, folder)
    _check_tokens(tokenizer, folder)
    limit, size = _encoder_limits(opened, part.replace("tokenizer", "text_encoder"))
    if length > _ABSENT:
        tokenizer.model_max_length = limit if limit is not None else 77
    elif limit is not None and length > limit:
        raise WeightsError(
            f"{folder}: model_max_length {length}, expected at most {limit}, the "
            "positions of the text encoder"
        )
    if size is not None and len(tokenizer) > size:
        raise WeightsError(
            f"{folder}: {len(tokenizer)} tokens, expected at most {size}, as the text encoder has"
        )
    last = max(tokenizer.get_vocab().values())
    if size is not None and last >= size:
        raise WeightsError(
            f"{folder}: a token of the number {last}, expected at most {size - 1}, the text encoder's last"
        )
    read_from(tokenizer, found)
    return tokenizer


def _of_folder(files: list[Path]) -> Any:
    paths = {path.name: path for path in files}
    folder = files[0].parent
    if "tokenizer.json" not in paths and not {"vocab.json", "merges.txt"} <= set(paths):
        raise WeightsError(f"{folder}: found {', '.join(paths)}; expected vocab.json and merges.txt")
    _check_files(paths)
    return _open(folder)


def _of_file(configs: Source, part: str) -> Any:
    """From the folder of configs where it has a vocabulary, else CLIP's own with the settings there."""
    files = part_files(configs, part)
    if {path.name for path in files} == {"tokenizer_config.json"}:
        return build_tokenizer(read_json(files[0]))
    return _of_folder(files)


def _check_files(paths: dict[str, Path]) -> None:
    """Read each JSON ourselves first, so that a damaged one is named."""
    tables = {name: read_json(path) for name, path in paths.items() if name.endswith(".json")}
    config = tables.get("tokenizer_config.json", {})
    found = config.get("tokenizer_class")
    if found is not None and found not in _CLASSES:
        where = paths["tokenizer_config.json"]
        raise WeightsError(f"{where}: class {str(found)[:80]!a}, expected {' or '.join(_CLASSES)}")
    vocab = tables.get("vocab.json")
    if vocab is not None and not all(type(number) is int and number >= 0 for number in vocab.values()):
        raise WeightsError(
            f"{paths['vocab.json']}: a token without a number, expected text mapped to numbers"
        )


def _open(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    try:
        return CLIPTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except BaseException as error:  # tokenizers' panics are no Exception
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        reason = " ".join(str(error).split())[:160]
        raise WeightsError(f"{folder}: not a CLIP tokenizer ({type(error).__name__}: {reason})") from error


def _length(tokenizer: Any, folder: Path) -> int:
    """How many tokens it says a text may have."""
    length = tokenizer.model_max_length
    if isinstance(length, float) and length > _ABSENT:
        return _ABSENT + 1
    if type(length) is not int or length < _SHORTEST:
        raise WeightsError(
            f"{folder}: model_max_length {str(length)[:40]!a}, expected a whole number from {_SHORTEST}"
        )
    return length


def _check_tokens(tokenizer: Any, folder: Path) -> None:
    """Start, end and padding exist, and a prompt is wrapped in start and end."""
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if getattr(tokenizer, name) is None:
            raise WeightsError(
                f"{folder}: no {name.removesuffix('_id')}; expected one in tokenizer_config.json"
            )
    ids = tokenizer("a").input_ids
    if len(ids) < 3 or ids[0] != tokenizer.bos_token_id or ids[-1] != tokenizer.eos_token_id:
        raise WeightsError(
            f"{folder}: the word 'a' becomes {ids[:8]}, expected it between start and end token"
        )


def _encoder_limits(source: Source, encoder: str) -> tuple[int | None, int | None]:
    """Positions and vocabulary of the text encoder beside the tokenizer, where there is one."""
    if source.single is None and source.holds_part(encoder) != encoder:
        return None, None
    config = read_config(source, encoder)
    limit, size = config.get("max_position_embeddings", 77), config.get("vocab_size", 49408)
    return (limit if type(limit) is int else None), (size if type(size) is int else None)
