"""Options that say what to draw, of gen and of bench: together they are the words of a request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from rawdiff.cli.options import MODEL

__all__ = [
    "Blend",
    "Canny",
    "ClipSkip",
    "Controls",
    "Depth",
    "DepthInvert",
    "DepthRange",
    "Derive",
    "Embeddings",
    "Eta",
    "Fit",
    "Guess",
    "Guidance",
    "GuidanceEnd",
    "Image",
    "Loras",
    "Mask",
    "Negative",
    "Negative2",
    "Normal",
    "Paste",
    "Prompt",
    "Prompt2",
    "Rescale",
    "Sampler",
    "Seed",
    "Sigmas",
    "Size",
    "SizeIds",
    "Steps",
    "Strength",
    "Syntax",
    "Timesteps",
    "words_of",
]

WORDS, MAPS, IMAGE, SAMPLING = "What to draw", "Maps", "Image", "Sampling"

Prompt = Annotated[
    str | None,
    typer.Option(
        "--prompt",
        "-p",
        metavar="TEXT",
        help="What to draw; - reads standard input.",
        rich_help_panel=WORDS,
    ),
]
Negative = Annotated[
    str | None,
    typer.Option("--negative", "-n", metavar="TEXT", help="What not to draw.", rich_help_panel=WORDS),
]
Prompt2 = Annotated[
    str | None,
    typer.Option(
        "--prompt-2",
        metavar="TEXT",
        help="What SDXL's second text encoder reads; else the prompt.",
        rich_help_panel=WORDS,
    ),
]
Negative2 = Annotated[
    str | None,
    typer.Option(
        "--negative-2",
        metavar="TEXT",
        help="The same of what not to draw; else the negative prompt.",
        rich_help_panel=WORDS,
    ),
]
Size = Annotated[
    str | None,
    typer.Option(
        metavar="WxH",
        help="In pixels, multiples of 8; else the image's own, or the map's shape at the model's area; others should "
        "be near that.",
        rich_help_panel=WORDS,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(metavar="N", help="0 to 4294967295; else one is drawn, and printed.", rich_help_panel=WORDS),
]
Depth = Annotated[
    str | None,
    typer.Option(
        metavar="PATH",
        help="A depth map, near is white: PNG, TIFF, JPEG, WEBP, .npy.",
        rich_help_panel=MAPS,
    ),
]
Normal = Annotated[str | None, typer.Option(metavar="PATH", help="A normal map.", rich_help_panel=MAPS)]
Canny = Annotated[str | None, typer.Option(metavar="PATH", help="An edge map.", rich_help_panel=MAPS)]
Derive = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KIND",
        help="normal or canny: make that map from the one given for it, or from the depth map. Repeatable.",
        rich_help_panel=MAPS,
    ),
]
Controls = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KIND=PATH",
        help="Any map; PATH@0.8 gives its weight, PATH@0.8,0-0.6 also the part of the run where it counts. "
        "Repeatable; none drops those of --from.",
        rich_help_panel=MAPS,
    ),
]
Fit = Annotated[
    str | None,
    typer.Option(
        metavar="HOW", help="crop, pad or stretch a map or image of another aspect.", rich_help_panel=MAPS
    ),
]
DepthRange = Annotated[
    str | None,
    typer.Option(
        metavar="LO,HI",
        help="What is far and near in the map's own units, or auto.",
        rich_help_panel=MAPS,
    ),
]
DepthInvert = Annotated[
    bool | None,
    typer.Option(
        "--depth-invert/--no-depth-invert",
        metavar="",
        help="Near is black, or small.",
        rich_help_panel=MAPS,
    ),
]
Sampler = Annotated[
    str | None,
    typer.Option(
        "--sampler",
        "-s",
        metavar="NAME",
        help='Such as "euler a"; see rawdiff sampler.',
        rich_help_panel=SAMPLING,
    ),
]
Steps = Annotated[int | None, typer.Option(metavar="N", help="Steps; 20.", rich_help_panel=SAMPLING)]
Timesteps = Annotated[
    str | None,
    typer.Option(metavar="T,T,...", help="Or the timesteps themselves.", rich_help_panel=SAMPLING),
]
Sigmas = Annotated[
    str | None, typer.Option(metavar="S,S,...", help="Or the noise levels.", rich_help_panel=SAMPLING)
]
Guidance = Annotated[
    float | None,
    typer.Option(
        "--guidance",
        "-g",
        metavar="X",
        help="How strictly to follow the words; else the model's own.",
        rich_help_panel=SAMPLING,
    ),
]
Rescale = Annotated[
    float | None,
    typer.Option(metavar="X", help="0 to 1: against washed out colours.", rich_help_panel=SAMPLING),
]
ClipSkip = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Leave out the text encoder's last N layers, as in diffusers; 0. (A1111 counts from 1.)",
        rich_help_panel=SAMPLING,
    ),
]
Guess = Annotated[
    bool | None,
    typer.Option(
        "--guess/--no-guess",
        metavar="",
        help="Let the maps speak without words.",
        rich_help_panel=SAMPLING,
    ),
]
Eta = Annotated[
    float | None, typer.Option(metavar="X", help="0 to 1: DDIM's noise.", rich_help_panel=SAMPLING)
]
Syntax = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="plain: all is text; or a1111: (word:1.2), \\[from:to:0.5], BREAK, <lora:name:0.8>, any length. "
        "See rawdiff prompt.",
        rich_help_panel=WORDS,
    ),
]
Image = Annotated[
    str | None,
    typer.Option(
        metavar="PATH",
        help="A picture to begin from; its size is the result's. If that is no multiple of 8 (130x130), or beyond "
        "1024x1024 pixels, its shape is, at the model's area.",
        rich_help_panel=IMAGE,
    ),
]
Mask = Annotated[
    str | None,
    typer.Option(
        metavar="PATH",
        help="What to paint anew in it: white is, black stays, greys make the pasted seam soft. Of the image's size.",
        rich_help_panel=IMAGE,
    ),
]
SizeIds = Annotated[
    str | None,
    typer.Option(
        "--size-ids",
        metavar="TEXT",
        help="What SDXL is told of sizes, say 'original=2048x1024 crop=0,0 target=1024x512', each also as "
        "negative-...; what is left out is the picture's own size. none drops those of --from.",
        rich_help_panel=WORDS,
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
Blend = Annotated[
    bool | None,
    typer.Option(
        "--blend/--no-blend",
        metavar="",
        help="With an inpainting UNet too, put what stays back after each step: the rest of the picture keeps its "
        "colours without pasting. With another UNet that is always so.",
        rich_help_panel=IMAGE,
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
GuidanceEnd = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        help="0 to 1: guidance is off after this share of the run, at half the work a step; 1.",
        rich_help_panel=SAMPLING,
    ),
]

OF_A_REQUEST = (
    "prompt", "negative", "prompt_2", "negative_2",
    "prompt_syntax", "size", "size_ids", "seed", "depth", "normal", "canny", "derive", "control", "fit",
    "depth_range", "depth_invert", "image", "mask", "strength", "paste", "blend",
    "lora", "embedding", "sampler", "steps",
    "timesteps", "sigmas", "guidance", "guidance_end", "rescale", "clip_skip", "guess", "eta",
)  # fmt: skip
"""The names of these options."""


def words_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a command's options that say what to draw, as `request_from_words` takes them."""
    return {name: options[name] for name in OF_A_REQUEST}
