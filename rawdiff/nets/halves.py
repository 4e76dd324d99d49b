"""The halves of guidance, [uncond, cond], and tensors that stand for both because they are still the same in both.

Beside a tensor [2B,...] may stand one [B,...]: the same rows for either half. Nothing else is needed to compute
a network's beginning once: its x comes in as [B,...], and grows to [2B,...] where it first meets the text.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["add_into", "plus", "spread"]


def spread(x: Tensor, count: int) -> Tensor:
    """`x` [n,...] repeated to [count,...], a multiple of n; a view where it can be one."""
    own = x.shape[0]  # for which torch, asked for len(), takes as long as for a small sum
    return x if own == count else x.expand(count // own, *x.shape).flatten(0, 1)


def add_into(totals: Sequence[Tensor], terms: Sequence[Tensor]) -> list[Tensor]:
    """Each `total + term`, in the memory of the totals where they have the rows for it, and in one kernel."""
    if all(total.shape[0] >= term.shape[0] for total, term in zip(totals, terms, strict=True)):
        views = [t if t.shape[0] == 1 else spread(t, a.shape[0]) for a, t in zip(totals, terms, strict=True)]
        torch._foreach_add_(list(totals), views)
        return list(totals)
    return [plus(a, t) for a, t in zip(totals, terms, strict=True)]


def plus(a: Tensor, b: Tensor) -> Tensor:
    """`a + b`, [N,...], where one of them may stand for more than its own rows; it is not copied for that."""
    own, others = a.shape[0], b.shape[0]
    if own == others or own == 1 or others == 1:
        return a + b
    small, large = (a, b) if own < others else (b, a)
    return (large.view(-1, small.shape[0], *large.shape[1:]) + small).flatten(0, 1)
