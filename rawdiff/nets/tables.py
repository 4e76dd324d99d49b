"""What of a network's work no step changes, computed from its weights once: the table of times, the keys and values.

They follow the weights that they were computed from (`Derived`): `Bound.refresh` sees a change made in place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rawdiff.errors import UsageError
from rawdiff.nets import added, attention, blocks, resnet
from rawdiff.nets.added import Added
from rawdiff.nets.derived import Derived
from rawdiff.nets.exact import Exact
from rawdiff.nets.memory import telling_out_of_memory

__all__ = ["BOTH", "COND", "UNCOND", "Bound", "Telling", "TimeTable", "keys_and_values", "taken"]

UNCOND, COND, BOTH = 0, 1, 2
"""Which half of guidance a network is run on."""


def keys_and_values(net: Any, context: Tensor) -> attention.KeyValues:
    """The keys and values of a context [N,T,D] in every cross attention of a UNet or ControlNet."""
    return attention.KeyValues({a: attention.project(a, context) for a in attention.cross_attentions(net)})


def _weights(layers: Sequence[nn.Module]) -> list[Tensor]:
    return [weight for layer in layers for weight in layer.parameters()]


class Telling(NamedTuple):
    """A text as a network is given it, for one half or for both."""

    text: Tensor
    """[N,T,D]"""
    told: Added | None = None
    """Pooled text and sizes, for a network that takes them."""


Tellings = Sequence[tuple[Telling | None, Telling]]
"""Each context for both halves of guidance, [2B,...] or None, and for cond alone, [B,...]."""


def taken(net: Any, tellings: Tellings) -> Tellings:
    """What of them a network takes; UsageError where it is told more than there is."""
    if not added.takes(net):
        return [(None if both is None else Telling(both.text), Telling(cond.text)) for both, cond in tellings]
    if any(one is not None and one.told is None for pair in tellings for one in pair):
        raise UsageError("this network is told pooled text and sizes (SDXL): the conditions have none")
    return tellings


class TimeTable:
    """Every ResNet's projection of the time, for all timesteps of a run: [timesteps, 1 or N, sum of C], a row each.

    N rows each where a network is `told` more with the time, one for each of the N texts, or where it is told each
    image's guidance as `waves` [N,P].
    """

    def __init__(
        self,
        net: Any,
        times: Mapping[float, Tensor],
        told: Added | None = None,
        waves: Tensor | None = None,
    ) -> None:
        """`times`: each timestep as the host knows it, and as the device does ([1] fp32)."""
        self._net, self._told, self._waves = net, told, waves
        self._resnets = [m for m in net.modules() if type(m).__name__ == "ResnetBlock2D"]
        first = [net.time_embedding] if told is None else [net.time_embedding, net.add_embedding]
        self._sources = _weights([*first, *(block.time_emb_proj for block in self._resnets)])
        self._rows: dict[float, resnet.Shifts] = {}
        self._tables: list[Derived] = []
        self._add(times)

    def row(self, t: float, t_device: Tensor) -> resnet.Shifts:
        """The row of a timestep; computed now where the run did not have it (a sampler begun anew, say)."""
        if t not in self._rows:
            self._add({t: t_device})
        return self._rows[t]

    def _add(self, times: Mapping[float, Tensor]) -> None:
        t, waves = torch.cat(list(times.values())), self._waves
        if waves is not None:  # every timestep for every image
            t, waves = t.repeat_interleave(len(waves)), waves.repeat(len(times), 1)

        def compute() -> list[Tensor]:
            emb = blocks.embed_time(self._net, t, t.to(self._net.conv_in.weight.dtype), None, waves)
            if self._told is not None:  # [times,1 or N,E] + [N,E]
                emb = emb.view(len(times), -1, emb.shape[1]) + added.embed(self._net, self._told)
                emb = emb.flatten(0, 1)
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
        tellings: Tellings,
        times: Mapping[float, Tensor],
        exact: Exact,
        waves: Tensor | None = None,
    ) -> None:
        """`waves` [B,P]: each image's guidance, for a network that is told it."""
        self.net, self.waves = net, waves
        self._tellings = tellings
        self._texts: list[tuple[attention.Text | None, attention.Text, attention.Text | None]] = []
        self._derived: list[Derived] = []
        with telling_out_of_memory("the text's keys and values", net.conv_in.weight.device):
            for both, cond in tellings:
                texts = None if both is None else both.text, cond.text
                self._texts.append(self._held(*texts) if exact.kv else _halves(*texts))
            # Where nothing is told with the time, all contexts have one table.
            told = [(cond if both is None else both).told for both, cond in tellings]
            own = told if any(one is not None for one in told) else told[:1]
            self._times = [TimeTable(net, times, one, waves) for one in own] if exact.time else []

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

    def time(self, t: float, t_device: Tensor, k: int, half: int) -> Tensor | resnet.Shifts:
        """A timestep as its row of the table of context `k`, for UNCOND, COND or BOTH; or as itself ([1] fp32)."""
        if not self._times:
            return t_device
        row = self._times[min(k, len(self._times) - 1)].row(t, t_device)
        both, cond = self._tellings[k]
        if cond.told is None or both is None or half == BOTH:
            return row
        return row.rows(_rows(len(cond.text), half))

    def told(self, k: int, half: int) -> Added | None:
        """What is told beside a timestep as itself; None where there is nothing, or a row holds it."""
        both, cond = self._tellings[k]
        whole = (cond if both is None else both).told
        if self._times or whole is None:
            return None
        if both is None or half == BOTH:
            return whole
        return Added(*(part[_rows(len(cond.text), half)] for part in whole))

    def refresh(self) -> None:
        """Follow the weights, where they were changed in place."""
        for held in self._derived:
            held.refresh()
        for table in self._times:
            table.refresh()


def _rows(count: int, half: int) -> slice:
    """Where one half of `count` texts stands in what is told to both."""
    return slice(count) if half == UNCOND else slice(count, None)


def _halves(both: Tensor | None, cond: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None]:
    return None if both is None else both[: len(both) - len(cond)], cond, both
