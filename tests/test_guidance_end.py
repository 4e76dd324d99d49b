"""Guidance that ends before the run does: fewer halves are run, and what is run is what it says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import rawdiff as library
from rawdiff import recipe
from rawdiff.errors import UsageError
from rawdiff.plan import make_plan
from rawdiff.sampler import make_sampler
from tests.cli_run import rawdiff
from tests.small_models import small_folder, small_scheduler
from tests.small_runs import finished, prepared

pytest_plugins = ["tests.cli_fixtures"]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> library.Model:
    return library.load(small_folder(tmp_path_factory.mktemp("model") / "small", nets=("depth",)))


def halves(model: library.Model, **options: object) -> list[int]:
    """How many rows the UNet's last convolution sees, at each evaluation of a run of one picture."""
    run, seen = prepared(model, guidance=4.0, **options), []
    hook = model.unet.conv_out.register_forward_hook(lambda net, given, out: seen.append(len(out)))
    try:
        finished(run)
    finally:
        hook.remove()
    return seen


def test_only_the_rows_before_the_end_run_both_halves(loaded: library.Model) -> None:
    assert halves(loaded) == [2] * 5
    assert halves(loaded, guidance_end=0.5) == [2, 2, 1, 1, 1]
    assert halves(loaded, guidance_end=0.0) == [1] * 5
    assert halves(loaded, guidance_end=0.5, sampler="pndm") == [2, 2, 2, 1, 1, 1]  # one evaluation more


def test_an_end_at_the_end_changes_nothing(loaded: library.Model) -> None:
    whole = finished(prepared(loaded, guidance=4.0))
    assert torch.equal(whole.latents, finished(prepared(loaded, guidance=4.0, guidance_end=1.0)).latents)
    cut = finished(prepared(loaded, guidance=4.0, guidance_end=0.5))
    assert (cut.latents - whole.latents).abs().max() > 1e-2
    none = finished(prepared(loaded, guidance=1.0))
    assert (
        finished(prepared(loaded, guidance=4.0, guidance_end=0.0)).latents - none.latents
    ).abs().max() < 1e-5


def test_a_row_behind_the_end_is_a_row_without_guidance(loaded: library.Model) -> None:
    """The run up to there is the guided one, and from there the one that never had guidance, to 1e-5."""
    cut = prepared(loaded, guidance=4.0, guidance_end=0.5, sampler="ddim", depth=torch.rand(48, 40))
    guided = prepared(loaded, guidance=4.0, sampler="ddim", depth=cut.hints[0].tensor[0])
    steps = list(cut)
    for step, other in zip(steps[:2], guided, strict=False):
        assert torch.equal(step.x_next, other.x_next)
        assert torch.equal(step.uncond, other.uncond)
    plain = prepared(loaded, guidance=1.0, sampler="ddim", depth=cut.hints[0].tensor[0])
    for step in steps[2:]:
        with pytest.raises(UsageError, match="guidance is off"):
            step.uncond  # noqa: B018
        alone = plain.setup.predict(
            plain.sampler.scale_input(step.x, step.index), plain.plan.rows[step.index]
        )
        assert (step.guided - alone.cond).abs().max() <= 1e-5 * alone.cond.abs().max()


def test_a_restart_keeps_the_end() -> None:
    sampler = make_sampler(small_scheduler(), steps=8)
    plan = make_plan(sampler, guidance=[3.0, 1.0], guidance_end=0.5)
    again = plan.restarted(2)
    assert [row.guided for row in plan.rows].count(True) == len(plan) // 2
    assert [row.guided for row in again.rows] == [(i + 1) / len(again) <= 0.5 for i in range(len(again))]
    assert plan.rows[-1].guidance == (1.0, 1.0)
    for wrong in (-0.1, 1.1, float("nan"), True, "half"):
        with pytest.raises(UsageError, match="guidance end"):
            make_plan(sampler, guidance=[3.0], guidance_end=wrong)  # type: ignore[arg-type]


def test_the_recipe_has_it_only_where_it_is(loaded: library.Model) -> None:
    whole, cut = (prepared(loaded, guidance=4.0, guidance_end=end) for end in (1.0, 0.0))
    pictures = [recipe.of_picture(run.recipe, 0) for run in (whole, cut)]
    assert "guidance_end" not in pictures[0]
    assert pictures[1]["guidance_end"] == 0.0
    assert recipe.job_id(pictures[0]) != recipe.job_id(pictures[1])


def test_a_saved_run_goes_on_with_it(loaded: library.Model, tmp_path: Path) -> None:
    run = prepared(loaded, guidance=4.0, guidance_end=0.6)
    next(run)
    path = run.save(tmp_path / "half.run")
    assert torch.equal(finished(loaded.resume(path)).latents, finished(run).latents)


def test_without_guidance_it_is_said_to_do_nothing(loaded: library.Model) -> None:
    said: list[str] = []
    prepared(loaded, guidance=1.0, guidance_end=0.5, say=said.append)
    assert [line for line in said if "guidance end" in line] == [
        "guidance end has no effect: guidance is off"
    ]


def test_gen_takes_it_and_makes_it_again(here: Path) -> None:
    words = ("gen", "-p", "a red cube", "--size", "48x40", "--steps", 4, "--seed", 3, "--guidance", 4)
    whole = rawdiff(*words).ok().lines[0]
    cut = rawdiff(*words, "--guidance-end", 0.5).ok().lines[0]
    made, other = recipe.read(cut), recipe.read(whole)
    assert made["picture"]["guidance_end"] == 0.5
    assert made["made"]["pixels"] != other["made"]["pixels"]
    again = recipe.read(rawdiff("gen", "--from", cut).ok().lines[0])
    assert again["id"] == made["id"]
    assert again["made"]["pixels"] == made["made"]["pixels"]
    assert "guidance end" in rawdiff("info", cut).ok().out
    ended = rawdiff("gen", "--from", cut, "--guidance-end", 1).ok()
    assert recipe.read(ended.lines[0])["id"] == other["id"]


def test_bad_ends_are_refused(here: Path) -> None:
    for value in ("-0.1", "1.5", "nan"):
        result = rawdiff("gen", "-p", "a cube", f"--guidance-end={value}")
        assert result.code == 2
        assert "guidance end" in result.error


def test_a_changed_end_is_another_recipe(here: Path) -> None:
    from rawdiff.errors import InputError

    cut = rawdiff("gen", "-p", "a cube", "--size", "48x40", "--steps", 2, "--guidance-end", 0.5).ok().lines[0]
    found = recipe.read(cut)
    for value in (1.0, 2, "half"):
        picture = {**found["picture"], "guidance_end": value}
        with pytest.raises(InputError, match="guidance_end"):
            recipe.check({**found, "picture": picture, "id": recipe.job_id(picture)}, "there")
