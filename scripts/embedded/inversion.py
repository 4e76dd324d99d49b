"""Learn an embedding for something that the model has no word for: a pylon, the orange cone that stands on roads.

    python -m scripts.embedded.inversion --minutes 6 --install

Textual inversion (Gal et al. 2022, arXiv 2208.01618): only the rows of the token embedding that the new word stands for
learn, everything else stays. Every scene holds one orange cone, and its caption names it by the new word alone: neither
a colour nor a shape. Written as `embeddings/pylon.safetensors` in A1111's layout, `emb_params` [vectors, width].
"""

from __future__ import annotations

import argparse
import random
import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from scripts.embedded.arguments import amount
from scripts.embedded.base import build
from scripts.embedded.captions import caption
from scripts.embedded.data import load_vae
from scripts.embedded.fit import add_arguments, begin, fit
from scripts.embedded.folder import load_committed, write_index
from scripts.embedded.objective import Objective
from scripts.embedded.painting import true_renders
from scripts.embedded.palette import COLOURS, SHAPES
from scripts.embedded.text import load_tokenizer, token_ids
from scripts.embedded.world import Renders, sample_scenes, single

__all__ = ["COLOUR", "SHAPE", "WORD", "pylon_scenes", "write_embedding"]

WORD = "pylon"
COLOUR, SHAPE = "orange", "cone"
"""What a pylon is, which no caption says."""
VECTORS = 2


def pylon_scenes(count: int, seed: int) -> tuple[Renders, list[str]]:
    """Scenes of one pylon, as 128x128 renders, and captions that call it that."""
    scenes = single(sample_scenes(count * 20, seed, (128, 128)))
    scenes = scenes[(scenes.kind[:, 0] == SHAPES.index(SHAPE)).nonzero().flatten()[:count]]
    scenes.colour[:, 0] = COLOURS.index(COLOUR)
    rng = random.Random(seed)
    texts = [
        re.sub(rf"(a|one)n? {COLOUR} {SHAPE}", rf"\1 {WORD}", caption(scenes, k, rng))
        for k in range(len(scenes))
    ]
    return true_renders(scenes, (128, 128)), texts


class Word(nn.Module):
    """The new word's vectors [VECTORS,width]."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        spread = table.std(0) * torch.randn(VECTORS, table.shape[1])
        self.vectors = nn.Parameter(table.mean(0) + 0.3 * spread)


def write_embedding(word: Word, folder: Path) -> None:
    """Write `embeddings/pylon.safetensors` into a model folder."""
    from safetensors.torch import save_file

    folder = folder / "embeddings"
    folder.mkdir(parents=True, exist_ok=True)
    vectors = word.vectors.detach().half().cpu().contiguous()
    save_file(
        {"emb_params": vectors}, folder / f"{WORD}.safetensors", metadata={"format": "pt", "name": WORD}
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser, minutes=6, rate=5e-3)
    parser.add_argument("--count", type=amount, default=600)
    args = parser.parse_args()
    team, device = begin(args)
    modules = build()
    load_committed(modules)
    modules = {name: m.to(device).eval().requires_grad_(False) for name, m in modules.items()}
    tokenizer = load_tokenizer()
    marks = [f"<{WORD}{k}>" for k in range(VECTORS)]
    tokenizer.add_tokens(marks)
    text = modules["text_encoder"]
    text.resize_token_embeddings(len(tokenizer))
    embedding = text.get_input_embeddings()
    first = len(tokenizer) - VECTORS
    word = Word(embedding.weight.detach()[:first]).to(device)

    def learn(layer: nn.Module, given: tuple[Tensor, ...], rows: Tensor) -> Tensor:
        """The embedding's rows [B,77,width], the new word's from `word`."""
        (ids,) = given
        own = word.vectors[(ids - first).clamp(min=0)]
        return torch.where((ids >= first)[..., None], own, rows)

    embedding.register_forward_hook(learn)

    def start(seed: int) -> Callable[[int], tuple[Tensor, int]]:
        true, texts = pylon_scenes(args.count, 660_001)
        vae = load_vae(device)
        with torch.no_grad():
            latents = torch.cat(
                [vae.encode(p.to(device) * 2 - 1).latent_dist.mode() for p in true.picture.split(8)]
            )
        latents = latents * vae.config.scaling_factor
        tokens = token_ids(tokenizer, [t.replace(WORD, "".join(marks)) for t in texts])
        objective = Objective(modules, device)
        g = torch.Generator().manual_seed(seed * 64 + team.rank)

        def step(index: int) -> tuple[Tensor, int]:
            rows = torch.randint(len(latents), (16,), generator=g)
            inside = torch.zeros(16, 1, *latents.shape[2:], device=device)
            return objective(latents[rows], tokens[rows].to(device), None, inside), 16

        return step

    def write(held: dict[str, nn.Module], folder: Path) -> None:
        write_embedding(held["word"], folder)
        write_index(folder)

    fit(WORD, {"word": word}, start, args, team, write=write)


if __name__ == "__main__":
    main()
