"""Measure what the embedded model does beside following a prompt and a depth map, and print the tables.

    python -m scripts.embedded.features                                  # every study, 200 scenes each
    python -m scripts.embedded.features outlines --count 40 --out sheets # one of them, sooner, and look

Studies: shape (by text alone), outlines (canny, normal, all three nets), negative (a colour in the negative prompt; 400
pictures), guidance (1 to 20, with depth and by text alone), sizes, inpaint, lora, embedding. The tables, but that of
sizes, have the true renders, shuffled prompts or the input left out beside the figure, so that one sees what the metric
is worth.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from scripts.embedded import editing, steering
from scripts.embedded.arguments import amount
from scripts.embedded.painting import add_arguments, painter
from scripts.embedded.plots import write_rows
from scripts.embedded.steering import Row
from scripts.embedded.training import sheet

STUDIES = steering.STUDIES | editing.STUDIES
UNSEEN_SEED = 771_000
COUNTS = {"negative": 400}
PLOTTED = ("guidance",)
BOUNDS = {
    "shape": "text alone: shape recognised >= 85%",
    "outlines": "canny alone, normal alone: IoU >= 0.85; three nets: IoU not below depth alone, each net felt",
    "negative": "share with the colour denied at most a third of the share without",
    "sizes": "about the native area by text alone, and with depth to 768x512, 512x768, 1024x384, held together",
    "inpaint": "asked object inside >= 85%; outside >= 35 dB",
    "lora": "its look: share rises, >= 85% at 1; colour and IoU at most 5% less than at 0",
    "embedding": "an orange cone with the embedding, not without",
    "guidance": "saturation rises; object colour and exactly the asked colours at 4 exceed those at 1",
}


def print_table(name: str, rows: list[Row]) -> None:
    columns = list(dict.fromkeys(column for row in rows for column in row.values))
    print(
        f"\n{name}: wanted {BOUNDS[name]}\n| | "
        + " | ".join(columns)
        + " |\n|---"
        + "|---" * len(columns)
        + "|"
    )
    for row in rows:
        print(
            f"| {row.name} | " + " | ".join(_cell(c, row.values.get(c)) for c in columns) + " |", flush=True
        )


def _cell(column: str, value: float | None) -> str:
    if value is None:
        return ""
    if "IoU" in column:
        return f"{value:.4f}"
    plain = any(word in column for word in ("saturation", "grey levels", "dB"))
    return f"{value:.3f}" if plain else f"{value:.1%}"


def draw(folder: Path, name: str, rows: list[Row], count: int) -> None:
    """A contact sheet, up to eight pictures of each row that has some, and of some studies a plot."""
    pictures = [row.picture for row in rows if row.picture is not None]
    if pictures:
        columns = min(8, *map(len, pictures))
        sheet(
            torch.cat([picture[:columns] for picture in pictures]), columns, folder / f"sheet-{name}.png", 1
        )
    if name in PLOTTED:
        write_rows(folder / f"{name}.png", f"{name}, {count} scenes each", rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("studies", nargs="*", choices=[*STUDIES, []], default=[])
    parser.add_argument("--count", type=amount, default=None, help="scenes a row; 200, of negative 400")
    parser.add_argument("--falling", type=amount, default=None, help="scenes of the rows that must fall")
    parser.add_argument("--seed", type=int, default=UNSEEN_SEED)
    add_arguments(parser)
    parser.add_argument("--out", type=Path, default=None, help="a folder for contact sheets and plots")
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    paint = painter(args)
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
    tables = {}
    for name in args.studies or STUDIES:
        count = args.count or COUNTS.get(name, 200)
        rows = STUDIES[name](paint, count, min(count, args.falling or count), args.seed)
        print_table(name, rows)
        tables[name] = {row.name: row.values for row in rows}
        if args.out is not None:
            draw(args.out, name, rows, count)
    if args.json is not None:
        args.json.write_text(json.dumps(tables, indent=2) + "\n")


if __name__ == "__main__":
    main()
