"""Graphs and streams on a GPU: equal to eager and to serial, fed by rows, dropped on errors, given back at the end."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import Tensor

from rawdiff.decode import decode
from rawdiff.graphs import EAGER, Graphs, Runner, Streams, make_runner, parallel
from rawdiff.loop import advance
from rawdiff.noise import Noise
from rawdiff.plan import Window, make_plan
from rawdiff.predict import prepare
from rawdiff.probes import NO_PROBE
from rawdiff.sampler import make_sampler
from rawdiff.state import start
from tests.exact_cases import BOUND, Case, error, randn
from tests.small_models import small_scheduler, small_vae

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.usefixtures("whole_fp32"),
]
pytest_plugins = ["tests.gpu_fixtures"]

CUDA = torch.device("cuda")


def case_on_gpu(
    nets: int = 2, dtype: torch.dtype = torch.float16, sampler: str = "DDIMScheduler", **options: Any
) -> Case:
    case = Case(nets=nets, **{"shape": "deep", "size": (32, 24), **options})
    case.unet.to(CUDA, dtype)
    for net in case.nets:
        net.to(CUDA, dtype)
    windows = [Window(0.8), Window(1.1, 0.0, 0.7), Window(0.5)][:nets]
    made = make_sampler(small_scheduler(sampler), steps=4)
    case.plan = make_plan(made, guidance=[4.0] * case.batch, windows=windows, device=CUDA)
    return case


def run(case: Case, runner: Runner) -> list[Tensor]:
    """What the networks say at every row, each time of another x."""
    predict = prepare(case.plan, case.given, case.unet, case.nets, runner=runner)
    xs = [randn(case.batch, 4, *case.size, seed=row.index).to(CUDA) for row in case.plan.rows]
    return [predict(x, row).guided for x, row in zip(xs, case.plan.rows, strict=True)]


@pytest.mark.parametrize("nets", [0, 1, 3])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_graphs_as_eager_to_the_bit(nets: int, dtype: torch.dtype) -> None:
    """The same kernels, so the same bits; formats and attention are not chosen here, for those pick other kernels."""
    case, graphs = case_on_gpu(nets, dtype), Graphs(CUDA)
    eager = run(case, EAGER)
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(run(case, graphs), eager, strict=True))
    assert error(eager[0], eager[1]) > 100 * BOUND


@pytest.mark.parametrize("speed", ["eager", "graph"])
def test_as_chosen(speed: str) -> None:
    """With the memory format and the attention kernel that measured best: equal but for rounding."""
    case = case_on_gpu(2, torch.float32)
    eager = run(case, EAGER)
    assert all(error(a, b) <= 1e-3 for a, b in zip(run(case, make_runner(speed, CUDA)), eager, strict=True))


def test_rows_are_not_recorded_again() -> None:
    case, graphs = case_on_gpu(), Graphs(CUDA)
    run(case, graphs)
    recorded = len(graphs)
    case.plan = make_plan(
        make_sampler(small_scheduler("EulerDiscreteScheduler"), steps=7),
        guidance=[9.0],
        windows=[Window(0.3), Window(-0.2)],
        device=CUDA,
    )
    ours, theirs = run(case, graphs), run(case, EAGER)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert len(graphs) == recorded


def test_side_by_side_as_serial() -> None:
    """Again and again, with allocations in between: a block that is used again too early shows sooner or later."""
    case = case_on_gpu(3, size=(64, 64))
    serial = run(case, Graphs(CUDA, streams=Streams(CUDA, side_by_side=False)))
    for side in (
        Graphs(CUDA, streams=Streams(CUDA, side_by_side=True)),
        Runner(Streams(CUDA, side_by_side=True)),
    ):
        for k in range(25):
            found = run(case, side)
            waste = [torch.full((1 << (10 + n % 8),), float("nan"), device=CUDA) for n in range(k)]
            assert all(torch.equal(a, b) for a, b in zip(found, serial, strict=True))
            del waste


def test_parallel_holds_what_crosses() -> None:
    """Long work on a side stream reads what the main stream made, while that asks for memory of the same size."""
    streams = [torch.cuda.Stream()]
    n = 1 << 22

    def crossing(k: int) -> Tensor:
        x = torch.full((n,), float(k), device=CUDA)

        def side(probe: Any) -> Tensor:
            torch.cuda._sleep(20_000_000)
            return x * 2

        def own(probe: Any) -> Tensor:
            for _ in range(8):
                torch.full((n,), -1.0, device=CUDA)
            return torch.ones(1, device=CUDA)

        return parallel([side, own], streams, NO_PROBE)[0]

    for k in range(10):
        assert bool((crossing(k) == 2 * k).all())


@pytest.mark.parametrize("speed", ["eager", "graph"])
def test_the_host_never_waits(speed: str) -> None:
    case, runner = case_on_gpu(), make_runner(speed, CUDA)
    noise = Noise([3], case.size, CUDA)
    predict = prepare(case.plan, case.given, case.unet, case.nets, runner=runner)

    def whole(state: Any) -> Any:
        while state.row(case.plan) is not None:
            state, _ = advance(state, case.plan, predict, noise)
        return state

    first = start(case.plan, noise.draw(0), draws=1)
    before = whole(first).x  # recorded and measured here
    torch.cuda.set_sync_debug_mode("error")
    try:
        after = whole(first).x
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(before, after)


def test_an_error_drops_graphs() -> None:
    case, graphs = case_on_gpu(1), Graphs(CUDA)
    before = run(case, graphs)

    def broken(x: Tensor) -> Tensor:
        return x * float(x.sum())  # a wait, which a capture does not survive

    with pytest.raises(RuntimeError):
        graphs(broken, torch.ones(4, device=CUDA))
    assert len(graphs) == graphs.bytes == 0
    assert all(torch.equal(a, b) for a, b in zip(run(case, graphs), before, strict=True))


def test_invalid_captures_leave_no_pool_open() -> None:
    """What is allocated after them is given back as ever."""
    graphs, x = Graphs(CUDA), torch.ones(4, device=CUDA)

    def broken(x: Tensor) -> Tensor:
        y = torch.empty(1 << 22, device=CUDA)
        return y[:4] + x * float(x.sum())

    reserved = []
    for _ in range(4):
        with pytest.raises(RuntimeError):
            graphs(broken, x)
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        reserved.append(torch.cuda.memory_reserved())
    assert reserved[1] == reserved[3]


def test_another_runner_may_change_the_memory_format() -> None:
    case, first, second = case_on_gpu(1, torch.float32), Graphs(CUDA), Graphs(CUDA)
    run(case, first)
    run(case, second)
    for net in (case.unet, *case.nets):
        net.to(memory_format=torch.channels_last)
    torch.cuda.empty_cache()
    eager = run(case, EAGER)
    for runner in (first, second):
        assert all(error(a, b) <= 1e-3 for a, b in zip(run(case, runner), eager, strict=True))


def test_the_format_of_the_vae() -> None:
    vae, latents = small_vae(3).to(CUDA), randn(1, 4, 16, 24).to(CUDA)
    expected = decode(vae, latents)
    assert error(decode(vae, latents, runner=make_runner("graph", CUDA)), expected) <= 1e-3


def test_one_let_go_of_leaves_the_others() -> None:
    """Products that use cuBLAS's working memory, which the one let go of must not take along."""
    a, b = (torch.randn(4096, 2048, device=CUDA, dtype=torch.float16) for _ in range(2))
    graphs, expected = Graphs(CUDA), a.T @ b

    def product(x: Tensor, y: Tensor) -> Tensor:
        return x.T @ y

    for place in range(3):
        graphs(product, a, b, place=place)
    first = next(iter(graphs._entries))
    del graphs._entries[first]
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    waste = [torch.full((1 << 24,), float("nan"), device=CUDA) for _ in range(4)]
    for place in (1, 2):
        assert torch.equal(graphs(product, a, b, place=place), expected)
    del waste


