"""Memory for a network's weights at once: every tensor its own, aligned, and let go of with the last of them."""

from __future__ import annotations

import errno
import gc
import mmap
import weakref
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from rawdiff.weights import room
from rawdiff.weights.room import come_by, room_for


def test_tensors_of_one_stretch_do_not_touch_each_other() -> None:
    shapes = {"weight": (3, 5), "bias": (7,), "scalar": (), "nothing": (0, 4)}
    held = room_for(shapes, torch.bfloat16)
    for number, tensor in enumerate(held.values()):
        tensor.fill_(number + 1)
    for number, (name, tensor) in enumerate(held.items()):
        assert tensor.shape == shapes[name]
        assert tensor.dtype == torch.bfloat16
        assert tensor.numel() == 0 or tensor.data_ptr() % 64 == 0
        assert bool((tensor == number + 1).all())
        assert tensor.untyped_storage().nbytes() == 2 * tensor.numel()  # safetensors writes storages


def test_one_tensor_outlives_the_others() -> None:
    held = room_for({"a": (1000,), "b": (1000,)}, torch.float32)
    kept = held["b"].fill_(2.0)
    del held
    gc.collect()
    assert float(kept.sum()) == 2000.0


def _held_bytes() -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


def test_memory_goes_back_with_the_last_tensor() -> None:
    size = 2**26
    held = room_for({"a": (size,), "b": (size,)}, torch.uint8)
    for tensor in held.values():
        tensor.fill_(1)
    del tensor
    before = _held_bytes()
    held.clear()
    gc.collect()
    assert before - _held_bytes() > 1.5 * size


def test_without_huge_pages_memory_is_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(room.mmap, "MADV_HUGEPAGE", raising=False)
    held = room_for({"a": (4,)}, torch.float32)
    assert held["a"].shape == (4,)
    reference = weakref.ref(held["a"])
    del held
    assert reference() is None


def test_a_kernel_without_huge_pages_gives_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(mmap.mmap):
        def madvise(self, *given: int) -> None:
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(room.mmap, "mmap", Refusing)
    assert float(room_for({"a": (1000,)}, torch.float32)["a"].fill_(2.0).sum()) == 2000.0


def test_what_the_heap_keeps_goes_back_first(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(room, "give_back", lambda: done.append("given back"))
    room_for({"a": (1000,)}, torch.float32)
    assert done == ["given back"]


LARGE = room._WORTH_TRYING


class Noted(mmap.mmap):
    """Says what it was advised, and of how much."""

    advised: ClassVar[list[tuple[int, ...]]] = []

    def madvise(self, *given: int) -> None:
        self.advised.append(given)
        super().madvise(*given)


@pytest.fixture
def advised(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    monkeypatch.setattr(room.mmap, "mmap", Noted)
    Noted.advised = []
    return Noted.advised


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="of Linux alone")
@pytest.mark.parametrize("slow", ["huge", "small", "neither is there"])
def test_pages_are_of_the_kind_that_comes_sooner(
    monkeypatch: pytest.MonkeyPatch, advised: list[tuple[int, ...]], slow: str
) -> None:
    clock = [0.0]

    def populate(address: int, size_bytes: int) -> bool:
        is_huge = advised[-1][0] == mmap.MADV_HUGEPAGE
        assert (address % room._HUGE, size_bytes) == (0, room._HUGE)
        clock[0] += 2.0 if is_huge == (slow == "huge") else 1.0
        return slow != "neither is there"

    monkeypatch.setattr(room, "_populate", populate)
    monkeypatch.setattr(room.time, "perf_counter", lambda: clock[0])
    held = room_for({"a": (LARGE,)}, torch.uint8)
    whole = [given for given in advised if given == (mmap.MADV_HUGEPAGE,)]
    assert len(whole) == (0 if slow == "huge" else 1)
    assert ((mmap.MADV_NOHUGEPAGE,) in advised) == (slow == "huge")
    tried = [given for given in advised if len(given) == 3]
    assert len(tried) == (1 if slow == "neither is there" else 6)
    assert len({at for _, at, _ in tried}) == len(tried)
    assert held["a"].numel() == LARGE


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="of Linux alone")
def test_little_memory_is_not_tried(advised: list[tuple[int, ...]]) -> None:
    room_for({"a": (LARGE - 64,)}, torch.uint8)
    assert advised == [(mmap.MADV_HUGEPAGE,)]


def test_memory_that_was_asked_for_is_there_and_nothing_beside_it_changes() -> None:
    size = 2**26
    held = room_for({"before": (64,), "a": (size,), "after": (64,)}, torch.uint8)
    held["before"].fill_(7)
    held["after"].fill_(9)
    before = _held_bytes()
    come_by(held["a"])
    if room._populate(held["a"].data_ptr(), 4096):  # else a kernel before 5.14
        assert _held_bytes() - before > 0.9 * size
    assert not held["a"].any()
    assert bool((held["before"] == 7).all())
    assert bool((held["after"] == 9).all())


def test_without_a_way_to_ask_for_memory_it_comes_when_it_is_written_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(room, "_madvise", lambda: None)
    held = room_for({"a": (LARGE,)}, torch.uint8)["a"]
    come_by(held)
    assert int(held[:1000].fill_(1).sum()) == 1000
