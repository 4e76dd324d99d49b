"""Files that are no LoRA, are broken, or are for another model: said in one line, and nothing is changed."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file
from torch import Tensor

from rawdiff.errors import WeightsError
from rawdiff.weights import Adapters, read_lora
from rawdiff.weights.lora_layers import Layers
from tests.lora_files import (
    Networks,
    kohya,
    meta_text_encoder,
    meta_unet,
    peft,
    random_changes,
    small_networks,
)
from tests.test_weights_files import mutate

Held = dict[str, Tensor]

STEM = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
LAYER = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
DOWN, UP, MID, ALPHA = (
    f"{STEM}.{end}" for end in ("lora_down.weight", "lora_up.weight", "lora_mid.weight", "alpha")
)
CONV = "lora_unet_mid_block_resnets_0_conv1"
WIDTH = 64


@pytest.fixture(scope="module")
def networks() -> Networks:
    return small_networks()


def good() -> Held:
    """Two layers of `small_networks`: one linear, one convolution."""
    return {
        DOWN: torch.ones(4, WIDTH),
        UP: torch.ones(WIDTH, 4),
        ALPHA: torch.tensor(2.0),
        f"{CONV}.lora_down.weight": torch.ones(3, WIDTH, 3, 3),
        f"{CONV}.lora_up.weight": torch.ones(WIDTH, 3, 1, 1),
    }


def without(*keys: str) -> Held:
    return {key: value for key, value in good().items() if key not in keys}


NAN = torch.full((WIDTH, 4), float("nan"))
INF = torch.ones(4, WIDTH)
INF[1, 2] = float("inf")
FAMILY = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"

BAD: dict[str, tuple[Held, str]] = {
    "no tensors": ({}, "holds no tensors; expected a LoRA"),
    "down without up": (
        without(UP),
        f"1 of its 2 layers have no up ('{DOWN}'); expected down and up of each",
    ),
    "up without down": (
        without(f"{CONV}.lora_down.weight"),
        f"1 of its 2 layers have no down ('{CONV}.lora_up.weight'); expected down and up of each",
    ),
    "alpha alone": (
        good() | {f"lora_unet_x{k}.alpha": torch.tensor(1.0) for k in range(5)},
        "5 of its 7 layers have no up ('lora_unet_x0.alpha', 'lora_unet_x1.alpha', 'lora_unet_x2.alpha' and 2 more); "
        "expected down and up of each",
    ),
    "ranks": (
        good() | {UP: torch.ones(WIDTH, 5)},
        f"'{DOWN}' has shape (4, 64) and '{UP}' (64, 5), expected one rank, found 4 and 5",
    ),
    "rank 0": (
        good() | {DOWN: torch.ones(0, WIDTH), UP: torch.ones(WIDTH, 0)},
        f"'{DOWN}' has shape (0, 64), expected a matrix or a convolution's kernel",
    ),
    "three dimensions": (
        good() | {DOWN: torch.ones(4, WIDTH, 3)},
        f"'{DOWN}' has shape (4, 64, 3), expected a matrix or a convolution's kernel",
    ),
    "up with a kernel": (
        good() | {f"{CONV}.lora_up.weight": torch.ones(WIDTH, 3, 3, 3)},
        f"'{CONV}.lora_up.weight' has shape (64, 3, 3, 3), expected a kernel of 1x1",
    ),
    "mid and a kernel in down": (
        good() | {f"{CONV}.lora_mid.weight": torch.ones(3, 3, 3, 3)},
        f"'{CONV}.lora_down.weight' has shape (3, 64, 3, 3), expected a kernel of 1x1",
    ),
    "mid of another rank": (
        good() | {MID: torch.ones(4, 3, 1, 1)},
        f"'{MID}' has shape (4, 3, 1, 1), expected (4, 4, height, width)",
    ),
    "integers": (
        good() | {UP: torch.ones(WIDTH, 4, dtype=torch.int8)},
        f"'{UP}' has dtype I8, expected one of F16, BF16, F32, F64",
    ),
    "fp8": (
        good() | {UP: torch.ones(WIDTH, 4).to(torch.float8_e4m3fn)},
        f"'{UP}' has dtype F8_E4M3, expected one of F16, BF16, F32, F64",
    ),
    "NaN": (good() | {UP: NAN}, f"'{UP}' holds NaN; the file is damaged"),
    "Inf": (good() | {DOWN: INF}, f"'{DOWN}' holds Inf; the file is damaged"),
    "alpha NaN": (good() | {ALPHA: torch.tensor(float("nan"))}, f"'{ALPHA}' holds NaN; the file is damaged"),
    "alpha 0": (
        good() | {ALPHA: torch.tensor(0.0)},
        f"'{ALPHA}' is 0, which some programs take for no effect and others for full effect; "
        "expected a number above 0",
    ),
    "alpha below 0": (good() | {ALPHA: torch.tensor(-2)}, f"'{ALPHA}' is -2, expected a number above 0"),
    "two alphas": (good() | {ALPHA: torch.ones(2)}, f"'{ALPHA}' is F32 of shape (2,), expected one number"),
    "alpha of booleans": (
        good() | {ALPHA: torch.tensor(True)},
        f"'{ALPHA}' is BOOL of shape (), expected one number",
    ),
    "twice the same": (
        good() | {f"{STEM}.lora_A.weight": torch.ones(4, WIDTH)},
        f"'{STEM}.lora_A.weight' and '{DOWN}' are both down; expected one of them",
    ),
    "two adapters": (
        {f"unet.x.lora_A.{name}.weight": torch.ones(4, WIDTH) for name in ("a", "b")},
        "'unet.x.lora_A.a.weight' and 'unet.x.lora_A.b.weight' are both down; expected one of them",
    ),
    "tensors beside": (
        good() | {f"{STEM}.bias": torch.ones(3), "bundle_emb.x": torch.ones(2, 3)},
        f"2 of its 7 tensors are no part of a LoRA ('bundle_emb.x', '{STEM}.bias'); expected down, up, mid and alpha",
    ),
    "a long name": (
        good() | {"x" * 600: torch.ones(3)},
        "a tensor's name has 600 characters; expected a LoRA",
    ),
    "DoRA": (
        good() | {f"{STEM}.dora_scale": torch.ones(WIDTH, 1)},
        f"is a DoRA ('{STEM}.dora_scale'), which is not supported; expected a LoRA or LoCon",
    ),
    "DoRA of peft": (
        good() | {f"{LAYER}.lora_magnitude_vector.default.weight": torch.ones(WIDTH)},
        f"is a DoRA ('{LAYER}.lora_magnitude_vector.default.weight'), which is not supported; expected a LoRA or LoCon",
    ),
    "LoHa": (
        {f"{STEM}.hada_w1_a": torch.ones(4, 4), ALPHA: torch.tensor(1.0)},
        f"is a LoHa ('{STEM}.hada_w1_a'), which is not supported; expected a LoRA or LoCon",
    ),
    "LoKr": (
        {f"{STEM}.lokr_w2_b": torch.ones(4, 4), ALPHA: torch.tensor(1.0)},
        f"is a LoKr ('{STEM}.lokr_w2_b'), which is not supported; expected a LoRA or LoCon",
    ),
    "OFT": (
        {f"{STEM}.oft_blocks": torch.ones(4, 4)},
        f"is an OFT ('{STEM}.oft_blocks'), which is not supported; expected a LoRA or LoCon",
    ),
    "full": (
        {f"{STEM}.diff": torch.ones(4, 4)},
        f"is a LyCORIS file of whole differences ('{STEM}.diff'), which is not supported; expected a LoRA or LoCon",
    ),
}
"""Broken files, and what is said of them behind the file's name."""

