"""Where to compute, in which precision, and whether a picture fits into the memory there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rawdiff.errors import ResourceError, UsageError
from rawdiff.geometry import Size, format_size
from rawdiff.nets.memory import TooLarge, least_bytes
from rawdiff.weights.heap import give_back

__all__ = ["DTYPE_NAMES", "check_memory", "choose_device", "choose_dtype", "free_bytes", "use_real_cores"]

DTYPE_NAMES: dict[str, torch.dtype] = {
    "fp16": torch.float16,
    "float16": torch.float16,
    "half": torch.float16,
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
    "fp32": torch.float32,
    "float32": torch.float32,
    "fp64": torch.float64,
    "float64": torch.float64,
}


def choose_device(device: str | torch.device | None = None) -> torch.device:
    """The device asked for, if it is there; without one, the first GPU, else the CPU.

    Raises UsageError for what is no device, ResourceError for one that this machine lacks.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError, ValueError) as error:
        raise UsageError(f"device {str(device)[:60]!a}: expected cpu, cuda or cuda:N") from error
    if chosen.type == "cpu":
        if chosen.index not in (None, 0):
            raise UsageError(f"device {chosen}: there is one cpu; use cpu")
        return torch.device("cpu")
    if chosen.type == "mps" and torch.backends.mps.is_available():
        return chosen
    if chosen.type != "cuda":
        raise UsageError(f"device {chosen}: expected cpu, cuda or cuda:N")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        raise ResourceError(f"device {chosen}: no CUDA device is visible here; use cpu")
    if chosen.index is not None and chosen.index >= count:
        raise ResourceError(f"device {chosen}: this machine has cuda:0 to cuda:{count - 1}")
    return chosen


def use_real_cores(device: torch.device) -> int | None:
    """Let torch use as many threads as this process has real cores, on a CPU; the number, None where nothing was done.

    Two threads on one core wait for each other. Whoever has set OMP_NUM_THREADS is taken at their word. For whole
    programs: the setting is the process's.
    """
    if device.type != "cpu" or os.environ.get("OMP_NUM_THREADS"):
        return None
    cores = _real_cores()
    if cores is not None and cores != torch.get_num_threads():
        torch.set_num_threads(cores)
    return cores


def _real_cores() -> int | None:
    """Cores that this process may run on, siblings counted once; None where the system does not tell (not Linux)."""
    try:
        mine = os.sched_getaffinity(0)
        files = [Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") for cpu in mine]
        return len({file.read_text(encoding="ascii") for file in files})
    except (OSError, AttributeError, ValueError):
        return None


def choose_dtype(device: str | torch.device, dtype: str | torch.dtype | None = None) -> torch.dtype:
    """The dtype the networks run in: fp16 on a GPU and fp32 on a CPU, unless asked for.

    fp16 on a CPU is refused (UsageError): convolutions there are up to a hundred times slower than in fp32.
    """
    kind = torch.device(device).type
    if dtype is None:
        return torch.float32 if kind == "cpu" else torch.float16
    chosen = DTYPE_NAMES.get(dtype.lower()) if isinstance(dtype, str) else dtype
    if not isinstance(chosen, torch.dtype) or chosen not in DTYPE_NAMES.values():
        raise UsageError(f"dtype {str(dtype)[:60]!a}: expected fp16, bf16 or fp32")
    if kind == "cpu" and chosen == torch.float16:
        raise UsageError("dtype fp16 on a CPU is up to a hundred times slower; use fp32 or bf16")
    if kind == "mps" and chosen == torch.float64:
        raise UsageError("dtype fp64 is not available on mps; use fp32 or fp16")
    return chosen


def check_memory(
    unet: Mapping[str, Any],
    vae: Mapping[str, Any],
    size: Size,
    *,
    batch: int,
    guided: bool,
    device: torch.device,
    dtype: torch.dtype,
    low: bool = False,
    beside: int = 0,
    made_with: str | None = None,
) -> None:
    """Raise SizeError where pictures of this size, from these configs, cannot fit into the memory that is free now.

    `low` is for a run in little memory; `beside` are bytes that will be taken there for copies of weights, `made_with`
    what computes in torch's place.
    """
    needed = least_bytes(unet, vae, size, batch, dtype.itemsize, guided=guided, low=low) + beside
    free = free_bytes(device)
    if free is not None and needed > free and device.type == "cpu":
        give_back()
        free = free_bytes(device)
    if free is not None and needed > free:
        several = f" in a batch of {batch}" if batch > 1 else ""
        ways = [
            "a smaller size or batch" if batch > 1 else "a smaller size",
            *([] if low else ["memory low" if made_with is None else "backend torch"]),
        ]
        copies = f" ({beside / 2**30:.1f} for copies of weights)" if beside else ""
        raise TooLarge(
            f"size {format_size(size)}{several} needs at least {needed / 2**30:.1f} GiB{copies}, and "
            f"{free / 2**30:.1f} GiB are free on {device}: take {', or '.join(ways)}"
        )


def free_bytes(device: torch.device) -> int | None:
    """Memory that could still be had on `device`, or None where the system does not tell."""
    if device.type == "cuda":  # what torch keeps for later, unused, can be had too
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    found = [value for value in (_available_bytes(), _group_bytes()) if value is not None]
    return min(found, default=None)


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
