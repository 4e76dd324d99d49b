"""Train the embedded model's UNet and depth ControlNet, and its text encoder along with them.

    python -m scripts.embedded.words --minutes 5                    # first, the text encoder alone
    python -m scripts.embedded.base --phase native --minutes 40     # then with the UNet, on 128x128
    python -m scripts.embedded.base --phase mixed --minutes 40      # with the depth ControlNet, on all sizes

Native: v prediction, 10% empty captions. Mixed: the ControlNet starts as a copy of the UNet's encoder and
learns beside it: it is shown to most of the pictures, the others are trained without, so that the UNet stays whole by
itself; where the map is shown, or the noise low enough to see them, errors inside the objects count more. The text
encoder is asked about captions all along (see `words`): else it merges again what pictures tell apart late, as a cube
and a cylinder, and no picture by text alone has the shape it was asked for. Captions are drawn anew each time; pictures
are mirrored half of the time, captions and all. Every tenth of the way a checkpoint and a snapshot of the averaged
weights in the diffusers layout go to the work folder, and a sheet of samples every third time.
With `torchrun --nproc-per-node 2` two processes of one thread share the work (see training.Team).
`--resume` goes on from the checkpoint, or from the committed weights where there is none.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scripts.embedded.data import Batches, load_vae
from scripts.embedded.fit import add_arguments, begin, fit
from scripts.embedded.folder import SCHEDULE, load_committed
from scripts.embedded.text import WIDTH, build_text_encoder, load_tokenizer
from scripts.embedded.training import ASSETS, work_folder
from scripts.embedded.twins import Exchanged, difference
from scripts.embedded.words import Captions, Questions, losses

UNET = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (64, 96, 112),
    "layers_per_block": 1,
    "cross_attention_dim": WIDTH,
    "attention_head_dim": (4, 6, 7),  # as in Stable Diffusion 1's configs: the number of heads
    "norm_num_groups": 16,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3,
    "up_block_types": ("CrossAttnUpBlock2D",) * 3,
    # At the top level each latent asks the words twice and no other latent: without the words there, colours do not
    # find their objects; with attention among all the latents of a 768x512 picture a step takes three times as long.
    "only_cross_attention": (True, False, False),
}
CONDITIONING = (8, 16, 32, 64)
OFFSET = 0.4  # noise with a mean of its own, so that whether it is night is read from the words and not off the noise
REGIONAL = (
    0.2  # so each region of the native size in a larger picture: objects had colours read off the noise there
)
EARLY = 0.4  # the share of timesteps from the noisiest tenth, where the words decide the whole
HINTED = 0.65  # the share of pictures whose depth map is shown, once the ControlNet learns
INSIDE = 2.0  # how much more an error inside an object counts, where the map says which latents those are
FOUND = 700  # below this timestep one sees where an object is: its errors may count more without a map too
ASKED = 16  # captions about which the text encoder is asked at each step
SHORT = 512  # up to so many keys plain attention is faster to train on a CPU than the fused kernel

# bank, share of the steps, batch: every step costs about as much
NATIVE = [("unet128", 1.0, 32)]
MIXED = [
    ("unet128", 0.60, 32),
    ("mix256", 0.10, 8),
    ("mix384", 0.09, 5),
    ("mix256t", 0.05, 5),
    ("big768", 0.11, 1),
    ("big512", 0.05, 1),
]


def mix(native: float) -> list[tuple[str, float, int]]:
    """MIXED with this share of the steps at the native size."""
    (name, share, count), *others = MIXED
    return [(name, native, count), *((n, s * (1 - native) / (1 - share), c) for n, s, c in others)]


@torch.no_grad()
def awaken(net: nn.Module) -> None:
    """Give a new ControlNet's hint a way in: the variance kept from layer to layer, the last convolution at zero.

    As diffusers initialises it, a hint fades to a ten-thousandth on its way through eight convolutions, and
    learning to see it takes longer than all the rest.
    """
    embedding = net.controlnet_cond_embedding
    for convolution in (embedding.conv_in, *embedding.blocks):
        nn.init.normal_(convolution.weight, std=1.8 / convolution.weight[0].numel() ** 0.5)
        nn.init.zeros_(convolution.bias)
    nn.init.zeros_(embedding.conv_out.weight)
    nn.init.zeros_(embedding.conv_out.bias)


class Attention:
    """An attention processor for training: plain products where the keys are few, the fused kernel elsewhere."""

    def __init__(self) -> None:
        from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

        self.plain, self.fused = AttnProcessor(), AttnProcessor2_0()

    def __call__(
        self, attention: nn.Module, x: Tensor, encoder_hidden_states: Tensor | None = None, **more: object
    ) -> Tensor:
        keys = x if encoder_hidden_states is None else encoder_hidden_states
        way = self.plain if keys.device.type == "cpu" and keys.shape[1] <= SHORT else self.fused
        return way(attention, x, encoder_hidden_states, **more)


def new_net(unet: nn.Module) -> nn.Module:
    """A ControlNet that begins as a copy of the UNet's encoder, with a way in for its hint."""
    from diffusers import ControlNetModel

    net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=CONDITIONING)
    net.set_attn_processor(Attention())
    awaken(net)
    return net


