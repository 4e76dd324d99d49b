"""Small models of Stable Diffusion 2's structure, as folders and as single files in the original layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rawdiff.weights.original import Names, places, to_original
from tests.checkpoints import UNET, VAE, original, prefixed
from tests.small_models import small_folder, small_text_encoder, small_unet, small_vae

__all__ = ["TEXT", "sd2_checkpoint", "sd2_folder"]

TEXT = {"hidden_act": "gelu"}
"""What its text encoder has of OpenCLIP's."""


def sd2_folder(path: Path, nets: tuple[str, ...] = (), **options: Any) -> Path:
    """`small_folder` in SD2's structure: OpenCLIP's activation, padding with a token of its own, v by default."""
    options = {"shape": "sd2", "prediction_type": "v_prediction", "text": TEXT, **options}
    folder = small_folder(path, nets=nets, **options)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        file = folder / "tokenizer" / name
        if file.exists():
            file.write_text(json.dumps(json.loads(file.read_text()) | {"pad_token": "!"}))
    return folder


def open_clip(encoder: Any) -> dict[str, Tensor]:
    """A text encoder in OpenCLIP's names, with the last layer that SD2 does not read, and what lies beside it."""
    config = encoder.config.to_dict()
    state = {f"text_model.{name.removeprefix('text_model.')}": v for name, v in encoder.state_dict().items()}
    held = to_original(Names(places("open_clip", config)), state)
    last = config["num_hidden_layers"]
    top = f"transformer.resblocks.{last - 1}."
    unread = {
        name.replace(top, f"transformer.resblocks.{last}."): torch.full_like(value, 7.0)
        for name, value in held.items()
        if name.startswith(top)
    }
    width = config["hidden_size"]
    beside = {"logit_scale": torch.tensor(4.6), "text_projection": torch.ones(width, width)}
    return {**held, **unread, **beside}


def sd2_checkpoint(seed: int = 0) -> dict[str, Tensor]:
    """The networks of `sd2_folder(seed=seed)`, as one file of SD2's layout would hold them."""
    return {
        **prefixed(UNET, original("unet", small_unet(seed, shape="sd2"))),
        **prefixed(VAE, original("vae", small_vae(seed + 10))),
        **prefixed("cond_stage_model.model.", open_clip(small_text_encoder(seed + 20, **TEXT))),
        "betas": torch.ones(1000),
    }
