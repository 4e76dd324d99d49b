"""The one account of what decides pictures, before there are any: for all pictures of a run, and for one of them.

A run carries its account (`Run.recipe`), a saved run is held to it, and `picture` of a recipe is the part of it that
one picture needs. The command line makes the same account from a plan, before a weight is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from typing import TYPE_CHECKING, Any

import torch

from rawdiff import images
from rawdiff.conditions import SizeIds
from rawdiff.errors import UsageError
from rawdiff.geometry import Size
from rawdiff.nets.exact import EVERYTHING, Exact
from rawdiff.noise import NOISE_VERSION
from rawdiff.recipe.fields import CONTROL, EMBEDDING, LORA, PICTURE, PICTURE_EXTRAS, SAMPLER
from rawdiff.recipe.schema import build
from rawdiff.syntax import PLAIN
from rawdiff.version import __version__
from rawdiff.weights import Source
from rawdiff.weights.schedulers import SCHEDULER_CLASSES

if TYPE_CHECKING:
    from PIL.Image import Image

SECOND = ("prompt_2", "negative_2")
"""What SDXL's second text encoder reads where it does not read the prompts."""
TILED = {"tiles": "vae"}
"""What is said of a picture whose VAE worked in tiles: no part of what decides it, and yet it moves pixels a little."""

__all__ = ["is_masked", "of_model", "of_picture", "of_run", "origin", "tell", "tool"]


def of_model(source: Source, digests: Mapping[str, str], dtype: torch.dtype) -> dict[str, Any]:
    """What of an account is the model's: `digests` are the SHA-256 of its files."""
    return {
        "rawdiff": __version__,
        "noise": NOISE_VERSION,
        "model": source.name,
        "weights": dict(digests),
        "dtype": str(dtype).removeprefix("torch."),
        **({"merge": [weight for _, weight in source.merged]} if source.merged else {}),
    }


def of_run(
    model: Mapping[str, Any],
    *,
    prompts: Sequence[str],
    negatives: Sequence[str],
    size: Size,
    seeds: Sequence[int],
    guidance: Sequence[float],
    rescale: float,
    clip_skip: int,
    guess: bool,
    sampler: Mapping[str, Any],
    controls: Sequence[Mapping[str, Any]],
    latents: str | None = None,
    image: Mapping[str, Any] | None = None,
    loras: Sequence[Mapping[str, Any]] = (),
    embeddings: Sequence[Mapping[str, Any]] = (),
    guidance_end: float = 1.0,
    syntax: str = PLAIN,
    exact: Exact = EVERYTHING,
    size_ids: SizeIds | None = None,
    zeros: bool = False,
    second: tuple[Sequence[str], Sequence[str]] | None = None,
) -> dict[str, Any]:
    """The account of a run, as plain values; prompts, negatives, seeds and guidance are one for each picture.

    `model` is from `of_model`, `sampler` from `build_sampler`, each of `controls` from `Control.describe`;
    `latents` is the SHA-256 of those given in place of the first noise, `image` from `InitImage.describe`, each of
    `loras` and `embeddings` what it says of itself; `zeros` tells whether absent negative prompts are all zeros.
    `second` are prompts and negatives of a second text encoder, where it reads others.
    """
    return {
        **model,
        **_other_texts((prompts, negatives), second),
        "hints": images.HINTS_VERSION,
        "prompt": list(prompts),
        "negative": list(negatives),
        "size": list(size),
        "seeds": list(seeds),
        "guidance": list(guidance),
        "rescale": float(rescale),
        "guidance_end": None if guidance_end == 1.0 else float(guidance_end),
        "clip_skip": clip_skip,
        "guess": guess,
        "sampler": dict(sampler),
        "latents": latents,
        "image": None if image is None else dict(image),
        "controls": [dict(control) for control in controls],
        "loras": [dict(lora) for lora in loras],
        "embeddings": [dict(embedding) for embedding in embeddings],
        "syntax": None if syntax == PLAIN else syntax,
        "repeats": [name for name, once in asdict(exact).items() if not once],
        "size_ids": None if size_ids is None or size_ids == SizeIds() else size_ids.describe(),
        "zeros": zeros or None,
    }


