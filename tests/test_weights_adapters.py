"""LoRAs on and off: no trace of order and history, weights restored to the bit, and what fails is undone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from rawdiff.errors import ResourceError, UsageError, WeightsError
from rawdiff.weights import Adapters, Lora, adapters, read_lora
from tests.lora_files import (
    EVERYTHING,
    Networks,
    hooked,
    kohya,
    lora_of,
    merged,
    outputs,
    product,
    random_changes,
    relative,
    same,
    small_networks,
    state,
    write,
)


@pytest.fixture
def networks() -> Networks:
    return small_networks()


@pytest.fixture
def three(networks: Networks, tmp_path: Path) -> list[Lora]:
    """Two that share most layers, and one of the UNet's middle alone."""
    return [
        lora_of(networks, tmp_path, 1),
        lora_of(networks, tmp_path, 2, layers=r"to_q$|to_v$|fc1$"),
        lora_of(networks, tmp_path, 3, layers=r"mid_block.*to_"),
    ]


def test_order_and_history_leave_no_trace(networks: Networks, three: list[Lora]) -> None:
    a, b, c = three
    before = state(networks)
    expected = merged(networks, (a, 0.3), (b, -1.1), (c, 0.7))
    assert not same(expected, before)
    for pairs in ([(b, -1.1), (a, 0.3), (c, 0.7)], [(c, 0.7), (b, -1.1), (a, 0.3)]):
        assert same(merged(networks, *pairs), expected)
    made = Adapters(**networks)
    for step in ([(a, 1)], [], [(a, 0.2), (c, 5)], [(b, -1.1), (c, 1)], [(c, 0.7), (a, 0.3), (b, -1.1)]):
        made.set(step)
        assert made.applied == tuple((lora, float(scale)) for lora, scale in step)
    assert same(state(networks), expected)
    made.clear()
    assert same(state(networks), before)
    assert made.applied == ()
    made.clear()
    assert same(state(networks), before)


def test_two_loras_are_the_sum_of_their_products(networks: Networks, tmp_path: Path) -> None:
    pair = [random_changes(networks, seed) for seed in (1, 2)]
    loras = [read_lora(write(tmp_path / f"{k}.safetensors", kohya(c))) for k, c in enumerate(pair)]
    with hooked(networks, pair[0], 0.4), hooked(networks, pair[1], -0.9):
        expected = outputs(networks)
    made = Adapters(**networks)
    made.set([(loras[0], 0.4), (loras[1], -0.9)])
    assert relative(outputs(networks), expected) < 1e-5
    made.set([(loras[0], 0.4), (loras[0], 0.6)])
    twice = state(networks)
    made.set([(loras[0], 1.0)])
    assert all(torch.allclose(twice[k], v, rtol=1e-5, atol=1e-6) for k, v in state(networks).items())


def test_scale_zero_is_pristine(networks: Networks, three: list[Lora]) -> None:
    with torch.no_grad():
        networks["unet"].mid_block.attentions[0].transformer_blocks[0].attn1.to_q.weight[0].fill_(-0.0)
    before = state(networks)
    made = Adapters(**networks)
    made.set([(three[0], 0)])
    assert same(state(networks), before)
    made.set([(three[0], 1.0), (three[2], 2.0)])
    made.set([(three[0], 0.0), (three[2], -0.0)])
    assert same(state(networks), before)
    made.set([(three[0], 1.0), (three[2], 0.0)])
    assert same(state(networks), merged_fresh := state(networks))
    made.clear()
    assert same(merged(networks, (three[0], 1.0)), merged_fresh)
    assert same(state(networks), before)


