"""`rawdiff sampler`: a sampler laid open."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from rawdiff.cli import options
from rawdiff.errors import NotTabular, UsageError
from rawdiff.jobs.request import Request
from rawdiff.jobs.words import request_from_words

__all__ = ["EPILOG", "sampler"]

EPILOG = """[bold]Examples[/bold]

[cyan]rawdiff sampler[/cyan]
[cyan]rawdiff sampler "dpm++ 2m karras" --steps 10 --plot table.svg[/cyan]
"""


def sampler(
    context: typer.Context,
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="Such as ddim; default is the model's own. Without: all names."),
    ] = None,
    steps: Annotated[int | None, typer.Option(metavar="N", help="Steps; 20.")] = None,
    timesteps: Annotated[
        str | None, typer.Option(metavar="T,T,...", help="Or the timesteps themselves.")
    ] = None,
    sigmas: Annotated[str | None, typer.Option(metavar="S,S,...", help="Or the noise levels.")] = None,
    eta: Annotated[float | None, typer.Option(metavar="X", help="0 to 1: DDIM's noise.")] = None,
    plot: Annotated[
        str | None, typer.Option(metavar="FILE", help="Draw P, Q, R and W: .svg or .png.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", metavar="", help="Let FILE be replaced.")] = False,
    model: options.ModelName = None,
    revision: options.Revision = None,
    offline: options.Offline = False,
    json_lines: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Show a sampler's rows, and its step as matrices P, Q, R and W; without a name, list the names."""
    console = options.console_of(context)
    words = {"prompt": "", "steps": steps, "timesteps": timesteps, "sigmas": sigmas, "eta": eta}
    asked: Request = request_from_words(words).check()
    if name is None:
        given = {**words, "plot": plot, "prompt": None}
        extra = [f"--{word}" for word, value in given.items() if value is not None]
        if extra:
            raise UsageError(
                f"{' and '.join(extra)}: of which sampler? give its NAME, or none of these for the names"
            )
        from rawdiff.weights.schedulers import known_names

        names = known_names()
        print(json.dumps(names) if json_lines else "\n".join(names))
        return

    from rawdiff.jobs.workshop import named_model
    from rawdiff.sampler import SamplerTable
    from rawdiff.study.plot import check_plot_path, write_plot
    from rawdiff.study.sampler import as_values, find_sampler, lines

    if plot is not None:
        check_plot_path(plot, overwrite=overwrite)
    found = find_sampler(
        name,
        named_model(model),
        steps=asked.steps,
        timesteps=asked.timesteps,
        sigmas=asked.sigmas,
        eta=0.0 if asked.eta is None else asked.eta,
        revision=revision,
        offline=offline,
        say=console.say,
    )
    if plot is not None:
        if not isinstance(found, SamplerTable):
            raise NotTabular(f"sampler {name!r}: has no table to plot (its step is not linear)")
        console.say(f"plot: {write_plot(plot, found, overwrite=overwrite)}")
    if json_lines:
        print(json.dumps(as_values(found)))
    else:
        for line in lines(found):
            print(line)
