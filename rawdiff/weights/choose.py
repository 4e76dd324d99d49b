"""Which files of a folder hold a part's weights, decided from the names alone (a hub's listing will do).

In order: safetensors whole, safetensors in shards, the fp16 variant of either, and only then an old pickle.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rawdiff import strict_json
from rawdiff.errors import WeightsError

__all__ = [
    "MAX_JSON_BYTES",
    "TOKENIZER_FILES",
    "WeightFiles",
    "choose_weights",
    "read_json",
    "read_shard_names",
]

MAX_JSON_BYTES = 16 * 2**20
_MAX_SHARDS = 1000

TOKENIZER_FILES = (
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


@dataclass(frozen=True)
class WeightFiles:
    """The file that holds a part's weights, or the index that names its shards."""

    name: str
    is_index: bool
    variant: str | None = None


def choose_weights(names: Collection[str], stems: tuple[str, ...], where: str) -> WeightFiles:
    """The best of the `names` in one folder for weights called `stems[0]` (as pickles, any of `stems`).

    Raises WeightsError that lists what was there.
    """
    stem = stems[0]
    for variant in (None, "fp16"):
        middle = f".{variant}" if variant else ""
        for name, is_index in (
            (f"{stem}{middle}.safetensors", False),
            (f"{stem}.safetensors.index{middle}.json", True),
            (f"{stem}{middle}.safetensors.index.json", True),
        ):
            if name in names:
                return WeightFiles(name, is_index, variant)
    for variant in (None, "fp16"):
        middle = f".{variant}" if variant else ""
        for old in stems:
            if f"{old}{middle}.bin" in names:
                return WeightFiles(f"{old}{middle}.bin", False, variant)
    others = sorted(
        n for n in names if n.endswith((".safetensors", ".bin", ".msgpack", ".pt", ".ckpt", ".onnx"))
    )
    found = f"found {', '.join(others[:4])}" if others else "found no weight file"
    raise WeightsError(f"{where}: {found}; expected {stem}.safetensors")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; raises WeightsError for anything else."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_JSON_BYTES + 1)
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise WeightsError(f"{path}: {reason}; expected a JSON file of a model folder") from error
    if len(raw) > MAX_JSON_BYTES:
        raise WeightsError(f"{path}: more than {MAX_JSON_BYTES} bytes, expected a small JSON file")
    if raw.startswith(b"version https://git-lfs"):
        raise WeightsError(f"{path}: is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`")
    if raw.lstrip()[:1] == b"<":
        raise WeightsError(f"{path}: is a web page, expected JSON; download it again")
    try:
        table = strict_json.loads(raw.decode("utf-8-sig"))
    except ValueError as error:
        raise WeightsError(f"{path}: not valid JSON ({str(error)[:120]})") from error
    if not isinstance(table, dict):
        raise WeightsError(f"{path}: a JSON {type(table).__name__}, expected an object")
    return table


def read_shard_names(index: Path) -> dict[str, tuple[str, ...]]:
    """Tensor names by shard file, from an index; raises WeightsError (a shard's name holds no folder)."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise WeightsError(f"{index}: no weight_map, expected one that names a shard for each tensor")
    shards: dict[str, list[str]] = {}
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or not _is_plain_name(shard):
            raise WeightsError(
                f"{index}: shard {str(shard)[:80]!a} of {tensor[:80]!a}, expected the plain name of a "
                ".safetensors file in the same folder"
            )
        shards.setdefault(shard, []).append(tensor)
    if len(shards) > _MAX_SHARDS:
        raise WeightsError(f"{index}: names {len(shards)} shards, expected at most {_MAX_SHARDS}")
    return {shard: tuple(tensors) for shard, tensors in shards.items()}


def _is_plain_name(name: str) -> bool:
    return (
        name.endswith(".safetensors")
        and not name.startswith(".")
        and name.isprintable()
        and not set(name) & set('/\\:*?"<>|')
    )
