"""LoRAs in every layout, merged: the same as hooks that add the low-rank product, and off again to the bit."""

from __future__ import annotations

import copy
import json
import time
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from rawdiff import weights
from rawdiff.weights import Adapters, Lora, read_lora
from rawdiff.weights.lora_alpha import read_alphas
from rawdiff.weights.lora_layers import Layers, original_names
from scripts.embedded import lora as scripts_lora
from tests.lora_files import (
    EVERYTHING,
    LAYOUTS,
    Changes,
    Networks,
    diffusers,
    hooked,
    kohya,
    lora_of,
    merged,
    meta_text_encoder,
    meta_unet,
    outputs,
    peft,
    random_changes,
    relative,
    same,
    small_networks,
    state,
    write,
)


@pytest.fixture
def networks() -> Networks:
    return small_networks()


@pytest.fixture(scope="module")
def embedded() -> Networks:
    return {"unet": weights.load_unet(device="cpu"), "text_encoder": weights.load_text_encoder(device="cpu")}


def check_against_hooks(networks: Networks, lora: Lora, changes: Changes, scale: float = 0.8) -> None:
    plain, before = outputs(networks), state(networks)
    with hooked(networks, changes, scale):
        expected = outputs(networks)
    assert relative(expected, plain) > 0.01  # it matters
    made = Adapters(**networks)
    made.set([(lora, scale)])
    assert relative(outputs(networks), expected) < 1e-5
    made.clear()
    assert torch.equal(outputs(networks), plain)
    assert same(state(networks), before)


# ----------------------------------------------------------------------------------------------- layouts


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_is_what_hooks_are(networks: Networks, tmp_path: Path, layout: str) -> None:
    changes = random_changes(networks)
    lora = read_lora(write(tmp_path / "x.safetensors", *LAYOUTS[layout](changes)))
    assert len(lora.factors) == len(changes)
    check_against_hooks(networks, lora, changes)


def test_all_layouts_merge_to_the_same_bits(networks: Networks, tmp_path: Path) -> None:
    changes = random_changes(networks, alpha=lambda rank: 3 if rank == 2 else rank + 1)
    found = []
    for name, layout in LAYOUTS.items():
        path = write(tmp_path / f"{name}.safetensors", *layout(changes))
        found.append(merged(networks, (read_lora(path), 0.7)))
    assert len(found) == 7
    assert not same(found[0], state(networks))
    assert all(same(found[0], other) for other in found[1:])


@pytest.mark.parametrize("shape", ["plain", "deep", "topless", "linear"])
@pytest.mark.parametrize("with_mid", [False, True])
def test_locon(tmp_path: Path, shape: str, with_mid: bool) -> None:
    """Every linear layer and every convolution, strided ones and both ends too."""
    networks = small_networks(shape=shape)
    changes = random_changes(networks, layers=EVERYTHING, strength=0.1, with_mid=with_mid)
    kernels = {tuple(change.down.shape[2:]) for change in changes.values()}
    assert kernels == ({(), (1, 1)} if with_mid else {(), (1, 1), (3, 3)})
    lora = read_lora(write(tmp_path / "x.safetensors", kohya(changes)))
    assert any(factors.mid is not None for factors in lora.factors) == with_mid
    check_against_hooks(networks, lora, changes)


def test_locon_in_the_layout_of_peft(networks: Networks, tmp_path: Path) -> None:
    changes = random_changes(networks, layers=r"conv1$|conv2$|proj_in$|conv_shortcut$|fc1$")
    for layout in (peft, diffusers):
        check_against_hooks(networks, read_lora(write(tmp_path / "x.safetensors", *layout(changes))), changes)


def test_factors_of_a_1x1_convolution_fit_a_linear_layer_and_back(tmp_path: Path) -> None:
    """SD2's projections are linear, and older files hold convolutions for them; kohya's merge takes either."""
    for shape in ("plain", "linear"):
        networks = small_networks(shape=shape)
        changes = random_changes(networks, layers=r"proj_in$")
        held = kohya(changes)
        turned = {
            k: v if not v.ndim else v[:, :, None, None] if v.ndim == 2 else v[:, :, 0, 0]
            for k, v in held.items()
        }
        pair = [read_lora(write(tmp_path / f"{k}.safetensors", v)) for k, v in enumerate((held, turned))]
        assert same(merged(networks, (pair[0], 1)), merged(networks, (pair[1], 1)))


