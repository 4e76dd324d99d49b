"""Parts loaded by themselves: equal to what the libraries load, and strict where the libraries are not."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rawdiff import weights
from rawdiff.errors import ResourceError, UsageError, WeightsError
from rawdiff.weights import build, fill, renames
from rawdiff.weights.tensorfile import open_tensors
from tests.small_models import small_controlnet, small_folder, small_text_encoder, small_unet, small_vae

LOADERS: dict[str, Callable[..., Any]] = {
    "unet": weights.load_unet,
    "vae": weights.load_vae,
    "text_encoder": weights.load_text_encoder,
    "controlnet_depth": weights.load_controlnet,
}
STEM = {"text_encoder": "model"}


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_folder(tmp_path_factory.mktemp("models") / "small", nets=("depth",))


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy to spoil."""
    shutil.copytree(pristine, tmp_path / "model")
    yield tmp_path / "model"
    shutil.rmtree(tmp_path / "model")


def load(folder: Path, part: str, **options: Any) -> Any:
    return LOADERS[part](folder / part if part.startswith("controlnet") else folder, **options)


def weight_file(folder: Path, part: str) -> Path:
    return folder / part / f"{STEM.get(part, 'diffusion_pytorch_model')}.safetensors"


def rewrite(folder: Path, part: str, change: Callable[[dict[str, Tensor]], Any]) -> Path:
    """Change a part's tensors on disk."""
    path = weight_file(folder, part)
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    return path


def change_config(folder: Path, part: str, **changes: Any) -> None:
    path = folder / part / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def originals() -> dict[str, nn.Module]:
    unet = small_unet(0)
    return {
        "unet": unet,
        "vae": small_vae(10),
        "text_encoder": small_text_encoder(20),
        "controlnet_depth": small_controlnet(unet, 30),
    }


@pytest.mark.parametrize("part", LOADERS)
def test_every_number_arrives(pristine: Path, part: str) -> None:
    original, found = originals()[part], load(pristine, part)
    assert type(found) is type(original)
    state = found.state_dict()
    assert list(state) == list(original.state_dict())
    for name, value in original.state_dict().items():
        assert torch.equal(state[name], value), name
    assert not found.training
    assert not any(p.requires_grad for p in found.parameters())
    assert not any(t.is_meta for t in [*found.parameters(), *found.buffers()])


def test_the_libraries_load_the_same(pristine: Path) -> None:
    """diffusers' and transformers' own loaders, on the same folder, compute the same, bit for bit.

    Once copied: they leave tensors in the mapped file, off the alignment that the kernels' sums depend on.
    """
    from diffusers import ControlNetModel, UNet2DConditionModel
    from transformers import CLIPTextModel

    def copied(module: Any) -> Any:
        return copy.deepcopy(module).eval()

    ids = weights.load_tokenizer(pristine)("a red cube", padding="max_length", return_tensors="pt").input_ids
    x, h = torch.randn(1, 4, 8, 8), torch.rand(1, 3, 64, 64)
    ours, theirs = (
        weights.load_text_encoder(pristine),
        CLIPTextModel.from_pretrained(pristine / "text_encoder"),
    )
    with torch.no_grad():
        text = ours(ids).last_hidden_state
        assert torch.equal(text, theirs(ids).last_hidden_state)
        unet, reference = (
            weights.load_unet(pristine),
            copied(UNet2DConditionModel.from_pretrained(pristine / "unet")),
        )
        assert torch.equal(unet(x, 500, text).sample, reference(x, 500, text).sample)
        net = load(pristine, "controlnet_depth")
        twin = copied(ControlNetModel.from_pretrained(pristine / "controlnet_depth"))
        found, expected = net(x, 500, text, h), twin(x, 500, text, h)
        assert torch.equal(found.mid_block_res_sample, expected.mid_block_res_sample)
        assert not torch.equal(found.mid_block_res_sample, net(x, 500, text, 1 - h).mid_block_res_sample)


