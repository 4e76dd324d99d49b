"""Backend openvino: what torch says, step by step and in the picture; converted once, whatever the weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rawdiff
from rawdiff import Model, recipe
from rawdiff.autoencoder import DECODE, run_vae
from rawdiff.errors import WeightsError
from rawdiff.geometry import FACTOR
from rawdiff.nets import calls
from rawdiff.openvino import OpenVino, Store, version
from rawdiff.plan import Window, make_plan
from rawdiff.predict import Exact
from rawdiff.probes import NO_PROBE
from rawdiff.sampler import make_sampler
from tests.cli_run import pixels
from tests.cli_run import rawdiff as command
from tests.exact_cases import NOTHING, SHAPES, Case, error, randn
from tests.lora_files import kohya, random_changes, write
from tests.openvino_cases import STEP, apart, changed, needed, runner
from tests.reference import grey_levels, silent
from tests.small_models import small_folder, small_scheduler, small_vae

pytestmark = needed

MATTERS = 100 * STEP


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("converted") / "openvino")


@pytest.mark.parametrize(
    ("options", "exact"),
    [
        ({"nets": 2, "shape": "plain"}, Exact()),
        ({"nets": 1, "guidance": [3.0, 5.0], "hints": 2, **SHAPES["linear"]}, Exact()),
        ({"nets": 1, "guess": True, "shape": "plain"}, NOTHING),
        ({"nets": 1, "guidance": [1.0], "size": (9, 7), **SHAPES["topless"]}, Exact()),
    ],
    ids=["windows", "a batch", "guess mode, each step anew", "no guidance, odd sizes"],
)
def test_a_step_is_torchs(options: dict[str, Any], exact: Exact, store: Store) -> None:
    case = Case(**options)
    ours, theirs = case.prepared(exact, runner=runner(store)), case.prepared(exact)
    assert apart(case, ours, theirs) <= STEP
    without, x = Case(**{**options, "nets": 0}), randn(case.batch, 4, *case.size)
    bare = without.prepared(exact)(x, without.plan.rows[0]).guided
    assert error(ours(x, case.plan.rows[0]).guided, bare) > MATTERS


def test_one_conversion_for_all_sizes_and_every_run(store: Store) -> None:
    """Prompts, hints, steps, guidance, weights and windows are data; another size is compiled, not converted."""
    case, ours = Case(nets=1, shape="plain"), runner(store)
    assert apart(case, case.prepared(runner=ours), case.prepared()) <= STEP
    conversions, compilations = ours.conversions, ours.compilations
    assert compilations == len(ours) == 3
    other = Case(nets=1, shape="plain", hints=1)
    other.unet, other.nets = case.unet, case.nets
    other.plan = make_plan(
        make_sampler(small_scheduler("EulerDiscreteScheduler"), steps=4),
        guidance=[9.0],
        rescale=0.5,
        windows=[Window(-0.4)],
    )
    other.given = replace(other.given, hints=tuple(hint.flip(2) for hint in other.given.hints))
    assert apart(other, other.prepared(runner=ours), other.prepared()) <= STEP
    assert (ours.conversions, ours.compilations) == (conversions, compilations)
    larger = Case(nets=1, shape="plain", size=(11, 13))
    larger.unet, larger.nets = case.unet, case.nets
    assert apart(larger, larger.prepared(runner=ours), larger.prepared()) <= STEP
    assert (ours.conversions, ours.compilations) == (conversions, 2 * compilations)


def test_guidance_off_in_mid_run(store: Store) -> None:
    """Half as many rows are another form, converted and compiled by itself; back again nothing is."""
    case = Case(nets=1, shape="plain")
    alone = Case(nets=1, shape="plain", guidance=[1.0])
    alone.unet, alone.nets = case.unet, case.nets
    ours = runner(store)
    for _ in range(2):
        for one in (case, alone):
            assert apart(one, one.prepared(runner=ours), one.prepared(), slice(1)) <= STEP
    assert ours.compilations == len(ours) == 6


def test_a_second_run_converts_nothing_and_a_damaged_file_is_not_trusted(tmp_path: Path) -> None:
    case, vae, z = Case(shape="plain"), small_vae(5), randn(1, 4, 8, 6)
    kept = Store(tmp_path / "kept")
    first = runner(kept)
    truth = first(calls.DecodePicture(vae), z)
    assert error(truth, calls.DecodePicture(vae)(z)) <= STEP
    apart(case, case.prepared(runner=first), case.prepared(), slice(1))
    assert first.conversions == len(kept.sizes()) == 3
    again = runner(kept)
    apart(case, case.prepared(runner=again), case.prepared(), slice(1))
    assert torch.equal(again(calls.DecodePicture(vae), z), truth)
    assert (again.conversions, again.compilations) == (0, 3)

    for path in kept.sizes():
        whole = path.read_bytes()
        other = next(p for p in kept.sizes() if p != path).read_bytes()
        for damaged in (whole[:-1], whole[: len(whole) // 2], b"", other, whole[:-9] + b"x" + whole[-8:]):
            path.write_bytes(damaged)
            assert kept.get(path.stem) is None
    lines: list[str] = []
    healed = runner(kept, say=lines.append)
    assert torch.equal(healed(calls.DecodePicture(vae), z), truth)
    assert healed.conversions == 1
    assert lines[0].startswith("openvino: converted the VAE's decoder in ")
    assert runner(kept)(calls.DecodePicture(vae), z).equal(truth)


def test_a_folder_that_takes_no_files(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    lines: list[str] = []
    ours, vae, z = runner(Store(tmp_path / "file"), say=lines.append), small_vae(5), randn(1, 4, 8, 6)
    assert error(ours(calls.DecodePicture(vae), z), calls.DecodePicture(vae)(z)) <= STEP
    assert "not kept" in lines[0]


def test_weights_changed_in_place(store: Store) -> None:
    """A LoRA merged, or taken off: compiled anew, which is said, and not converted."""
    lines: list[str] = []
    case, ours = Case(nets=1, shape="plain"), runner(store, say=lines.append)
    predict = case.prepared(runner=ours)
    row, x = case.plan.rows[0], randn(1, 4, *case.size)
    before, converted = predict(x, row).guided, ours.conversions
    lines.clear()
    changed(case.unet)
    after = predict(x, row).guided
    assert error(after, case.prepared()(x, row).guided) <= STEP
    assert error(after, before) > MATTERS
    assert (ours.conversions, ours.compilations, len(ours)) == (converted, 5, 3)
    assert [line.split(" for its")[0] for line in lines] == [
        "openvino: compiled the UNet's first half",
        "openvino: compiled the UNet's second half",
    ]


def test_the_vae_both_ways_and_in_tiles(store: Store) -> None:
    vae, ours = small_vae(5), runner(store)
    for size in ((8, 6), (9, 7)):
        z, picture = randn(1, 4, *size), randn(1, 3, *(FACTOR * side for side in size))
        for call, given in ((calls.DecodePicture(vae), z), (calls.EncodePicture(vae), picture)):
            assert error(ours(call, given), call(given)) <= STEP
    assert ours.compilations == 4
    options: dict[str, Any] = {"say": silent, "probe": NO_PROBE}
    z = randn(2, 4, 6, 5)
    found, _ = run_vae(DECODE, vae, z, (48, 40), runner=ours, **options)
    assert error(found, calls.DecodePicture(vae)(z)) <= STEP


def test_the_oldest_are_let_go_of_but_none_that_is_at_work(store: Store) -> None:
    case = Case(nets=1, shape="plain")
    ours = runner(store, limit_bytes=1)
    assert apart(case, case.prepared(runner=ours), case.prepared()) <= STEP
    assert ours.compilations == len(ours) == 3  # not once a step
    ours.stage([])
    ours(calls.DecodePicture(small_vae(5)), randn(1, 4, 8, 6))
    assert len(ours) == 1


@pytest.mark.parametrize("shape", ["plain", "topless"])
def test_bf16_errs_as_torchs_does(shape: str, store: Store) -> None:
    """Against fp64, with weights that were rounded to bf16; at the bottom of the second are as many places as heads."""
    case = Case(nets=1, shape=shape)
    nets = [case.unet, *case.nets]
    for net in nets:
        net.bfloat16()
    rows, x = case.plan.rows[:1], randn(1, 4, *case.size)
    ours = case.prepared(runner=runner(store))(x, rows[0])
    theirs = case.prepared()(x, rows[0])
    assert ours.guided.dtype == torch.float32
    assert ours.control[0].middle.dtype == torch.bfloat16
    for net in nets:
        net.double()
    exact = case.prepared()(x.double(), rows[0]).guided
    assert error(ours.guided, exact) <= 1.5 * error(theirs.guided, exact)


def test_what_it_cannot_run_is_refused(store: Store) -> None:
    case = Case(**SHAPES["scale and shift"])
    with pytest.raises(
        WeightsError, match="'scale_shift', which backend openvino cannot compile: take backend"
    ):
        case.prepared(runner=runner(store))(randn(1, 4, *case.size), case.plan.rows[0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_folder(tmp_path_factory.mktemp("model") / "small", nets=("depth",))


def loaded(source: Any, monkeypatch: pytest.MonkeyPatch, store: Store, **options: Any) -> tuple[Model, Model]:
    """A model on openvino and one on torch."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(store.folder.parent))
    ours = rawdiff.load(source, backend="openvino", say=silent, **options)
    assert isinstance(ours.runner, OpenVino)
    return ours, rawdiff.load(source, say=silent, **options)


