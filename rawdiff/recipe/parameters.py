"""The `parameters` text that AUTOMATIC1111's web UI and its relatives read, written and parsed.

    a red cube on grass <lora:paper:0.8>
    Negative prompt: blurry
    Steps: 20, Sampler: DDIM, CFG scale: 4, Seed: 7, Size: 768x512, Model hash: 0123456789, Version: rawdiff 0.1.0

LoRAs stand in the prompt by the names of their files, as that program has them typed there (its "Lora hashes" are of a
file's tensors alone, which no recipe holds). It is for people and other programs; what makes a picture again is the
recipe.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from rawdiff.geometry import format_size

__all__ = ["parse_parameters", "write_parameters"]

NEGATIVE = "Negative prompt: "
_PAIR = re.compile(r'\s*+(\w[\w \-/]{0,99}):\s*+("(?:\\.|[^\\"])*+"|[^,]*+)(?:,|$)')


def write_parameters(recipe: Mapping[str, Any]) -> str:
    """The text for a recipe."""
    picture, made = recipe["picture"], recipe["made"]
    sampler = picture["sampler"]
    steps = sampler["steps"] or len(sampler["timesteps"] or ()) or max(1, len(sampler["sigmas"] or ()) - 1)
    height, width = picture["size"]
    pairs: dict[str, Any] = {
        "Steps": steps,
        "Sampler": made["sampler"] or sampler["class"].removesuffix("Scheduler"),
        "CFG scale": picture["guidance"],
        "Seed": picture["seed"],
        "Size": format_size((height, width)),
        "Model hash": _model_hash(picture["weights"]),
        "Model": made["model"]["name"],
        "RNG": "CPU",
    }
    for name, key in (("prompt_2", "Prompt 2"), ("negative_2", "Negative prompt 2")):
        if name in picture:
            pairs[key] = picture[name]
    if "vae" in made:
        pairs["VAE"] = made["vae"]["name"]
    if picture["clip_skip"]:
        pairs["Clip skip"] = picture["clip_skip"] + 1  # there 1 skips nothing
    if sampler["eta"]:
        pairs["Eta"] = sampler["eta"]
    if picture["rescale"]:
        pairs["CFG Rescale phi"] = picture["rescale"]
    if "image" in picture:
        pairs["Denoising strength"] = picture["image"]["strength"]
    for k, control in enumerate(picture["controls"]):
        start, end = control["start"], control["end"]
        said = {"Module": "derived" if control["derive"] else "none", "Model": control["kind"]}
        said |= {"Weight": control["weight"], "Guidance Start": start, "Guidance End": end}
        said |= {"Control Mode": "Guess" if picture["guess"] else "Balanced", "Hash": control["sha256"][:10]}
        pairs[f"ControlNet {k}"] = ", ".join(f"{key}: {_number(value)}" for key, value in said.items())
    hashes = [f"{entry['trigger']}: {entry['sha256'][:12]}" for entry in picture.get("embeddings", ())]
    if hashes:
        pairs["TI hashes"] = ", ".join(hashes)
    pairs["Version"] = f"rawdiff {made['rawdiff']}"
    loras = zip(made.get("loras", ()), picture.get("loras", ()), strict=True)
    tags = [f"<lora:{_stem(name)}:{_number(float(entry['scale']))}>" for name, entry in loras]
    lines = [" ".join(filter(None, [picture["prompt"], *tags]))]
    if picture["negative"]:
        lines.append(NEGATIVE + picture["negative"])
    lines.append(", ".join(f"{key}: {_quoted(_number(value))}" for key, value in pairs.items()))
    return "\n".join(lines)


def parse_parameters(text: str) -> dict[str, str]:
    """Such a text as values by name, `Prompt` and `Negative prompt` among them; what is not there is left out."""
    lines = text.strip("\n").split("\n")
    pairs: dict[str, str] = {}
    found = _pairs(lines[-1])
    if len(found) >= 3:
        pairs = {key.strip(): _unquoted(value.strip()) for key, value in found}
        lines.pop()
    said: dict[str, list[str]] = {"Prompt": [], "Negative prompt": []}
    place = "Prompt"
    for line in lines:
        if line.startswith(NEGATIVE.rstrip()):
            place, line = "Negative prompt", line.removeprefix(NEGATIVE.rstrip()).removeprefix(" ")
        said[place].append(line)
    return {**{key: "\n".join(found) for key, found in said.items() if found}, **pairs}


def _pairs(line: str) -> list[tuple[str, str]]:
    """Names and values between commas; what is none is passed over, so that the time is that of one reading."""
    found, at = [], 0
    while at < len(line):
        match = _PAIR.match(line, at)
        if match is not None:
            found.append((match[1], match[2]))
        at = match.end() if match is not None else (line.find(",", at) + 1 or len(line))
    return found


def _model_hash(weights: Mapping[str, str]) -> str:
    """The first ten digits of the SHA-256 of the UNet's weights, or of the one file that a model is."""
    files = [name for name in sorted(weights) if not name.endswith((".json", ".txt", ".gz"))]
    own = [name for name in files if name.startswith("unet") and "/" in name]
    own += [name for name in files if "/" not in name]
    return weights[own[0]][:10] if own else ""


def _stem(name: str) -> str:
    """A file's name without folders and ending, as it can stand between colons."""
    last = re.split(r"[/\\]", name)[-1]
    return re.sub(r"[:<>,\s]+", "_", last.rpartition(".")[0] or last)


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if re.search(r'[,:"\n]', text) else text


def _unquoted(text: str) -> str:
    if len(text) < 2 or not (text.startswith('"') and text.endswith('"')):
        return text
    try:
        return str(json.loads(text))
    except ValueError:
        return text
