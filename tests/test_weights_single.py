"""Checkpoints in one file: every number arrives, what is not told is said, and what is wrong is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rawdiff import weights
from rawdiff.errors import UsageError, WeightsError
from rawdiff.weights import build, fill
from tests import original_keys
from tests.checkpoints import (
    CONTROL,
    UNET,
    VAE,
    original,
    prefixed,
    small_checkpoint,
    small_net,
    write,
    write_header,
)
from tests.small_models import small_folder, small_text_encoder, small_unet, small_vae

LOADERS: dict[str, Callable[..., Any]] = {
    "unet": weights.load_unet,
    "vae": weights.load_vae,
    "text_encoder": weights.load_text_encoder,
}


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in diffusers' layout whose networks the small checkpoints hold (and its weights, seed 0)."""
    return small_folder(tmp_path_factory.mktemp("models") / "small", nets=("depth",))


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return small_checkpoint()


def originals() -> dict[str, Any]:
    return {"unet": small_unet(0), "vae": small_vae(10), "text_encoder": small_text_encoder(20)}


def check_same(found: Any, expected: Any, cast: Callable[[Tensor], Tensor] = lambda t: t) -> None:
    state = found.state_dict()
    assert set(state) == set(expected.state_dict())
    for name, value in expected.state_dict().items():
        assert torch.equal(state[name], cast(value)), name


# What is loaded.


@pytest.mark.parametrize("name", ["model.safetensors", "model.ckpt", "model.weird"])
def test_every_number_arrives(configs: Path, tensors: dict[str, Tensor], tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, tensors)
    opened = weights.open_source(f"{path}#config={configs}")
    assert (opened.kind, str(opened.single)) == ("file", "unet, vae, text_encoder")
    for part, load in LOADERS.items():
        found = load(opened)
        check_same(found, originals()[part])
        assert not found.training
        assert not any(t.is_meta or t.requires_grad for t in [*found.parameters(), *found.buffers()])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_files_in_half_precision(
    configs: Path, tensors: dict[str, Tensor], tmp_path: Path, dtype: torch.dtype
) -> None:
    for name in ("half.safetensors", "half.ckpt"):
        halves = {k: v.to(dtype) if v.is_floating_point() else v for k, v in tensors.items()}
        path = write(tmp_path / name, halves)
        found = weights.load_vae(f"{path}#config={configs}")
        check_same(found, small_vae(10), lambda t: t.to(dtype).float())


