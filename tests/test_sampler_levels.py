"""The level that a step uses: what x holds of picture and noise, and how the picture is read from it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from rawdiff.sampler import SamplerTable, make_sampler, renoise
from rawdiff.sampler.drive import hush
from tests.sampler_cases import CASES, SDE_TREE, Case, Reference, relative, table, walk

BOUND = 1e-5


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_x0_is_the_schedulers_own(case: Case) -> None:
    """Against `pred_original_sample`, or what `convert_model_output` makes of the output."""
    for prediction in case.predictions:
        made, reference = table(case, case.make(prediction_type=prediction), 5)
        seen = 0

        def look(
            i: int,
            x: torch.Tensor,
            out: torch.Tensor,
            expected: Any,
            made: SamplerTable = made,
            reference: Reference = reference,
        ) -> None:
            nonlocal seen
            row = made.rows[i]
            x0 = row.x0_a * x + row.x0_b * out
            own = getattr(expected, "pred_original_sample", None)
            if own is None and case.id in ("dpm++ 2m", "dpm++ 2s", "unipc", "sa-solver"):
                own = reference.scheduler.model_outputs[-1]
            if own is not None and "churn" not in case.id:
                seen += 1
                assert relative(x0, own) <= BOUND

        walk(made, reference, look=look)
        gives = ("DDIM", "DDPM", "Euler", "Heun", "KDPM2", "LMS", "EDM")
        assert seen or not case.scheduler.startswith(gives) or "churn" in case.id


NOT_THE_MARGINAL = {
    "edm euler": "its network's output is preconditioned in another way",
    "lcm": "its steps mix x into x0",
    "euler churn": "it adds noise within the step",
    "ddpm large": "its variance is larger than the data asks for",
    "sa-solver eps": "its noise prediction is not exact at 20 steps",
}
STOCHASTIC = ("ddim eta", "ddpm", "euler a", "kdpm2 a", "sde", "sa-solver", "lcm", "tcd", "churn")


@pytest.mark.parametrize("case", [*CASES, SDE_TREE], ids=lambda case: case.id)
def test_levels_are_those_that_the_steps_use(case: Case) -> None:
    """With a network that knows the one picture there is, x lies at every row's level and ends at it.

    Then x = signal*x0 + sigma*n with one and the same n all along, exactly for samplers of every order:
    their outputs are constant. Where noise is drawn, what is left of x without the picture must have
    sigma's size.
    """
    if case.id in NOT_THE_MARGINAL:
        pytest.skip(NOT_THE_MARGINAL[case.id])
    for prediction in case.predictions:
        if prediction == "v_prediction" and case.scheduler == "PNDMScheduler":
            continue  # it averages outputs of several levels, and v of one picture differs between them
        spacing = {"timestep_spacing": "leading"} if case.spacings else {}
        scheduler = case.make(prediction_type=prediction, **spacing)
        made, _ = table(case, scheduler, 20)
        g = torch.Generator().manual_seed(1)
        shape = (2, 4, 64, 64)
        x0, n = torch.randn(shape, generator=g), torch.randn(shape, generator=g)
        x = renoise(made, 0, x0, n)
        s = made.start(x)
        for i, row in enumerate(made.rows):
            rest = x - row.signal * x0
            if any(word in case.id for word in STOCHASTIC):
                assert float(rest.std()) == pytest.approx(row.sigma, rel=0.03), (prediction, i)
            else:
                assert relative(rest / row.sigma, n) <= 2e-3, (prediction, i)
            out = oracle(prediction, row.signal, row.sigma, x0, rest / row.sigma)
            assert relative(row.x0_a * x + row.x0_b * out, x0) <= 1e-5, (prediction, i)
            noise = torch.randn(shape, generator=g) if row.draws else None
            x, s = made.update(i, x, out, noise, s)
        # The lowest level of Stable Diffusion's betas leaves 0.029.
        assert float((x - x0).std()) <= 0.045, prediction


def oracle(prediction: str, signal: float, sigma: float, x0: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
    """What a perfect network says of signal*x0 + sigma*n."""
    if prediction == "sample":
        return x0
    if prediction == "epsilon":
        return n
    norm = (signal**2 + sigma**2) ** 0.5
    return (signal * n - sigma * x0) / norm


def test_dpm_sde_is_a_brownian_motion() -> None:
    """Equal to diffusers with torchsde's own tree, once the tree's overlapping increments are taken apart.

    The second half of a step asks for the increment over the whole step, which holds the first half's: the
    table makes it from independent draws, one a row, so the draws found from the tree must be independent
    too.
    """
    torch.manual_seed(0)
    for changes in SDE_TREE.variants():
        scheduler = SDE_TREE.make(noise_sampler_seed=3, **changes)
        made = make_sampler(scheduler, steps=6)
        assert isinstance(made, SamplerTable)
        assert made.state_size == SDE_TREE.state
        with hush():
            scheduler.set_timesteps(6)
        reference = copy.deepcopy(scheduler)
        reference.set_begin_index(0)
        asked: list[tuple[float, float, torch.Tensor]] = []
        step = torch.randn(2, 4, 32, 32)
        x, s, last = step * made.rows[0].sigma, made.start(step), None
        for i, row in enumerate(made.rows):
            out = torch.randn(step.shape)
            with hush():
                reference.scale_model_input(x, reference.timesteps[i])
                record(reference, x, asked)
                expected = reference.step(out, reference.timesteps[i], x).prev_sample
            noise = None
            if row.draws:
                start, end, noise = asked[-1]
                if i % 2:  # the second half: take out what the first half drew
                    known_start, known_end, last = asked[-2]
                    share = (known_end - known_start) / (end - start)
                    assert correlation(noise, last) > 0.3
                    noise = (noise - share**0.5 * last) / (1 - share) ** 0.5
                    assert abs(correlation(noise, last)) < 0.05
                    assert float(noise.std()) == pytest.approx(1, abs=0.05)
            x_next, s = made.update(i, x, out, noise, s)
            assert relative(x_next, expected) <= BOUND
            x = expected
        assert len(asked) == sum(row.draws for row in made.rows)


def record(scheduler: Any, x: torch.Tensor, asked: list[Any]) -> None:
    """Have the scheduler's own Brownian tree write down what it is asked for."""
    from diffusers.schedulers.scheduling_dpmsolver_sde import BrownianTreeNoiseSampler

    if scheduler.noise_sampler is not None:
        return
    low, high = scheduler.sigmas[scheduler.sigmas > 0].min().item(), scheduler.sigmas.max().item()
    tree = BrownianTreeNoiseSampler(x, low, high, scheduler.noise_sampler_seed)

    def sampler(sigma: torch.Tensor, sigma_next: torch.Tensor) -> torch.Tensor:
        asked.append((float(sigma), float(sigma_next), tree(sigma, sigma_next)))
        return asked[-1][2]

    scheduler.noise_sampler = sampler


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])
