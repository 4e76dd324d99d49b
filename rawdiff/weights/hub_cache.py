"""The cache of a hub's files on this disk, in the layout that huggingface_hub and diffusers share.

    models--OWNER--NAME/
        refs/main                    the commit that a branch was last seen at
        blobs/HASH                   contents, named by their own hash
        snapshots/COMMIT/PATH        links into blobs
        rawdiff/COMMIT.json          ours: what the hub lists for the commit, and which files were verified

A file's hash comes from the hub's listing (SHA-256 for large files, git's SHA-1 for small ones) and is
compared with the file's bytes once; names and hashes are checked before they become paths. The `ETag` of a
reply, by which huggingface_hub names files, is never used.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rawdiff import strict_json
from rawdiff.errors import HubError
from rawdiff.paths import expanded

__all__ = ["COMMIT", "Remote", "RepositoryCache", "cache_root", "check_name", "git_sha1"]

COMMIT = re.compile(r"[0-9a-f]{40}")
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_REVISION = re.compile(r"(?!.*\.\.)[A-Za-z0-9_][A-Za-z0-9._/-]{0,199}")
_FORMAT = 1


@dataclass(frozen=True)
class Remote:
    """One file of a repository at a commit. `digest`: SHA-256 (64 digits), or SHA-1 of git's blob (40)."""

    size_bytes: int
    digest: str


def cache_root() -> Path:
    """The folder of the shared cache: HF_HUB_CACHE, or HF_HOME/hub, or huggingface_hub's default."""
    if os.environ.get("HF_HUB_CACHE"):
        return expanded(os.environ["HF_HUB_CACHE"])
    if os.environ.get("HF_HOME"):
        return expanded(os.environ["HF_HOME"]) / "hub"
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def check_name(name: Any, digest: Any, size_bytes: Any, repository: str) -> Remote:
    """A listed file, if its name stays inside a folder and its hash is one; raises HubError."""
    parts = name.split("/") if isinstance(name, str) else []
    if (
        not parts
        or len(name) > 400
        or any(part in ("", ".", "..") for part in parts)
        or set(name) & set('\\:\0"<>|?*')
        or not name.isprintable()
    ):
        raise HubError(
            f"{repository} lists a file called {str(name)[:80]!a}, which is no safe path: do not use it"
        )
    if not isinstance(digest, str) or not _HASH.fullmatch(digest):
        raise HubError(f"{repository} lists {name!a} with {str(digest)[:80]!a} for a hash: do not use it")
    if type(size_bytes) is not int or size_bytes < 0:
        raise HubError(f"{repository} lists {name!a} with {str(size_bytes)[:40]!a} for a size: do not use it")
    return Remote(size_bytes, digest)


def git_sha1(data: bytes) -> str:
    """Git's name for a blob of these bytes."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


@dataclass
class RepositoryCache:
    """One repository's folder in the cache."""

    repository: str
    root: Path
    folder: Path = field(init=False)

    def __post_init__(self) -> None:
        self.folder = self.root / f"models--{self.repository.replace('/', '--')}"

    def snapshot(self, commit: str) -> Path:
        """Where the files of a commit are."""
        return self.folder / "snapshots" / commit

    def commit_of(self, revision: str) -> str | None:
        """The commit that `revision` was last seen at, or None."""
        if COMMIT.fullmatch(revision):
            return revision
        if not _REVISION.fullmatch(revision):
            raise HubError(
                f"revision {revision[:80]!a}: expected a branch, a tag or a commit of {self.repository}"
            )
        try:
            commit = (self.folder / "refs" / revision).read_text("ascii").strip()
        except (OSError, ValueError):
            return None
        return commit if COMMIT.fullmatch(commit) else None

    def remember_commit(self, revision: str, commit: str) -> None:
        """Note where a branch or tag is, for `--offline`."""
        if not COMMIT.fullmatch(revision) and self.commit_of(revision) != commit:
            _write(self.folder / "refs" / revision, commit)

    def read_record(self, commit: str) -> tuple[dict[str, Remote], dict[str, tuple[int, int]]]:
        """What was listed for `commit`, and (size, time) of each file at the time it was verified."""
        try:
            table = strict_json.loads((self.folder / "rawdiff" / f"{commit}.json").read_text("utf-8"))
            if table["format"] != _FORMAT:
                return {}, {}
            listed = {
                n: check_name(n, f["digest"], f["size"], self.repository) for n, f in table["files"].items()
            }
            verified = {n: (int(s), int(t)) for n, (s, t) in table["verified"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, HubError):
            return {}, {}  # as if nothing were known: files are verified again
        return listed, verified

    def write_record(
        self, commit: str, listed: Mapping[str, Remote], verified: Mapping[str, tuple[int, int]]
    ) -> None:
        """Keep the listing and what was verified; a cache that cannot be written is verified each time."""
        files = {name: {"size": r.size_bytes, "digest": r.digest} for name, r in sorted(listed.items())}
        table = {
            "format": _FORMAT,
            "files": files,
            "verified": {n: list(v) for n, v in sorted(verified.items())},
        }
        with contextlib.suppress(OSError):
            _write(self.folder / "rawdiff" / f"{commit}.json", json.dumps(table, indent=1))

    def listed_on_disk(self, commit: str) -> dict[str, Remote]:
        """A snapshot that others downloaded: names from its folder, hashes from the blobs' names."""
        root = self.snapshot(commit)
        found: dict[str, Remote] = {}
        for folder, _, names in os.walk(root):
            for name in names:
                path = Path(folder) / name
                blob = path.resolve()
                if (
                    blob.parent == (self.folder / "blobs").resolve()
                    and _HASH.fullmatch(blob.name)
                    and blob.is_file()
                ):
                    found[path.relative_to(root).as_posix()] = Remote(blob.stat().st_size, blob.name)
        return found

    def blob(self, remote: Remote) -> Path:
        """Where a file's bytes are, whichever name it has."""
        return self.folder / "blobs" / remote.digest

    def link(self, remote: Remote, commit: str, name: str) -> None:
        """Let `name` of `commit` lead to its blob (moved there where the system has no links)."""
        target = self.snapshot(commit) / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            target.unlink()
        up = "../" * (len(name.split("/")) + 1)
        try:
            target.symlink_to(f"{up}blobs/{remote.digest}")
        except FileExistsError:
            pass  # another process was as quick
        except (OSError, NotImplementedError):
            self.blob(remote).replace(target)

    def verify(self, path: Path, remote: Remote) -> bool:
        """Whether the bytes at `path` are those listed."""
        if len(remote.digest) == 64:
            digest = hashlib.sha256()
        else:
            digest = hashlib.sha1(b"blob %d\0" % remote.size_bytes, usedforsecurity=False)
        if path.stat().st_size != remote.size_bytes:
            return False
        with path.open("rb") as file:
            while chunk := file.read(2**20):
                digest.update(chunk)
        return digest.hexdigest() == remote.digest


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        temporary.write_text(text, "utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