OTHERS = {
    "model.diffusion_model.out.2.weight": "a Stable Diffusion checkpoint",
    "control_model.input_blocks.0.0.weight": "a ControlNet",
    "controlnet_cond_embedding.conv_in.weight": "a ControlNet",
    "decoder.conv_in.weight": "a VAE",
    "down_blocks.0.resnets.0.conv1.weight": "a UNet",
    "text_model.encoder.layers.0.mlp.fc1.weight": "a text encoder",
    "encoder.layers.0.mlp.fc1.weight": "a text encoder",
    "image_proj.norm.weight": "an IP-Adapter",
    "emb_params": "a textual-inversion embedding",
    "<cat-toy>": "a textual-inversion embedding",
    "lora_controlnet": "a Control-LoRA",
    "fc.weight": "no LoRA",
    "lora_unet_x.alpha": "no LoRA",
}


def put(path: Path, held: Held, metadata: dict[str, str] | None = None) -> Path:
    save_file(held, path, metadata=metadata)
    return path


def refusal(action: Callable[[], Any]) -> str:
    with pytest.raises(WeightsError) as caught:
        action()
    assert caught.value.exit_code == 4
    words = str(caught.value)
    assert "\n" not in words
    return words


def test_the_good_one_is_good(networks: Networks, tmp_path: Path) -> None:
    lora = read_lora(put(tmp_path / "x.safetensors", good()))
    assert [factors.scale for factors in lora.factors if factors.name == STEM] == [0.5]
    made = Adapters(**networks)
    made.set([(lora, 1.0)])
    made.clear()


