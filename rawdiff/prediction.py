"""What the networks say at one evaluation, as the loop sees it, and guidance."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from torch import Tensor

from rawdiff.errors import StaleStep
from rawdiff.nets import controlnet
from rawdiff.nets.controlnet import Residuals
from rawdiff.plan import Row
from rawdiff.probes import NO_PROBE, ProbeLike

__all__ = ["Predict", "Prediction", "guide"]


class Prediction(NamedTuple):
    """What the networks said at one evaluation; every tensor [B,4,h,w] fp32 (fp64 from networks in fp64)."""

    guided: Tensor
    """What the sampler is given."""
    uncond: Tensor | None
    """None where the row has no guidance."""
    cond: Tensor
    residuals: tuple[Residuals | None, ...]
    """What `control` is, as it was computed: [B,...] too where both halves have the same."""

    is_current: Callable[[], bool] = lambda: True
    """Whether the residuals' memory still holds what these networks said."""

    @property
    def control(self) -> tuple[Residuals | None, ...]:
        """Each ControlNet's residuals in the networks' dtype, [B or 2B,...]; None for a net that was not run.

        Raises StaleStep where another run of the same networks has overwritten them.
        """
        if not self.is_current():
            raise StaleStep(
                "the residuals were overwritten by another run of the same networks: keep() them before"
            )
        count = len(self.cond) * (1 if self.uncond is None else 2)
        return tuple(None if found is None else controlnet.repeat(found, count) for found in self.residuals)


class Predict(Protocol):
    """The networks, as the loop sees them."""

    def __call__(self, x: Tensor, row: Row, probe: ProbeLike = NO_PROBE) -> Prediction:
        """`x` [B,4,h,w] fp32, scaled for the networks."""
        ...


def guide(uncond: Tensor, cond: Tensor, row: Row) -> Tensor:
    """Classifier-free guidance, `uncond + g*(cond - uncond)`, [B,4,h,w] fp32; g is each image's own.

    Ho and Salimans 2022, arXiv 2207.12598; rescaled as in Lin et al. 2023, arXiv 2305.08891, section 3.4.
    """
    guided = uncond + row.guidance_device() * (cond - uncond)
    if row.rescale == 0.0:
        return guided
    axes = (1, 2, 3)
    spread = cond.std(dim=axes, keepdim=True) / guided.std(dim=axes, keepdim=True)
    factor = row.rescale_device()
    return factor * (guided * spread) + (1 - factor) * guided
