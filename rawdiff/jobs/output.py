"""Where pictures go: a folder and names made from the prompt, or one file by its name; and how many at once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from rawdiff import images
from rawdiff.errors import UsageError
from rawdiff.jobs.job import Drawn
from rawdiff.paths import absent, check_name, expanded, is_folder, is_there, remove_empty
from rawdiff.say import Say

__all__ = ["OUTPUT_FOLDER", "Output", "check_batch", "find_folder", "find_output", "stem_for"]

MAX_BATCH = 256
OUTPUT_FOLDER = "output_images"


@dataclass(frozen=True)
class Output:
    """A folder that takes files, and the name that the one picture shall have, if it was said."""

    folder: Path
    name: str | None = None
    overwrite: bool = False
    made: tuple[Path, ...] = ()
    """The folders that `ready` makes for it, the innermost first."""

    def ready(self) -> Output:
        """The same, its folder made and written to on trial, before anything slow begins; raises ResourceError."""
        made = absent(self.folder)
        try:
            images.check_writable(self.folder)
        except BaseException:
            remove_empty(made)
            raise
        return replace(self, made=made)

    def abandon(self) -> None:
        """Nothing will be written: folders made for it go again, if they are empty."""
        remove_empty(self.made)

    def stem(self, prompt: str, seed: int) -> str:
        """The name without its ending."""
        return stem_for(prompt, seed) if self.name is None else self.name[: -len(".png")]

    def write(self, drawn: Drawn, say: Say) -> Path:
        """Write a picture with its recipe, whole or not at all, over nothing that is there; ResourceError.

        Where its name was taken while it was drawn it gets the next free one, which is said.
        """
        picture = drawn.recipe["picture"]
        stem = self.stem(picture["prompt"], picture["seed"])
        if self.name is not None:
            path = self.folder / self.name
            data = images.encode_png(drawn.image, drawn.recipe, drawn.parameters)
            try:
                return images.publish(path, data, overwrite=self.overwrite)
            except FileExistsError:
                say(f"{path}: was taken while the picture was drawn: it gets the next free name")
        return images.write_next(self.folder, stem, drawn.image, drawn.recipe, drawn.parameters)


def stem_for(prompt: str, seed: int) -> str:
    """A name for a picture: the prompt's words and the seed."""
    return f"{images.stem_from(prompt)}-{seed}"


def check_batch(batch: int) -> None:
    """Raise UsageError for a number of pictures that is none."""
    if not 1 <= batch <= MAX_BATCH:
        raise UsageError(f"batch {batch}: expected a whole number from 1 to {MAX_BATCH}")


def find_folder(out: str | Path) -> Path:
    """The folder that `out` names, which need not be there; raises UsageError for what can be none."""
    path = _named(str(out), "a folder")
    if path.suffix.lower() == ".png" and not is_folder(path):
        raise UsageError(f"out {out}: the name of a picture; expected a folder")
    return path


def _named(text: str, expected: str) -> Path:
    if not text or "\0" in text:
        raise UsageError(f"out {text!r}: expected {expected}")
    path = expanded(text)
    check_name("out", path)
    return path


def find_output(out: str | Path | None, *, count: int = 1, overwrite: bool = False) -> Output:
    """The place that `out` names: a folder, or a file that ends in `.png`; nothing is made yet.

    Raises UsageError for a name that is taken or no PNG.
    """
    text = OUTPUT_FOLDER if out is None else str(out)
    path = _named(text, "a folder, or a file that ends in .png")
    suffix = path.suffix.lower()
    if not is_folder(path):
        images.picture_name(path.name)
    if suffix != ".png" or is_folder(path):
        if overwrite:
            raise UsageError(
                "overwrite: goes with --out FILE.png; in a folder every picture has a name of its own"
            )
        return Output(path)
    if count != 1:
        raise UsageError(f"out {text}: one file for {count} pictures; expected a folder")
    taken = is_there(path) or path.is_symlink()
    if taken and not overwrite:
        raise UsageError(f"{text}: exists already; choose another name, or --overwrite")
    stem = path.name[: -len(".png")]
    if (
        not taken
        and is_folder(path.parent)
        and images.next_path(path.parent, stem).name.lower() != path.name.lower()
    ):
        raise UsageError(
            f"{text}: a file of that name but for case or accents exists already; choose another"
        )
    return Output(path.parent, path.name, overwrite)