@pytest.mark.parametrize("name", BAD)
def test_broken_files(tmp_path: Path, name: str) -> None:
    held, words = BAD[name]
    path = put(tmp_path / "x.safetensors", held)
    assert refusal(lambda: read_lora(path)) == f"{path}: {words}"


def test_files_that_are_something_else(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for key, words in OTHERS.items():
        put(path, {key: torch.ones(2, 3) if key != "lora_unet_x.alpha" else torch.tensor(1.0)})
        shown = f"its first tensor is {key!r}" if words == "no LoRA" else f"{key!r}"
        assert refusal(lambda: read_lora(path)) == f"{path}: is {words} ({shown}); expected a LoRA"


def test_files_that_are_no_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    torch.save(good(), path)
    assert (
        refusal(lambda: read_lora(path))
        == f"{path}: is a zipped PyTorch pickle; expected a LoRA in safetensors"
    )
    path = tmp_path / "x.bin"  # no pickle under any name
    torch.save(good(), path, _use_new_zipfile_serialization=False)
    assert refusal(lambda: read_lora(path)) == f"{path}: is a PyTorch pickle; expected a LoRA in safetensors"
    path.write_bytes(b"")
    assert refusal(lambda: read_lora(path)) == f"{path}: is an empty file; download it again"
    path.write_bytes(b"<!DOCTYPE html>")
    assert "is a web page" in refusal(lambda: read_lora(path))
    path.write_bytes(save(good())[:-8])
    assert "file is cut short" in refusal(lambda: read_lora(path))
    assert "is not a regular file" in refusal(lambda: read_lora(tmp_path)).replace("not a", "is not a")
    assert "no such file" in refusal(lambda: read_lora(tmp_path / "none"))
    assert refusal(lambda: read_lora("a\0b")) == r"'a\x00b': embedded null byte; expected a file's path"
    put(path, good(), {"format": "mlx"})
    assert refusal(lambda: read_lora(path)) == f"{path}: written in the layout 'mlx', expected PyTorch's (pt)"


METADATA: dict[str, tuple[Any, str]] = {
    "no JSON": ("{", "lora_adapter_metadata is not valid JSON (Expecting property name"),
    "twice": (
        '{"unet.r": 1, "unet.r": 2}',
        "lora_adapter_metadata is not valid JSON ('unet.r': a key occurs twice)",
    ),
    "a list": ([], "lora_adapter_metadata is a JSON list, expected an object"),
    "no alpha": ({"unet.r": 4}, "lora_adapter_metadata: lora_alpha is 'None', expected a number"),
    "alpha of text": (
        {"unet.lora_alpha": "4"},
        "lora_adapter_metadata: lora_alpha is '4', expected a number",
    ),
    "alpha true": (
        {"unet.lora_alpha": True},
        "lora_adapter_metadata: lora_alpha is 'True', expected a number",
    ),
    "alpha 0": (
        {"unet.lora_alpha": 0},
        f"alpha of '{LAYER}' in lora_adapter_metadata is 0, which some programs take for no effect and others for "
        "full effect; expected a number above 0",
    ),
    "alpha below 0": (
        {"unet.lora_alpha": -1.5},
        f"alpha of '{LAYER}' in lora_adapter_metadata is -1.5, expected a number above 0",
    ),
    "patterns": (
        {"unet.lora_alpha": 4, "unet.alpha_pattern": {"(a+)+$": 4}},
        "lora_adapter_metadata: alpha_pattern '(a+)+$' is no layer's name; patterns are not read",
    ),
    "patterns in a list": (
        {"unet.lora_alpha": 4, "unet.alpha_pattern": [1]},
        "lora_adapter_metadata: alpha_pattern is list, expected names and numbers",
    ),
    "pattern of text": (
        {"unet.lora_alpha": 4, "unet.alpha_pattern": {"to_q": "x"}},
        "lora_adapter_metadata: alpha_pattern is 'x', expected a number",
    ),
    "dora": (
        {"unet.lora_alpha": 4, "unet.use_dora": True},
        "lora_adapter_metadata: use_dora is set: a DoRA, which is not supported; expected a LoRA or LoCon",
    ),
    "begun with the weights' own": (
        {"unet.lora_alpha": 4, "unet.init_lora_weights": "pissa_niter_4"},
        "lora_adapter_metadata: init_lora_weights is 'pissa_niter_4': it is for weights that were changed before",
    ),
    "begun with gradients": (
        {"unet.lora_alpha": 4, "unet.init_lora_weights": "lora_ga"},
        "lora_adapter_metadata: init_lora_weights is 'lora_ga': it is for weights that were changed before",
    ),
    "a pattern that is too long": (
        {"unet.lora_alpha": 4, "unet.alpha_pattern": {"a." * 200: 4}},
        f"lora_adapter_metadata: alpha_pattern '{'a.' * 40}' is no layer's name; patterns are not read",
    ),
    "of no layer": (
        {"unet.lora_alpha": 4, "transformer.lora_alpha": 8},
        "lora_adapter_metadata is about 'transformer', and no layer of the file is its own; "
        "expected the alpha of these layers",
    ),
}


@pytest.mark.parametrize("name", METADATA)
def test_metadata_that_makes_no_sense(tmp_path: Path, name: str) -> None:
    told, words = METADATA[name]
    held = {f"{LAYER}.lora_A.weight": torch.ones(4, WIDTH), f"{LAYER}.lora_B.weight": torch.ones(WIDTH, 4)}
    text = told if isinstance(told, str) else json.dumps(told)
    path = put(tmp_path / "x.safetensors", held, {"lora_adapter_metadata": text})
    assert refusal(lambda: read_lora(path)).startswith(f"{path}: {words}")


def test_two_alphas_that_differ(tmp_path: Path) -> None:
    held = {
        f"{LAYER}.lora_A.weight": torch.ones(4, WIDTH),
        f"{LAYER}.lora_B.weight": torch.ones(WIDTH, 4),
        f"{LAYER}.alpha": torch.tensor(2.0),
    }
    told = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 8})}
    path = put(tmp_path / "x.safetensors", held, told)
    words = f"'{LAYER}.alpha' is 2, and lora_adapter_metadata says 8; expected one alpha"
    assert refusal(lambda: read_lora(path)) == f"{path}: {words}"
    read_lora(put(path, held, {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 2})}))


