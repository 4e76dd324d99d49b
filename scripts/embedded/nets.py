"""Train ControlNets of other kinds beside the finished UNet: normal and canny, to be used alone and together.

    python -m scripts.embedded.nets normal canny --minutes 30 --install

They begin as the depth ControlNet, which already knows how to steer this UNet; UNet, text encoder and the depth
ControlNet itself stay as they are. Half of the steps show one kind alone, in turn, the other half all of them with
depth's at equal shares of one, as whoever combines nets does: nets that learn each by itself agree less on an outline
than one of them sees it. Hints are made as users make them: by `rawdiff.images`, the normal map from depth, the edges
from the picture.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from torch import Tensor

from scripts.embedded.base import MIXED, build, new_net
from scripts.embedded.data import HINTS, Batches, load_vae
from scripts.embedded.fit import add_arguments, begin, fit
from scripts.embedded.folder import load_committed
from scripts.embedded.objective import INSIDE, Objective
from scripts.embedded.text import load_tokenizer
from scripts.embedded.training import ASSETS

EDGES = 4.0  # what a net adds is where things end


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kinds", nargs="+", choices=[kind for kind in HINTS if kind != "depth"])
    parser.add_argument("--inside", type=float, default=INSIDE, help="how much more errors in objects count")
    parser.add_argument("--edges", type=float, default=EDGES, help="how much more errors at outlines count")
    add_arguments(parser, minutes=30, rate=1e-3)
    args = parser.parse_args()
    team, device = begin(args)
    modules = build()
    load_committed(modules)
    for module in modules.values():
        module.eval().requires_grad_(False)
    learning = {}
    for kind in args.kinds:
        name = f"controlnet_{kind}"
        learning[name] = new_net(modules["unet"])
        learning[name].load_state_dict(modules["controlnet_depth"].state_dict())
        if args.resume and (ASSETS / name).is_dir():
            load_committed({name: learning[name]})
        learning[name].train()
    live = {part: module.to(device) for part, module in (modules | learning).items()}
    shown = [[kind] for kind in args.kinds] + [["depth", *args.kinds]] * len(args.kinds)

    def start(seed: int) -> Callable[[int], tuple[Tensor, int]]:
        batches = Batches(
            MIXED, load_vae(device), load_tokenizer(), device, seed, team.rank, ["depth", *args.kinds]
        )
        objective = Objective(live, device, inside=args.inside, edges=args.edges)

        def step(index: int) -> tuple[Tensor, int]:
            x0, tokens, hints, inside = batches.draw()
            some = {kind: hints[kind] for kind in shown[index % len(shown)]}
            return objective(x0, tokens, some, inside), len(x0)

        return step

    fit("-".join(args.kinds), live, start, args, team)


if __name__ == "__main__":
    main()
