"""Writing: the order of system calls, taken names, full and read-only disks, kills."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rawdiff.errors import ResourceError, UsageError
from rawdiff.images import (
    check_writable,
    next_path,
    read_recipe,
    stem_from,
    write_file,
    write_next,
    write_png,
)
from rawdiff.images.durable import TEMPORARY_PREFIX

PICTURE = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)


class Recorder:
    """Wraps functions of `os`, noting each call; one of them may be told to fail."""

    NAMES = ("open", "write", "fsync", "close", "link", "replace", "unlink")

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, folder: Path, failing: str = "", code: int = 0
    ) -> None:
        self.calls: list[str] = []
        self.open: dict[int, str] = {}
        self.failing, self.code, self.folder = failing, code, folder
        self.failing_too = ""
        for name in self.NAMES:
            monkeypatch.setattr(os, name, self.wrapped(name, getattr(os, name)))

    def wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            what = self.open.get(args[0]) if isinstance(args[0], int) else self.label(args[0])
            if what is None:
                return real(*args, **kwargs)
            step = f"{name} {what}"
            if step in (self.failing, self.failing_too):
                raise OSError(self.code, os.strerror(self.code))
            result = real(*args, **kwargs)
            self.calls.append(step)
            if name == "open":
                self.open[result] = what
            elif name == "close":
                del self.open[args[0]]
            return result

        return call

    def label(self, path: Any) -> str | None:
        path = Path(path)
        if path == self.folder:
            return "folder"
        if path.parent != self.folder:
            return None
        return "temporary" if path.name.startswith(TEMPORARY_PREFIX) else "name"


def leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


# --- order and atomicity ------------------------------------------------------------------------------------


@pytest.mark.parametrize("overwrite", [False, True])
def test_order_of_system_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool) -> None:
    recorder = Recorder(monkeypatch, tmp_path)
    write_png(tmp_path / "a.png", PICTURE, {"a": 1}, overwrite=overwrite)
    place = ["replace temporary"] if overwrite else ["link temporary", "unlink temporary"]
    assert recorder.calls == [
        "open temporary", "write temporary", "fsync temporary", "close temporary",
        *place,
        "open folder", "fsync folder", "close folder",
    ]  # fmt: skip


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: real(handle, bytes(data)[:7]))
    write_file(tmp_path / "a", bytes(range(100)))
    monkeypatch.undo()
    assert (tmp_path / "a").read_bytes() == bytes(range(100))


def test_a_disk_that_lies_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: real(handle, b"\0" * len(data)))
    with pytest.raises(ResourceError, match="does not read back"):
        write_file(tmp_path / "a", b"something")
    monkeypatch.undo()
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("existing", ["file", "link", "folder"])
def test_a_taken_name_is_never_overwritten(tmp_path: Path, existing: str) -> None:
    path = tmp_path / "a.png"
    if existing == "file":
        path.write_text("mine")
    elif existing == "link":
        path.symlink_to(tmp_path / "nowhere")
    else:
        path.mkdir()
    with pytest.raises(UsageError, match="exists already"):
        write_png(path, PICTURE, {})
    assert leftovers(tmp_path) == ["a.png"]
    assert existing != "file" or path.read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()


def test_overwriting_on_request(tmp_path: Path) -> None:
    path = write_png(tmp_path / "a.png", PICTURE, {"a": 1})
    write_png(path, PICTURE, {"a": 2}, overwrite=True)
    assert read_recipe(path) == {"a": 2}
    assert leftovers(tmp_path) == ["a.png"]
    (tmp_path / "folder").mkdir()
    with pytest.raises(ResourceError, match="folder"):
        write_png(tmp_path / "folder", PICTURE, {}, overwrite=True)


@pytest.mark.parametrize("code", [errno.EPERM, errno.EINVAL], ids=["here", "on Windows"])
def test_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    recorder = Recorder(monkeypatch, tmp_path, "link temporary", code)
    write_png(tmp_path / "a.png", PICTURE, {"a": 1})
    assert recorder.calls[4:7] == ["open name", "close name", "replace temporary"]
    with pytest.raises(UsageError, match="exists already"):
        write_png(tmp_path / "a.png", PICTURE, {"a": 2})
    monkeypatch.undo()
    assert read_recipe(tmp_path / "a.png") == {"a": 1}
    assert leftovers(tmp_path) == ["a.png"]


def test_a_name_is_free_again_where_its_file_could_not_be_put_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(monkeypatch, tmp_path, "link temporary", errno.EPERM)
    recorder.failing_too = "replace temporary"
    with pytest.raises(ResourceError, match="cannot be written"):
        write_png(tmp_path / "a.png", PICTURE, {})
    monkeypatch.undo()
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("step", ["open folder", "fsync folder"])
def test_a_folder_that_cannot_be_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """As on folders that a virtual machine shares: the file is there and whole. A disk's error is told."""
    Recorder(monkeypatch, tmp_path, step, errno.EINVAL)
    write_png(tmp_path / "a.png", PICTURE, {"a": 1})
    monkeypatch.undo()
    assert read_recipe(tmp_path / "a.png") == {"a": 1}
    Recorder(monkeypatch, tmp_path, step, errno.EIO)
    with pytest.raises(ResourceError, match="the disk reports an error"):
        write_png(tmp_path / "b.png", PICTURE, {})


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT, errno.EACCES])
@pytest.mark.parametrize(
    "step", ["open temporary", "write temporary", "fsync temporary", "close temporary", "link temporary"]
)
def test_each_call_failing_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, code: int
) -> None:
    Recorder(monkeypatch, tmp_path, step, code)
    with pytest.raises(ResourceError, match="cannot be written: ") as caught:
        write_png(tmp_path / "a.png", PICTURE, {})
    monkeypatch.undo()
    assert "\n" not in str(caught.value)
    assert leftovers(tmp_path) == []