def test_dtypes(pristine: Path, tmp_path: Path) -> None:
    assert weights.load_vae(pristine, dtype="bf16").dtype == torch.bfloat16
    half = small_folder(tmp_path / "half", nets=(), dtype=torch.float16)
    found = weights.load_vae(half).state_dict()
    for name, value in small_vae(10).state_dict().items():
        assert found[name].dtype == torch.float32
        assert torch.equal(found[name], value.half().float())
    with pytest.raises(UsageError, match="fp16 on a CPU"):
        weights.load_unet(half, dtype="fp16", device="cpu")


def test_a_part_alone_and_inside_a_model(pristine: Path) -> None:
    """A source may be the model or the part's own folder."""
    whole, alone = weights.load_unet(pristine), weights.load_unet(pristine / "unet")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), alone.parameters(), strict=True))
    with pytest.raises(WeightsError, match=r"has no controlnet/ folder"):
        weights.load_controlnet(pristine)


# What must be refused, and with which words.


@pytest.mark.parametrize("part", LOADERS)
def test_missing_and_extra_tensors(folder: Path, part: str) -> None:
    name = sorted(load_file(weight_file(folder, part)))[3]
    path = rewrite(folder, part, lambda t: t.pop(name))
    with pytest.raises(WeightsError, match=r"1 tensors missing \('") as caught:
        load(folder, part)
    assert str(path) in str(caught.value)
    assert name.removeprefix("text_model.") in str(caught.value)
    rewrite(folder, part, lambda t: t.update({"stray.weight": torch.ones(2)}))
    with pytest.raises(WeightsError, match=r"1 that \w+ does not have \('stray.weight'\)"):
        load(folder, part)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda t: t[:-1].clone(), r"has shape \(31,.*expected \(32,"),
        (lambda t: t.flatten().clone(), r"has shape .* expected \(32,"),
        (lambda t: t.int(), "has dtype I32, expected one of F16"),
        (lambda t: t.to(torch.float8_e4m3fn), "has dtype F8_E4M3, expected one of F16"),
        (lambda t: torch.full_like(t, float("nan")), "holds NaN; the file is damaged"),
        (lambda t: t.index_fill(0, torch.tensor([7]), float("inf")), "holds Inf; the file is damaged"),
        (lambda t: t.index_fill(0, torch.tensor([7]), -float("inf")).bfloat16(), "holds Inf"),
    ],
)
def test_wrong_tensors(folder: Path, spoil: Callable[[Tensor], Tensor], words: str) -> None:
    name = "conv_in.weight"
    path = rewrite(folder, "unet", lambda t: t.update({name: spoil(t[name])}))
    with pytest.raises(WeightsError, match=words) as caught:
        load(folder, "unet")
    assert str(path) in str(caught.value)
    assert repr(name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_value_too_large_for_fp16_is_said() -> None:
    module = nn.Linear(2, 2, bias=False, device="meta")

    class File:
        path = Path("big.safetensors")

        def key(self, name: str) -> str:
            return name

        def dtypes(self) -> dict[str, str]:
            return {"weight": "F32"}

        def read(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
            return torch.tensor([[1.0, 1e6], [0.0, 0.0]])[slice(*(rows or (None,)))]

        def blocks(self, name: str, count: int, rows: tuple[int, int] | None = None) -> Iterator[Tensor]:
            return iter(self.read(name, rows).view(-1).split(count))

    feeds: Any = {"weight": (File(), "weight")}
    with pytest.raises(WeightsError, match="'weight' holds Inf in float16; use fp32 or bf16"):
        fill.fill(module, feeds, torch.device("cpu"), torch.float16)
    fill.fill(module, feeds, torch.device("cpu"), torch.bfloat16)
    assert float(module.weight[0, 1]) == 999424.0


HALVES = [
    (torch.float16, torch.bfloat16),
    (torch.bfloat16, torch.float16),
    (torch.float16, torch.float32),
    (torch.float32, torch.float32),
]


def test_a_tensor_without_rows_is_loaded(tmp_path: Path) -> None:
    module = nn.Module()
    module.weight = nn.Parameter(torch.empty(0, 3, device="meta"))
    save_file({"weight": torch.empty(0, 3).half()}, tmp_path / "a.safetensors")
    file = open_tensors(tmp_path / "a.safetensors")
    fill.fill(module, {"weight": (file, "weight")}, torch.device("cpu"), torch.bfloat16)
    assert module.weight.shape == (0, 3)


@pytest.mark.parametrize(("stored", "wanted"), HALVES, ids=str)
def test_a_tensor_of_several_blocks_is_converted_to_the_bit(
    tmp_path: Path, stored: torch.dtype, wanted: torch.dtype
) -> None:
    shape = (1030, 521)
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(stored)
    module = nn.Linear(*reversed(shape), bias=False, device="meta")
    save_file({"weight": values}, tmp_path / "a.safetensors")
    file = open_tensors(tmp_path / "a.safetensors")
    fill.fill(module, {"weight": (file, "weight")}, torch.device("cpu"), wanted)
    assert torch.equal(module.weight, values.to(wanted))
    assert module.weight.dtype == wanted
    values[-1, -1] = float("nan")
    save_file({"weight": values}, tmp_path / "b.safetensors")
    with pytest.raises(WeightsError, match="'weight' holds NaN; the file is damaged"):
        fill.fill(
            module,
            {"weight": (open_tensors(tmp_path / "b.safetensors"), "weight")},
            torch.device("cpu"),
            wanted,
        )


@pytest.mark.parametrize("loader", ["unet", "controlnet_depth"])
def test_a_net_from_the_other_folder(folder: Path, loader: str) -> None:
    other = {"unet": "controlnet_depth", "controlnet_depth": "unet"}[loader]
    with pytest.raises(WeightsError, match=r"class '\w+', expected \w+; it is a (unet|controlnet)"):
        LOADERS[loader](folder / other)
    # Even where the config lies about it, the tensors tell.
    name = {"unet": "UNet2DConditionModel", "controlnet_depth": "ControlNetModel"}[loader]
    change_config(folder, other, _class_name=name)
    with pytest.raises(WeightsError, match=r"is unknown to|tensors missing"):
        LOADERS[loader](folder / other)


@pytest.mark.parametrize(
    ("part", "changes", "words"),
    [
        ("unet", {"_class_name": "MyUNet"}, "class 'MyUNet', expected UNet2DConditionModel"),
        ("unet", {"_class_name": ["evil", "UNet"]}, "expected UNet2DConditionModel"),
        ("unet", {"_class_name": None}, "class 'None'"),
        ("text_encoder", {"architectures": ["BertModel"]}, "class 'BertModel', expected CLIPTextModel"),
        ("text_encoder", {"architectures": ["CLIPTextModelWithProjection"]}, "expected CLIPTextModel"),
        ("unet", {"attention_heads_dim": 8}, "option 'attention_heads_dim' is unknown"),
        ("unet", {"cross_attention_dim": 64}, r"has shape .* expected"),
        ("unet", {"layers_per_block": 10**6}, "'layers_per_block' is 1000000, expected at most 64"),
        (
            "unet",
            {"layers_per_block": 64, "transformer_layers_per_block": [[256] * 2] * 2},
            "blocks, expected at most 4096",
        ),
        ("unet", {"reverse_transformer_layers_per_block": [[10**9]] * 2}, "blocks, expected at most 4096"),
        ("unet", {"block_out_channels": [10**9, 64]}, "'block_out_channels' is 1000000000"),
        ("unet", {"block_out_channels": [32] * 100}, "has 100 entries"),
        ("unet", {"block_out_channels": "wide"}, "cannot build UNet2DConditionModel"),
        ("unet", {"down_block_types": ["SystemBlock", "DownBlock2D"]}, "cannot build UNet2DConditionModel"),
        ("text_encoder", {"hidden_act": "evil"}, "cannot build CLIPTextModel"),
        ("text_encoder", {"num_hidden_layers": 2}, "that CLIPTextModel does not have"),
        ("text_encoder", {"num_hidden_layers": 4}, "tensors missing"),
    ],
)
def test_configs(folder: Path, part: str, changes: dict[str, Any], words: str) -> None:
    change_config(folder, part, **changes)
    with pytest.raises(WeightsError, match=words) as caught:
        load(folder, part)
    assert "\n" not in str(caught.value)


def test_options_that_change_nothing_are_let_pass(folder: Path) -> None:
    change_config(folder, "unet", _name_or_path="x", future_option=None, other_future=False, decay=0.99)
    load(folder, "unet")
    change_config(folder, "text_encoder", torch_dtype="float16", auto_map={"AutoModel": "evil.Model"})
    assert load(folder, "text_encoder").dtype == torch.float32


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "not valid JSON"),
        ("[]", "a JSON list, expected an object"),
        ('{"a": 1, "a": 2}', r"not valid JSON \('a': a key occurs twice\)"),
        ('{"norm_eps": NaN}', r"not valid JSON \(NaN is not JSON\)"),
        ("<html>", "is a web page"),
        ("version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_config_files(folder: Path, content: str, words: str) -> None:
    (folder / "unet" / "config.json").write_text(content)
    with pytest.raises(WeightsError, match=words) as caught:
        load(folder, "unet")
    assert "unet/config.json" in str(caught.value)


# Names that changed over the years.


def test_text_encoder_with_and_without_prefix(folder: Path) -> None:
    expected = load(folder, "text_encoder").state_dict()
    assert any(name.startswith("text_model.") for name in load_file(weight_file(folder, "text_encoder")))

    def strip(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("text_model.")] = tensors.pop(name)

    rewrite(folder, "text_encoder", strip)
    found = load(folder, "text_encoder").state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("in_module", [True, False])
@pytest.mark.parametrize("in_file", [True, False])
def test_prefix_rules_hold_for_either_layout_of_transformers(in_module: bool, in_file: bool) -> None:
    wanted = [("text_model." if in_module else "") + name for name in ("embeddings.w", "encoder.b")]
    given = [("text_model." if in_file else "") + name for name in ("embeddings.w", "encoder.b")]
    feeds, extra = renames.plan_names("text_encoder", given, wanted, "x")
    assert feeds == dict(zip(wanted, given, strict=True))
    assert extra == ()


def test_position_ids_are_made_here_and_ignored_in_files(folder: Path) -> None:
    wrong = torch.arange(77)[None].flip(1)
    rewrite(folder, "text_encoder", lambda t: t.update({"text_model.embeddings.position_ids": wrong}))
    found = load(folder, "text_encoder")
    assert found.get_submodule("embeddings").position_ids.tolist() == [list(range(77))]


def test_old_names_of_the_vae(folder: Path) -> None:
    expected = load(folder, "vae").state_dict()
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}

    def age(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            for new, former in old.items():
                if new in name:
                    tensors[name.replace(new, former)] = tensors.pop(name)

    path = rewrite(folder, "vae", age)
    assert sum(".proj_attn." in name for name in load_file(path)) == 4
    found = load(folder, "vae").state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    name = "encoder.mid_block.attentions.0.to_q.bias"
    rewrite(folder, "vae", lambda t: t.update({name: torch.zeros(16)}))
    with pytest.raises(
        WeightsError, match=r"query.bias' and '.*to_q.bias' are both|to_q.bias' and '.*query.bias'"
    ):
        load(folder, "vae")


def test_renames_do_not_reach_other_parts() -> None:
    assert renames.plan_names("unet", ["text_model.w"], ["w"], "x") == ({}, ("text_model.w",))
    assert renames.plan_names("unet", ["embeddings.position_ids"], ["w"], "x")[1] == (
        "embeddings.position_ids",
    )


# Which file is taken.


def test_the_fp16_variant_serves_where_the_plain_file_is_missing(folder: Path) -> None:
    path = weight_file(folder, "vae")
    tensors = load_file(path)
    save_file({n: t.half() for n, t in tensors.items()}, path.with_suffix(".fp16.safetensors"))
    name = "encoder.conv_in.weight"
    assert torch.equal(load(folder, "vae").state_dict()[name], tensors[name])
    path.unlink()
    assert torch.equal(load(folder, "vae").state_dict()[name], tensors[name].half().float())
    assert [p.name for p in weights.part_files(weights.open_source(folder), "vae")] == [
        "config.json",
        "diffusion_pytorch_model.fp16.safetensors",
    ]


@pytest.mark.parametrize("part", ["vae", "text_encoder"])
def test_old_pickles(folder: Path, part: str) -> None:
    expected = load(folder, part).state_dict()
    path = weight_file(folder, part)
    stem = "pytorch_model" if part == "text_encoder" else "diffusion_pytorch_model"
    torch.save(load_file(path), path.with_name(f"{stem}.bin"))
    path.unlink()
    found = load(folder, part).state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_no_weights_at_all(folder: Path) -> None:
    weight_file(folder, "unet").rename(folder / "unet" / "model.ckpt")
    with pytest.raises(WeightsError, match=r"found model.ckpt; expected diffusion_pytorch_model.safetensors"):
        load(folder, "unet")
    (folder / "unet" / "model.ckpt").unlink()
    with pytest.raises(WeightsError, match="found no weight file"):
        load(folder, "unet")
    shutil.rmtree(folder / "unet")
    with pytest.raises(WeightsError, match="has no unet/ folder"):
        load(folder, "unet")


def shard(folder: Path) -> tuple[Path, dict[str, str]]:
    """Split the UNet in two files and an index."""
    path = weight_file(folder, "unet")
    tensors = load_file(path)
    path.unlink()
    names = sorted(tensors)
    weight_map = {}
    for k, half in enumerate((names[: len(names) // 2], names[len(names) // 2 :])):
        shard_name = f"diffusion_pytorch_model-{k + 1:05}-of-00002.safetensors"
        save_file({n: tensors[n] for n in half}, path.with_name(shard_name))
        weight_map |= dict.fromkeys(half, shard_name)
    index = path.with_name("diffusion_pytorch_model.safetensors.index.json")
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index, weight_map


def test_shards(folder: Path) -> None:
    expected = load(folder, "unet").state_dict()
    index, weight_map = shard(folder)
    found = load(folder, "unet").state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert len(weights.hashes(folder, "unet")) == 4

    def rewrite_index(change: Callable[[dict[str, Any]], Any]) -> None:
        changed: dict[str, Any] = dict(weight_map)
        change(changed)
        index.write_text(json.dumps({"weight_map": changed}))

    first = next(iter(weight_map))
    for evil in (
        "../secret.safetensors",
        "/etc/x.safetensors",
        "a\\b.safetensors",
        ".h.safetensors",
        "x.bin",
        7,
    ):
        rewrite_index(lambda m, evil=evil: m.update({first: evil}))
        with pytest.raises(WeightsError, match=r"expected the plain name of a \.safetensors file"):
            load(folder, "unet")
    rewrite_index(lambda m: m.update({first: "gone.safetensors"}))
    with pytest.raises(WeightsError, match=r"names gone\.safetensors, which is not there"):
        load(folder, "unet")
    rewrite_index(lambda m: m.pop(first))
    with pytest.raises(WeightsError, match="is in only one of shard and index"):
        load(folder, "unet")
    index.write_text("{}")
    with pytest.raises(WeightsError, match="no weight_map"):
        load(folder, "unet")
    index.write_text(json.dumps({"weight_map": weight_map}))
    second = index.with_name(sorted(set(weight_map.values()))[1])
    tensors = load_file(second)
    save_file({**tensors, first: torch.zeros(1)}, second)
    with pytest.raises(WeightsError, match=r"is in only one of|is also in"):
        load(folder, "unet")


def test_the_layout_of_another_framework(folder: Path) -> None:
    path = weight_file(folder, "vae")
    tensors = load_file(path)
    save_file(tensors, path, metadata={"format": "mlx"})
    with pytest.raises(WeightsError, match="written in the layout 'mlx', expected PyTorch's"):
        load(folder, "vae")
    save_file(tensors, path)
    load(folder, "vae")


# The empty module, and what fills it.


def test_no_buffer_is_left_without_values() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.empty(2, device="meta"))
            self.register_buffer("angles", torch.empty(3, device="meta"), persistent=False)

    class File:
        path = Path("x")

        def key(self, name: str) -> str:
            return name

        def dtypes(self) -> dict[str, str]:
            return {"weight": "F32"}

        def read(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
            return torch.ones(2)[slice(*(rows or (None,)))]

        def blocks(self, name: str, count: int, rows: tuple[int, int] | None = None) -> Iterator[Tensor]:
            return iter(self.read(name, rows).view(-1).split(count))

    feeds: Any = {"weight": (File(), "weight")}
    with pytest.raises(WeightsError, match="no values for 'angles'"):
        fill.fill(Odd(), feeds, torch.device("cpu"), torch.float32)


def test_building_takes_no_memory() -> None:
    config = {"_class_name": "UNet2DConditionModel", **small_unet(0).config}
    module = build.build_empty(build.PARTS["unet"], config, "x")
    assert all(p.is_meta for p in module.parameters())


def test_hashes_follow_the_files(folder: Path) -> None:
    import hashlib

    found = weights.hashes(folder, "unet", "scheduler", "tokenizer")
    assert set(found) >= {"unet/config.json", "scheduler/scheduler_config.json", "tokenizer/vocab.json"}
    for name, digest in found.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    path = rewrite(folder, "unet", lambda t: t["conv_in.bias"].add_(1))
    name = path.relative_to(folder).as_posix()
    assert weights.hashes(folder, "unet")[name] != found[name]


def test_a_file_that_does_not_change_is_hashed_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = weights.hashes(folder, "vae")
    monkeypatch.setattr("hashlib.file_digest", None)
    assert weights.hashes(folder, "vae") == first


# Devices.


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("part", LOADERS)
def test_parts_go_to_the_gpu_in_half_precision(pristine: Path, part: str) -> None:
    found, expected = load(pristine, part), originals()[part].state_dict()
    assert {p.device.type for p in [*found.parameters(), *found.buffers()]} == {"cuda"}
    for name, value in found.state_dict().items():
        assert torch.equal(value.cpu(), expected[name].half())


def test_devices_and_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert weights.choose_device() == torch.device("cpu")
    assert weights.choose_dtype("cpu") == torch.float32
    assert weights.choose_dtype("cuda") == torch.float16
    assert (
        weights.choose_dtype("cuda", "BF16") == weights.choose_dtype("cpu", torch.bfloat16) == torch.bfloat16
    )
    with pytest.raises(ResourceError, match="no CUDA device"):
        weights.choose_device("cuda")
    for device in ("gpu", "cuda:x", "meta", "cpu:3", ""):
        with pytest.raises(UsageError, match="device"):
            weights.choose_device(device)
    for dtype in ("fp8", "int8", torch.int8, "", 16):
        with pytest.raises(UsageError, match="dtype"):
            weights.choose_dtype("cpu", dtype)  # type: ignore[arg-type]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert weights.choose_device() == torch.device("cuda")
    with pytest.raises(ResourceError, match="cuda:0 to cuda:1"):
        weights.choose_device("cuda:2")
