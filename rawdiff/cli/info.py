"""`rawdiff info`: what a picture says of itself."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from rawdiff.cli import options
from rawdiff.cli.terminal import printable

__all__ = ["info"]


def info(
    context: typer.Context,
    png: Annotated[
        str, typer.Argument(metavar="PNG", help="A picture made by rawdiff, or by a relative of A1111.")
    ],
    json_lines: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Show the recipe in a picture, and whether its maps are still there, the same."""
    from rawdiff.jobs.info import inspect, lines

    found = inspect(png)
    if json_lines:
        print(json.dumps(found))
    else:
        for line in lines(found):
            print(printable(line))
