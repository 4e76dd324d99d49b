"""A tensor read block after block, as on a CPU, is what it is when read whole, as for a GPU: of every kind of file."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from rawdiff.errors import WeightsError
from rawdiff.weights import fill
from rawdiff.weights.merge import Summed
from rawdiff.weights.single import Options, open_single
from rawdiff.weights.tensorfile import StoredFile, open_tensors
from tests.checkpoints import small_checkpoint
from tests.small_models import small_folder

COUNT = 7
SHAPE = (6, 5)


def values(seed: int, dtype: torch.dtype = torch.float16) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)).to(dtype)


def check_blocks(file: Any, name: str, count: int = COUNT, **some: tuple[int, int] | None) -> None:
    whole = file.read(name, **some)
    found = [block.clone() for block in file.blocks(name, count, **some)]  # the next may lie where it does
    assert all(block.shape == (count,) for block in found[:-1])
    assert 0 < found[-1].numel() <= count
    assert torch.equal(torch.cat(found), whole.flatten())


def kinds(folder: Path, seed: int = 0, dtype: torch.dtype = torch.float16) -> dict[str, StoredFile]:
    table = {
        "a": values(seed, dtype),
        "turned": values(seed + 1, dtype).view(5, 6).t(),
        "scalar": torch.ones((), dtype=dtype),
    }
    plain = {name: value.contiguous() for name, value in table.items()}
    save_file(plain, folder / f"{seed}.safetensors")
    torch.save(table, folder / f"{seed}.ckpt")
    torch.save(table, folder / f"{seed}.old.ckpt", _use_new_zipfile_serialization=False)
    return {
        path.name: open_tensors(path)
        for path in (folder / f"{seed}{end}" for end in (".safetensors", ".ckpt", ".old.ckpt"))
    }


@pytest.mark.parametrize("rows", [None, (1, 4), (5, 6)])
def test_every_kind_of_file(tmp_path: Path, rows: tuple[int, int] | None) -> None:
    for file in kinds(tmp_path).values():
        for name in ("a", "turned", *(["scalar"] if rows is None else [])):
            check_blocks(file, name, rows=rows)
        for block in file.blocks("a", COUNT, rows):  # nothing larger is held for it
            assert block.untyped_storage().nbytes() <= COUNT * block.element_size()
        file.close()


def test_a_sum_of_files_that_store_differently(tmp_path: Path) -> None:
    first, other = kinds(tmp_path, 0, torch.float32), kinds(tmp_path, 10)
    for one in first.values():
        for two in other.values():
            summed = Summed([({"a": (one, "a")}, 0.25), ({"a": (two, "turned")}, 0.75)])
            check_blocks(summed, "a")
            assert torch.equal(
                summed.read("a"), values(0, torch.float32).mul(0.25).add(two.read("turned"), alpha=0.75)
            )
            assert torch.equal(
                one.read("a"), values(0, torch.float32)
            )  # the sum was not taken in a file's own memory


def test_every_tensor_of_a_checkpoint_in_the_original_layout(tmp_path: Path) -> None:
    """Those that are turned, thirds of one, of another shape, and those that stay."""
    configs = small_folder(tmp_path / "small")
    save_file(small_checkpoint(), tmp_path / "model.safetensors")
    opened = open_single(tmp_path / "model.safetensors", Options(configs=configs))
    for part in ("unet", "vae", "text_encoder"):
        file = opened.open(part, opened.config(part))
        for name in file.shapes():
            check_blocks(file, name, 100)
        file.close()


def test_large_numbers_whose_sum_is_none_are_finite(tmp_path: Path) -> None:
    large = torch.full((2, 2), 3e38)
    assert large.sum().isinf()
    fill.check_finite(large, tmp_path, "a")
    for bad, word in ((float("nan"), "NaN"), (float("inf"), "Inf"), (-float("inf"), "Inf")):
        large[1, 0] = bad
        with pytest.raises(WeightsError, match=f"holds {word}"):
            fill.check_finite(large, tmp_path, "a")


def test_a_file_cut_between_two_blocks_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(5000)}, path)
    file = open_tensors(path)
    blocks = file.blocks("a", 1000)
    next(blocks)
    with path.open("r+b") as cut:
        cut.truncate(path.stat().st_size - 8000)
    with pytest.raises(WeightsError, match=r"was cut at byte .* while being read"):
        list(blocks)
    file.close()