def test_a_layer_that_the_metadata_leaves_out(tmp_path: Path) -> None:
    text = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    held = {f"{stem}.lora_{letter}.weight": torch.ones(4, 4) for stem in (LAYER, text) for letter in "AB"}
    told = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 8})}
    path = put(tmp_path / "x.safetensors", held, told)
    words = (
        f"lora_adapter_metadata says nothing of '{text}', only of 'unet'; expected the alpha of every layer"
    )
    assert refusal(lambda: read_lora(path)) == f"{path}: {words}"
    lora = read_lora(put(path, held | {f"{text}.alpha": torch.tensor(2.0)}, told))
    assert {factors.name: factors.scale for factors in lora.factors} == {LAYER: 2.0, text: 0.5}


def test_metadata_and_a_config_beside_that_differ(tmp_path: Path) -> None:
    held = {f"base_model.model.x.lora_{letter}.weight": torch.ones(4, 4) for letter in "AB"}
    told = {"lora_adapter_metadata": json.dumps({"lora_alpha": 8})}
    path, config = put(tmp_path / "x.safetensors", held, told), tmp_path / "adapter_config.json"
    config.write_text('{"lora_alpha": 2}')
    words = f"lora_adapter_metadata says otherwise than {config}; expected one of them"
    assert refusal(lambda: read_lora(path)) == f"{path}: {words}"
    config.write_text('{"lora_alpha": 8}')
    assert [factors.scale for factors in read_lora(path).factors] == [2.0]


