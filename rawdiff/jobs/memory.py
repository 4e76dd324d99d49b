"""Memory: how much a picture takes at the least, asked before anything slow begins; and when it gave out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rawdiff.errors import ResourceError, SizeError
from rawdiff.geometry import FACTOR, Size, format_size

__all__ = [
    "DeviceFailedError",
    "check_memory",
    "free_bytes",
    "is_device_failure",
    "is_out_of_memory",
    "least_bytes",
]


class DeviceFailedError(ResourceError):
    """The device gave out; nothing more can be computed on it by this process."""


def least_bytes(
    unet: Mapping[str, Any], vae: Mapping[str, Any], size: Size, batch: int, itemsize: int
) -> int:
    """Bytes of activations that cannot be done without, from the two configs: the larger of two moments.

    In the VAE, decoding one picture: the last level's convolution reads the second widest and writes the widest
    map at full size. In the UNet, on both halves: its skips, kept until they are joined, and two working copies.
    """
    height, width = size
    channels = _channels(vae)
    decode = height * width * (channels[min(1, len(channels) - 1)] + channels[0]) * itemsize
    area = height * width // FACTOR**2
    layers = unet.get("layers_per_block", 2)
    levels = _channels(unet)
    per_level = [layers] * len(levels) if isinstance(layers, int) else list(layers)
    skips = sum((n + 1) * c * area // 4**k for k, (c, n) in enumerate(zip(levels, per_level, strict=False)))
    denoise = 2 * batch * (skips + 2 * levels[0] * area) * itemsize
    return int(max(decode, denoise))


def check_memory(
    unet: Mapping[str, Any],
    vae: Mapping[str, Any],
    size: Size,
    *,
    batch: int,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Raise SizeError where a picture of this size cannot fit into the memory that is free now."""
    needed, free = least_bytes(unet, vae, size, batch, dtype.itemsize), free_bytes(device)
    if free is not None and needed > free:
        several = f" in a batch of {batch}" if batch > 1 else ""
        raise SizeError(
            f"size {format_size(size)}{several} needs at least {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB "
            f"are free on {device}: take a smaller size{' or batch' if batch > 1 else ''}"
        )


def free_bytes(device: torch.device) -> int | None:
    """Memory that could still be had on `device`, or None where the system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    found = [value for value in (_available_bytes(), _group_bytes()) if value is not None]
    return min(found, default=None)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory gave out, on a GPU or on the host."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    said = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in said or "can't allocate memory" in said)


def is_device_failure(error: BaseException) -> bool:
    """Whether an exception says that a GPU is lost to this process."""
    return isinstance(error, RuntimeError) and "CUDA error" in str(error) and not is_out_of_memory(error)


def _channels(config: Mapping[str, Any]) -> list[int]:
    found = config.get("block_out_channels")
    numbers = found if isinstance(found, list) and all(type(c) is int and c > 0 for c in found) else []
    return numbers or [1]


def _available_bytes() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        [kibibytes] = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
        return 1024 * int(kibibytes)
    except (OSError, ValueError):
        return None


def _group_bytes() -> int | None:
    """What a container's limit leaves (cgroup 2)."""
    try:
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        used = int((group / "memory.current").read_text(encoding="ascii"))
        stat = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
        return max(0, limit - used + int(stat["inactive_file"]))  # cached files make room when asked
    except (OSError, ValueError, KeyError):  # no limit ("max"), or no such files
        return None
