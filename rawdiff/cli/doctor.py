"""`rawdiff doctor`: whether this machine can draw."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from rawdiff.cli import options
from rawdiff.cli.terminal import printable

__all__ = ["doctor"]

MARKS = {"ok": "ok   ", "note": "note ", "fault": "FAULT"}


def doctor(
    context: typer.Context,
    model: options.ModelName = None,
    out: Annotated[
        str, typer.Option("--out", "-o", metavar="FOLDER", help="Where pictures would go.")
    ] = "output_images",
    json_lines: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Look at versions, devices, memory, the output folder and the model's weights."""
    from rawdiff.jobs.health import check_all, worst

    findings = []
    for finding in check_all(model, out):
        findings.append(finding)
        said = {"name": finding.name, "state": finding.state, "text": finding.text}
        line = f"{MARKS[finding.state]}  {finding.name:<16}  {finding.text}"
        print(json.dumps(said) if json_lines else printable(line), flush=True)
    error = worst(findings)
    if error is not None:
        raise error
