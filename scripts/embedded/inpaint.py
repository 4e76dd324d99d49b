"""Train the inpainting UNet: nine channels, the latents, a mask and what the picture shows outside the mask.

    python -m scripts.embedded.inpaint --minutes 40 --install

It begins as the finished UNet with five more input channels at zero; the text encoder stays as it is. Masks are whole
objects with some margin, boxes and brush strokes. Channel order, resampling of the mask (nearest) and the grey that
fills the hole are Stable Diffusion's.

What is outside the mask is told and has only to be said again: errors there are small beside those inside, where much
is left to chance, so they count more, or the network never learns to copy well.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scripts.embedded.arguments import counting
from scripts.embedded.bank import load_bank
from scripts.embedded.base import UNET, Attention, build
from scripts.embedded.captions import caption
from scripts.embedded.data import EMPTY, encoded, load_vae
from scripts.embedded.fit import add_arguments, begin, fit
from scripts.embedded.folder import load_committed
from scripts.embedded.objective import Objective
from scripts.embedded.text import load_tokenizer, token_ids
from scripts.embedded.training import ASSETS
from scripts.embedded.world import MAX_OBJECTS

PLAN = [("unet128", 0.70, 24), ("mix256", 0.12, 6), ("mix384", 0.12, 4), ("big768", 0.06, 1)]
EXTRA = 5
OUTSIDE = 10.0  # how much more an error outside the mask counts; one inside INSIDE times more, as in objects


def widen(unet: nn.Module) -> nn.Module:
    """The UNet with a mask channel and four more of latents, all at zero."""
    from diffusers import UNet2DConditionModel

    wide = UNet2DConditionModel(**{**UNET, "in_channels": UNET["in_channels"] + EXTRA})
    state = dict(unet.state_dict())
    state["conv_in.weight"] = F.pad(state["conv_in.weight"], (0, 0, 0, 0, 0, EXTRA))
    wide.load_state_dict(state)
    wide.set_attn_processor(Attention())
    return wide


def draw_mask(ids: Tensor, rng: random.Random) -> Tensor:
    """A mask [H,W] in 0 or 1 over a picture whose ids are [H,W]: an object, a box or a stroke."""
    height, width = ids.shape
    unit = math.sqrt(height * width)
    mask = torch.zeros(height, width)
    way = rng.random()
    if way < 0.45:
        held = [k for k in range(MAX_OBJECTS) if bool((ids == k).any())]
        mask = (ids == rng.choice(held)).float() if held else mask
        grow = max(1, int(unit * rng.uniform(0.015, 0.08)))
        mask = F.max_pool2d(mask[None, None], 2 * grow + 1, 1, grow)[0, 0]
    if (way >= 0.45 and way < 0.75) or not bool(mask.any()):
        h, w = (int(unit * rng.uniform(0.2, 0.6)) for _ in range(2))
        top, left = rng.randrange(max(1, height - h)), rng.randrange(max(1, width - w))
        mask[top : top + h, left : left + w] = 1
    elif way >= 0.75:
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        y, x, turn = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(0, 2 * math.pi)
        thick = unit * rng.uniform(0.04, 0.10)
        for _ in range(rng.randint(4, 10)):
            mask[(rows - y).square() + (columns - x).square() < thick * thick] = 1
            turn += rng.uniform(-0.7, 0.7)
            y = min(max(y + thick * math.sin(turn), 0), height)
            x = min(max(x + thick * math.cos(turn), 0), width)
    return mask


class Holes:
    """Latents, tokens, and the five channels that say what is to stay."""

    def __init__(self, vae: nn.Module, device: torch.device, seed: int, rank: int) -> None:
        self.vae, self.device = vae, device
        self.banks = [encoded(name, vae, device) for name, _, _ in PLAN]
        held = [load_bank(name) for name, _, _ in PLAN]
        self.pictures, self.ids = [b["picture"] for b in held], [b["ids"] for b in held]
        self.tokenizer = load_tokenizer()
        self.shares = torch.tensor([share for _, share, _ in PLAN])
        self.choice = torch.Generator().manual_seed(seed)  # the same bank for a whole team
        self.g = torch.Generator().manual_seed(seed * 64 + rank)
        self.rng = random.Random(seed * 64 + rank)

    def draw(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x0 [B,4,h,w], token ids [B,77], mask and masked latents [B,5,h,w], the mask [B,1,h,w]."""
        which = int(torch.multinomial(self.shares, 1, generator=self.choice))
        bank, count = self.banks[which], PLAN[which][2]
        rows = torch.randint(len(bank.latents), (count,), generator=self.g)
        turned = torch.randint(2, (count,), generator=self.g).bool()
        ids, pictures = self.ids[which][rows], self.pictures[which][rows].float() / 127.5 - 1
        ids = torch.where(turned[:, None, None], ids.flip(-1), ids)
        pictures = torch.where(turned[:, None, None, None], pictures.flip(-1), pictures)
        mask = torch.stack([draw_mask(one, self.rng) for one in ids])[:, None].to(self.device)
        with torch.no_grad():
            kept = self.vae.encode(pictures.to(self.device) * (mask < 0.5)).latent_dist.sample()
        small = F.interpolate(mask, size=kept.shape[2:])
        given = torch.cat([small, kept.float() * self.vae.config.scaling_factor], 1)
        texts = [
            ""
            if self.rng.random() < EMPTY
            else caption(bank.mirrored if t else bank.scenes, int(row), self.rng)
            for row, t in zip(rows, turned, strict=True)
        ]
        tokens = token_ids(self.tokenizer, texts)
        x0 = bank.latents[rows, turned.long()].float().to(self.device)
        return x0, tokens.to(self.device), given, small


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--outside", type=counting, default=OUTSIDE, help="how much more errors outside the mask count"
    )
    add_arguments(parser, minutes=40, rate=1e-3)
    args = parser.parse_args()
    team, device = begin(args)
    modules = build()
    load_committed(modules)
    wide = widen(modules["unet"])
    if args.resume and (ASSETS / "unet_inpaint").is_dir():
        load_committed({"unet_inpaint": wide})
    text = modules["text_encoder"].to(device).eval().requires_grad_(False)
    wide = wide.to(device).train()

    def start(seed: int) -> Callable[[int], tuple[Tensor, int]]:
        holes = Holes(load_vae(device), device, seed, team.rank)
        objective = Objective({"text_encoder": text, "unet": wide}, device, outside=args.outside)

        def step(index: int) -> tuple[Tensor, int]:
            x0, tokens, given, mask = holes.draw()
            return objective(x0, tokens, None, mask, given), len(x0)

        return step

    fit("inpaint", {"unet_inpaint": wide}, start, args, team)


if __name__ == "__main__":
    main()