def test_memory_is_given_back() -> None:
    case = case_on_gpu()
    run(case, EAGER)  # libraries keep workspaces
    graphs = Graphs(CUDA)
    baseline = []
    for _ in range(3):
        run(case, graphs)
        assert graphs.bytes > 0
        graphs.drop()
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        baseline.append((torch.cuda.memory_allocated(), torch.cuda.memory_reserved()))
    assert baseline[1] == baseline[2]


def test_the_oldest_sizes_are_let_go_of() -> None:
    case = case_on_gpu(0)
    graphs = Graphs(CUDA)
    run(case, graphs)
    small = Graphs(CUDA, limit_bytes=graphs.bytes + graphs.bytes // 4)
    for size in ((32, 24), (24, 32), (32, 32), (32, 24)):
        other = case_on_gpu(0, size=size)
        other.unet = case.unet
        ours, theirs = run(other, small), run(other, EAGER)
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert small.bytes <= small.limit_bytes


def test_the_vae() -> None:
    vae, latents = small_vae(3).to(CUDA), randn(2, 4, 16, 24).to(CUDA)
    assert torch.equal(decode(vae, latents, runner=Graphs(CUDA)), decode(vae, latents))


@pytest.mark.slow
def test_compiled() -> None:
    case = case_on_gpu(1, torch.float32, shape="plain")
    eager = run(case, EAGER)
    ours = run(case, make_runner("compile", CUDA))
    assert all(error(a, b) <= 1e-3 for a, b in zip(ours, eager, strict=True))
