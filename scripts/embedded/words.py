"""Teach the embedded model's text encoder what captions say, before any picture is seen.

    python -m scripts.embedded.words --minutes 8

Trained with the UNet alone, the text encoder merges words whose difference a picture shows late: the shapes first, and
with them which object has which colour. So it first learns to answer questions about captions: what stands at each
place and in which colour, which colours each shape has and where it stands, the floor, the sky. A question is one
learned query of one layer of cross attention, as a UNet's, and the answer is linear in what it finds: a UNet can read
off the same features in the same way. The questions are dropped afterwards.
"""

from __future__ import annotations

import argparse
import contextlib
import random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scripts.embedded.arguments import amount, positive
from scripts.embedded.captions import caption
from scripts.embedded.folder import load_committed, write_model
from scripts.embedded.palette import COLOURS, FLOORS, SHAPES, SKIES
from scripts.embedded.text import WIDTH, build_text_encoder, load_tokenizer, token_ids
from scripts.embedded.training import Average, Progress, cosine, default_device, work_folder
from scripts.embedded.world import MAX_OBJECTS, Scenes, sample_scenes

PLACES = MAX_OBJECTS
NONE = -1


class Questions(nn.Module):
    """Queries over the text encoder's last hidden state [B,T,D], and linear answers."""

    def __init__(self, heads: int = 4) -> None:
        super().__init__()
        count = PLACES + len(SHAPES) + 2
        self.query = nn.Parameter(torch.randn(count, WIDTH))
        self.attention = nn.MultiheadAttention(WIDTH, heads, batch_first=True)
        self.place = nn.Linear(WIDTH, len(SHAPES) + 1 + len(COLOURS) + 1)
        self.shape = nn.Linear(WIDTH, len(COLOURS) + PLACES)
        self.floor, self.sky = nn.Linear(WIDTH, len(FLOORS)), nn.Linear(WIDTH, len(SKIES))

    def forward(self, hidden: Tensor) -> dict[str, Tensor]:
        """Logits: kind [B,3,5] and colour [B,3,9] of each place, colours and places of each shape [B,4,8+3], ..."""
        found, _ = self.attention(self.query.expand(len(hidden), -1, -1), hidden, hidden, need_weights=False)
        place = self.place(found[:, :PLACES])
        return {
            "kind": place[..., : len(SHAPES) + 1],
            "colour": place[..., len(SHAPES) + 1 :],
            "shape": self.shape(found[:, PLACES : PLACES + len(SHAPES)]),
            "floor": self.floor(found[:, -2]),
            "sky": self.sky(found[:, -1]),
        }


def answers(scenes: Scenes) -> dict[str, Tensor]:
    """The true answers; the last class of `kind` and `colour` is "nothing there"."""
    there = scenes.kind >= 0
    kind = torch.where(there, scenes.kind, len(SHAPES))
    colour = torch.where(there, scenes.colour, len(COLOURS))
    shape = torch.zeros(len(scenes), len(SHAPES) + 1, len(COLOURS) + 1 + PLACES)
    rows = torch.arange(len(scenes))
    for place in range(PLACES):
        shape[rows, kind[:, place], colour[:, place]] = 1
        shape[rows, kind[:, place], len(COLOURS) + 1 + place] = 1
    kept = [*range(len(COLOURS)), *range(len(COLOURS) + 1, shape.shape[-1])]
    return {
        "kind": kind,
        "colour": colour,
        "shape": shape[:, :-1, kept],
        "floor": scenes.floor,
        "sky": scenes.sky,
    }


def losses(said: dict[str, Tensor], true: dict[str, Tensor]) -> Tensor:
    """Cross entropies, summed over the kinds of question."""
    total = 3 * F.binary_cross_entropy_with_logits(said["shape"].float(), true["shape"])
    for name in ("kind", "colour", "floor", "sky"):
        logits = said[name].float()
        total = total + F.cross_entropy(logits.flatten(0, -2), true[name].flatten())
    return total


@torch.no_grad()
def right(said: dict[str, Tensor], true: dict[str, Tensor]) -> dict[str, float]:
    """The share of captions whose answers of a kind are all right."""
    shares = {
        name: (said[name].argmax(-1) == true[name])
        .flatten(1 if true[name].ndim > 1 else 0)
        .view(len(true[name]), -1)
        for name in ("kind", "colour", "floor", "sky")
    }
    shares["shape"] = ((said["shape"] > 0) == (true["shape"] > 0.5)).flatten(1)
    return {name: float(hits.all(1).float().mean()) for name, hits in shares.items()}


class Captions:
    """Scenes, described anew each time and tokenized."""

    def __init__(self, scenes: Scenes, seed: int, device: torch.device) -> None:
        self.scenes = scenes
        self.g, self.rng = torch.Generator().manual_seed(seed), random.Random(seed)
        self.tokenizer, self.device = load_tokenizer(), device

    def draw(self, count: int) -> tuple[Tensor, dict[str, Tensor]]:
        rows = torch.randint(len(self.scenes), (count,), generator=self.g)
        texts = [caption(self.scenes, int(row), self.rng) for row in rows]
        tokens = token_ids(self.tokenizer, texts)
        true = {name: value.to(self.device) for name, value in answers(self.scenes[rows]).items()}
        return tokens.to(self.device), true


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=positive, default=8)
    parser.add_argument("--batch", type=amount, default=64)
    parser.add_argument("--rate", type=positive, default=1e-3)
    parser.add_argument("--threads", type=amount, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="start from the committed text encoder")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    device = default_device()
    encoder = build_text_encoder(load_tokenizer())
    if args.resume:
        load_committed({"text_encoder": encoder})
    encoder, questions = encoder.to(device).train(), Questions().to(device)
    parameters = [*encoder.parameters(), *questions.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=args.rate, betas=(0.9, 0.99), weight_decay=0.01)
    average = Average(parameters, 0.995)
    source, held = (
        Captions(sample_scenes(20_000, seed, (128, 128)), seed, device)
        for seed in (args.seed, args.seed + 1_000_000)
    )
    progress, index = Progress("words", args.minutes), 0
    while (done := progress.done) < 1:
        tokens, true = source.draw(args.batch)
        for group in optimizer.param_groups:
            group["lr"] = args.rate * cosine(done)
        with (
            torch.autocast(device.type, torch.bfloat16) if device.type == "cpu" else contextlib.nullcontext()
        ):
            said = questions(encoder(tokens).last_hidden_state)
        loss = losses(said, true)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        average.update()
        index += 1
        progress.step(index, loss.detach())
    average.swap()
    encoder.eval()
    tokens, true = held.draw(400)
    with torch.no_grad():
        shares = right(questions(encoder(tokens).last_hidden_state), true)
    print("captions answered wholly: " + ", ".join(f"{name} {share:.1%}" for name, share in shares.items()))
    write_model({"text_encoder": encoder}, work_folder() / "words")


if __name__ == "__main__":
    main()
