"""Maps as 16-bit PNG or float32 .npy, and manifests as JSON lines; the same bytes every time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["quantise", "write_lines", "write_map"]


def quantise(values: NDArray[np.float64]) -> NDArray[np.uint16]:
    """[H,W] in 0..1 as whole numbers 0..65535, rounded to nearest."""
    return np.rint(values * 65535).astype(np.uint16)


def write_map(path: Path, values: NDArray[np.float64]) -> None:
    """Write [H,W] in 0..1, near is 1, as what the path's name ends in: .png (16 bit) or .npy (float32)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, values.astype(np.float32), allow_pickle=False)
        return
    Image.fromarray(quantise(values)).save(path, format="PNG", optimize=True)


def write_lines(path: Path, entries: Iterable[Mapping[str, Any]]) -> None:
    """One JSON object a line, leaving out what is None."""
    lines = [
        json.dumps({k: v for k, v in entry.items() if v is not None}, ensure_ascii=False) for entry in entries
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
