"""What `rawdiff gen` asks, and how it tells of plans and pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rawdiff.cli.terminal import Console
from rawdiff.errors import UsageError
from rawdiff.geometry import format_size
from rawdiff.jobs.request import Request

if TYPE_CHECKING:
    from rawdiff.jobs.job import Drawn, Job

__all__ = ["ask", "picture_line", "print_plan"]


def ask(request: Request, console: Console) -> dict[str, Any]:
    """What a request without a prompt lacks, as options: from standard input, or from a person who is asked."""
    if request.prompt == "-":
        return {"prompt": console.read_prompt()}
    if request.prompt is not None:
        return {}
    if not console.can_ask:
        raise UsageError("no prompt: say what to draw, with --prompt TEXT (or -p - to read standard input)")
    prompt = console.ask("What shall the picture show?")
    if not prompt:
        raise UsageError("no prompt: say what to draw, with --prompt TEXT")
    said: dict[str, Any] = {"prompt": prompt}
    if request.controls is None:
        depth = console.ask("Depth map (a path; empty for none)?")
        said |= {"depth": depth} if depth else {}
    return said


def picture_line(path: Path, drawn: Drawn) -> str:
    """What `--json` says of a finished picture."""
    picture = drawn.recipe["picture"]
    height, width = picture["size"]
    said = {"path": str(path), "id": drawn.recipe["id"], "seed": picture["seed"]}
    return json.dumps({**said, "size": format_size((height, width)), "seconds": round(drawn.seconds, 3)})


def print_plan(job: Job, json_lines: bool, where: str = "") -> None:
    """What a dry run says; of a manifest with `where` the job stands there."""
    if json_lines:
        for k in range(len(job.seeds)):
            print(json.dumps(job.recipe(k)))
        return
    from rawdiff.jobs.info import what_stays

    print(f"{where}{job.describe()}")
    used: dict[str, Any] = job.picture.get("image") or {}
    for name in ("image", "mask"):
        if job.options.get(name) is not None:
            strength = f"strength {used['strength']:g}"
            more = strength if name == "image" else what_stays(used, put_back=job.put_back)
            print(f"{name} from {job.options[name].name}, {more}")
    for control in job.controls:
        print(
            f"{control.kind} from {control.source.name}, weight {control.weight:g}, {control.start:g}-{control.end:g}"
        )
    for lora in job.options["loras"]:
        print(f"lora {lora.name}, scale {lora.scale:g}")
    for one in job.options["embeddings"]:
        print(f"embedding {one.name} for {one.embedding.trigger}, {len(one.embedding.vectors)} vectors")
    for seed, name in zip(job.seeds, job.ids(), strict=True):
        print(f"seed {seed}: {name}")
