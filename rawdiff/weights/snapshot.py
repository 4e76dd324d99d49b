"""Files of a repository at one commit: only what is needed, every byte checked against the hub's listing.

Downloading is done here rather than by huggingface_hub, because that takes the reply's `ETag` for a file
name, a flipped bit for the file, gives up on a reset connection, and returns truncated files from its cache.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rawdiff.errors import HubError
from rawdiff.weights import digests
from rawdiff.weights.hub import Hub
from rawdiff.weights.hub_cache import Remote, RepositoryCache, cache_root
from rawdiff.weights.hub_errors import NotThereError, TransientError, explain

__all__ = ["Snapshot", "forget", "resolve"]

_PAGES = (b"<!doctype", b"<html")

_Listing = tuple[str, dict[str, Remote], bool]
"""A commit, its files, and whether these are all of them (not only those that were cached)."""

_RESOLVED: dict[tuple[str, str, str], _Listing] = {}
"""What this process has resolved: a branch that moves meanwhile cannot give two parts from two commits."""


def resolve(hub: Hub, repository: str, revision: str = "main") -> Snapshot:
    """`repository` at the commit that `revision` is now; the same commit for the rest of the process.

    Raises HubError. When the hub cannot be reached, the cached commit is used and that is said.
    """
    cache = RepositoryCache(repository, hub.cache if hub.cache is not None else cache_root())
    key = (hub.url, str(cache.folder), revision)
    if key not in _RESOLVED:
        _RESOLVED[key] = _ask(hub, cache, revision)
    commit, listed, is_whole = _RESOLVED[key]
    return Snapshot(hub, cache, commit, dict(listed), is_whole)


def forget() -> None:
    """Resolve anew from here on."""
    _RESOLVED.clear()


def _ask(hub: Hub, cache: RepositoryCache, revision: str) -> _Listing:
    known = cache.commit_of(revision)
    has_some = known is not None and cache.snapshot(known).is_dir()
    if hub.is_offline:
        if known is None or not has_some:
            raise HubError(
                f"{cache.repository} ({revision}) is not in the cache at {cache.root}, and offline no "
                "connection is made: run once without --offline, or name a local folder"
            )
        return _recorded(cache, known)
    if known == revision and (listed := cache.read_record(revision)[0]):
        return known, listed, True  # a commit never changes
    try:
        commit, listed = hub.list_files(cache.repository, revision)
    except TransientError as error:
        if known is None or not has_some:
            raise
        hub.say(f"{error}; going on with the cached commit {known[:8]} of {cache.repository}")
        return _recorded(cache, known)
    with contextlib.suppress(OSError):
        cache.remember_commit(revision, commit)
    cache.write_record(commit, listed, cache.read_record(commit)[1])
    return commit, listed, True


def _recorded(cache: RepositoryCache, commit: str) -> _Listing:
    listed = cache.read_record(commit)[0]
    return (commit, listed, True) if listed else (commit, cache.listed_on_disk(commit), False)


@dataclass
class Snapshot:
    """One repository at one commit: names from the hub's listing, files on this disk once fetched."""

    hub: Hub
    cache: RepositoryCache
    commit: str
    listed: dict[str, Remote]
    is_whole: bool = True
    """Whether `listed` is the hub's listing; else it is only what the cache has."""
    _verified: dict[str, tuple[int, int]] = field(init=False)

    def __post_init__(self) -> None:
        self._verified = self.cache.read_record(self.commit)[1]

    @property
    def root(self) -> Path:
        """The folder where fetched files are."""
        return self.cache.snapshot(self.commit)

    def names(self, folder: str = "") -> set[str]:
        """Names of the files directly in a folder of the repository."""
        prefix = f"{folder}/" if folder else ""
        inside = (name[len(prefix) :] for name in self.listed if name.startswith(prefix))
        return {name for name in inside if "/" not in name}

    def fetch(self, names: Sequence[str]) -> None:
        """Have these files here, verified; downloads what is missing. Raises HubError for any fault."""
        absent = [name for name in names if name not in self.listed]
        if absent:
            if not self.is_whole:
                raise HubError(
                    f"{self.cache.repository} is in the cache without {absent[0]}: run once without --offline"
                )
            raise NotThereError(
                f"{self.cache.repository} has no {absent[0]}; see its files at {self.hub.url}"
            )
        try:
            missing = [name for name in names if not self._is_here(name)]
            if missing:
                self._download_all(missing)
        except OSError as error:
            raise explain(error, self.cache.repository, self.hub.url, "the cache") from error

    def _is_here(self, name: str) -> bool:
        path, remote = self.root / name, self.listed[name]
        if not path.exists():
            if not self.cache.blob(remote).exists():
                return False
            self.cache.link(remote, self.commit, name)
        stamp = _stamp(path)
        if self._verified.get(name) == stamp or self.cache.verify(path, remote):
            self._note(name, stamp)
            return True
        if self.hub.is_offline:
            raise HubError(
                f"{path} is damaged (its checksum is not the one listed), and offline it cannot be fetched "
                "again: run once without --offline"
            )
        self.hub.say(f"{name} of {self.cache.repository} is damaged in the cache; fetching it again")
        path.unlink(missing_ok=True)
        self.cache.blob(remote).unlink(missing_ok=True)
        return False

    def _note(self, name: str, stamp: tuple[int, int]) -> None:
        """Record that a file is as listed, so that it is hashed once and not at every run."""
        if len(self.listed[name].digest) == 64:
            digests.remember(self.root / name, self.listed[name].digest)
        if self._verified.get(name) != stamp:
            self._verified[name] = stamp
            self.cache.write_record(self.commit, self.listed if self.is_whole else {}, self._verified)

    def _download_all(self, names: Sequence[str]) -> None:
        repository = self.cache.repository
        if self.hub.is_offline:
            raise HubError(
                f"{repository} is in the cache without {names[0]}, and offline no connection is made: "
                "run once without --offline"
            )
        total_bytes = sum(self.listed[name].size_bytes for name in names)
        blobs = self.cache.folder / "blobs"
        blobs.mkdir(parents=True, exist_ok=True)
        free_bytes = shutil.disk_usage(blobs).free
        if total_bytes > free_bytes:
            raise HubError(
                f"{repository} needs {_amount(total_bytes)} more, {_amount(free_bytes)} are free at {blobs}: "
                "free some, or set HF_HOME to a larger disk"
            )
        for name in names:
            remote = self.listed[name]
            self.hub.say(f"downloading {name} of {repository} ({_amount(remote.size_bytes)})")
            self._download(name, remote)
            self.cache.link(remote, self.commit, name)
            self._note(name, _stamp(self.root / name))

    def _download(self, name: str, remote: Remote) -> None:
        """Stream one file to a temporary name, resuming after a break; keep it if its hash is right."""
        blob = self.cache.blob(remote)
        temporary = blob.with_name(f"{blob.name}.{uuid.uuid4().hex[:8]}.incomplete")
        try:
            with temporary.open("xb") as file:
                self._stream_all(name, remote, file)
            if not self.cache.verify(temporary, remote):
                raise HubError(
                    f"{name} of {self.cache.repository} came with another checksum than the hub lists: "
                    "try again; if it stays so, the hub or something between is not to be trusted"
                )
            temporary.replace(blob)
        finally:
            temporary.unlink(missing_ok=True)

    def _stream_all(self, name: str, remote: Remote, file: Any) -> None:
        """Try again for as long as each round of tries brings bytes."""
        last_bytes = 0
        while True:
            try:
                return self.hub.attempt(lambda: self._stream(name, remote, file), self.cache.repository, name)
            except TransientError:
                if file.tell() <= last_bytes:
                    raise
                last_bytes = file.tell()

    def _stream(self, name: str, remote: Remote, file: Any) -> None:
        """Append what is missing of a file; raises when the connection breaks before its size is reached."""
        from huggingface_hub import get_session, hf_hub_url
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

        url = hf_hub_url(self.cache.repository, name, revision=self.commit, endpoint=self.hub.url)
        done = file.seek(0, os.SEEK_END)
        headers = build_hf_headers(token=self.hub.token, library_name="rawdiff")
        headers["Accept-Encoding"] = "identity"
        if done:
            headers["Range"] = f"bytes={done}-"
        with get_session().stream("GET", url, headers=headers, timeout=self.hub.timeout_s) as reply:
            hf_raise_for_status(reply)
            if done and reply.status_code != 206:  # the whole file again
                file.seek(0)
                file.truncate()
                done = 0
            for chunk in _checked(reply, name, self.hub.url):
                done += len(chunk)
                if done > remote.size_bytes:
                    raise HubError(f"{name}: more than the {remote.size_bytes} bytes listed: try again later")
                file.write(chunk)
        if done < remote.size_bytes:
            size = f"{done} of {remote.size_bytes} bytes"
            raise TransientError(f"{self.hub.url} broke {name} off after {size}: try again")


def _checked(reply: Any, name: str, endpoint: str) -> Iterator[bytes]:
    """The reply's bytes, unless it is a web page in place of a file."""
    first = True
    for chunk in reply.iter_bytes():  # as they come: a chunk being filled would be lost with the connection
        if first and not name.endswith((".html", ".md")) and chunk.lstrip()[:9].lower().startswith(_PAGES):
            raise HubError(
                f"{endpoint} sent a web page in place of {name}: this network wants a login first; "
                "log in to it and try again"
            )
        first = False
        yield chunk


def _stamp(path: Path) -> tuple[int, int]:
    """Size and time of last change of what a link leads to."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _amount(size_bytes: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size_bytes >= size:
            return f"{size_bytes / size:.1f} {unit}"
    return f"{size_bytes} bytes"
