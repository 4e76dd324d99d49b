"""The command line: `rawdiff gen | batch | bench | info | prompt | sampler | doctor`.

    talk.py       what gen asks and tells
    app.py        the commands together; each has a file of its own and no logic
    elsewhere.py  what options are called in other tools
    options.py    what several of them take; drawing.py: what those take that draw
    terminal.py   lines, questions and the progress bar, all on standard error

`main` turns every error into one line and an exit code. Nothing heavy is imported until a command needs it, so
that help and typing mistakes are answered at once.
"""

from __future__ import annotations

import codecs
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from rawdiff.cli.elsewhere import named_here
from rawdiff.cli.terminal import Console, Terminated
from rawdiff.errors import RawdiffError

__all__ = ["main"]

INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM
CLOSED = 128 + 13
"""Standard output was closed (`| head`): the reader has what it wanted, as with any program (SIGPIPE)."""
DEFECT = 1
_BYTES = "rawdiff-bytes"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; `argv` is without the program's name."""
    console = Console(sys.stderr)
    for stream in (sys.stdout, sys.stderr):  # a path may hold bytes that are no UTF-8
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=_BYTES if stream is sys.stdout else "backslashreplace")
    with _signals(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of libraries; what a person should know is said in words
        try:
            code = _run(argv, console)
            sys.stdout.flush()
        except KeyboardInterrupt:
            code = INTERRUPTED
        except Terminated:
            console.say("terminated; nothing half-written is left")
            return TERMINATED
        except (BrokenPipeError, SystemExit):  # typer makes the second of the first
            with open(os.devnull, "w") as nothing:  # noqa: PTH123 (the interpreter flushes once more at its end)
                os.dup2(nothing.fileno(), sys.stdout.fileno())
            code = CLOSED
    if code == INTERRUPTED:
        console.say("interrupted; nothing half-written is left")
    return code


def _escape(error: UnicodeError) -> tuple[str | bytes, int]:
    """Bytes of a path as they are; what an encoding has no sign for (a Windows code page, most of them) escaped."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeEncodeError:
        return codecs.backslashreplace_errors(error)


codecs.register_error(_BYTES, _escape)


def _run(argv: Sequence[str] | None, console: Console) -> int:
    import typer
    from typer.exceptions import TyperException

    from rawdiff.cli.app import app

    command = typer.main.get_command(app)
    try:
        code = command.main(
            args=None if argv is None else list(argv), prog_name="rawdiff", standalone_mode=False, obj=console
        )
        return code if isinstance(code, int) else 0
    except typer.Abort:
        return INTERRUPTED
    except TyperException as error:
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "rawdiff"
        console.say(f"error: {_as_known_here(error)}; see {path} --help")
        return error.exit_code
    except RawdiffError as error:
        return _fail(error, console)
    except BrokenPipeError:
        raise
    except Exception as error:
        if console.debug:
            traceback.print_exc()
        console.say(
            f"error: a defect in rawdiff ({type(error).__name__}: {str(error)[:300]}): run it again with --debug and "
            "report what it prints"
        )
        return DEFECT


def _as_known_here(error: Any) -> str:
    """What typer says is wrong, or what an option of another tool is called here."""
    option = getattr(error, "option_name", "")
    options = [name for one in error.ctx.command.params for name in one.opts] if option and error.ctx else []
    here = named_here(option, options)
    if here is None:
        return str(error.format_message()).rstrip(".")
    return f"No such option: {option}; rawdiff calls it {here}"


def _fail(error: RawdiffError, console: Console) -> int:
    if console.debug:
        traceback.print_exception(error)
    console.say(f"error: {error}")
    return error.exit_code


@contextmanager
def _signals() -> Iterator[None]:
    """SIGTERM as an exception, so that files are finished or dropped on the way out."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Terminated

    try:
        last = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, last)
