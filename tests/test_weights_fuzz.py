"""Damaged weight files in numbers: a valid load or one of our errors, in bounded time and memory, and no code run.

The quick counts of most kinds are with the readers' own tests; here are those that cross readers, and the full counts:

    scripts/fuzz                                # all of them, with what came of each
"""

from __future__ import annotations

import contextlib
import pickle
import random
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from rawdiff import weights
from rawdiff.errors import ResourceError, UsageError, WeightsError
from rawdiff.weights import header
from rawdiff.weights.lora_layers import Layers
from tests import test_weights_files as files
from tests import test_weights_lora_refused as loras
from tests import test_weights_torchfile as pickles
from tests.checkpoints import small_checkpoint
from tests.lora_files import small_networks
from tests.small_models import small_folder

OURS = (WeightsError, ResourceError, UsageError)
SLOWEST_S = 3.0
"""CPU time of one file: the largest here take some milliseconds, and a hundred times that is no hang."""
GROWTH_KIB = 400 * 1024


@dataclass
class Tally:
    """What came of some damaged files."""

    what: str
    count: int = 0
    valid: int = 0
    slowest_s: float = 0.0


@contextlib.contextmanager
def counted(what: str) -> Iterator[Tally]:
    """Tell what came of it, and hold it to its bounds."""
    tally = Tally(what)
    before_kib, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    yield tally
    seconds = time.process_time() - begun
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib
    print(
        f"\n{tally.count} {what}: {tally.valid} valid, {tally.count - tally.valid} refused, slowest "
        f"{1000 * tally.slowest_s:.1f} ms, {seconds:.1f} s, {grown_kib / 1024:.0f} MiB more"
    )
    assert tally.slowest_s < SLOWEST_S
    assert grown_kib < GROWTH_KIB


def refused(error: Exception) -> bool:
    """False, which is right, if it was said in one line."""
    assert "\n" not in str(error)
    return False


def fuzz(
    tally: Tally, count: int, make: Callable[[random.Random], bytes], judge: Callable[[bytes], bool]
) -> None:
    """Judge what `make` makes, `count` times; the seed is not that of the quick counts."""
    rng = random.Random(f"{tally.what} {count}")
    for _ in range(count):
        content = make(rng)
        begun = time.process_time()
        tally.valid += judge(content)
        tally.slowest_s = max(tally.slowest_s, time.process_time() - begun)
        tally.count += 1


def counts(quick: int, full: int) -> Any:
    marks = pytest.mark.slow
    return pytest.mark.parametrize(
        "count", [pytest.param(quick, id="quick"), pytest.param(full, id="full", marks=marks)]
    )


def full(count: int) -> Any:
    return pytest.mark.parametrize("count", [pytest.param(count, id="full", marks=pytest.mark.slow)])


# Safetensors.


@full(100_000)
def test_headers(count: int) -> None:
    """In memory: the parser alone."""
    good = save(files.TENSORS, metadata={"format": "pt"})
    length = int.from_bytes(good[:8], "little")
    raw, data_bytes = good[8 : 8 + length], len(good) - 8 - length

    def judge(content: bytes) -> bool:
        try:
            header.parse_header(content, data_bytes, "x")
        except WeightsError as error:
            return refused(error)
        return True

    with counted("mutated headers") as tally:
        fuzz(tally, count, lambda rng: files.mutate(rng, raw, length), judge)
    assert 0 < tally.valid < count / 2


@full(10_000)
def test_files(tmp_path: Path, count: int) -> None:
    good = save(files.TENSORS, metadata={"format": "pt"})
    head = 8 + int.from_bytes(good[:8], "little")
    with counted("mutated safetensors files") as tally:
        fuzz(
            tally,
            count,
            lambda rng: files.mutate(rng, good, head),
            lambda content: files.judge(tmp_path / "x.safetensors", content),
        )
    assert 0 < tally.valid < count / 2


