"""Less memory: guidance's halves in turn, a stage on the device at a time, the VAE in tiles, and how it is told."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rawdiff import images
from rawdiff.decode import decode
from rawdiff.errors import ResourceError, UsageError
from rawdiff.graphs import EAGER, Frugal, Graphs, make_runner
from rawdiff.nets import calls, tiles, vae
from rawdiff.nets.memory import least_bytes
from tests.cli_run import rawdiff
from tests.exact_cases import BOUND, NOTHING, Case, error, randn
from tests.small_models import small_vae
from tests.small_runs import finished, prepared
from tests.test_cli_errors import QUICK, workshop

CPU, META = torch.device("cpu"), torch.device("meta")


@pytest.mark.parametrize(
    "options",
    [
        {"nets": 2, "guidance": [3.0, 5.0], "hints": 2},
        {"nets": 2, "guess": True},
        {"nets": 2, "pooled": True},
    ],
    ids=["a batch", "guess mode", "a net that pools"],
)
def test_halves_in_turn(options: dict[str, Any]) -> None:
    case = Case(shape="plain", **options)
    sizes: set[int] = set()
    handle = case.unet.conv_out.register_forward_hook(lambda m, args, out: sizes.add(len(args[0])))
    for exact in ((), (NOTHING,)):
        ours, theirs = (case.prepared(*exact, runner=runner) for runner in (Frugal(CPU), EAGER))
        for row in case.plan.rows:
            x = randn(case.batch, 4, *case.size, seed=row.index)
            sizes.clear()
            found = ours(x, row)
            assert sizes == {case.batch}
            expected = theirs(x, row)
            assert error(found.guided, expected.guided) <= BOUND
            assert error(found.uncond, found.cond) > 100 * BOUND
            for one, other in zip(found.control, expected.control, strict=True):
                assert (one is None) == (other is None)
                for a, b in (
                    zip((*one.skips, one.middle), (*other.skips, other.middle), strict=True) if one else ()
                ):
                    assert a.shape == b.shape
                    assert error(a, b) <= BOUND
    handle.remove()


def test_a_stage_at_a_time() -> None:
    moves: list[tuple[str, str]] = []
    names = {torch.nn.Linear(1, 1): name for name in ("text", "unet", "net", "vae")}
    runner = Frugal(META, move=lambda net, device: moves.append((names[net], device.type)))
    text, unet, net, vae = names
    runner.keep(names)
    assert sorted(moves) == [(name, "cpu") for name in ("net", "text", "unet", "vae")]
    for stage, expected in (
        ([text], [("text", "meta")]),
        ([unet, net], [("text", "cpu"), ("net", "meta"), ("unet", "meta")]),
        ([unet, net], []),
        ([unet], [("net", "cpu")]),
        ([vae], [("unet", "cpu"), ("vae", "meta")]),
    ):
        moves.clear()
        runner.stage(stage)
        assert sorted(moves, key=lambda move: (move[1], move[0])) == expected


def test_a_stage_that_does_not_arrive_is_put_away_again() -> None:
    """Out of memory half way: what did arrive does not stay on the device."""
    moves: list[tuple[str, str]] = []
    names = {torch.nn.Linear(1, 1): name for name in ("text", "unet")}

    def move(net: torch.nn.Module, device: torch.device) -> None:
        moves.append((names[net], device.type))
        if moves[-1] == ("unet", "meta"):
            raise MemoryError("half way")

    runner = Frugal(META, move=move)
    text, unet = names
    runner.keep(names)
    with pytest.raises(MemoryError):
        runner.stage([unet])
    moves.clear()
    runner.stage([text])
    assert moves == [("unet", "cpu"), ("text", "meta")]


def test_starts_cover_a_side() -> None:
    for length in (1, 63, 64, 65, 111, 112, 113, 128, 200):
        found = tiles.starts(length, 64, 16)
        assert found[0] == 0
        assert found[-1] == max(0, length - 64)
        assert all(0 < b - a <= 48 for a, b in pairwise(found))


def test_tiles() -> None:
    """Of one tile exact; of several each place is a mean of the tiles over it, and no seam is left out."""
    model = small_vae(3)
    with torch.no_grad():
        small, large = randn(1, 4, 8, 6), randn(2, 4, 22, 30)
        whole = vae.decode(model, small)
        assert torch.equal(tiles.decode_tiled(lambda x: vae.decode(model, x), small, 8, 4), whole)
        found = tiles.decode_tiled(lambda x: vae.decode(model, x), large, 16, 8)
    assert found.shape == (2, 3, 176, 240)
    positions = torch.arange(22.0)[:, None] * 100 + torch.arange(30.0)
    places = positions.expand(1, 1, 22, 30)

    def enlarged(x: Tensor) -> Tensor:
        return x.repeat_interleave(8, 2).repeat_interleave(8, 3)

    assert torch.allclose(tiles.decode_tiled(enlarged, places, 16, 8), enlarged(places), rtol=1e-6)


def test_a_large_picture_in_tiles_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "TILE", 8)
    monkeypatch.setattr(tiles.decode_tiled, "__defaults__", (8, 4))
    model, said = small_vae(3), list[str]()
    latents = randn(2, 4, 12, 8)
    whole = decode(model, latents, say=said.append)
    fits = latents[:, :, :8]
    assert torch.equal(decode(model, fits, runner=Frugal(CPU), say=said.append), decode(model, fits))
    assert said == []
    tiled = decode(model, latents, runner=Frugal(CPU), say=said.append)
    assert said == ["decoding 64x96 in tiles, approximate where they meet"]
    assert tiled.shape == whole.shape
    assert not torch.equal(tiled, whole)


@pytest.mark.parametrize("runner", [EAGER, Graphs(CPU)], ids=["eager", "graphs"])
def test_memory_that_gives_out_in_the_vae(monkeypatch: pytest.MonkeyPatch, runner: Any) -> None:
    monkeypatch.setattr(tiles, "TILE", 8)
    monkeypatch.setattr(tiles.decode_tiled, "__defaults__", (8, 4))
    original = calls.DecodePicture.__call__
    limit = [8 * 8]

    def limited(self: Any, latents: Tensor) -> Tensor:
        if latents.shape[2] * latents.shape[3] > limit[0]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, latents)

    model, said, latents = small_vae(3), list[str](), randn(1, 4, 12, 8)
    expected = decode(model, latents, runner=Frugal(CPU), say=lambda line: None)
    monkeypatch.setattr(calls.DecodePicture, "__call__", limited)
    assert torch.equal(decode(model, latents, runner=runner, say=said.append), expected)
    assert said == [
        "out of memory in the VAE, decoding 64x96 whole: decoding in tiles, approximate where they meet"
    ]
    limit[0] = 0
    with pytest.raises(
        ResourceError, match="out of memory on cpu in the VAE, decoding 64x96: take a smaller size"
    ):
        decode(model, latents, runner=runner, say=said.append)


def test_the_bound_knows_less_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    unet = {"block_out_channels": [320, 640], "layers_per_block": 2}
    network = {"block_out_channels": [128, 256]}
    needed = [least_bytes(unet, network, (1024, 1024), 1, 2, low=low) for low in (False, True)]
    assert needed[0] == 4 * needed[1]  # a tile of 512x512
    assert least_bytes(unet, {}, (512, 512), 9, 2) == 2 * least_bytes(unet, {}, (512, 512), 9, 2, low=True)


def test_the_front_door() -> None:
    import rawdiff as package
    from tests.reference import silent

    ends = []
    for memory in ("normal", "low"):
        model = package.load(memory=memory, say=silent)
        run = finished(prepared(model, depth=torch.linspace(0, 1, 40).expand(48, 40), watch=()))
        run.image()
        ends.append(run.latents)
    assert error(*ends) <= 10 * BOUND
    with pytest.raises(UsageError, match="memory 'small': expected normal or low"):
        make_runner(None, CPU, "small")
    with pytest.raises(
        UsageError, match="speed compile with memory low: recorded work takes memory: leave one"
    ):
        make_runner("compile", CPU, "low")


def test_runs_from_before_memory_is_saved_refuse_to_go_on() -> None:
    import rawdiff as package
    from tests.reference import silent

    model = package.load(say=silent)
    run = prepared(model, size=(64, 64), steps=2)
    next(run)
    model.save_memory()
    with pytest.raises(UsageError, match="its networks were put away: prepare it again"):
        next(run)
    finished(prepared(model, size=(64, 64), steps=2))


def test_the_command_goes_on_with_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two at once, one, then one in less memory; the picture is that of a run with memory enough."""
    tried: list[tuple[int, bool]] = []
    draw = workshop.Workshop._draw

    def limited(self: Any, model: Any, job: Any, first: int, count: int, *rest: Any) -> Any:
        tried.append((count, model.runner.frugal))
        if not model.runner.frugal:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return draw(self, model, job, first, count, *rest)

    monkeypatch.setattr(workshop.Workshop, "_draw", limited)
    done = rawdiff("gen", "-p", "x", *QUICK, "--seed", "1", "--count", "2", "--batch", "2").ok()
    assert tried == [(2, False), (1, False), (1, True), (1, True)]
    assert "out of memory at 64x64: going on with memory low, which is slower" in done.err
    assert len(done.lines) == 2


