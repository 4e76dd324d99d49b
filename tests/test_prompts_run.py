"""Prompts in A1111's syntax, in runs: weights, chunks and editing against what is computed by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rawdiff import Control, Model, Run
from rawdiff.errors import UsageError
from rawdiff.prompts import chunks_of, weigh
from rawdiff.recipe import of_picture
from rawdiff.sampler import make_sampler, number_steps
from rawdiff.vocabulary import add_words
from rawdiff.weights import Embedding
from rawdiff.weights.schedulers import scheduler_from_name
from tests.reference import END, check, error, hint, load, matters, reference, silent
from tests.small_models import TEXT_WIDTH, small_controlnet, small_folder, small_scheduler
from tests.small_runs import finished

SIZE = (48, 40)
BOUND = 1e-6
"""Largest relative error of contexts and of latents where both sides are ours."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(small_folder(tmp_path_factory.mktemp("model") / "small", nets=()))


def prepared(model: Model, prompt: Any, **options: Any) -> Run:
    defaults = {"size": SIZE, "steps": 4, "guidance": 5.0, "seed": 3, "syntax": "a1111", "say": silent}
    return model.prepare(prompt, **{**defaults, "sampler": small_scheduler(), **options})


def ids(model: Model, words: str) -> list[int]:
    return list(model.tokenizer(words).input_ids[1:-1])


@torch.no_grad()
def by_hand(model: Model, *chunks: list[tuple[str, float]]) -> Tensor:
    """Contexts [1,C*77,D] by transformers' own forward and plain arithmetic."""
    found = []
    for chunk in chunks:
        numbers = [number for words, _ in chunk for number in ids(model, words)]
        weights = [weight for words, weight in chunk for _ in ids(model, words)]
        start, end = model.tokenizer.bos_token_id, model.tokenizer.eos_token_id
        numbers = [start, *numbers, *[end] * (76 - len(numbers))]
        weights = [1.0, *weights, *[1.0] * (76 - len(weights))]
        context = model.text_encoder(torch.tensor([numbers])).last_hidden_state
        weighed = context * torch.tensor(weights)[None, :, None]
        found.append(weighed / weighed.mean() * context.mean())
    return torch.cat(found, dim=1)


def cond(run: Run, k: int = 0) -> Tensor:
    return run.conditions.contexts[k].cond


def test_weights(model: Model) -> None:
    run = prepared(model, "a (red:1.3) cube on [grass]")
    expected = by_hand(model, [("a", 1), ("red", 1.3), ("cube on", 1), ("grass", 1 / 1.1)])
    assert error(cond(run), expected) <= BOUND
    for other in ("a red cube on grass", "a (red:1.301) cube on [grass]"):
        assert error(cond(prepared(model, other)), expected) >= 100 * BOUND
    uncond = run.conditions.contexts[0].uncond
    assert uncond is not None
    assert error(uncond, by_hand(model, [])) <= BOUND


def test_the_mean_is_restored_for_each_prompt_by_itself() -> None:
    context = torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(0)) + 0.5
    weights = torch.ones(3, 7)
    weights[1, 2], weights[2, 3] = 1.5, 0.25
    found = weigh(context, weights)
    assert torch.equal(found[0], context[0])
    assert torch.allclose(found.mean((1, 2)), context.mean((1, 2)), rtol=1e-5)
    assert not torch.allclose((context * weights[..., None]).mean((1, 2)), context.mean((1, 2)), rtol=1e-3)
    assert torch.equal(weigh(context[1:2], weights[1:2]), found[1:2])
    with pytest.raises(UsageError, match="weights are too large"):
        weigh(context, weights * 1e38)


