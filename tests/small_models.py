"""Complete small random models in the diffusers layout, in memory and on disk, for every test.

A seed decides every number. Parameters that the libraries start as constants (zeroed convolutions, a
ControlNet's `controlnet_cond_embedding.conv_out` among them, biases of zero, norms of one) are given random
values: otherwise a comparison passes with the part switched off.

    unet = small_unet(seed=1)                    # 8x8 latents, cross_attention_dim 32
    net = small_controlnet(unet, seed=2)
    folder = small_folder(tmp_path / "model", nets=("depth", "normal"))
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

__all__ = [
    "MERGES",
    "SCHEDULERS",
    "SHAPES",
    "TEXT_WIDTH",
    "constant_parameters",
    "randomise",
    "small_controlnet",
    "small_folder",
    "small_scheduler",
    "small_text_encoder",
    "small_tokenizer",
    "small_unet",
    "small_vae",
]

TEXT_WIDTH = 32
"""Width of the text encoder, and `cross_attention_dim` of every network here."""

SHAPES: dict[str, dict[str, Any]] = {
    # As Stable Diffusion 1: attention everywhere but at the bottom, convolutions as projections.
    "plain": {
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": 4,
    },
    # Two downsamplings (odd sizes matter) and two layers a block (every skip is used).
    "deep": {
        "block_out_channels": (32, 32, 64),
        "layers_per_block": 2,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": 4,
    },
    # No attention at the top level, as the embedded model.
    "topless": {
        "block_out_channels": (32, 32, 64),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 4,
    },
    # As Stable Diffusion 2: linear projections, heads per level.
    "linear": {
        "block_out_channels": (32, 64),
        "layers_per_block": 2,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": (2, 4),
        "use_linear_projection": True,
    },
    # The same with attention at two levels and heads of its own at each.
    "sd2": {
        "block_out_channels": (32, 32, 64),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": (2, 4, 8),
        "use_linear_projection": True,
        "upcast_attention": True,
    },
}

SCHEDULERS: dict[str, dict[str, Any]] = {
    "DDIMScheduler": {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1},
    "PNDMScheduler": {"skip_prk_steps": True, "set_alpha_to_one": False, "steps_offset": 1},
    "EulerDiscreteScheduler": {"steps_offset": 1},
}

MERGES = (
    "t h", "th e</w>", "r e", "re d</w>", "b l", "bl u", "blu e</w>", "c u", "cu b", "cub e</w>",
    "o n</w>", "g r", "gr a", "gra s", "gras s</w>", "s p", "sp h", "sph e", "r e</w>", "sphe re</w>",
)  # fmt: skip
"""Byte pairs joined by the small tokenizer, in order."""

M = TypeVar("M", bound=nn.Module)


def constant_parameters(module: nn.Module) -> list[str]:
    """Names of the parameters whose elements are all the same: those that hide a part that does nothing."""
    return [n for n, p in module.named_parameters() if p.numel() > 1 and bool((p == p.flatten()[0]).all())]


def randomise(module: M, seed: int, *, shake: float = 0.0) -> M:
    """Give every constant parameter random values, in place; `shake` > 0 also moves all the others."""
    generator = torch.Generator().manual_seed(seed)
    constant = set(constant_parameters(module))
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name in constant and parameter.ndim > 1:  # a zeroed convolution
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            elif name in constant:  # a bias of zero, or a norm's weight of one
                parameter.add_(0.1 * noise)
            elif shake:
                parameter.add_(shake * parameter.std() * noise)
    return module


def _built(build: Callable[[], M], seed: int, shake: float = 0.0) -> M:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build()
    return randomise(module, seed + 1, shake=shake).eval().requires_grad_(False)


def small_unet(seed: int = 0, *, shape: str = "plain", sample_size: int = 8, **changes: Any) -> Any:
    """A UNet2DConditionModel of `SHAPES[shape]`; `changes` go to its config (`in_channels=9`, say)."""
    from diffusers import UNet2DConditionModel

    config = {
        "sample_size": sample_size,
        "cross_attention_dim": TEXT_WIDTH,
        "norm_num_groups": 8,
        **SHAPES[shape],
        **changes,
    }

    def build() -> Any:
        unet = UNet2DConditionModel(**config)
        _strengthen_text(unet)
        return unet

    return _built(build, seed)


def _strengthen_text(net: nn.Module) -> None:
    """Let one changed word show: random attention is nearly flat over 77 positions, most of them padding."""
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if any(f"attn2.to_{letter}." in name for letter in "qkv"):
                parameter.mul_(3.0)


def small_vae(seed: int = 0, **changes: Any) -> Any:
    """An AutoencoderKL of factor 8 with four latent channels.

    A picture's latents are about as large as a trained one's, or else they would drown in the run's noise.
    """
    from diffusers import AutoencoderKL

    config = {
        "block_out_channels": (8, 8, 16, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "latent_channels": 4,
        "sample_size": 64,
        "scaling_factor": 0.18215,
        **changes,
    }

    def build() -> Any:
        vae = AutoencoderKL(**config)
        if vae.quant_conv is not None:
            with torch.no_grad():
                vae.quant_conv.weight[:4] *= 20.0
        return vae

    return _built(build, seed)


def small_text_encoder(seed: int = 0, *, layers: int = 3, **changes: Any) -> Any:
    """A CLIPTextModel for `small_tokenizer`: width 32, 77 positions, three layers (clip skips 0 to 2)."""
    from transformers import CLIPTextConfig, CLIPTextModel

    vocab = _vocabulary()
    config = {
        "vocab_size": len(vocab),
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 2 * TEXT_WIDTH,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "max_position_embeddings": 77,
        "hidden_act": "quick_gelu",
        "projection_dim": TEXT_WIDTH,
        "bos_token_id": vocab["<|startoftext|>"],
        "eos_token_id": vocab["<|endoftext|>"],
        "pad_token_id": vocab["<|endoftext|>"],
        **changes,
    }

    def build() -> Any:
        model = CLIPTextModel(CLIPTextConfig(**config))
        with torch.no_grad():  # as wide apart as trained embeddings, so that a change of prompt shows
            for name, parameter in model.named_parameters():
                if "embedding" in name:
                    parameter.copy_(0.5 * torch.randn(parameter.shape))
        return model

    return _built(build, seed)


def small_controlnet(unet: Any, seed: int = 0, **changes: Any) -> Any:
    """A ControlNetModel that fits `unet`, with weights of its own and a hint that counts.

    Under the default initialisation a hint fades to 1e-4 of its size on its way through eight convolutions;
    with the variance kept from layer to layer it arrives about as large as the latents.
    """
    from diffusers import ControlNetModel

    options = {"conditioning_embedding_out_channels": (8, 8, 16, 16), **changes}

    def build() -> Any:
        net = ControlNetModel.from_unet(unet, **options)
        with torch.no_grad():
            for name, parameter in net.controlnet_cond_embedding.named_parameters():
                if parameter.ndim == 4 and not name.startswith("conv_out"):
                    parameter.copy_(1.8 * torch.randn(parameter.shape) / parameter[0].numel() ** 0.5)
        return net

    return _built(build, seed, shake=0.3)


def small_scheduler(name: str = "DDIMScheduler", **changes: Any) -> Any:
    """A scheduler with Stable Diffusion's betas, by its class name in diffusers."""
    import diffusers

    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    return getattr(diffusers, name)(**{**betas, **SCHEDULERS.get(name, {}), **changes})