def test_a_config_of_another_kind_beside_the_file(tmp_path: Path) -> None:
    held = {f"base_model.model.x.lora_{letter}.weight": torch.ones(4, 4) for letter in "AB"}
    path, config = put(tmp_path / "x.safetensors", held), tmp_path / "adapter_config.json"
    config.write_text('{"peft_type": "OFT"}')
    words = f"{config}: peft_type is 'OFT', which is not supported; expected LORA"
    assert refusal(lambda: read_lora(path)) == words
    config.write_text("{")
    assert refusal(lambda: read_lora(path)).startswith(f"{config}: not valid JSON")
    config.write_text('{"lora_alpha": null}')
    assert refusal(lambda: read_lora(path)) == f"{config}: lora_alpha is 'None', expected a number"


# -------------------------------------------------------------------------------------- another model's


def pair(name: str, inside: int = WIDTH, out: int = WIDTH, rank: int = 4) -> Held:
    return {
        f"{name}.lora_down.weight": torch.ones(rank, inside),
        f"{name}.lora_up.weight": torch.ones(out, rank),
    }


def misfit(tmp_path: Path, layers: Layers, held: Held) -> str:
    """What is said of a file, its name cut off."""
    path = put(tmp_path / "x.safetensors", held)
    words = refusal(lambda: layers.match(read_lora(path)))
    assert words.startswith(f"{path}: ")
    return words.removeprefix(f"{path}: ")


def test_layers_that_this_model_has_not(networks: Networks, tmp_path: Path) -> None:
    layers = Layers(**networks)
    down = {k: f"lora_unet_down_blocks_{k}_x.lora_down.weight" for k in (7, 8)}
    held = good() | pair("lora_unet_down_blocks_7_x") | pair("lora_unet_down_blocks_8_x")
    assert misfit(tmp_path, layers, held) == (
        f"2 of its 4 layers are not in this model ('{down[7]}', '{down[8]}'); "
        "expected layers of its UNet and text encoder"
    )
    held = pair("lora_unet_double_blocks_0_img_attn_qkv") | pair("lora_unet_single_blocks_0_linear1")
    assert misfit(tmp_path, layers, held) == (
        "fits nothing in this model: none of its 2 layers is there "
        "('lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight', "
        "'lora_unet_single_blocks_0_linear1.lora_down.weight')"
    )
    held = pair("lora_te2_text_model_encoder_layers_0_mlp_fc1")
    assert misfit(tmp_path, layers, held) == (
        "fits nothing in this model: none of its 1 layers is there "
        "('lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight'); "
        "it was made for a model with two text encoders (SDXL)"
    )


def test_one_layer_under_two_names(networks: Networks, tmp_path: Path) -> None:
    held = good() | pair("lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q")
    twin = "lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q.lora_down.weight"
    assert (
        misfit(tmp_path, Layers(**networks), held)
        == f"'{DOWN}' and '{twin}' are both for {LAYER}; expected one of them"
    )


