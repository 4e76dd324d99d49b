"""Work done once instead of at each step: each kind is really not done again; what cannot be so is refused."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rawdiff import nets
from rawdiff.conditions import Conditions, Context
from rawdiff.errors import UsageError, WeightsError
from rawdiff.loop import advance
from rawdiff.nets.attention import cross_attentions
from rawdiff.nets.tables import TimeTable
from rawdiff.noise import Noise
from rawdiff.plan import Window, make_plan
from rawdiff.predict import Exact, prepare
from rawdiff.sampler import make_sampler
from rawdiff.state import start
from tests.exact_cases import BOUND, EVERYTHING, NOTHING, SHAPES, Case, error, randn
from tests.reference import load, silent
from tests.small_models import TEXT_WIDTH, small_folder, small_scheduler, small_unet


@contextmanager
def calls(modules: Iterator[Any]) -> Iterator[list[int]]:
    """The batch sizes of everything that goes through these modules."""
    sizes: list[int] = []
    handles = [
        module.register_forward_hook(lambda m, args, out: sizes.append(len(args[0]))) for module in modules
    ]
    try:
        yield sizes
    finally:
        for handle in handles:
            handle.remove()


def parts(case: Case, kind: str) -> list[Any]:
    return [m for net in [case.unet, *case.nets] for m in net.modules() if type(m).__name__ == kind]


def run(case: Case, predict: Any) -> None:
    x = randn(case.batch, 4, *case.size, seed=9)
    for row in case.plan.rows:
        predict(x, row)


def test_keys_and_values_once() -> None:
    case = Case(nets=1, **SHAPES["cross at the top"])
    looking = [a for net in [case.unet, *case.nets] for a in cross_attentions(net)]
    blocks = parts(case, "BasicTransformerBlock")
    assert len(looking) == len(blocks) + sum(block.only_cross_attention for block in blocks) > len(blocks)
    for exact, expected in ((replace(NOTHING, kv=True), (1, 0)), (replace(EVERYTHING, kv=False), (0, 3))):
        with calls(m for a in looking for m in (a.to_k, a.to_v)) as seen:
            predict = case.prepared(exact)
            before = len(seen)
            run(case, predict)
        assert (before, len(seen) - before) == tuple(2 * len(looking) * times for times in expected)


def test_keys_and_values_of_every_context() -> None:
    case = Case(nets=1, guidance=[3.0, 5.0])
    other = Context(randn(2, 77, TEXT_WIDTH, seed=7), randn(2, 77, TEXT_WIDTH, seed=8))
    given = Conditions((*case.given.contexts, other), case.given.hints)
    x, row = randn(2, 4, *case.size, seed=9), replace(case.plan.rows[0], context=1)
    found = [
        prepare(case.plan, given, case.unet, case.nets, exact=exact)(x, row).guided
        for exact in (EVERYTHING, NOTHING)
    ]
    assert error(*found) <= BOUND
    assert error(found[0], case.prepared()(x, case.plan.rows[0]).guided) > 100 * BOUND


def test_times_once() -> None:
    case = Case(nets=1)
    resnets, embeddings = parts(case, "ResnetBlock2D"), parts(case, "TimestepEmbedding")
    assert len(embeddings) == 2
    for exact, expected in ((replace(NOTHING, time=True), (1, 0)), (replace(EVERYTHING, time=False), (0, 3))):
        with calls(m.time_emb_proj for m in resnets) as shifts, calls(iter(embeddings)) as seen:
            predict = case.prepared(exact)
            before = len(shifts), len(seen)
            run(case, predict)
        assert before == (len(resnets) * expected[0], 2 * expected[0])
        assert (len(shifts), len(seen)) == (len(resnets) * sum(expected), 2 * sum(expected))


def test_a_timestep_that_the_table_does_not_have() -> None:
    """After a restart, say: it is computed then, and held."""
    unet = small_unet(1)
    resnets = [m for m in unet.modules() if type(m).__name__ == "ResnetBlock2D"]
    table = TimeTable(unet, {float(t): torch.tensor([float(t)]) for t in (900, 500, 100)})
    with calls(block.time_emb_proj for block in resnets) as seen:
        for t in (500.0, 333.25, 500.0, 333.25, 100.0):
            row, emb = (
                table.row(t, torch.tensor([t])),
                nets.blocks.embed_time(unet, torch.tensor([t]), torch.ones(1)),
            )
            for block in resnets:
                expected = block.time_emb_proj.forward(torch.nn.functional.silu(emb))
                assert error(row.of(block).flatten(1), expected) <= BOUND
    assert len(seen) == len(resnets)


def test_a_sampler_begun_anew() -> None:
    """PNDM's restart has rows of its own; the table is asked by timestep and not by number."""
    case = Case(nets=1)
    case.plan = make_plan(
        make_sampler(small_scheduler("PNDMScheduler"), steps=5), guidance=[4.0], windows=[Window()]
    )
    noise, ends = Noise([0], case.size), []
    for exact in (EVERYTHING, NOTHING):
        predict, state = case.prepared(exact), start(case.plan, noise.draw(0), draws=1)
        for i in range(6):
            if i == 3:
                state = state.changed(0.9 * state.x, case.plan, forget=True)
            state, _ = advance(state, case.plan, predict, noise)
        ends.append(state.x)
    assert error(*ends) <= 10 * BOUND


