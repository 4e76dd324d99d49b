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
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from scripts.embedded.arguments import counting, share
from scripts.embedded.data import Batches, load_vae
from scripts.embedded.fit import add_arguments, begin, fit
from scripts.embedded.folder import load_committed
from scripts.embedded.objective import EARLY, INSIDE, Objective
from scripts.embedded.text import WIDTH, build_text_encoder, load_tokenizer, token_ids
from scripts.embedded.training import ASSETS, work_folder
from scripts.embedded.twins import Exchanged
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
HINTED = 0.65  # the share of pictures whose depth map is shown, once the ControlNet learns
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
    (name, usual, count), *others = MIXED
    return [(name, native, count), *((n, s * (1 - native) / (1 - usual), c) for n, s, c in others)]


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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--phase", choices=("native", "mixed"), default="native")
    add_arguments(parser, minutes=40, rate=1.5e-3)
    parser.add_argument("--from", dest="source", type=Path, help="start from this model folder's weights")
    parser.add_argument("--words", action="store_true", help="with the text encoder that `words` taught")
    parser.add_argument(
        "--ask", type=counting, default=0.1, help="how much the questions about captions count (see words)"
    )
    parser.add_argument("--hinted", type=share, default=HINTED, help="the share of pictures with their map")
    parser.add_argument("--early", type=share, default=EARLY, help="the share of the noisiest timesteps")
    parser.add_argument("--native", type=share, default=MIXED[0][1], help="the share of 128x128 in the mix")
    parser.add_argument(
        "--inside", type=counting, default=INSIDE, help="how much more errors in objects count"
    )
    parser.add_argument("--twins", metavar="BANK", help="unet128's scenes exchanged (see twins)")
    parser.add_argument(
        "--keep-words",
        action="store_true",
        help="leave the text encoder as it is, which others were trained for",
    )
    parser.add_argument(
        "--keep-net",
        action="store_true",
        help="leave the depth ControlNet as it is, which the others follow",
    )
    parser.add_argument(
        "--agree",
        type=counting,
        default=0.0,
        help="how much it counts if at low noise the UNet says something else without the caption",
    )
    args = parser.parse_args()
    if args.keep_words and not (args.source or args.resume or args.words):
        parser.error("--keep-words: there are none yet: expected --from, --resume or --words")
    mixed = args.phase == "mixed"
    source = args.source or (ASSETS if args.resume else None)
    if args.keep_net and not (mixed and source is not None and (source / "controlnet_depth").is_dir()):
        parser.error(
            "--keep-net: expected --phase mixed, and --from a folder with a depth ControlNet, or --resume"
        )
    team, device = begin(args)
    modules = build()
    if source is not None:
        load_committed(modules, source)
        if mixed and not (source / "controlnet_depth").is_dir():
            modules["controlnet_depth"] = new_net(modules["unet"])
    if args.words:
        load_committed({"text_encoder": modules["text_encoder"]}, work_folder() / "words")
    modules["text_encoder"].requires_grad_(not args.keep_words)
    modules["controlnet_depth"].requires_grad_(not args.keep_net)
    questions = None if args.keep_words else Questions().to(device)
    live = {name: m.to(device).train() for name, m in modules.items() if mixed or name != "controlnet_depth"}

    def start(seed: int) -> Callable[[int], tuple[Tensor, int]]:
        plan = mix(args.native) if mixed else NATIVE
        tokenizer = load_tokenizer()
        batches = Batches(
            plan, load_vae(device), tokenizer, device, seed, team.rank, twins=args.twins, exchange=True
        )
        exchanged = Exchanged(tokenizer) if args.twins else None
        objective = Objective(
            live,
            device,
            early=args.early,
            inside=args.inside,
            exchanged=exchanged,
            empty=token_ids(tokenizer, [""]).to(device),
            agree=args.agree,
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
