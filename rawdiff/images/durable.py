"""Files that are whole or not there: written beside their place, synced, then linked into it.

A name that exists is never taken unless overwriting is asked for; a kill at any moment leaves at worst a
`.rawdiff-tmp-*` file and, where there are no hard links, an empty one of the name. The order is write, fsync the file,
read it back, link or replace, remove the temporary name, fsync the folder.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from rawdiff.errors import ResourceError, UsageError

__all__ = ["TEMPORARY_PREFIX", "check_writable", "publish", "write_file"]

TEMPORARY_PREFIX = ".rawdiff-tmp-"

_NO_HARD_LINKS = {
    *(errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV),
    errno.EINVAL,  # Windows, on exFAT and on many shares
}
_NO_SYNC = {
    errno.EINVAL,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
    errno.ENOSYS,
    errno.EBADF,
    errno.EACCES,
    errno.EPERM,
}
"""What file systems say that cannot sync a folder; the file itself is synced."""

_REASONS = {
    errno.ENOSPC: "the disk is full; free some space or choose another folder",
    errno.EDQUOT: "the disk quota is used up; free some space or choose another folder",
    errno.EFBIG: "the file would be larger than is allowed here",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.EACCES: "permission denied; choose another folder",
    errno.EPERM: "not permitted; choose another folder",
    errno.ENOENT: "the folder does not exist; create it first",
    errno.ENOTDIR: "part of the path is a file, not a folder",
    errno.EISDIR: "the name belongs to a folder",
    errno.EIO: "the disk reports an error",
}


def write_file(path: str | Path, data: bytes, *, overwrite: bool = False) -> Path:
    """Write `data` to `path` durably; UsageError for a taken name, ResourceError where writing fails."""
    try:
        return publish(path, data, overwrite=overwrite)
    except FileExistsError:
        raise UsageError(f"{path}: exists already; choose another name, or overwrite") from None


def publish(path: str | Path, data: bytes, *, overwrite: bool = False) -> Path:
    """As `write_file`, but a taken name raises FileExistsError, for callers that then try another."""
    path = Path(path)
    temporary = path.parent / f"{TEMPORARY_PREFIX}{os.getpid()}-{secrets.token_hex(8)}"
    with _one_line(path):
        try:
            _write_synced(temporary, data)
            if temporary.read_bytes() != data:
                raise ResourceError(
                    f"{path}: what was written does not read back; the disk is not to be trusted"
                )
            if overwrite:
                os.replace(temporary, path)  # noqa: PTH105 (the calls that a test records are those of os)
            else:
                _link(temporary, path)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(temporary)  # noqa: PTH108
        _sync_folder(path.parent)
    return path


def check_writable(folder: str | Path, *, need_bytes: int = 2**24) -> Path:
    """See, before anything slow begins, that `folder` exists (it is made) and takes files; ResourceError."""
    folder = Path(folder)
    with _one_line(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise ResourceError(f"{folder}: is a file; choose a folder to write to") from None
        probe = folder / f"{TEMPORARY_PREFIX}{os.getpid()}-{secrets.token_hex(8)}"
        try:
            _write_synced(probe, b"rawdiff was here\n")
        finally:
            with contextlib.suppress(OSError):
                os.unlink(probe)  # noqa: PTH108
        free_bytes = shutil.disk_usage(folder).free
    if free_bytes < need_bytes:
        raise ResourceError(
            f"{folder}: only {free_bytes / 2**20:.1f} MiB free, {need_bytes / 2**20:.1f} needed"
        )
    return folder


def _write_synced(path: Path, data: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    handle = os.open(path, flags, 0o666)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(handle, view) :]
        os.fsync(handle)
    finally:
        os.close(handle)


def _link(temporary: Path, path: Path) -> None:
    """Give the file its name unless that is taken (FileExistsError)."""
    try:
        os.link(temporary, path)
    except OSError as problem:
        if problem.errno not in _NO_HARD_LINKS:
            raise
        # No hard links here (FAT, some network mounts): take the name with an empty file, then replace that.
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        try:
            os.replace(temporary, path)  # noqa: PTH105
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(path)  # noqa: PTH108
            raise


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # folders cannot be opened there
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as problem:
        if problem.errno not in _NO_SYNC:
            raise


@contextlib.contextmanager
def _one_line(path: Path) -> Iterator[None]:
    """OSError as a ResourceError of one line; FileExistsError passes."""
    try:
        yield
    except FileExistsError:
        raise
    except (OSError, ValueError) as problem:
        code = problem.errno if isinstance(problem, OSError) else None
        reason = (
            _REASONS.get(code, str(getattr(problem, "strerror", None) or problem)) if code else str(problem)
        )
        raise ResourceError(f"{path}: cannot be written: {reason}") from None