def build() -> dict[str, nn.Module]:
    from diffusers import ControlNetModel, UNet2DConditionModel

    unet = UNet2DConditionModel(**UNET)
    net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=CONDITIONING)
    for module in (unet, net):
        module.set_attn_processor(Attention())
        for name, part in module.named_modules():
            if name.endswith(".proj_out"):  # every attention begins as nothing, as in Stable Diffusion
                nn.init.zeros_(part.weight)
                nn.init.zeros_(part.bias)
    return {"text_encoder": build_text_encoder(load_tokenizer()), "unet": unet, "controlnet_depth": net}


def noise_like(x: Tensor) -> Tensor:
    """Noise for latents [B,4,h,w]: white, and with a mean of its own, as a whole and in each region of 16x16.

    At the noisiest step a latent's signal is a fifteenth of its noise, yet over an object of a thousand latents the
    white noise averages out: what is drawn from pure noise then has the colours that chance gave its regions.
    """
    count, channels, height, width = x.shape
    eps = torch.randn_like(x) + OFFSET * torch.randn(count, channels, 1, 1, device=x.device)
    native = UNET["sample_size"]
    if max(height, width) > native:
        cells = (-(-height // native) + 1, -(-width // native) + 1)
        coarse = torch.randn(count, channels, *cells, device=x.device)
        eps += REGIONAL * F.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=True)
    return eps


class Objective:
    """The loss of one batch: the error of v at random timesteps (Salimans and Ho 2022, arXiv 2202.00512).

    Predicting v rather than the noise decides what is large, the sky and its brightness, where a small network
    that predicts noise leaves it to chance.
    """

    def __init__(
        self,
        modules: dict[str, nn.Module],
        device: torch.device,
        early: float = EARLY,
        inside: float = INSIDE,
        edges: float = 0.0,
        exchanged: Exchanged | None = None,
    ) -> None:
        """An error inside an object counts `inside` times more, one at its outline `edges` times."""
        self.modules, self.device, self.early = modules, device, early
        self.inside, self.edges, self.exchanged = inside, edges, exchanged
        betas = torch.linspace(SCHEDULE["beta_start"] ** 0.5, SCHEDULE["beta_end"] ** 0.5, 1000) ** 2
        self.alpha_bar = (1 - betas).cumprod(0).to(device)

    def __call__(
        self,
        x0: Tensor,
        tokens: Tensor,
        hints: Mapping[str, Tensor] | None,
        inside: Tensor,
        given: Tensor | None = None,
        twin: Tensor | None = None,
    ) -> Tensor:
        """`hints`, each [S,3,8h,8w], are shown to the first S pictures, several at equal shares of one; `inside`
        [B,1,h,w] is the share of each latent that is an object's. `given` [B,5,h,w] are an inpainting UNet's further
        channels; `inside` is then its mask. `twin` is x0 of the exchanged scenes: told of them, the UNet has to predict
        what differs, where no hint shows the shapes."""
        count = len(x0)
        t = torch.randint(1000, (count,), device=self.device)
        early = torch.rand(count, device=self.device) < self.early
        t = torch.where(early, 900 + t // 10, t)
        eps = noise_like(x0)
        a = self.alpha_bar[t].view(-1, 1, 1, 1)
        x = a.sqrt() * x0 + (1 - a).sqrt() * eps
        context = self.modules["text_encoder"](tokens).last_hidden_state
        residuals: dict[str, object] = {}
        known, shown = t < FOUND, 0
        if hints:
            shown = len(next(iter(hints.values())))
            known[:shown] = True
            each = [
                self.modules[f"controlnet_{kind}"](
                    x[:shown], t[:shown], context[:shown], hint, 1 / len(hints), return_dict=False
                )
                for kind, hint in hints.items()
            ]
            rest = (0, 0, 0, 0, 0, 0, 0, count - shown)
            downs = zip(*(down for down, _ in each), strict=True)
            residuals = {
                "down_block_additional_residuals": [F.pad(sum(together), rest) for together in downs],
                "mid_block_additional_residual": F.pad(sum(mid for _, mid in each), rest),
            }
        if given is not None:
            x = torch.cat([x, given], dim=1)
            known[:] = True
        counts = self.inside * inside + self.edges * 4 * inside * (1 - inside)
        weight = 1 + counts * known.view(-1, 1, 1, 1)
        out = self.modules["unet"](x, t, context, **residuals).sample
        v = a.sqrt() * eps - (1 - a).sqrt() * x0
        loss = (weight * (out.float() - v).square()).mean()
        if twin is None or self.exchanged is None:
            return loss
        told, rows = self.exchanged(tokens, t)
        rows[:shown] = False
        if not rows.any():
            return loss
        other = self.modules["text_encoder"](told[rows]).last_hidden_state
        differs = self.modules["unet"](x[rows], t[rows], other).sample - out[rows]
        true = difference(x0[rows], twin[rows], a[rows])
        pairs = (1 + self.inside * inside[rows]) * (differs.float() - true).square()
        return loss + pairs.mean() * len(pairs) / count


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--phase", choices=("native", "mixed"), default="native")
    add_arguments(parser, minutes=40, rate=1.5e-3)
    parser.add_argument("--from", dest="source", type=Path, help="start from this model folder's weights")
    parser.add_argument("--words", action="store_true", help="with the text encoder that `words` taught")
    parser.add_argument(
        "--ask", type=float, default=0.1, help="how much the questions about captions count (see words)"
    )
    parser.add_argument("--hinted", type=float, default=HINTED, help="the share of pictures with their map")
    parser.add_argument("--early", type=float, default=EARLY, help="the share of the noisiest timesteps")
    parser.add_argument("--native", type=float, default=MIXED[0][1], help="the share of 128x128 in the mix")
    parser.add_argument("--inside", type=float, default=INSIDE, help="how much more errors in objects count")
    parser.add_argument("--twins", metavar="BANK", help="unet128's scenes exchanged (see twins)")
    parser.add_argument(
        "--keep-words",
        action="store_true",
        help="leave the text encoder as it is, which others were trained for",
    )
    args = parser.parse_args()
    if args.keep_words and not (args.source or args.resume or args.words):
        parser.error("--keep-words: there are none yet: expected --from, --resume or --words")
    team, device = begin(args)
    modules = build()
    mixed = args.phase == "mixed"
    source = args.source or (ASSETS if args.resume else None)
    if source is not None:
        load_committed(modules, source)
        if mixed and not (source / "controlnet_depth").is_dir():
            modules["controlnet_depth"] = new_net(modules["unet"])
    if args.words:
        load_committed({"text_encoder": modules["text_encoder"]}, work_folder() / "words")
    modules["text_encoder"].requires_grad_(not args.keep_words)
    questions = None if args.keep_words else Questions().to(device)
    live = {name: m.to(device).train() for name, m in modules.items() if mixed or name != "controlnet_depth"}

    def start(seed: int) -> Callable[[int], tuple[Tensor, int]]:
        plan = mix(args.native) if mixed else NATIVE
        batches = Batches(plan, load_vae(device), load_tokenizer(), device, seed, team.rank, twins=args.twins)
        objective = Objective(
            live, device, early=args.early, inside=args.inside, exchanged=Exchanged(load_tokenizer())
        )
        asking = (
            None if questions is None else Captions(batches.banks[0].scenes, seed * 64 + team.rank, device)
        )

        def step(index: int) -> tuple[Tensor, int]:
            x0, tokens, hints, inside = batches.draw()
            shown = int(args.hinted * len(x0) + random.Random(index).random()) if mixed else 0
            some = {kind: hint[:shown] for kind, hint in hints.items()} if shown else None
            loss = objective(x0, tokens, some, inside, twin=batches.twin)
            if questions is None or asking is None:
                return loss, len(x0)
            asked, true = asking.draw(ASKED)
            said = questions(live["text_encoder"](asked).last_hidden_state)
            return loss + args.ask * losses(said, true), len(x0)

        return step

    fit(args.phase, live, start, args, team, look=True, beside=questions)


if __name__ == "__main__":
    main()