def test_a_name_that_could_be_two_layers(networks: Networks, tmp_path: Path) -> None:
    """Underscores hide what is a dot: where two layers come out the same, none is chosen."""
    unet = small_networks()["unet"]
    unet.mid_block.attentions[0].transformer_blocks[0].attn1_to_q = torch.nn.Linear(4, 4)
    words = misfit(tmp_path, Layers(unet, networks["text_encoder"]), good())
    assert (
        words
        == f"'{DOWN}' could be for {LAYER} or for {LAYER.replace('.to_q', '_to_q')}; expected a name that tells"
    )


def test_shapes_that_do_not_fit(networks: Networks, tmp_path: Path) -> None:
    layers, conv = Layers(**networks), "unet.mid_block.resnets.0.conv1"
    for change, words in (
        (pair(STEM, inside=65), f"'{DOWN}' has shape (4, 65), expected (4, 64) for {LAYER}"),
        (pair(STEM, out=32), f"'{UP}' has shape (32, 4), expected (64, 4) for {LAYER}"),
        (
            {DOWN: torch.ones(4, WIDTH, 3, 3)},
            f"'{DOWN}' has shape (4, 64, 3, 3), expected (4, 64) for {LAYER}",
        ),
        (
            {MID: torch.ones(4, 4, 3, 3)},
            f"'{MID}' has shape (4, 4, 3, 3), expected (4, 4) for {LAYER}",
        ),
        (
            pair(CONV, rank=3),
            f"'{CONV}.lora_down.weight' has shape (3, 64), expected (3, 64, 3, 3) for {conv}",
        ),
        (
            {f"{CONV}.lora_down.weight": torch.ones(3, WIDTH, 3, 1)},
            f"'{CONV}.lora_down.weight' has shape (3, 64, 3, 1), expected (3, 64, 3, 3) for {conv}",
        ),
        (
            {**pair(CONV, rank=3), f"{CONV}.lora_mid.weight": torch.ones(3, 3, 1, 1)},
            f"'{CONV}.lora_mid.weight' has shape (3, 3, 1, 1), expected (3, 3, 3, 3) for {conv}",
        ),
    ):
        assert misfit(tmp_path, layers, good() | change) == words


def test_families_by_the_width_of_their_text(networks: Networks, tmp_path: Path) -> None:
    sd1 = Layers(meta_unet(), meta_text_encoder(layers=1))
    sd2 = Layers(meta_unet(1024), meta_text_encoder(1024, layers=1))
    own, text = f"{FAMILY}.lora_down.weight", "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    for layers, width, words in (
        (sd1, 2048, f"made for SDXL: '{own}' takes text of width 2048, this model's text has 768 (SD1)"),
        (sd1, 1024, f"made for SD2: '{own}' takes text of width 1024, this model's text has 768 (SD1)"),
        (sd2, 768, f"made for SD1: '{own}' takes text of width 768, this model's text has 1024 (SD2)"),
        (
            sd2,
            99,
            f"made for another model: '{own}' takes text of width 99, this model's text has 1024 (SD2)",
        ),
        (Layers(**networks), 768, f"made for SD1: '{own}' takes text of width 768, this model's text has 32"),
    ):
        held = pair(FAMILY, inside=width, out=320) | pair("lora_unet_not_there")
        assert misfit(tmp_path, layers, held) == words
    assert misfit(tmp_path, sd1, pair(text, inside=1024, out=1024)) == (
        f"made for SD2: '{text}.lora_down.weight' is for a text encoder of width 1024, this model's has 768 (SD1)"
    )
    second = text.replace("te_", "te2_")
    assert misfit(tmp_path, sd1, pair(second, inside=1280, out=1280)) == (
        f"made for SDXL: '{second}.lora_down.weight' is for a text encoder of width 1280, this model's has 768 (SD1)"
    )


# ------------------------------------------------------------------------------------------------- fuzz