def test_one_half_stands_for_both_as_far_as_they_are_the_same() -> None:
    case = Case(nets=1, guidance=[3.0, 5.0])  # halves of two images
    for exact, expected in ((replace(NOTHING, prefix=True), 2), (replace(EVERYTHING, prefix=False), 4)):
        predict = case.prepared(exact)
        for net in (case.unet, *case.nets):
            first = net.down_blocks[0].attentions[0]
            block = first.transformer_blocks[0]
            shared = [net.conv_in, net.down_blocks[0].resnets[0].conv1, first.proj_in, block.attn1.to_q]
            shared += [block.attn1.to_out[0], block.attn2.to_q]
            later = [block.attn2.to_out[0], block.ff.net[2], net.down_blocks[0].resnets[1].conv1]
            with calls(iter(shared)) as seen, calls(iter(later)) as rest:
                run(case, predict)
            assert set(seen) == {expected}
            assert set(rest) == {4}
        with calls(iter([case.nets[0].controlnet_down_blocks[0]])) as seen:
            run(case, predict)
        assert set(seen) == {expected}


def test_the_prefix_ends_where_cross_attention_comes_first() -> None:
    case = Case(guidance=[3.0, 5.0], **SHAPES["cross at the top"])
    block = case.unet.down_blocks[0].attentions[0].transformer_blocks[0]
    with (
        calls(iter([block.attn1.to_q])) as seen,
        calls(iter([block.attn1.to_out[0], block.attn2.to_q])) as rest,
    ):
        run(case, case.prepared())
    assert set(seen) == {2}
    assert set(rest) == {4}


def test_the_first_skip_is_gone_through_once_at_the_end_too() -> None:
    """The last ResNet of the UNet joins x with the first skip, which is the same in both halves."""
    sizes: dict[bool, list[int]] = {}
    original = torch.nn.functional.group_norm
    case = Case(nets=1, guidance=[3.0, 5.0])
    for prefix in (True, False):
        sizes[prefix] = []

        def record(x: Tensor, *arguments: Any, seen: list[int] = sizes[prefix]) -> Tensor:
            seen.append(len(x))
            return original(x, *arguments)

        predict = case.prepared(Exact(prefix=prefix))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.nn.functional, "group_norm", record)
            predict(randn(2, 4, *case.size, seed=9), case.plan.rows[0])
    # x and the skip apart; then the second norm, the transformer's and the last one.
    assert sizes[True][-5:] == [4, 2, 4, 4, 4]
    assert sizes[False][-4:] == [4, 4, 4, 4]


def test_no_prefix_for_a_net_that_sees_cond_alone() -> None:
    case = Case(nets=1, guess=True, guidance=[3.0, 5.0])
    x, row = randn(2, 4, *case.size, seed=9), case.plan.rows[0]
    with calls(iter([case.nets[0].conv_in, case.nets[0].controlnet_mid_block])) as seen:
        found = case.prepared()(x, row)
    assert seen == [2, 2]
    assert found.control[0] is not None
    for residual in (*found.control[0].skips, found.control[0].middle):
        assert len(residual) == 4
        assert float(residual[:2].abs().max()) == 0.0


