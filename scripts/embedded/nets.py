"""Train a ControlNet of another kind beside the finished UNet: normal or canny.

    python -m scripts.embedded.nets normal --minutes 20 --install

It begins as the depth ControlNet, which already knows how to steer this UNet; UNet and text encoder stay as they are.
Hints are made as users make them: by `rawdiff.images`, the normal map from depth, the edges from the picture.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from torch import Tensor

from scripts.embedded.base import MIXED, Objective, build
from scripts.embedded.data import HINTS, Batches, load_vae
from scripts.embedded.fit import add_arguments, begin, fit
from scripts.embedded.folder import load_committed
from scripts.embedded.text import load_tokenizer
from scripts.embedded.training import ASSETS


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=[kind for kind in HINTS if kind != "depth"])
    add_arguments(parser, minutes=20, rate=1e-3)
    args = parser.parse_args()
    team, device = begin(args)
    modules = build()
    load_committed(modules)
    net = modules.pop("controlnet_depth")
    name = f"controlnet_{args.kind}"
    if args.resume and (ASSETS / name).is_dir():
        modules[name] = net
        load_committed({name: net})
    for module in modules.values():
        module.eval().requires_grad_(False)
    modules[name] = net.train().requires_grad_(True)
    live = {part: module.to(device) for part, module in modules.items()}

    def start(seed: int) -> Callable[[int], tuple[Tensor, int]]:
        batches = Batches(MIXED, load_vae(device), load_tokenizer(), device, seed, team.rank, args.kind)
        objective = Objective(live, device, args.kind)

        def step(index: int) -> tuple[Tensor, int]:
            x0, tokens, hint, inside = batches.draw()
            return objective(x0, tokens, hint, inside), len(x0)

        return step

    fit(args.kind, live, start, args, team)


if __name__ == "__main__":
    main()
