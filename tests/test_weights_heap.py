"""Freed memory is used again without the system's help, where glibc does as it is told."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping

import pytest
import torch

from rawdiff.weights import devices, heap

HAS_GLIBC = heap._glibc() is not None
needs_glibc = pytest.mark.skipif(not HAS_GLIBC, reason="another C library")

FAULTS = """
import resource, sys, torch
from rawdiff.weights.heap import give_back, keep_freed_memory
device = torch.device(sys.argv[1])
kept = keep_freed_memory(device)
def work():
    for _ in range(10):
        torch.ones(2**24)
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1])
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
held = resident()
give_back()
print(kept, faults, held - resident())
"""


def run(device: str, settings: Mapping[str, str] = {}) -> tuple[bool, int, int]:
    """Whether it was done, page faults of ten blocks of 64 MiB, and the pages that then go back."""
    plain = {name: value for name, value in os.environ.items() if name not in heap._SETTINGS}
    command = [sys.executable, "-c", FAULTS, device]
    done = subprocess.run(command, env={**plain, **settings}, capture_output=True, text=True, check=True)
    kept, faults, back = done.stdout.split()
    return kept == "True", int(faults), int(back)


@needs_glibc
def test_freed_memory_is_used_again() -> None:
    kept, faults, back = run("cpu")
    assert kept
    assert faults < 100
    assert back > 2**14 - 100  # 64 MiB of 4 KiB each


@needs_glibc
def test_without_it_every_block_is_found_anew() -> None:
    kept, faults, _ = run("cuda")
    assert not kept
    assert faults > 200  # as few as 320 of 2 MiB each


@needs_glibc
def test_what_somebody_set_stays() -> None:
    kept, faults, _ = run("cpu", {"MALLOC_MMAP_THRESHOLD_": "1000000"})
    assert not kept
    assert faults > 200  # as few as 320 of 2 MiB each


def test_another_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap, "_glibc", lambda: None)
    assert heap.keep_freed_memory(torch.device("cpu")) is False
    heap.give_back()


def test_memory_is_given_back_before_a_picture_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    free = [0]
    monkeypatch.setattr(devices, "free_bytes", lambda device: free[0])
    monkeypatch.setattr(devices, "give_back", lambda: free.__setitem__(0, 2**40))
    monkeypatch.setattr(devices, "least_bytes", lambda *given, **options: 2**30)
    devices.check_memory(
        {}, {}, (512, 512), batch=1, guided=True, device=torch.device("cpu"), dtype=torch.float32
    )
