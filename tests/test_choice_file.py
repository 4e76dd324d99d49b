"""What a GPU's choices are kept in: a file that may be missing, broken or not writable without any harm."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from rawdiff.choice_file import ChoiceFile
from rawdiff.graphs import EAGER, Runner
from rawdiff.openvino import choose_runner

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where they are kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A GPU")
    return tmp_path / "rawdiff" / "choices.json"


def test_another_process_finds_them(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ChoiceFile(CUDA).get("a") is None
    for question, answer in (("a", "1"), ("b", "2"), ("a", "3")):
        ChoiceFile(CUDA).put(question, answer)
    assert (ChoiceFile(CUDA).get("a"), ChoiceFile(CUDA).get("b")) == ("3", "2")
    assert [file.name for file in path.parent.iterdir()] == [path.name]  # and no temporary file
    with monkeypatch.context() as other:
        other.setattr(torch, "__version__", "9.0")
        assert ChoiceFile(CUDA).get("a") is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Another")
    assert ChoiceFile(CUDA).get("a") is None
    ChoiceFile(CUDA).put("a", "4")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A GPU")
    assert ChoiceFile(CUDA).get("a") == "3"


@pytest.mark.parametrize(
    "broken",
    [b"", b"{", b"\xff\xfe", b"[]", b"null", b"[" * 100_000, b'{"M": 1}', b'{"M": []}', b'{"M": {"a": 1}}'],
)
def test_a_broken_file_is_none(path: Path, broken: bytes) -> None:
    choices = ChoiceFile(CUDA)
    path.parent.mkdir()
    path.write_bytes(broken.replace(b"M", choices._machine().encode()))
    assert choices.get("a") is None
    choices.put("a", "1")
    assert choices.get("a") == "1"


def test_what_cannot_be_written_is_not_kept(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.parent.write_text("a file where the folder would be")
    ChoiceFile(CUDA).put("a", "1")
    assert ChoiceFile(CUDA).get("a") is None
    path.parent.unlink()
    path.mkdir(parents=True)
    ChoiceFile(CUDA).put("a", "1")
    assert ChoiceFile(CUDA).get("a") is None


@pytest.mark.skipif(os.name == "nt", reason="homes are told otherwise there")
def test_a_user_without_a_home(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(uid: int) -> Any:
        raise KeyError(uid)

    monkeypatch.setattr("pwd.getpwuid", nobody)
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name)
    ChoiceFile(CUDA).put("a", "1")
    assert ChoiceFile(CUDA).get("a") is None


def test_writers_and_readers_at_once(path: Path) -> None:
    """What is read is whole, whoever writes meanwhile."""

    def work(k: int) -> None:
        for n in range(10):
            ChoiceFile(CUDA).put(f"{k}", f"{n}" * 1000)
            assert ChoiceFile(CUDA)._read() != {}

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))


def test_they_are_kept_for_a_gpu_alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_runner(None, None, CPU, torch.float32) is EAGER
    given: list[Any] = []

    def make_runner(*place: Any, keeper: Any = None) -> Runner:
        given.append(keeper)
        return EAGER

    monkeypatch.setattr("rawdiff.openvino.choose.make_runner", make_runner)
    choose_runner(None, None, CPU, torch.float32)
    choose_runner(None, None, CUDA, torch.float16)
    assert given[0] is None
    assert isinstance(given[1], ChoiceFile)
    assert not path.parent.exists()
