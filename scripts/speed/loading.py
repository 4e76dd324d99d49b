"""Time and memory to load a model's networks, by rawdiff and by diffusers, from a folder and from one file.

Each measurement is a process of its own, in which the libraries are imported before the clock starts. Memory is the
most that the process held (VmHWM) above what it held before loading; pages of a mapped file count while they are held.
Free memory is made to be the machine's before the clock starts, unless it is to be found as it is.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

import rawdiff
from rawdiff import weights
from rawdiff.say import say_nothing
from rawdiff.weights.build import PARTS, build_empty
from rawdiff.weights.choose import read_json
from rawdiff.weights.original import Names, places, to_original
from rawdiff.weights.room import room_for
from rawdiff.weights.single import FAMILIES
from rawdiff.weights.vocabulary import build_tokenizer

__all__ = [
    "FILE",
    "WAYS",
    "diffusers_file",
    "load",
    "measure",
    "measure_step",
    "parts_of",
    "step",
    "write_both",
]

WAYS = ("diffusers file", "ours file", "diffusers folder", "ours folder")
FILE = "model.safetensors"
_BLOCK = 1_000_003
"""Random numbers are drawn once and laid out again and again; a prime, so that no two tensors are alike."""

_TEXT = {
    ("sd1", "text_encoder"): ("plain", "cond_stage_model.transformer."),
    ("sd2", "text_encoder"): ("open_clip", "cond_stage_model.model."),
    ("sdxl", "text_encoder"): ("plain", "conditioner.embedders.0.transformer."),
    ("sdxl", "text_encoder_2"): ("open_clip", "conditioner.embedders.1.model."),
}


_SDXL = {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True}


def parts_of(family: str) -> list[str]:
    """The networks of a family."""
    return ["unet", "vae", "text_encoder", *(["text_encoder_2"] if family == "sdxl" else [])]


def write_both(
    folder: Path, family: str, parts: list[str], dtype: torch.dtype = torch.float16, seed: int = 0
) -> None:
    """`parts` of a family at full size with random weights: in diffusers' layout, and as FILE in the original's."""
    shutil.copytree(FAMILIES / family, folder, dirs_exist_ok=True)
    block = torch.rand(_BLOCK, generator=torch.Generator().manual_seed(seed)).sub_(0.5).mul_(0.1).to(dtype)
    whole: dict[str, Tensor] = {}
    at = 0
    for part in parts:
        module = build_empty(PARTS[part], read_json(FAMILIES / family / part / "config.json"), part)
        state = {}
        for name, value in module.state_dict().items():
            start = at % _BLOCK
            turns = (start + value.numel()) // _BLOCK + 1
            state[name] = block.repeat(turns)[start : start + value.numel()].reshape(value.shape).clone()
            at += value.numel() + 1
        save_file(state, folder / part / f"{PARTS[part].stems[0]}.safetensors", metadata={"format": "pt"})
        whole |= _original(family, part, module, state)
    save_file(whole, folder / FILE)
    for path in sorted(folder.glob("tokenizer*/tokenizer_config.json")):
        build_tokenizer(read_json(path)).save_pretrained(path.parent)
    if family == "sdxl":
        (folder / "model_index.json").write_text(json.dumps(_SDXL), encoding="utf-8")


def _original(family: str, part: str, module: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if part in ("unet", "vae"):
        prefix = {"unet": "model.diffusion_model.", "vae": "first_stage_model."}[part]
        found = to_original(Names(places(part, module.config)), state)
    else:
        layout, prefix = _TEXT[family, part]
        bare = {name.removeprefix("text_model."): value for name, value in state.items()}
        found = {n if n.startswith("text_projection") else f"text_model.{n}": v for n, v in bare.items()}
        if layout == "open_clip":
            found = to_original(Names(places(layout, module.config.to_dict())), found)
    return {prefix + name: value.contiguous() for name, value in found.items()}


def diffusers_file(folder: Path, part: str, dtype: torch.dtype, checkpoint: Any = None) -> Any:
    """A part of FILE by diffusers' `from_single_file` and what its pipelines call for text encoders."""
    import transformers
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from diffusers.loaders.single_file_utils import (
        create_diffusers_clip_model_from_ldm,
        load_single_file_checkpoint,
    )

    held = load_single_file_checkpoint(str(folder / FILE)) if checkpoint is None else checkpoint
    if part in ("unet", "vae"):
        cls = UNet2DConditionModel if part == "unet" else AutoencoderKL
        return cls.from_single_file(dict(held), config=str(folder), subfolder=part, torch_dtype=dtype)
    text = getattr(transformers, PARTS[part].class_name)
    return create_diffusers_clip_model_from_ldm(
        text, held, part, config=str(folder), torch_dtype=dtype, local_files_only=True
    )


