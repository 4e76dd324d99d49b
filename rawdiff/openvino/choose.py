"""torch or openvino: the runner that a backend gets."""

from __future__ import annotations

import torch

from rawdiff.choice_file import ChoiceFile
from rawdiff.errors import UsageError
from rawdiff.graphs import Runner, make_runner
from rawdiff.limits import BACKENDS
from rawdiff.openvino import package
from rawdiff.openvino.compile import PRECISIONS
from rawdiff.openvino.runner import OpenVino
from rawdiff.say import Say, say_on_stderr

__all__ = ["choose_runner"]


def choose_runner(
    backend: str | None,
    speed: str | None,
    device: torch.device,
    dtype: torch.dtype,
    memory: str | None = None,
    *,
    say: Say = say_on_stderr,
) -> Runner:
    """The runner for "torch" (None), by `speed` and `memory`, or for "openvino", which has none of these choices.

    What torch's measures on a GPU is kept there, so that another process chooses the same.
    Raises UsageError: also where the openvino package is missing.
    """
    if backend is not None and backend not in BACKENDS:
        raise UsageError(f"backend {str(backend)[:40]!r}: expected {' or '.join(BACKENDS)}")
    if backend != "openvino":
        return make_runner(
            speed, device, memory, keeper=ChoiceFile(device) if device.type == "cuda" else None
        )
    if device.type != "cpu":
        raise UsageError(f"backend openvino runs on the CPU, and this runs on {device}: take device cpu")
    if dtype not in PRECISIONS:
        found = str(dtype).removeprefix("torch.")
        raise UsageError(f"backend openvino with dtype {found}: expected fp32 or bf16")
    make_runner("eager", device, memory)  # refuses a memory that is none
    if memory == "low":
        raise UsageError("memory low with backend openvino: it keeps its own copy of the weights: take torch")
    if speed is not None:
        raise UsageError(f"speed {str(speed)[:40]} with backend openvino: speeds are torch's: leave it out")
    package.load()
    return OpenVino(say=say)