def _byte_characters() -> list[str]:
    """The characters that stand for bytes in byte-level BPE (Radford et al. 2019), by byte value."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(b) if b in printable else chr(next(others)) for b in range(256)]


def _vocabulary() -> dict[str, int]:
    letters = _byte_characters()
    words = [*letters, *(c + "</w>" for c in letters), *("".join(pair.split(" ")) for pair in MERGES)]
    return {w: i for i, w in enumerate(dict.fromkeys([*words, "<|startoftext|>", "<|endoftext|>"]))}


def small_tokenizer(folder: str | Path) -> Any:
    """Write a CLIP tokenizer to `folder` (512 byte tokens, a few merges, two specials); return it loaded."""
    from transformers import CLIPTokenizer

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    vocab = _vocabulary()
    pairs = [tuple(pair.split(" ")) for pair in MERGES]
    CLIPTokenizer(vocab=vocab, merges=pairs, model_max_length=77).save_pretrained(folder)  # tokenizer.json
    lines = ["#version: 0.2", *(" ".join(pair) for pair in pairs)]
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "add_prefix_space": False,
        "do_lower_case": True,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))
    return CLIPTokenizer.from_pretrained(folder)


def _write_module(module: Any, folder: Path, dtype: torch.dtype, prefix: str = "", stem: str = "") -> None:
    """config.json and one safetensors file, in the names that Stable Diffusion's folders use."""
    folder.mkdir(parents=True, exist_ok=True)
    module.save_config(folder) if hasattr(module, "save_config") else module.config.save_pretrained(folder)
    tensors: dict[str, Tensor] = {
        (k if k.startswith(prefix) else prefix + k): v.detach().to(dtype).contiguous().clone()
        for k, v in module.state_dict().items()
        if not k.endswith("position_ids")
    }
    save_file(tensors, folder / f"{stem or 'diffusion_pytorch_model'}.safetensors", metadata={"format": "pt"})


