"""Names and shapes of the original repositories' networks, from their own configs: how their classes count blocks.

Written from CompVis/latent-diffusion (`openaimodel.UNetModel`, `model.Encoder`, `model.Decoder`),
lllyasviel/ControlNet (`cldm.ControlNet`) and OpenCLIP (`TextTransformer`), and not from any conversion.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

Shape = tuple[int, ...]
Named = Iterator[tuple[str, Shape]]

MULT = {"sd1": (1, 2, 4, 4), "sd2": (1, 2, 4, 4), "sdxl": (1, 2, 4)}
DEPTH = {"sd1": (1, 1, 1, 0), "sd2": (1, 1, 1, 0), "sdxl": (0, 2, 10)}
"""channel_mult, and transformer_depth of each level (0 where attention_resolutions leave it out)."""
MIDDLE = {"sd1": 1, "sd2": 1, "sdxl": 10}
CONTEXT = {"sd1": 768, "sd2": 1024, "sdxl": 2048}
LINEAR = {"sd1": False, "sd2": True, "sdxl": True}
HINT = (16, 16, 32, 32, 96, 96, 256)


def both(name: str, weight: Shape) -> Named:
    yield f"{name}.weight", weight
    yield f"{name}.bias", weight[:1]


def conv(name: str, into: int, out: int, side: int = 3) -> Named:
    yield from both(name, (out, into, side, side))


def resnet(name: str, into: int, out: int, emb: int) -> Named:
    yield from both(f"{name}.in_layers.0", (into,))
    yield from conv(f"{name}.in_layers.2", into, out)
    yield from both(f"{name}.emb_layers.1", (out, emb))
    yield from both(f"{name}.out_layers.0", (out,))
    yield from conv(f"{name}.out_layers.3", out, out)
    if into != out:
        yield from conv(f"{name}.skip_connection", into, out, 1)


def transformer(name: str, width: int, depth: int, context: int, linear: bool) -> Named:
    yield from both(f"{name}.norm", (width,))
    for end in ("proj_in", "proj_out"):
        yield from both(f"{name}.{end}", (width, width) if linear else (width, width, 1, 1))
    for k in range(depth):
        block = f"{name}.transformer_blocks.{k}"
        for norm in ("norm1", "norm2", "norm3"):
            yield from both(f"{block}.{norm}", (width,))
        for attention, read in (("attn1", width), ("attn2", context)):
            yield f"{block}.{attention}.to_q.weight", (width, width)
            yield f"{block}.{attention}.to_k.weight", (width, read)
            yield f"{block}.{attention}.to_v.weight", (width, read)
            yield from both(f"{block}.{attention}.to_out.0", (width, width))
        yield from both(f"{block}.ff.net.0.proj", (8 * width, width))
        yield from both(f"{block}.ff.net.2", (width, 4 * width))


def down(family: str, into: int, widths: list[int]) -> Named:
    """Embeddings, input and middle blocks; the width that each input block leaves goes to `widths`."""
    mult, depth, context, linear = MULT[family], DEPTH[family], CONTEXT[family], LINEAR[family]
    model, emb = 320, 1280
    yield from both("time_embed.0", (emb, model))
    yield from both("time_embed.2", (emb, emb))
    if family == "sdxl":
        yield from both("label_emb.0.0", (emb, 2816))
        yield from both("label_emb.0.2", (emb, emb))
    yield from conv("input_blocks.0.0", into, model)
    width = model
    widths.append(width)
    for level, times in enumerate(mult):
        for _ in range(2):
            name = f"input_blocks.{len(widths)}"
            yield from resnet(f"{name}.0", width, times * model, emb)
            width = times * model
            if depth[level]:
                yield from transformer(f"{name}.1", width, depth[level], context, linear)
            widths.append(width)
        if level < len(mult) - 1:
            yield from conv(f"input_blocks.{len(widths)}.0.op", width, width)
            widths.append(width)
    yield from resnet("middle_block.0", width, width, emb)
    yield from transformer("middle_block.1", width, MIDDLE[family], context, linear)
    yield from resnet("middle_block.2", width, width, emb)


def unet(family: str, into: int = 4) -> Named:
    widths: list[int] = []
    yield from down(family, into, widths)
    width, n = widths[-1], 0
    for level in reversed(range(len(MULT[family]))):
        out = 320 * MULT[family][level]
        for j in range(3):
            yield from resnet(f"output_blocks.{n}.0", width + widths.pop(), out, 1280)
            width, place = out, 1
            if DEPTH[family][level]:
                yield from transformer(
                    f"output_blocks.{n}.1", width, DEPTH[family][level], CONTEXT[family], LINEAR[family]
                )
                place = 2
            if level and j == 2:
                yield from conv(f"output_blocks.{n}.{place}.conv", width, width)
            n += 1
    yield from both("out.0", (width,))
    yield from conv("out.2", width, 4)


def controlnet(family: str) -> Named:
    widths: list[int] = []
    yield from down(family, 4, widths)
    for k, width in enumerate(widths):
        yield from conv(f"zero_convs.{k}.0", width, width, 1)
    yield from conv("middle_block_out.0", widths[-1], widths[-1], 1)
    for k, (into, out) in enumerate(zip((3, *HINT), (*HINT, 320), strict=True)):
        yield from conv(f"input_hint_block.{2 * k}", into, out)


def vae() -> Named:
    mult: Sequence[int] = (1, 2, 4, 4)

    def block(name: str, into: int, out: int) -> Named:
        yield from both(f"{name}.norm1", (into,))
        yield from conv(f"{name}.conv1", into, out)
        yield from both(f"{name}.norm2", (out,))
        yield from conv(f"{name}.conv2", out, out)
        if into != out:
            yield from conv(f"{name}.nin_shortcut", into, out, 1)

    def ends(side: str, out: int, last: int) -> Named:
        for k in (1, 2):
            yield from block(f"{side}.mid.block_{k}", 512, 512)
        yield from both(f"{side}.mid.attn_1.norm", (512,))
        for name in ("q", "k", "v", "proj_out"):
            yield from conv(f"{side}.mid.attn_1.{name}", 512, 512, 1)
        yield from both(f"{side}.norm_out", (last,))
        yield from conv(f"{side}.conv_out", last, out)

    yield from conv("encoder.conv_in", 3, 128)
    width = 128
    for level, times in enumerate(mult):
        for j in range(2):
            yield from block(f"encoder.down.{level}.block.{j}", width, 128 * times)
            width = 128 * times
        if level < 3:
            yield from conv(f"encoder.down.{level}.downsample.conv", width, width)
    yield from ends("encoder", 8, 512)
    yield from conv("decoder.conv_in", 4, 512)
    for level in reversed(range(4)):
        for j in range(3):
            yield from block(f"decoder.up.{level}.block.{j}", width, 128 * mult[level])
            width = 128 * mult[level]
        if level:
            yield from conv(f"decoder.up.{level}.upsample.conv", width, width)
    yield from ends("decoder", 3, 128)
    yield from conv("quant_conv", 8, 8, 1)
    yield from conv("post_quant_conv", 4, 4, 1)


def open_clip(width: int, layers: int) -> Named:
    yield "positional_embedding", (77, width)
    yield "text_projection", (width, width)
    yield "logit_scale", ()
    yield "token_embedding.weight", (49408, width)
    yield from both("ln_final", (width,))
    for k in range(layers):
        name = f"transformer.resblocks.{k}"
        yield from both(f"{name}.ln_1", (width,))
        yield from both(f"{name}.ln_2", (width,))
        yield f"{name}.attn.in_proj_weight", (3 * width, width)
        yield f"{name}.attn.in_proj_bias", (3 * width,)
        yield from both(f"{name}.attn.out_proj", (width, width))
        yield from both(f"{name}.mlp.c_fc", (4 * width, width))
        yield from both(f"{name}.mlp.c_proj", (width, 4 * width))


def clip() -> Named:
    """OpenAI's ViT-L/14 text tower in transformers' names, as SD1's files have it."""
    yield "text_model.embeddings.position_ids", (1, 77)
    yield "text_model.embeddings.token_embedding.weight", (49408, 768)
    yield "text_model.embeddings.position_embedding.weight", (77, 768)
    yield from both("text_model.final_layer_norm", (768,))
    for k in range(12):
        name = f"text_model.encoder.layers.{k}"
        for norm in ("layer_norm1", "layer_norm2"):
            yield from both(f"{name}.{norm}", (768,))
        for letter in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from both(f"{name}.self_attn.{letter}", (768, 768))
        yield from both(f"{name}.mlp.fc1", (3072, 768))
        yield from both(f"{name}.mlp.fc2", (768, 3072))


def checkpoint(family: str, into: int = 4) -> dict[str, Shape]:
    """Every tensor of a family's checkpoint, with some of what lies beside the networks in published ones."""
    text = {
        "sd1": [("cond_stage_model.transformer.", clip())],
        "sd2": [("cond_stage_model.model.", open_clip(1024, 24))],
        "sdxl": [
            ("conditioner.embedders.0.transformer.", clip()),
            ("conditioner.embedders.1.model.", open_clip(1280, 32)),
        ],
    }
    parts = [("model.diffusion_model.", unet(family, into)), ("first_stage_model.", vae()), *text[family]]
    beside = (
        {"betas": (1000,), "alphas_cumprod": (1000,)} if family != "sdxl" else {"denoiser.sigmas": (1000,)}
    )
    return {prefix + key: shape for prefix, named in parts for key, shape in named} | beside
