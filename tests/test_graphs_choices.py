"""What is chosen by measurement: with a clock that is told what to say, and equal results whatever is chosen."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend
from torch.nn.functional import scaled_dot_product_attention

from rawdiff.decode import decode
from rawdiff.graphs import Graphs, Group, Runner, Streams
from rawdiff.graphs.choices import Choices
from rawdiff.graphs.compiled import Compiled
from rawdiff.graphs.formats import Formats
from rawdiff.graphs.kernels import Kernels
from rawdiff.graphs.speed import compiled
from rawdiff.nets import attention
from rawdiff.probes import NO_PROBE
from tests.exact_cases import BOUND, Case, error, randn
from tests.small_models import small_vae

CPU = torch.device("cpu")


def run(case: Case, predict: Any) -> list[torch.Tensor]:
    return [predict(randn(case.batch, 4, *case.size, seed=row.index), row).guided for row in case.plan.rows]


def told(times: dict[str, float]) -> tuple[Callable[[Callable[[], Any]], float], list[str]]:
    """A clock that says what `times` says of what the work returns, and what it was asked."""
    asked: list[str] = []

    def clock(work: Callable[[], Any]) -> float:
        asked.append(work())
        return times[asked[-1]]

    return clock, asked


def test_what_warns_before_it_refuses_is_left_out_without_a_word() -> None:
    """So do attention backends; here, in the tests, a warning would be an error of another kind."""

    def refuses() -> str:
        warnings.warn("not for this dtype", UserWarning, stacklevel=2)
        raise RuntimeError("no kernel")

    clock, asked = told({"usual": 2.0})
    options: dict[str, Any] = {"usual": lambda: "usual", "refused": refuses}
    assert Choices(clock).pick("which", options) == "usual"
    assert set(asked) == {"usual"}


def test_the_fastest_is_measured_once() -> None:
    clock, asked = told({"usual": 2.0, "fast": 1.0, "slow": 3.0})
    choices = Choices(clock, repetitions=3)
    options = {name: (lambda name=name: name) for name in ("usual", "fast", "slow")}
    assert choices.known("q", "usual") == "usual"
    assert choices.pick("q", options) == "fast"
    assert len(asked) == 3 * 4
    assert choices.pick("q", options) == choices.known("q", "usual") == "fast"
    assert len(asked) == 3 * 4
    choices.pick("another", options)
    assert len(asked) == 2 * 3 * 4


def test_what_is_as_good_as_equal_stays_as_it_is() -> None:
    clock, _ = told({"usual": 1.0, "other": 0.98})
    options = {name: (lambda name=name: name) for name in ("usual", "other")}
    assert Choices(clock, margin=0.03).pick("q", options) == "usual"
    assert Choices(clock, margin=0.01).pick("q", options) == "other"


class Kept(dict[str, str]):
    """What another process would find."""

    def put(self, question: str, answer: str) -> None:
        self[question] = answer


def test_another_process_chooses_the_same() -> None:
    """Also by a clock that says otherwise: another choice would be other bits."""
    kept, options = Kept(), {name: (lambda name=name: name) for name in (None, False, SDPBackend.MATH)}
    times = {None: 2.0, False: 1.0, SDPBackend.MATH: 3.0}
    first = Choices(lambda work: times[work()], keeper=kept, name="a")
    assert first.pick((1, torch.float16), options) is False
    assert kept == {"a: (1, torch.float16)": "False"}
    kept["a: (2,)"] = str(SDPBackend.MATH)
    other = Choices(lambda work: -times[work()], keeper=kept, name="a")
    assert other.pick((1, torch.float16), options) is False
    assert other.pick((2,), options) is SDPBackend.MATH
    assert Choices(lambda work: times[work()], keeper=kept, name="b").pick((2,), options) is False
    assert kept["b: (2,)"] == "False"


@pytest.mark.parametrize("answer", ["refused", "of another version"])
def test_what_was_kept_and_cannot_be_run_is_measured_again(answer: str) -> None:
    clock, _ = told({"usual": 1.0, "other": 2.0})
    kept = Kept({": q": answer})
    options = {"usual": lambda: "usual", "refused": _refuse, "other": lambda: "other"}
    assert Choices(clock, keeper=kept).pick("q", options) == "usual"
    assert kept == {": q": "usual"}


def _refuse() -> str:
    raise RuntimeError("no available kernel")


def _too_large() -> str:
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_what_cannot_be_run_is_no_option() -> None:
    clock, _ = told({"usual": 1.0})
    assert Choices(clock).pick("q", {"usual": lambda: "usual", "other": _refuse}) == "usual"
    assert Choices(clock).pick("q", {"none": _refuse, "usual": lambda: "usual"}) == "usual"
    assert Choices(clock).pick("q", {"none": _refuse}) == "none"
    with pytest.raises(torch.OutOfMemoryError):
        Choices(clock).pick("q", {"usual": lambda: "usual", "other": _too_large})


def test_attention_by_shape() -> None:
    """Another kernel where it is faster; the same numbers, and nothing measured twice or while it is recorded."""
    asked = [0]

    def clock(work: Callable[[], Any]) -> float:
        asked[0] += 1
        work()
        return 1.0 / asked[0]  # whatever comes later is faster

    kernels = Kernels(clock, (SDPBackend.MATH,))
    q, k, v = (randn(1, 2, n, 16, seed=seed) for seed, n in enumerate((12, 7, 7)))
    assert error(kernels(q, k, v), scaled_dot_product_attention(q, k, v)) <= BOUND
    measured = asked[0]
    assert measured > 0
    kernels(q, k, v)
    assert asked[0] == measured
    case = Case(nets=1, shape="plain")
    graphs = Graphs(CPU, choosing=partial(attention.using, kernels))
    for ours, theirs in zip(run(case, case.prepared(runner=graphs)), run(case, case.prepared()), strict=True):
        assert error(ours, theirs) <= BOUND
    assert asked[0] > measured
    measured = asked[0]
    run(case, case.prepared(runner=graphs))
    assert asked[0] == measured


@pytest.mark.parametrize("last_wins", [True, False])
def test_the_memory_format(last_wins: bool) -> None:
    case = Case(nets=1, shape="plain")
    expected = run(case, case.prepared())
    conv = case.unet.conv_in

    def clock(work: Callable[[], Any]) -> float:
        work()
        is_last = conv.weight.is_contiguous(memory_format=torch.channels_last)
        return 1.0 if is_last == last_wins else 2.0

    graphs = Graphs(CPU, formats=Formats(clock))
    predict = case.prepared(runner=graphs)
    for ours, theirs in zip(run(case, predict), expected, strict=True):
        assert error(ours, theirs) <= BOUND
    for net in (case.unet, case.nets[0]):
        assert net.conv_in.weight.is_contiguous(memory_format=torch.channels_last) == last_wins
    other = Case(nets=1, shape="plain")  # a net that comes later follows
    case.nets = other.nets
    run(case, case.prepared(runner=graphs))
    assert other.nets[0].conv_in.weight.is_contiguous(memory_format=torch.channels_last) == last_wins


def test_the_memory_format_of_another_process() -> None:
    """Nothing is run to find it; and it is kept for what it was measured of."""
    kept, asked = Kept(), [0]

    def clock(work: Callable[[], Any]) -> float:
        work()
        asked[0] += 1
        return 10.0 / asked[0]  # whatever comes later is faster

    def forbidden(work: Callable[[], Any]) -> float:
        raise AssertionError("measured")

    for one in (clock, forbidden):
        case = Case(nets=1, shape="plain")
        run(case, case.prepared(runner=Graphs(CPU, formats=Formats(one, keeper=kept))))
        assert case.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    [(question, answer)] = kept.items()
    assert answer == "torch.channels_last"
    for word in ("memory format", "(1, 4, 8, 6)", "torch.float32", "UNet2DConditionModel", "ControlNetModel"):
        assert word in question
    other = Case(nets=1, shape="plain", size=(16, 8))
    predict = other.prepared(runner=Graphs(CPU, formats=Formats(forbidden, keeper=kept)))
    with pytest.raises(AssertionError, match="measured"):
        run(other, predict)


def test_a_memory_format_without_room_is_not_taken() -> None:
    """Nor kept: another time there may be room."""
    kept, net, drops = Kept(), torch.nn.Conv2d(4, 4, 3), [0]

    def work() -> None:
        if net.weight.is_contiguous(memory_format=torch.channels_last):
            raise torch.OutOfMemoryError("CUDA out of memory")

    def drop() -> None:
        drops[0] += 1

    formats = Formats(lambda work: work() or 1.0, keeper=kept)
    formats.settle([net], work, "question", drop)
    assert net.weight.is_contiguous()
    assert drops == [3]
    assert kept == {}


def test_room_for_neither_memory_format_is_the_callers_to_see() -> None:
    """What takes less room, in tiles say, is measured then."""
    kept, net, room = Kept(), torch.nn.Conv2d(4, 4, 3), [False]

    def work() -> None:
        if not room[0]:
            raise torch.OutOfMemoryError("CUDA out of memory")

    def clock(work: Callable[[], Any]) -> float:
        work()
        return 1.0 if net.weight.is_contiguous(memory_format=torch.channels_last) else 2.0

    formats = Formats(clock, keeper=kept)
    with pytest.raises(torch.OutOfMemoryError):
        formats.settle([net], work, "whole", lambda: None)
    assert kept == {}
    room[0] = True
    formats.settle([net], work, "tiles", lambda: None)
    assert net.weight.is_contiguous(memory_format=torch.channels_last)
    assert list(kept) == ["memory format: tiles"]


@pytest.mark.parametrize("last_wins", [True, False])
def test_the_vae_has_a_format_of_its_own(last_wins: bool) -> None:
    """And what was recorded of the UNet stays."""
    case, vae, latents = Case(nets=1, shape="plain"), small_vae(3), randn(2, 4, 8, 6)
    expected = decode(vae, latents)
    weight = vae.decoder.conv_in.weight

    def clock(work: Callable[[], Any]) -> float:
        work()
        is_last = weight.is_contiguous(memory_format=torch.channels_last)
        return 1.0 if is_last == last_wins else 2.0

    graphs = Graphs(CPU, formats=Formats(clock))
    run(case, case.prepared(runner=graphs))
    recorded = len(graphs)
    assert error(decode(vae, latents, runner=graphs), expected) <= BOUND
    assert weight.is_contiguous(memory_format=torch.channels_last) == last_wins
    assert not case.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert len(graphs) == recorded + 1


def test_works_side_by_side_are_asked_about_by_kind() -> None:
    """Other networks of the same form are the same question; another memory format is another."""
    seen: list[Group] = []

    class Asking(Runner):
        def together(self, works: Any, probe: Any, group: Group) -> list[Any]:
            seen.append(group)
            return super().together(works, probe, group)

    first, second = Case(nets=1, shape="plain"), Case(nets=1, shape="plain")
    for case in (first, second):
        run(case, case.prepared(runner=Asking()))
    n = len(first.plan.rows)
    assert [group.question for group in seen[:n]] == [group.question for group in seen[n:]]
    assert seen[0].own != seen[n].own
    first.unet.to(memory_format=torch.channels_last)
    run(first, first.prepared(runner=Asking()))
    assert seen[-1].question != seen[0].question
    assert seen[-1].own == seen[0].own
    assert str(id(first.unet)) not in repr(seen[0].question)


def test_serial_off_cuda() -> None:
    asked: list[int] = []
    works = [lambda probe, k=k: asked.append(k) or k for k in range(3)]
    assert Streams(CPU, side_by_side=True).together(works, NO_PROBE, Group("alike", ())) == [0, 1, 2]
    assert asked == [0, 1, 2]


def test_compiled_in_one_piece() -> None:
    """Every network goes through torch.compile without a break (its front half here, which needs no C++ compiler)."""
    case = Case(nets=1, shape="plain")
    runner = Compiled(partial(compiled, backend="eager"))
    for ours, theirs in zip(run(case, case.prepared(runner=runner)), run(case, case.prepared()), strict=True):
        assert error(ours, theirs) <= BOUND
