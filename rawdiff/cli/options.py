"""Options that several commands take."""

from __future__ import annotations

from typing import Annotated

import typer

from rawdiff.cli.terminal import Console

__all__ = [
    "Backend",
    "Debug",
    "Device",
    "Dtype",
    "Json",
    "Memory",
    "ModelName",
    "Nets",
    "Offline",
    "Revision",
    "Speed",
    "Timings",
    "Vae",
    "console_of",
]

MODEL = "Model"
WORK = "How it runs"


def console_of(context: typer.Context) -> Console:
    """The console that `main` made."""
    console = context.find_root().obj
    assert isinstance(console, Console)
    return console


def _debug(context: typer.Context, value: bool) -> bool:
    console_of(context).debug = value
    return value


ModelName = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="SOURCE",
        help="A folder, a file, an alias (sd1.5), OWNER/NAME on the hub, or merge:A@0.6+B@0.4; else what RAWDIFF_MODEL "
        "names, else the embedded model.",
        rich_help_panel=MODEL,
    ),
]
Nets = Annotated[
    list[str] | None,
    typer.Option(
        "--net",
        metavar="KIND=SOURCE",
        help="The ControlNet for a kind of map, where the model's own is not wanted. Repeatable.",
        rich_help_panel=MODEL,
    ),
]
Vae = Annotated[
    str | None,
    typer.Option(
        "--vae",
        metavar="SOURCE",
        help="Another VAE than the model's: a folder, file or OWNER/NAME that is one or holds one; none drops that of "
        "--from.",
        rich_help_panel=MODEL,
    ),
]
Revision = Annotated[
    str | None,
    typer.Option(
        metavar="COMMIT", help="Of a model on the hub: a branch, tag or commit.", rich_help_panel=MODEL
    ),
]
Offline = Annotated[
    bool,
    typer.Option(
        "--offline", metavar="", help="Open no connection; use what is on disk.", rich_help_panel=MODEL
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        metavar="DEVICE", help="cpu, cuda or cuda:N; else the first GPU, else the CPU.", rich_help_panel=WORK
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        metavar="DTYPE", help="fp32, bf16 or fp16; else fp16 on a GPU, fp32 on a CPU.", rich_help_panel=WORK
    ),
]
Speed = Annotated[
    str | None,
    typer.Option(
        metavar="HOW",
        help="eager, graph (CUDA graphs) or compile (minutes before the first picture); else graph on a GPU.",
        rich_help_panel=WORK,
    ),
]
Memory = Annotated[
    str | None,
    typer.Option(
        metavar="HOW",
        help="normal or low: slower, a part on the device at a time, large pictures in tiles (approximate).",
        rich_help_panel=WORK,
    ),
]
Backend = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="torch, or openvino: the networks by OpenVINO on the CPU, in fp32 or bf16, converted once and kept.",
        rich_help_panel=WORK,
    ),
]
Json = Annotated[
    bool, typer.Option("--json", metavar="", help="Results as JSON, an object a line.", rich_help_panel=WORK)
]
Timings = Annotated[
    bool,
    typer.Option(
        "--timings",
        metavar="",
        help="What took how long, as a tree, from the process's start.",
        rich_help_panel=WORK,
    ),
]
Debug = Annotated[
    bool,
    typer.Option(
        "--debug",
        metavar="",
        help="Show the traceback of an error.",
        callback=_debug,
        is_eager=True,
        rich_help_panel=WORK,
    ),
]
