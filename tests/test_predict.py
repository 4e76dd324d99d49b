"""The networks as one function of x and a row: what runs, how often, on what, in which dtype."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from rawdiff import nets
from rawdiff.conditions import Conditions, Context
from rawdiff.plan import Plan, Window, make_plan
from rawdiff.predict import Exact, guide, prepare
from rawdiff.probes import Probe
from rawdiff.sampler import make_sampler
from tests.small_models import TEXT_WIDTH, small_controlnet, small_scheduler, small_unet

SIZE = (6, 5)
UNET = small_unet(1, shape="deep")
NETS = [small_controlnet(UNET, seed) for seed in (40, 41, 42)]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def conditions(batch: int = 2, hints: int = 0, contexts: int = 1) -> Conditions:
    texts = tuple(
        Context(randn(batch, 77, TEXT_WIDTH, seed=1 + 2 * k), randn(batch, 77, TEXT_WIDTH, seed=2 + 2 * k))
        for k in range(contexts)
    )
    return Conditions(texts, tuple(randn(1, 3, 8 * SIZE[0], 8 * SIZE[1], seed=50 + k) for k in range(hints)))


def plan_of(guidance: list[float] | None = None, windows: list[Window] | None = None, **options: Any) -> Plan:
    sampler = make_sampler(small_scheduler(), steps=4)
    guidance = [3.0, 5.0] if guidance is None else guidance
    return make_plan(sampler, guidance=guidance, windows=windows or [], **options)


X = randn(2, 4, *SIZE, seed=9)


@contextmanager
def counted(module: Any, name: str) -> Iterator[list[tuple[Any, ...]]]:
    """The arguments of every call of a function of a module."""
    calls: list[tuple[Any, ...]] = []
    original = getattr(module, name)

    def record(*arguments: Any) -> Any:
        calls.append(arguments)
        return original(*arguments)

    setattr(module, name, record)
    try:
        yield calls
    finally:
        setattr(module, name, original)


def error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


def test_guidance_is_each_images_own() -> None:
    plan, given = plan_of([3.0, 5.0]), conditions()
    row = plan.rows[1]
    found = prepare(plan, given, UNET)(X, row)
    context = given.contexts[0]
    assert context.uncond is not None
    t = torch.tensor([row.t])
    cond, uncond = (nets.unet.forward(UNET, X, t, text) for text in (context.cond, context.uncond))
    scale = torch.tensor([3.0, 5.0]).view(2, 1, 1, 1)
    assert error(found.cond, cond) < 1e-5
    assert found.uncond is not None
    assert error(found.uncond, uncond) < 1e-5
    assert error(found.guided, uncond + scale * (cond - uncond)) < 1e-5
    assert error(found.guided, uncond + 3.0 * (cond - uncond)) > 1e-3
    assert error(found.guided, cond + scale * (uncond - cond)) > 1e-3


def test_without_guidance_only_cond_runs() -> None:
    given = conditions()
    with counted(nets.unet, "encode") as calls:
        plan = plan_of([1.0, 0.5])
        found = prepare(plan, given, UNET)(X, plan.rows[0])
        assert len(calls) == 1
        assert len(calls[0][1]) == 2
        assert found.uncond is None
        assert torch.equal(found.guided, found.cond)
        plan = plan_of([1.0, 2.0])
        mixed = prepare(plan, given, UNET, exact=Exact(prefix=False))(X, plan.rows[0])
        assert len(calls[1][1]) == 4
    assert error(mixed.guided[:1], found.guided[:1]) < 1e-5
    assert error(mixed.guided[1:], found.guided[1:]) > 1e-3


def test_timesteps_are_tensors_on_the_device() -> None:
    """A Python number there makes diffusers' networks wait for the device."""
    plan = plan_of(windows=[Window()])
    with counted(nets.blocks, "embed_time") as calls:
        prepare(plan, conditions(hints=1), UNET, NETS[:1], exact=Exact(time=False))(X, plan.rows[2])
        prepare(plan, conditions(hints=1), UNET, NETS[:1])(X, plan.rows[2])
    assert len(calls) == 4
    for k, (_, t, *_) in enumerate(calls):
        assert isinstance(t, Tensor)
        assert t.dtype == torch.float32
        assert t.tolist() == ([plan.rows[2].t] if k < 2 else [row.t for row in plan.rows])