@pytest.mark.parametrize("net", [False, True])
def test_parity_with_diffusers_given_the_contexts_by_hand(model: Model, net: bool) -> None:
    controls = [Control("any", hint(SIZE, 1), net=small_controlnet(model.unet, 77))] if net else []
    prompt = "a (red:1.4) cube BREAK on [[grass]]"
    texts = {
        "prompt_embeds": by_hand(
            model, [("a", 1), ("red", 1.4), ("cube", 1)], [("on", 1), ("grass", 1 / 1.1**2)]
        ),
        "negative_prompt_embeds": by_hand(model, [("blue", 1)], []),
    }
    call: dict[str, Any] = {
        "seeds": [3],
        "size": SIZE,
        "num_inference_steps": 4,
        "guidance_scale": 5.0,
        **texts,
    }
    theirs = reference(model, small_scheduler(), None, controls, **call)  # type: ignore[arg-type]
    run = check(prepared(model, prompt, negative="blue", controls=controls), theirs)
    matters(run, prepared(model, "a red cube BREAK on grass", negative="blue", controls=controls))
    matters(run, prepared(model, "a (red:1.4) cube on [[grass]]", negative="blue", controls=controls))


def test_a_plain_prompt_is_the_same_to_the_bit(model: Model) -> None:
    prompt = "a red cube on grass, daylight"
    run, plain = (finished(prepared(model, prompt, syntax=syntax)) for syntax in ("a1111", None))
    assert torch.equal(run.latents, plain.latents)
    own = of_picture(plain.recipe, 0)
    assert "syntax" not in own
    assert of_picture(run.recipe, 0) == {**own, "syntax": "a1111"}
    matters(plain, prepared(model, f"{prompt} (red:1.5)"))


def test_long_prompts_in_chunks(model: Model) -> None:
    words = ["red"] * 50 + ["blue"] * 50 + ["cube"] * 50
    run = prepared(model, " ".join(words), negative="grass")
    halves = [(" ".join(words[:75]), 1.0)], [(" ".join(words[75:]), 1.0)]
    assert error(cond(run), by_hand(model, *halves)) <= BOUND
    uncond = run.conditions.contexts[0].uncond
    assert uncond is not None
    assert error(uncond, by_hand(model, [("grass", 1.0)], [])) <= BOUND
    matters(finished(run), prepared(model, " ".join(words[:75]), negative="grass"))
    lines: list[str] = []
    plain = prepared(model, " ".join(words), negative="grass", syntax="plain", say=lines.append)
    assert lines == [f"prompt of 152 tokens cut to 77; left out: {' '.join(words[75:])!r}"]
    matters(run, plain)


def test_triggers_are_never_cut(model: Model, tmp_path: Any) -> None:
    held = Embedding(tmp_path / "a.pt", "0" * 64, "<zorb>", torch.randn(4, TEXT_WIDTH))
    vocabulary = add_words(model.tokenizer, [held], TEXT_WIDTH, 77)
    first, second = chunks_of(vocabulary, "red " * 73 + "(<zorb>:1.5) blue", 77)
    assert len(first.numbers) == 73
    assert second.numbers == (*range(vocabulary.start, vocabulary.start + 4), *ids(model, "blue"))
    assert second.weights == (1.5, 1.5, 1.5, 1.5, 1.0)


# ---- editing


def swapped(model: Model, first: Any, second: Any, after: int, **options: Any) -> Tensor:
    """The latents of two runs of plain prompts, the second gone on with where the first is stopped."""
    one, other = (prepared(model, prompt, syntax="plain", **options) for prompt in (first, second))
    for _ in range(after):
        next(one)
    other.state = one.state
    return finished(other).latents


@pytest.mark.parametrize(
    ("sampler", "after"), [("ddim", 2), ("euler a", 2), ("heun", 4), ("pndm", 3), ("unipc", 2)]
)
def test_an_edited_run_is_two_runs(model: Model, sampler: str, after: int) -> None:
    run = finished(prepared(model, "a [red:blue:0.5] cube", sampler=sampler))
    expected = swapped(model, "a red cube", "a blue cube", after, sampler=sampler)
    assert error(run.latents, expected) <= BOUND
    for same in ("a red cube", "a blue cube"):
        assert error(finished(prepared(model, same, sampler=sampler)).latents, expected) >= 100 * END


