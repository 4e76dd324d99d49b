"""An empty module filled from files, strictly: every tensor accounted for, or an error with file and key.

Names, shapes and dtypes are compared first, from headers alone, so that a wrong file costs no reading. Then
each tensor is read, checked for NaN and Inf, moved to device and dtype and assigned, one at a time: the peak is the
network plus one tensor, or on a CPU, where torch's threads share the tensors, two blocks of one for each.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rawdiff.errors import ResourceError, WeightsError
from rawdiff.weights.renames import plan_names
from rawdiff.weights.room import come_by, room_for
from rawdiff.weights.tensorfile import TensorFile

__all__ = ["FLOAT_DTYPES", "check_finite", "fill", "listed", "plan_fill"]

FLOAT_DTYPES = ("F16", "BF16", "F32", "F64")
"""What a network's weight may be stored as; integers and fp8 need a scale that is not in the file."""
_BLOCK = 3 * 2**16
"""Values read and converted at a time: few enough for a core's caches, and in memory that is used again."""
_HALVES = (torch.float16, torch.bfloat16)


def listed(names: Sequence[str]) -> str:
    """Up to three names, quoted, and how many more there are."""
    shown = ", ".join(ascii(name) for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Every tensor that a file must supply, by name (parameters and persistent buffers)."""
    return dict(module.state_dict(keep_vars=True))


def plan_fill(
    part: str, module: nn.Module, files: Iterable[TensorFile], where: str
) -> dict[str, tuple[TensorFile, str]]:
    """For each tensor of `module`, the file and the name there that feed it.

    Raises WeightsError that lists what is missing, extra, of another shape or of a dtype that is no float.
    """
    owner: dict[str, TensorFile] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: dict[str, str] = {}
    for file in files:
        for name, shape in file.shapes().items():
            if name in owner:
                raise WeightsError(
                    f"{file.path}: {name!a} is also in {owner[name].path.name}; expected it once"
                )
            owner[name], shapes[name] = file, shape
        dtypes.update(file.dtypes())
    wanted = _tensors(module)
    feeds, extra = plan_names(part, owner, wanted, where)
    # One file alone knows how it would call what it lacks; of several, each would be as right.
    spell = next(iter(owner.values())).key if len(set(map(id, owner.values()))) == 1 else str
    missing = [spell(name) for name in wanted if name not in feeds]
    extra = tuple(map(spell, extra))
    if missing or extra:
        parts = [f"{len(missing)} tensors missing ({listed(missing)})"] if missing else []
        parts += (
            [f"{len(extra)} that {type(module).__name__} does not have ({listed(extra)})"] if extra else []
        )
        raise WeightsError(f"{where}: {'; '.join(parts)}; expected exactly the tensors of its config")
    for target, name in feeds.items():
        file, expected = owner[name], tuple(wanted[target].shape)
        found, dtype = shapes[name], dtypes[name]
        if found != expected:
            raise WeightsError(
                f"{file.path}: {file.key(name)!a} has shape {found}, expected {expected} by its config"
            )
        if dtype not in FLOAT_DTYPES:
            raise WeightsError(
                f"{file.path}: {file.key(name)!a} has dtype {dtype}, expected one of {', '.join(FLOAT_DTYPES)}"
            )
    return {target: (owner[name], name) for target, name in feeds.items()}


def fill(
    module: nn.Module,
    feeds: Mapping[str, tuple[TensorFile, str]],
    device: torch.device,
    dtype: torch.dtype,
) -> nn.Module:
    """Read, check and assign every tensor of `feeds`; give the buffers their values; leave nothing on meta.

    Raises WeightsError (NaN, Inf, a value too large for `dtype`) and ResourceError (memory).
    """
    on_cpu = device.type == "cpu"
    shapes = {name: tensor.shape for name, tensor in _tensors(module).items()}
    room = room_for(shapes, dtype) if on_cpu else {}

    def made(target: str) -> Tensor:
        file, name = feeds[target]
        try:
            if on_cpu:
                return _by_blocks((file, name), room[target])
            return _whole((file, name), device, dtype)
        except RuntimeError as error:  # out of memory among them
            reason = " ".join(str(error).split())[:120]
            raise ResourceError(
                f"{file.path}: {file.key(name)!a} does not go to {device} ({reason})"
            ) from error

    with _side_by_side(device) as each:
        ready = dict(zip(feeds, each(made, feeds), strict=True))
    module.load_state_dict(ready, strict=True, assign=True)
    _fill_buffers(module, device)
    _check_no_meta(module)
    return module.eval().requires_grad_(False)


@contextmanager
def _side_by_side(device: torch.device) -> Iterator[Callable[..., Iterable[Any]]]:
    """A `map`; on a CPU one whose calls run in as many threads as torch has, each of which computes by itself.

    Half of what reading into new memory takes is the kernel's work of finding that memory, which torch's own threads
    do not share: they divide a block's values, and meet again after each operation.
    """
    count = torch.get_num_threads() if device.type == "cpu" and hasattr(os, "preadv") else 1
    if count < 2:
        yield map
        return
    pool = ThreadPoolExecutor(count, "rawdiff-load", torch.set_num_threads, (1,))
    try:
        yield pool.map
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(count)  # which was set for all threads that begin from here on


def _by_blocks(feed: tuple[TensorFile, str], made: Tensor) -> Tensor:
    """`made`, on the CPU, filled with a tensor of a file block after block, each in memory that is used again.

    A whole tensor as it is in the file would be new memory, whose pages take longer to come by than its values to
    check and convert.
    """
    file, name = feed
    if not made.numel():
        return made
    come_by(made)
    key, parts = file.key(name), torch.split(made.view(-1), _BLOCK)
    between = torch.empty_like(parts[0], dtype=torch.float32)  # once a tensor
    for block, part in zip(file.blocks(name, _BLOCK), parts, strict=True):
        _convert(block, part, file.path, key, between[: part.shape[0]])
    return made


def _whole(feed: tuple[TensorFile, str], device: torch.device, dtype: torch.dtype) -> Tensor:
    """A tensor of a file on a `device` that is no CPU, as `dtype`."""
    file, name = feed
    tensor = file.read(name)
    return _convert(tensor, torch.empty(tensor.shape, dtype=dtype, device=device), file.path, file.key(name))


def _convert(tensor: Tensor, target: Tensor, path: Path, key: str, between: Tensor | None = None) -> Tensor:
    """`target`, filled with what was read, checked before and after.

    With memory for fp32 `between`, 16 bits go by way of it, with the same bits: a CPU adds up fp32 the fastest, and
    torch converts fp16 to bf16 a value at a time there, and four times as slowly.
    """
    range_before = torch.finfo(tensor.dtype).max
    if between is not None and tensor.dtype in _HALVES and target.dtype != tensor.dtype:
        tensor = (target if target.dtype == torch.float32 else between).copy_(tensor)
    check_finite(tensor, path, key)
    if tensor is not target:
        target.copy_(tensor)
    if torch.finfo(target.dtype).max < range_before:
        check_finite(target, path, key, f" in {str(target.dtype).removeprefix('torch.')}; use fp32 or bf16")
    return target


def check_finite(tensor: Tensor, path: Path, name: str, addition: str = "") -> None:
    """Raise WeightsError if a value is NaN or infinite. The extremes tell: NaN spreads into both.

    So does their sum, which is quicker to come by in fp32 on a CPU; where it is finite all of them are.
    """
    if tensor.numel() == 0:
        return
    if tensor.dtype == torch.float32 and tensor.device.type == "cpu" and isfinite(tensor.sum()):
        return
    low, high = (float(value) for value in torch.aminmax(tensor))
    if low != low or high != high:
        raise WeightsError(f"{path}: {name!a} holds NaN{addition}; the file is damaged")
    if abs(low) == float("inf") or abs(high) == float("inf"):
        cause = addition if addition else "; the file is damaged"
        raise WeightsError(f"{path}: {name!a} holds Inf{cause}")


def _fill_buffers(module: nn.Module, device: torch.device) -> None:
    """Values for the buffers that no file stores, by a rule for each; without one they are refused below."""
    for owner in module.modules():
        for name, buffer in list(owner.named_buffers(recurse=False)):
            if buffer.is_meta and name == "position_ids":  # [1, positions]: 0, 1, 2, ...
                owner.register_buffer(
                    name, torch.arange(buffer.shape[-1], device=device).expand(buffer.shape), persistent=False
                )


def _check_no_meta(module: nn.Module) -> None:
    """Nothing may be left without memory: diffusers would compute with whatever lies there."""
    left = [name for name, tensor in module.named_parameters() if tensor.is_meta]
    left += [name for name, tensor in module.named_buffers() if tensor.is_meta]
    for path, owner in module.named_modules():
        left += [f"{path}.{k}" for k, v in vars(owner).items() if isinstance(v, Tensor) and v.is_meta]
    if left:
        raise WeightsError(
            f"{type(module).__name__}: no values for {listed(left)}; "
            "this version of its library is not known here"
        )
