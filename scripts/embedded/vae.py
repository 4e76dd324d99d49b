"""Train the embedded model's AutoencoderKL on crops of renders.

    python -m scripts.embedded.bank vae128 --count 3000 --seed 1001
    python -m scripts.embedded.bank vae768 --count 90 --seed 1002 --size 768x512
    python -m scripts.embedded.bank vae512 --count 30 --seed 1003 --size 512x768
    python -m scripts.embedded.vae --minutes 30
    python -m scripts.embedded.vae --minutes 15 --rate 1e-3 --polish --resume
    python -m scripts.embedded.vae --minutes 15 --rate 5e-4 --decoder --resume    # the latents stay

Loss: L1 + 3 MSE on pixels, those of objects and their rims counted more; from 40% on, L1 of the gradients too; a
tiny KL. Crops are 64x64 first and 128x128 or 192x192 for the last quarter, so that the group norms see whole pictures.
The latents' standard deviation is measured at the end and becomes `scaling_factor`. Resumes from its checkpoint.
"""

from __future__ import annotations

import argparse
import contextlib
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from scripts.embedded.arguments import amount, positive
from scripts.embedded.bank import load_bank
from scripts.embedded.metrics import psnr, psnr_inside
from scripts.embedded.training import (
    ASSETS,
    Average,
    Progress,
    cosine,
    default_device,
    load_state,
    save_state,
    sheet,
    work_folder,
)

CONFIG = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [16, 32, 64, 64],
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 8,
    "sample_size": 128,
    "mid_block_add_attention": False,
    "force_upcast": False,
}


def build() -> torch.nn.Module:
    from diffusers import AutoencoderKL

    return AutoencoderKL(**CONFIG)