def test_only_some_of_a_batch_are_edited_and_negatives_too(model: Model) -> None:
    prompts, negatives = ["a [red:blue:1] cube", "grass"], ["", "[sphere::2]"]
    run = finished(prepared(model, prompts, negative=negatives, seed=[3, 4]))
    assert [row.context for row in run.plan.rows] == [0, 1, 2, 2]
    for k, seed in enumerate((3, 4)):
        alone = finished(prepared(model, prompts[k], negative=negatives[k], seed=seed))
        assert error(alone.latents, run.latents[k : k + 1]) <= 10 * BOUND
    expected = swapped(model, "a red cube", "a blue cube", 1)
    assert error(run.latents[:1], expected) <= 10 * BOUND
    untold = finished(prepared(model, "grass", negative="sphere", seed=4))
    assert error(untold.latents, run.latents[1:]) >= 100 * (10 * BOUND)


def test_with_a_net_and_every_exact_off(model: Model) -> None:
    from rawdiff import Exact

    options: dict[str, Any] = {
        "controls": [Control("any", hint(SIZE, 1), net=small_controlnet(model.unet, 77))]
    }
    run = finished(prepared(model, "a [red:blue:0.5] cube", **options))
    assert error(run.latents, swapped(model, "a red cube", "a blue cube", 2, **options)) <= BOUND
    off = Exact(kv=False, time=False, prefix=False, scale=False)
    again = finished(prepared(model, "a [red:blue:0.5] cube", exact=off, **options))
    assert error(again.latents, run.latents) <= END


def test_a_restart_keeps_the_schedule(model: Model) -> None:
    run = prepared(model, "a [red:blue:3] cube", sampler="dpm++ 2m", steps=5)
    next(run)
    run.change(run.latents, forget=True)
    assert [row.context for row in run.plan.rows] == [0, 0, 0, 1, 1]


def test_steps_of_evaluations() -> None:
    def numbers(name: str) -> tuple[int, ...]:
        return number_steps(make_sampler(scheduler_from_name(name, small_scheduler().config), steps=3))

    assert numbers("ddim") == (0, 1, 2)
    assert numbers("heun") == (0, 0, 1, 1, 2)
    assert numbers("pndm") == (0, 1, 1, 2)


def test_editing_counts_the_steps_that_are_taken(model: Model) -> None:
    options: dict[str, Any] = {"image": hint(SIZE, 2), "strength": 0.5, "steps": 8}
    run = prepared(model, "a [red:blue:0.5] cube", **options)
    assert [row.context for row in run.plan.rows] == [0, 0, 1, 1]


# ---- what is refused or told


@pytest.mark.parametrize(
    ("prompt", "options", "words"),
    [
        (["a", "a BREAK b"], {}, "prompt 1: needs 2 chunks of tokens and prompt 0 1"),
        (["a <lora:x:1>", "a"], {}, "the prompts ask for different LoRAs"),
        ("a", {"negative": "<lora:x:1>"}, "the negative prompt asks for a LoRA"),
        ("a <lora:x:1>", {}, "lora 'x': this model brings none of that name"),
        ("a <lora:x.safetensors:1>", {}, "given by its path, with --lora"),
        ("a", {"syntax": "comfy"}, "prompt syntax 'comfy': expected plain or a1111"),
    ],
)
def test_refused(model: Model, prompt: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        prepared(model, prompt, **options)


def test_markup_in_a_plain_prompt_is_told(model: Model) -> None:
    lines: list[str] = []
    prepared(model, "a (red:1.2) cube", syntax="plain", say=lines.append)
    assert lines == [
        "'(red:1.2)' in the prompt is read as plain text; the prompt syntax a1111 reads it otherwise"
    ]
    prepared(model, "a (red) cube [nice]", syntax="plain", say=lines.append)
    assert len(lines) == 1
