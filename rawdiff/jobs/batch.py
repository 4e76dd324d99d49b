"""What `rawdiff batch` does: a manifest to pictures, the model loaded once, nothing drawn twice.

Done means that a picture with the same recipe is there, whole: the ids are read back from the pictures themselves,
so that there is no journal to disagree with them. One process at a time works in a folder.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout, UnixFileLock

from rawdiff import images, recipe
from rawdiff.errors import BatchError, InputError, RawdiffError, ResourceError, UsageError
from rawdiff.images.durable import TEMPORARY_PREFIX
from rawdiff.jobs.job import Drawn, Job, Watcher
from rawdiff.jobs.manifest import Item, check_there, read_manifest
from rawdiff.jobs.output import Output, check_batch, find_folder
from rawdiff.jobs.place import Place, open_workshop, start_probe
from rawdiff.jobs.workshop import DeviceFailedError, Workshop
from rawdiff.paths import leads_inside
from rawdiff.probes import Probe
from rawdiff.say import Say, say_on_stderr

__all__ = ["LOCK_NAME", "Album", "draw_manifest", "locked"]

LOCK_NAME = ".rawdiff.lock"
LOCK_WAIT_S = 0.2
SWEEP_S = 60.0

Done = Callable[[Path, str, float | None], None]
"""Told of each picture: its path, its id, and the seconds it took, None for one that was there."""

Planned = Callable[[int, Job], None]
"""Told by a dry run of a line's number and the job of what it would draw."""


def _ignore(line: int, job: Job) -> None:
    pass


class Album:
    """The pictures of a folder by the ids of their recipes, read back from the pictures."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._found: dict[str, list[Path]] = {}
        self._pixels: dict[Path, str | None] = {}
        for path in sorted(folder.glob("*.png")):
            if not path.name.startswith("."):
                self._look(path)

    def _look(self, path: Path) -> str | None:
        try:
            found = recipe.read(path)
        except InputError:  # another program's picture, a hint, a preview, or half a file
            return None
        self._keep(found, path)
        name: str = found["id"]
        return name

    def _keep(self, found: Mapping[str, Any], path: Path) -> None:
        self._pixels[path] = found["made"]["pixels"]
        paths = self._found.setdefault(found["id"], [])
        if path not in paths:
            paths.append(path)

    def find(self, job_id: str, name: str | None = None) -> Path | None:
        """The first whole picture with this id, under `name` if that is given, or None."""
        paths = self._found.get(job_id, [])
        if name is not None:
            path = self.folder / name
            paths = [path] if path.is_file() and self._look(path) == job_id else []
        return next((path for path in paths if self._is_whole(path)), None)

    def _is_whole(self, path: Path) -> bool:
        """Whether every pixel is the one that was written."""
        try:
            return images.pixels_sha256(images.open_source(path).array) == self._pixels[path]
        except InputError:
            return False

    def add(self, drawn: Drawn, path: Path) -> None:
        """A picture was just written."""
        self._keep(drawn.recipe, path)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for this process alone; ResourceError where another one holds it.

    The lock's file is removed while it is held. Whoever opened it before and holds it after that has a file without a
    name: filelock looks for that, lets go and begins anew, for which it has a moment.
    """
    lock = FileLock(str(folder / LOCK_NAME), timeout=LOCK_WAIT_S, poll_interval=LOCK_WAIT_S / 10)
    try:
        lock.acquire()
    except Timeout:
        raise ResourceError(
            f"{folder}: another batch is at work there; wait for it, or choose another folder with --out"
        ) from None
    except OSError as error:
        raise ResourceError(
            f"{folder}: cannot be locked ({(error.strerror or str(error)).lower()})"
        ) from None
    try:
        yield
    finally:
        if isinstance(lock, UnixFileLock):  # every other kind removes its file itself
            with contextlib.suppress(OSError):
                (folder / LOCK_NAME).unlink()
        lock.release()


def draw_manifest(
    file: str | Path,
    place: Place,
    out: str | Path,
    *,
    batch: int = 1,
    dry_run: bool = False,
    timings: bool = False,
    watchers: Sequence[Watcher] = (),
    say: Say = say_on_stderr,
    done: Done,
    planned: Planned = _ignore,
    debug: bool = False,
) -> Probe | None:
    """Draw what `file` lists and is not in the folder `out` yet, the model loaded once; the probe, if asked for.

    A failed item is told, and the others go on; with `dry_run` items are checked and `planned`, and nothing is drawn.
    An interruption drops the picture at hand, and what is finished stays. Raises InputError for the manifest,
    BatchError at the end if an item failed, ResourceError where the folder takes no files or is held by another
    process, WeightsError.
    """
    check_batch(batch)
    folder = find_folder(out)
    items = read_manifest(file)
    probe = start_probe(place.device, timings)
    workshop = open_workshop(place, say, probe)
    if not dry_run:
        images.check_writable(folder)
    with contextlib.nullcontext() if dry_run else locked(folder):
        _Round(file, items, workshop, folder, batch, dry_run, watchers, say, done, planned, debug).run()
    return probe if isinstance(probe, Probe) else None


