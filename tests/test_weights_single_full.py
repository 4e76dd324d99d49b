"""Full-size networks with random weights, in one file: equal to what diffusers loads from it, within bounded memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rawdiff import weights
from scripts.speed.loading import FILE, diffusers_file, measure, parts_of, write_both

LOADERS = {
    "unet": weights.load_unet,
    "vae": weights.load_vae,
    "text_encoder": weights.load_text_encoder,
    "text_encoder_2": weights.load_text_encoder_2,
}


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_full_size_files_load_as_in_diffusers(family: str, tmp_path: Path) -> None:
    write_both(tmp_path, family, parts_of(family))
    for part in parts_of(family):
        found = LOADERS[part](tmp_path / FILE, dtype="bf16").state_dict()
        folder = LOADERS[part](tmp_path, dtype="bf16").state_dict()
        expected = diffusers_file(tmp_path, part, torch.bfloat16).state_dict()
        assert set(found) == set(expected) == set(folder)
        for name, value in expected.items():
            assert torch.equal(found[name], value), name
            assert torch.equal(found[name], folder[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("way", ["ours file", "ours folder"])
def test_memory_stays_near_the_weights(way: str, tmp_path: Path) -> None:
    write_both(tmp_path, "sd1", parts_of("sd1"))
    run = measure(way, tmp_path, parts_of("sd1"), "bf16", is_cold=True)
    assert run["bytes"] < run["peak"] < 1.15 * run["bytes"]
