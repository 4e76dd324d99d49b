"""Banks of renders on disk, for training on processors too slow to render as they learn.

python -m scripts.embedded.bank --count 4000 --seed 1 --size 128x128 NAME
"""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

import torch

from rawdiff.geometry import SizeError, parse_size
from scripts.embedded.arguments import amount
from scripts.embedded.captions import captions
from scripts.embedded.looks import LOOKS, draw
from scripts.embedded.training import Progress, default_device, load_state, save_state, work_folder
from scripts.embedded.twins import exchanged
from scripts.embedded.world import Scenes, render, sample_scenes

__all__ = ["load_bank", "make_bank"]


def make_bank(
    path: Path,
    count: int,
    seed: int,
    size: tuple[int, int],
    supersample: int,
    look: str | None = None,
    chunk: int = 1,
    twins: bool = False,
) -> None:
    """Render `count` scenes of `seed` at `size` into one file: pictures and ids uint8, disparity fp16, captions.

    With `look` the pictures are drawn in one of the looks of looks.py; with `twins` the scenes are those of the bank
    without it, cubes and cylinders exchanged.
    """
    scenes = sample_scenes(count, seed, size)
    if twins:
        scenes = exchanged(scenes)
    device = default_device()
    height, width = size
    picture = torch.empty(count, 3, height, width, dtype=torch.uint8)
    disparity = torch.empty(count, 1, height, width, dtype=torch.float16)
    ids = torch.empty(count, height, width, dtype=torch.uint8)
    progress = Progress(f"rendering {path.stem}", 1e9)
    for at in range(0, count, chunk):
        done = render(scenes[at : at + chunk].to(device), size, supersample)
        drawn = done.picture if look is None else draw(scenes[at : at + chunk], size, look)
        picture[at : at + chunk] = (drawn * 255).round().byte().cpu()
        disparity[at : at + chunk] = done.disparity.half().cpu()
        ids[at : at + chunk] = done.ids.byte().cpu()
        progress.step(at, torch.tensor(at / count))
    kept = {f.name: getattr(scenes, f.name) for f in fields(Scenes)}
    save_state(
        path, picture=picture, disparity=disparity, ids=ids, captions=captions(scenes, seed), scenes=kept
    )


def load_bank(name: str) -> dict:
    """The bank's tensors, its captions and its `Scenes`."""
    path = work_folder() / f"{name}.pt"
    if not path.exists():
        raise SystemExit(f"{path}: no such bank; render it: python -m scripts.embedded.bank {name} --help")
    bank = load_state(path)
    bank["scenes"] = Scenes(**bank["scenes"])
    return bank


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name")
    parser.add_argument("--count", type=amount, default=4000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--size", default="128x128")
    parser.add_argument("--supersample", type=amount, default=2)
    parser.add_argument("--look", choices=sorted(LOOKS))
    parser.add_argument("--twins", action="store_true", help="with cubes and cylinders exchanged")
    args = parser.parse_args()
    try:
        size = parse_size(args.size)
    except SizeError as error:
        parser.error(str(error))
    make_bank(
        work_folder() / f"{args.name}.pt",
        args.count,
        args.seed,
        size,
        args.supersample,
        args.look,
        twins=args.twins,
    )


if __name__ == "__main__":
    main()
