"""A model's parts, each loaded by itself: the UNet, the VAE, the text encoder, a ControlNet, the scheduler.

Every loader takes a Source (or what `open_source` takes) that holds the part in a folder of its name, is that part
alone, or is a file that holds it, and returns the plain diffusers or transformers object: in evaluation mode, without
gradients, on the device, in the dtype, with no weight that did not come from the file.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rawdiff.errors import HubError, UsageError, WeightsError
from rawdiff.say import say_on_stderr
from rawdiff.weights import digests
from rawdiff.weights.build import PARTS, Part, build_empty, check_class
from rawdiff.weights.choose import TOKENIZER_FILES, choose_weights, read_json, read_shard_names
from rawdiff.weights.devices import choose_device, choose_dtype
from rawdiff.weights.fill import fill, plan_fill
from rawdiff.weights.lora_layers import Layers
from rawdiff.weights.merge import MERGED, Feeds, Summed, check_configs
from rawdiff.weights.source import Source, open_source
from rawdiff.weights.tensorfile import SafetensorsFile, TensorFile, open_tensors

__all__ = [
    "hashes",
    "load_controlnet",
    "load_scheduler",
    "load_text_encoder",
    "load_text_encoder_2",
    "load_unet",
    "load_vae",
    "part_files",
    "planned_layers",
    "read_config",
]

Where = Source | str | Path | None


def load_unet(
    source: Where = None, *, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None
) -> Any:
    """The UNet2DConditionModel of a model; raises WeightsError, HubError, UsageError, ResourceError."""
    return _load("unet", source, device, dtype)


def load_vae(
    source: Where = None, *, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None
) -> Any:
    """The AutoencoderKL of a model; raises WeightsError, HubError, UsageError, ResourceError."""
    return _load("vae", source, device, dtype)


def load_text_encoder(
    source: Where = None, *, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None
) -> Any:
    """The CLIPTextModel of a model; raises WeightsError, HubError, UsageError, ResourceError."""
    return _load("text_encoder", source, device, dtype)


def load_text_encoder_2(
    source: Where = None, *, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None
) -> Any:
    """SDXL's second text encoder, a CLIPTextModelWithProjection (Podell et al. 2023, arXiv 2307.01952).

    Raises WeightsError, HubError, UsageError, ResourceError.
    """
    return _load("text_encoder_2", source, device, dtype)


def load_controlnet(
    source: Where, *, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None
) -> Any:
    """A ControlNetModel, from its own folder, file or repository (Zhang et al. 2023, arXiv 2302.05543).

    Raises WeightsError, HubError, UsageError, ResourceError.
    """
    return _load("controlnet", source, device, dtype)


def load_scheduler(source: Where = None) -> Any:
    """The scheduler that a model's folder describes, or its family's; raises WeightsError, HubError."""
    from rawdiff.weights import schedulers

    opened = open_source(source, say=say_on_stderr)
    (path,) = part_files(opened, "scheduler")
    if opened.single is not None:
        return schedulers.scheduler_from_folder(path, opened.single.scheduler)
    return schedulers.scheduler_from_folder(path.parent)


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
        found.append(build_empty(PARTS[name], _config(opened, PARTS[name]), f"{opened}: the {name}'s config"))
    return Layers(*found)


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
        for k, one in enumerate(_summands(opened, part)):
            prefix = f"other {part}/" if opened is not model else f"merged {k + 1}/" if k else ""
            found.update({prefix + name: digests.sha256(path) for name, path in _named(one, part).items()})
    return found


def _named(source: Source, part: str) -> dict[str, Path]:
    """The files that loading a part reads, by their paths inside the source."""
    files = part_files(source, part)
    if source.single is not None:
        return source.single.files(part)
    return {path.relative_to(source.root).as_posix(): path for path in files}


def _summands(source: Source, part: str) -> list[Source]:
    """The sources that a part is the sum of: mostly one. Raises UsageError for ControlNets, which are never summed."""
    if source.merged and part == "controlnet":
        raise UsageError(
            f"net {str(source)[:120]!a}: a merge is of whole models, and no ControlNet is; expected a folder, a file "
            "or a hub id"
        )
    return [one for one, _ in source.merged] if source.merged and part in MERGED else [source]


def _load(
    name: str, source: Where, device: str | torch.device | None, dtype: str | torch.dtype | None
) -> nn.Module:
    chosen_device = choose_device(device)
    chosen_dtype = choose_dtype(chosen_device, dtype)
    opened = open_source(source, say=say_on_stderr).owner(name)
    sources = _summands(opened, name)
    modules = [_empty(one, PARTS[name]) for one in sources]
    with contextlib.ExitStack() as stack:
        feeds = [stack.enter_context(_planned(one, name, modules[0])) for one in sources]
        if len(sources) > 1:
            check_configs(
                name, [str(one) for one in sources], [_settings(module, name) for module in modules]
            )
            _check_predictions(sources)
            summed = Summed([(own, weight) for own, (_, weight) in zip(feeds, opened.merged, strict=True)])
            return fill(modules[0], summed.feeds(), chosen_device, chosen_dtype)
        return fill(modules[0], feeds[0], chosen_device, chosen_dtype)


def _empty(source: Source, part: Part) -> nn.Module:
    config = _config(source, part)
    return build_empty(part, config, str(part_files(source, part.name)[0]))


def _settings(module: Any, part: str) -> dict[str, Any]:
    """A module's whole config, with what the file left to be assumed."""
    return dict(module.config.to_dict() if PARTS[part].is_text else module.config)


