"""Recorded and replayed runs are eager runs to the bit; what varies is data, and nothing of another run shows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rawdiff.errors import StaleStep, UsageError
from rawdiff.graphs import EAGER, Graphs, make_runner
from rawdiff.graphs.cache import _Entry
from rawdiff.graphs.tree import build, flatten
from rawdiff.loop import advance, denoise
from rawdiff.nets.attention import KeyValues, cross_attentions
from rawdiff.nets.calls import NetCall
from rawdiff.noise import Noise
from rawdiff.plan import Window, make_plan
from rawdiff.predict import Exact
from rawdiff.sampler import make_sampler
from rawdiff.state import start
from tests.exact_cases import BOUND, NOTHING, SHAPES, Case, error, randn
from tests.no_sync import HostWaits, NoSync
from tests.small_models import small_controlnet, small_scheduler

CPU = torch.device("cpu")


def run(case: Case, predict: Any) -> list[Tensor]:
    """What the networks say at every row, each time of another x."""
    return [predict(randn(case.batch, 4, *case.size, seed=row.index), row).guided for row in case.plan.rows]


@pytest.mark.parametrize(
    "options",
    [
        {"nets": 2, **SHAPES["deep"]},
        {"nets": 1, "guidance": [3.0, 5.0], "hints": 2, **SHAPES["linear"]},
        {"nets": 2, "guess": True, **SHAPES["scale and shift"]},
        {"nets": 1, "guidance": [1.0], **SHAPES["topless"]},
    ],
    ids=["two nets", "a batch", "guess mode", "no guidance"],
)
@pytest.mark.parametrize("exact", [Exact(), NOTHING], ids=["once", "each step"])
def test_as_eager_to_the_bit(options: dict[str, Any], exact: Exact) -> None:
    case, graphs = Case(**options), Graphs(CPU)
    eager, predict = case.prepared(exact), case.prepared(exact, runner=graphs)
    for _ in range(2):
        for ours, theirs in zip(run(case, predict), run(case, eager), strict=True):
            assert torch.equal(ours, theirs)
    first, second = case.plan.rows[:2]
    x = randn(case.batch, 4, *case.size)
    assert error(predict(x, first).guided, predict(x, second).guided) > 100 * BOUND  # the row counts


def test_nothing_is_recorded_again() -> None:
    """Another row, schedule, guidance, weight, window, prompt or hint is other data in the same places."""
    case, graphs = Case(nets=2, shape="plain"), Graphs(CPU)
    run(case, case.prepared(runner=graphs))
    recorded = len(graphs)
    assert recorded == 4  # encode, two nets, decode: also without the second net
    sampler = make_sampler(small_scheduler("EulerDiscreteScheduler"), steps=4)
    windows = [Window(0.3, 0.5), Window(-0.4, 0.0, 0.5)]
    case.plan = make_plan(sampler, guidance=[9.0], rescale=0.5, windows=windows)
    case.given = Case(nets=2, shape="plain", hints=1).given
    case.given = replace(case.given, hints=tuple(hint.flip(2) for hint in case.given.hints))
    predict, eager = case.prepared(runner=graphs), case.prepared()
    for ours, theirs in zip(run(case, predict), run(case, eager), strict=True):
        assert torch.equal(ours, theirs)
    assert len(graphs) == recorded


def test_one_net_twice() -> None:
    """Two hints for one net: both residuals are there when they are joined."""
    case = Case(nets=2, shape="plain")
    case.nets[1] = case.nets[0]
    ours, theirs = (run(case, case.prepared(runner=runner)) for runner in (Graphs(CPU), EAGER))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_runs_in_turn() -> None:
    """Two runs share recordings, and what one said stays said when the other goes on."""
    case, other, graphs = Case(nets=1, shape="plain"), Case(nets=1, shape="plain"), Graphs(CPU)
    other.unet, other.nets = case.unet, case.nets
    other.given = replace(case.given, hints=tuple(hint.flip(3) for hint in case.given.hints))
    x, row = randn(1, 4, *case.size), case.plan.rows[0]
    first, second = case.prepared(runner=graphs), other.prepared(runner=graphs)
    one = first(x, row)
    kept = [t.clone() for t in (one.guided, one.cond, one.control[0].middle)]
    two = second(x, row)
    assert torch.equal(one.guided, kept[0])
    assert torch.equal(one.cond, kept[1])
    with pytest.raises(StaleStep, match="overwritten by another run"):
        _ = one.control
    assert two.control[0] is not None
    assert error(two.control[0].middle, kept[2]) > 100 * BOUND
    assert torch.equal(first(x, row).guided, kept[0])


def test_weights_changed_in_place_are_seen() -> None:
    """A LoRA merged, or another net's weights copied over these; what was computed from them follows."""
    case, graphs = Case(nets=1, shape="plain"), Graphs(CPU)
    predict = case.prepared(runner=graphs)
    before, recorded = run(case, predict), len(graphs)
    other = small_controlnet(case.unet, 77)
    with torch.no_grad():
        for attention in cross_attentions(case.unet):
            attention.to_k.weight.mul_(1.5)
            attention.to_v.weight.add_(0.1)
        case.unet.down_blocks[0].resnets[0].time_emb_proj.weight.mul_(2.0)
        for ours, theirs in zip(case.nets[0].parameters(), other.parameters(), strict=True):
            ours.copy_(theirs)
    for ours, theirs, old in zip(run(case, predict), run(case, case.prepared()), before, strict=True):
        assert torch.equal(ours, theirs)
        assert error(ours, old) > 100 * BOUND
    assert len(graphs) == recorded


