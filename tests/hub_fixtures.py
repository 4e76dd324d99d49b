"""A small hub that serves a small model, and clients of it: fixtures, as a plugin of the tests that name it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rawdiff import weights
from rawdiff.weights import snapshot
from tests.small_hub import SmallHub
from tests.small_models import small_folder

REPOSITORY = "owner/small"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_folder(tmp_path_factory.mktemp("models") / "small", nets=("depth",))


@pytest.fixture
def served(pristine: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallHub]:
    snapshot.forget()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with SmallHub() as hub:
        hub.add(REPOSITORY, pristine)
        yield hub
    snapshot.forget()


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def reach(served: SmallHub, tmp_path: Path, lines: list[str]) -> Callable[..., weights.Hub]:
    def make(**options: Any) -> weights.Hub:
        given = {"endpoint": served.url, "cache": tmp_path / "cache", "token": False, "wait_s": 0.0}
        return weights.Hub(**{**given, "say": lines.append, **options})

    return make
