"""A1111's prompt syntax: tables of what it says, and properties that hold for any text."""

from __future__ import annotations

import itertools
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rawdiff.errors import UsageError
from rawdiff.syntax import check_syntax, chunked, find_markup, parse_weights, schedule, take_tags
from rawdiff.syntax.weights import MAX_DEPTH

TEXTS = st.text(st.sampled_from(list("ab 1.5:,|()[]\\<>")) | st.characters(), max_size=60) | st.lists(
    st.sampled_from(["(", ")", "[", "]", ":", "0.5", "3", "|", "a", "b ", "\\", "BREAK", "<lora:", ">"]),
    max_size=40,
).map("".join)


@pytest.mark.parametrize(
    ("text", "runs"),
    [
        ("plain words", [("plain words", 1.0)]),
        ("", []),
        ("a (red) cube", [("a ", 1.0), ("red", 1.1), (" cube", 1.0)]),
        ("a (red:1.3) cube", [("a ", 1.0), ("red", 1.3), (" cube", 1.0)]),
        ("( red : 1.3 )", [(" red ", 1.3)]),
        ("((red))", [("red", 1.1 * 1.1)]),
        ("[red]", [("red", 1 / 1.1)]),
        ("[[red]]", [("red", 1 / 1.1 * (1 / 1.1))]),
        ("((red:1.3) cube)", [("red", 1.3 * 1.1), (" cube", 1.1)]),
        ("(a)(b)", [("ab", 1.1)]),  # one word
        ("(red:.5)", [("red", 0.5)]),
        ("(red:-1)", [("red", -1.0)]),
        ("(red:0)", [("red", 0.0)]),
        (r"\(red\) \[a\] \\", [(r"(red) [a] " + "\\", 1.0)]),
        (r"a\b", [("ab", 1.0)]),
        ("(open", [("open", 1.1)]),
        ("a [open", [("a ", 1.0), ("open", 1 / 1.1)]),
        ("closed) a]", [("closed) a]", 1.0)]),
        ("a:b 1:2", [("a:b 1:2", 1.0)]),
        ("red:1.3)", [("red:1.3)", 1.0)]),
        ("(red:x)", [("red:x", 1.1)]),
        ("(red:1.2.3)", [("red:1.2.3", 1.1)]),
        ("(a(b)", [("a", 1.1), ("b", 1.1 * 1.1)]),
    ],
)
def test_weights(text: str, runs: list[tuple[str, float]]) -> None:
    assert parse_weights(text) == (tuple(runs),)


@pytest.mark.parametrize(
    ("text", "sections"),
    [
        ("a BREAK b", [["a"], ["b"]]),
        ("a\nBREAK\nb BREAK", [["a"], ["b"], []]),
        ("BREAK", [[], []]),
        ("aBREAK BREAKb", [["aBREAK BREAKb"]]),
        ("(a BREAK b:1.5)", [["a"], ["b"]]),
    ],
)
def test_breaks(text: str, sections: list[list[str]]) -> None:
    assert [[run.text for run in section] for section in parse_weights(text)] == sections


def test_white_space_takes_time_in_proportion() -> None:
    spaces = " " * 40_000
    begin = time.process_time()
    found = parse_weights(f"a{spaces}b BREAK{spaces}c")
    assert time.process_time() - begin < 2.0  # looking for BREAK behind each space took minutes
    assert [[run.text for run in section] for section in found] == [[f"a{spaces}b"], ["c"]]


