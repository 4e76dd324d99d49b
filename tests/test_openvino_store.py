"""What backend openvino keeps on disk, and what it refuses; neither needs the package."""

from __future__ import annotations

import importlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

import rawdiff
from rawdiff.errors import ResourceError, UsageError
from rawdiff.graphs import EAGER
from rawdiff.jobs.health import check_all
from rawdiff.openvino import Store, cache_folder, choose_runner, package
from tests.cli_run import rawdiff as command

CPU, FP32 = torch.device("cpu"), torch.float32


def test_both_parts_come_back(tmp_path: Path) -> None:
    store = Store(tmp_path / "deep" / "folder")
    assert store.get("a") is None
    assert store.sizes() == {}
    store.put("a", b"<net/>", b"\0\1\2")
    store.put("b", b"", b"")
    assert store.get("a") == (b"<net/>", b"\0\1\2")
    assert store.get("b") == (b"", b"")
    store.put("a", b"<other/>", b"")
    assert store.get("a") == (b"<other/>", b"")
    assert len(list(store.folder.iterdir())) == 2  # and no temporary file


def test_every_flipped_byte_and_every_cut_is_seen(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put("a", b"<net/>", b"\0\1\2")
    (path,) = store.sizes()
    whole = path.read_bytes()
    for k in range(len(whole)):
        for damaged in (whole[:k], whole[:k] + bytes([whole[k] ^ 1]) + whole[k + 1 :]):
            path.write_bytes(damaged)
            assert store.get("a") is None
    path.write_bytes(whole)
    path.rename(path.with_stem("b"))
    assert store.get("b") is None  # a name that is not its own
    assert store.get("a") is None


def test_the_least_recently_used_goes(tmp_path: Path) -> None:
    store = Store(tmp_path, limit_bytes=3 * 900)
    for k, key in enumerate("abc"):
        store.put(key, bytes(500), bytes(300))
        os.utime(next(p for p in store.sizes() if p.stem == key), (k, k))
    assert store.get("a") is not None  # used now
    store.put("d", bytes(500), bytes(300))
    assert {path.stem for path in store.sizes()} == {"a", "c", "d"}
    store.put("large", bytes(9000), b"")  # too large by itself: it is the only one then
    assert [path.stem for path in store.sizes()] == ["large"]


def test_writers_and_readers_at_once(tmp_path: Path) -> None:
    """What is read is whole, whoever writes meanwhile."""
    texts = [bytes([k]) * 20_000 for k in range(4)]

    def work(k: int) -> int:
        store, seen = Store(tmp_path), 0
        for _ in range(15):
            store.put("a", texts[k], texts[k][:7])
            found = store.get("a")
            assert found is not None
            assert found[0] in texts
            assert found[1] == found[0][:7]
            seen += 1
        return seen

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(work, range(4))) == 60


def test_the_platforms_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "rawdiff" / "openvino"
    for nothing in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", nothing)
        assert cache_folder().is_absolute()
        assert cache_folder().parts[-2:] == ("rawdiff", "openvino")


@pytest.mark.skipif(os.name == "nt", reason="homes are told otherwise there")
def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As in a container: told in a line, and by doctor, unless another folder is named."""

    def nobody(uid: int) -> Any:
        raise KeyError(uid)

    monkeypatch.setattr("pwd.getpwuid", nobody)
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("rawdiff.jobs.health._model", lambda *given: iter(()))
    with pytest.raises(ResourceError, match=r"no home folder .* set XDG_CACHE_HOME to a folder"):
        Store()
    [found] = [finding for finding in check_all(None, tmp_path) if finding.name == "openvino"]
    assert "set XDG_CACHE_HOME" in found.text
    assert found.error is None
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Store().folder == tmp_path / "rawdiff" / "openvino"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("onnx", None, CPU, FP32), "backend 'onnx': expected torch or openvino"),
        (("openvino", "graph", CPU, FP32), "speed graph with backend openvino"),
        (("openvino", "eager", CPU, FP32), "speed eager with backend openvino"),
        (("openvino", None, CPU, FP32, "low"), "memory low with backend openvino"),
        (("openvino", None, CPU, FP32, "tiny"), "memory 'tiny': expected normal or low"),
        (
            ("openvino", None, torch.device("cuda"), FP32),
            "runs on the CPU, and this runs on cuda: take device cpu",
        ),
        (("openvino", None, CPU, torch.float64), "with dtype float64: expected fp32 or bf16"),
    ],
)
def test_what_does_not_go_together(given: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        choose_runner(*given)


def test_torch_is_what_it_was() -> None:
    assert choose_runner(None, None, CPU, FP32) is choose_runner("torch", "eager", CPU, FP32) is EAGER
    with pytest.raises(UsageError, match="speed graph: CUDA graphs need a GPU"):
        choose_runner("torch", "graph", CPU, FP32)


def test_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, before anything is loaded."""
    found = importlib.import_module

    def missing(name: str, *given: Any, **more: Any) -> Any:
        if name.split(".")[0] == "openvino":
            raise ModuleNotFoundError(name)
        return found(name, *given, **more)

    monkeypatch.setattr(package.importlib, "import_module", missing)
    line = "backend openvino needs openvino, which is not installed: pip install 'rawdiff[openvino]'"
    with pytest.raises(UsageError) as error:
        rawdiff.load(backend="openvino")
    assert str(error.value) == line
    done = command("gen", "-p", "a cube", "--backend", "openvino", "--device", "cpu")
    assert done.code == 2
    assert done.err.splitlines()[-1] == f"error: {line}"


def test_doctor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("rawdiff.jobs.health._model", lambda *given: iter(()))
    Store().put("a", bytes(2**20), b"")

    def told() -> Any:
        return next(finding for finding in check_all(None, tmp_path) if finding.name == "openvino")

    monkeypatch.setattr("rawdiff.jobs.health.openvino.version", lambda: "2026.4.1")
    assert told().state == "ok"
    folder = tmp_path / "rawdiff" / "openvino"
    assert told().text == f"2026.4.1, for --backend openvino; 1 converted networks, 1.0 MiB in {folder}"
    monkeypatch.setattr("rawdiff.jobs.health.openvino.version", lambda: None)
    assert told().state == "note"
    assert "pip install 'rawdiff[openvino]'" in told().text
