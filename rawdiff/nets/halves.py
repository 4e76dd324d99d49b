"""The halves of guidance, [uncond, cond], and tensors that stand for both because they are still the same in both.

Beside a tensor [2B,...] may stand one [B,...]: the same rows for either half. Nothing else is needed to compute
a network's beginning once: its x comes in as [B,...], and grows to [2B,...] where it first meets the text.
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["plus", "spread"]


def spread(x: Tensor, count: int) -> Tensor:
    """`x` [n,...] repeated to [count,...], a multiple of n; a view where it can be one."""
    return x if len(x) == count else x.expand(count // len(x), *x.shape).flatten(0, 1)


def plus(a: Tensor, b: Tensor) -> Tensor:
    """`a + b`, [N,...], where one of them may stand for more than its own rows; it is not copied for that."""
    small, large = (a, b) if len(a) < len(b) else (b, a)
    if len(small) == len(large) or len(small) == 1:
        return a + b
    return (large.view(-1, len(small), *large.shape[1:]) + small).flatten(0, 1)