def test_scripts_write_both_layouts_of_one_lora(embedded: Networks, tmp_path: Path) -> None:
    """What scripts/embedded/lora.py trains by hooks is what its files merge to."""
    trained = copy.deepcopy(embedded)
    torch.manual_seed(3)  # its factors are drawn from torch's own generator
    lora = scripts_lora.LoRA(trained, scripts_lora.RANKS["paper"])
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for down, up in zip(lora.down, lora.up, strict=True):
            up.copy_(torch.randn(up.shape, generator=generator) * 0.04)
            down.copy_(down.half().float())
            up.copy_(up.half().float())
    scripts_lora.write_lora("paper", lora, tmp_path)
    plain, expected = outputs(embedded), outputs(trained)
    assert relative(expected, plain) > 0.03
    names = ("paper", "paper-diffusers")
    pair = [read_lora(tmp_path / "loras" / f"{name}.safetensors") for name in names]
    assert len(pair[0].factors) == len(pair[1].factors) == len(lora.names)
    before = state(embedded)
    first, second = (merged(embedded, (one, 1.0)) for one in pair)
    assert same(first, second)
    assert not same(first, before)
    made = Adapters(**embedded)
    made.set([(pair[0], 1.0)])
    assert relative(outputs(embedded), expected) < 1e-5
    made.clear()
    assert same(state(embedded), before)


def test_reading_keeps_the_file_as_it_is(networks: Networks, tmp_path: Path) -> None:
    lora = lora_of(networks, tmp_path)
    assert lora.sha256 == sha256(lora.path.read_bytes()).hexdigest()
    assert lora.hashes() == {lora.path.name: lora.sha256}
    held = load_file(lora.path)
    for factors in lora.factors:
        assert torch.equal(factors.down, held[factors.keys["down"]])
        assert factors.rank == len(factors.down)


def test_no_alpha_is_the_rank(networks: Networks, tmp_path: Path) -> None:
    changes = random_changes(networks, alpha=lambda rank: rank)
    held = {key: value for key, value in kohya(changes).items() if not key.endswith(".alpha")}
    check_against_hooks(networks, read_lora(write(tmp_path / "x.safetensors", held)), changes)


@pytest.mark.parametrize("anchored", ["", "^"])
def test_metadata_tells_alpha_for_all_and_for_some(networks: Networks, tmp_path: Path, anchored: str) -> None:
    changes = random_changes(networks, alpha=lambda rank: 8)
    for (part, name), change in changes.items():
        if part == "unet" and name.endswith("mid_block.attentions.0.transformer_blocks.0.attn2.to_q"):
            change.alpha, special = 2.0, name
    told = {
        "unet.lora_alpha": 8,
        "unet.alpha_pattern": {anchored + special.replace(".", r"\."): 2.0},
        "text_encoder.lora_alpha": 8,
    }
    held, _ = peft(changes)
    metadata = {"lora_adapter_metadata": json.dumps(told)}
    check_against_hooks(networks, read_lora(write(tmp_path / "x.safetensors", held, metadata)), changes)
    told["unet.alpha_pattern"] = {"attn2.to_q": 2.0, "q": 99.0}  # an ending, at a dot only
    for (_, name), change in changes.items():
        change.alpha = 2.0 if name.endswith("attn2.to_q") else 8.0
    metadata = {"lora_adapter_metadata": json.dumps(told)}
    check_against_hooks(networks, read_lora(write(tmp_path / "x.safetensors", held, metadata)), changes)


@pytest.mark.parametrize("network", ["unet", "text_encoder", "text_encoder_2"])
@pytest.mark.parametrize(
    "pattern", ["^text_model.encoder.layers.0.fc1", "^encoder.layers.0.fc1", "layers.0.fc1"]
)
def test_exceptions_are_of_every_network(network: str, pattern: str) -> None:
    """As diffusers writes them, from the beginning of the name that a layer has in its network."""
    layer = f"{network}.text_model.encoder.layers.0.fc1"
    told = {f"{network}.lora_alpha": 4, f"{network}.alpha_pattern": {pattern: 8}}
    rules = read_alphas(Path("x"), {"lora_adapter_metadata": json.dumps(told)}, None, [layer])
    assert rules.scale(layer, 4, None, None) == 2.0
    assert rules.scale(layer.replace("0.fc1", "10.fc1"), 4, None, None) == 1.0


