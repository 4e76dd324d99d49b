"""What of a network's work no step changes, computed from its weights once: the table of times, the keys and values.

They are as good as the weights that they were computed from: whoever changes those puts them back before the run goes
on (`predict.prepare`'s `hold`), or prepares it again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from rawdiff.nets import attention, blocks, resnet
from rawdiff.nets.exact import Exact
from rawdiff.nets.memory import telling_out_of_memory

__all__ = ["Bound", "TimeTable", "keys_and_values"]


def keys_and_values(net: Any, context: Tensor) -> attention.KeyValues:
    """The keys and values of a context [N,T,D] in every cross attention of a UNet or ControlNet."""
    return attention.KeyValues({a: attention.project(a, context) for a in attention.cross_attentions(net)})


class TimeTable:
    """Every ResNet's projection of the time, for all timesteps of a run: [timesteps, sum of C], a row each."""

    def __init__(self, net: Any, times: Mapping[float, Tensor]) -> None:
        """`times`: each timestep as the host knows it, and as the device does ([1] fp32)."""
        self._net = net
        self._resnets = [m for m in net.modules() if type(m).__name__ == "ResnetBlock2D"]
        self._rows: dict[float, resnet.Shifts] = {}
        self._add(times)

    def row(self, t: float, t_device: Tensor) -> resnet.Shifts:
        """The row of a timestep; computed now where the run did not have it (a sampler begun anew, say)."""
        if t not in self._rows:
            self._add({t: t_device})
        return self._rows[t]

    def _add(self, times: Mapping[float, Tensor]) -> None:
        t = torch.cat(list(times.values()))
        emb = blocks.embed_time(self._net, t, t.to(self._net.conv_in.weight.dtype))
        parts = [resnet.project(block, emb).flatten(1) for block in self._resnets]
        packed = torch.cat(parts, dim=1)  # a timestep is one piece of memory, to be copied at once
        ends = list(accumulate(part.shape[1] for part in parts))
        columns = packed[:, :, None, None].tensor_split(ends[:-1], dim=1)
        for k, t_host in enumerate(times):
            shifts = (column[k : k + 1] for column in columns)
            self._rows[t_host] = resnet.Shifts(dict(zip(self._resnets, shifts, strict=True)))


class Bound:
    """A network with a run's texts and timesteps: as they are, or as what the network makes of them."""

    def __init__(
        self,
        net: Any,
        texts: Sequence[tuple[Tensor | None, Tensor]],
        times: Mapping[float, Tensor],
        exact: Exact,
    ) -> None:
        """`texts`: each context for both halves of guidance, [2B,T,D] or None, and for cond alone, [B,T,D]."""
        self.net = net
        self._texts: list[tuple[attention.Text | None, attention.Text]] = []
        with telling_out_of_memory("the text's keys and values", net.conv_in.weight.device):
            for both, cond in texts:
                self._texts.append(self._held(both, cond) if exact.kv else (both, cond))
            self._times = TimeTable(net, times) if exact.time else None

    def _held(self, both: Tensor | None, cond: Tensor) -> tuple[attention.Text | None, attention.Text]:
        if both is None:
            return None, keys_and_values(self.net, cond)
        pairs = keys_and_values(self.net, both)
        return pairs, pairs.last(len(cond))

    def text(self, k: int, both: bool) -> attention.Text:
        """Context `k`, for both halves or for cond alone."""
        pairs, cond = self._texts[k]
        if not both:
            return cond
        assert pairs is not None, "a guided row needs an uncond context"
        return pairs

    def time(self, t: float, t_device: Tensor) -> Tensor | resnet.Shifts:
        """A timestep as its row of the table, or as itself ([1] fp32)."""
        return t_device if self._times is None else self._times.row(t, t_device)
