"""Where a model comes from: the embedded one, a folder, a file or a hub's repository, seen through one interface.

source = open_source("~/models/mine")         # a folder that exists wins over everything else
source = open_source("model.safetensors")     # a checkpoint in one file (see `single`)
source = open_source("sd1.5")                 # an alias: the registry says where it is
source = open_source("OWNER/NAME")            # a hub id, resolved to one commit
source = open_source("merge:A@0.6+B@0.4")     # the weighted sum of several (see `merge`)
source.path("unet/config.json")               # fetched if need be
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from rawdiff import paths
from rawdiff.errors import HubError, UsageError, WeightsError
from rawdiff.say import Say, say_nothing
from rawdiff.weights import merge, registry
from rawdiff.weights.hub import Hub
from rawdiff.weights.hub_errors import NotThereError
from rawdiff.weights.single import Options, SingleFile, open_single, split_options
from rawdiff.weights.snapshot import Snapshot, resolve

__all__ = ["EMBEDDED", "Source", "open_source"]

EMBEDDED = Path(__file__).resolve().parent.parent / "assets" / "solids"
"""The model inside the package."""

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9._-]{1,96}")
_FILE_SUFFIXES = (".safetensors", ".ckpt", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".json", ".zip")
NOT_MERGED = "a merge is of whole models, and this is a part of one; expected a folder, a file or a hub id"


@dataclass(frozen=True)
class Source:
    """A model's folder, one inside it (`base`), or its one file, wherever it lies; a hub's files come when asked."""

    name: str
    """How messages and recipes call it: "embedded", a path, or OWNER/NAME."""
    kind: Literal["embedded", "folder", "file", "hub", "merge"]
    root: Path
    """The folder on this disk; for a file, the one it is in; for a hub, where its files arrive."""
    base: str = ""
    revision: str | None = None
    """The commit, for a hub."""
    snapshot: Snapshot | None = None
    single: SingleFile | None = None
    vae: Source | None = None
    """Where its VAE is, if that is another's (see `swap`)."""
    merged: tuple[tuple[Source, float], ...] = ()
    """What its networks are the weighted sum of, itself first, if they are one (see `merge`)."""

    def __str__(self) -> str:
        return f"{self.name}/{self.base}" if self.base else self.name

    def names(self, folder: str = "") -> set[str]:
        """Names of the files directly in `folder`, without fetching any."""
        inside = _join(self.base, folder)
        if self.single is not None:
            return set()
        if self.snapshot is not None:
            return self.snapshot.names(inside)
        try:
            return {entry.name for entry in os.scandir(self.root / inside) if not entry.is_dir()}
        except (FileNotFoundError, NotADirectoryError):
            return set()
        except OSError as error:
            raise WeightsError(f"{self.root / inside}: {(error.strerror or 'unreadable').lower()}") from error

    def path(self, name: str) -> Path:
        """A file on this disk, fetched first where it comes from a hub; in a folder it may be missing."""
        inside = _join(self.base, name)
        if self.snapshot is not None:
            self.snapshot.fetch([inside])
        return self.root / inside

    def child(self, folder: str) -> Source:
        """The source that is a folder inside this one; raises WeightsError for a way out of it."""
        if (
            self.single is not None
            or not folder
            or folder.startswith("/")
            or ".." in folder.split("/")
            or "\\" in folder
            or ":" in folder  # another drive, on Windows
        ):
            raise WeightsError(f"{self}: {folder[:80]!a} is no folder inside a model")
        return replace(self, base=_join(self.base, folder), vae=None, merged=())

    def owner(self, part: str) -> Source:
        """The source that a part is taken from: this one, but for a VAE of another's."""
        return self.vae if part == "vae" and self.vae is not None else self

    def holds_part(self, part: str) -> str | None:
        """The folder of a part: `part` itself, `""` for a file or when the source is that part alone, or None."""
        if self.single is not None:
            return "" if self.single.holds(part) else None
        tokenizer = ("tokenizer_config.json", "vocab.json", "tokenizer.json")
        marks = {"tokenizer": tokenizer, "tokenizer_2": tokenizer, "scheduler": ("scheduler_config.json",)}
        wanted = marks.get(part, ("config.json",))
        if self.names(part) & set(wanted):
            return part
        here = self.names()
        return "" if here & set(wanted) and "model_index.json" not in here else None

    def folder(self, part: str) -> Path:
        """Where a part's files are (see `parts.part_files` for having them fetched); raises WeightsError."""
        inside = self.holds_part(part)
        if inside is None:
            if self.single is not None:
                raise WeightsError(f"{self}: holds no {part}, only {self.single}; expected a file with one")
            if self.snapshot is not None and not self.snapshot.is_whole:
                raise HubError(f"{self} is in the cache without its {part}: run once without --offline")
            raise WeightsError(
                f"{self}: has no {part}/ folder with a config; expected a model in diffusers' layout"
            )
        return self.root / _join(self.base, inside)


