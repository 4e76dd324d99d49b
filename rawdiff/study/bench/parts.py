"""Times and operations joined, part by part; and which part it is that a picture waits for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from rawdiff.probes import Node
from rawdiff.study.bench.flops import Path
from rawdiff.study.bench.work import Cold, Sample

__all__ = [
    "REST",
    "Part",
    "bottleneck",
    "cold_parts",
    "computing_ms",
    "leaves",
    "middle_and_ends",
    "warm_parts",
]

REST = "(other)"
AFTER_LOADING = ("hints", "tokens", "text encoder", "hint features", "step", "vae decode", "png")
"""What of a cold process a warm one does too."""
ARITHMETIC = 0.6
"""From this share of the ceiling on, a part is said to be held up by arithmetic."""


@dataclass(frozen=True)
class Part:
    """A span of the probes: what it took, and what it computed."""

    path: Path
    """Empty for the whole."""
    count: int
    ms: float
    low_ms: float
    """Of all repeats."""
    high_ms: float
    share: float
    """Of the whole, 0 to 1."""
    gflop: float | None = None
    """What torch counts; None where nothing is counted."""
    gflops_per_s: float | None = None
    of_ceiling: float | None = None
    """The share that this is of what a matrix product reaches."""

    @property
    def name(self) -> str:
        """As the probe has it."""
        return self.path[-1] if self.path else "total"


def warm_parts(
    samples: Sequence[Sample], computing: Mapping[Path, float], flops: Mapping[Path, int], ceiling: float
) -> list[Part]:
    """Each part of the sample of median length, so that parts add up, with its range over all samples.

    `computing` is how many ms each part computes for, `ceiling` in GFLOP/s. What a part's own parts leave over is a
    part named "(other)".
    """
    trees = [dict(_walk(sample.tree)) for sample in samples]
    middle = sorted(trees, key=lambda tree: tree[()].total_ms)[(len(trees) - 1) // 2]
    whole_ms = middle[()].total_ms
    found = []
    for path, node in middle.items():
        times = [tree[path].total_ms for tree in trees if path in tree]
        gflop = flops[path] / 1e9 if flops.get(path) else None
        rate = None if gflop is None or not computing.get(path) else 1e3 * gflop / computing[path]
        found.append(
            Part(
                path,
                node.count,
                node.total_ms,
                min(times),
                max(times),
                node.total_ms / whole_ms,
                gflop,
                rate,
                None if rate is None else rate / ceiling,
            )
        )
    return found


def computing_ms(sample: Sample, threads: int) -> dict[Path, float]:
    """How long each part computed: of a sample in processor time, what `threads` processors of their own would take."""
    return {path: node.total_ms / threads for path, node in _walk(sample.tree)}


def cold_parts(cold: Cold) -> list[Part]:
    """Each part of a cold process until it has written its picture."""
    tree = _node(cold.tree)
    return [
        Part(path, node.count, node.total_ms, node.total_ms, node.total_ms, node.total_ms / tree.total_ms)
        for path, node in _walk(tree)
    ]


def leaves(parts: Sequence[Part]) -> list[Part]:
    """Those that have no parts of their own: together they are the whole."""
    inner = {part.path[:-1] for part in parts if part.path}
    return [part for part in parts if part.path not in inner]


def bottleneck(warm: Sequence[Part], cold: Cold) -> str:
    """What a picture waits for most, in one sentence."""
    worst = max(leaves(warm), key=lambda part: part.ms)
    name = " of the ".join(("rest" if worst.name == REST else worst.name, *reversed(worst.path[:-1])))
    said = (
        f"The bottleneck is {name}: {worst.ms / 1e3:.2f} of the {warm[0].ms / 1e3:.2f} s that a picture takes in a "
        f"warm process ({worst.share:.0%})"
    )
    if worst.of_ceiling is not None:
        why = (
            "arithmetic is what holds it up"
            if worst.of_ceiling >= ARITHMETIC
            else "more than arithmetic holds it up"
        )
        said += f", at {worst.of_ceiling:.0%} of the speed of a matrix product, so that {why}"
    tops = [part for part in cold_parts(cold) if len(part.path) == 1 and part.name not in AFTER_LOADING]
    before = sum(part.ms for part in tops if part.name != REST)
    first = max(tops, key=lambda part: part.ms)
    whole = cold.tree["total_ms"]
    return (
        f"{said}; a cold process takes {whole / 1e3:.1f} s for it, {before / 1e3:.1f} of them ({before / whole:.0%}) "
        f"before the first step, most of all for {first.name} ({first.ms / 1e3:.1f} s)."
    )


def _walk(node: Node, path: Path = ()) -> Iterator[tuple[Path, Node]]:
    """Every node with its path, and the rest of each that has children."""
    yield path, node
    for child in node.children.values():
        yield from _walk(child, (*path, child.name))
    if node.children:
        yield (*path, REST), Node(REST, 1, max(0.0, node.rest_ms))


def _node(values: Mapping[str, Any]) -> Node:
    children = {child["name"]: _node(child) for child in values["children"]}
    return Node(values["name"], values["count"], values["total_ms"], children)


def middle_and_ends(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, least and largest."""
    return median(values), min(values), max(values)
