"""Checkpoints merged: the weighted sum, each file read once, told in recipes, and refused where it is none."""

from __future__ import annotations

import json
import shutil
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import rawdiff
from rawdiff import Model, recipe, weights
from rawdiff.errors import InputError, UsageError, WeightsError
from rawdiff.weights import disk, fill, tensorfile
from rawdiff.weights.merge import parse
from tests.checkpoints import small_checkpoint, write
from tests.cli_run import depth_map, pixels
from tests.cli_run import rawdiff as command
from tests.reference import silent
from tests.small_hub import SmallHub
from tests.small_models import small_folder

pytest_plugins = ["tests.cli_fixtures", "tests.hub_fixtures"]

NETWORKS = ("unet", "text_encoder", "vae")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    home = tmp_path_factory.mktemp("models")
    return [
        small_folder(home / name, nets=(), seed=seed) for name, seed in (("a", 0), ("b", 100), ("c", 200))
    ]


@pytest.fixture(scope="module")
def models(folders: list[Path]) -> list[Model]:
    return [load(folder) for folder in folders]


def load(source: Any, **options: Any) -> Model:
    return rawdiff.load(source, device="cpu", say=silent, **options)


def named(*pairs: tuple[Path | str, float]) -> str:
    return "merge:" + "+".join(f"{source}@{weight}" for source, weight in pairs)


def tensors(model: Model) -> dict[str, Tensor]:
    return {f"{part}.{k}": v for part in NETWORKS for k, v in getattr(model, part).state_dict().items()}


def same(a: Model, b: Model) -> bool:
    one, other = tensors(a), tensors(b)
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


# The sum.


@pytest.mark.parametrize("shares", [(0.6, 0.4), (0.25, 0.35, 0.4), (1.0, 1.0, -1.0)])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_it_is_the_sum(
    folders: list[Path], models: list[Model], shares: tuple[float, ...], dtype: str
) -> None:
    """By hand in fp64; what is loaded in half precision is the same, rounded once."""
    found = tensors(load(named(*zip(folders, shares, strict=False)), dtype=dtype))
    for name, value in found.items():
        terms = [tensors(model)[name].double() for model in models]
        expected = sum(share * term for share, term in zip(shares, terms, strict=False))
        assert isinstance(expected, Tensor)
        if dtype == "fp32":
            assert torch.allclose(value.double(), expected, rtol=1e-6, atol=1e-6), name
            assert not torch.allclose(value.double(), terms[0], rtol=1e-3, atol=1e-3), name
        else:
            off = (value.double() - expected).abs()
            assert bool((off <= 2**-8 * expected.abs() + 1e-6).all()), name


def test_rounded_once(tmp_path: Path) -> None:
    """Files in half precision whose sum in half precision would be another."""
    a, b = (small_folder(tmp_path / str(seed), nets=(), seed=seed, dtype=torch.float16) for seed in (0, 100))
    found = load(named((a, 0.6), (b, 0.4))).unet.state_dict()
    one, other = (load(folder).unet.state_dict() for folder in (a, b))
    coarse = 0
    for name, value in found.items():
        assert torch.equal(value, (one[name] * 0.6).add_(other[name], alpha=0.4)), name
        halves = (one[name].half() * 0.6).add_(other[name].half(), alpha=0.4)
        coarse += int((halves.float() != value).sum())
    assert coarse > 1000


@pytest.mark.parametrize("order", [(1.0, 0.0), (0.0, 1.0)])
def test_one_alone_is_that_one_to_the_bit(
    folders: list[Path], models: list[Model], order: tuple[float, float]
) -> None:
    found = load(named(*zip(folders, order, strict=False)))
    assert same(found, models[order.index(1.0)])
    assert not same(found, models[order.index(0.0)])


def test_a_file_and_a_folder(folders: list[Path], models: list[Model], tmp_path: Path) -> None:
    """A checkpoint in the original layout, with its options, and one in diffusers'."""
    file = write(tmp_path / "a+b@1.safetensors", small_checkpoint())
    found = load(f"merge:{file}#config={folders[0]}@0.3+{folders[1]}@0.7")
    assert same(found, load(named((folders[0], 0.3), (folders[1], 0.7))))