def _loaders(way: str, folder: Path, parts: list[str], dtype: torch.dtype) -> Iterator[Callable[[], Any]]:
    import diffusers
    import transformers
    from diffusers.loaders.single_file_utils import load_single_file_checkpoint

    ours = {name: getattr(weights, f"load_{name}") for name in parts}
    if way == "ours file":
        opened = weights.open_source(folder / FILE)
        yield from (lambda part=part: ours[part](opened, device="cpu", dtype=dtype) for part in parts)
    elif way == "ours folder":
        yield from (lambda part=part: ours[part](folder, device="cpu", dtype=dtype) for part in parts)
    elif way == "diffusers file":
        held = load_single_file_checkpoint(str(folder / FILE))
        yield from (lambda part=part: diffusers_file(folder, part, dtype, held) for part in parts)
    else:
        for part in parts:
            library = transformers if PARTS[part].is_text else diffusers
            cls = getattr(library, PARTS[part].class_name)
            yield lambda cls=cls, part=part: cls.from_pretrained(folder / part, torch_dtype=dtype)


def _memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def _come_by(size_bytes: int) -> None:
    """Take this much memory and free it again, so that the machine has it.

    The host of a virtual machine may take what is freed there, and then gives it back page after page, which takes
    longer than loading does: on a machine of one's own memory that is free is there.
    """
    room_for({"": (size_bytes,)}, torch.uint8)[""].zero_()


def load(
    way: str, folder: Path, parts: list[str], dtype: torch.dtype, is_cold: bool = False
) -> dict[str, float]:
    """Load `parts` in one way, in this process: seconds, CPU seconds, peak bytes above the start, bytes of weights.

    First twice as much memory is taken and freed as the weights need, if not `is_cold`.
    """
    import diffusers
    import transformers

    diffusers.logging.set_verbosity_error()
    transformers.logging.set_verbosity_error()
    for part in parts:  # the modules of their classes, before the clock
        build_empty(PARTS[part], read_json(folder / part / "config.json"), part)
    if not is_cold:  # the file's numbers are of 16 bits, and diffusers holds some of them twice
        _come_by(2 * (folder / FILE).stat().st_size * dtype.itemsize // 2)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before, begun, begun_cpu = _memory("VmRSS"), time.perf_counter(), time.process_time()
    loaded = [load() for load in _loaders(way, folder, parts, dtype)]
    # A mapped weight is only loaded once its bytes are read.
    touched = sum(
        float(p.detach().flatten()[:: 4096 // p.element_size()].sum()) for m in loaded for p in m.parameters()
    )
    seconds, cpu = time.perf_counter() - begun, time.process_time() - begun_cpu
    held = sum(p.numel() * p.element_size() for m in loaded for p in m.parameters())
    return {"seconds": seconds, "cpu": cpu, "peak": _memory("VmHWM") - before, "bytes": held, "sum": touched}


def step(source: Path, dtype: torch.dtype) -> dict[str, Any]:
    """Load a whole model, and make one step of a picture of 128x128 with guidance: seconds, and SHA-256 of its x."""
    begun = time.perf_counter()
    model = rawdiff.load(source, device="cpu", dtype=dtype, say=say_nothing)
    loaded = time.perf_counter()
    run = model.prepare("a red cube", size=(128, 128), steps=1, seed=1, guidance=5.0, say=say_nothing)
    x = next(run).x
    found = sha256(x.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
    finite = bool(x.isfinite().all())
    done = time.perf_counter()
    return {"load": loaded - begun, "step": done - loaded, "sha256": found, "finite": finite}


def measure(way: str, folder: Path, parts: list[str], dtype: str, is_cold: bool = False) -> dict[str, float]:
    """`load` in a process of its own."""
    return _by_itself(way, str(folder), ",".join(parts), dtype, "cold" if is_cold else "")


def measure_step(source: Path, dtype: str) -> dict[str, Any]:
    """`step` in a process of its own."""
    return _by_itself("step", str(source), dtype)


def _by_itself(*words: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "scripts.speed.loading", *words]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    if done.returncode:
        raise SystemExit(f"{words[0]}: {done.stderr.strip().splitlines()[-1:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__" and sys.argv[1] == "step":
    print(json.dumps(step(Path(sys.argv[2]), weights.choose_dtype("cpu", sys.argv[3]))))
elif __name__ == "__main__":
    _, way, where, names, kind, state = sys.argv
    found = load(way, Path(where), names.split(","), weights.choose_dtype("cpu", kind), bool(state))
    print(json.dumps(found))
