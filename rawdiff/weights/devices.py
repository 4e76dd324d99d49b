"""Where to compute and in which precision."""

from __future__ import annotations

import torch

from rawdiff.errors import ResourceError, UsageError

__all__ = ["DTYPE_NAMES", "choose_device", "choose_dtype"]

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