def judge(path: Path, content: bytes, layers: Layers) -> bool:
    """Read and match: one of our errors in one line, or a LoRA that can be merged. True for the latter."""
    path.write_bytes(content)
    try:
        lora = read_lora(path)
        matched = layers.match(lora)
    except WeightsError as error:
        words = str(error)
        assert "\n" not in words
        return False
    for layer, factors in matched.items():
        product = factors.product(torch.device("cpu"), torch.float32)
        assert product.numel() == layer.weight.numel()
        assert factors.scale > 0
    return True


def small_file() -> bytes:
    """All roles in few bytes: linear, convolution, CP, text encoder, two layouts, metadata."""
    networks = small_networks()
    changes = random_changes(
        networks, layers=r"mid_block.*(attn1.to_[qk]|resnets.0.conv1)$|layers.0.*q_proj$"
    )
    rest = random_changes(networks, layers=r"mid_block.*(attn2.to_[qk]|resnets.1.conv1)$", with_mid=True)
    mids = {key: change for key, change in rest.items() if change.mid is not None}
    others, told = peft({key: change for key, change in rest.items() if change.mid is None})
    held = {**kohya(changes), **kohya(mids), **others}
    return save({key: value.half().contiguous() for key, value in held.items()}, metadata=told)


def test_mutated_files(networks: Networks, tmp_path: Path) -> None:
    good_file, layers, rng = small_file(), Layers(**networks), random.Random(0)
    head = 8 + int.from_bytes(good_file[:8], "little")
    assert judge(tmp_path / "x.safetensors", good_file, layers)
    valid = sum(judge(tmp_path / "x.safetensors", mutate(rng, good_file, head), layers) for _ in range(400))
    assert 0 < valid < 200  # some flips are in the data, where most bits are as good as another


PIECES = st.sampled_from(
    [
        *(
            "unet",
            "text_encoder",
            "text_model",
            "base_model",
            "model",
            "lora_unet",
            "lora_te",
            "lora_te1",
            "_",
            ".",
        ),
        *(
            "mid_block",
            "attentions",
            "0",
            "transformer_blocks",
            "attn1",
            "processor",
            "to_q",
            "to_out",
            "conv_in",
        ),
        *(
            "lora",
            "lora_down",
            "lora_up",
            "lora_mid",
            "lora_A",
            "lora_B",
            "default",
            "down",
            "up",
            "weight",
            "alpha",
        ),
        *("lora_linear_layer", "dora_scale", "hada_w1_a", "lokr_w1", STEM, LAYER, "\n", "\0", "é"),
    ]
)
NAMES = st.one_of(
    st.lists(PIECES, max_size=6).map(".".join),
    st.sampled_from(
        [DOWN, UP, MID, ALPHA, *good(), f"{LAYER}.lora_A.weight", f"{LAYER}.lora_B.default.weight"]
    ),
)
SHAPES = st.sampled_from(
    [(), (1,), (4, WIDTH), (WIDTH, 4), (4, 4, 3, 3), (0, 4), (4, WIDTH, 1, 1), (WIDTH, 4, 1, 1)]
)
DTYPES = st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool])
TOLD = st.none() | st.text(max_size=8) | st.dictionaries(
    st.sampled_from(["unet.lora_alpha", "unet.alpha_pattern", "unet.use_rslora", "unet.r", "x"]),
    st.none() | st.booleans() | st.integers(-2, 9) | st.floats() | st.text(max_size=3) | st.just({"to_q": 3}),
    max_size=4,
).map(json.dumps)  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(NAMES, st.tuples(SHAPES, DTYPES), max_size=5), st.booleans(), TOLD)
def test_structured_files(
    networks: Networks,
    tmp_path: Path,
    wanted: dict[str, tuple[Any, torch.dtype]],
    whole: bool,
    told: str | None,
) -> None:
    held = {name: torch.ones(shape).to(dtype) for name, (shape, dtype) in wanted.items()}
    if whole:
        held = {**good(), **held}
    metadata = None if told is None else {"lora_adapter_metadata": told}
    judge(tmp_path / "x.safetensors", save(held, metadata=metadata), Layers(**networks))