class Divisions(TorchDispatchMode):
    """How often anything was divided by 1."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten.div.Tensor and args[1] == 1.0
        return func(*args, **(kwargs or {}))


def test_no_division_by_one() -> None:
    case = Case(nets=1)
    layers = len(parts(case, "ResnetBlock2D")) + len(parts(case, "Attention"))
    for exact, expected in ((replace(NOTHING, scale=True), 0), (replace(EVERYTHING, scale=False), layers)):
        predict, row = case.prepared(exact), case.plan.rows[0]
        with torch.no_grad(), Divisions() as divisions:
            predict(randn(1, 4, *case.size), row)
        assert divisions.count == expected
    x, row = randn(1, 4, *case.size), case.plan.rows[0]
    with_, without = (case.prepared(Exact(scale=scale))(x, row).guided for scale in (True, False))
    assert torch.equal(with_, without)


def test_a_scale_that_is_not_one_is_divided_by() -> None:
    case = Case(nets=1, **SHAPES["scaled"])
    assert Counter(m.output_scale_factor for m in parts(case, "ResnetBlock2D"))[2**0.5] == 4
    x, row = randn(1, 4, *case.size), case.plan.rows[0]
    before = case.prepared()(x, row).guided
    for block in parts(case, "ResnetBlock2D"):
        block.output_scale_factor = 1.0
    assert error(case.prepared()(x, row).guided, before) > 100 * BOUND


def test_residuals_have_rows_for_both_halves() -> None:
    case = Case(nets=1, guidance=[3.0, 5.0])
    x, row = randn(2, 4, *case.size), case.plan.rows[0]
    ours, plain = case.prepared()(x, row), case.prepared(NOTHING)(x, row)
    (one,), (other,) = ours.control, plain.control
    assert one is not None
    assert other is not None
    assert len(ours.residuals[0].skips[0]) == 2
    for a, b in zip((*one.skips, one.middle), (*other.skips, other.middle), strict=True):
        assert a.shape == b.shape
        assert len(a) == 4
        assert error(a, b) <= BOUND


def test_new_weights_and_a_new_run() -> None:
    """What is held is as old as the run's preparation, and a run prepared again sees the weights as they are."""
    case = Case(nets=1)
    x, row = randn(1, 4, *case.size), case.plan.rows[0]
    before = case.prepared()(x, row).guided
    with torch.no_grad():
        for a in cross_attentions(case.unet):
            a.to_v.weight.mul_(1.5)
    after = case.prepared()(x, row).guided
    assert error(after, case.prepared(NOTHING)(x, row).guided) <= BOUND
    assert error(after, before) > 100 * BOUND


def test_the_front_door(tmp_path: Path) -> None:
    """`Model.prepare` passes it on, and the account has it: a resumed run goes on with the same, to the bit."""
    model = load(small_folder(tmp_path / "model", nets=()))
    ends: dict[str, Tensor] = {}
    for way, exact in (("everything", EVERYTHING), ("nothing", NOTHING)):
        run = model.prepare("a red cube", steps=3, seed=1, exact=exact, watch=(), say=silent)
        next(run)
        path = run.save(tmp_path / f"{way}.run")
        with calls(a.to_k for a in cross_attentions(model.unet)) as seen:
            list(run)
        assert bool(seen) == (exact == NOTHING)
        again = model.resume(path, say=silent)
        list(again)
        assert torch.equal(again.latents, run.latents)
        ends[way] = run.latents
    assert error(ends["everything"], ends["nothing"]) <= 10 * BOUND


# --------------------------------------------------------------------------------- what is not run


def test_what_would_tell_the_halves_apart_is_refused() -> None:
    case = Case()
    case.unet.register_to_config(addition_embed_type="text")
    with pytest.raises(WeightsError, match="addition_embed_type='text'"):
        case.prepared()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda block: block.attn1.set_processor(_other_processor()),
            "attn1: its processor is AttnProcessor,",
        ),
        (lambda block: setattr(block.attn2, "norm_cross", torch.nn.LayerNorm(4)), "attn2: has norm_cross"),
        (lambda block: setattr(block.attn2, "norm_q", torch.nn.LayerNorm(4)), "attn2: has norm_q"),
        (lambda block: setattr(block.attn2, "residual_connection", True), "a connection past it"),
        (lambda block: setattr(block, "norm_type", "ada_norm"), "norm_type='ada_norm'"),
        (lambda block: block.ff.net.__setitem__(0, torch.nn.GELU()), "a feed-forward layer with GELU"),
    ],
)
def test_other_attention_is_refused(change: Any, words: str) -> None:
    case = Case(nets=1)
    for net, name in ((case.unet, "unet, up block 2"), (case.nets[0], "controlnet, middle")):
        held = net.up_blocks[2] if net is case.unet else net.mid_block
        saved = copy.deepcopy(held.attentions)
        change(held.attentions[0].transformer_blocks[0])
        with pytest.raises(WeightsError, match=f"{name}, attention 0.*{words}"):
            case.prepared()
        held.attentions = saved
    case.prepared()


def _other_processor() -> Any:
    from diffusers.models.attention_processor import AttnProcessor

    return AttnProcessor()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("time_embedding_norm", "spatial", "time_embedding_norm='spatial'"),
        ("upsample", torch.nn.Identity(), "has upsample"),
        ("time_emb_proj", None, "no time_emb_proj"),
    ],
)
def test_other_resnets_are_refused(name: str, value: Any, words: str) -> None:
    case = Case()
    setattr(case.unet.mid_block.resnets[1], name, value)
    with pytest.raises(WeightsError, match=f"unet, middle, resnet 1.*{words}"):
        case.prepared()


def test_exact_is_an_exact() -> None:
    case = Case()
    with pytest.raises(UsageError, match="exact 'kv': expected an Exact, such as"):
        prepare(case.plan, case.given, case.unet, exact="kv")  # type: ignore[arg-type]
