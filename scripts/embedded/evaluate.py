"""Measure the embedded model on scenes never seen, and print the table.

    python -m scripts.embedded.evaluate                                   # 200 scenes, native square and 768x512
    python -m scripts.embedded.evaluate --count 40 --sizes 128x128        # sooner
    python -m scripts.embedded.evaluate --sizes 768x512 --rows "with depth"
    python -m scripts.embedded.evaluate --sheet sheet.png                 # only look

Every metric is printed for the true renders as well (else the metric is wrong, not the model), for their VAE round
trip, for shuffled prompts (must fall to chance) and with the depth map left out (must fall).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from rawdiff.geometry import format_size, parse_size
from scripts.embedded import metrics
from scripts.embedded.arguments import amount
from scripts.embedded.captions import captions, shuffled
from scripts.embedded.painting import Painter, add_arguments, named, painter
from scripts.embedded.training import sheet
from scripts.embedded.world import sample_scenes

UNSEEN_SEED = 770_000
BOUNDS = {
    "VAE whole, dB": (33, 33),
    "VAE inside objects, dB": (31, 31),
    "sky and floor": (0.97, 0.97),
    "object colour": (0.95, 0.95),
    "silhouette IoU": (0.90, 0.90),
    "exactly the asked colours": (0.75, None),
}

ROWS = ("with depth", "depth left out", "shuffled prompts")


def evaluate(
    paint: Painter,
    count: int,
    size: tuple[int, int],
    wanted: list[str],
    out: Path | None,
    falling: int | None = None,
) -> dict:
    """Those rows of the table at one size that are `wanted` (see ROWS), after those of the true renders.

    The rows that must fall are of the first `falling` scenes, and say so where that is not all of them.
    """
    seed = UNSEEN_SEED + size[0] * 10_000 + size[1]
    scenes = sample_scenes(count, seed, size)
    prompts = captions(scenes, seed)
    true = paint.renders(scenes, size)
    decoded = paint.round_trip(true.picture)
    name = format_size(size)
    rows = {
        "true renders": metrics.scores(true.picture, scenes, true.ids),
        "their VAE round trip": metrics.scores(decoded, scenes, true.ids)
        | {
            "VAE whole, dB": metrics.psnr(true.picture, decoded),
            "VAE inside objects, dB": metrics.psnr_inside(true.picture, decoded, true.ids),
        },
    }
    given = {
        "with depth": (prompts, true.disparity),
        "depth left out": (prompts, None),
        "shuffled prompts": (shuffled(prompts), true.disparity),
    }
    columns = min(6, count)
    shown = [true.picture[:columns]]
    for row in wanted:
        texts, disparity = given[row]
        number = count if row == ROWS[0] or falling is None else min(count, falling)
        maps = None if disparity is None else list(disparity[:number, 0])
        made = paint(texts[:number], size, f"{name} {row}", depth=maps)
        rows[named(row, number, count)] = metrics.scores(made, scenes[:number], true.ids[:number])
        shown.append(made[:columns])
    if out is not None:
        sheet(torch.cat(shown), columns, out / f"sheet-{name}.png", 1)
        (out / f"sheet-{name}.txt").write_text("\n".join(prompts[:columns]) + "\n")
    return rows


def print_table(name: str, rows: dict[str, dict[str, float]], bound: int) -> None:
    columns = [*BOUNDS, "sky", "floor"]
    print(f"\n{name}\n| | " + " | ".join(columns) + " |\n|---" + "|---" * len(columns) + "|")
    for row, values in rows.items():
        print(f"| {row} | " + " | ".join(_cell(c, values) for c in columns) + " |")
    wanted = [BOUNDS[c][bound] if c in BOUNDS else None for c in columns]
    print("| wanted | " + " | ".join("" if w is None else f">= {w:g}" for w in wanted) + " |")


def _cell(column: str, values: dict[str, float]) -> str:
    if column not in values:
        return ""
    return f"{values[column]:.2f}" if column.endswith("dB") or "IoU" in column else f"{values[column]:.1%}"


def look(paint: Painter, net: bool, path: Path) -> None:
    """A quick sheet: eight native pictures by text alone, eight with depth under their true renders."""
    scenes = sample_scenes(8, UNSEEN_SEED, (128, 128))
    prompts = captions(scenes, UNSEEN_SEED)
    true = paint.renders(scenes, (128, 128))
    rows = [true.picture, paint(prompts, (128, 128), "text alone")]
    if net:
        rows.append(paint(prompts, (128, 128), "with depth", depth=list(true.disparity[:, 0])))
    sheet(torch.cat(rows), 8, path, 2)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument("--count", type=amount, default=200)
    parser.add_argument("--falling", type=amount, default=None, help="scenes of the rows that must fall")
    parser.add_argument("--sizes", nargs="+", default=["128x128", "768x512"])
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS, help="only these of the rows")
    parser.add_argument("--out", type=Path, default=None, help="a folder for contact sheets")
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--sheet", type=Path, default=None, help="only a quick sheet of samples")
    args = parser.parse_args()
    paint = painter(args)
    if args.sheet is not None:
        look(paint, args.model is None or (Path(args.model) / "controlnet_depth").is_dir(), args.sheet)
        return
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
    table = {}
    for text in args.sizes:
        size = parse_size(text)
        native = size == (128, 128)
        table[text] = evaluate(paint, args.count, size, args.rows, args.out, args.falling)
        how = f"{args.dtype} by {args.backend}"
        title = f"{text}: {args.count} scenes, {args.steps} steps, {how}"
        print_table(title, table[text], 0 if native else 1)
    if args.json is not None:
        args.json.write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
