"""Runs of a small model, prepared the same way in every test of the front door."""

from __future__ import annotations

from typing import Any

import numpy as np

from rawdiff import Model, Run
from tests.reference import silent
from tests.small_models import small_scheduler

PROMPT = "a red cube on grass"
DEPTH = np.linspace(0, 1, 96 * 64, dtype=np.float32).reshape(96, 64)


def prepared(model: Model, prompt: Any = PROMPT, **options: Any) -> Run:
    """Five steps at 48x40, unless said otherwise."""
    return model.prepare(prompt, **{"steps": 5, "seed": 7, "say": silent, "size": (48, 40), **options})


CALL: dict[str, Any] = {"seeds": [3], "size": (48, 40), "num_inference_steps": 4, "guidance_scale": 5.0}
"""What `reference` is called with for the picture that `called` prepares."""


def called(model: Model, prompt: Any = PROMPT, **options: Any) -> Run:
    """What CALL asks of a pipeline with the small scheduler, unless said otherwise."""
    own = {"steps": 4, "guidance": 5.0, "seed": 3, "sampler": small_scheduler()}
    return prepared(model, prompt, **{**own, **options})


def finished(run: Run) -> Run:
    """The same run, at its end."""
    for _ in run:
        pass
    return run