def test_what_is_not_a_network_is_the_firsts(folders: list[Path], tmp_path: Path) -> None:
    other = small_folder(tmp_path / "other", nets=("depth",), seed=100, scheduler="EulerDiscreteScheduler")
    words = json.loads((other / "rawdiff.json").read_text()) | {"guidance": 2.5}
    (other / "rawdiff.json").write_text(json.dumps(words))
    first = load(named((other, 0.5), (folders[0], 0.5)))
    second = load(named((folders[0], 0.5), (other, 0.5)))
    kinds = [type(model.scheduler).__name__ for model in (first, second)]
    assert kinds == ["EulerDiscreteScheduler", "DDIMScheduler"]
    assert [model.defaults.guidance for model in (first, second)] == [2.5, 4.0]
    assert [list(model.defaults.controls) for model in (first, second)] == [["depth"], []]
    net, own = (model.net("depth").state_dict() for model in (first, load(other)))
    assert all(torch.equal(net[name], own[name]) for name in own)


def test_an_inpainting_unet_beside_is_none_of_the_sum(folders: list[Path], tmp_path: Path) -> None:
    masked = small_folder(tmp_path / "masked", nets=(), inpaint=True)
    assert load(masked).defaults.inpaint is not None
    merged = load(named((masked, 0.5), (folders[1], 0.5)))
    assert merged.unet_for(masked=True) is merged.unet


# Reading.