def test_a_weight_holds_on_both_sides_of_a_break() -> None:
    assert parse_weights("(a BREAK b:1.5)") == ((("a", 1.5),), (("b", 1.5),))


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("test", {0: "test"}),
        ("a [b:3]", {0: "a ", 3: "a b"}),
        ("a [b: 3 ]", {0: "a ", 3: "a b"}),
        ("a [[[b]]:2]", {0: "a ", 2: "a [[b]]"}),
        ("[(a:2):3]", {0: "", 3: "(a:2)"}),
        ("a [b : c : 1] d", {0: "a b  d", 1: "a  c  d"}),
        ("a[b:[c:d:2]:1]e", {0: "abe", 1: "ace", 2: "ade"}),
        ("a [unbalanced", {0: "a [unbalanced"}),
        ("a [b:.5] c", {0: "a  c", 5: "a b c"}),
        ("a [b::0.5] c", {0: "a b c", 5: "a  c"}),
        ("[a:b:1.0]", {0: "a"}),
        ("[a:b:1]", {0: "a", 1: "b"}),
        ("[a:b:0]", {0: "b"}),
        ("[a:b:-1]", {0: "b"}),
        ("[a:b:99]", {0: "a"}),
        ("[a:b:0.25] [c:d:0.55]", {0: "a c", 2: "b c", 5: "b d"}),
        ("((a][:b:c [d:3]", {0: "((a][:b:c ", 3: "((a][:b:c d"}),
        ("[a (b:c:3]", {0: "[a (b:c:3]"}),  # a bracket inside without a partner
        ("[a:b]", {0: "[a:b]"}),
        ("[a:b:c:3]", {0: "[a:b:c:3]"}),
        ("[a:b:1.2.3]", {0: "[a:b:1.2.3]"}),
        (r"[a\:b:3]", {0: "", 3: r"a\:b"}),
        (r"\[a:b:3]", {0: r"\[a:b:3]"}),
        ("[a|b:3]", {0: "[a|b:3]"}),
        ("a|b", {0: "a|b"}),
    ],
)
def test_editing(prompt: str, texts: dict[int, str]) -> None:
    assert dict(schedule(prompt, 10)) == texts


def test_turns() -> None:
    assert [text for _, text in schedule("[a|(b:1.1)|]", 5)] == ["a", "(b:1.1)", "", "a", "(b:1.1)"]


@pytest.mark.parametrize(
    ("text", "left", "tags"),
    [
        ("a cube", "a cube", []),
        ("a cube <lora:clay:0.8>", "a cube", [("clay", 0.8)]),
        ("<lora:clay> a cube", "a cube", [("clay", 1.0)]),
        ("a <lora:clay:-1> cube<lora:neon: .5>", "a cube", [("clay", -1.0), ("neon", 0.5)]),
        ("<lo<lora:a:1>ra:b:2>", "", [("a", 1.0), ("b", 2.0)]),
        ("<lora:a> <lora:b> cube <lora:c> ", "cube", [("a", 1.0), ("b", 1.0), ("c", 1.0)]),
        ("<lo <b>ra:c:1> <lora:d:1", "<lo <b>ra:c:1> <lora:d:1", []),
        ("a <b> <hypernet:c:1>", "a <b> <hypernet:c:1>", []),
    ],
)
def test_tags(text: str, left: str, tags: list[tuple[str, float]]) -> None:
    assert take_tags(text) == (left, tuple(tags))


@pytest.mark.parametrize(
    ("text", "left", "count"),
    [
        ("<lora:a:1>" * 20_000, "", 20_000),
        ("<a>" * 20_000, "<a>" * 20_000, 0),
        ("<lo" * 20_000 + "<lora:a>" + "ra:b>" * 20_000, "", 20_001),
    ],
)
def test_many_tags_take_time_in_proportion(text: str, left: str, count: int) -> None:
    begin = time.process_time()
    found = take_tags(text)
    assert time.process_time() - begin < 5.0  # copying the rest for each took minutes
    assert (found[0], len(found[1])) == (left, count)


@pytest.mark.parametrize(
    "text", ["<lora:>", "<lora:a:b>", "<lora:a:0.5:0.7>", "<lora:styles/a.safetensors:1>", "<lora:a:>"]
)
def test_a_tag_that_names_nothing(text: str) -> None:
    with pytest.raises(UsageError, match=r"--lora PATH|expected <lora:name:0\.8>"):
        take_tags(text)


@pytest.mark.parametrize("given", ["A1111", "", 3, ["plain"]])
def test_no_such_syntax(given: object) -> None:
    with pytest.raises(UsageError, match="expected plain or a1111"):
        check_syntax(given)


