"""Lines, questions and the progress bar, all on standard error: standard output is for results."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from rawdiff.errors import UsageError

if TYPE_CHECKING:
    from rawdiff.jobs.job import Job
    from rawdiff.probes import Probe
    from rawdiff.run import Run
    from rawdiff.step import Step

__all__ = ["Console", "Progress", "Terminated", "print_timings", "printable"]

MAX_PROMPT_BYTES = 2**20
BAR = 24


class Terminated(BaseException):
    """SIGTERM arrived; like KeyboardInterrupt, no handler of errors may take it for one."""


def printable(text: str) -> str:
    """`text` on one line, with line ends and control characters shown, not obeyed."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class Console:
    """Where a command says things. `debug` is whether tracebacks are wanted."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.debug = False
        self.waited_ms = 0.0
        """How long answers were waited for."""
        self._bar = ""

    @property
    def is_terminal(self) -> bool:
        """Whether a person is looking on."""
        return self.stream.isatty()

    def say(self, line: str) -> None:
        """One line, whatever `line` holds."""
        self.clear()
        print(printable(line), file=self.stream, flush=True)

    def bar(self, text: str) -> None:
        """Show `text` in place of the last bar."""
        if self.is_terminal:
            self.stream.write("\r" + text.ljust(len(self._bar)))
            self.stream.flush()
            self._bar = text

    def clear(self) -> None:
        """Take the bar away."""
        if self._bar:
            self.stream.write("\r" + " " * len(self._bar) + "\r")
            self.stream.flush()
            self._bar = ""

    def ask(self, question: str) -> str:
        """The answer of a person at a terminal, without blanks around it; UsageError where there is none."""
        self.stream.write(f"{question} ")
        self.stream.flush()
        try:
            with self._waiting():
                return input().strip()
        except EOFError:
            self.stream.write("\n")
            raise UsageError(f"no answer to {question!r}: standard input has ended") from None

    def read_prompt(self) -> str:
        """All of standard input as text, without the line end after it; raises UsageError."""
        with self._waiting():
            return _read_prompt()

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            self.waited_ms += 1e3 * (time.monotonic() - start)

    @property
    def can_ask(self) -> bool:
        """Whether there is a person to answer."""
        return self.is_terminal and sys.stdin is not None and sys.stdin.isatty()


def _read_prompt() -> str:
    if sys.stdin is None:
        raise UsageError("prompt from standard input: that is closed; give it with --prompt TEXT")
    data = sys.stdin.buffer.read(MAX_PROMPT_BYTES + 1)
    if len(data) > MAX_PROMPT_BYTES:
        raise UsageError(
            f"prompt from standard input: more than {MAX_PROMPT_BYTES} bytes; expected a few words"
        )
    try:
        return data.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"prompt from standard input: no UTF-8 at byte {error.start}: save it as UTF-8"
        ) from None


def print_timings(probe: Probe, console: Console, json_lines: bool) -> None:
    """The probe's tree, for a person or as a last line of JSON."""
    if json_lines:
        print(json.dumps({"timings": probe.tree().as_dict()}))
        return
    for line in probe.table().splitlines():
        console.say(line)


class Progress:
    """A watcher that draws a bar: which step, how fast, how long yet."""

    watch: Sequence[str] = ()

    def __init__(self, console: Console) -> None:
        self._console = console
        self._start = time.monotonic()
        self._first, self._total = 0, 1

    def begin(self, run: Run, first: int, job: Job) -> None:
        if first == 0:
            self._start = time.monotonic()
        self._first, self._total = first, len(job.seeds)

    def step(self, run: Run, step: Step) -> None:
        batch, steps, done = len(run.seeds), len(run), step.index + 1
        share = (self._first + batch * done / steps) / self._total
        passed = time.monotonic() - self._start
        left = passed * (1 - share) / share
        each = passed / max(1e-9, share * self._total * steps / batch)
        filled = round(BAR * share)
        which = (
            f"picture {self._first + 1}-{self._first + batch} of {self._total}  " if self._total > 1 else ""
        )
        self._console.bar(
            f"{which}step {done:>{len(str(steps))}}/{steps}  {'━' * filled}{'╌' * (BAR - filled)}  "
            f"{each:.2f} s/step  {_clock(left)} left"
        )

    def end(self) -> None:
        self._console.clear()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
