"""Recipes: everything that decides a picture, as plain values; its id; and the line that other tools read.

    account.py      what decides the pictures of a run, and the part of it that one picture needs
    schema.py       what a recipe holds, its canonical JSON, its id; one read back is checked first
    fields.py       which fields it has, and what may stand in each
    parameters.py   the `parameters` text of AUTOMATIC1111's web UI, written and parsed

A recipe has two parts. `picture` decides the pixels: words, numbers, and the SHA-256 of every file that took part.
`made` tells where they came from: names, paths, versions, the device. The id is the SHA-256 of the first alone, so
that a picture is the same picture on another machine or from another folder.
"""

from __future__ import annotations

from rawdiff.recipe.account import is_masked, of_model, of_picture, of_run, origin, tell, tool
from rawdiff.recipe.fields import check_account
from rawdiff.recipe.parameters import parse_parameters, write_parameters
from rawdiff.recipe.schema import FORMAT, build, canonical, check, compare, differences, job_id, read

__all__ = [
    "FORMAT",
    "build",
    "canonical",
    "check",
    "check_account",
    "compare",
    "differences",
    "is_masked",
    "job_id",
    "of_model",
    "of_picture",
    "of_run",
    "origin",
    "parse_parameters",
    "read",
    "tell",
    "tool",
    "write_parameters",
]
