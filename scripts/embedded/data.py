"""What the networks learn from: banks as latents, captions drawn anew, depth maps."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rawdiff.images import make_hint
from scripts.embedded.bank import load_bank
from scripts.embedded.captions import caption
from scripts.embedded.text import token_ids
from scripts.embedded.training import ASSETS, load_state, save_state, work_folder
from scripts.embedded.twins import exchanged
from scripts.embedded.world import MAX_OBJECTS, Scenes

__all__ = ["HINTS", "Bank", "Batches", "encoded", "load_vae", "mirror"]

HINTS = ("depth", "normal", "canny")
EMPTY = 0.1
"""The share of captions left empty, for guidance."""


@dataclass
class Bank:
    """A bank of pictures as the networks see it."""

    latents: Tensor  # [N,2,4,h,w] fp16, scaled; the second is the mirrored picture's
    hints: dict[str, Tensor]  # by kind, [N,1 or 3,H,W] fp16 in 0..1, or uint8
    inside: Tensor  # [N,1,h,w] fp16, the share of each latent that is an object's
    scenes: Scenes
    mirrored: Scenes
    twins: Tensor | None = None  # as the latents, of pictures paired with these


def mirror(scenes: Scenes) -> Scenes:
    """The scenes as a mirror shows them, objects again from left to right; only what captions read is kept true."""
    count = (scenes.kind >= 0).sum(1, keepdim=True)
    order = torch.arange(3).expand_as(scenes.kind)
    order = torch.where(order < count, count - 1 - order, order)
    turned = Scenes(**vars(scenes))
    turned.kind, turned.colour = scenes.kind.gather(1, order), scenes.colour.gather(1, order)
    return turned


def encoded(name: str, vae: nn.Module, device: torch.device, kinds: Sequence[str] = ("depth",)) -> Bank:
    """A bank with its latents, and hints of these kinds."""
    bank = load_bank(name)
    scenes = bank["scenes"]
    inside = F.avg_pool2d((bank["ids"] < MAX_OBJECTS).float()[:, None], 8).half()
    hints = {kind: _hints(name, bank, kind) for kind in kinds}
    return Bank(_latents(name, bank, vae, device), hints, inside, scenes, mirror(scenes))


def _paired(name: str, scenes: Scenes, vae: nn.Module, device: torch.device) -> Tensor:
    """The latents of a bank that has to be of these scenes."""
    bank = load_bank(name)
    told = bank["scenes"]
    if not torch.equal(told.centre, scenes.centre) or not torch.equal(told.kind, scenes.kind):
        raise SystemExit(
            f"{name}: other scenes than those it is paired with, expected their --count and --seed, and --twins "
            "where shapes are exchanged"
        )
    return _latents(name, bank, vae, device)


@torch.no_grad()
def _latents(name: str, bank: dict, vae: nn.Module, device: torch.device) -> Tensor:
    """Latents of a bank's pictures and of what a mirror shows of them, encoded once and kept beside it."""
    kept = work_folder() / f"{name}.latents.pt"
    parts = (vae.encoder, vae.quant_conv)  # a new encoder makes new latents
    weights = float(sum(p.double().abs().sum() for part in parts for p in part.parameters()))
    state = load_state(kept) if kept.exists() else {"weights": None}
    if state["weights"] != weights:
        latents = torch.empty(
            len(bank["picture"]),
            2,
            4,
            *(side // 8 for side in bank["picture"].shape[2:]),
            dtype=torch.float16,
        )
        chunk = max(1, 16 * 128 * 128 // bank["picture"][0, 0].numel())
        for at in range(0, len(latents), chunk):
            x = bank["picture"][at : at + chunk].to(device).float() / 127.5 - 1
            for turned, pictures in enumerate((x, x.flip(-1))):
                latents[at : at + chunk, turned] = (
                    (vae.encode(pictures).latent_dist.mode() * vae.config.scaling_factor).half().cpu()
                )
        state = {"weights": weights, "latents": latents}
        save_state(kept, **state)
    return state["latents"]


def _hints(name: str, bank: dict, kind: str) -> Tensor:
    """Hints of `kind` for a bank, made as users make them and kept beside it."""
    if kind == "depth":
        return bank["disparity"]
    kept = work_folder() / f"{name}.{kind}.pt"
    if not kept.exists():
        size = tuple(bank["picture"].shape[2:])
        made = torch.empty(len(bank["picture"]), 3, *size, dtype=torch.uint8)
        for k in range(len(made)):
            picture, disparity = (
                bank["picture"][k].permute(1, 2, 0).numpy(),
                bank["disparity"][k, 0].float().numpy(),
            )
            source = disparity if kind == "normal" else picture
            hint = make_hint(kind, source, size, derive=True, say=lambda line: None)
            made[k] = (hint.tensor * 255).round().byte()
        save_state(kept, hints=made)
    return load_state(kept)["hints"]


def load_vae(device: torch.device) -> nn.Module:
    """The embedded autoencoder in fp32."""
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_pretrained(ASSETS / "vae", torch_dtype=torch.float32).to(device)


class Batches:
    """Latents, tokens and hints drawn from banks of several sizes."""

    def __init__(
        self,
        plan: list[tuple[str, float, int]],
        vae: nn.Module,
        tokenizer: object,
        device: torch.device,
        seed: int,
        rank: int = 0,
        kinds: Sequence[str] = ("depth",),
        twins: str | None = None,
        exchange: bool = False,
    ) -> None:
        """`twins` names a bank that pairs with the first: the same scenes in another look, or exchanged."""
        self.banks = [encoded(name, vae, device, kinds) for name, _, _ in plan]
        if twins is not None:
            scenes = self.banks[0].scenes
            self.banks[0].twins = _paired(twins, exchanged(scenes) if exchange else scenes, vae, device)
        self.twin: Tensor | None = None
        self.shares = torch.tensor([share for _, share, _ in plan])
        self.sizes = [batch for _, _, batch in plan]
        self.tokenizer, self.device = tokenizer, device
        self.choice = torch.Generator().manual_seed(seed)  # the same bank for a whole team
        self.g = torch.Generator().manual_seed(seed * 64 + rank)
        self.rng = random.Random(seed * 64 + rank)

    def draw(self) -> tuple[Tensor, Tensor, dict[str, Tensor], Tensor]:
        """x0 [B,4,h,w], token ids [B,77], hints by kind [B,3,8h,8w] in 0..1, objects' share of latents [B,1,h,w].

        `twin` is then x0 of what is paired with them, if anything is.
        """
        which = int(torch.multinomial(self.shares, 1, generator=self.choice))
        bank, count = self.banks[which], self.sizes[which]
        rows = torch.randint(len(bank.latents), (count,), generator=self.g)
        turned = torch.randint(2, (count,), generator=self.g)
        x0 = bank.latents[rows, turned].float()
        inside = bank.inside[rows].float()
        self.twin = None if bank.twins is None else bank.twins[rows, turned].float().to(self.device)
        other = turned.view(-1, 1, 1, 1) == 1
        inside = torch.where(other, inside.flip(-1), inside)
        hints = {kind: _shown(kind, held[rows], other).to(self.device) for kind, held in bank.hints.items()}
        texts = [
            ""
            if self.rng.random() < EMPTY
            else caption(bank.mirrored if t else bank.scenes, int(row), self.rng)
            for row, t in zip(rows, turned, strict=True)
        ]
        tokens = token_ids(self.tokenizer, texts)
        return x0.to(self.device), tokens.to(self.device), hints, inside.to(self.device)


def _shown(kind: str, held: Tensor, mirrored: Tensor) -> Tensor:
    """Hints [B,1 or 3,H,W] of a bank as a ControlNet takes them, [B,3,H,W] in 0..1, mirrored where asked [B,1,1,1]."""
    hint = held.float() / 255 if held.dtype == torch.uint8 else held.float()
    seen = hint.flip(-1)
    if kind == "normal":  # a mirror turns left and right, and so red
        seen[:, 0] = 1 - seen[:, 0]
    return torch.where(mirrored, seen, hint).expand(-1, 3, -1, -1)
