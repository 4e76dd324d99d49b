"""What `rawdiff bench` does: where a picture's time goes, and what each proposal to save some of it costs.

arms.py       the proposals: the user's own request with one thing changed
work.py       one picture, timed by the probes; and the cold process that draws it
flops.py      operations counted by the same probes, and what the device reaches at best
parts.py      times and operations joined, part by part; the bottleneck
measuring.py  every arm in turn, and what came of it
report.py     ... as values and as a table
page.py       ... as a page of its own; charts.py draws its bars

The loop that is measured is the one that `rawdiff gen` runs; a proposal is a request, a dtype, or a runner.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rawdiff.images import write_file
from rawdiff.jobs.place import Place
from rawdiff.jobs.request import Request
from rawdiff.say import Say
from rawdiff.study.bench.measuring import Settings, measure
from rawdiff.study.bench.page import as_html
from rawdiff.study.bench.report import as_json, lines

__all__ = ["Settings", "study"]


def study(
    request: Request, place: Place, words: dict[str, Any], settings: Settings, say: Say
) -> Iterator[str]:
    """Measure (see `measure`), give the table a line at a time, then write the files that were asked for."""
    report = measure(request, place, words, settings, say)
    yield from lines(report)
    if settings.json is not None:
        say(f"JSON: {write_file(settings.json, as_json(report), overwrite=settings.overwrite)}")
    if settings.html is not None:
        say(f"page: {write_file(settings.html, as_html(report), overwrite=settings.overwrite)}")