@pytest.mark.slow
def test_structured_headers(tmp_path: Path) -> None:
    """Headers that are JSON of about the right form."""
    with counted("structured headers") as tally:

        @settings(max_examples=2000, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(files.TABLES, st.binary(max_size=40))
        def check(table: dict[str, Any], data: bytes) -> None:
            begun = time.process_time()
            tally.valid += files.judge(tmp_path / "x.safetensors", files.pack(table, data))
            tally.slowest_s = max(tally.slowest_s, time.process_time() - begun)
            tally.count += 1

        check()
    assert tally.count >= 2000


# Pickles.


@full(5_000)
@pytest.mark.parametrize("legacy", [False, True])
def test_checkpoints(tmp_path: Path, legacy: bool, count: int) -> None:
    tensors = {name: value for name, value in pickles.TENSORS.items() if name != "empty"}
    good = pickles.saved({"state_dict": tensors, "step": 3}, _use_new_zipfile_serialization=not legacy)
    with counted(f"mutated {'old ' if legacy else ''}.ckpt files") as tally:
        fuzz(
            tally,
            count,
            lambda rng: pickles.mutate(rng, good),
            lambda content: pickles.judge(tmp_path / "x.ckpt", content),
        )
    assert 0 < tally.valid < count


@counts(150, 2_000)
@pytest.mark.parametrize("form", ["zip", "old", "bare"])
def test_live_bombs(tmp_path: Path, form: str, count: int) -> None:
    """Pickles that do run code when pickle loads them, whole and mutated: here none ever does."""
    mark = tmp_path / "run"
    value = {"a": torch.ones(1), "bomb": pickles.Call(Path.touch, mark)}
    if form == "bare":
        good = pickle.dumps({"bomb": pickles.Call(Path.touch, mark)}, protocol=2)
    else:
        good = pickles.saved(value, _use_new_zipfile_serialization=form == "zip")
    path = tmp_path / "x.ckpt"

    def judge(content: bytes) -> bool:
        valid = pickles.judge(path, content)
        assert not mark.exists()
        return valid

    assert not judge(good)
    with counted(f"mutated bombs ({form})") as tally:
        fuzz(tally, count, lambda rng: pickles.mutate(rng, good), judge)
    path.write_bytes(good)
    torch.load(path, weights_only=False) if form != "bare" else pickle.loads(good)
    assert mark.exists()  # the bomb is live


# LoRAs.


@full(5_000)
def test_loras(tmp_path: Path, count: int) -> None:
    good, layers = loras.small_file(), Layers(**small_networks())
    head = 8 + int.from_bytes(good[:8], "little")
    with counted("mutated LoRA files") as tally:
        fuzz(
            tally,
            count,
            lambda rng: files.mutate(rng, good, head),
            lambda content: loras.judge(tmp_path / "x.safetensors", content, layers),
        )
    assert 0 < tally.valid < count / 2


# Whole models in one file.


@counts(60, 500)
@pytest.mark.parametrize("part", ["vae", "unet"])
def test_models_in_one_file(tmp_path: Path, part: str, count: int) -> None:
    """From the front: what the file holds, of which family, and one of its parts, loaded to the last tensor."""
    configs = small_folder(tmp_path / "configs", nets=())
    good = save({name: value.contiguous() for name, value in small_checkpoint().items()})
    head = 8 + int.from_bytes(good[:8], "little")
    path = tmp_path / "x.safetensors"
    load = weights.load_vae if part == "vae" else weights.load_unet

    def judge(content: bytes) -> bool:
        path.write_bytes(content)
        try:
            module = load(f"{path}#config={configs}", device="cpu")
        except OURS as error:
            return refused(error)
        assert all(bool(tensor.isfinite().all()) for tensor in module.state_dict().values())
        return True

    assert judge(good)
    with counted(f"mutated models in one file, their {part}") as tally:
        fuzz(tally, count, lambda rng: files.mutate(rng, good, head), judge)
    assert tally.valid < count