def test_a_net_outside_its_window_is_not_run() -> None:
    windows = [Window(1.0, 0.0, 0.5), Window(0.0), Window(0.7, 0.5, 1.0)]
    plan, given = plan_of(windows=windows), conditions(hints=3)
    with counted(nets.controlnet, "residuals") as calls, counted(nets.controlnet, "embed_hint") as hints:
        predict = prepare(plan, given, UNET, NETS)
        for row, expected in zip(plan.rows, [NETS[0], NETS[0], NETS[2], NETS[2]], strict=True):
            found = predict(X, row)
            assert [call[0] for call in calls] == [expected]
            calls.clear()
            assert [r is not None for r in found.control] == [net is expected for net in NETS]
        assert [call[0] for call in hints] == [NETS[0], NETS[2]]  # once a run, and only where it is used


def test_skipping_is_exact() -> None:
    """A net at weight 0 adds nothing to the bit, as if it were not there."""
    given = conditions(hints=2)
    plan = plan_of(windows=[Window(0.8), Window(0.0)])
    both = prepare(plan, given, UNET, NETS[:2])(X, plan.rows[0])
    alone = plan_of(windows=[Window(0.8)])
    one = prepare(alone, Conditions(given.contexts, given.hints[:1]), UNET, NETS[:1])(X, alone.rows[0])
    assert torch.equal(both.guided, one.guided)


def test_residuals_are_shown() -> None:
    plan, given = plan_of(windows=[Window(0.8), Window(0.5, 0.5, 1.0)]), conditions(hints=2)
    found = prepare(plan, given, UNET, NETS[:2])(X, plan.rows[0]).control
    assert found[1] is None
    assert found[0] is not None
    x, context = torch.cat([X, X]), given.contexts[0]
    assert context.uncond is not None
    skips, middle = NETS[0](
        x, plan.rows[0].t, torch.cat([context.uncond, context.cond]), given.hints[0].expand(4, -1, -1, -1),
        conditioning_scale=0.8, return_dict=False,
    )  # fmt: skip
    assert error(found[0].middle, middle) < 1e-5
    assert len(found[0].skips) == len(skips)
    assert all(error(a, b) < 1e-5 for a, b in zip(found[0].skips, skips, strict=True))


def test_a_pooling_net_leaves_the_others_alone() -> None:
    """diffusers turns guess mode on for all nets if the first of them pools; here it is each net's own affair."""
    pooling = small_controlnet(UNET, 44)
    pooling.register_to_config(global_pool_conditions=True)
    given = conditions(hints=2)
    plan = plan_of(windows=[Window(1.0), Window(0.8)])
    found = prepare(plan, given, UNET, [pooling, NETS[0]])(X, plan.rows[0])
    alone = plan_of(windows=[Window(0.8)])
    one = prepare(alone, Conditions(given.contexts, given.hints[1:]), UNET, NETS[:1])(X, alone.rows[0])
    assert found.control[1] is not None
    assert one.control[0] is not None
    assert torch.equal(found.control[1].middle, one.control[0].middle)
    assert found.control[0] is not None
    assert found.control[0].middle.shape[2:] == (1, 1)
    assert float(found.control[0].middle[:2].abs().max()) == 0.0  # nothing for the uncond half
    assert found.uncond is not None
    assert one.uncond is not None
    assert error(found.uncond, one.uncond) < 1e-5
    assert error(found.cond, one.cond) > 1e-3