def test_markup_is_noticed() -> None:
    assert find_markup("a (red:1.2) cube") == "(red:1.2)"
    assert find_markup("a [red:blue:0.5] cube") == "[red:blue:0.5]"
    assert find_markup("a cube <lora:x:1>") == "<lora:x:1>"
    assert find_markup("a (red) cube [nice], at 12:30, (scale 1:2 say)") is None


# ---- any text


@given(TEXTS)
def test_weights_are_total_and_lose_no_letter(text: str) -> None:
    sections = parse_weights(text)
    assert sections
    assert all(run.text and isinstance(run.weight, float) for section in sections for run in section)
    kept = "".join(run.text for section in sections for run in section)
    ignored = r"[\s()\[\]\\:.+\-0-9]|BREAK"
    assert re.sub(ignored, "", kept) == re.sub(ignored, "", text)


@given(st.text(st.characters(exclude_characters="()[]\\")).filter(lambda text: "BREAK" not in text))
def test_text_without_brackets_is_itself(text: str) -> None:
    assert parse_weights(text) == (((text, 1.0),) if text else (),)
    assert schedule(text, 7) == ((0, text),)


@given(TEXTS, st.integers(1, 12))
def test_schedules_are_total_and_a_function_of_prompt_and_steps(text: str, steps: int) -> None:
    found = schedule(text, steps)
    starts = [segment.start for segment in found]
    assert starts[0] == 0
    assert starts == sorted(set(starts))
    assert starts[-1] < steps
    assert all(a.text != b.text for a, b in itertools.pairwise(found))
    assert found == schedule(text, steps)


@given(TEXTS)
def test_tags_are_taken_once(text: str) -> None:
    try:
        left, _ = take_tags(text)
    except UsageError:
        return
    assert take_tags(left) == (left, ())


@pytest.mark.parametrize("piece", ["(", "[", "[a:", "(a", "[a|", ")", "\\"])
def test_deep_nesting_is_no_problem(piece: str) -> None:
    count = 20_000
    parse_weights(piece * count + ":3]" * count)
    assert schedule(piece * count + "a:3]" * count, 1)
    [[run, *_]] = parse_weights("(" * (MAX_DEPTH + 5) + "a")
    assert run.text.endswith("a")
    assert run.weight == pytest.approx(1.1**MAX_DEPTH)


# ---- chunks


WORDS = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=4), max_size=30)


@given(st.lists(st.lists(st.tuples(WORDS, st.floats(0.1, 2.0)), max_size=3), min_size=1, max_size=4))
def test_chunks_hold_everything_in_order_and_cut_no_word(
    sections: list[list[tuple[list[list[int]], float]]],
) -> None:
    chunks = chunked(sections, 5, comma=3)
    flat = [(n, weight) for section in sections for words, weight in section for word in words for n in word]
    assert [pair for chunk in chunks for pair in zip(chunk.numbers, chunk.weights, strict=True)] == flat
    assert chunks
    assert all(len(chunk.numbers) <= 5 for chunk in chunks)
    ends, place = set(), 0
    for section in sections:
        for words, _ in section:
            for word in words:
                place += len(word)
                ends.add(place)
    place = 0
    for chunk in chunks:
        place += len(chunk.numbers)
        assert place in {0, *ends}


def test_what_follows_the_last_comma_moves() -> None:
    words = (
        [[1]] * 70 + [[9]] + [[2]] * 8
    )  # the comma is the 71st, so four words follow it in the first chunk
    first, second = chunked([[(words, 1.0)]], 75, comma=9)
    assert len(first.numbers) == 71
    assert first.numbers[-1] == 9
    assert second.numbers == (2,) * 8
    first, _ = chunked([[([[1]] * 40 + [[9]] + [[2]] * 40, 1.0)]], 75, comma=9)  # too far back
    assert len(first.numbers) == 75


def test_framed() -> None:
    [chunk] = chunked([[([[5], [6, 7]], 1.5)]], 75)
    numbers, weights = chunk.framed(1, 2, 0, 8)
    assert numbers == [1, 5, 6, 7, 2, 0, 0, 0]
    assert weights == [1.0, 1.5, 1.5, 1.5, 1.0, 1.0, 1.0, 1.0]
