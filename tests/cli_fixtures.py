"""A small model and an empty folder to stand in: fixtures, as a plugin of the tests of the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.small_models import small_folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_folder(tmp_path_factory.mktemp("model") / "small", nets=("depth",))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path) -> Path:
    """An empty folder to stand in, and the small model as the default."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAWDIFF_MODEL", str(model))
    return tmp_path
