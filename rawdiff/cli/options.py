"""Options that several commands take."""

from __future__ import annotations

from typing import Annotated

import typer

from rawdiff.cli.terminal import Console

__all__ = [
    "Debug",
    "Device",
    "Dtype",
    "Embeddings",
    "GuidanceEnd",
    "Image",
    "Json",
    "Loras",
    "Mask",
    "Memory",
    "ModelName",
    "Nets",
    "Offline",
    "Paste",
    "Revision",
    "Speed",
    "Strength",
    "Syntax",
    "Timings",
    "console_of",
]

IMAGE = "Image"
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


Syntax = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="plain: all is text; or a1111: (word:1.2), [a:b:0.5], BREAK, <lora:name:0.8>, any length. See rawdiff "
        "prompt.",
        rich_help_panel="What to draw",
    ),
]
Image = Annotated[
    str | None,
    typer.Option(
        metavar="PATH", help="A picture to begin from; its size is the result's.", rich_help_panel=IMAGE
    ),
]
Mask = Annotated[
    str | None,
    typer.Option(
        metavar="PATH",
        help="What to paint anew in it: white is, black stays. Of the image's size.",
        rich_help_panel=IMAGE,
    ),
]
Strength = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        help="How much of the run is left to do, up to 1; 0.8, with a mask 1.",
        rich_help_panel=IMAGE,
    ),
]
Paste = Annotated[
    bool | None,
    typer.Option(
        "--paste/--no-paste",
        metavar="",
        help="Paste what stays back into the picture, as it was before the VAE; on.",
        rich_help_panel=IMAGE,
    ),
]
GuidanceEnd = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        help="0 to 1: guidance is off after this share of the run, at half the work a step; 1.",
        rich_help_panel="Sampling",
    ),
]
ModelName = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="SOURCE",
        help="A folder, a file, an alias (sd1.5) or OWNER/NAME on the hub; else what RAWDIFF_MODEL names, else the "
        "embedded model.",
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
Loras = Annotated[
    list[str] | None,
    typer.Option(
        "--lora",
        metavar="PATH",
        help="A LoRA's file, or the name of one that the model brings; PATH@0.8 gives its scale. Repeatable; none "
        "drops those of --from.",
        rich_help_panel=MODEL,
    ),
]
Embeddings = Annotated[
    list[str] | None,
    typer.Option(
        "--embedding",
        metavar="PATH",
        help="A textual-inversion embedding, or its name; PATH=WORD gives its trigger. Repeatable; none drops "
        "those of --from.",
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
