"""Features of one evaluation reused at the next: how often the networks run, and that off is off."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import rawdiff as library
from rawdiff.errors import UsageError
from rawdiff.graphs import EAGER, Frugal, Graphs, Runner
from rawdiff.graphs.reusing import Reusing
from tests.small_models import small_folder
from tests.small_runs import DEPTH, finished, prepared


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> library.Model:
    return library.load(small_folder(tmp_path_factory.mktemp("model") / "small", nets=("depth",)))


def run_by(model: library.Model, runner: Runner, **options: Any) -> library.Run:
    own = copy.copy(model)
    own.runner = runner
    options = {"guidance": 4.0, "depth": DEPTH, "fit": "stretch", "sampler": "ddim", **options}
    return finished(prepared(own, **options))


def calls(model: library.Model, runner: Runner, **options: Any) -> tuple[int, int, int]:
    """How often the UNet's encoder, its decoder, and the ControlNet run in a run of five evaluations."""
    seen = [0, 0, 0]

    def count(k: int) -> Any:
        def hook(*given: Any) -> None:
            seen[k] += 1

        return hook

    places = (model.unet.conv_in, model.unet.conv_out, model.net("depth").conv_in)
    hooks = [place.register_forward_hook(count(k)) for k, place in enumerate(places)]
    try:
        run_by(model, runner, **options)
    finally:
        for hook in hooks:
            hook.remove()
    return seen[0], seen[1], seen[2]


def test_first_halves_run_at_every_so_many(loaded: library.Model) -> None:
    assert calls(loaded, EAGER) == (5, 5, 5)
    assert calls(loaded, Reusing(EAGER, 1)) == (5, 5, 5)
    assert calls(loaded, Reusing(EAGER, 2)) == (3, 5, 3)
    assert calls(loaded, Reusing(EAGER, 3)) == (2, 5, 2)


def test_another_half_of_guidance_is_no_reuse(loaded: library.Model) -> None:
    """Where guidance ends, what was said of both halves says nothing of one."""
    assert calls(loaded, Reusing(EAGER, 5), guidance_end=0.4) == (2, 5, 2)
    run_by(loaded, Reusing(EAGER, 2), guidance_end=0.4)


def test_at_every_evaluation_it_changes_nothing(loaded: library.Model) -> None:
    plain = run_by(loaded, EAGER)
    assert torch.equal(run_by(loaded, Reusing(EAGER, 1)).latents, plain.latents)
    other = run_by(loaded, Reusing(EAGER, 2))
    assert (other.latents - plain.latents).abs().max() > 1e-3


def test_residuals_are_added_once(loaded: library.Model) -> None:
    """The step that reuses is the decoder over what the step before it read, residuals added as then."""
    steps = [list(_steps(loaded, every)) for every in (1, 2)]
    assert torch.equal(steps[0][0].guided, steps[1][0].guided)
    close = (steps[0][1].guided - steps[1][1].guided).norm() / steps[0][1].guided.norm()
    again = (steps[0][0].guided - steps[1][1].guided).norm() / steps[0][1].guided.norm()
    assert 0 < close < 0.5
    assert again > 0  # with a time of its own


def _steps(model: library.Model, every: int) -> library.Run:
    own = copy.copy(model)
    own.runner = Reusing(EAGER, every)
    return prepared(own, guidance=4.0, depth=DEPTH, fit="stretch", sampler="ddim", steps=20)


def test_over_recorded_work_it_is_the_same(loaded: library.Model) -> None:
    """What a recording overwrites at its next replay, of another text too, is kept until it is asked for."""
    alternating = {"prompt": "[a red cube|the blue sphere]", "syntax": "a1111"}
    for every, options in ((2, {}), (3, alternating)):
        eager = run_by(loaded, Reusing(EAGER, every), **options).latents
        graphs = run_by(loaded, Reusing(Graphs(torch.device("cpu")), every), **options).latents
        assert (eager - graphs).abs().max() <= 1e-5 * eager.abs().max()


def test_it_says_what_computes() -> None:
    inner = Runner()
    inner.made_with = "another 1.0"
    assert Reusing(inner, 2).made_with == "another 1.0"
    inner.more_bytes = lambda nets: 7 * len(list(nets))
    assert Reusing(inner, 2).more_bytes([0, 0]) == 14


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(UsageError, match="memory low"):
        Reusing(Frugal(torch.device("cpu")), 2)
    for every in (0, -1, True, 1.5):
        with pytest.raises(UsageError, match="whole number"):
            Reusing(EAGER, every)  # type: ignore[arg-type]