def test_a_file_draws_what_its_folder_draws(
    configs: Path, tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    """The whole way, through the front door; another UNet draws another picture."""
    import rawdiff

    path = write(tmp_path / "model.safetensors", tensors)
    spoiled = {**tensors, f"{UNET}out.2.bias": tensors[f"{UNET}out.2.bias"] + 1}
    other = write(tmp_path / "other.safetensors", spoiled)
    latents = []
    for source in (configs, f"{path}#config={configs}", f"{other}#config={configs}"):
        model = rawdiff.load(source, say=lambda line: None)
        run = model.prepare("a red cube", size=(64, 64), steps=2, seed=3, guidance=4.0)
        latents.append(list(run)[-1].x_next)
    assert torch.equal(latents[0], latents[1])
    assert not torch.equal(latents[0], latents[2])


def test_averaged_weights_are_taken_when_asked_for(
    configs: Path, tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    averaged = original("unet", small_unet(7))
    ema = {f"model_ema.diffusion_model{name.replace('.', '')}": value for name, value in averaged.items()}
    held = {
        **tensors,
        **ema,
        "model_ema.decay": torch.tensor(0.9999),
        "model_ema.num_updates": torch.tensor(5),
    }
    path = write(tmp_path / "model.safetensors", held)
    check_same(weights.load_unet(f"{path}#config={configs}"), small_unet(0))
    check_same(weights.load_unet(f"{path}#ema#config={configs}"), small_unet(7))
    check_same(weights.load_vae(f"{path}#ema#config={configs}"), small_vae(10))
    plain, chosen = (weights.hashes(f"{path}{o}#config={configs}", "unet") for o in ("", "#ema"))
    assert set(plain) ^ set(chosen) == {"model.safetensors", "model.safetensors#ema"}
    del held["model_ema.diffusion_modelout2weight"]
    with pytest.raises(WeightsError, match=r"1 tensors missing \('model_ema\.diffusion_modelout2weight'\)"):
        weights.load_unet(f"{write(path, held)}#ema#config={configs}")
    with pytest.raises(WeightsError, match=r"holds no averaged weights"):
        weights.open_source(f"{write(path, tensors)}#ema")


@pytest.mark.parametrize("prefix", [CONTROL, "", None])
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_controlnets(configs: Path, tmp_path: Path, prefix: str | None, suffix: str) -> None:
    """With the prefix of its whole checkpoint, without, and in diffusers' names (None)."""
    net = small_net()
    named = net.state_dict() if prefix is None else prefixed(prefix, original("controlnet", net))
    path = write(tmp_path / f"net.{suffix}", named)
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / "controlnet").symlink_to(configs / "controlnet_depth")
    check_same(weights.load_controlnet(f"{path}#config={folder}"), net)
    with pytest.raises(WeightsError, match="holds no unet, only controlnet"):
        weights.load_unet(f"{path}#config={folder}")


@pytest.mark.parametrize("prefix", [VAE, "vae.", "", None])
def test_vaes_by_themselves(configs: Path, tmp_path: Path, prefix: str | None) -> None:
    vae = small_vae(3)
    named = vae.state_dict() if prefix is None else prefixed(prefix, original("vae", vae))
    if prefix is not None:
        named = {**named, f"{prefix}loss.logvar": torch.zeros(())}
    check_same(weights.load_vae(f"{write(tmp_path / 'vae.safetensors', named)}#config={configs}"), vae)


def test_every_tensor_is_read_once(
    configs: Path, tensors: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes read for a part are the part's bytes: one tensor at a time, a fused one by thirds."""
    from rawdiff.weights import disk

    read: list[int] = []
    into = disk._read_into

    def counted(view: memoryview, descriptor: int, offset: int, path: Path) -> None:
        read.append(len(view))
        into(view, descriptor, offset, path)

    path = write(tmp_path / "model.safetensors", tensors)
    header_bytes = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    opened = weights.open_source(f"{path}#config={configs}")
    monkeypatch.setattr(disk, "_read_into", counted)
    unet = weights.load_unet(opened)
    assert sum(read) == header_bytes + sum(p.numel() * 4 for p in unet.parameters())


# Which family it is, by full-size headers without data.


def parts_of(family: str) -> list[str]:
    return ["unet", "vae", "text_encoder", *(["text_encoder_2"] if family == "sdxl" else [])]


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_families_are_told_by_their_tensors(family: str, tmp_path: Path) -> None:
    """Every tensor of every part has its place in the module of the bundled config, and the other way round."""
    path = write_header(tmp_path / "model.safetensors", original_keys.checkpoint(family))
    notes: list[str] = []
    opened = weights.open_source(path, say=notes.append)
    assert opened.single is not None
    assert list(opened.single.parts) == parts_of(family)
    assert opened.single.configs.name == family
    for part in parts_of(family):
        module = build.build_empty(build.PARTS[part], weights.read_config(opened, part), part)
        config = module.config if not part.startswith("text") else module.config.to_dict()
        file = opened.single.open(part, config)
        assert set(fill.plan_fill(part, module, [file], "x")) == set(module.state_dict())
        file.close()
    told = {"sd1": "epsilon", "sd2": "v_prediction", "sdxl": "epsilon"}[family]
    assert weights.load_scheduler(opened).config.prediction_type == told
    assert [("predict v" in note, "add #epsilon" in note) for note in notes] == [(True, True)] * (
        family == "sd2"
    )
    expected = {"sd1": (512, 512), "sd2": (768, 768), "sdxl": (1024, 1024)}[family]
    defaults = weights.read_defaults(opened)
    assert (defaults.native_size, defaults.family) == (expected, family)


def test_what_a_unet_predicts(tmp_path: Path) -> None:
    def predicts(option: str = "", family: str = "sd2", into: int = 4, **more: Any) -> tuple[str, int]:
        shapes = original_keys.checkpoint(family, into) | dict.fromkeys(more.pop("marks", ()), (0,))
        path = write_header(tmp_path / "model.safetensors", shapes, **more)
        notes: list[str] = []
        opened = weights.open_source(str(path) + option, say=notes.append)
        return weights.load_scheduler(opened).config.prediction_type, len(notes)

    assert predicts() == ("v_prediction", 1)
    assert predicts("#epsilon") == ("epsilon", 0)
    assert predicts(into=9) == ("epsilon", 0)
    assert predicts("#v_prediction", "sd1") == ("v_prediction", 0)
    assert predicts(family="sdxl", marks=["v_pred", "ztsnr"]) == ("v_prediction", 0)
    assert predicts(**{"modelspec.prediction_type": "epsilon"}) == ("epsilon", 0)


def test_zero_terminal_snr_is_heeded(tmp_path: Path) -> None:
    shapes = original_keys.checkpoint("sdxl")
    for marks, expected in (({}, False), ({"v_pred": (0,), "ztsnr": (0,)}, True)):
        path = write_header(tmp_path / "model.safetensors", shapes | marks)
        assert weights.load_scheduler(path).config.rescale_betas_zero_snr is expected


def test_inpainting_is_told_by_the_first_convolution(tmp_path: Path) -> None:
    path = write_header(tmp_path / "model.safetensors", original_keys.checkpoint("sd1", 9))
    assert weights.read_config(path, "unet")["in_channels"] == 9
    path = write_header(tmp_path / "model.safetensors", original_keys.checkpoint("sd1", 5))
    with pytest.raises(WeightsError, match=r"has shape \(320, 5, 3, 3\), expected 4, 8 or 9 channels"):
        weights.open_source(path)


def test_a_vae_alone_does_not_tell_its_scale(tmp_path: Path) -> None:
    path = write_header(tmp_path / "vae.safetensors", dict(original_keys.vae()))
    notes: list[str] = []
    scales = []
    for option in ("", "#sd2", "#sdxl"):
        opened = weights.open_source(str(path) + option, say=notes.append)
        scales.append(weights.read_config(opened, "vae")["scaling_factor"])
    assert scales == [0.18215, 0.18215, 0.13025]
    assert len(notes) == 1
    assert "add #sdxl" in notes[0]


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_families_of_controlnets(family: str, tmp_path: Path) -> None:
    path = write_header(tmp_path / "net.safetensors", dict(original_keys.controlnet(family)))
    opened = weights.open_source(path)
    assert opened.single is not None
    assert (str(opened.single), opened.single.configs.name) == ("controlnet", family)


# What must be refused, and with which words.


def spoiled(change: Callable[[dict[str, Tensor]], Any]) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    def apply(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        copy = dict(tensors)
        change(copy)
        return copy

    return apply


OUT = f"{UNET}out.2.weight"
BAD: dict[str, tuple[Callable[[dict[str, Tensor]], dict[str, Tensor]], str]] = {
    "missing": (spoiled(lambda t: t.pop(OUT)), rf"1 tensors missing \('{OUT}'\)"),
    "extra": (
        spoiled(lambda t: t.update({f"{UNET}stray.weight": torch.ones(1)})),
        rf"UNet2DConditionModel does not have \('{UNET}stray.weight'\)",
    ),
    "beside": (
        spoiled(lambda t: t.update({"stray": torch.ones(1)})),
        "belong to none of its parts .*'stray'",
    ),
    "shape": (
        spoiled(lambda t: t.update({OUT: t[OUT][:-1].clone()})),
        rf"'{OUT}' has shape \(3, .*expected \(4,",
    ),
    "integers": (spoiled(lambda t: t.update({OUT: t[OUT].int()})), rf"'{OUT}' has dtype I32"),
    "nan": (spoiled(lambda t: t.update({OUT: t[OUT] * float("nan")})), rf"'{OUT}' holds NaN"),
    "nothing": (lambda t: {"a": torch.ones(1)}, r"holds nothing known here \(its first tensor is 'a'\)"),
    "lora": (lambda t: {"lora_unet_x.lora_down.weight": torch.ones(1, 1)}, "is a LoRA; expected"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
def test_bad_files(configs: Path, tensors: dict[str, Tensor], tmp_path: Path, name: str, suffix: str) -> None:
    change, words = BAD[name]
    path = write(tmp_path / f"model.{suffix}", change(tensors))
    with pytest.raises(WeightsError, match=words) as caught:
        weights.load_unet(f"{path}#config={configs}")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 4


def test_two_names_for_one_tensor(configs: Path, tensors: dict[str, Tensor], tmp_path: Path) -> None:
    twin = f"{VAE}encoder.mid.attn_1.to_q.weight"
    path = write(tmp_path / "model.safetensors", {**tensors, twin: torch.zeros(16, 16)})
    with pytest.raises(WeightsError, match="AutoencoderKL does not have"):
        weights.load_vae(f"{path}#config={configs}")


def test_a_family_that_is_not_known(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    path = write(tmp_path / "model.safetensors", tensors)
    with pytest.raises(WeightsError, match=r"its unet reads text of width 32, expected 768 \(SD1\)"):
        weights.open_source(path)
    sd1 = write_header(tmp_path / "sd1.safetensors", original_keys.checkpoint("sd1"))
    with pytest.raises(WeightsError, match="is of Stable Diffusion 1, not of Stable Diffusion XL"):
        weights.open_source(f"{sd1}#sdxl")


def test_options(configs: Path, tensors: dict[str, Tensor], tmp_path: Path) -> None:
    path = write(tmp_path / "model.safetensors", tensors)
    for option in ("#", "#emma", "#config=/none", "#ema#v"):
        with pytest.raises(UsageError, match=r"unknown option #.*expected one of ema, epsilon"):
            weights.open_source(f"{path}{option}")
    odd = write(tmp_path / "model#ema.safetensors", tensors)
    assert weights.open_source(f"{odd}#config={configs}").kind == "file"
    with pytest.raises((WeightsError, UsageError), match="no such folder or file"):
        weights.open_source(f"{tmp_path}/none.safetensors#ema")


def test_a_file_has_no_folders(configs: Path, tensors: dict[str, Tensor], tmp_path: Path) -> None:
    opened = weights.open_source(f"{write(tmp_path / 'model.safetensors', tensors)}#config={configs}")
    with pytest.raises(WeightsError, match="no folder inside"):
        opened.child("unet")
    with pytest.raises(WeightsError, match="holds no text_encoder_2, only unet, vae, text_encoder"):
        weights.load_text_encoder_2(opened)


def test_hashes_name_what_was_read(configs: Path, tensors: dict[str, Tensor], tmp_path: Path) -> None:
    import hashlib

    path = write(tmp_path / "model.safetensors", tensors)
    found = weights.hashes(
        f"{path}#config={configs}", "tokenizer", "text_encoder", "unet", "vae", "scheduler"
    )
    assert found["model.safetensors"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert {
        "small/unet/config.json",
        "small/tokenizer/vocab.json",
        "small/scheduler/scheduler_config.json",
    } <= set(found)
    sd1 = write_header(tmp_path / "sd1.safetensors", original_keys.checkpoint("sd1"))
    assert set(weights.hashes(sd1, "tokenizer")) == {"merges.txt.gz", "sd1/tokenizer/tokenizer_config.json"}
