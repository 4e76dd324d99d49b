"""What was measured as a page that needs nothing beside it: no network, no script, pictures and charts inside."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator, Sequence
from html import escape
from importlib import resources
from typing import TYPE_CHECKING

from rawdiff.study.bench import charts
from rawdiff.study.bench.charts import Bar, Point, Slice
from rawdiff.study.bench.measuring import Found, Report
from rawdiff.study.bench.parts import REST, Part, cold_parts, leaves, middle_and_ends
from rawdiff.study.bench.report import (
    WARM_HEAD,
    busy_line,
    cold_line,
    command_line,
    cpu_ratio,
    distance,
    kind,
    machine_line,
    on_a_cpu,
    warm_cells,
)
from rawdiff.version import __version__

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["as_html", "data_uri"]

LARGEST_PX = 256
"""A side of a picture on the page."""
SMALLEST_SHARE = 0.01
"""Parts below are told together."""
MOST = 1.2
"""As many times the command's own time as the chart is wide."""
CLEAREST_DB = 60.0
"""PSNR that the chart's top stands for: no eye sees a difference from there on."""


def as_html(report: Report) -> bytes:
    """The page, in UTF-8."""
    style = resources.files("rawdiff").joinpath("assets", "bench", "page.css").read_text(encoding="utf-8")
    body = "\n".join([*_head(report), *_warm(report), *_cold(report), *_proposals(report)])
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>rawdiff bench: {escape(report.job.picture['prompt'])}</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n<footer>rawdiff {__version__}</footer>\n</main>\n</body>\n</html>\n"
    ).encode()


def data_uri(image: Image, largest_px: int = LARGEST_PX) -> str:
    """A picture as the address of itself, made smaller where it is larger."""
    small = image.convert("RGB")
    small.thumbnail((largest_px, largest_px))
    buffer = io.BytesIO()
    small.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _head(report: Report) -> Iterator[str]:
    yield f"<h1>{escape(report.job.picture['prompt'])}</h1>"
    yield f"<p>{escape(command_line(report))}</p>"
    yield f"<p>{escape(machine_line(report))}</p>"
    busy = busy_line(report)
    if busy is not None:
        yield f'<p class="warning">{escape(busy)}</p>'
    yield f'<p class="said">{escape(report.bottleneck)}</p>'


def _warm(report: Report) -> Iterator[str]:
    repeats = len(report.base.samples)
    yield f"<h2>A picture in a warm process: {report.parts[0].ms / 1e3:.2f} s</h2>"
    slices = [Slice(name, ms, f"{ms / 1e3:.2f} s, {share:.0%}") for name, ms, share in _large(report.parts)]
    yield charts.stack(slices) + charts.legend(slices)
    yield (
        f"<p>Drawn {'once' if repeats == 1 else f'{repeats} times: the one of median length, and the range of all'}. "
        "Operations are counted by torch; the ceiling is what a product of two matrices reaches here, "
        f"{report.ceiling:.1f} GFLOP/s{on_a_cpu(report)}.</p>"
    )
    yield _table(["part", *WARM_HEAD], [(part, warm_cells(part)) for part in report.parts], ceiling=True)


def _cold(report: Report) -> Iterator[str]:
    cold, parts = report.cold, cold_parts(report.cold)
    yield f"<h2>A process of its own: {cold.end_s:.2f} s</h2>"
    tops = [part for part in parts if len(part.path) == 1]
    slices = [Slice(name, ms, f"{ms / 1e3:.2f} s, {share:.0%}") for name, ms, share in _large(tops)]
    yield charts.stack(slices) + charts.legend(slices)
    yield f"<p>{escape(cold_line(report).capitalize())}.</p>"
    some = [part for part in parts if len(part.path) <= 2 and part.share >= SMALLEST_SHARE]
    rows = [(part, [str(part.count), f"{part.ms:.1f}", f"{part.share:.1%}"]) for part in some]
    yield _table(["part", "times", "ms", "share"], rows)