def test_a_hint_of_each_image() -> None:
    given = conditions(hints=1)
    hint = torch.cat([given.hints[0], given.hints[0].flip(-1)])
    plan = plan_of(windows=[Window()])
    together = prepare(plan, Conditions(given.contexts, (hint,)), UNET, NETS[:1])(X, plan.rows[0])
    for k in range(2):
        single = plan_of([plan.guidance[k]], windows=[Window()])
        chosen = Conditions(given.contexts, (hint,)).select([k])
        alone = prepare(single, chosen, UNET, NETS[:1])(X[k : k + 1], single.rows[0])
        assert error(together.guided[k : k + 1], alone.guided) < 1e-5
    shared = prepare(plan, given, UNET, NETS[:1])(X, plan.rows[0])
    assert error(together.guided[1:], shared.guided[1:]) > 1e-3


def test_the_row_names_its_context() -> None:
    from dataclasses import replace

    plan, given = plan_of(), conditions(contexts=2)
    predict = prepare(plan, given, UNET)
    second = prepare(plan, Conditions(given.contexts[1:]), UNET)
    assert torch.equal(predict(X, replace(plan.rows[0], context=1)).guided, second(X, plan.rows[0]).guided)
    assert error(predict(X, plan.rows[0]).guided, second(X, plan.rows[0]).guided) > 1e-3


def test_rescale_brings_the_spread_back() -> None:
    uncond, cond = randn(2, 4, 8, 8, seed=1), randn(2, 4, 8, 8, seed=2)
    full = guide(uncond, cond, plan_of(rescale=1.0).rows[0])
    assert torch.allclose(full.std(dim=(1, 2, 3)), cond.std(dim=(1, 2, 3)), rtol=1e-5)
    none = guide(uncond, cond, plan_of().rows[0])
    half = guide(uncond, cond, plan_of(rescale=0.5).rows[0])
    assert torch.allclose(half, 0.5 * full + 0.5 * none, atol=1e-5)
    assert error(full, none) > 0.1


def test_the_dtype_of_the_networks_stays_inside() -> None:
    unet = small_unet(1, shape="deep").to(torch.bfloat16)
    net = small_controlnet(small_unet(1, shape="deep"), 40).to(torch.bfloat16)
    plan, given = plan_of(windows=[Window(0.8)]), conditions(hints=1)
    coarse = prepare(plan, given, unet, [net])(X, plan.rows[0])
    exact = prepare(plan, given, UNET, NETS[:1])(X, plan.rows[0])
    assert coarse.guided.dtype == coarse.cond.dtype == torch.float32
    assert coarse.control[0] is not None
    assert {skip.dtype for skip in coarse.control[0].skips} == {torch.bfloat16}
    assert 1e-4 < error(coarse.cond, exact.cond) < 0.1


def test_spans() -> None:
    probe = Probe()
    plan = plan_of(windows=[Window(), Window(1.0, 0.0, 0.5)])
    predict = prepare(plan, conditions(hints=2), UNET, NETS[:2], names=["depth", "normal"], probe=probe)
    for row in plan.rows:
        predict(X, row, probe)
    counts = {name: node.count for name, node in probe.tree().children.items()}
    assert counts == {
        "hint features": 2,
        "controlnet depth": 4,
        "controlnet normal": 2,
        "unet encode": 4,
        "unet decode": 4,
        "guidance": 4,
    }


def test_conditions_select_and_crop() -> None:
    given = conditions(batch=3, hints=2)
    assert given.batch == 3
    two = given.select([2, 0])
    assert torch.equal(two.contexts[0].cond, given.contexts[0].cond[[2, 0]])
    assert torch.equal(two.hints[0], given.hints[0])
    cut = given.crop(1, 2, 3, 2)
    assert torch.equal(cut.hints[1], given.hints[1][:, :, 8:32, 16:32])
    assert cut.contexts is given.contexts
