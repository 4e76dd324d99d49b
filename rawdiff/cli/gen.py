"""`rawdiff gen`: draw pictures."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from rawdiff.cli import options
from rawdiff.cli.talk import complete, picture_line, print_plan
from rawdiff.cli.terminal import Progress, print_timings
from rawdiff.jobs.words import request_from_words

__all__ = ["EPILOG", "gen"]

WORDS, MAPS, SAMPLING, OUTPUT = "What to draw", "Maps", "Sampling", "Output"

EPILOG = """[bold]Examples[/bold]

[cyan]rawdiff gen -p "a red cube on grass"[/cyan]
[cyan]rawdiff gen -p "two blue spheres on sand" --depth room.png --size 768x512 --seed 7[/cyan]
[cyan]rawdiff gen -p "a cone at night" --control depth=room.png@0.8,0-0.6 --sampler "dpm++ 2m karras"[/cyan]
[cyan]rawdiff gen -p "a blue cone on grass" --image room.png --mask cube.png[/cyan]
[cyan]rawdiff gen --from output_images/a-red-cube-on-grass-7.png --steps 50[/cyan]
"""


def gen(
    context: typer.Context,
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt",
            "-p",
            metavar="TEXT",
            help="What to draw; - reads standard input.",
            rich_help_panel=WORDS,
        ),
    ] = None,
    negative: Annotated[
        str | None,
        typer.Option("--negative", "-n", metavar="TEXT", help="What not to draw.", rich_help_panel=WORDS),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="WxH",
            help="In pixels, multiples of 8; else the map's shape at the model's own area.",
            rich_help_panel=WORDS,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="0 to 4294967295; else one is drawn, and printed.", rich_help_panel=WORDS
        ),
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(metavar="N", help="How many pictures; the seed counts up.", rich_help_panel=WORDS),
    ] = None,
    remake: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="PNG",
            help="Make this picture again; other options change it.",
            rich_help_panel=WORDS,
        ),
    ] = None,
    depth: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="A depth map, near is white: PNG, TIFF, JPEG, WEBP, .npy.",
            rich_help_panel=MAPS,
        ),
    ] = None,
    normal: Annotated[
        str | None, typer.Option(metavar="PATH", help="A normal map.", rich_help_panel=MAPS)
    ] = None,
    canny: Annotated[
        str | None, typer.Option(metavar="PATH", help="An edge map.", rich_help_panel=MAPS)
    ] = None,
    derive: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND",
            help="normal or canny: make that map from the one given for it, or from the depth map. Repeatable.",
            rich_help_panel=MAPS,
        ),
    ] = None,
    control: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND=PATH",
            help="Any map; PATH@0.8 gives its weight, PATH@0.8,0-0.6 also the part of the run where it counts. "
            "Repeatable; none drops those of --from.",
            rich_help_panel=MAPS,
        ),
    ] = None,
    fit: Annotated[
        str | None,
        typer.Option(
            metavar="HOW", help="crop, pad or stretch a map or image of another aspect.", rich_help_panel=MAPS
        ),
    ] = None,
    depth_range: Annotated[
        str | None,
        typer.Option(
            metavar="LO,HI",
            help="What is far and near in the map's own units, or auto.",
            rich_help_panel=MAPS,
        ),
    ] = None,
    depth_invert: Annotated[
        bool | None,
        typer.Option(
            "--depth-invert/--no-depth-invert",
            metavar="",
            help="Near is black, or small.",
            rich_help_panel=MAPS,
        ),
    ] = None,
    prompt_syntax: options.Syntax = None,
    image: options.Image = None,
    mask: options.Mask = None,
    strength: options.Strength = None,
    paste: options.Paste = None,
    sampler: Annotated[
        str | None,
        typer.Option(
            "--sampler",
            "-s",
            metavar="NAME",
            help='Such as "euler a"; see rawdiff sampler.',
            rich_help_panel=SAMPLING,
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(metavar="N", help="Steps; 20.", rich_help_panel=SAMPLING)
    ] = None,
    timesteps: Annotated[
        str | None,
        typer.Option(metavar="T,T,...", help="Or the timesteps themselves.", rich_help_panel=SAMPLING),
    ] = None,
    sigmas: Annotated[
        str | None, typer.Option(metavar="S,S,...", help="Or the noise levels.", rich_help_panel=SAMPLING)
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(
            "--guidance",
            "-g",
            metavar="X",
            help="How strictly to follow the words.",
            rich_help_panel=SAMPLING,
        ),
    ] = None,
    rescale: Annotated[
        float | None,
        typer.Option(metavar="X", help="0 to 1: against washed out colours.", rich_help_panel=SAMPLING),
    ] = None,
    guidance_end: options.GuidanceEnd = None,
    clip_skip: Annotated[
        int | None,
        typer.Option(metavar="N", help="Leave out the text encoder's last layers.", rich_help_panel=SAMPLING),
    ] = None,
    guess: Annotated[
        bool | None,
        typer.Option(
            "--guess/--no-guess",
            metavar="",
            help="Let the maps speak without words.",
            rich_help_panel=SAMPLING,
        ),
    ] = None,
    eta: Annotated[
        float | None, typer.Option(metavar="X", help="0 to 1: DDIM's noise.", rich_help_panel=SAMPLING)
    ] = None,
    model: options.ModelName = None,
    net: options.Nets = None,
    lora: options.Loras = None,
    embedding: options.Embeddings = None,
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
    json_lines: options.Json = False,
    timings: options.Timings = False,
    debug: options.Debug = False,
) -> None:
    """Draw pictures from words, from maps of depth, normals or edges, and from pictures.

    Their paths go to standard output, everything else to standard error.

    Each picture carries its recipe, from which [cyan]--from[/cyan] makes it again.
    """
    console = options.console_of(context)
    words: dict[str, Any] = {
        "prompt": prompt,
        "negative": negative,
        "size": size,
        "seed": seed,
        "count": count,
    }
    words |= {
        "depth": depth,
        "normal": normal,
        "canny": canny,
        "derive": derive,
        "control": control,
        "fit": fit,
    }
    words |= {"depth_range": depth_range, "depth_invert": depth_invert, "sampler": sampler, "steps": steps}
    words |= {"timesteps": timesteps, "sigmas": sigmas, "guidance": guidance, "rescale": rescale}
    words |= {
        "guidance_end": guidance_end,
        "clip_skip": clip_skip,
        "guess": guess,
        "eta": eta,
        "lora": lora,
        "embedding": embedding,
    }
    words |= {
        "prompt_syntax": prompt_syntax,
        "image": image,
        "mask": mask,
        "strength": strength,
        "paste": paste,
    }
    request = request_from_words(words)
    request = complete(request, console) if remake is None or prompt == "-" else request
    if remake is None:
        request.check()  # before anything heavy is imported

    from rawdiff.jobs.generate import Settings, generate
    from rawdiff.jobs.place import Place

    where: dict[str, Any] = {"model": model, "device": device, "dtype": dtype, "revision": revision}
    where |= {"speed": speed, "memory": memory}
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
