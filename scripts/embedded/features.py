"""Measure what the embedded model does beside following a prompt and a depth map, and print the tables.

    python -m scripts.embedded.features                                  # every study, 200 scenes each
    python -m scripts.embedded.features outlines --count 40 --out sheets # one of them, sooner, and look

Studies: shape (by text alone), outlines (canny, normal, all three nets), negative (a colour in the negative prompt; 400
pictures), guidance (1 to 20), sizes, inpaint, lora, embedding. Every table has the true renders, shuffled prompts or
the input left out beside the figure, so that one sees what the metric is worth.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

import rawdiff
from scripts.embedded import editing, steering
from scripts.embedded.painting import Painter
from scripts.embedded.steering import Row
from scripts.embedded.training import default_device, sheet

STUDIES = steering.STUDIES | editing.STUDIES
UNSEEN_SEED = 771_000
COUNTS = {"negative": 400}
BOUNDS = {
    "shape": "text alone: shape recognised >= 85%",
    "outlines": "canny alone, normal alone: IoU >= 0.85; three nets: IoU not below depth alone, each net felt",
    "negative": "share with the colour denied at most a third of the share without",
    "sizes": "about the native area by text alone, and with depth to 768x512, 512x768, 1024x384, held together",
    "inpaint": "asked object inside >= 85%; outside >= 35 dB",
    "lora": "its look: share rises, >= 85% at 1; colour and IoU at most 5% less than at 0",
    "embedding": "nearest to lime with the embedding, not without",
    "guidance": "saturation rises; agreement at 4 exceeds that at 1",
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
    plain = any(word in column for word in ("IoU", "saturation", "grey levels", "dB"))
    return f"{value:.3f}" if plain else f"{value:.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("studies", nargs="*", choices=[*STUDIES, []], default=[])
    parser.add_argument("--model", default=None, help="a model folder; the embedded model without it")
    parser.add_argument("--count", type=int, default=None, help="scenes a row; 200, of negative 400")
    parser.add_argument("--seed", type=int, default=UNSEEN_SEED)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=None)
    parser.add_argument("--sampler", default=None)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--out", type=Path, default=None, help="a folder for contact sheets")
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    model = rawdiff.load(args.model, device=str(default_device()), dtype=torch.float32)
    paint = Painter(model, args.steps, args.guidance, args.sampler)
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
    tables = {}
    for name in args.studies or STUDIES:
        rows = STUDIES[name](paint, args.count or COUNTS.get(name, 200), args.seed)
        print_table(name, rows)
        tables[name] = {row.name: row.values for row in rows}
        shown = [row.picture[:8] for row in rows if row.picture is not None]
        if args.out is not None:
            sheet(torch.cat(shown), len(shown[0]), args.out / f"sheet-{name}.png", 1)
    if args.json is not None:
        args.json.write_text(json.dumps(tables, indent=2) + "\n")


if __name__ == "__main__":
    main()