def test_tensors_stay_where_they_are(networks: Networks, three: list[Lora]) -> None:
    """Whoever holds a parameter, its data or a view of it sees the change."""
    layer = networks["unet"].mid_block.attentions[0].transformer_blocks[0].attn1.to_q
    parameter, data, view = layer.weight, layer.weight.data, layer.weight.detach()[1]
    before, made = parameter.clone(), Adapters(**networks)
    made.set([(three[0], 1.0)])
    assert layer.weight is parameter
    assert not torch.equal(parameter, before)
    assert torch.equal(data, parameter)
    assert torch.equal(view, parameter[1])
    made.clear()
    assert torch.equal(data, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_weights_are_rounded_once(networks: Networks, tmp_path: Path, dtype: torch.dtype) -> None:
    changes = random_changes(networks, layers=EVERYTHING, strength=0.2)
    pair = [random_changes(networks, seed, layers=EVERYTHING, strength=0.2) for seed in (1, 2)]
    loras = [read_lora(write(tmp_path / f"{k}.safetensors", kohya(c))) for k, c in enumerate(pair)]
    for network in networks.values():
        network.to(dtype)
    before, made = state(networks), Adapters(**networks)
    made.set([(loras[0], 0.7), (loras[1], 0.2)])
    exact = 0
    for part, name in changes:
        found = networks[part].get_submodule(name).weight
        wide = before[f"{part}.{name}.weight"].double()
        for one, scale in zip(pair, (0.7, 0.2), strict=True):
            wide += scale * one[part, name].scale * product(one[part, name]).double()
        step = torch.finfo(dtype).eps * wide.abs() + 1e-6
        assert bool(((found.double() - wide).abs() <= 0.51 * step).all()), name
        exact += int((found == wide.to(dtype)).sum())
    assert exact > 0.99 * sum(networks[part].get_submodule(name).weight.numel() for part, name in changes)
    made.clear()
    assert same(state(networks), before)


def test_trainable_weights_and_other_memory_formats(
    networks: Networks, three: list[Lora], tmp_path: Path
) -> None:
    expected = merged(networks, (three[0], 1.0))
    conv = lora_of(networks, tmp_path, 9, layers=r"conv")
    expected_conv = merged(networks, (conv, 1.0))
    networks["unet"].to(memory_format=torch.channels_last).requires_grad_(True)
    before = state(networks)
    assert same(merged(networks, (three[0], 1.0)), expected)
    assert same(merged(networks, (conv, 1.0)), expected_conv)
    assert same(state(networks), before)


def test_autocast_does_not_reach_the_merge(networks: Networks, three: list[Lora]) -> None:
    expected = merged(networks, (three[0], 1.0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert same(merged(networks, (three[0], 1.0)), expected)


def tied(networks: Networks) -> tuple[nn.Module, nn.Module]:
    block = networks["unet"].mid_block.attentions[0].transformer_blocks[0].attn1
    block.to_k.weight = block.to_q.weight
    return block.to_q, block.to_k


def test_a_tied_weight_is_changed_once(networks: Networks, tmp_path: Path) -> None:
    to_q, to_k = tied(networks)
    changes = random_changes(networks, layers=r"mid_block.*attn1.to_[qk]$")
    first, second = changes.values()
    second.down, second.up, second.alpha = first.down, first.up, first.alpha
    lora = read_lora(write(tmp_path / "x.safetensors", kohya(changes)))
    before, made = to_q.weight.clone(), Adapters(**networks)
    made.set([(lora, 1.0)])
    assert to_k.weight is to_q.weight
    assert relative(to_q.weight, before + first.scale * product(first)) < 1e-6
    made.clear()
    assert torch.equal(to_q.weight, before)
    second.up = second.up + 1
    lora = read_lora(write(tmp_path / "x.safetensors", kohya(changes)))
    with pytest.raises(
        WeightsError, match=r"to_q, which shares its weight with unet\.mid_block.*to_k; expected"
    ):
        made.set([(lora, 1.0)])
    assert torch.equal(to_q.weight, before)


def test_a_weight_shared_between_two_loras_is_changed_by_both(networks: Networks, tmp_path: Path) -> None:
    to_q, _ = tied(networks)
    changes = random_changes(networks, layers=r"mid_block.*attn1.to_[qk]$")
    loras = [
        read_lora(write(tmp_path / f"{k}.safetensors", kohya({key: change})))
        for k, (key, change) in enumerate(changes.items())
    ]
    before, made = to_q.weight.clone(), Adapters(**networks)
    made.set([(lora, 1.0) for lora in loras])
    expected = before + sum(change.scale * product(change) for change in changes.values())
    assert relative(to_q.weight, expected) < 1e-6
    made.set([(loras[1], 1.0)])
    made.clear()
    assert torch.equal(to_q.weight, before)


# ------------------------------------------------------------------------------------------ what goes wrong


def test_an_overflow_is_undone(networks: Networks, three: list[Lora]) -> None:
    for network in networks.values():
        network.half()
    made = Adapters(**networks)
    made.set([(three[1], 0.5)])
    before = state(networks)
    for scale in (1e6, -1e300):
        with pytest.raises(
            WeightsError, match=r"^unet\.\S+: with these LoRAs a weight is too large for float16;"
        ):
            made.set([(three[0], scale), (three[1], 0.5)])
        assert same(state(networks), before)
        assert made.applied == ((three[1], 0.5),)
    made.clear()
    assert not same(state(networks), before)


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception, int, int], None]:
    """Let the merging of one layer fail: from the `after`-th on, `times` times."""
    whole = adapters._merged

    def install(error: Exception, after: int, times: int) -> None:
        count = 0

        def fails(*given: Any) -> Tensor:
            nonlocal count
            count += 1
            if after <= count < after + times:
                raise error
            return whole(*given)

        monkeypatch.setattr(adapters, "_merged", fails)

    return install


def test_what_fails_halfway_is_undone(networks: Networks, three: list[Lora], broken: Any) -> None:
    pristine, made = state(networks), Adapters(**networks)
    made.set([(three[1], 0.5)])
    before = state(networks)
    broken(torch.OutOfMemoryError("CUDA out of memory"), 4, 1)
    with pytest.raises(
        ResourceError, match=r"^out of memory while merging LoRAs \(those before are still on\): take"
    ):
        made.set([(three[0], 1.0)])
    assert same(state(networks), before)
    broken(RuntimeError("other"), 4, 1)
    with pytest.raises(RuntimeError, match="other"):
        made.set([(three[0], 1.0)])
    assert same(state(networks), before)
    broken(torch.OutOfMemoryError("CUDA out of memory"), 4, 1000)
    with pytest.raises(ResourceError, match=r"\(none is on\)"):
        made.set([(three[0], 1.0)])
    assert same(state(networks), pristine)
    assert made.applied == ()


def test_all_are_checked_before_any_is_merged(networks: Networks, three: list[Lora], tmp_path: Path) -> None:
    other = small_networks(shape="deep")
    foreign = lora_of(other, tmp_path, 5)
    before, made = state(networks), Adapters(**networks)
    for pairs in ([(three[0], 1.0), (foreign, 1.0)], [(foreign, 0.0)]):
        with pytest.raises(WeightsError, match="layers are not in this model"):
            made.set(pairs)
        assert same(state(networks), before)


SCALES: list[tuple[Any, str]] = [
    (float("nan"), "found nan"),
    (float("inf"), "found inf"),
    (-float("inf"), "found -inf"),
    (True, "found bool"),
    ("1", "found str"),
    (None, "found NoneType"),
    (10**5000, "found int"),
    (torch.tensor(1.0), "found Tensor"),
]


@pytest.mark.parametrize(("scale", "words"), SCALES, ids=[words for _, words in SCALES])
def test_scales_that_are_none(networks: Networks, three: list[Lora], scale: Any, words: str) -> None:
    before, made = state(networks), Adapters(**networks)
    with pytest.raises(UsageError) as caught:
        made.set([(three[0], 1.0), (three[1], scale)])
    assert str(caught.value) == f"scale of {three[1].path}: {words}, expected a finite number"
    assert same(state(networks), before)


def test_what_is_no_list_of_loras(networks: Networks, three: list[Lora]) -> None:
    made = Adapters(**networks)
    for wrong, words in (
        (three[0], "loras: found Lora, expected a list of pairs of a LoRA and its scale"),
        (three, "expected a pair of a LoRA and its scale"),
        ([("x.safetensors", 1.0)], "expected a pair of a LoRA and its scale"),
        ([(three[0],)], "expected a pair of a LoRA and its scale"),
    ):
        with pytest.raises(UsageError, match=words):
            made.set(wrong)  # type: ignore[arg-type]


def test_weights_that_cannot_be_changed(three: list[Lora]) -> None:
    with torch.inference_mode():
        frozen = small_networks()
    with pytest.raises(UsageError, match=r"^\S+ was made under inference_mode and cannot be changed: load"):
        Adapters(**frozen).set([(three[0], 1.0)])
    empty = {part: network.to("meta") for part, network in small_networks().items()}
    with pytest.raises(UsageError, match=r"^\S+ has no values yet: expected a weight in fp16, bf16, fp32"):
        Adapters(**empty).set([(three[0], 1.0)])
    coarse = small_networks()
    layer = coarse["unet"].mid_block.attentions[0].transformer_blocks[0].attn1.to_q
    layer.weight = nn.Parameter(layer.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(UsageError, match=r"attn1\.to_q has dtype int8: expected"):
        Adapters(**coarse).set([(three[0], 1.0)])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.tuples(st.integers(0, 2), st.floats(-2, 2)), max_size=3), max_size=4))
def test_any_course_of_changes_ends_where_its_end_alone_would(
    networks: Networks, three: list[Lora], course: list[list[tuple[int, float]]]
) -> None:
    before, made = state(networks), Adapters(**networks)
    for step in course:
        made.set([(three[k], scale) for k, scale in step])
    found = state(networks)
    made.clear()
    assert same(state(networks), before)
    assert same(found, merged(networks, *[(three[k], scale) for k, scale in (course or [[]])[-1]]))