def test_tiles_are_in_the_recipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of the same picture by its id: they move pixels a little, and `--from` says so."""
    monkeypatch.setattr(tiles, "TILE", 8)
    monkeypatch.setattr(tiles.decode_tiled, "__defaults__", (8, 4))
    monkeypatch.setattr(tiles.encode_tiled, "__defaults__", (8, 4))
    monkeypatch.chdir(tmp_path)
    words = ("gen", "-p", "x", "--steps", "2", "--size", "96x64", "--seed", "1")
    whole, low = (rawdiff(*words, "--memory", memory).ok().lines[0] for memory in ("normal", "low"))
    told = [images.read_recipe(path) for path in (whole, low)]
    assert told[0]["id"] == told[1]["id"]
    assert told[0]["made"]["pixels"] != told[1]["made"]["pixels"]
    assert ["tiles" in one["made"] for one in told] == [False, True]
    assert told[1]["made"]["tiles"] == "vae"
    assert "in tiles, approximate where they meet" in rawdiff("info", low).ok().out
    line = "went through the VAE in tiles, for want of memory: pixels may differ by a few grey levels, unless"
    again = rawdiff("gen", "--from", low).ok()
    assert again.err.count(line) == 1
    assert images.read_recipe(again.lines[0])["made"]["pixels"] == told[0]["made"]["pixels"]
    again = rawdiff("gen", "--from", low, "--memory", "low").ok()
    assert line not in again.err
    assert images.read_recipe(again.lines[0])["made"]["pixels"] == told[1]["made"]["pixels"]
    assert line not in rawdiff("gen", "--from", whole).ok().err


def test_a_picture_encoded_in_tiles_is_in_the_recipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import rawdiff as package
    from tests.reference import silent

    monkeypatch.setattr(tiles, "TILE", 8)
    monkeypatch.setattr(tiles.encode_tiled, "__defaults__", (8, 4))
    model = package.load(memory="low", say=silent)
    run = prepared(model, image=torch.linspace(0, 1, 96).expand(3, 64, 96), size=(64, 96), steps=2)
    next(run)
    again = model.resume(run.save(tmp_path / "half.run"), say=silent)
    model.runner.frugal = False  # the decoder's tiles are another matter
    for one in (run, again):
        path = finished(one).save_image(tmp_path / "x.png", overwrite=True)
        assert images.read_recipe(path)["made"]["tiles"] == "vae"


def test_words_of_the_command() -> None:
    refused = rawdiff("gen", "-p", "x", *QUICK, "--speed", "graph")
    assert refused.code == 2
    assert "speed graph: CUDA graphs need a GPU, and this runs on cpu: take eager" in refused.err
    assert rawdiff("gen", "-p", "x", *QUICK, "--memory", "tiny").code == 2
    assert rawdiff("gen", "-p", "x", *QUICK, "--memory", "low", "--speed", "eager", "--dry-run").ok()
