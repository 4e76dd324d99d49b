"""The command line in this process, and a small model for it to draw with."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rawdiff.cli import main

__all__ = ["Result", "Terminal", "all_files", "blank", "depth_map", "pixels", "rawdiff", "write_levels"]


@dataclass(frozen=True)
class Result:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """Lines of standard output."""
        return self.out.splitlines()

    @property
    def error(self) -> str:
        """The one line of standard error that an error amounts to."""
        [line] = self.err.splitlines()
        assert line.startswith("error: ")
        return line

    def ok(self) -> Result:
        """This result, if the command succeeded."""
        assert self.code == 0, self.err
        return self


class Terminal(io.TextIOWrapper):
    """Text that says it is a terminal."""

    def __init__(self, text: str = "") -> None:
        super().__init__(
            io.BytesIO(text.encode("utf-8", "surrogateescape")), encoding="utf-8", write_through=True
        )

    def isatty(self) -> bool:
        return True

    @property
    def text(self) -> str:
        """All that was written."""
        raw = self.buffer
        assert isinstance(raw, io.BytesIO)
        return raw.getvalue().decode()


def rawdiff(*argv: str | Path, stdin: Any = None, err: Any = None) -> Result:
    """Run the command line; `stdin` is text, bytes or a Terminal, `err` may be a Terminal."""
    out = io.StringIO()
    errors = io.StringIO() if err is None else err
    given = stdin if isinstance(stdin, Terminal) else None
    if given is None:
        data = b"" if stdin is None else stdin if isinstance(stdin, bytes) else str(stdin).encode()
        given = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8")  # type: ignore[assignment]
    last, sys.stdin = sys.stdin, given
    try:
        with redirect_stdout(out), redirect_stderr(errors):
            code = main([str(word) for word in argv])
    finally:
        sys.stdin = last
    return Result(code, out.getvalue(), errors.text if isinstance(errors, Terminal) else errors.getvalue())


def depth_map(path: Path, size: tuple[int, int] = (48, 72), turn: float = 1.0) -> Path:
    """A 16-bit depth map of `size` (height, width), a dome; `turn` makes others."""
    y, x = np.mgrid[0 : size[0], 0 : size[1]]
    far = np.hypot((x - size[1] / 2) * turn, y - size[0] / 2) / max(size)
    Image.fromarray((65535 * np.clip(1 - far, 0, 1)).astype(np.uint16)).save(path)
    return path


def write_levels(array: np.ndarray, path: Path) -> None:
    """An array in 0..1 as an 8-bit PNG, grey or in colour."""
    Image.fromarray(np.rint(255 * array).astype(np.uint8)).save(path)


def pixels(path: str | Path) -> np.ndarray:
    """[H,W,3] uint8."""
    return np.asarray(Image.open(path).convert("RGB"))


def blank(path: str | Path) -> None:
    """Make every pixel of a PNG black, its texts left as they are."""
    with Image.open(path) as image:
        image.load()
        texts = dict(image.text)  # type: ignore[attr-defined]
        size = image.size
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for key, text in texts.items():
        info.add_text(key, text)
    Image.new("RGB", size).save(path, pnginfo=info)


def all_files(folder: Path) -> Sequence[str]:
    """Names of everything in a folder, hidden files too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
