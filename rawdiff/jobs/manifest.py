"""A manifest: what a batch shall draw, one JSON object a line, in the words of `rawdiff gen`.

    {"prompt": "a red cube on grass", "depth": "maps/room.png", "size": "768x512", "seed": 7}
    {"prompt": "two blue spheres", "count": 4, "sampler": "euler a", "out": "spheres.png"}

Its paths are relative to it and stay in its folder. What is wrong with its form is told before anything is drawn;
what is wrong with one item (a map that is not there) makes that item fail and no other.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rawdiff import strict_json
from rawdiff.errors import InputError, UsageError
from rawdiff.images import name_key, picture_name
from rawdiff.jobs.request import Request
from rawdiff.jobs.words import request_from_words
from rawdiff.limits import MAX_SEED, is_name
from rawdiff.paths import check_name, is_there, leads_inside
from rawdiff.recipe import canonical

__all__ = ["KEYS", "Item", "check_there", "read_manifest"]

MAX_BYTES = 2**28
TEXT, WHOLE, NUMBER, FLAG, TEXTS, NUMBERS = (
    "text",
    "a whole number",
    "a number",
    "true or false",
    "texts",
    "numbers",
)

KEYS: dict[str, str] = {
    "prompt": TEXT,
    "negative": TEXT,
    "prompt_2": TEXT,
    "negative_2": TEXT,
    "prompt_syntax": TEXT,
    "size": TEXT,
    "size_ids": TEXT,
    "seed": WHOLE,
    "count": WHOLE,
    "depth": TEXT,
    "normal": TEXT,
    "canny": TEXT,
    "control": TEXTS,
    "derive": TEXTS,
    "image": TEXT,
    "mask": TEXT,
    "strength": NUMBER,
    "paste": FLAG,
    "blend": FLAG,
    "lora": TEXTS,
    "embedding": TEXTS,
    "fit": TEXT,
    "depth_range": TEXT,
    "depth_invert": FLAG,
    "sampler": TEXT,
    "steps": WHOLE,
    "timesteps": NUMBERS,
    "sigmas": NUMBERS,
    "guidance": NUMBER,
    "rescale": NUMBER,
    "guidance_end": NUMBER,
    "clip_skip": WHOLE,
    "guess": FLAG,
    "eta": NUMBER,
    "out": TEXT,
}
"""What a line may say, and in which form; a dash may stand for an underscore."""

OF_THE_COMMAND = (
    *(
        "model",
        "net",
        "vae",
        "device",
        "dtype",
        "speed",
        "memory",
        "backend",
        "offline",
        "revision",
        "batch",
        "preview",
        "save_hints",
    ),
)


@dataclass(frozen=True)
class Item:
    """One line."""

    line: int
    request: Request | UsageError
    """What it asks for, or why that makes no sense."""
    out: str | None = None
    """The picture's name, relative to the output folder, with its ending."""


def read_manifest(path: str | Path) -> list[Item]:
    """The items of a manifest, empty lines left out; raises InputError that names the line.

    A line without a seed gets one that is made from what it says, so that the batch can be run again and finds
    what it has drawn.
    """
    path = Path(path)
    items = []
    lines = _text(path).split("\n")
    for number, text in enumerate(lines, start=1):
        if text.strip():
            where = f"{path}:{number}"
            items.append(_item(_words(text, where), number, where, path.parent))
    if not items:
        raise InputError(
            f'{path}: holds no items; expected a JSON object a line, such as {{"prompt": "a cube"}}'
        )
    _check_names(items, path)
    return items


def check_there(request: Request, manifest: str | Path) -> None:
    """Raise InputError for a file of a request that is not there: a manifest is easily copied without its files."""
    files = [control.path for control in request.controls or ()]
    files += [file.path for file in (request.image, request.mask) if file is not None]
    added = [one.name for one in request.loras or ()] + [one.name for one in request.embeddings or ()]
    files += [name for name in added if not is_name(name)]
    for name in files:
        with contextlib.suppress(
            OSError, ValueError
        ):  # what else is wrong with it is told where it is opened
            try:
                Path(name).stat()
            except FileNotFoundError:
                raise InputError(
                    f"{name}: no such file; paths in {manifest} are relative to its folder: copy the file there too, "
                    "or run the manifest where its files are"
                ) from None


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"{path}: cannot be read ({reason.lower()}); expected a file of JSON lines"
        ) from None
    if len(data) > MAX_BYTES:
        raise InputError(f"{path}: is over {MAX_BYTES // 2**20} MiB; split it")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(
            f"{path}:{line}: not UTF-8 at byte {error.start}; save the manifest as UTF-8"
        ) from None


