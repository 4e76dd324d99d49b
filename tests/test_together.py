"""What runs share when they have several things at once: LoRAs, masks, graphs, little memory, models in one file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import rawdiff as package
from rawdiff import Model, Run
from rawdiff.encode import encode
from rawdiff.errors import UsageError, WeightsError
from rawdiff.graphs import EAGER, Frugal, Graphs
from rawdiff.nets import tiles
from rawdiff.weights.choose import read_json
from rawdiff.weights.single import FAMILIES
from rawdiff.weights.vocabulary import build_tokenizer
from tests.checkpoints import small_checkpoint
from tests.checkpoints import write as write_checkpoint
from tests.lora_files import Changes, Networks, State, kohya, product, random_changes, same, state, write
from tests.reference import END, error, hint, silent
from tests.small_models import TEXT_WIDTH, small_folder, small_vae
from tests.small_runs import finished, prepared

CPU = torch.device("cpu")
SIZE = (48, 40)
PICTURE: dict[str, Any] = {
    "image": hint(SIZE, 2),
    "mask": np.pad(np.ones((24, 24), np.float32), ((8, 16), (8, 8))),
    "steps": 3,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_folder(tmp_path_factory.mktemp("model") / "small", nets=("depth",), inpaint=True)


@pytest.fixture(scope="module")
def whole(folder: Path) -> Model:
    return package.load(folder, device="cpu")


@pytest.fixture
def model(whole: Model) -> Iterator[Model]:
    """Whatever a test did: with LoRAs taken off every weight is what it was, to the bit."""
    pristine = weights(whole)
    yield whole
    whole.runner = EAGER
    whole.put_on(whole.unet, ())
    assert same(weights(whole), pristine)


def networks(model: Model, *, masked: bool) -> Networks:
    return {"unet": model.unet_for(masked=masked), "text_encoder": model.text_encoder}


def weights(model: Model) -> State:
    return state({**networks(model, masked=True), "own unet": model.unet})


@pytest.fixture(scope="module")
def changes(whole: Model) -> list[Changes]:
    """One of attention alone and one of every layer that both UNets have alike, convolutions too."""
    nets = networks(whole, masked=True)
    return [random_changes(nets, 1), random_changes(nets, 2, layers=r"^(?!conv_in)", strength=0.1)]


@pytest.fixture(scope="module")
def loras(changes: list[Changes], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("loras")
    return [write(folder / f"{k}.safetensors", kohya(one)) for k, one in enumerate(changes)]


def merged_by_hand(model: Model, changes: Changes, scale: float) -> Model:
    """A model whose inpainting UNet and text encoder have the products added by plain arithmetic."""
    other = package.load(model.source, device="cpu")
    nets = networks(other, masked=True)
    with torch.no_grad():
        for (part, name), change in changes.items():
            layer = nets[part].get_submodule(name)
            layer.weight += scale * change.scale * product(change).reshape(layer.weight.shape)
    return other


def in_turns(*runs: Run) -> list[Tensor]:
    """The ends of runs that take turns at every step."""
    left = [iter(run) for run in runs]
    while left:
        left = [run for run in left if next(run, None) is not None]
    return [run.latents for run in runs]


# ---- a mask and LoRAs


@pytest.mark.parametrize("k", [0, 1], ids=["attention", "every layer"])
def test_loras_act_on_the_unet_that_a_mask_takes(
    model: Model, changes: list[Changes], loras: list[Path], k: int
) -> None:
    run = prepared(model, loras=[(loras[k], 0.8)], **PICTURE)
    ours = finished(run).latents
    theirs = finished(prepared(merged_by_hand(model, changes[k], 0.8), **PICTURE)).latents
    assert error(ours, theirs) <= END
    assert error(ours, finished(prepared(model, **PICTURE)).latents) >= 100 * END
    assert any(name.startswith("unet_inpaint/") for name in run.recipe["weights"])
    assert [one["name"] for one in run.recipe["loras"]] == [str(loras[k])]


def test_runs_with_and_without_masks_take_turns(model: Model, loras: list[Path]) -> None:
    """Each has its LoRA in its own UNet, and the text encoder that they share holds one at a time."""

    def runs() -> list[Run]:
        return [
            prepared(model, loras=[loras[0]], **PICTURE),
            prepared(model, loras=[loras[1]], steps=3),
            prepared(model, **PICTURE),
            prepared(model, loras=[(loras[1], -0.5)], steps=3),
        ]

    straight = [finished(run).latents for run in runs()]
    for ours, expected in zip(in_turns(*runs()), straight, strict=True):
        assert torch.equal(ours, expected)
    assert error(straight[0], straight[2]) >= 100 * END
    assert error(straight[1], straight[3]) >= 100 * END


def test_one_that_changes_the_first_convolution_fits_one_unet(model: Model, tmp_path: Path) -> None:
    """The only layer that is not alike."""
    path = write(
        tmp_path / "x.safetensors", kohya(random_changes(networks(model, masked=False), 3, layers="^conv_in"))
    )
    finished(prepared(model, loras=[path], steps=1))
    with pytest.raises(WeightsError, match="conv_in"):
        prepared(model, loras=[path], **PICTURE)


def test_loras_put_on_by_hand_are_told_with_a_mask_too(model: Model, loras: list[Path]) -> None:
    from rawdiff.weights import read_lora

    run = prepared(model, **PICTURE)
    model.adapters.set([(read_lora(loras[0]), 1.0)])
    with pytest.raises(UsageError, match=r"changed by hand .*: call model\.adapters\.clear\(\)"):
        next(run)
    model.adapters.clear()
    finished(run)


def test_a_masked_run_with_loras_resumes_to_the_bit(model: Model, loras: list[Path], tmp_path: Path) -> None:
    run = prepared(model, loras=[(loras[1], 0.5)], **PICTURE)
    next(run)
    path = run.save(tmp_path / "half.run")
    other = package.load(model.source, device="cpu").resume(path, say=silent)
    assert torch.equal(finished(other).latents, finished(run).latents)
    assert np.array_equal(np.asarray(other.image()), np.asarray(run.image()))


# ---- graphs


@pytest.mark.parametrize("picture", [{}, PICTURE], ids=["noise", "mask"])
def test_loras_change_under_graphs(model: Model, loras: list[Path], picture: dict[str, Any]) -> None:
    """Recorded work reads the weights where they are, and what was computed from them follows: nothing is anew."""
    options = {"depth": torch.linspace(0, 1, 40).expand(48, 40), "steps": 3, **picture}
    sets: list[list[Any]] = [[(loras[0], 0.8)], [(loras[1], 0.7), loras[0]], []]

    def runs() -> list[Run]:
        return [prepared(model, loras=one, **options) for one in sets]

    eager = [finished(run).latents for run in runs()]
    model.runner = graphs = Graphs(CPU)
    first = finished(runs()[0]).latents
    recorded = len(graphs)
    assert torch.equal(first, eager[0])
    for ours, expected in zip(in_turns(*runs()), eager, strict=True):
        assert torch.equal(ours, expected)
    assert len(graphs) == recorded
    assert all(error(eager[0], other) >= 100 * END for other in eager[1:])


def test_a_picture_is_encoded_and_decoded_by_graphs(model: Model) -> None:
    eager = finished(prepared(model, **PICTURE))
    expected = np.asarray(eager.image())
    model.runner = Graphs(CPU)
    for _ in range(2):
        run = finished(prepared(model, **PICTURE))
        assert torch.equal(run.latents, eager.latents)
        assert np.array_equal(np.asarray(run.image()), expected)


# ---- little memory


def test_a_mask_and_loras_in_little_memory(folder: Path, model: Model, loras: list[Path]) -> None:
    """One stage at a time on the device, the inpainting UNet too; the picture is the same."""
    low = package.load(folder, device="cpu", memory="low")
    moved: list[tuple[Any, torch.device]] = []
    low.runner = Frugal(CPU, move=lambda net, device: moved.append((net, device)))
    options: dict[str, Any] = {"loras": [(loras[1], 0.5)], **PICTURE}
    ours, normal = finished(prepared(low, **options)), finished(prepared(model, **options))
    assert error(ours.latents, normal.latents) <= END
    difference = np.asarray(ours.image()).astype(int) - np.asarray(normal.image()).astype(int)
    assert np.abs(difference).max() <= 1
    assert {id(net) for net, _ in moved} >= {id(low.unet_for(masked=True)), id(low.vae), id(low.text_encoder)}


def test_memory_that_gives_out_takes_the_inpainting_unet_along(folder: Path) -> None:
    model = package.load(folder, device="cpu")
    prepared(model, **PICTURE)
    model.save_memory()
    assert model.runner.frugal
    moved: list[Any] = []
    model.runner._move = lambda net, device: moved.append(net)  # type: ignore[attr-defined]
    model.runner.stage([model.vae])
    model.runner.stage([model.unet_for(masked=True)])
    assert [id(net) for net in moved] == [id(model.vae), id(model.vae), id(model.unet_for(masked=True))]


def test_a_large_picture_is_encoded_in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "TILE", 8)
    monkeypatch.setattr(tiles.encode_tiled, "__defaults__", (8, 4))
    vae, said = small_vae(3), list[str]()
    picture = torch.rand(1, 3, 96, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    fits = picture[:, :, :64]
    for ours, theirs in zip(
        encode(vae, fits, runner=Frugal(CPU), say=said.append)[:2], encode(vae, fits)[:2], strict=True
    ):
        assert torch.equal(ours, theirs)
    assert said == []
    tiled, plain = encode(vae, picture, runner=Frugal(CPU), say=said.append), encode(vae, picture)
    assert said == ["encoding 64x96 in tiles, approximate where they meet"]
    assert tiled.mean.shape == plain.mean.shape == tiled.spread.shape
    assert not torch.equal(tiled.mean, plain.mean)
    assert (tiled.tiled, plain.tiled) == (True, False)
    assert float(tiled.spread.min()) > 0


def test_tiles_of_what_sees_no_neighbours_are_the_whole() -> None:
    """Every tile is put where it belongs."""

    def pooled(x: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(x, 8)

    picture = torch.rand(2, 3, 136, 200, generator=torch.Generator().manual_seed(2))
    assert torch.allclose(tiles.encode_tiled(pooled, picture, 8, 4), pooled(picture), rtol=1e-5)


# ---- a model in one file


def test_loras_of_a_model_in_one_file(folder: Path, model: Model, loras: list[Path], tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "model.safetensors", small_checkpoint())
    single = package.load(f"{path}#config={folder}", device="cpu", say=silent)
    options: dict[str, Any] = {"loras": [(loras[1], 0.7)], "steps": 2, "guidance": 4.0}
    ours = finished(prepared(single, **options)).latents
    assert torch.equal(ours, finished(prepared(model, **options)).latents)
    assert error(ours, finished(prepared(single, steps=2, guidance=4.0)).latents) >= 100 * END


def test_triggers_are_words_of_the_bundled_tokenizer(tmp_path: Path) -> None:
    """CLIP's own, which a model in one file has: each vector is a number of its own behind the table."""
    from rawdiff.vocabulary import add_words, unused
    from rawdiff.weights import read_embedding

    held = torch.randn(2, TEXT_WIDTH, generator=torch.Generator().manual_seed(1))
    save_file({"<zorb>": held}, tmp_path / "zorb.safetensors")
    tokenizer = build_tokenizer(read_json(FAMILIES / "sd1" / "tokenizer" / "tokenizer_config.json"))
    words = add_words(tokenizer, [read_embedding(tmp_path / "zorb.safetensors")], TEXT_WIDTH, 77)
    assert words.start == 49408
    assert words.numbers("a <zorb> cube") == [49406, 320, 49408, 49409, 11353, 49407]
    assert list(unused((words, words.numbers("a <zorb>")))) == []
    assert len(list(unused((words, words.numbers("a zorb"))))) == 1
