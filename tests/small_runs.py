"""Runs of a small model, prepared the same way in every test of the front door."""

from __future__ import annotations

from typing import Any

import numpy as np

from rawdiff import Model, Run
from tests.reference import silent

PROMPT = "a red cube on grass"
DEPTH = np.linspace(0, 1, 96 * 64, dtype=np.float32).reshape(96, 64)


def prepared(model: Model, prompt: Any = PROMPT, **options: Any) -> Run:
    """Five steps at 48x40, unless said otherwise."""
    return model.prepare(prompt, **{"steps": 5, "seed": 7, "say": silent, "size": (48, 40), **options})


def finished(run: Run) -> Run:
    """The same run, at its end."""
    for _ in run:
        pass
    return run
