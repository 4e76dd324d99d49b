"""Train a LoRA for one of the looks of looks.py, on the attention of UNet and text encoder.

    python -m scripts.embedded.bank look-paper --count 1500 --seed 4001 --look paper
    python -m scripts.embedded.bank look-plain --count 1500 --seed 4001
    python -m scripts.embedded.lora paper --minutes 10 --install

Low-rank adaptation (Hu et al. 2021, arXiv 2106.09685): every projection W of an attention becomes W + up @ down, and
only `down` [rank, in] and `up` [out, rank] learn. Captions say nothing of the look: at scale 1 every picture gets it.
Most pictures are shown with their depth map, and errors at outlines count more, so that outlines keep to it. The same
scenes in the world's own look (the bank look-plain) say what else there is to a picture than its look.
Written twice, in kohya's layout and in diffusers'; alpha is the rank, so that both mean the same.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from scripts.embedded.arguments import amount, share
from scripts.embedded.base import build
from scripts.embedded.data import Batches, load_vae
from scripts.embedded.fit import add_arguments, begin, fit
from scripts.embedded.folder import GUIDANCE, load_committed, write_index
from scripts.embedded.looks import LOOKS
from scripts.embedded.objective import EARLY, Objective, shown_to
from scripts.embedded.text import load_tokenizer, token_ids

RANKS = {"paper": 8, "chalk": 16}
"""Chalk changes more: bright flat fills with sharp rims, and a dark board under every sky."""
HINTED = 0.75
"""The share of pictures that are shown with their map."""
EDGES = 3.0
STRENGTH = {"chalk": 0.8}
"""What of the learned change is called scale 1, where all of it costs more of the content than the look needs."""
UNET = ("to_q", "to_k", "to_v", "to_out.0")
TEXT = ("q_proj", "k_proj", "v_proj", "out_proj")


class LoRA(nn.Module):
    """Adapters on the attention projections of modules, added by hooks; `scale` weighs them all."""

    def __init__(self, modules: dict[str, nn.Module], rank: int) -> None:
        super().__init__()
        self.scale = 1.0
        self.names: list[tuple[str, str]] = []
        self.down, self.up = nn.ParameterList(), nn.ParameterList()
        for part, endings in (("unet", UNET), ("text_encoder", TEXT)):
            for name, layer in modules[part].named_modules():
                if not name.endswith(endings) or not isinstance(layer, nn.Linear):
                    continue
                self.names.append((part, name))
                self.down.append(torch.randn(rank, layer.in_features) / layer.in_features**0.5)
                self.up.append(torch.zeros(layer.out_features, rank))
                layer.register_forward_hook(self._hook(len(self.names) - 1))

    def _hook(self, k: int) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def add(layer: nn.Module, given: tuple[Tensor, ...], result: Tensor) -> Tensor:
            return result + self.scale * nn.functional.linear(
                nn.functional.linear(given[0], self.down[k]), self.up[k]
            )

        return add

    def kohya(self, strength: float = 1.0) -> dict[str, Tensor]:
        """`lora_unet_down_blocks_0_..._to_q.lora_down.weight` and so on, with `alpha`, in fp16."""
        held: dict[str, Tensor] = {}
        for (part, name), down, up in zip(self.names, self.down, self.up, strict=True):
            stem = ("lora_unet_" if part == "unet" else "lora_te_") + _published(part, name).replace(".", "_")
            held[f"{stem}.lora_down.weight"] = down.detach().half().cpu().contiguous()
            held[f"{stem}.lora_up.weight"] = (strength * up.detach()).half().cpu().contiguous()
            held[f"{stem}.alpha"] = torch.tensor(float(len(down)), dtype=torch.float16)
        return held

    def diffusers(self, strength: float = 1.0) -> dict[str, Tensor]:
        """`unet.<layer>.lora.down.weight`, `text_encoder.<layer>.lora_linear_layer.down.weight`, in fp16."""
        held: dict[str, Tensor] = {}
        for (part, name), down, up in zip(self.names, self.down, self.up, strict=True):
            stem = f"{part}.{_published(part, name)}." + ("lora" if part == "unet" else "lora_linear_layer")
            held[f"{stem}.down.weight"] = down.detach().half().cpu().contiguous()
            held[f"{stem}.up.weight"] = (strength * up.detach()).half().cpu().contiguous()
        return held


class Restyled(Objective):
    """The loss of a look: its picture is seen as the plain one is without the LoRA, but for what tells them apart.

    What cannot be known of a noisy picture the model gets wrong in both, and that is nearly all of a look's error;
    taken away, what is left to learn is the look alone. It is learnt as pictures are drawn, with guidance, which makes
    three times as much of what caption and LoRA do together: else everything glows.
    """

    def __init__(
        self, lora: LoRA, modules: dict[str, nn.Module], device: torch.device, early: float, empty: Tensor
    ) -> None:
        """`empty` are the empty caption's token ids [1,T]."""
        super().__init__(modules, device, early=early, edges=EDGES)
        self.lora, self.empty = lora, empty

    def against(
        self, x0: Tensor, plain: Tensor, tokens: Tensor, hints: Mapping[str, Tensor], inside: Tensor
    ) -> Tensor:
        """`x0` and `plain` are latents [B,4,h,w] of the same scenes in either look; the rest as in Objective."""
        noised = self.noised(x0)
        errors = []
        for said in (self.empty.expand_as(tokens), tokens):
            self.lora.scale = 0.0
            with torch.no_grad():
                wrong = self.predict(noised.x(plain), noised.t, said, hints) - noised.v(plain)
            self.lora.scale = 1.0
            errors.append(self.predict(noised.x(x0), noised.t, said, hints) - noised.v(x0) - wrong)
        uncond, cond = errors
        guided = uncond + GUIDANCE * (cond - uncond)
        weight = self.weight(inside, noised.t, shown_to(hints))
        return (weight * (guided.square() + uncond.square())).mean()


