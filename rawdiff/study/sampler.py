"""A sampler laid open: its rows, and the matrices P, Q, R and W, as text and as plain values.

x_{i+1} = sum_j P[i,j] x_j + Q[i,j] out_j + R[i,j] noise_j           the study form: all that was, by hand or not
[x_next; s_next] = W_i [x; out; noise; s]                            the running form: the same, with a short memory
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rawdiff import weights
from rawdiff.arguments import build_sampler
from rawdiff.sampler import Sampler, SamplerTable
from rawdiff.say import Say
from rawdiff.study.grid import grid

__all__ = ["as_values", "find_sampler", "lines"]

COLUMNS = ("row", "t", "sigma", "signal", "in_scale", "x0_a", "x0_b", "draws")


def find_sampler(
    name: str,
    model: str | Path | None = None,
    *,
    steps: int | None = None,
    timesteps: Sequence[int] | None = None,
    sigmas: Sequence[float] | None = None,
    eta: float = 0.0,
    revision: str | None = None,
    offline: bool = False,
    say: Say,
) -> Sampler:
    """The sampler of that name over a model's noise schedule, or the model's own for "default".

    Raises UsageError, WeightsError, HubError.
    """
    source = weights.open_source(model, revision=revision, offline=offline, say=say)
    given, named = (None if name == "default" else name), weights.read_defaults(source).sampler
    schedule: dict[str, Any] = {"steps": steps, "timesteps": timesteps, "sigmas": sigmas, "eta": eta}
    sampler, _ = build_sampler(given, weights.load_scheduler(source), named, **schedule)
    return sampler


def as_values(sampler: Sampler) -> dict[str, Any]:
    """Everything about a sampler as plain values, for JSON; matrices are lists of rows, None without a table."""
    table = sampler if isinstance(sampler, SamplerTable) else None
    rows = [{name: getattr(row, _field(name)) for name in COLUMNS} for row in sampler.rows]
    return {
        "name": sampler.name,
        "prediction_type": sampler.prediction_type,
        "order": sampler.order,
        "init_scale": sampler.init_scale,
        "state_size": sampler.state_size,
        "why_no_table": None if table is not None else _why(sampler),
        "rows": [{name: _finite(value) for name, value in row.items()} for row in rows],
        **{name: None if table is None else getattr(table, name).tolist() for name in "PQR"},
        "W": None if table is None else table.weights.tolist(),
    }


def lines(sampler: Sampler) -> Iterator[str]:
    """The same for a person, a line at a time."""
    yield (
        f"{sampler.name}: {len(sampler.rows)} rows, predicts {sampler.prediction_type}, {sampler.state_size} tensors "
        f"beside x, starts from {sampler.init_scale:.6g} x noise"
    )
    yield ""
    yield from grid([COLUMNS, *([_short(getattr(row, _field(c))) for c in COLUMNS] for row in sampler.rows)])
    if not isinstance(sampler, SamplerTable):
        yield ""
        yield f"no table: {_why(sampler)}; it runs by the scheduler's own step"
        return
    said = {"P": "x at row j", "Q": "the networks' output at row j", "R": "the noise drawn at row j"}
    for name, what in said.items():
        matrix = getattr(sampler, name)
        yield ""
        yield f"{name}[i,j]: what x after row i has of {what}"
        if not matrix.any():
            yield "  nothing"
            continue
        head = ["i", *(str(j) for j in range(matrix.shape[1]))]
        yield from grid([head, *([str(i), *map(_short, line)] for i, line in enumerate(matrix))])
    yield ""
    yield "W_i: [x_next; s_next] = W_i [x; out; noise; s]"
    memory = [f"s{k}" for k in range(sampler.state_size)]
    head = ["i", "", "x", "out", "noise", *memory]
    body = [
        [str(i) if k == 0 else "", f"{name} =", *map(_short, line)]
        for i, matrix in enumerate(sampler.weights)
        for k, (name, line) in enumerate(zip(["x", *memory], matrix, strict=True))
    ]
    yield from grid([head, *body])


def _field(column: str) -> str:
    return "index" if column == "row" else column


def _why(sampler: Sampler) -> str:
    return str(getattr(sampler, "why", "") or "it is a sampler of its own")


def _finite(value: float) -> float | None:
    """JSON has no infinity."""
    return value if np.isfinite(value) else None


def _short(value: Any) -> str:
    """At most nine characters; an exact zero is a dot."""
    if isinstance(value, int):
        return str(value)
    return "." if value == 0 else f"{value:.4g}"
