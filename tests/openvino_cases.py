"""OpenVINO's runner with a store of a test's own, beside torch's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rawdiff.graphs.tree import flatten
from rawdiff.openvino import OpenVino, Store, version
from tests.exact_cases import Case, error, randn

STEP = 2e-5
"""The largest relative error of a step in fp32: 1e-6 to 4e-6 was seen, sums in another order than torch's."""

needed = pytest.mark.skipif(
    version() is None, reason="openvino is not installed: pip install 'rawdiff[openvino]'"
)


def silent(line: str) -> None:
    pass


def runner(store: Store, **options: Any) -> OpenVino:
    return OpenVino(store=store, **{"say": silent, **options})


def apart(case: Case, ours: Any, theirs: Any, rows: Any = slice(None)) -> float:
    """The largest relative difference of what two predictions say at the rows: halves, guided and residuals."""
    worst = 0.0
    for row in case.plan.rows[rows]:
        x = randn(case.batch, 4, *case.size, seed=row.index)
        a, b = ours(x, row), theirs(x, row)
        for one, other in zip(_told(a), _told(b), strict=True):
            assert one.shape == other.shape
            assert one.dtype == other.dtype
            worst = max(worst, error(one, other))
    return worst


def _told(prediction: Any) -> list[Tensor]:
    control = [tuple(found) for found in prediction.control if found is not None]
    return flatten((prediction.guided, prediction.cond, prediction.uncond, control))[0]


def changed(net: Any, factor: float = 1.2) -> None:
    """Other weights in place, as a LoRA leaves them."""
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if "attn2.to_" in name or "conv1.weight" in name:
                weight.mul_(factor)
