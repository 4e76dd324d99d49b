"""The table of original names: against how the original classes count, and against diffusers' converters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.loaders.single_file_utils import (
    convert_controlnet_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from torch import Tensor

from rawdiff.weights.build import PARTS, build_empty
from rawdiff.weights.choose import read_json
from rawdiff.weights.original import Names, places, to_original
from rawdiff.weights.single import FAMILIES
from tests import original_keys
from tests.small_models import small_controlnet, small_text_encoder, small_unet, small_vae

XL = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (16, 32),
    "transformer_layers_per_block": (1, 3),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 80,
}
"""SDXL's structure, small: no attention at the top, several transformers, an added embedding."""


def names_of(layout: str, module: Any) -> Names:
    config = module.config if layout != "open_clip" else module.config.to_dict()
    return Names(places(layout, config))


def empty(family: str, part: str) -> Any:
    return build_empty(PARTS[part], read_json(FAMILIES / family / part / "config.json"), "x")


def shapes(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in tensors.items()}


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("part", ["unet", "controlnet", "vae"])
def test_full_size_networks_have_the_originals_names_and_shapes(family: str, part: str) -> None:
    expected = {
        "unet": lambda: original_keys.unet(family),
        "controlnet": lambda: original_keys.controlnet(family),
        "vae": original_keys.vae,
    }[part]()
    module = empty(family, part)
    assert shapes(to_original(names_of(part, module), module.state_dict())) == dict(expected)


@pytest.mark.parametrize(
    ("family", "part", "width"), [("sd2", "text_encoder", 1024), ("sdxl", "text_encoder_2", 1280)]
)
def test_full_size_open_clip(family: str, part: str, width: int) -> None:
    module = empty(family, part)
    layers = module.config.num_hidden_layers
    assert layers == {1024: 23, 1280: 32}[width]
    expected = dict(original_keys.open_clip(width, layers))
    del expected["logit_scale"]
    if part == "text_encoder":
        del expected["text_projection"]  # SD2 does not read it
    state = {f"text_model.{k}" if not k.startswith("text_") else k: v for k, v in module.state_dict().items()}
    assert shapes(to_original(names_of("open_clip", module), state)) == expected


def check_both_ways(names: Names, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under their original names; each name found again from there."""
    original = to_original(names, state)
    back = {ours for key in original for ours, _ in names.ours(key)}
    assert back == set(state)
    for name in state:
        place = names.original(name)
        assert place is not None
        assert (name, place[1]) in names.ours(place[0])
    return original


def same(found: dict[str, Any], expected: dict[str, Tensor]) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("shape", ["plain", "deep", "topless", "linear", "xl"])
def test_unets_against_diffusers(shape: str) -> None:
    unet = small_unet(0, **XL) if shape == "xl" else small_unet(0, shape=shape)
    original = check_both_ways(names_of("unet", unet), unet.state_dict())
    held = {f"model.diffusion_model.{key}": value for key, value in original.items()}
    same(convert_ldm_unet_checkpoint(held, unet.config), unet.state_dict())
    assert ("label_emb.0.0.weight" in original) == (shape == "xl")


def test_controlnets_against_diffusers() -> None:
    for changes in ({}, XL):
        net = small_controlnet(small_unet(0, **changes), 1)
        original = check_both_ways(names_of("controlnet", net), net.state_dict())
        expected = net.state_dict()
        if changes:  # diffusers' converter leaves out the added embedding of an SDXL net
            expected = {k: v for k, v in expected.items() if not k.startswith("add_embedding")}
        same(convert_controlnet_checkpoint(original, net.config), expected)


def test_vaes_against_diffusers() -> None:
    vae = small_vae(0)
    original = check_both_ways(names_of("vae", vae), vae.state_dict())
    assert original["encoder.mid.attn_1.q.weight"].ndim == 4
    held = {f"first_stage_model.{key}": value for key, value in original.items()}
    same(convert_ldm_vae_checkpoint(held, vae.config), vae.state_dict())


def test_open_clip_against_diffusers() -> None:
    from transformers import CLIPTextModelWithProjection

    config = small_text_encoder(0, projection_dim=32).config
    torch.manual_seed(0)
    encoder = CLIPTextModelWithProjection(config)
    names = names_of("open_clip", encoder)
    original = check_both_ways(names, encoder.state_dict())
    projection = encoder.text_projection.weight
    assert torch.equal(original["text_projection"], projection.t())
    assert not torch.equal(projection, projection.t())
    prefix = "conditioner.embedders.1.model."
    held = {prefix + key: value for key, value in original.items()}
    same(convert_open_clip_checkpoint(encoder, held, prefix), encoder.state_dict())


def test_no_name_stands_for_two() -> None:
    for family in ("sd1", "sd2", "sdxl"):
        for part in ("unet", "controlnet", "vae"):
            table = names_of(part, empty(family, part)).places
            assert len({place.ours for place in table}) == len(table)
            assert len({place.original for place in table}) == len(table)


def test_what_has_no_place() -> None:
    names = names_of("vae", empty("sd1", "vae"))
    assert names.original("encoder.stray.weight") is None
    assert names.ours("encoder.down_blocks.0.resnets.0.norm1.weight") == []
    with pytest.raises(KeyError, match=r"stray\.weight"):
        to_original(names, {"stray.weight": torch.ones(1)})
