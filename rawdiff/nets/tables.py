"""What of a network's work no step changes, computed from its weights once: the table of times, the keys and values.

They follow the weights that they were computed from (`Derived`): `Bound.refresh` sees a change made in place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rawdiff.nets import attention, blocks, resnet
from rawdiff.nets.derived import Derived
from rawdiff.nets.exact import Exact
from rawdiff.nets.memory import telling_out_of_memory

__all__ = ["BOTH", "COND", "UNCOND", "Bound", "TimeTable", "keys_and_values"]

UNCOND, COND, BOTH = 0, 1, 2
"""Which half of guidance a network is run on."""


def keys_and_values(net: Any, context: Tensor) -> attention.KeyValues:
    """The keys and values of a context [N,T,D] in every cross attention of a UNet or ControlNet."""
    return attention.KeyValues({a: attention.project(a, context) for a in attention.cross_attentions(net)})


def _weights(layers: Sequence[nn.Module]) -> list[Tensor]:
    return [weight for layer in layers for weight in layer.parameters()]


class TimeTable:
    """Every ResNet's projection of the time, for all timesteps of a run: [timesteps, 1 or B, sum of C], a row each."""

    def __init__(self, net: Any, times: Mapping[float, Tensor], told: Tensor | None = None) -> None:
        """`times`: each timestep as the host knows it, and as the device does ([1] fp32).

        `told` [B,P]: the guidance of each image, for a network that is told it; a row is then of B images.
        """
        self._net, self._told = net, told
        self._resnets = [m for m in net.modules() if type(m).__name__ == "ResnetBlock2D"]
        self._sources = _weights([net.time_embedding, *(block.time_emb_proj for block in self._resnets)])
        self._rows: dict[float, resnet.Shifts] = {}
        self._tables: list[Derived] = []
        self._add(times)

    def row(self, t: float, t_device: Tensor) -> resnet.Shifts:
        """The row of a timestep; computed now where the run did not have it (a sampler begun anew, say)."""
        if t not in self._rows:
            self._add({t: t_device})
        return self._rows[t]

    def _add(self, times: Mapping[float, Tensor]) -> None:
        t, told = torch.cat(list(times.values())), self._told
        if told is not None:  # every timestep for every image
            t, told = t.repeat_interleave(len(told)), told.repeat(len(times), 1)

        def compute() -> list[Tensor]:
            emb = blocks.embed_time(self._net, t, t.to(self._net.conv_in.weight.dtype), told)
            rows = torch.cat([resnet.project(block, emb).flatten(1) for block in self._resnets], dim=1)
            return [rows.view(len(times), -1, rows.shape[1])]

        table = Derived(self._sources, compute)
        self._tables.append(table)
        (packed,) = table.tensors  # a timestep is one piece of memory, to be copied at once
        widths = [resnet.width(block) for block in self._resnets]
        form = tuple(zip(self._resnets, widths, strict=True))
        for k, t_host in enumerate(times):
            self._rows[t_host] = resnet.Shifts(form, packed[k])

    def refresh(self) -> None:
        """Follow the weights."""
        for table in self._tables:
            table.refresh()


class Bound:
    """A network with a run's texts and timesteps: as they are, or as what the network makes of them."""

    def __init__(
        self,
        net: Any,
        texts: Sequence[tuple[Tensor | None, Tensor]],
        times: Mapping[float, Tensor],
        exact: Exact,
        told: Tensor | None = None,
    ) -> None:
        """`texts`: each context for both halves of guidance, [2B,T,D] or None, and for cond alone, [B,T,D].

        `told` [B,P]: each image's guidance, for a network that is told it.
        """
        self.net, self.told = net, told
        self._texts: list[tuple[attention.Text | None, attention.Text, attention.Text | None]] = []
        self._derived: list[Derived] = []
        with telling_out_of_memory("the text's keys and values", net.conv_in.weight.device):
            for both, cond in texts:
                self._texts.append(self._held(both, cond) if exact.kv else _halves(both, cond))
            self._times = TimeTable(net, times, told) if exact.time else None

    def _held(
        self, both: Tensor | None, cond: Tensor
    ) -> tuple[attention.Text | None, attention.Text, attention.Text | None]:
        looking = list(attention.cross_attentions(self.net))
        sources = _weights([layer for a in looking for layer in (a.to_k, a.to_v)])
        context = cond if both is None else both
        held = Derived(sources, lambda: keys_and_values(self.net, context).tensors())
        self._derived.append(held)
        pairs = attention.KeyValues.rebuilt(tuple(looking), held.tensors)
        if both is None:
            return None, pairs, None
        uncond, last = pairs.halves()
        return uncond, last, pairs

    def text(self, k: int, half: int) -> attention.Text:
        """Context `k` for UNCOND, COND or BOTH."""
        found = self._texts[k][half]
        assert found is not None, "a guided row needs an uncond context"
        return found

    def time(self, t: float, t_device: Tensor) -> Tensor | resnet.Shifts:
        """A timestep as its row of the table, or as itself ([1] fp32)."""
        return t_device if self._times is None else self._times.row(t, t_device)

    def refresh(self) -> None:
        """Follow the weights, where they were changed in place."""
        for held in self._derived:
            held.refresh()
        if self._times is not None:
            self._times.refresh()


def _halves(both: Tensor | None, cond: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None]:
    return None if both is None else both[: len(both) - len(cond)], cond, both
