"""The commands, together."""

from __future__ import annotations

from typing import Annotated

import typer

from rawdiff.cli import batch, bench, doctor, gen, info, prompt, sampler
from rawdiff.version import __version__

__all__ = ["app"]

app = typer.Typer(
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _version(value: bool) -> None:
    if value:
        print(f"rawdiff {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """[bold]Stable Diffusion and ControlNet, taken apart.[/bold]

    Pictures from words and depth maps, and a look at every step on the way.

    [cyan]rawdiff gen -p "a red cube on grass" --depth room.png[/cyan]
    """
    if context.invoked_subcommand is None:
        print(context.get_help())


app.command("gen", epilog=gen.EPILOG)(gen.gen)
app.command("batch", epilog=batch.EPILOG)(batch.batch)
app.command("bench", epilog=bench.EPILOG)(bench.bench)
app.command("info")(info.info)
app.command("prompt", epilog=prompt.EPILOG)(prompt.prompt)
app.command("sampler", epilog=sampler.EPILOG)(sampler.sampler)
app.command("doctor")(doctor.doctor)