def small_folder(
    path: str | Path,
    nets: tuple[str, ...] = ("depth", "normal"),
    *,
    seed: int = 0,
    shape: str = "plain",
    scheduler: str = "DDIMScheduler",
    prediction_type: str = "epsilon",
    dtype: torch.dtype = torch.float32,
    native_size: tuple[int, int] = (64, 64),
    inpaint: bool = False,
    text: Mapping[str, Any] | None = None,
) -> Path:
    """Write a whole model (and a `controlnet_<kind>/` for each of `nets`) to `path`; return it as a Path.

    Parts use seeds `seed`, `seed`+10, ... : `small_unet(seed)`, `small_vae(seed + 10)`,
    `small_text_encoder(seed + 20)`, `small_controlnet(unet, seed + 30 + k)`; with `inpaint` there is also an
    inpainting UNet, `small_unet(seed + 5, in_channels=9)`, in `unet_inpaint/`; `text` goes to the text encoder's
    config. `from_pretrained` of diffusers' pipelines opens it too.
    """
    path = Path(path)
    unet = small_unet(seed, shape=shape)
    small_tokenizer(path / "tokenizer")
    encoder = small_text_encoder(seed + 20, **(text or {}))
    _write_module(encoder, path / "text_encoder", dtype, "text_model.", "model")
    _write_module(unet, path / "unet", dtype)
    if inpaint:
        _write_module(small_unet(seed + 5, shape=shape, in_channels=9), path / "unet_inpaint", dtype)
    _write_module(small_vae(seed + 10), path / "vae", dtype)
    small_scheduler(scheduler, prediction_type=prediction_type).save_config(path / "scheduler")
    for k, kind in enumerate(nets):
        _write_module(small_controlnet(unet, seed + 30 + k), path / f"controlnet_{kind}", dtype)
    config_file = path / "text_encoder" / "config.json"
    config = json.loads(config_file.read_text())
    config.update({"architectures": ["CLIPTextModel"], "dtype": "float32"})
    config_file.write_text(json.dumps(config, indent=2))
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.42.1",
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", scheduler],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    defaults = {
        "name": "small",
        "native_size": list(native_size),
        "guidance": 4.0,
        "sampler": None,
        "controls": {kind: f"controlnet_{kind}" for kind in nets},
        **({"inpaint": "unet_inpaint"} if inpaint else {}),
    }
    (path / "model_index.json").write_text(json.dumps(index, indent=2))
    (path / "rawdiff.json").write_text(json.dumps(defaults, indent=2))
    return path
