"""One call as OpenVINO's operations: traced by torch, with every weight an input beside the call's own.

The trace sees zeros in the weights' shapes that take no memory. It follows sizes of pictures and texts, and holds
the number of rows of each argument; OpenVINO's own `convert_model` is not used, because it reports on its users.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rawdiff.errors import WeightsError
from rawdiff.graphs.compiled import flat
from rawdiff.graphs.runner import Call
from rawdiff.nets.memory import is_out_of_memory
from rawdiff.openvino import package
from rawdiff.version import __version__

__all__ = ["INPUT", "WEIGHT", "convert", "key_of", "parts_of", "weights_of"]

FORMAT = 1
"""To be raised when what is written here changes, so that files from before are not taken."""
WEIGHT, INPUT = "weight:", "input:"
"""What the names of a converted call's inputs begin with, before a weight's name or an argument's number."""


def weights_of(net: nn.Module) -> dict[str, Tensor]:
    """Every weight of a network by name, a tied one by each of its names."""
    return dict(net.named_parameters(remove_duplicate=False))


def key_of(call: Call, form: tuple[Any, ...], tensors: Sequence[Tensor]) -> str:
    """SHA-256 over all that decides what `convert` makes: the network's form, not its weights' numbers.

    That is the call, its network's class, config and weights' shapes, the arguments' form and rows, the code that the
    call runs, and the versions of what converts it.
    """
    net = call.net  # type: ignore[attr-defined]
    names = {id(module): name for name, module in net.named_modules()}
    config = {str(k): v for k, v in dict(getattr(net, "config", {})).items() if not str(k).startswith("_")}
    options = {f.name: getattr(call, f.name) for f in fields(call) if f.name != "net"}  # type: ignore[arg-type]
    said = {
        "format": [FORMAT, __version__, package.version(), torch.__version__, _diffusers(), _code()],
        "call": [type(call).__qualname__, options],
        "net": [type(net).__qualname__, config],
        "weights": {name: list(weight.shape) for name, weight in weights_of(net).items()},
        "form": _plain(form, names),
        "arguments": [[tensor.ndim, *tensor.shape[:1]] for tensor in tensors],
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()


def _plain(form: Any, names: Mapping[int, str]) -> Any:
    """A form of arguments (`graphs.tree`) without objects: a module is its name in the network."""
    if isinstance(form, nn.Module):
        return f"module {names[id(form)]}"
    if isinstance(form, type):
        return form.__qualname__
    return [_plain(part, names) for part in form] if isinstance(form, (tuple, list)) else form


@cache
def _code() -> str:
    """SHA-256 of the forwards' own source."""
    from rawdiff import nets

    digest = hashlib.sha256()
    for path in sorted(Path(str(nets.__file__)).parent.glob("*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _diffusers() -> str:
    from importlib import metadata

    return metadata.version("diffusers")  # whose layers are run inside the forwards


def convert(call: Call, form: tuple[Any, ...], tensors: Sequence[Tensor]) -> Any:
    """The call as an `openvino.Model` in fp32: named inputs (WEIGHT, INPUT), of any picture's size; outputs in order.

    What the call does not use is no input. Raises WeightsError for what OpenVINO cannot convert, or not compile.
    """
    net = call.net  # type: ignore[attr-defined]
    weights = weights_of(net)
    held = [name for name, _ in net.named_buffers()]
    if held:
        raise WeightsError(
            f"{type(net).__name__}: {held[0]} is no weight, and backend openvino knows weights alone"
        )
    if getattr(net, "config", {}).get("resnet_time_scale_shift") == "scale_shift":
        raise WeightsError(  # its compiler ends the process there (2026.4.1)
            f"{type(net).__name__}: resnet_time_scale_shift is 'scale_shift', which backend openvino cannot compile: "
            "take backend torch"
        )
    work, _ = flat(call, form)

    def traced(*given: Tensor) -> tuple[Tensor, ...]:
        with _put_in(net, dict(zip(weights, given, strict=False))):
            return tuple(work(*given[len(weights) :]))

    shapes = [tensor.shape for tensor in (*weights.values(), *tensors)]
    zeros = tuple(torch.zeros(()).expand(shape) for shape in shapes)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a trace holds fast is in the key
        follow: Any = torch.jit.trace  # untyped
        trace = follow(traced, zeros, check_trace=False)
        names = [value.debugName() for value in trace.graph.inputs()]
        decoder = package.load("openvino.frontend.pytorch.ts_decoder").TorchScriptPythonDecoder(trace)
    reader = package.load("openvino.frontend").FrontEndManager().load_by_framework("pytorch")
    try:
        model = reader.convert(reader.load(decoder))
    except Exception as error:
        if is_out_of_memory(error):
            raise
        lines = [line for line in str(error).splitlines() if line.startswith("--")] or str(error).splitlines()
        raise WeightsError(
            f"openvino cannot convert {type(call).__name__} of this {type(net).__name__} ({lines[0][:120]}): "
            "take backend torch"
        ) from error
    meant = dict(zip(names, _names(weights, tensors), strict=True))
    for parameter in list(model.get_parameters()):
        if parameter.output(0).get_target_inputs():
            parameter.set_friendly_name(meant[parameter.get_friendly_name()])
        else:
            model.remove_parameter(parameter)
    return model


def _names(weights: Mapping[str, Tensor], tensors: Sequence[Tensor]) -> list[str]:
    return [*(WEIGHT + name for name in weights), *(f"{INPUT}{k}" for k in range(len(tensors)))]


@contextmanager
def _put_in(net: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Other tensors in the places of a network's weights, which come back at the end."""
    held: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for name, tensor in weights.items():
            path, _, leaf = name.rpartition(".")
            own: dict[str, Any] = net.get_submodule(path)._parameters
            held.append((own, leaf, own[leaf]))
            own[leaf] = tensor
        yield
    finally:
        for own, leaf, weight in reversed(held):
            own[leaf] = weight


def parts_of(model: Any) -> tuple[bytes, bytes]:
    """A model as `Core.read_model` takes it: its operations (XML) and its constants."""
    with tempfile.TemporaryDirectory(prefix="rawdiff-") as folder:
        paths = Path(folder, "model.xml"), Path(folder, "model.bin")
        package.load().serialize(model, *map(str, paths))
        return paths[0].read_bytes(), paths[1].read_bytes()