def _proposals(report: Report) -> Iterator[str]:
    if not report.found:
        return
    drawn = [report.base, *(found for found in report.found if found.left_out is None)]
    everyone = list(enumerate(drawn))
    yield "<h2>What would save some of it</h2>"
    rows = [
        Bar(_named(k, found), *middle_and_ends(found.seconds), _verdict(found, report), kind(found))
        for k, found in everyone
    ]
    yield '<ul class="legend"><li><i class="base"></i>as asked</li><li><i class="exact"></i>the same picture</li>'
    yield '<li><i class="approximate"></i>another picture</li></ul>'
    yield charts.bars(rows, rows[0].value)
    yield "<h2>What each costs the picture</h2>"
    yield _plane([(k, found) for k, found in everyone if not found.arm.exact], report)
    yield '<div class="cards">'
    yield from (_card(k, found, report) for k, found in everyone)
    yield "</div>"
    for found in report.found:
        if found.left_out is not None:
            yield f"<p>{escape(found.arm.name)} was left out: {escape(found.left_out)}</p>"


def _plane(others: Sequence[tuple[int, Found]], report: Report) -> str:
    """Time against distance, of the arms that draw another picture in not much more time."""
    busy = busy_line(report) is not None
    ratios = [(k, found, (cpu_ratio(found, report) if busy else None) or found.ratio) for k, found in others]
    points = [
        Point(
            str(k), ratio / MOST, min(found.psnr_db, CLEAREST_DB) / CLEAREST_DB, found.arm.name, kind(found)
        )
        for k, found, ratio in ratios
        if ratio <= MOST
    ]
    if not points:
        return ""
    x_ticks = [(tick / MOST, f"{tick:g}") for tick in (0.0, 0.25, 0.5, 0.75, 1.0)]
    y_ticks = [(db / CLEAREST_DB, f"{db}" if db < CLEAREST_DB else f"{db}+") for db in range(0, 61, 20)]
    time = "processor time" if busy else "time"
    return charts.scatter(points, x_ticks, y_ticks, f"{time}, of the command as it was given", "PSNR, dB")


def _named(k: int, found: Found) -> str:
    return f"{found.arm.name} · {k}" if k else found.arm.name


def _verdict(found: Found, report: Report) -> str:
    middle, _, _ = middle_and_ends(found.seconds)
    return f"{middle:.2f} s" if found is report.base else f"{middle:.2f} s, x{found.ratio:.2f}"


def _card(k: int, found: Found, report: Report) -> str:
    is_base = found is report.base
    cpu = cpu_ratio(found, report)
    numbers = _verdict(found, report) + ("" if cpu is None or is_base else f" (processor time x{cpu:.2f})")
    psnr = "" if is_base else ", no pixel differs" if math.isinf(found.psnr_db) else f", {distance(found)} dB"
    return (
        f'<figure class="{kind(found)}"><img alt="{escape(found.arm.name)}" src="{data_uri(found.image)}">'
        f"<figcaption><b>{escape(_named(k, found))}</b> {escape(found.arm.what)}<br>{numbers}{psnr}</figcaption>"
        "</figure>"
    )


def _large(parts: Sequence[Part]) -> Iterator[tuple[str, float, float]]:
    """Name, milliseconds and share of the parts that have none of their own, the small ones together at the end."""
    found = leaves(parts)
    rest_ms, rest = 0.0, 0.0
    for part in found:
        if part.share < SMALLEST_SHARE or part.name == REST:
            rest_ms, rest = rest_ms + part.ms, rest + part.share
        else:
            yield part.name, part.ms, part.share
    if rest_ms:
        yield "everything else", rest_ms, rest


def _table(head: Sequence[str], rows: Sequence[tuple[Part, Sequence[str]]], *, ceiling: bool = False) -> str:
    """Parts with their cells; with `ceiling`, the last cell is filled as far as its part reaches up to it."""
    lines = ["<tr>" + "".join(f"<th>{escape(word)}</th>" for word in head) + "</tr>"]
    for part, words in rows:
        name = f'<td style="padding-left:{0.6 + 1.2 * len(part.path):.1f}em">{escape(part.name)}</td>'
        cells = [f"<td>{escape(word)}</td>" for word in words]
        if ceiling and part.of_ceiling is not None:
            width = min(100.0, 100 * part.of_ceiling)
            cells[-1] = f'<td class="filled" style="--share:{width:.1f}%">{escape(words[-1])}</td>'
        lines.append(f"<tr>{name}{''.join(cells)}</tr>")
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'
