"""A small random model of SDXL's form, in memory and on disk: two text encoders, pooled text, sizes, a VAE of its own.

folder = small_sdxl(tmp_path / "model", nets=("depth",))
unet = sdxl_unet(seed=1)                     # no attention at the top, transformers of several layers below
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.small_models import (
    TEXT_WIDTH,
    _built,
    _vocabulary,
    _write_module,
    small_controlnet,
    small_scheduler,
    small_text_encoder,
    small_tokenizer,
    small_unet,
    small_vae,
)

__all__ = ["POOLED_WIDTH", "SECOND_WIDTH", "sdxl_controlnet", "sdxl_unet", "second_encoder", "small_sdxl"]

SECOND_WIDTH = 48
"""Width of the second text encoder, and POOLED_WIDTH that of what it says of a whole text."""
POOLED_WIDTH = 24
IDS_WIDTH = 8

FORM: dict[str, Any] = {
    "cross_attention_dim": TEXT_WIDTH + SECOND_WIDTH,
    "transformer_layers_per_block": (1, 1, 2),
    "attention_head_dim": (2, 4, 4),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": IDS_WIDTH,
    "projection_class_embeddings_input_dim": POOLED_WIDTH + 6 * IDS_WIDTH,
}


def _strengthen_added(net: nn.Module) -> None:
    """Let pooled text and sizes show: a small random projection of them drowns in that of the time."""
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.startswith("add_embedding."):
                parameter.mul_(3.0)


def sdxl_unet(seed: int = 0, **changes: Any) -> Any:
    """A UNet2DConditionModel of SDXL's form; `changes` go to its config."""
    unet = small_unet(seed, shape="topless", **{**FORM, **changes})
    _strengthen_added(unet)
    return unet


def sdxl_controlnet(unet: Any, seed: int = 0, **changes: Any) -> Any:
    """A ControlNetModel that fits `unet`, with weights of its own."""
    net = small_controlnet(unet, seed, **changes)
    _strengthen_added(net)
    return net


def second_encoder(seed: int = 0, *, layers: int = 4, **changes: Any) -> Any:
    """A CLIPTextModelWithProjection, wider and deeper than the first encoder."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    vocab = _vocabulary()
    config = {
        "vocab_size": len(vocab),
        "hidden_size": SECOND_WIDTH,
        "intermediate_size": 2 * SECOND_WIDTH,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "max_position_embeddings": 77,
        "hidden_act": "gelu",
        "projection_dim": POOLED_WIDTH,
        "bos_token_id": vocab["<|startoftext|>"],
        "eos_token_id": vocab["<|endoftext|>"],
        "pad_token_id": vocab["!"],
        **changes,
    }

    def build() -> Any:
        model = CLIPTextModelWithProjection(CLIPTextConfig(**config))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "embedding" in name:
                    parameter.copy_(0.5 * torch.randn(parameter.shape))
            model.text_projection.weight.copy_(
                torch.randn(model.text_projection.weight.shape) / SECOND_WIDTH**0.5
            )
        return model

    return _built(build, seed)


def small_sdxl(
    path: str | Path,
    nets: tuple[str, ...] = (),
    *,
    seed: int = 0,
    zeros: bool | None = True,
    own: bool = True,
    scheduler: str = "EulerDiscreteScheduler",
) -> Path:
    """Write a whole model (and a `controlnet_<kind>/` for each of `nets`) to `path`; return it as a Path.

    `zeros` is `force_zeros_for_empty_prompt` in its index, left out if None; without `own` there is no rawdiff.json.
    """
    path = Path(path)
    unet = sdxl_unet(seed)
    small_tokenizer(path / "tokenizer")
    small_tokenizer(path / "tokenizer_2")
    _change(path / "tokenizer_2" / "tokenizer_config.json", pad_token="!")
    for name, encoder, kind in (
        ("text_encoder", small_text_encoder(seed + 20), "CLIPTextModel"),
        ("text_encoder_2", second_encoder(seed + 25), "CLIPTextModelWithProjection"),
    ):
        _write_module(
            encoder, path / name, torch.float32, "" if name.endswith("2") else "text_model.", "model"
        )
        _change(path / name / "config.json", architectures=[kind], dtype="float32")
    _write_module(unet, path / "unet", torch.float32)
    vae = small_vae(seed + 10, scaling_factor=0.13025, force_upcast=True)
    _write_module(vae, path / "vae", torch.float32)
    small_scheduler(scheduler).save_config(path / "scheduler")
    for k, kind in enumerate(nets):
        _write_module(sdxl_controlnet(unet, seed + 30 + k), path / f"controlnet_{kind}", torch.float32)
    index: dict[str, Any] = {
        "_class_name": "StableDiffusionXLPipeline",
        "_diffusers_version": "0.42.1",
        "scheduler": ["diffusers", scheduler],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        **({} if zeros is None else {"force_zeros_for_empty_prompt": zeros}),
    }
    (path / "model_index.json").write_text(json.dumps(index, indent=2))
    if own:
        defaults = {
            "name": "small sdxl",
            "native_size": [64, 64],
            "guidance": 4.0,
            "sampler": None,
            "controls": {kind: f"controlnet_{kind}" for kind in nets},
        }
        (path / "rawdiff.json").write_text(json.dumps(defaults, indent=2))
    return path


def _change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}, indent=2))
