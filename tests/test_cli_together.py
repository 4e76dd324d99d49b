"""Everything at once on the command line: a map, an image and its mask, a LoRA, an embedding; told, and made again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from rawdiff import images
from tests.cli_run import depth_map, pixels, rawdiff, write_levels
from tests.lora_files import kohya, random_changes, write
from tests.reference import hint
from tests.small_models import TEXT_WIDTH, small_folder, small_text_encoder, small_unet

SIZE = (48, 40)
MASK = np.pad(np.ones((24, 24), np.float32), ((8, 16), (8, 8)))
ALL = {
    "prompt": "a <zorb> cube",
    "seed": 3,
    "steps": 3,
    "depth": "depth.png",
    "image": "room.png",
    "mask": "mask.png",
    "strength": 0.7,
    "lora": ["style.safetensors@0.5"],
    "embedding": ["zorb.safetensors"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_folder(tmp_path_factory.mktemp("model") / "small", nets=("depth",), inpaint=True)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAWDIFF_MODEL", str(folder))
    write_levels(hint(SIZE, 2), tmp_path / "room.png")
    write_levels(MASK, tmp_path / "mask.png")
    depth_map(tmp_path / "depth.png", SIZE)
    nets = {"unet": small_unet(5, in_channels=9), "text_encoder": small_text_encoder(20)}
    write(tmp_path / "style.safetensors", kohya(random_changes(nets, 1)))
    held = torch.randn(2, TEXT_WIDTH, generator=torch.Generator().manual_seed(1))
    save_file({"<zorb>": held}, tmp_path / "zorb.safetensors")
    return tmp_path


def words(*without: str) -> list[str]:
    """ALL as a command."""
    said = [(name, value) for name, value in ALL.items() if name not in without]
    several = [(name, one) for name, value in said for one in (value if isinstance(value, list) else [value])]
    return ["gen", *(word for name, one in several for word in (f"--{name}", str(one)))]


def test_told_and_made_again(here: Path) -> None:
    planned = json.loads(rawdiff(*words(), "--dry-run", "--json").ok().lines[0])
    path = rawdiff(*words()).ok().lines[0]
    read = images.read_recipe(path)
    assert read["id"] == planned["id"]
    picture, made = read["picture"], read["made"]
    assert (picture["image"]["strength"], picture["loras"][0]["scale"]) == (0.7, 0.5)
    assert {name.partition("/")[0] for name in picture["weights"]} >= {"unet_inpaint", "text_encoder"}
    assert made["image"] == {"path": "room.png", "mask": "mask.png"}
    assert (made["loras"], made["embeddings"]) == (["style.safetensors"], ["zorb.safetensors"])
    shown = " ".join(rawdiff("info", path).ok().out.split())
    assert "image room.png (the same), strength 0.7" in shown
    assert "mask mask.png (the same), what stays is pasted back" in shown
    assert "depth depth.png (the same)" in shown
    assert "lora style.safetensors (the same), scale 0.5" in shown
    assert "embedding zorb.safetensors (the same), for <zorb>" in shown
    text = Image.open(path).text["parameters"]  # type: ignore[attr-defined]
    assert text.startswith("a <zorb> cube <lora:style:0.5>\n")
    assert "Denoising strength: 0.7" in text
    again = rawdiff("gen", "--from", path).ok().lines[0]
    assert np.array_equal(pixels(path), pixels(again))
    assert images.read_recipe(again)["id"] == read["id"]


@pytest.mark.parametrize("name", ["depth", "lora"])
def test_each_counts(here: Path, name: str) -> None:
    first, other = (rawdiff(*words(*without)).ok().lines[0] for without in ((), (name,)))
    hole = MASK == 1
    assert not np.array_equal(pixels(first)[hole], pixels(other)[hole])
    assert np.array_equal(pixels(first)[~hole], pixels(other)[~hole])


def test_a_batch_draws_the_same(here: Path) -> None:
    """Lines with and without a mask, and with other LoRAs, in one process."""
    quick = {name: ALL[name] for name in ("prompt", "seed", "steps", "embedding")}
    bare = {name: value for name, value in ALL.items() if name != "lora"}
    lines = [ALL, quick, bare, {**ALL, "seed": 4}]
    lines = [{**line, "out": f"{k}.png"} for k, line in enumerate(lines)]
    (here / "many.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rawdiff("batch", "many.jsonl", "--out", "out").ok()
    alone = rawdiff(*words()).ok().lines[0]
    found = [here / "out" / f"{k}.png" for k in range(len(lines))]
    assert np.array_equal(pixels(found[0]), pixels(alone))
    assert not any(np.array_equal(pixels(found[0]), pixels(path)) for path in found[2:])
