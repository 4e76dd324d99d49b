"""`rawdiff batch`: draw what a manifest lists."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from rawdiff.cli import options
from rawdiff.cli.talk import print_plan
from rawdiff.cli.terminal import Progress, print_timings

__all__ = ["EPILOG", "batch"]

EPILOG = """[bold]A line of FILE[/bold]

[cyan]{"prompt": "a red cube on grass", "depth": "maps/room.png", "size": "768x512", "seed": 7}[/cyan]

Keys are gen's options for a picture; [cyan]out[/cyan] names it inside the output folder.

Without a seed a line has one made from what it says; [cyan]count[/cyan] draws several.

Maps lie in the file's folder or below it.
"""


def batch(
    context: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE", help="JSON lines; paths in it are relative to it.")],
    out: Annotated[
        str,
        typer.Option(
            "--out", "-o", metavar="FOLDER", help="Where the pictures go.", rich_help_panel="Output"
        ),
    ] = "output_images",
    model: options.ModelName = None,
    net: options.Nets = None,
    vae: options.Vae = None,
    revision: options.Revision = None,
    offline: options.Offline = False,
    at_once: Annotated[
        int,
        typer.Option(
            "--batch", metavar="N", help="Pictures of an item drawn at once.", rich_help_panel=options.WORK
        ),
    ] = 1,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            metavar="",
            help="Check every item, tell its plan, draw nothing.",
            rich_help_panel=options.WORK,
        ),
    ] = False,
    device: options.Device = None,
    dtype: options.Dtype = None,
    speed: options.Speed = None,
    memory: options.Memory = None,
    backend: options.Backend = None,
    json_lines: options.Json = False,
    timings: options.Timings = False,
    debug: options.Debug = False,
) -> None:
    """Draw what a manifest lists, one item a line.

    Pictures that are there already are not drawn again; a failed item does not stop the others, but a line that cannot
    be read stops all before anything is drawn.
    """
    console = options.console_of(context)
    from rawdiff.jobs.batch import draw_manifest
    from rawdiff.jobs.place import Place

    def done(path: Path, job_id: str, seconds: float | None) -> None:
        said: dict[str, Any] = {"path": str(path), "id": job_id, "drawn": seconds is not None}
        if seconds is not None:
            said["seconds"] = round(seconds, 3)
        print(json.dumps(said) if json_lines else path, flush=True)

    probe = draw_manifest(
        file,
        Place.from_words(
            net or (),
            model=model,
            vae=vae,
            device=device,
            dtype=dtype,
            revision=revision,
            offline=offline,
            speed=speed,
            memory=memory,
            backend=backend,
        ),
        out,
        batch=at_once,
        dry_run=dry_run,
        timings=timings,
        watchers=[Progress(console)] if console.is_terminal else [],
        say=console.say,
        done=done,
        planned=lambda line, job: print_plan(job, json_lines, f"line {line}: "),
        debug=debug,
    )
    if probe is not None:
        print_timings(probe, console, json_lines)