def test_a_failing_replace_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_png(tmp_path / "a.png", PICTURE, {"a": 1})
    Recorder(monkeypatch, tmp_path, "replace temporary", errno.ENOSPC)
    with pytest.raises(ResourceError, match="disk is full"):
        write_png(path, PICTURE, {"a": 2}, overwrite=True)
    monkeypatch.undo()
    assert read_recipe(path) == {"a": 1}
    assert leftovers(tmp_path) == ["a.png"]


def test_missing_folder_and_odd_names(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="folder does not exist"):
        write_file(tmp_path / "none" / "a", b"x")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ResourceError, match="part of the path is a file"):
        write_file(tmp_path / "file" / "a", b"x")
    with pytest.raises(ResourceError, match="cannot be written"):
        write_file(tmp_path / ("n" * 300), b"x")
    with pytest.raises(ResourceError, match="cannot be written"):
        write_file(tmp_path / "a\0b", b"x")
    assert leftovers(tmp_path) == ["file"]


@pytest.mark.skipif(sys.platform == "win32", reason="no resource limits there")
def test_a_real_limit_on_file_size(tmp_path: Path) -> None:
    """The nearest thing to a full disk that needs no mount: the kernel refuses bytes beyond a limit."""
    code = (
        "import resource, sys\n"
        "from rawdiff.images.durable import write_file\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "write_file(sys.argv[1], bytes(9000))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a")], capture_output=True, text=True, check=False
    )
    assert "ResourceError" in done.stderr
    assert "larger than is allowed" in done.stderr
    assert leftovers(tmp_path) == []


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL there")
def test_killed_at_any_moment(tmp_path: Path) -> None:
    """What has a name is whole; what is left otherwise can be told by its name."""
    code = (
        "import itertools, sys\n"
        "from rawdiff.images.durable import write_file\n"
        "for n in itertools.count():\n"
        "    write_file(f'{sys.argv[1]}/{n}', bytes([n % 256]) * 300_000)\n"
        "    print(n, flush=True)\n"
    )
    worker = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert worker.stdout is not None
    worker.stdout.readline()
    time.sleep(0.3)
    worker.send_signal(signal.SIGKILL)
    printed = worker.stdout.read().split()
    worker.wait()
    worker.stdout.close()
    whole = [p for p in tmp_path.iterdir() if not p.name.startswith(TEMPORARY_PREFIX)]
    assert len(whole) >= len(printed)
    for path in whole:
        assert path.read_bytes() == bytes([int(path.name) % 256]) * 300_000
    assert len(list(tmp_path.iterdir())) - len(whole) <= 1


# --- the probe --------------------------------------------------------------------------------------------


def test_check_writable_makes_the_folder_and_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    assert check_writable(folder) == folder
    assert leftovers(folder) == []


def test_check_writable_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ResourceError, match="cannot be written"):
        check_writable(tmp_path / "file" / "sub")
    with pytest.raises(ResourceError):
        check_writable(tmp_path / "file")
    with pytest.raises(ResourceError, match="MiB free"):
        check_writable(tmp_path, need_bytes=2**60)
    if sys.platform == "linux":
        with pytest.raises(ResourceError, match="cannot be written") as caught:
            check_writable("/proc/self")  # read-only even for root
        assert "\n" not in str(caught.value)
    Recorder(monkeypatch, tmp_path, "open temporary", errno.EROFS)
    with pytest.raises(ResourceError, match="read-only; choose another folder"):
        check_writable(tmp_path)


# --- names ------------------------------------------------------------------------------------------------


def test_names_that_differ_only_by_case_or_encoding_collide(tmp_path: Path) -> None:
    (tmp_path / "CUBE.png").touch()
    (tmp_path / (unicodedata.normalize("NFD", "würfel") + ".png")).touch()
    assert next_path(tmp_path, "cube").name == "cube-2.png"
    assert next_path(tmp_path, "würfel").name == "würfel-2.png"
    assert next_path(tmp_path, "kugel").name == "kugel.png"


def test_stems_from_prompts() -> None:
    assert stem_from("A red cube, on GRASS!") == "a-red-cube-on-grass"
    assert stem_from("../../etc/passwd") == "etc-passwd"
    assert stem_from("") == stem_from("...!") == "picture"
    assert stem_from("con") == "con-picture"
    assert stem_from("立方体 と 球") == "立方体-と-球"
    long = stem_from("word " * 100)
    assert len(long) <= 60
    assert not long.endswith("-")
    assert len(stem_from("x" * 500)) == 60
    assert stem_from("a\0b\ud800c") == "a-b-c"


def test_stems_that_are_no_names(tmp_path: Path) -> None:
    for bad in ("", ".hidden", "a/b", "..", "a\\b", "a\0b", "a\nb", "c:d", "\ud800"):
        with pytest.raises(UsageError, match="file name"):
            next_path(tmp_path, bad)
    with pytest.raises(ResourceError, match="cannot be read"):
        next_path(tmp_path / "none", "a")
    assert len(next_path(tmp_path, "é" * 300).name.encode()) <= 255


def test_many_writers_on_one_name(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda n: write_next(tmp_path, "cube", PICTURE, {"n": n}), range(24)))
    assert len(set(paths)) == 24
    assert sorted(read_recipe(path)["n"] for path in paths) == list(range(24))
