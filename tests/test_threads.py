"""Threads: as many as there are real cores, unless somebody said otherwise."""

from __future__ import annotations

import pytest
import torch

from rawdiff.weights import devices


def test_real_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", found.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(devices, "_real_cores", lambda: 4)
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    assert devices.use_real_cores(torch.device("cpu")) is None
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert devices.use_real_cores(torch.device("cuda")) is None
    assert found == []
    assert devices.use_real_cores(torch.device("cpu")) == 4
    assert found == [4]
    monkeypatch.setattr(devices, "_real_cores", lambda: None)
    assert devices.use_real_cores(torch.device("cpu")) is None
    assert found == [4]


def test_siblings_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices.os, "sched_getaffinity", lambda process: {0, 1, 2, 3})
    monkeypatch.setattr(devices.Path, "read_text", lambda self, encoding: str(int(self.parts[-3][3:]) % 2))
    assert devices._real_cores() == 2
