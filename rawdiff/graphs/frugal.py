"""The runner for little memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any
from weakref import WeakSet

import torch
from torch import nn

from rawdiff.graphs.runner import Runner

__all__ = ["Frugal"]

Move = Callable[[nn.Module, torch.device], Any]

HOST = torch.device("cpu")


def _move(net: nn.Module, device: torch.device) -> None:
    net.to(device)


class Frugal(Runner):
    """One stage of a run on the device at a time (words, then the UNet and its nets, then the VAE), the rest beside it.

    Guidance's halves are run in turn, which changes nothing but the last bits, and the VAE decodes in tiles where a
    picture is larger than one, which is approximate.
    """

    frugal = True

    def __init__(self, device: torch.device, *, move: Move = _move) -> None:
        super().__init__()
        self._device, self._move = device, move
        self._known: WeakSet[nn.Module] = WeakSet()
        self._here: WeakSet[nn.Module] = WeakSet()

    def keep(self, nets: Iterable[nn.Module]) -> None:
        """Take charge of networks, wherever they are, and put them away."""
        for net in nets:
            self._known.add(net)
            self._here.discard(net)
            self._move(net, HOST)

    def stage(self, nets: Iterable[nn.Module]) -> None:
        """Have these on the device, and no other."""
        wanted = set(nets)
        for net in self._known - wanted:
            if net in self._here:
                self._move(net, HOST)
                self._here.discard(net)
        for net in wanted:
            if net not in self._here:
                self._known.add(net)
                self._here.add(net)  # before: a move that fails half way leaves layers there
                self._move(net, self._device)