def test_many_exceptions_for_many_layers() -> None:
    """The first that fits counts, and each layer costs a look, not a walk through all of them."""
    layers = [f"unet.blocks.{k}.to_q" for k in range(20_000)]
    exceptions = {f"blocks.{k}.to_q": float(k + 1) for k in range(1, 20_000)} | {"to_q": 7.0, "0.to_q": 9.0}
    told = {"unet.lora_alpha": 4, "unet.alpha_pattern": exceptions}
    start = time.monotonic()
    rules = read_alphas(Path("x"), {"lora_adapter_metadata": json.dumps(told)}, None, layers)
    found = [rules.scale(layer, 1, None, None) for layer in layers]
    assert time.monotonic() - start < 20.0  # half a second; walking through them took minutes
    assert found == [7.0, *(k + 1.0 for k in range(1, 20_000))]


def unprefixed(changes: Changes) -> dict[str, torch.Tensor]:
    held, _ = peft(changes)
    return {key.removeprefix("unet.").removeprefix("text_encoder."): value for key, value in held.items()}


def test_metadata_of_a_lora_that_one_network_saved(networks: Networks, tmp_path: Path) -> None:
    """What `unet.save_lora_adapter` of diffusers writes: neither keys nor layers name the network."""
    changes = random_changes(networks, alpha=lambda rank: 8)
    own = {key: change for key, change in changes.items() if key[0] == "unet"}
    metadata = {"format": "pt", "lora_adapter_metadata": json.dumps({"lora_alpha": 8, "r": 2})}
    lora = read_lora(write(tmp_path / "x.safetensors", unprefixed(own), metadata))
    assert {factors.scale for factors in lora.factors} == {8 / rank for rank in (2, 3, 4, 5)}
    check_against_hooks(networks, lora, own)


def test_metadata_by_network_for_layers_that_name_none(networks: Networks, tmp_path: Path) -> None:
    changes = random_changes(networks)
    for (part, _), change in changes.items():
        change.alpha = 8.0 if part == "unet" else 3.0
    metadata = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 8, "text_encoder.lora_alpha": 3})}
    for prefix in ("", "base_model.model."):
        held = {prefix + key: value for key, value in unprefixed(changes).items()}
        check_against_hooks(networks, read_lora(write(tmp_path / "x.safetensors", held, metadata)), changes)


def test_rank_stabilised_scaling(networks: Networks, tmp_path: Path) -> None:
    changes = random_changes(networks, alpha=lambda rank: 2 * rank**0.5)  # alpha / rank is 2 / sqrt(rank)
    told = {
        f"{part}.{key}": value
        for part in networks
        for key, value in (("lora_alpha", 2), ("use_rslora", True))
    }
    metadata = {"lora_adapter_metadata": json.dumps(told)}
    lora = read_lora(write(tmp_path / "x.safetensors", peft(changes)[0], metadata))
    check_against_hooks(networks, lora, changes)