def test_a_picture_is_torchs(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: Store
) -> None:
    """With a ControlNet and a LoRA, and without; begun from a picture, through the encoder too."""
    ours, theirs = loaded(folder, monkeypatch, store)
    networks = {"unet": theirs.unet, "text_encoder": theirs.text_encoder}
    lora = write(tmp_path / "style.safetensors", kohya(random_changes(networks, 1, strength=1.0)))
    depth = torch.linspace(0, 1, 48 * 40).reshape(48, 40).numpy()
    options: dict[str, Any] = {"seed": 3, "steps": 4, "size": (48, 40), "say": silent}
    pictures = []
    for more in ({"depth": depth, "loras": [lora]}, {"depth": depth}, {}):
        found = []
        for model in (ours, theirs):
            run = model.prepare("a red cube", **options, **more)
            list(run)
            found.append((run.latents, run.image()))
        assert error(found[0][0], found[1][0]) <= 10 * STEP
        assert grey_levels(found[0][1], found[1][1]) <= 1
        pictures.append(found[0])
    for one, other in ((0, 1), (1, 2)):
        assert error(pictures[one][0], pictures[other][0]) > MATTERS
    again = [model.prepare("a cube", image=pictures[0][1], **options) for model in (ours, theirs)]
    for run in again:
        list(run)
    assert grey_levels(again[0].image(), again[1].image()) <= 1
    path = run_of(ours, options).save_image(tmp_path / "cube.png")
    assert recipe.read(path)["made"]["backend"].startswith("openvino 20")


