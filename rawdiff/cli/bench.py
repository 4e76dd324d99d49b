"""`rawdiff bench`: where the time goes, and what would save some of it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from rawdiff.cli import drawing, options
from rawdiff.cli.talk import ask
from rawdiff.cli.terminal import printable
from rawdiff.jobs.words import request_from_words
from rawdiff.paths import expanded

__all__ = ["EPILOG", "bench"]

STUDY = "Measuring"

EPILOG = """[bold]Examples[/bold]

[cyan]rawdiff bench -p "a red cube on grass" --depth room.png --size 384x256[/cyan]
[cyan]rawdiff bench -p "a red cube on grass" --only steps --only bf16 --html bench.html[/cyan]
[cyan]rawdiff bench -p "a cosy living room" --model sd1.5 --no-proposals --repeat 1 --json bench.json[/cyan]
"""


def _expanded(path: str | None) -> str | None:
    return str(expanded(path)) if path else path


def bench(
    context: typer.Context,
    prompt: drawing.Prompt = None,
    negative: drawing.Negative = None,
    prompt_2: drawing.Prompt2 = None,
    negative_2: drawing.Negative2 = None,
    size: drawing.Size = None,
    size_ids: drawing.SizeIds = None,
    seed: drawing.Seed = None,
    depth: drawing.Depth = None,
    normal: drawing.Normal = None,
    canny: drawing.Canny = None,
    derive: drawing.Derive = None,
    control: drawing.Controls = None,
    fit: drawing.Fit = None,
    depth_range: drawing.DepthRange = None,
    depth_invert: drawing.DepthInvert = None,
    prompt_syntax: drawing.Syntax = None,
    image: drawing.Image = None,
    mask: drawing.Mask = None,
    strength: drawing.Strength = None,
    paste: drawing.Paste = None,
    blend: drawing.Blend = None,
    sampler: drawing.Sampler = None,
    steps: drawing.Steps = None,
    timesteps: drawing.Timesteps = None,
    sigmas: drawing.Sigmas = None,
    guidance: drawing.Guidance = None,
    rescale: drawing.Rescale = None,
    guidance_end: drawing.GuidanceEnd = None,
    clip_skip: drawing.ClipSkip = None,
    guess: drawing.Guess = None,
    eta: drawing.Eta = None,
    model: options.ModelName = None,
    net: options.Nets = None,
    vae: options.Vae = None,
    lora: drawing.Loras = None,
    embedding: drawing.Embeddings = None,
    revision: options.Revision = None,
    offline: options.Offline = False,
    device: options.Device = None,
    dtype: options.Dtype = None,
    speed: options.Speed = None,
    memory: options.Memory = None,
    backend: options.Backend = None,
    repeat: Annotated[
        int, typer.Option(metavar="N", help="How often each is drawn, in turn.", rich_help_panel=STUDY)
    ] = 3,
    no_proposals: Annotated[
        bool,
        typer.Option(
            "--no-proposals", metavar="", help="Measure the command as it is, no more.", rich_help_panel=STUDY
        ),
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Try this proposal, or those of a group: steps, sampler, bf16, exact, guidance, control, reuse. "
            "Repeatable.",
            rich_help_panel=STUDY,
        ),
    ] = None,
    json_file: Annotated[
        str | None,
        typer.Option(
            "--json",
            metavar="FILE",
            callback=_expanded,
            help="Write all of it as JSON.",
            rich_help_panel=STUDY,
        ),
    ] = None,
    html_file: Annotated[
        str | None,
        typer.Option(
            "--html",
            metavar="FILE",
            callback=_expanded,
            help="Write a page with charts and every picture, complete in itself.",
            rich_help_panel=STUDY,
        ),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", metavar="", help="Let those files be replaced.", rich_help_panel=STUDY),
    ] = False,
    debug: options.Debug = False,
) -> None:
    """Measure where a picture's time goes, and try what would save some of it.

    Takes [cyan]gen[/cyan]'s options and draws the same picture: in a process of its own, then again and again in this
    one, and with each proposal in turn (fewer steps, other samplers, bf16, guidance that ends early, ...). The table
    goes to standard output; no picture is written but into the page.
    """
    words = drawing.words_of(locals())
    where: dict[str, Any] = {"model": model, "revision": revision, "device": device, "dtype": dtype}
    where |= {"speed": speed, "memory": memory, "vae": vae, "backend": backend}
    console = options.console_of(context)
    words |= ask(request_from_words(words), console)
    request = request_from_words(words).check()

    from rawdiff.jobs.place import Place
    from rawdiff.study.bench import Settings, study

    settings = Settings(repeat, not no_proposals, tuple(only or ()), json_file, html_file, overwrite)
    words |= {"net": net, "offline": offline or None, **where}
    place = Place.from_words(net or (), offline=offline, **where)
    for line in study(request, place, words, settings, console.say):
        print(printable(line), flush=True)
