"""Stable Diffusion and ControlNet taken apart: raw parts, one open denoising loop, timing probes.

    model = rawdiff.load()
    run = model.prepare("a red cube on grass", depth="room.png", size=(512, 768), steps=20, seed=7)
    for step in run:
        step.x, step.uncond, step.cond, step.x0
    run.image().save("cube.png")

Names are looked up when they are first used: importing rawdiff itself imports neither torch nor diffusers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rawdiff.version import __version__

if TYPE_CHECKING:
    from rawdiff.conditions import SizeIds as SizeIds
    from rawdiff.model import Control as Control
    from rawdiff.model import Model as Model
    from rawdiff.model import Run as Run
    from rawdiff.model import load as load
    from rawdiff.predict import Exact as Exact
    from rawdiff.probes import NO_PROBE as NO_PROBE
    from rawdiff.probes import Probe as Probe

_HOMES = {
    "Control": "rawdiff.model",
    "Exact": "rawdiff.predict",
    "Model": "rawdiff.model",
    "NO_PROBE": "rawdiff.probes",
    "Probe": "rawdiff.probes",
    "Run": "rawdiff.model",
    "SizeIds": "rawdiff.conditions",
    "load": "rawdiff.model",
}

__all__ = ["NO_PROBE", "Control", "Exact", "Model", "Probe", "Run", "SizeIds", "__version__", "load"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'rawdiff' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
