"""`rawdiff gen`: draw pictures."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from rawdiff.cli import drawing, options
from rawdiff.cli.talk import ask, picture_line, print_plan
from rawdiff.cli.terminal import Progress, print_timings
from rawdiff.jobs.words import request_from_words

__all__ = ["EPILOG", "gen"]

OUTPUT = "Output"

EPILOG = """[bold]Examples[/bold]

[cyan]rawdiff gen -p "a red cube on grass"[/cyan]
[cyan]rawdiff gen -p "two blue spheres on sand" --depth room.png --size 768x512 --seed 7[/cyan]
[cyan]rawdiff gen -p "a cone at night" --control depth=room.png@0.8,0-0.6 --sampler "dpm++ 2m karras"[/cyan]
[cyan]rawdiff gen -p "a blue cone on grass" --image room.png --mask hole.png[/cyan]
[cyan]rawdiff gen --from output_images/a-red-cube-on-grass-7.png --steps 50[/cyan]
"""


def gen(
    context: typer.Context,
    prompt: drawing.Prompt = None,
    negative: drawing.Negative = None,
    prompt_2: drawing.Prompt2 = None,
    negative_2: drawing.Negative2 = None,
    size: drawing.Size = None,
    size_ids: drawing.SizeIds = None,
    seed: drawing.Seed = None,
    count: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="How many pictures; the seed counts up.", rich_help_panel=drawing.WORDS
        ),
    ] = None,
    remake: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="PNG",
            help="Make this picture again; other options change it.",
            rich_help_panel=drawing.WORDS,
        ),
    ] = None,
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
    out: Annotated[
        str | None,
        typer.Option(
            "--out",
            "-o",
            metavar="PATH",
            help="A folder, or FILE.png; output_images/.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", metavar="", help="Let FILE.png be replaced.", rich_help_panel=OUTPUT),
    ] = False,
    preview: Annotated[
        bool,
        typer.Option(
            "--preview",
            metavar="",
            help="Write what each step sees coming, as small pictures.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    save_hints: Annotated[
        bool,
        typer.Option(
            "--save-hints", metavar="", help="Write what the nets were shown.", rich_help_panel=OUTPUT
        ),
    ] = False,
    batch: Annotated[
        int, typer.Option(metavar="N", help="Pictures drawn at once.", rich_help_panel=options.WORK)
    ] = 1,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            metavar="",
            help="Check everything, print the plan, draw nothing.",
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
    """Draw pictures from words, from maps of depth, normals or edges, and from pictures.

    Their paths go to standard output (with --dry-run the plan), everything else to standard error.

    Each picture carries its recipe, from which [cyan]--from[/cyan] makes it again.
    """
    words = {**drawing.words_of(locals()), "count": count}
    request = request_from_words(words)
    console = options.console_of(context)
    if remake is None or prompt == "-":
        request = request_from_words({**words, **ask(request, console)})
    if remake is None:
        request.check()  # before anything heavy is imported

    from rawdiff.jobs.generate import Settings, generate
    from rawdiff.jobs.place import Place

    where: dict[str, Any] = {"model": model, "device": device, "dtype": dtype, "revision": revision}
    where |= {"speed": speed, "memory": memory, "vae": vae, "backend": backend}
    finished = generate(
        request,
        Place.from_words(net or (), offline=offline, **where),
        Settings(out, overwrite, batch, dry_run, preview, save_hints, timings, console.waited_ms),
        remake=remake,
        watchers=[Progress(console)] if console.is_terminal else [],
        say=console.say,
        done=lambda path, drawn: print(picture_line(path, drawn) if json_lines else path, flush=True),
    )
    if dry_run:
        print_plan(finished.job, json_lines)
    if finished.probe is not None:
        print_timings(finished.probe, console, json_lines)
