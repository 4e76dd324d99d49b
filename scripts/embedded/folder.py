"""The embedded model's folder: diffusers' layout, fp16, written and read back for training to go on."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch
from torch import nn

from scripts.embedded.training import ASSETS

__all__ = ["GUIDANCE", "SCHEDULE", "load_committed", "write_index", "write_model"]

SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
}
GUIDANCE = 3.0  # at 4 all is well too, at 8 colours begin to leave their objects: see the card
SAMPLER = (
    "DPMSolverMultistepScheduler"  # PNDM loses colours, more so with more guidance: measured, see the card
)


def write_model(modules: dict[str, nn.Module], folder: Path) -> None:
    """Write fp16 weights and everything else that a diffusers folder needs; the VAE and the tokenizer are copied."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, module in modules.items():
        half = (
            type(module)(module.config) if name == "text_encoder" else type(module).from_config(module.config)
        )
        half.load_state_dict(module.state_dict())
        half.half().save_pretrained(folder / name)
    config = folder / "text_encoder" / "config.json"
    held = json.loads(config.read_text())
    held["dtype"] = "float32"  # else a pipeline loaded without a dtype mixes fp16 text with fp32 networks
    config.write_text(json.dumps(held, indent=2, sort_keys=True) + "\n")
    _keep_prefix(folder / "text_encoder" / "model.safetensors")
    for part in ("vae", "tokenizer"):
        if folder != ASSETS:
            shutil.copytree(ASSETS / part, folder / part, dirs_exist_ok=True)
    write_index(folder)


def write_index(folder: Path) -> None:
    """Write the scheduler's config, `model_index.json`, and `rawdiff.json` after what the folder holds."""
    scheduler = {
        "_class_name": SAMPLER,
        "_diffusers_version": "0.42.1",
        **SCHEDULE,
        "algorithm_type": "dpmsolver++",
        "final_sigmas_type": "zero",
        "lower_order_final": True,
        "prediction_type": "v_prediction",
        "solver_order": 2,
        "solver_type": "midpoint",
        "steps_offset": 1,
        "timestep_spacing": "trailing",  # from the noisiest step on; shapes are told better than with leading
        "trained_betas": None,
    }
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.42.1",
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", SAMPLER],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    own = {
        "name": "solids",
        "native_size": [128, 128],
        "largest_size": [512, 768],  # trained up to there, lying or standing
        "guidance": GUIDANCE,
        "sampler": None,
        **({"inpaint": "unet_inpaint"} if (folder / "unet_inpaint").is_dir() else {}),
        "controls": {
            path.name.removeprefix("controlnet_"): path.name for path in sorted(folder.glob("controlnet_*"))
        },
        **_brought(folder, "loras"),
        **_brought(folder, "embeddings"),
    }
    (folder / "scheduler").mkdir(exist_ok=True)
    for path, content in (
        ("scheduler/scheduler_config.json", scheduler),
        ("model_index.json", index),
        ("rawdiff.json", own),
    ):
        (folder / path).write_text(json.dumps(content, indent=2) + "\n")


def _brought(folder: Path, what: str) -> dict[str, dict[str, str]]:
    """The LoRAs or embeddings in a model folder by name; of a LoRA in both layouts kohya's."""
    files = sorted((folder / what).glob("*.safetensors"))
    names = {path.stem: f"{what}/{path.name}" for path in files if not path.stem.endswith("-diffusers")}
    return {what: names} if names else {}


def _keep_prefix(path: Path) -> None:
    """Name the text encoder's tensors `text_model.*`, as every published Stable Diffusion folder does."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    if not any(key.startswith("text_model.") for key in tensors):
        tensors = {f"text_model.{key}": value for key, value in tensors.items()}
    save_file(tensors, path, metadata={"format": "pt"})


def load_committed(modules: dict[str, nn.Module], folder: Path = ASSETS) -> None:
    """Fill modules with the weights of a model folder, those that it has; layers that are new stay as they are."""
    for name, module in modules.items():
        if (folder / name).is_dir():
            held = type(module).from_pretrained(folder / name, torch_dtype=torch.float32)
            absent = module.load_state_dict(held.state_dict(), strict=False).missing_keys
            if absent:
                print(f"{name}: {len(absent)} tensors are new, {absent[0]} the first", file=sys.stderr)