class Crops:
    """Random crops [B,3,S,S] in -1..1 and their weights [B,1,S,S] from banks of different sizes."""

    def __init__(self, names: list[tuple[str, float]], device: torch.device) -> None:
        banks = [load_bank(name) for name, _ in names]
        self.pictures = [bank["picture"].to(device) for bank in banks]
        self.solid = [(bank["ids"] < 3).to(device) for bank in banks]
        self.shares = torch.tensor([share for _, share in names])

    def draw(self, count: int, side: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
        crops, masks = [], []
        for _ in range(count):
            fits = torch.tensor([p.shape[2] >= side for p in self.pictures])
            bank = int(torch.multinomial(self.shares * fits, 1, generator=g))
            pictures, solid = self.pictures[bank], self.solid[bank]
            n, _, height, width = pictures.shape
            for _ in range(4):  # look for a crop with an object in it, then take what there is
                i, y, x = (
                    int(torch.randint(high, (1,), generator=g))
                    for high in (n, height - side + 1, width - side + 1)
                )
                mask = solid[i, y : y + side, x : x + side]
                if bool(mask.any()):
                    break
            crop = pictures[i, :, y : y + side, x : x + side]
            if torch.rand(1, generator=g) < 0.5:
                crop, mask = crop.flip(-1), mask.flip(-1)
            crops.append(crop)
            masks.append(mask)
        mask = torch.stack(masks)[:, None].float()
        return torch.stack(crops).float() / 127.5 - 1, F.max_pool2d(mask, 3, 1, 1)


def loss_of(x: Tensor, y: Tensor, weight: Tensor, gradient: float, polish: bool = False) -> Tensor:
    """Weighted L1 + 3 MSE of y against x [B,3,H,W], plus `gradient` times the L1 of their differences to neighbours.

    With `polish` 0.3 L1 + 20 MSE: at the errors left by then it is the MSE that decides.
    """
    off = y - x
    near, far = (0.3, 20.0) if polish else (1.0, 3.0)
    loss = (weight * (near * off.abs() + far * off.square())).mean()
    if gradient > 0:
        across = (off[..., 1:] - off[..., :-1]).abs() * weight[..., 1:]
        down = (off[..., 1:, :] - off[..., :-1, :]).abs() * weight[..., 1:, :]
        loss = loss + gradient * (across.mean() + down.mean())
    return loss


@torch.no_grad()
def evaluate(vae: torch.nn.Module, bank: dict, count: int, path: Path | None = None) -> tuple[float, float]:
    """PSNR of posterior-mode round trips of a bank's first pictures: whole, and inside the objects."""
    device = next(vae.parameters()).device
    x = bank["picture"][:count].float() / 255
    y = torch.cat(
        [vae.decode(vae.encode(p * 2 - 1).latent_dist.mode()).sample for p in x.to(device).split(4)]
    )
    y = (y * 0.5 + 0.5).clamp(0, 1).cpu()
    if path is not None:
        sheet(torch.cat([x[:8], y[:8]]), 8, path, 2 if x.shape[-1] < 200 else 1)
    return psnr(x, y), psnr_inside(x, y, bank["ids"][:count])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=positive, default=30)
    parser.add_argument("--batch", type=amount, default=16)
    parser.add_argument("--rate", type=positive, default=2e-3)
    parser.add_argument("--threads", type=amount, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--resume", action="store_true", help="go on from the checkpoint, or from the committed weights"
    )
    parser.add_argument("--polish", action="store_true", help="a last stage: large crops, mostly MSE")
    parser.add_argument("--decoder", action="store_true", help="polish the decoder alone: the latents stay")
    args = parser.parse_args()
    args.polish |= args.decoder
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore", message="Detected call of")
    device = default_device()
    vae = build().to(device)
    work, index, seconds = work_folder(), 0, 0.0
    checkpoint = work / ("decoder.ckpt" if args.decoder else "polish.ckpt" if args.polish else "vae.ckpt")
    from diffusers import AutoencoderKL

    if args.decoder:
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=args.rate, betas=(0.9, 0.99), weight_decay=1e-4)
    average = Average(vae.parameters(), 0.998)
    if args.resume:
        if checkpoint.exists():
            state = load_state(checkpoint)
            vae.load_state_dict(state["vae"])
            optimizer.load_state_dict(state["optimizer"])
            index, seconds = state["index"], state["seconds"]
        else:
            vae.load_state_dict(AutoencoderKL.from_pretrained(ASSETS / "vae").float().state_dict())
        average = Average(vae.parameters(), 0.998)
        average.count = index
    banks = ("unet128", "big768", "big512") if args.polish else ("vae128", "vae768", "vae512")
    crops = Crops(list(zip(banks, (0.7, 0.2, 0.1), strict=True)), device)
    g = torch.Generator().manual_seed(args.seed + index)
    progress = Progress("vae", args.minutes)
    progress.start -= seconds
    saved = int(progress.done * 10)
    while progress.done < 1:
        done = progress.done
        large = done > 0.75 or args.polish
        side = 64 if not large else (128 if index % 3 else 192)
        batch = args.batch if not large else (4 if index % 3 else 2)
        x, solid = crops.draw(batch, side, g)
        for group in optimizer.param_groups:
            group["lr"] = args.rate * cosine(done)
        with (
            torch.autocast(device.type, torch.bfloat16) if device.type == "cpu" else contextlib.nullcontext()
        ):
            posterior = vae.encode(x).latent_dist
            y = vae.decode(posterior.mode() if args.decoder else posterior.sample()).sample
        gradient = 0.2 if args.polish else 0.6 * min(1.0, max(0.0, (done - 0.4) / 0.2))
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).float().mean()
        inside = 3.0 if args.decoder else 1.5
        loss = loss_of(x, y.float(), 1 + inside * solid, gradient, args.polish) + 2e-4 * kl
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        average.update()
        index += 1
        progress.step(index, loss.detach(), f"kl {float(kl.detach()):.2f}")
        if int(done * 10) > saved:
            saved = int(done * 10)
            average.swap()
            whole, inside = evaluate(vae, load_bank("val128"), 32, work / "vae.png")
            print(
                f"vae {done:.0%}: held-out PSNR {whole:.2f} dB whole, {inside:.2f} dB inside objects",
                flush=True,
            )
            average.swap()
            spent = done * progress.seconds
            save_state(
                checkpoint,
                vae=vae.state_dict(),
                optimizer=optimizer.state_dict(),
                index=index,
                seconds=spent,
            )
    average.swap()
    with torch.no_grad():
        bank = load_bank(banks[0])["picture"][:256].float() / 127.5 - 1
        latents = torch.cat([vae.encode(p).latent_dist.mode() for p in bank.to(device).split(8)])
    scale = round(float(1 / latents.std()), 5)
    if args.polish:  # what was trained on the latents goes on with their scale
        scale = AutoencoderKL.load_config(ASSETS / "vae")["scaling_factor"]
    vae.register_to_config(scaling_factor=scale)
    print(
        f"latents: std {float(latents.std()):.4f}, per channel {[round(float(v), 3) for v in latents.std((0, 2, 3))]}"
    )
    whole, inside = evaluate(vae, load_bank("val128"), 100)
    print(f"native: {whole:.2f} dB whole, {inside:.2f} dB inside objects")
    vae.half().save_pretrained(ASSETS / "vae")


if __name__ == "__main__":
    main()
