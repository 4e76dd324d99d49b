"""Our forwards against those of the modules that hold the weights, and each part of them made to matter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rawdiff import nets
from rawdiff.errors import UsageError, WeightsError
from tests.small_models import (
    SHAPES,
    TEXT_WIDTH,
    small_controlnet,
    small_text_encoder,
    small_unet,
    small_vae,
)

BOUND = 1e-5


def error(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference over the reference's own size."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [(8, 8), (9, 7), (5, 12)])
def test_unet(shape: str, size: tuple[int, int]) -> None:
    unet = small_unet(1, shape=shape)
    nets.unet.check(unet)
    x, context = randn(2, 4, *size), randn(2, 77, TEXT_WIDTH, seed=1)
    t = torch.tensor([481.25])
    theirs = unet(x, t[0], context, return_dict=False)[0]
    assert error(nets.unet.forward(unet, x, t, context), theirs) < BOUND
    for other in (
        nets.unet.forward(unet, x, t + 40, context),
        nets.unet.forward(unet, x, t, context.flip(0)),
        nets.unet.forward(unet, x.flip(0), t, context),
    ):
        assert error(other, theirs) > 100 * BOUND


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("guess", [False, True])
@pytest.mark.parametrize("pooled", [False, True])
def test_controlnet(shape: str, guess: bool, pooled: bool) -> None:
    unet = small_unet(1, shape=shape)
    net = small_controlnet(unet, 5)
    net.register_to_config(global_pool_conditions=pooled)
    nets.controlnet.check(net, unet)
    x, context, hint = randn(2, 4, 6, 10), randn(2, 77, TEXT_WIDTH, seed=1), randn(2, 3, 48, 80, seed=2)
    t = torch.tensor([17.0])
    theirs = net(x, t[0], context, hint, conditioning_scale=0.7, guess_mode=guess, return_dict=False)
    features = nets.controlnet.embed_hint(net, hint)

    def run(features: Tensor, weight: float) -> nets.controlnet.Residuals:
        scales = nets.controlnet.guess_scales(net) if guess else None
        return nets.controlnet.residuals(net, x, t, context, features, torch.tensor(weight), scales)

    ours = run(features, 0.7)
    assert len(ours.skips) == len(theirs[0])
    other_hint, other_weight = run(features.flip(0), 0.7), run(features, 0.6)
    for k, expected in enumerate([*theirs[0], theirs[1]]):
        assert [*ours.skips, ours.middle][k].shape == expected.shape
        assert error([*ours.skips, ours.middle][k], expected) < BOUND
        assert error([*other_hint.skips, other_hint.middle][k], expected) > 100 * BOUND
        assert error([*other_weight.skips, other_weight.middle][k], expected) > 100 * BOUND


def test_controlnet_bgr() -> None:
    unet = small_unet(1)
    net = small_controlnet(unet, 5, controlnet_conditioning_channel_order="bgr")
    hint = randn(1, 3, 64, 64)
    swapped = net.controlnet_cond_embedding(hint.flip(1))
    assert error(nets.controlnet.embed_hint(net, hint), swapped) < BOUND
    assert error(nets.controlnet.embed_hint(net, hint.flip(1)), swapped) > 100 * BOUND


def test_residuals_enter_between_the_halves() -> None:
    unet = small_unet(1, shape="deep")
    net = small_controlnet(unet, 5)
    x, context, hint = randn(2, 4, 7, 8), randn(2, 77, TEXT_WIDTH, seed=1), randn(1, 3, 56, 64, seed=2)
    t = torch.tensor([300.0])
    skips, middle = net(x, t[0], context, hint, return_dict=False)
    theirs = unet(
        x,
        t[0],
        context,
        down_block_additional_residuals=skips,
        mid_block_additional_residual=middle,
        return_dict=False,
    )[0]
    features = nets.controlnet.embed_hint(net, hint)
    found = nets.controlnet.residuals(net, x, t, context, features, torch.tensor(1.0))
    emb = nets.blocks.embed_time(unet, t, x)
    own_skips, own_middle = nets.unet.encode(unet, x, emb, context)
    own = nets.controlnet.Residuals(tuple(own_skips), own_middle)
    joined = nets.controlnet.add(own, found)
    ours = nets.unet.decode(unet, joined.skips, joined.middle, emb, context)
    assert error(ours, theirs) < BOUND
    assert error(nets.unet.decode(unet, own.skips, own.middle, emb, context), theirs) > 100 * BOUND


@pytest.mark.parametrize("clip_skip", [0, 1, 2])
def test_text(clip_skip: int) -> None:
    encoder = small_text_encoder(3)
    nets.text.check(encoder)
    ids = torch.randint(0, encoder.config.vocab_size, (2, 77), generator=torch.Generator().manual_seed(0))
    theirs = encoder(ids, output_hidden_states=True).hidden_states[-(clip_skip + 1)]
    if clip_skip:  # the last of the hidden states may or may not have passed the norm; the others have not
        theirs = encoder.final_layer_norm(theirs)
    else:
        theirs = encoder(ids)[0]
    assert error(nets.text.encode(encoder, ids, clip_skip), theirs) < BOUND
    assert error(nets.text.encode(encoder, ids, (clip_skip + 1) % 3), theirs) > 100 * BOUND
    later = ids.clone()
    later[:, 40:] = ids[:, 40:].flip(1)  # causal: what comes later does not reach what came before
    assert error(nets.text.encode(encoder, later, clip_skip)[:, :40], theirs[:, :40]) < BOUND
    assert error(nets.text.encode(encoder, later, clip_skip)[:, 40:], theirs[:, 40:]) > 100 * BOUND


def test_text_refuses_more_skips_than_layers() -> None:
    ids = torch.zeros(1, 77, dtype=torch.int64)
    with pytest.raises(UsageError, match="clip skip 3: this text encoder has 3 layers"):
        nets.text.encode(small_text_encoder(3), ids, 3)


@pytest.mark.parametrize("changes", [{}, {"mid_block_add_attention": False}, {"use_post_quant_conv": False}])
def test_vae(changes: dict[str, bool]) -> None:
    vae = small_vae(4, **changes)
    nets.vae.check(vae)
    latents = randn(2, 4, 5, 8)
    theirs = vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]
    assert theirs.shape == (2, 3, 40, 64)
    assert error(nets.vae.decode(vae, latents), theirs) < BOUND
    assert error(nets.vae.decode(vae, latents * 1.1), theirs) > 100 * BOUND


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"addition_embed_type": "text", "encoder_hid_dim": None}, "addition_embed_type='text'"),
        ({"num_class_embeds": 3}, "num_class_embeds=3"),
        ({"center_input_sample": True}, "center_input_sample=True"),
        ({"down_block_types": ("AttnDownBlock2D", "DownBlock2D")}, "block 0 is a AttnDownBlock2D"),
    ],
)
def test_what_is_not_run_is_refused(changes: dict[str, object], words: str) -> None:
    if "addition_embed_type" in changes:
        unet = small_unet(1)
        unet.register_to_config(addition_embed_type="text")
    else:
        unet = small_unet(1, **changes)
    with pytest.raises(WeightsError, match=words):
        nets.unet.check(unet)


def test_a_controlnet_of_another_family_is_refused() -> None:
    net = small_controlnet(small_unet(1, shape="deep"), 5)
    with pytest.raises(WeightsError, match="block_out_channels"):
        nets.controlnet.check(net, small_unet(1))
