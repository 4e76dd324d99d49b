"""Small classifiers that judge pictures where colours and outlines do not tell: an object's shape, a picture's look.

    python -m scripts.embedded.judges            # train both, print their accuracy on renders never seen
    python -m scripts.embedded.judges shape      # one of them

Trained on renders alone, softened and shifted in brightness at random, so that no model's own manner is
judged.
"""

from __future__ import annotations

import argparse
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scripts.embedded.arguments import amount
from scripts.embedded.looks import LOOKS, draw
from scripts.embedded.palette import SHAPES
from scripts.embedded.training import Progress, default_device, load_state, save_state, work_folder
from scripts.embedded.world import render, sample_scenes, single

__all__ = ["CLASSES", "judge", "load_judge"]

SIDE = 64
CLASSES = {"shape": SHAPES, "look": ("plain", *LOOKS)}
SEED = {"shape": 880_001, "look": 880_002}


class Judge(nn.Module):
    """Pictures [B,3,64,64] in 0..1 -> logits [B,classes]."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        widths = (3, 24, 48, 64, 96)
        self.layers = nn.Sequential(
            *(
                layer
                for a, b in pairwise(widths)
                for layer in (
                    nn.Conv2d(a, b, 3, 2, 1),
                    nn.GroupNorm(8, b),
                    nn.SiLU(),
                    nn.Conv2d(b, b, 3, 1, 1),
                    nn.SiLU(),
                )
            )
        )
        self.head = nn.Linear(widths[-1] * 16, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x * 2 - 1).flatten(1))


def examples(kind: str, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Pictures [N,3,64,64] in 0..1 and their classes [N], N at most `count`."""
    scenes = sample_scenes(count * 4 if kind == "shape" else count, seed, (128, 128))
    scenes = single(scenes)[:count] if kind == "shape" else scenes
    pictures, truth = [], []
    progress = Progress(f"examples for {kind}", 1e9)
    for k in range(len(scenes)):
        one = scenes[k : k + 1]
        if kind == "shape":
            pictures.append(render(one, (128, 128), 1).picture)
            truth.append(int(one.kind[0, 0]))
        else:
            truth.append(k % len(CLASSES[kind]))
            look = CLASSES[kind][truth[-1]]
            pictures.append(
                render(one, (128, 128), 1).picture if look == "plain" else draw(one, (128, 128), look)
            )
        progress.step(k, torch.tensor(k / len(scenes)))
    return F.avg_pool2d(torch.cat(pictures), 2), torch.tensor(truth)


def _vary(x: Tensor) -> Tensor:
    """Mirrored, softened and shifted in brightness at random."""
    x = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(-1), x)
    soft = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    share = torch.rand(len(x), 1, 1, 1)
    x = x * (1 - share) + soft * share
    return (x * (0.85 + 0.3 * torch.rand(len(x), 1, 1, 1)) + 0.03 * torch.randn_like(x)).clamp(0, 1)


def train(kind: str, count: int = 6000, epochs: int = 30) -> float:
    """Train the judge of `kind`, keep it in the work folder; its accuracy on renders never seen."""
    torch.manual_seed(SEED[kind])
    x, y = examples(kind, count, SEED[kind])
    held, truth = examples(kind, max(100, count // 6), SEED[kind] + 50_000)
    net = Judge(len(CLASSES[kind]))
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-3)
    steps = epochs * (len(x) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(steps):
        rows = torch.randint(len(x), (64,))
        loss = F.cross_entropy(net(_vary(x[rows])), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    net.eval()
    with torch.no_grad():
        right = float((net(held).argmax(1) == truth).float().mean())
    save_state(
        work_folder() / f"judge-{kind}.pt", net=net.state_dict(), accuracy=right, classes=CLASSES[kind]
    )
    return right


def load_judge(kind: str) -> tuple[Judge, float]:
    """The judge of `kind` and its accuracy on renders never seen; trained now if it is not there yet."""
    path = work_folder() / f"judge-{kind}.pt"
    state = load_state(path) if path.exists() else {}
    if state.get("classes", SHAPES) != CLASSES[kind]:  # none yet, or one of other looks
        train(kind)
        state = load_state(path)
    net = Judge(len(CLASSES[kind]))
    net.load_state_dict(state["net"])
    return net.eval().to(default_device()), state["accuracy"]


@torch.no_grad()
def judge(net: Judge, picture: Tensor) -> Tensor:
    """Classes [B] of pictures [B,3,H,W] in 0..1."""
    small = F.interpolate(picture.float(), size=(SIDE, SIDE), mode="bilinear", antialias=True)
    return net(small.to(next(net.parameters()).device)).argmax(1).cpu()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kinds", nargs="*", choices=[*CLASSES, []], default=[])
    parser.add_argument("--count", type=amount, default=6000)
    parser.add_argument("--epochs", type=amount, default=30)
    parser.add_argument("--threads", type=amount, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for kind in args.kinds or CLASSES:
        print(f"{kind}: {train(kind, args.count, args.epochs):.1%} of renders never seen")


if __name__ == "__main__":
    main()
