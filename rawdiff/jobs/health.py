"""Whether this machine can draw, and what it has: a list of findings."""

from __future__ import annotations

import importlib
import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import torch

from rawdiff import openvino, weights
from rawdiff.errors import RawdiffError, ResourceError
from rawdiff.files import parts_of
from rawdiff.images.opencv import opencv
from rawdiff.jobs.output import OUTPUT_FOLDER, Output, find_folder
from rawdiff.jobs.workshop import MODEL_VARIABLE, named_model
from rawdiff.version import __version__

__all__ = ["Finding", "check_all", "worst"]

PACKAGES = ("torch", "diffusers", "transformers", "safetensors", "huggingface-hub", "numpy", "pillow")
EXTRAS = {"scipy": "lms, beta spacing, dpm++ sde", "torchsde": "dpm++ sde"}


@dataclass(frozen=True)
class Finding:
    """One thing looked at."""

    name: str
    state: Literal["ok", "note", "fault"]
    text: str
    error: RawdiffError | None = None


def check_all(model: str | None = None, folder: str | Path = OUTPUT_FOLDER) -> Iterator[Finding]:
    """Look at everything that drawing needs; a fault is found, not raised."""
    yield Finding("rawdiff", "ok", f"{__version__} from {Path(__file__).resolve().parent.parent}")
    yield Finding("python", "ok", f"{platform.python_version()} on {platform.platform()}")
    for name in PACKAGES:
        yield _checked(name, lambda name=name: metadata.version(name))  # type: ignore[misc]
    yield _checked("opencv", lambda: f"{opencv().__version__}, for edges and unusual files")
    for name, use in EXTRAS.items():
        yield _extra(name, use)
    yield _openvino()
    yield from _devices()
    yield _checked("output", lambda: _writable(find_folder(folder)))
    yield from _model("embedded model", None)
    named = named_model(model)
    if named is not None:
        yield from _model("--model" if model is not None else MODEL_VARIABLE, named)


def worst(findings: list[Finding]) -> RawdiffError | None:
    """The error that the findings amount to."""
    faults = [finding for finding in findings if finding.state == "fault"]
    if not faults:
        return None
    kind = type(faults[0].error) if faults[0].error is not None else ResourceError
    return kind(
        f"{len(faults)} of {len(findings)} checks failed: {', '.join(fault.name for fault in faults)}"
    )


def _checked(name: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(name, "ok", check())
    except RawdiffError as error:
        return Finding(name, "fault", str(error), error)
    except metadata.PackageNotFoundError:
        return Finding(name, "fault", "is not installed: pip install rawdiff", ResourceError())


def _extra(name: str, use: str) -> Finding:
    try:
        importlib.import_module(name)
        return Finding(name, "ok", f"{metadata.version(name)}, for {use}")
    except ImportError:
        return Finding(name, "note", f"is not installed: {use} need it (pip install 'rawdiff[samplers]')")


def _openvino() -> Finding:
    version = openvino.version()
    try:
        store = openvino.Store()
        sizes = store.sizes()
        kept = f"{len(sizes)} converted networks, {sum(sizes.values()) / 2**20:.1f} MiB in {store.folder}"
    except ResourceError as error:
        kept = str(error)
    if version is None:
        text = f"is not installed: --backend openvino needs it (pip install 'rawdiff[openvino]'); {kept}"
        return Finding("openvino", "note", text)
    return Finding("openvino", "ok", f"{version}, for --backend openvino; {kept}")


def _devices() -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    free = weights.free_bytes(torch.device("cpu"))
    memory = "" if free is None else f", {free / 2**30:.1f} GiB of memory free"
    yield Finding("cpu", "ok", f"{torch.get_num_threads()} threads on {cores} cores{memory}")
    if not torch.cuda.is_available():
        yield Finding("gpu", "note", "none that torch can use; pictures are drawn on the CPU")
        return
    for k in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(k)
        yield Finding(f"gpu {k}", "ok", f"{facts.name}, {facts.total_memory / 2**30:.1f} GiB")


def _writable(folder: Path) -> str:
    Output(folder).ready().abandon()
    return f"{folder} takes files"


def _model(name: str, model: str | None) -> Iterator[Finding]:
    """Every part opened and filled as for drawing, on the CPU, and the hashes of its files."""
    try:
        source = weights.open_source(model)
        defaults = weights.read_defaults(source)
        for load in (weights.load_unet, weights.load_vae, weights.load_text_encoder):
            load(source, device="cpu")
        weights.load_tokenizer(source)
        if defaults.two_encoders:
            weights.load_text_encoder_2(source, device="cpu")
            weights.load_tokenizer(source, "tokenizer_2")
        weights.load_scheduler(source)
        digests = weights.hashes(source, *parts_of(defaults))
        if defaults.inpaint is not None:
            weights.load_unet(defaults.inpaint, device="cpu")
            digests |= weights.hashes(defaults.inpaint, "unet")
        for net in defaults.controls.values():
            if isinstance(net, weights.Source):
                weights.load_controlnet(net, device="cpu")
                digests |= weights.hashes(net, "controlnet")
        for file in defaults.loras.values():
            lora = weights.read_lora(source.path(file))
            weights.planned_layers(source).match(lora)
            digests[file] = lora.sha256
        for file in defaults.embeddings.values():
            digests[file] = weights.read_embedding(source.path(file)).sha256
    except RawdiffError as error:
        yield Finding(name, "fault", str(error), error)
        return
    kinds = ", ".join(defaults.controls) or "none"
    height, width = defaults.native_size
    yield Finding(name, "ok", f"{defaults.name}, {width}x{height}, controls: {kinds}; every tensor is there")
    for file, digest in digests.items():
        if not file.endswith(".json"):
            yield Finding(f"  {file}", "ok", digest)