@pytest.mark.parametrize("back", [False, True])
def test_weights_moved_by_somebody_else_are_seen(back: bool) -> None:
    """Another runner over the same networks brings them into another memory format, and perhaps back again."""
    case, graphs = Case(nets=1, shape="plain"), Graphs(CPU)
    predict = case.prepared(runner=graphs)
    before, recorded = run(case, predict), len(graphs)
    for net in (case.unet, case.nets[0]):
        for way in (torch.channels_last, torch.contiguous_format)[: 1 + back]:
            net.to(memory_format=way)
    with torch.no_grad():
        case.unet.conv_in.weight.mul_(1.5)
        case.unet.conv_out.weight.mul_(1.5)
        case.nets[0].controlnet_mid_block.weight.mul_(1.5)
    for ours, theirs, old in zip(run(case, predict), run(case, case.prepared()), before, strict=True):
        assert error(ours, theirs) <= BOUND
        assert error(ours, old) > 100 * BOUND
    assert len(graphs) == recorded


def test_what_is_recorded_keeps_the_address_of_a_weight() -> None:
    """Else a weight that goes and comes back may get it again, when others have changed places."""
    net: Any = torch.nn.Conv2d(4, 8, 3)
    recording: Any = None
    for _ in range(8):
        entry = _Entry(recording, [], None, 0, NetCall(net))
        assert not entry.is_stale()
        net.to(memory_format=torch.channels_last).to(memory_format=torch.contiguous_format)
        assert entry.is_stale()


def test_the_host_never_waits() -> None:
    """A step in which the networks are replayed, noise is drawn and the sampler goes on."""
    case, graphs = Case(nets=2, shape="plain"), Graphs(CPU)
    plan = case.plan = make_plan(
        make_sampler(small_scheduler("DDPMScheduler", clip_sample=False), steps=4),
        guidance=[4.0],
        rescale=0.3,
        windows=[Window(), Window(end=0.5)],
    )
    noise = Noise([3], case.size)
    for runner in (graphs, EAGER):
        predict, state = case.prepared(runner=runner), start(plan, noise.draw(0), draws=1)
        for k in range(4):
            if k == 0:  # recorded here
                state, _ = advance(state, plan, predict, noise)
                continue
            with NoSync():
                state, _ = advance(state, plan, predict, noise)
    with NoSync(), pytest.raises(HostWaits):
        list(denoise(start(plan, noise.draw(0), draws=1), plan, predict, noise, watch=("x",)))
    for read in (torch.Tensor.item, bool, torch.Tensor.tolist, torch.Tensor.nonzero, torch.Tensor.cpu):
        with NoSync(), pytest.raises(HostWaits):
            read(torch.ones(1))


