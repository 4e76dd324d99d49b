"""Reading a sampler's table off a scheduler by impulse response.

The scheduler walks once over a batch of three. The first is a vector with a coordinate for each "x at evaluation
j", "output at j" and "noise drawn at j"; each evaluation is fed fresh unit vectors, so that what comes back are the
rows of P, Q and R: `x_{i+1} = sum_j P_ij x_j + Q_ij out_j + R_ij noise_j`, changes made to x by hand included. The
other two are random vectors, large and small: what is not linear shows there (unit impulses miss a wide clip).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from rawdiff.errors import NotTabular, UsageError
from rawdiff.sampler.drive import Drive, hush
from rawdiff.sampler.levels import level

__all__ = ["Response", "probe"]

SPARE = 8
"""Coordinates that are never fed: a constant added by the scheduler shows in them."""

SCALES = (1e4, 1e-3)
TOLERANCE = 1e-4
"""How far a scaled random run may lie from the table, relative to the sum of its terms' sizes."""


@dataclass(frozen=True, eq=False)
class Response:
    """What the probe found; M evaluations, float64."""

    P: np.ndarray  # [M, M]
    Q: np.ndarray  # [M, M]
    R: np.ndarray  # [M, M]
    t: list[float]
    in_scale: list[float]
    level: list[tuple[float, float]]
    draws: list[int]
    x0: list[tuple[float, float] | None]
    """(a, b) of the scheduler's own `pred_original_sample`, where that depends on this row alone."""


def probe(drive: Drive) -> Response:
    """The response of the scheduler that `drive` walks, once; raises NotTabular with its name and the reason."""
    try:
        with hush():
            return _walk(drive)
    except NotTabular:
        raise
    except UsageError as error:
        raise NotTabular(str(error)) from error


def _walk(drive: Drive) -> Response:
    count = len(drive)
    width = 3 * count + SPARE
    basis = torch.eye(width, dtype=torch.float64)
    random = torch.randn(3, count, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    steps = np.zeros((count, 1 + len(SCALES), width))
    response = Response(
        P=np.zeros((count, count)), Q=np.zeros((count, count)), R=np.zeros((count, count)),
        t=[], in_scale=[], level=[], draws=[], x0=[],
    )  # fmt: skip
    for i in range(count):
        x, out, noise = (
            torch.stack([basis[3 * i + j], *(scale * random[j, i] for scale in SCALES)])[..., None, None]
            for j in range(3)
        )  # [3, 3M+8, 1, 1] float64
        draws = 0

        def draw(noise: torch.Tensor = noise, i: int = i) -> torch.Tensor:
            nonlocal draws
            draws += 1
            if draws > 1:
                raise NotTabular(
                    f"{drive.name}: it draws noise more than once at row {i}; a row has room for one"
                )
            return noise

        t = float(drive.timesteps[i])
        seen = drive.scale_input(i, x)[0].flatten().numpy().copy()
        response.t.append(t)
        response.in_scale.append(float(seen[3 * i]))
        seen[3 * i] = 0
        if np.any(seen):
            raise NotTabular(f"{drive.name}: its input at row {i} is not a multiple of x")
        response.level.append(level(drive.scheduler, drive.begin + i, t, response.in_scale[i]))
        x_next, x0 = drive.step(i, x, out, draw)
        steps[i] = x_next.double().flatten(1).numpy()
        response.draws.append(draws)
        response.x0.append(_own_x0(x0, i))
    for j, matrix in enumerate((response.P, response.Q, response.R)):
        matrix[:] = steps[:, 0, j : 3 * count : 3]
    _check_finite(response, drive.name)
    if np.any(steps[:, 0, 3 * count :]):
        raise NotTabular(f"{drive.name}: its step is not linear (it adds a constant)")
    _check_linear(response, random.numpy(), steps[:, 1:], drive.name)
    return response


def _own_x0(x0: torch.Tensor | None, i: int) -> tuple[float, float] | None:
    if x0 is None:
        return None
    entries = x0[0].double().flatten().numpy()
    a, b = float(entries[3 * i]), float(entries[3 * i + 1])
    alone = np.count_nonzero(entries) == (a != 0) + (b != 0)
    return (a, b) if alone else None


def _check_finite(response: Response, name: str) -> None:
    for i, t in enumerate(response.t):
        if not all(np.isfinite(m[i]).all() for m in (response.P, response.Q, response.R)):
            raise NotTabular(f"{name}: its step is not finite at row {i} (t {t:g})")


def _check_linear(response: Response, random: np.ndarray, steps: np.ndarray, name: str) -> None:
    """`random` [3, M, C] went in, scaled; `steps` [M, scales, C] came out."""
    blocks = (response.P, response.Q, response.R)
    expected = sum(m @ v for m, v in zip(blocks, random, strict=True))
    size = sum(abs(m) @ abs(v) for m, v in zip(blocks, random, strict=True)).max(axis=1)
    for k, scale in enumerate(SCALES):
        error = np.abs(steps[:, k] / scale - expected).max(axis=1) / size
        bad = np.flatnonzero(~(error <= TOLERANCE))
        if len(bad):
            raise NotTabular(
                f"{name}: its step is not linear (a run scaled by {scale:g} differs at row {bad[0]} by "
                f"{error[bad[0]]:.1g}; clipping or thresholding does this)"
            )