def test_the_command(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: Store) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(store.folder.parent))
    words = ["gen", "-p", "a red cube", "--model", folder, "--size", "40x48", "--steps", "2", "--seed", "3"]
    told, made = [], []
    for name, backend in (("a", "openvino"), ("b", "openvino"), ("c", "torch")):
        path = tmp_path / f"{name}.png"
        told.append(command(*words, "--backend", backend, "-o", path).ok().err)
        made.append(recipe.read(path)["made"])
    assert "openvino: converted" not in told[1]
    assert np.array_equal(pixels(tmp_path / "a.png"), pixels(tmp_path / "b.png"))
    levels = pixels(tmp_path / "a.png").astype(int) - pixels(tmp_path / "c.png")
    assert np.abs(levels).max() <= 1
    assert made[0]["backend"] == made[1]["backend"] == f"openvino {version()}"
    assert "backend" not in made[2]
    by = [command("info", tmp_path / f"{name}.png").ok().lines[-1] for name in ("a", "c")]
    assert f", openvino {version()}; float32 on cpu" in by[0]
    assert "openvino" not in by[1]


def run_of(model: Model, options: dict[str, Any]) -> Any:
    run = model.prepare("a red cube", **options)
    list(run)
    return run


def test_the_embedded_model(monkeypatch: pytest.MonkeyPatch, store: Store) -> None:
    ours, theirs = loaded(None, monkeypatch, store, controls=["depth"])
    depth = torch.linspace(0, 1, 64 * 64).reshape(64, 64).numpy()
    pictures = []
    for model in (ours, theirs):
        run = model.prepare("a red cube on grass", depth=depth, size=(64, 64), seed=7, steps=4, say=silent)
        list(run)
        pictures.append((run.latents, run.image()))
    assert error(pictures[0][0], pictures[1][0]) <= 10 * STEP
    assert grey_levels(pictures[0][1], pictures[1][1]) <= 1
