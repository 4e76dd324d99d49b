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

from rawdiff.errors import WeightsError
from rawdiff.say import say_on_stderr
from rawdiff.weights.build import PARTS, Part, build_empty
from rawdiff.weights.choose import read_shard_names
from rawdiff.weights.devices import choose_device, choose_dtype
from rawdiff.weights.digests import read_from, states
from rawdiff.weights.files import Where, checked_config, part_files, summands
from rawdiff.weights.fill import fill, plan_fill
from rawdiff.weights.merge import Feeds, Summed, check_configs
from rawdiff.weights.source import Source, open_source
from rawdiff.weights.tensorfile import SafetensorsFile, TensorFile, open_tensors

__all__ = [
    "load_controlnet",
    "load_scheduler",
    "load_text_encoder",
    "load_text_encoder_2",
    "load_unet",
    "load_vae",
]


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
    found = states([path])
    if opened.single is not None:
        scheduler = schedulers.scheduler_from_folder(path, opened.single.scheduler)
    else:
        scheduler = schedulers.scheduler_from_folder(path.parent)
    read_from(scheduler, found)
    return scheduler


def _load(
    name: str, source: Where, device: str | torch.device | None, dtype: str | torch.dtype | None
) -> nn.Module:
    chosen_device = choose_device(device)
    chosen_dtype = choose_dtype(chosen_device, dtype)
    opened = open_source(source, say=say_on_stderr).owner(name)
    sources = summands(opened, name)
    modules = [_empty(one, PARTS[name]) for one in sources]
    read_from(modules[0], states(path for one in sources for path in part_files(one, name)))
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
    config = checked_config(source, part)
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