def _check_predictions(sources: list[Source]) -> None:
    """Raise WeightsError where one network predicts noise and another v."""
    found = [
        load_scheduler(one).config.prediction_type
        for one in sources
        if one.holds_part("scheduler") is not None
    ]
    if len(set(found)) > 1:
        raise WeightsError(
            f"{sources[0]}: what its UNet and the others' predict differs ({', '.join(found)}): only models of one "
            "family can be merged"
        )


@contextlib.contextmanager
def _planned(source: Source, part: str, module: nn.Module) -> Iterator[Feeds]:
    """For each tensor of `module` the file of `source` that feeds it, open for as long."""
    config_path, *weight_paths = part_files(source, part)
    with _opened(source, part, module, weight_paths) as files:
        where = str(files[0].path if len(files) == 1 else config_path.parent)
        yield plan_fill(part, module, files, where)


@contextlib.contextmanager
def _opened(source: Source, part: str, module: Any, paths: list[Path]) -> Iterator[list[TensorFile]]:
    """The files that hold a part, in its names, closed in the end."""
    with contextlib.ExitStack() as stack:
        files: list[TensorFile] = []
        if source.single is not None:
            files.append(source.single.open(part, _settings(module, part)))
            stack.callback(files[-1].close)
        else:
            for path in paths:
                if path.suffix != ".json":
                    files.append(open_tensors(path))
                    stack.callback(files[-1].close)
            _check_layout(files)
            _check_shards(paths, files)
        yield files


def _config(source: Source, part: Part) -> dict[str, Any]:
    """The config alone, its class checked before any weight is fetched."""
    config = read_config(source, part.name)
    inside = source.holds_part(part.name)
    if source.single is not None:
        check_class(part, config, str(source.single.config_path(part.name)))
        return config
    check_class(part, config, f"{source}/{inside}/config.json" if inside else f"{source}/config.json")
    return config


def _check_layout(files: list[TensorFile]) -> None:
    """Other frameworks order the axes of a convolution otherwise; a square kernel would fit and be wrong."""
    for file in files:
        layout = file.metadata.get("format", "pt") if isinstance(file, SafetensorsFile) else "pt"
        if layout != "pt":
            raise WeightsError(f"{file.path}: written in the layout {layout[:40]!a}, expected PyTorch's (pt)")


def _check_shards(paths: list[Path], files: list[TensorFile]) -> None:
    """Each shard holds exactly the tensors that the index gives it."""
    index = next((path for path in paths if path.suffix == ".json"), None)
    if index is None:
        return
    promised = read_shard_names(index)
    for file in files:
        difference = set(file.shapes()) ^ set(promised[file.path.name])
        if difference:
            raise WeightsError(
                f"{file.path}: {min(difference)!a} is in only one of shard and index; download both again"
            )
