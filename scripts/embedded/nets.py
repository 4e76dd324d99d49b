"""Train ControlNets of other kinds beside the finished UNet: normal and canny, to be used alone and together.

    python -m scripts.embedded.nets normal canny --minutes 30 --install

They begin as the depth ControlNet, which already knows how to steer this UNet; UNet, text encoder and the depth
ControlNet itself stay as they are. Most steps ask of the new ones that they say what the depth ControlNet says of the
same noisy picture, residual by residual and as loudly: it has learnt longer, that needs no UNet, and nets that agree
serve alone and together, where otherwise either wants something else of them. Of the other steps half show one kind
alone, in turn, half all of them with depth's at equal shares of one, as whoever combines nets does. Hints are made as
users make them: by `rawdiff.images`, the normal map from depth, the edges from the picture.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from scripts.embedded.arguments import counting
from scripts.embedded.base import MIXED, build, new_net
from scripts.embedded.data import HINTS, Batches, load_vae
from scripts.embedded.fit import add_arguments, begin, fit
from scripts.embedded.folder import load_committed
from scripts.embedded.objective import INSIDE, Objective
from scripts.embedded.text import load_tokenizer
from scripts.embedded.training import ASSETS

EDGES = 4.0  # what a net adds is where things end
FOLLOW = 4  # steps that follow the depth ControlNet, for each of the others
FOLLOWING = 0.2  # how much such a step's loss counts
TOGETHER = 3.0  # how much more the others' mean counts than each: what one cannot know another makes up for


def astray(x0: Tensor) -> Tensor:
    """Latents [B,4,h,w], about the second half of them moved by the same -1, 0 or 1 to each side, round the edge.

    While a picture is drawn it is not yet where the hint says. A net that sees true pictures alone learns to go by
    them when there is little noise, and mends nothing then.
    """
    half = (len(x0) + int(torch.randint(2, ()))) // 2
    down, right = (int(k) for k in torch.randint(-1, 2, (2,)))
    return torch.cat([x0[:half], x0[half:].roll((down, right), (2, 3))])


def unlike(
    objective: Objective, x0: Tensor, tokens: Tensor, hints: Mapping[str, Tensor], leader: str
) -> Tensor:
    """How far the other nets' residuals, and `TOGETHER` times of several nets their mean, are from the leader's.

    For each 2 - 2 cos of the angle between the two, and the square of how much of the leader's is not said: least
    squares alone would have a net say the less the less it is sure of, and nets together steer too weakly.
    """
    low = (1000 * torch.rand(len(x0), device=x0.device).square()).long()  # outlines are lost there
    noised = objective.noised(x0, low)
    x = noised.x(astray(x0))
    context = objective.modules["text_encoder"](tokens).last_hidden_state

    def residuals(kind: str) -> list[Tensor]:
        net = objective.modules[f"controlnet_{kind}"]
        downs, mid = net(x, noised.t, context, hints[kind], return_dict=False)
        return [r.float().flatten(1) for r in (*downs, mid)]

    with torch.no_grad():
        true = residuals(leader)
    each = [residuals(kind) for kind in hints if kind != leader]
    counts = [1.0] * len(each)
    if len(each) > 1:
        counts.append(TOGETHER)
        each.append([torch.stack(same).mean(0) for same in zip(*each, strict=True)])
    loss = x0.new_zeros(())
    for said, count in zip(each, counts, strict=True):
        apart = []
        for ours, theirs in zip(said, true, strict=True):
            product, due = (ours * theirs).sum(1), theirs.square().sum(1)
            alike = F.cosine_similarity(ours, theirs, dim=1)
            apart.append(2 - 2 * alike + (product / due - 1).square())
        loss = loss + count * torch.stack(apart).mean()
    return loss / sum(counts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kinds", nargs="+", choices=[kind for kind in HINTS if kind != "depth"])
    parser.add_argument(
        "--inside", type=counting, default=INSIDE, help="how much more errors in objects count"
    )
    parser.add_argument(
        "--edges", type=counting, default=EDGES, help="how much more errors at outlines count"
    )
    parser.add_argument("--follow", type=int, default=FOLLOW, help="steps like depth's for each other step")
    add_arguments(parser, minutes=30, rate=1e-3)
    args = parser.parse_args()
    if args.follow < 0:
        parser.error(f"--follow {args.follow}: expected 0 or more steps")
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
            turn, following = divmod(index, 1 + args.follow)
            if following:
                return FOLLOWING * unlike(objective, x0, tokens, hints, "depth"), len(x0)
            some = {kind: hints[kind] for kind in shown[turn % len(shown)]}
            return objective(x0, tokens, some, inside), len(x0)

        return step

    fit("-".join(args.kinds), live, start, args, team)


if __name__ == "__main__":
    main()