def test_each_file_is_read_once(folders: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    opened = weights.open_source(named((folders[0], 0.6), (folders[1], 0.4)))
    read: dict[Path, int] = {}
    into = disk._read_into

    def counted(view: memoryview, descriptor: int, offset: int, path: Path) -> None:
        read[path] = read.get(path, 0) + len(view)
        into(view, descriptor, offset, path)

    monkeypatch.setattr(disk, "_read_into", counted)
    unet = weights.load_unet(opened, device="cpu")
    own_bytes = sum(p.numel() * 4 for p in unet.parameters())
    assert len(read) == 2
    for path, size_bytes in read.items():
        header_bytes = 8 + int.from_bytes(path.read_bytes()[:8], "little")
        assert size_bytes == header_bytes + own_bytes


@pytest.mark.parametrize("threads", [1, 3])
def test_memory_holds_the_sum_and_one_more(
    folders: list[Path], monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    """When a tensor is read, no other that was read is alive but the sum so far (the first, summed in its memory).

    So it is for each of the threads that load side by side, which are as many as torch has, and leave it so many. Whole
    tensors are read for a GPU; here on a CPU, in place of blocks.
    """
    monkeypatch.setattr(fill, "_by_blocks", lambda feed, made: made.copy_(feed[0].read(feed[1])))
    alive: list[Any] = []
    most = 0
    met, together = threading.local(), threading.Barrier(threads)
    read = tensorfile.SafetensorsFile.read

    def watched(self: Any, name: str, rows: Any = None) -> Tensor:
        nonlocal most
        if not hasattr(met, "others"):  # a thread's first: all of them are at work, or this breaks
            met.others = together.wait(timeout=20)
        found = read(self, name, rows)
        most = max(most, 1 + sum(one() is not None for one in alive))
        alive.append(weakref.ref(found))
        return found

    monkeypatch.setattr(tensorfile.SafetensorsFile, "read", watched)
    merged = named(*zip(folders, (0.5, 0.25, 0.25), strict=True))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        unet = weights.load_unet(merged, device="cpu", dtype="bf16")  # what is kept is a copy
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert len(alive) == 3 * len(unet.state_dict())
    assert most == 2 if threads == 1 else 2 <= most <= 2 * threads


def test_by_blocks_memory_holds_one_of_each_file(
    folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fill, "_BLOCK", 64)
    read, open_now, most = tensorfile.read_blocks, 0, 0

    def watched(*place: Any) -> Iterator[Tensor]:
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        for block in read(*place):
            assert block.untyped_storage().nbytes() <= 64 * block.element_size()
            yield block
        open_now -= 1

    monkeypatch.setattr(tensorfile, "read_blocks", watched)
    monkeypatch.setattr(tensorfile.SafetensorsFile, "read", None)  # no tensor is read whole
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        weights.load_unet(named(*zip(folders, (0.5, 0.25, 0.25), strict=True)), device="cpu", dtype="bf16")
    finally:
        torch.set_num_threads(before)
    assert (open_now, most) == (0, 3)


# Recipes.


def test_gen_and_from(here: Path, folders: list[Path]) -> None:
    words = ["gen", "-p", "a red cube", "--size", "64x64", "--steps", "2", "--seed", "3"]
    text = named((folders[0], 0.6), (folders[1], 0.4))
    [path] = command(*words, "--model", text).ok().lines
    found = recipe.read(path)
    assert found["picture"]["merge"] == [0.6, 0.4]
    assert found["made"]["model"] == {"name": text, "kind": "merge", "revision": None}
    for k, prefix in ((0, ""), (1, "merged 2/")):
        for name, digest in weights.hashes(folders[k], *NETWORKS).items():
            assert found["picture"]["weights"][prefix + name] == digest
    [again] = command("gen", "--from", path).ok().lines
    assert recipe.read(again)["id"] == found["id"]
    assert np.array_equal(pixels(again), pixels(path))
    [other] = command(*words, "--model", named((folders[0], 0.5), (folders[1], 0.5))).ok().lines
    assert recipe.read(other)["id"] != found["id"]
    assert not np.array_equal(pixels(other), pixels(path))
    [single] = command("gen", "--from", path, "--model", folders[0]).ok().lines
    assert "merge" not in recipe.read(single)["picture"]


def test_from_refuses_a_changed_source(here: Path, folders: list[Path]) -> None:
    mine = shutil.copytree(folders[1], here / "mine")
    words = ["gen", "-p", "a", "--size", "64x64", "--steps", "1", "--seed", "3"]
    [path] = command(*words, "--model", named((folders[0], 0.6), ("mine", 0.4))).ok().lines
    shutil.rmtree(mine)
    shutil.copytree(folders[2], mine)
    done = command("gen", "--from", path)
    assert done.code == 4
    assert "merged 2/" in done.error


def test_a_hubs_model_first(
    here: Path, folders: list[Path], served: SmallHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its commit is not the sum's, and its picture is made again without one."""
    monkeypatch.setenv("HF_ENDPOINT", served.url)
    monkeypatch.setenv("HF_HUB_CACHE", str(here / "cache"))
    words = ["gen", "-p", "a", "--size", "64x64", "--steps", "1", "--seed", "3"]
    [path] = command(*words, "--model", named(("owner/small", 0.6), (folders[1], 0.4))).ok().lines
    found = recipe.read(path)
    assert found["made"]["model"]["revision"] is None
    [again] = command("gen", "--from", path).ok().lines
    assert recipe.read(again)["id"] == found["id"]


def test_saved_and_resumed(folders: list[Path], tmp_path: Path) -> None:
    model = load(named((folders[0], 0.6), (folders[1], 0.4)))
    options: dict[str, Any] = {"size": (64, 64), "steps": 3, "seed": 3, "say": silent}
    whole, half = model.prepare("a red cube", **options), model.prepare("a red cube", **options)
    list(whole)
    next(half)
    half.save(tmp_path / "half.run")
    resumed = model.resume(tmp_path / "half.run", say=silent)
    list(resumed)
    assert torch.equal(resumed.latents, whole.latents)
    other = load(named((folders[0], 0.5), (folders[1], 0.5)))
    with pytest.raises(InputError, match=r"differs in merge: merge\[0\] is 0.6 in the file and 0.5 now"):
        other.resume(tmp_path / "half.run", say=silent)


# What is refused.


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("merge:a@0.6+b@0.5", "add up to 1.1, expected 1; write =1.1 behind it if you mean that"),
        ("merge:a@0.6+b@0.6=1.3", "add up to 1.2, expected 1.3"),
        ("merge:a@1", "expected two sources or more"),
        ("merge:a@0.5+b@0.5+", "expected two sources or more"),
        ("merge:", "expected two sources or more"),
        ("merge:a+b", "'a\\+b' has no weight"),
        ("merge:a@0.5+b", "'b' has no weight"),
        ("merge:a@0.5+b@half", "'b@half' has no weight"),
        ("merge:a@nan+b@1", "'nan' is no weight"),
        ("merge:a@1e999+b@1", "add up to inf, expected 1$"),
        ("merge:a@1e999+b@-1e999", "add up to nan, expected 1$"),
        ("merge:a@1e308+b@1e308", "add up to inf"),
        ("merge:a@0.5+merge:b@0.5", "a merge in a merge"),
    ],
)
def test_words_that_make_no_merge(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        parse(text)
    assert "\n" not in str(caught.value)


def test_names_that_no_file_could_have() -> None:
    """Together longer than a file's name may be."""
    with pytest.raises(UsageError, match="is no file and no folder"):
        weights.open_source(named(("a" * 150, 0.5), ("b" * 150, 0.5)))


def test_words() -> None:
    assert parse("merge:a@0.6+b@0.4") == [("a", 0.6), ("b", 0.4)]
    assert parse("merge:a@.5+b@5e-1") == [("a", 0.5), ("b", 0.5)]
    assert parse("merge:a+b@2#ema@0.5+c@d@0.5") == [("a+b@2#ema", 0.5), ("c@d", 0.5)]
    assert parse("merge:models@v2+x/a@0.6+b@0.4") == [("models@v2+x/a", 0.6), ("b", 0.4)]
    assert parse("merge:a@0.7+b@0.5=1.2") == [("a", 0.7), ("b", 0.5)]
    assert parse("merge:a@1+b@1+c@-1") == [("a", 1.0), ("b", 1.0), ("c", -1.0)]


def test_a_sum_that_is_said_is_taken(folders: list[Path], models: list[Model]) -> None:
    found = load(named((folders[0], 0.7), (folders[1], 0.5)) + "=1.2").unet.conv_in.weight
    terms = [model.unet.conv_in.weight for model in models]
    assert torch.allclose(found, 0.7 * terms[0] + 0.5 * terms[1], rtol=1e-6, atol=1e-6)


def changed(folder: Path, path: Path, part: str, **config: Any) -> Path:
    shutil.copytree(folder, path)
    file = path / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    return path


def test_other_keys_and_shapes(folders: list[Path], tmp_path: Path) -> None:
    deep = small_folder(tmp_path / "deep", nets=(), shape="deep")
    with pytest.raises(WeightsError, match=r"deep.* tensors missing|that UNet2DConditionModel does not have"):
        load(named((folders[0], 0.5), (deep, 0.5)))
    wide = small_folder(tmp_path / "wide", nets=(), text={"intermediate_size": 128})
    with pytest.raises(WeightsError, match=r"wide.*fc1.* has shape \(128,.*expected \(64,"):
        load(named((folders[0], 0.5), (wide, 0.5)))


@pytest.mark.parametrize(
    ("part", "config", "words"),
    [
        ("unet", {"attention_head_dim": 8}, "its unet has attention_head_dim=8, expected 4"),
        ("text_encoder", {"hidden_act": "gelu"}, "its text_encoder has hidden_act=gelu, expected quick_gelu"),
        ("vae", {"scaling_factor": 0.3}, "its vae has scaling_factor=0.3, expected 0.18215"),
        ("scheduler", {"prediction_type": "v_prediction"}, r"predict differs \(epsilon, v_prediction\)"),
    ],
)
def test_the_same_shapes_of_another_family(
    folders: list[Path], tmp_path: Path, part: str, config: dict[str, Any], words: str
) -> None:
    """Which would merge without a complaint and draw nothing good."""
    other = changed(folders[1], tmp_path / "other", part, **config)
    with pytest.raises(WeightsError, match=words) as caught:
        load(named((folders[0], 0.5), (other, 0.5)))
    assert caught.value.exit_code == 4


def test_faults_on_the_command_line(here: Path, folders: list[Path]) -> None:
    for text, code in (
        (named((folders[0], 0.6), (folders[1], 0.5)), 2),
        (named((folders[0], 0.5), ("./none", 0.5)), 4),
    ):
        done = command("gen", "-p", "a", "--model", text, "--dry-run")
        assert (done.code, done.out) == (code, "")
        assert done.error
    with pytest.raises(UsageError, match="revision x: of a merge"):
        weights.open_source(named((folders[0], 0.5), (folders[1], 0.5)), revision="x")


def test_a_net_is_none(here: Path, model: Path) -> None:
    """Else the first would be taken for the sum."""
    depth_map(here / "room.png", (64, 64))
    net = model / "controlnet_depth"
    words = ["gen", "-p", "a", "--depth", "room.png", "--net", f"depth={named((net, 0.5), (net, 0.5))}"]
    done = command(*words, "--dry-run")
    assert done.code == 2
    assert "a merge is of whole models" in done.error


def test_a_broken_value_is_named_with_its_file(folders: list[Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    other = shutil.copytree(folders[1], tmp_path / "other")
    file = other / "unet" / "diffusion_pytorch_model.safetensors"
    held = load_file(file)
    held["conv_in.bias"][0] = float("nan")
    save_file(held, file, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"other/unet/.*'conv_in\.bias' holds NaN"):
        load(named((folders[0], 0.5), (other, 0.5)))
