"""`rawdiff prompt`: how a prompt is read."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from rawdiff.cli import drawing, options
from rawdiff.cli.terminal import printable
from rawdiff.jobs.request import Request

__all__ = ["EPILOG", "prompt"]

EPILOG = """[bold]Examples[/bold]

[cyan]rawdiff prompt "a red cube on grass"[/cyan]
[cyan]rawdiff prompt "a (red:1.3) cube, [grass:sand:0.5]" --prompt-syntax a1111 --steps 20[/cyan]
"""


def prompt(
    context: typer.Context,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="The prompt.")],
    prompt_syntax: drawing.Syntax = None,
    steps: Annotated[
        int | None, typer.Option(metavar="N", help="Steps of the run, for prompt editing; 20.")
    ] = None,
    model: options.ModelName = None,
    revision: options.Revision = None,
    offline: options.Offline = False,
    json_lines: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Show how a prompt is read: its tokens and weights in chunks, its text at each step, and what is cut."""
    console = options.console_of(context)
    asked = Request(prompt=text, syntax=prompt_syntax, steps=steps).check()

    from rawdiff.arguments import STEPS
    from rawdiff.jobs.prompt import explain, lines
    from rawdiff.jobs.workshop import named_model

    found = explain(
        text,
        syntax=asked.syntax,
        steps=STEPS if asked.steps is None else asked.steps,
        model=named_model(model),
        revision=revision,
        offline=offline,
        say=console.say,
    )
    if json_lines:
        print(json.dumps(found))
    else:
        for line in lines(found):
            print(printable(line))