@dataclass(eq=False)
class _Round:
    file: str | Path
    items: Sequence[Item]
    workshop: Workshop
    folder: Path
    batch: int
    dry_run: bool
    watchers: Sequence[Watcher]
    say: Say
    done: Done
    planned: Planned
    debug: bool
    drawn: int = 0
    there: int = 0
    failed: list[int] = field(default_factory=list)

    def run(self) -> None:
        if not self.dry_run:
            names = (item.out for item in self.items if item.out is not None)
            for folder in {self.folder, *((self.folder / name).parent for name in names)}:
                with contextlib.suppress(OSError):  # what is wrong with a name is its item's to tell
                    if leads_inside(folder, self.folder):
                        _sweep(folder)
        album = Album(self.folder)
        try:
            for item in self.items:
                with self._item_may_fail(item):
                    job, wanted = self._plan(item, album)
                if item.line in self.failed or not wanted:
                    continue
                if self.dry_run:
                    self.workshop.check_vae()
                    self.workshop.remark(job)
                    self.planned(item.line, job.only(wanted))
                else:
                    self.say(f"line {item.line}: {job.describe()}")
                    self.workshop.model()  # what is wrong with it is wrong for all
                    with self._item_may_fail(item):
                        self._draw(item, job.only(wanted), album)
        finally:
            failed = f"{len(self.failed)} of {len(self.items)} items failed"
            self.say(f"{self.drawn} drawn, {self.there} already there, {failed}")
        if self.failed:
            lines = ", ".join(str(line) for line in self.failed[:10]) + (
                ", ..." if len(self.failed) > 10 else ""
            )
            raise BatchError(f"{len(self.failed)} of {len(self.items)} items failed: line {lines}")

    @contextlib.contextmanager
    def _item_may_fail(self, item: Item) -> Iterator[None]:
        try:
            yield
        except (DeviceFailedError, BrokenPipeError):  # what would fail for every other item too
            raise
        except RawdiffError as error:
            self.say(f"line {item.line}: {error}")
        except Exception as error:
            if self.debug:
                raise
            self.say(f"line {item.line}: a defect in rawdiff ({type(error).__name__}: {str(error)[:200]})")
        else:
            return
        self.failed.append(item.line)

    def _plan(self, item: Item, album: Album) -> tuple[Job, list[int]]:
        """The job, and which of its pictures are not there."""
        if isinstance(item.request, UsageError):
            raise item.request
        check_there(item.request, self.file)
        job = self.workshop.plan(item.request, batch=self.batch)
        wanted = []
        for k, job_id in enumerate(job.ids()):
            path = album.find(job_id, item.out)
            if path is None:
                wanted.append(k)
            else:
                self.there += 1
                self.done(path, job_id, None)
        if wanted and item.out is not None:
            _check_free(self.folder, item.out)
        return job, wanted

    def _draw(self, item: Item, job: Job, album: Album) -> None:
        folder = self.folder if item.out is None else (self.folder / item.out).parent
        images.check_writable(folder)
        for drawn in self.workshop.draw(job, batch=self.batch, watchers=self.watchers):
            output = Output(folder, None if item.out is None else Path(item.out).name)
            with self.workshop.probe("png", host=True):
                path = output.write(drawn, self.say)
            album.add(drawn, path)
            self.drawn += 1
            self.done(path, drawn.recipe["id"], drawn.seconds)


def _check_free(folder: Path, name: str) -> None:
    """Raise InputError where a picture that an item names would take another's place, or leave the folder."""
    path = folder / name
    inside = leads_inside(path.parent, folder)
    if inside is None:
        raise InputError(f"out {name!r}: its folder cannot be followed; choose another name")
    if not inside:
        raise InputError(
            f"out {name!r}: its folder is a link that leads out of {folder}; choose another name"
        )
    for part in (path, *path.parents):
        if part == folder:
            break
        taken = sorted(
            p.name for p in part.parent.glob("*") if images.name_key(p.name) == images.name_key(part.name)
        )
        if taken and (part == path or part.name not in taken):
            raise InputError(
                f"out {name!r}: {folder} holds {taken[0]!r} already, with another recipe; choose another name"
            )


def _sweep(folder: Path) -> None:
    """Remove what a process that was killed here left behind."""
    for path in folder.glob(f"{TEMPORARY_PREFIX}*"):
        process = path.name.removeprefix(TEMPORARY_PREFIX).partition("-")[0]
        with contextlib.suppress(OSError):
            is_old = time.time() - path.stat().st_mtime > SWEEP_S  # than any file takes to be written
            if process.isdigit() and is_old and not _is_alive(int(process)):
                path.unlink()


def _is_alive(process: int) -> bool:
    """Whether a process is there; on Windows, where asking that way would stop it, none is known to be."""
    if os.name == "nt":
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