def test_peft_keeps_alpha_in_a_config_beside_the_file(networks: Networks, tmp_path: Path) -> None:
    changes = random_changes(networks, alpha=lambda rank: 8)
    held = {f"base_model.model.{name}.lora_{letter}.weight": value
            for (part, name), change in changes.items() if part == "unet"
            for letter, value in (("A", change.down), ("B", change.up))}  # fmt: skip
    path = write(tmp_path / "adapter_model.safetensors", held)
    alone = read_lora(path)
    assert {factors.scale for factors in alone.factors} == {1.0}
    assert alone.config is None
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "lora_alpha": 8}')
    lora = read_lora(path)
    assert {factors.scale for factors in lora.factors} == {8 / rank for rank in (2, 3, 4, 5)}
    assert sorted(lora.hashes()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert lora.sha256 == alone.sha256
    own = {key: change for key, change in changes.items() if key[0] == "unet"}
    check_against_hooks(networks, lora, own)
    kept = read_lora(write(tmp_path / "kohya.safetensors", kohya(own)))
    assert kept.config is None  # another layout, another file's config


def test_dtypes_of_files(networks: Networks, tmp_path: Path) -> None:
    changes = random_changes(networks)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        held = {key: value.to(dtype) for key, value in kohya(changes).items()}
        rounded = copy.deepcopy(changes)
        for change in rounded.values():
            change.down, change.up = change.down.to(dtype).float(), change.up.to(dtype).float()
        check_against_hooks(networks, read_lora(write(tmp_path / "x.safetensors", held)), rounded)
    for alpha in (torch.tensor(3), torch.tensor([[3]], dtype=torch.uint8)):
        held = kohya(changes) | {key: alpha for key in kohya(changes) if key.endswith("alpha")}
        scales = {factors.scale for factors in read_lora(write(tmp_path / "x.safetensors", held)).factors}
        assert scales == {3 / rank for rank in (2, 3, 4, 5)}


# ------------------------------------------------------------------------------------------------- names


@pytest.fixture(scope="module")
def sd1() -> Layers:
    return Layers(meta_unet(), meta_text_encoder())


BLOCK, DOTTED = "transformer_blocks_0", "transformer_blocks.0"
PUBLISHED = {
    f"lora_unet_down_blocks_0_attentions_0_{BLOCK}_attn1_to_out_0":
        f"unet.down_blocks.0.attentions.0.{DOTTED}.attn1.to_out.0",
    f"lora_unet_mid_block_attentions_0_{BLOCK}_ff_net_0_proj": f"unet.mid_block.attentions.0.{DOTTED}.ff.net.0.proj",
    "lora_unet_up_blocks_3_resnets_2_time_emb_proj": "unet.up_blocks.3.resnets.2.time_emb_proj",
    "lora_unet_up_blocks_1_upsamplers_0_conv": "unet.up_blocks.1.upsamplers.0.conv",
    "lora_unet_time_embedding_linear_1": "unet.time_embedding.linear_1",
    "lora_te_text_model_encoder_layers_11_mlp_fc2": "text_encoder.encoder.layers.11.mlp.fc2",
    "lora_te1_text_model_encoder_layers_0_self_attn_out_proj": "text_encoder.encoder.layers.0.self_attn.out_proj",
    "lora_unet_input_blocks_0_0": "unet.conv_in",
    f"lora_unet_input_blocks_1_1_{BLOCK}_attn1_to_q": f"unet.down_blocks.0.attentions.0.{DOTTED}.attn1.to_q",
    "lora_unet_input_blocks_3_0_op": "unet.down_blocks.0.downsamplers.0.conv",
    "lora_unet_input_blocks_4_0_skip_connection": "unet.down_blocks.1.resnets.0.conv_shortcut",
    "lora_unet_input_blocks_11_0_out_layers_3": "unet.down_blocks.3.resnets.1.conv2",
    "lora_unet_middle_block_1_proj_in": "unet.mid_block.attentions.0.proj_in",
    "lora_unet_middle_block_2_in_layers_2": "unet.mid_block.resnets.1.conv1",
    "lora_unet_output_blocks_2_1_conv": "unet.up_blocks.0.upsamplers.0.conv",
    "lora_unet_output_blocks_5_2_conv": "unet.up_blocks.1.upsamplers.0.conv",
    f"lora_unet_output_blocks_11_1_{BLOCK}_ff_net_2": f"unet.up_blocks.3.attentions.2.{DOTTED}.ff.net.2",
    "lora_unet_output_blocks_11_0_emb_layers_1": "unet.up_blocks.3.resnets.2.time_emb_proj",
    "lora_unet_time_embed_2": "unet.time_embedding.linear_2",
    "lora_unet_out_2": "unet.conv_out",
    f"unet.mid_block.attentions.0.{DOTTED}.attn2.processor.to_out":
        f"unet.mid_block.attentions.0.{DOTTED}.attn2.to_out.0",
    "base_model.model.text_model.encoder.layers.3.mlp.fc1": "text_encoder.encoder.layers.3.mlp.fc1",
    "unet.base_model.model.conv_in": "unet.conv_in",
}  # fmt: skip
"""Names as they stand in published files of SD1, and the layers they mean."""


def test_published_names(sd1: Layers) -> None:
    found = {name: [str(layer).replace("text_model.", "") for layer in sd1.named(name)] for name in PUBLISHED}
    assert found == {name: [layer] for name, layer in PUBLISHED.items()}


def test_no_name_of_stable_diffusion_means_two_layers(sd1: Layers) -> None:
    assert len(sd1.every) > 340
    assert max(map(len, sd1._known.values())) == 1


@pytest.mark.parametrize("shape", ["plain", "deep", "topless", "linear"])
def test_original_names_against_diffusers_conversion_of_checkpoints(shape: str) -> None:
    """Each weight under its original name: diffusers' converter of single files gives it the name it came from."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    unet = small_networks(shape=shape)["unet"]
    names = [name for name, m in unet.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    found = original_names(unet, names)
    assert sorted(found) == sorted(names)
    ends = ("weight", "bias")
    checkpoint = {f"model.diffusion_model.{found[name]}.{end}": name for name in names for end in ends}
    converted = convert_ldm_unet_checkpoint(checkpoint, unet.config)
    assert converted == {f"{name}.{end}": name for name in names for end in ends}


def test_original_names_merge_as_diffusers_own(networks: Networks, tmp_path: Path) -> None:
    changes = random_changes(networks, layers=EVERYTHING, strength=0.1)
    own = {key: change for key, change in changes.items() if key[0] == "unet"}
    original = original_names(networks["unet"], [name for _, name in own])
    renamed = {("unet", original[name]): change for (_, name), change in own.items()}
    pair = [read_lora(write(tmp_path / f"{k}.safetensors", kohya(c))) for k, c in enumerate((own, renamed))]
    assert not {f.name for f in pair[0].factors} & {f.name for f in pair[1].factors}
    assert same(merged(networks, (pair[0], 1.0)), merged(networks, (pair[1], 1.0)))
    check_against_hooks(networks, pair[1], own)


def test_conversion_of_keys_against_diffusers(networks: Networks, tmp_path: Path) -> None:
    """A file in kohya's layout, converted by diffusers to its own: both mean the same here."""
    from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_lora_to_diffusers

    layers = ATTENTION_AND_MORE
    changes = random_changes(networks, layers=layers, strength=0.1)
    held = kohya(changes)
    converted, alphas = _convert_non_diffusers_lora_to_diffusers(dict(held))
    assert len(converted) == 2 * len(changes)
    assert len(alphas) == len(changes)
    assert any(".processor." in key for key in converted)
    for key, alpha in alphas.items():  # of the down factor, where diffusers forgets to cut its name
        name = (
            key.removesuffix(".alpha")
            .removesuffix("_lora.down.weight")
            .removesuffix(".lora_linear_layer.down.weight")
        )
        converted[f"{name}.alpha"] = torch.tensor(alpha)
    pair = [read_lora(write(tmp_path / f"{k}.safetensors", v)) for k, v in enumerate((held, converted))]
    assert same(merged(networks, (pair[0], 1.0)), merged(networks, (pair[1], 1.0)))
    check_against_hooks(networks, pair[1], changes)


ATTENTION_AND_MORE = r"to_[qkv]$|to_out\.0$|_proj$|proj_in$|proj_out$|ff\.net|fc[12]$|conv_shortcut$|samplers"


def test_conversion_of_original_blocks_against_diffusers(tmp_path: Path) -> None:
    """Where its remapping is right: it takes an upsampler behind no attention for an attention, and with ten blocks
    or more (SD1 has twelve) it takes the tenth for the first and fails."""
    from diffusers.loaders import lora_conversion_utils as theirs

    unet = small_networks(shape="deep")["unet"]
    names = [name for name, m in unet.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    original = original_names(unet, names)
    known = [name for name in names if name != "up_blocks.0.upsamplers.0.conv"]
    held = {}
    for k, name in enumerate(known):
        for role in ("down", "up"):
            held[f"lora_unet_{original[name].replace('.', '_')}.lora_{role}.weight"] = torch.tensor([k])
    mapped = theirs._maybe_map_sgm_blocks_to_diffusers(held, unet.config)
    converted, _ = theirs._convert_non_diffusers_lora_to_diffusers(mapped)
    layers = Layers(unet, meta_text_encoder(layers=1))
    found = {}
    for key, value in converted.items():
        if key.endswith(".down.weight"):
            [layer] = layers.named(key.removesuffix("_lora.down.weight").removesuffix(".lora.down.weight"))
            found[known[int(value)]] = layer.name
    assert found == {name: name for name in known}