def _words(text: str, where: str) -> dict[str, Any]:
    """A line as words by their keys, of the right form each."""
    try:
        found = strict_json.loads(text)
    except ValueError as error:
        raise InputError(f"{where}: not valid JSON ({str(error)[:100]})") from None
    if not isinstance(found, dict):
        raise InputError(
            f'{where}: a JSON {type(found).__name__}; expected an object such as {{"prompt": "a cube"}}'
        )
    words = {key.replace("-", "_"): value for key, value in found.items()}
    if len(words) != len(found):
        raise InputError(f"{where}: a key occurs twice, with a dash and with an underscore")
    for key, value in words.items():
        if key not in KEYS:
            raise InputError(f"{where}: unknown key {key[:60]!a}{_hint(key)}")
        if not _fits(value, KEYS[key]):
            raise InputError(f"{where}: {key} is {json.dumps(value)[:60]}; expected {KEYS[key]}")
    return words


def _hint(key: str) -> str:
    if key in OF_THE_COMMAND:
        return f": it holds for the whole batch; give --{key.replace('_', '-')} on the command line"
    near = difflib.get_close_matches(key, KEYS, n=2, cutoff=0.6)
    return f"; did you mean {' or '.join(near)}?" if near else f"; expected some of {', '.join(KEYS)}"


def _fits(value: Any, form: str) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    match form:
        case "text":
            return isinstance(value, str)
        case "a whole number":
            return isinstance(value, int) and not isinstance(value, bool)
        case "a number":
            return number
        case "true or false":
            return isinstance(value, bool)
        case "texts":
            return isinstance(value, str) or (
                isinstance(value, list) and all(isinstance(v, str) for v in value)
            )
        case _:
            return isinstance(value, list) and all(_fits(v, NUMBER) for v in value)


def _item(words: dict[str, Any], line: int, where: str, folder: Path) -> Item:
    out = words.pop("out", None)
    for key in ("control", "derive", "lora", "embedding"):
        if isinstance(words.get(key), str):
            words[key] = [words[key]]
    for key in ("timesteps", "sigmas"):
        if key in words:
            words[key] = tuple(words[key])
    if "timesteps" in words and not all(isinstance(t, int) for t in words["timesteps"]):
        raise InputError(f"{where}: timesteps must be whole numbers")

    def place(path: str) -> str:
        return _inside(folder, path, where)

    try:
        request = request_from_words(words, place=place, exists=lambda name: is_there(folder / name))
        if request.seed is None:
            request = replace(request, seed=_seed_of(words))
        request.check()
        if out is not None and request.count not in (None, 1):
            raise UsageError(f"out {out!r}: one name for {request.count} pictures; leave it out")
        for name in (out or "").split("/"):
            check_name("out", name)
    except UsageError as error:
        return Item(line, error)
    return Item(line, request, None if out is None else _output_name(out, where))


def _seed_of(words: Mapping[str, Any]) -> int:
    digest = int(hashlib.sha256(canonical(words)).hexdigest()[:16], 16)
    count = words.get("count", 1)
    return digest % (MAX_SEED + 2 - count) if isinstance(count, int) and 1 <= count <= MAX_SEED else 0


def _inside(folder: Path, path: str, where: str) -> str:
    """`path` from the manifest's folder; raises InputError for one that leads out of it, links followed."""
    given = Path(path)
    if given.is_absolute() or given.drive or "\\" in path or ".." in given.parts:
        raise InputError(
            f"{where}: path {path[:120]!a} leads out of the manifest's folder; expected one inside it"
        )
    inside = leads_inside(folder / given, folder)
    if inside is None:
        raise InputError(f"{where}: path {path[:120]!a} cannot be followed; expected one inside the folder")
    if not inside:
        raise InputError(
            f"{where}: path {path[:120]!a} leads out of the manifest's folder by a link: copy the file there"
        )
    return str(folder / given)


def _output_name(out: str, where: str) -> str:
    """A picture's name inside the output folder, with its ending; raises InputError for any other."""
    parts = out.split("/")
    stem = parts[-1][:-4] if parts[-1].lower().endswith(".png") else parts[-1]
    bad = any(not part or part.startswith(".") or part != part.strip() for part in (*parts[:-1], stem))
    if bad or any(not c.isprintable() or c in '\\:*?"<>|' for c in out):
        raise InputError(
            f"{where}: out {out[:120]!a}: expected a name inside the output folder, such as cubes/red.png"
        )
    try:
        return picture_name(out)
    except UsageError as error:
        raise InputError(f"{where}: {error}") from None


def _check_names(items: list[Item], path: Path) -> None:
    taken: dict[str, Item] = {}
    for item in items:
        if item.out is None:
            continue
        other = taken.setdefault(name_key(item.out), item)
        if other is not item:
            alike = "" if other.out == item.out else f" (as {other.out!r}: the same but for case or accents)"
            raise InputError(
                f"{path}:{item.line}: out {item.out!r} is taken by line {other.line}{alike}; rename one"
            )
