"""What is known of a model's parts before a weight is read: their configs, their files, and the hashes of those."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from rawdiff.errors import HubError, UsageError, WeightsError
from rawdiff.weights import digests
from rawdiff.weights.build import PARTS, Part, build_empty, check_class
from rawdiff.weights.choose import TOKENIZER_FILES, choose_weights, read_json, read_shard_names
from rawdiff.weights.lora_layers import Layers
from rawdiff.weights.merge import MERGED
from rawdiff.weights.source import NOT_MERGED, Source, open_source

__all__ = [
    "Where",
    "checked_config",
    "hashes",
    "part_files",
    "planned_bytes",
    "planned_layers",
    "read_config",
    "summands",
]

Where = Source | str | Path | None


def read_config(source: Where, part: str) -> dict[str, Any]:
    """The config of a part, as it stands in its file; raises WeightsError, HubError."""
    opened = open_source(source).owner(part)
    folder = opened.holds_part(part)
    opened.folder(part)  # raises when there is none
    if opened.single is not None:
        return opened.single.config(part)
    return read_json(opened.path(f"{folder}/config.json" if folder else "config.json"))


def planned_layers(source: Where, unet: Where = None) -> Layers:
    """The layers that LoRAs can change, from the configs alone: whether one fits is known before weights are read.

    `unet` is for a UNet from elsewhere than `source`. Raises WeightsError, HubError.
    """
    model = open_source(source)
    found: list[nn.Module] = []
    parts = [("unet", model if unet is None else open_source(unet)), ("text_encoder", model)]
    if read_config(model, "unet").get("addition_embed_type") == "text_time":
        parts.append(("text_encoder_2", model))
    for name, opened in parts:
        found.append(
            build_empty(PARTS[name], checked_config(opened, PARTS[name]), f"{opened}: the {name}'s config")
        )
    return Layers(*found)


def planned_bytes(source: Where, part: str, dtype: torch.dtype) -> int:
    """Bytes of a part's weights in `dtype`, from its config alone; raises WeightsError, HubError."""
    opened = open_source(source).owner(part)
    built = build_empty(PARTS[part], checked_config(opened, PARTS[part]), f"{opened}: the {part}'s config")
    return sum(weight.numel() for weight in built.parameters()) * dtype.itemsize


def part_files(source: Source, part: str) -> list[Path]:
    """The files that loading `part` reads, fetched if they come from a hub: config first, then weights.

    Raises WeightsError, HubError.
    """
    source = source.owner(part)
    source.folder(part)
    if source.single is not None:
        return list(source.single.files(part).values())
    inside = source.holds_part(part)
    prefix = f"{inside}/" if inside else ""
    names = source.names(inside or "")
    if part == "scheduler":
        wanted = ["scheduler_config.json"]
    elif part.startswith("tokenizer"):
        wanted = [name for name in TOKENIZER_FILES if name in names]
    else:
        where = str(source.child(inside)) if inside else str(source)
        try:
            chosen = choose_weights(names, PARTS[part].stems, where)
        except WeightsError:
            if source.snapshot is not None and not source.snapshot.is_whole:
                raise HubError(
                    f"{where} is in the cache without weights: run once without --offline"
                ) from None
            raise
        wanted = ["config.json", chosen.name]
        if chosen.is_index:
            wanted += sorted(read_shard_names(source.path(prefix + chosen.name)))
        for name in wanted:
            if name not in names:
                raise WeightsError(f"{where}: {chosen.name} names {name}, which is not there; download it")
    return [source.path(prefix + name) for name in wanted]


def hashes(source: Where, *parts: str) -> dict[str, str]:
    """SHA-256 of every file that loading `parts` reads, by its path inside the source.

    A file is read for it once a process, as long as its size and time stay. Those of another's VAE are called
    `other vae/...`, those of what is merged beside the first `merged 2/...`. Raises WeightsError, HubError.
    """
    model = open_source(source)
    found = {}
    for part in parts:
        opened = model.owner(part)
        for k, one in enumerate(summands(opened, part)):
            prefix = f"other {part}/" if opened is not model else f"merged {k + 1}/" if k else ""
            found.update({prefix + name: digests.sha256(path) for name, path in _named(one, part).items()})
    return found


def _named(source: Source, part: str) -> dict[str, Path]:
    """The files that loading a part reads, by their paths inside the source."""
    files = part_files(source, part)
    if source.single is not None:
        return source.single.files(part)
    return {path.relative_to(source.root).as_posix(): path for path in files}


def summands(source: Source, part: str) -> list[Source]:
    """The sources that a part is the sum of: mostly one. Raises UsageError for ControlNets, which are never summed."""
    if source.merged and part == "controlnet":
        raise UsageError(f"ControlNet {str(source)[:120]!a}: {NOT_MERGED}")
    return [one for one, _ in source.merged] if source.merged and part in MERGED else [source]


def checked_config(source: Source, part: Part) -> dict[str, Any]:
    """The config alone, its class checked before any weight is fetched."""
    config = read_config(source, part.name)
    inside = source.holds_part(part.name)
    if source.single is not None:
        check_class(part, config, str(source.single.config_path(part.name)))
        return config
    check_class(part, config, f"{source}/{inside}/config.json" if inside else f"{source}/config.json")
    return config