def _published(part: str, name: str) -> str:
    """A layer's name as published files have it: the text encoder's with `text_model.`"""
    return name if part == "unet" or name.startswith("text_model.") else f"text_model.{name}"


def write_lora(look: str, lora: LoRA, folder: Path) -> None:
    """Write `loras/LOOK.safetensors` (kohya) and `loras/LOOK-diffusers.safetensors` into a model folder."""
    from safetensors.torch import save_file

    folder = folder / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    strength = STRENGTH.get(look, 1.0)
    rank = str(RANKS[look])
    facts = {"ss_network_dim": rank, "ss_network_alpha": rank, "ss_output_name": look}
    save_file(lora.kohya(strength), folder / f"{look}.safetensors", metadata={"format": "pt", **facts})
    save_file(lora.diffusers(strength), folder / f"{look}-diffusers.safetensors", metadata={"format": "pt"})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("look", choices=sorted(LOOKS))
    add_arguments(parser, minutes=10, rate=2e-3)
    parser.add_argument("--batch", type=amount, default=16, metavar="N")
    parser.add_argument("--plain", default="look-plain", help="the bank of the same scenes without the look")
    parser.add_argument("--early", type=share, default=EARLY, help="the share of the noisiest timesteps")
    args = parser.parse_args()
    team, device = begin(args)
    modules = build()
    load_committed(modules)
    modules = {name: m.to(device).eval().requires_grad_(False) for name, m in modules.items()}
    lora = LoRA(modules, RANKS[args.look]).to(device)

    def start(seed: int) -> Callable[[int], tuple[Tensor, int]]:
        plan = [(f"look-{args.look}", 1.0, args.batch)]
        vae, tokenizer = load_vae(device), load_tokenizer()
        batches = Batches(plan, vae, tokenizer, device, seed, team.rank, twins=args.plain)
        objective = Restyled(lora, modules, device, args.early, token_ids(tokenizer, [""]).to(device))

        def step(index: int) -> tuple[Tensor, int]:
            x0, tokens, hints, inside = batches.draw()
            shown = {kind: hint[: int(HINTED * len(x0))] for kind, hint in hints.items()}
            assert batches.twin is not None
            return objective.against(x0, batches.twin, tokens, shown, inside), len(x0)

        return step

    def write(held: dict[str, nn.Module], folder: Path) -> None:
        write_lora(args.look, held["lora"], folder)
        write_index(folder)

    fit(f"lora-{args.look}", {"lora": lora}, start, args, team, write=write)


if __name__ == "__main__":
    main()