def _other_texts(
    first: tuple[Sequence[str], Sequence[str]], second: tuple[Sequence[str], Sequence[str]] | None
) -> dict[str, list[str]]:
    """What a second text encoder reads, by name, where it is not the first's; empty for a picture where it is."""
    if second is None:
        return {}
    found = {
        name: ["" if own == other else own for own, other in zip(texts, others, strict=True)]
        for name, texts, others in zip(SECOND, second, first, strict=True)
    }
    return {name: texts for name, texts in found.items() if any(texts)}


def is_masked(said: Mapping[str, Any]) -> bool:
    """Whether an account, or the `picture` of a recipe, tells of a mask."""
    image = said.get("image")
    return image is not None and image["mask"] is not None


def of_picture(account: Mapping[str, Any], k: int) -> dict[str, Any]:
    """What decides picture `k`, as a recipe has it; UsageError where that cannot be told without what no file holds."""
    sampler = account["sampler"]
    if account["latents"] is not None:
        raise UsageError("no recipe can tell this picture: its latents were given, not drawn from its seed")
    if sampler["given"] == "sampler" or sampler["class"] not in SCHEDULER_CLASSES:
        raise UsageError(f"no recipe can tell this picture: its sampler, {sampler['name']}, is one's own")
    for control in account["controls"]:
        if control["module"]:
            raise UsageError(
                f"no recipe can tell this picture: its {control['kind']} net was given as a module"
            )
    values = {
        **account,
        **{name: account[name][k] for name in ("prompt", "negative", "guidance")},
        **{name: account[name][k] or None for name in SECOND if name in account},
        "seed": account["seeds"][k],
        "sampler": {name: sampler[name] for name in SAMPLER},
        "controls": [{name: control[name] for name in CONTROL} for control in account["controls"]],
        "loras": [{name: lora[name] for name in LORA} for lora in account["loras"]],
        "embeddings": [{name: one[name] for name in EMBEDDING} for one in account["embeddings"]],
    }
    extras = {name: values[name] for name in PICTURE_EXTRAS if _is_there(values.get(name))}
    return {**{name: values[name] for name in PICTURE}, **extras}


def origin(
    source: Source,
    *,
    sampler: str | None,
    inputs: Sequence[str],
    nets: Sequence[Source | None],
    image: Mapping[str, Any] | None = None,
    loras: Sequence[str] = (),
    embeddings: Sequence[str] = (),
    tiled: bool = False,
) -> dict[str, Any]:
    """Where it came from, by name: model, sampler (if it was asked for), each map, each net but the model's own.

    And where there are any, a VAE of another's, the image with its mask (from `InitImage.names`), each LoRA and each
    embedding; and that the image was encoded in tiles, where it was.
    """
    vae = None if source.vae is None else {"name": str(source.vae), "kind": source.vae.kind}
    extras = {"vae": vae, "image": image, "loras": list(loras), "embeddings": list(embeddings)}
    return {
        "model": {"name": source.name, "kind": source.kind, "revision": source.revision},
        "sampler": sampler,
        "inputs": list(inputs),
        "nets": [None if net is None else {"name": str(net), "kind": net.kind} for net in nets],
        **{name: names for name, names in extras.items() if names},
        **(TILED if tiled else {}),
    }


def tool(device: torch.device, made_with: str | None = None) -> dict[str, Any]:
    """What draws: versions, kind of device, threads, and what computes the networks, where that is not torch."""
    return {
        **({} if made_with is None else {"backend": made_with}),
        "rawdiff": __version__,
        **{name: metadata.version(name) for name in ("torch", "diffusers", "transformers")},
        "device": device.type,
        "threads": torch.get_num_threads(),
    }


def tell(
    picture: Mapping[str, Any],
    made: Mapping[str, Any],
    batch: tuple[int, int],
    image: Image | None,
    *,
    tiled: bool = False,
) -> dict[str, Any]:
    """The recipe of a picture drawn in place `batch[0]` of `batch[1]` at once; `image` once it is drawn.

    `made` is what `origin` and `tool` say; `tiled` is whether the VAE worked in tiles.
    """
    pixels = None if image is None else images.pixels_sha256(image)
    return build(picture, {**made, **(TILED if tiled else {}), "batch": list(batch), "pixels": pixels})


def _is_there(value: Any) -> bool:
    """Whether there is any of it; a guidance that ends at 0 is."""
    return value is not None and value is not False and value != []
