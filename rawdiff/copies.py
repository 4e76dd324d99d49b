"""The memory that copies of weights take beside the weights, told before anything is loaded for it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch

from rawdiff import weights
from rawdiff.extras import AddedLora
from rawdiff.graphs import Runner

__all__ = ["Planned", "laid_out_bytes", "pristine_bytes"]


class Planned(NamedTuple):
    """A network that is not loaded: its config alone is read."""

    source: Any
    """What `weights.open_source` opens; of a UNet it is open already."""
    part: str
    offline: bool = False

    def opened(self) -> weights.Source:
        """Where it is; raises WeightsError, HubError, UsageError."""
        return weights.open_source(self.source, offline=self.offline, what="ControlNet")


def laid_out_bytes(networks: Iterable[Any], runner: Runner, dtype: torch.dtype) -> int:
    """Bytes of the weights that `runner` would lay out anew to run these modules, or ones Planned in this dtype.

    A module counts once, and not where it is laid out already; each one Planned is to be a module of its own. Raises
    WeightsError, HubError for one Planned.
    """
    if runner.made_with is None:
        return 0
    every = list(networks)
    loaded = {id(one): one for one in every if not isinstance(one, Planned)}
    more = sum(
        weights.planned_bytes(one.opened(), one.part, dtype) for one in every if isinstance(one, Planned)
    )
    return more + runner.more_bytes(loaded.values())


def pristine_bytes(layers: weights.Layers, added: Sequence[AddedLora], dtype: torch.dtype) -> int:
    """Bytes of what LoRAs change, as it was; raises WeightsError for one that does not fit."""
    changed = {layer for one in added if one.scale for layer in layers.match(one.lora)}
    return sum(layer.weight.numel() for layer in changed) * dtype.itemsize
