"""Single files in the original layouts: small ones from small networks, and full-size ones that are only a header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from rawdiff.weights.original import Names, places, to_original
from tests.small_models import small_controlnet, small_text_encoder, small_unet, small_vae

UNET, VAE, CLIP, CONTROL = (
    *("model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."),
    "control_model.",
)


def original(part: str, module: Any) -> dict[str, Tensor]:
    """A network's tensors under their original names."""
    return to_original(Names(places(part, module.config)), module.state_dict())


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value.contiguous() for name, value in tensors.items()}


def clip_tensors(encoder: Any) -> dict[str, Tensor]:
    """A text encoder's tensors in the names of SD1's files, with the buffer that these carry."""
    state = {f"text_model.{k.removeprefix('text_model.')}": v for k, v in encoder.state_dict().items()}
    return {**state, "text_model.embeddings.position_ids": torch.arange(77)[None]}


def small_checkpoint(seed: int = 0) -> dict[str, Tensor]:
    """The networks of `small_folder(seed=seed)`, as one file of SD1's layout would hold them."""
    return {
        **prefixed(UNET, original("unet", small_unet(seed))),
        **prefixed(VAE, original("vae", small_vae(seed + 10))),
        **prefixed(CLIP, clip_tensors(small_text_encoder(seed + 20))),
        "betas": torch.ones(1000),
        "alphas_cumprod_prev": torch.ones(1000),
    }


def small_net(seed: int = 0) -> Any:
    """The ControlNet of `small_folder(seed=seed)`."""
    return small_controlnet(small_unet(seed), seed + 30)


def write(path: Path, tensors: Mapping[str, Tensor], **metadata: str) -> Path:
    """A safetensors file, or a training checkpoint of torch where the name ends so."""
    if path.suffix in (".ckpt", ".pth"):
        torch.save({"state_dict": dict(tensors), "global_step": 470000, "epoch": 3}, path)
    else:
        save_file(dict(tensors), path, metadata=metadata or None)
    return path


def write_header(
    path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str = "F16", **metadata: str
) -> Path:
    """A safetensors file of these shapes, all zeros, that takes no space on the disk."""
    table: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    position = 0
    for name, shape in shapes.items():
        of_integers = name.endswith("position_ids")
        end = position + (8 if of_integers else {"F16": 2, "F32": 4}[dtype]) * torch.Size(shape).numel()
        table[name] = {
            "dtype": "I64" if of_integers else dtype,
            "shape": shape,
            "data_offsets": [position, end],
        }
        position = end
    raw = json.dumps(table).encode()
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + position)
    return path
