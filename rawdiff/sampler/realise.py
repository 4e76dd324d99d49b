"""From a response to a running form: a minimal time-varying state, by singular value decomposition.

Before row i the past is `u_0 .. u_{i-1}` with `u_j = (x_j, out_j, noise_j)`. H_i, the rows from i on and
columns before i of [P|Q|R], says all that the past still does. H_i = O_i S_i of rank k_i makes `s_i = S_i
u` the smallest state:

    x_{i+1} = C_i s_i + D_i u_i,     s_{i+1} = A_i s_i + B_i u_i

with C_i the first row of O_i. (Ho and Kalman, 1966; Dewilde and van der Veen, 1998, for the time-varying
case.) H_{i+1} is [O_i[1:] S_i | column i], and S_i has orthonormal rows, so the decomposition of the small
matrix [O_i[1:] | column i] gives A_i and B_i at once, and 1,000 rows take no longer than a 1,000 x 9 matrix
each.
"""

from __future__ import annotations

import numpy as np

__all__ = ["realise"]

TOLERANCE = 3e-7
"""Singular values below this fraction of x_next's size are rounding of the scheduler's fp32 coefficients."""


def realise(
    P: np.ndarray, Q: np.ndarray, R: np.ndarray, x_size: np.ndarray, tolerance: float = TOLERANCE
) -> np.ndarray:
    """W of every row, [M, 1+k, 3+k] float64, for responses [M, M].

    `x_size` [M+1] is the size of x before each row and at the end. Rows and columns are scaled by the sizes of
    what they stand for before anything is called small.
    """
    count = len(P)
    # Columns of u_j, each input scaled to size 1; rows scaled to x_next of size 1.
    u_size = np.stack([x_size[:-1], np.ones(count), np.ones(count)], axis=1)  # [M, 3]
    H = np.stack([P, Q, R], axis=2) * u_size / x_size[1:, None, None]  # [M rows, M columns, 3]
    states: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    obs = np.zeros((count, 0))  # O_i; at first nothing is past
    for i in range(count):
        C = obs[:1]
        joined = np.concatenate([obs[1:], H[i + 1 :, i]], axis=1)  # [M-i-1, k_i + 3]
        left, values, right = np.linalg.svd(joined, full_matrices=False)
        k = int((values > tolerance).sum())
        obs = left[:, :k] * values[:k]
        states.append((C, right[:k, : C.shape[1]], right[:k, C.shape[1] :]))
    size = max((A.shape[0] for _, A, _ in states), default=0)
    W = np.zeros((count, 1 + size, 3 + size))
    for i, (C, A, B) in enumerate(states):
        W[i, 0, :3] = P[i, i], Q[i, i], R[i, i]
        W[i, 0, 3 : 3 + C.shape[1]] = C[0] * x_size[i + 1]
        W[i, 1 : 1 + A.shape[0], :3] = B / u_size[i]
        W[i, 1 : 1 + A.shape[0], 3 : 3 + A.shape[1]] = A
    return W
