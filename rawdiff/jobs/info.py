"""What a picture says of itself: its recipe, whether that is intact, and whether its inputs are still there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rawdiff import images, recipe
from rawdiff.errors import InputError, WeightsError
from rawdiff.geometry import format_size
from rawdiff.limits import is_name
from rawdiff.paths import is_file
from rawdiff.weights import digests

__all__ = ["inspect", "lines", "what_stays"]


def what_stays(image: Mapping[str, Any], *, put_back: bool) -> str:
    """What becomes of what a mask keeps, by a recipe's account of an image.

    `put_back`: it is known to be put back after each step. A recipe says so (`blend`) of an inpainting UNet alone, and
    not which UNet it was.
    """
    rest = "put back after each step, and " if put_back else ""
    return f"what stays is {rest}" + ("pasted back" if image["paste"] else "not pasted back")


def inspect(path: str | Path) -> dict[str, Any]:
    """The recipe of a PNG, or the `parameters` of another program's, as plain values; InputError for neither.

    `recipe` or `parameters` is None; `pixels` is "whole", "changed" or what is wrong with them; `inputs` tells of
    each map whether it is "the same", "changed" or "not there", seen from here or beside the picture; so do `loras`,
    `embeddings` (the model's own are "the model's own"), and `image`, of the image and mask that the run began from,
    where there was one.
    """
    path = Path(path)
    texts = images.read_text(path)
    found: dict[str, Any] = {"path": str(path), "pixels": "", "recipe": None, "parameters": None}
    if "rawdiff" in texts or "parameters" not in texts:
        found["recipe"] = read = recipe.read(path)
        found["inputs"] = [
            {"path": name, "sha256": control["sha256"], "now": _input(name, control["sha256"], path.parent)}
            for name, control in zip(read["made"]["inputs"], read["picture"]["controls"], strict=True)
        ]
        for what in ("loras", "embeddings"):
            found[what] = [
                {"path": name, **entry, "now": _file(name, entry["sha256"], path.parent)}
                for name, entry in zip(read["made"].get(what, ()), read["picture"].get(what, ()), strict=True)
            ]
        if "image" in read["picture"]:
            found["image"] = _image(read["picture"]["image"], read["made"]["image"], path.parent)
    else:
        found["parameters"] = recipe.parse_parameters(texts["parameters"])
    found["pixels"] = _pixels(path, found["recipe"])
    return found


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """The same for a person."""
    pairs: list[tuple[str, Any]] = [("pixels", found["pixels"])]
    if found["recipe"] is None:
        pairs += found["parameters"].items()
        pairs.append(("made by", "another program: no recipe to make it again from"))
    else:
        pairs += _recipe_pairs(found)
    width = max(len(name) for name, _ in pairs)
    yield found["path"]
    for name, value in pairs:
        for k, line in enumerate(str(value).split("\n")):
            yield f"  {name if k == 0 else '':<{width}}  {line}"


def _image(image: Mapping[str, Any], names: Mapping[str, Any], beside: Path) -> dict[str, Any]:
    """Image and mask (or None), each as `inputs` tells of a map."""
    given = {"image": (names["path"], image["sha256"]), "mask": (names["mask"], image["mask"])}
    return {
        what: None if name is None else {"path": name, "sha256": sha256, "now": _input(name, sha256, beside)}
        for what, (name, sha256) in given.items()
    }


def _recipe_pairs(found: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    read = found["recipe"]
    picture, made = read["picture"], read["made"]
    sampler, size = picture["sampler"], picture["size"]
    yield "id", read["id"]
    yield "prompt", picture["prompt"]
    if picture["negative"]:
        yield "negative", picture["negative"]
    for name in ("prompt_2", "negative_2"):
        if name in picture:
            yield name.replace("_", " "), picture[name]
    yield "size", format_size((size[0], size[1]))
    yield "seed", picture["seed"]
    schedule = next(
        (f"{name} {sampler[name]}" for name in ("timesteps", "sigmas") if sampler[name] is not None), ""
    )
    yield "sampler", made["sampler"] or f"the model's own, {sampler['class']}"
    yield "steps", schedule or sampler["steps"]
    for name in ("guidance", "rescale", "clip_skip", "guess"):
        if picture[name] or name == "guidance":
            yield name.replace("_", " "), picture[name]
    if "guidance_end" in picture:
        yield "guidance end", picture["guidance_end"]
    if sampler["eta"]:
        yield "eta", sampler["eta"]
    if "image" in found:
        image, used = found["image"], picture["image"]
        yield "image", f"{image['image']['path']} ({image['image']['now']}), strength {used['strength']:g}"
        if image["mask"] is not None:
            stays = what_stays(used, put_back="blend" in used)
            yield "mask", f"{image['mask']['path']} ({image['mask']['now']}), {stays}"
    for control, given in zip(picture["controls"], found["inputs"], strict=True):
        made_of = ", made from it" if control["derive"] else ""
        window = f"weight {control['weight']:g}, {control['start']:g}-{control['end']:g}{made_of}"
        yield control["kind"], f"{given['path']} ({given['now']}), {window}"
    for one in found["loras"]:
        yield "lora", f"{one['path']} ({one['now']}), scale {one['scale']:g}"
    for one in found["embeddings"]:
        yield "embedding", f"{one['path']} ({one['now']}), for {one['trigger']}"
    if "syntax" in picture:
        yield "prompt syntax", picture["syntax"]
    if "tiles" in made:
        yield "vae", "in tiles, approximate where they meet"
    if "size_ids" in picture:
        yield "size ids", _sizes(picture["size_ids"])
    if "repeats" in picture:
        yield "repeats", ", ".join(picture["repeats"])
    model = made["model"]
    yield "model", model["name"] + (f" at {model['revision']}" if model["revision"] else "")
    if "vae" in made:
        yield "vae", made["vae"]["name"]
    versions = ", ".join(f"{name} {made[name]}" for name in ("rawdiff", "torch", "diffusers", "transformers"))
    versions += f", {made['backend']}" if "backend" in made else ""
    yield "made by", f"{versions}; {picture['dtype']} on {made['device']}"


def _sizes(told: Mapping[str, Any]) -> str:
    """What SDXL is told of sizes, where that is not the picture's."""
    pairs = [(name, told[name]) for name in ("original", "target") if told[name] is not None]
    said = [f"{name} {format_size((pair[0], pair[1]))}" for name, pair in pairs]
    said.append(f"crop at {told['crop'][1]}, {told['crop'][0]}")
    if told["negative"] is not None:
        said.append(f"negative ({_sizes(told['negative'])})")
    return ", ".join(said)


def _pixels(path: Path, read: Mapping[str, Any] | None) -> str:
    try:
        samples = images.open_source(path)
    except InputError as error:
        return f"damaged: {error}"
    expected = None if read is None else read["made"]["pixels"]
    is_same = expected is None or images.pixels_sha256(samples.array) == expected
    return f"{'whole' if is_same else 'changed: not those that the recipe tells of'}, {format_size(samples.size)}"


def _input(name: str, sha256: str, beside: Path) -> str:
    return _now(name, sha256, beside, lambda place: images.open_source(place).sha256)


def _file(name: str, sha256: str, beside: Path) -> str:
    return "the model's own" if is_name(name) else _now(name, sha256, beside, digests.sha256)


def _now(name: str, sha256: str, beside: Path, digest: Callable[[Path], str]) -> str:
    places = [place for place in (Path(name), beside / name, beside / Path(name).name) if is_file(place)]
    for place in places:
        try:
            if digest(place) == sha256:
                return "the same"
        except (InputError, WeightsError):
            continue
    return "changed" if places else "not there"
