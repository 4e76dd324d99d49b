"""Memory for a network's weights at once: every tensor its own, aligned, and let go of with the last of them."""

from __future__ import annotations

import errno
import gc
import mmap
import weakref
from pathlib import Path

import pytest
import torch

from rawdiff.weights import room
from rawdiff.weights.room import room_for


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


def test_memory_goes_back_with_the_last_tensor() -> None:
    def held_bytes() -> int:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))

    size = 2**26
    held = room_for({"a": (size,), "b": (size,)}, torch.uint8)
    for tensor in held.values():
        tensor.fill_(1)
    del tensor
    before = held_bytes()
    held.clear()
    gc.collect()
    assert before - held_bytes() > 1.5 * size


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