def _join(*folders: str) -> str:
    return "/".join(folder for folder in folders if folder)


def open_source(
    source: Source | str | Path | None = None,
    *,
    revision: str | None = None,
    offline: bool = False,
    hub: Hub | None = None,
    say: Say = say_nothing,
    what: str = "model",
) -> Source:
    """Find a model: None or "embedded", a folder, a file, an alias of the registry, a hub's OWNER/NAME, or a merge.

    A hub's files are fetched part by part, when asked for. `say` gets a line when a mirror is used, a download
    starts, or a file leaves something to be assumed; `what` is how errors call what is looked for: one that is not a
    model is no merge. Raises UsageError (a name that is nothing), WeightsError (no
    model there), HubError.
    """
    if isinstance(source, Source):
        return source
    if source is None or source == "embedded":
        return _folder("embedded", EMBEDDED, "embedded")
    text = str(source)
    if not text or not text.isprintable():
        raise UsageError(f"{what} {text[:80]!a}: expected a folder, a file, an alias or OWNER/NAME")
    if text.startswith(merge.PREFIX) and not paths.is_there(text):
        if what != "model":
            raise UsageError(f"{what} {text[:120]!a}: {NOT_MERGED}")
        if revision is not None:
            raise UsageError(f"revision {revision}: of a merge, it cannot be told whose; leave it out")
        found = [(open_source(name, offline=offline, hub=hub, say=say), w) for name, w in merge.parse(text)]
        # The first's commit is not the sum's: which files took part is told by their SHA-256.
        return replace(found[0][0], name=text, kind="merge", revision=None, merged=tuple(found))
    text, options = split_options(text)
    path = paths.expanded(text)
    if paths.is_folder(path):
        return _folder(text, path.resolve(), "folder")
    if paths.is_there(path):
        return _file(str(source), path.absolute(), options, say)
    known = registry.find(text) if isinstance(source, str) else None
    if known is None and (isinstance(source, Path) or _is_path_like(text)):
        raise WeightsError(f"{text}: no such folder or file; expected a {what}, an alias or OWNER/NAME")
    if known is None and not _HUB_ID.fullmatch(text):
        models = registry.aliases("model")
        of_nets = [name for name in registry.aliases() if name not in models]
        names = ", ".join(of_nets if what == "ControlNet" else models)
        raise UsageError(
            f"{what} {text[:80]!a} is no file and no folder here and no alias ({names}); a hub id is OWNER/NAME"
        )
    return _from_hub(hub if hub is not None else Hub(offline=offline, say=say), text, known, revision)


def _is_path_like(text: str) -> bool:
    return (
        text.startswith((".", "/", "~"))
        or text.count("/") > 1
        or "\\" in text
        or bool(re.match(r"[A-Za-z]:", text))
        or text.lower().partition("#")[0].endswith(_FILE_SUFFIXES)
    )


def _folder(name: str, root: Path, kind: Literal["embedded", "folder"]) -> Source:
    source = Source(name, kind, root)
    if kind == "embedded" and not source.names():
        raise WeightsError(f"the embedded model is not at {root}; install rawdiff again, or name a model")
    return source


def _file(name: str, path: Path, options: Options | None, say: Say) -> Source:
    single = open_single(path, options)
    for note in single.notes:
        say(note)
    return Source(name, "file", path.parent, single=single)


def _from_hub(hub: Hub, text: str, known: registry.Known | None, revision: str | None) -> Source:
    repositories = [text] if known is None else list(known.repositories)
    wanted = revision if revision is not None else "main" if known is None else known.revision
    if known is not None and text in registry.GONE:
        hub.say(f"{text} was taken down in {registry.GONE[text][1]}; using {repositories[0]}")
        repositories.append(text)  # where it is still cached, it serves
    fault: HubError | None = None
    for repository in repositories:
        try:
            snapshot = resolve(hub, repository, wanted)
        except HubError as error:
            if not isinstance(error, NotThereError) and not hub.is_offline:
                raise
            fault = fault if fault is not None else error
            continue
        if repository != repositories[0]:
            hub.say(f"using {repository} in place of {repositories[0]}")
        return Source(repository, "hub", snapshot.root, "", snapshot.commit, snapshot)
    assert fault is not None
    if known is None and isinstance(fault, NotThereError):
        raise NotThereError(f"{fault}; nor is there a folder {text} here") from fault
    raise fault