@dataclass(frozen=True)
class Scaled:
    """Work with a Python number in it that changes behind the recording's back."""

    numbers: tuple[list[float]]

    def __hash__(self) -> int:
        return 1

    def __call__(self, x: Tensor) -> Tensor:
        return x * self.numbers[0][0]


def test_a_python_number_is_frozen() -> None:
    """As in a CUDA graph: so that a mistake of this kind shows on a CPU too."""
    graphs, call, x = Graphs(CPU), Scaled(([2.0],)), torch.ones(3)
    assert graphs.capture(call)(x).tolist() == [2.0] * 3
    call.numbers[0][0] = 5.0
    assert graphs.capture(call)(2 * x).tolist() == [4.0] * 3
    with pytest.raises(TypeError, match="a float cannot be an argument of recorded work"):
        graphs(call, 2.0)


def _asks(x: Tensor) -> Tensor:
    return x * 2 if float(x.sum()) > 0 else x


def _fails(x: Tensor) -> Tensor:
    raise torch.OutOfMemoryError("out of memory")


@pytest.mark.parametrize("work", [_asks, _fails])
def test_an_error_drops_everything(work: Any) -> None:
    graphs = Graphs(CPU)
    graphs(Scaled(([2.0],)), torch.ones(3))
    assert len(graphs) == 1
    assert graphs.bytes == 2 * 12
    with pytest.raises(RuntimeError):
        graphs(work, torch.ones(3))
    assert len(graphs) == graphs.bytes == 0


def test_an_error_in_the_networks_drops_everything() -> None:
    case, graphs = Case(nets=1, shape="plain"), Graphs(CPU)
    predict, x, row = case.prepared(runner=graphs), randn(1, 4, 8, 6), case.plan.rows[0]
    before = predict(x, row).guided
    assert len(graphs) == 3
    with pytest.raises(RuntimeError):
        predict(randn(1, 3, 8, 6), row)
    assert len(graphs) == 0
    assert torch.equal(predict(x, row).guided, before)


def _double(x: Tensor) -> Tensor:
    return x * 2


def test_the_oldest_are_let_go_of() -> None:
    graphs = Graphs(CPU, limit_bytes=1000)
    for n in (50, 60, 50, 5):  # 400, 480, 400 again, 40 bytes
        assert graphs(_double, torch.ones(n)).tolist() == [2.0] * n
    assert (len(graphs), graphs.bytes) == (3, 920)
    graphs(_double, torch.ones(20))  # 160: without that of 60, the least recently used
    assert (len(graphs), graphs.bytes) == (3, 600)
    graphs(_double, torch.ones(500))  # too large by itself: it is the only one then
    assert (len(graphs), graphs.bytes) == (1, 4000)


def test_unchanged_arguments_are_not_copied_and_changed_ones_are() -> None:
    graphs, x = Graphs(CPU), torch.ones(4)
    graphs(_double, x)
    assert graphs(_double, x).tolist() == [2.0] * 4
    x.mul_(3)  # in place: the same tensor, another version
    assert graphs(_double, x).tolist() == [6.0] * 4
    again = graphs(_double, graphs(_double, x))  # 12, of its own output, which it overwrites
    assert again.tolist() == [12.0] * 4


def test_arguments_and_back() -> None:
    holder = KeyValues({"a": (torch.ones(2), torch.zeros(2)), "b": (torch.ones(3), torch.zeros(3))})
    value = (torch.ones(1), [None, 3, True, "x"], holder)
    tensors, form = flatten(value)
    assert len(tensors) == 5
    assert hash(form) != hash(flatten((torch.ones(1), [None, 3, False, "x"], holder))[1])
    again = build(form, iter(tensors))
    assert again[1] == value[1]
    assert again[2].of("b")[0] is tensors[3]


def test_speeds() -> None:
    assert make_runner(None, CPU) is make_runner("eager", CPU) is EAGER
    with pytest.raises(
        UsageError, match="speed graph: CUDA graphs need a GPU, and this runs on cpu: take eager"
    ):
        make_runner("graph", CPU)
    with pytest.raises(UsageError, match="speed 'fast': expected eager, graph, compile"):
        make_runner("fast", CPU)
