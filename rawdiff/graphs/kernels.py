"""Which of torch's attention kernels, for each shape: cuDNN's, say, wins at some head sizes and loses at others."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from rawdiff.graphs.choices import Choices, Clock, Keeper, kernel_clock

__all__ = ["Kernels"]

OTHERS = (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)


class Kernels:
    """Attention of [N,heads,L,d] by the kernel that is fastest at these shapes, measured when they are first seen."""

    def __init__(
        self,
        clock: Clock = kernel_clock,
        others: tuple[SDPBackend, ...] = OTHERS,
        *,
        keeper: Keeper | None = None,
    ) -> None:
        self._choices = Choices(clock, keeper=keeper, name="attention")
        self._others = others

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """`scaled_dot_product_attention`; nothing is measured at shapes that are known."""

        def attend(backend: SDPBackend | None) -> Tensor:
            with _only(backend):
                return scaled_dot_product_attention(query, key, value)

        question = (tuple(query.shape), tuple(key.shape), query.dtype)
        options = {backend: (lambda b=backend: attend(b)) for backend in (None, *self._others)}
        return attend(self._choices.pick(question, options))


def _only(backend: SDPBackend | None) -> AbstractContextManager[None]:
    return nullcontext() if backend is None else sdpa_kernel(backend)
