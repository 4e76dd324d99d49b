"""What the embedded model's scripts share: numbers on their command lines, and tables as pictures."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from scripts.embedded import features
from scripts.embedded.arguments import amount, counting, positive, share
from scripts.embedded.plots import draw_rows
from scripts.embedded.steering import STUDIES, Row, scene


@pytest.mark.parametrize("text", ["-3", "nan", "inf", "much", ""])
def test_what_is_no_number_to_count_by_is_refused(text: str) -> None:
    for kind, expected in ((counting, "of at least 0"), (positive, "above 0"), (share, "from 0 to 1")):
        with pytest.raises(argparse.ArgumentTypeError, match=expected):
            kind(text)


def test_numbers_have_their_bounds() -> None:
    assert [counting("0"), counting("10"), positive("1e-5"), share("0"), share("1")] == [0, 10, 1e-5, 0, 1]
    with pytest.raises(argparse.ArgumentTypeError, match="from 0 to 1"):
        share("1.01")
    with pytest.raises(argparse.ArgumentTypeError, match="above 0"):
        positive("0")
    assert amount("1") == 1
    for text in ("0", "-2", "1.5", "many"):
        with pytest.raises(argparse.ArgumentTypeError, match="at least 1"):
            amount(text)


ROWS = [
    Row("guidance 1", {"saturation": 0.04, "object colour": 0.99}),
    Row("guidance 20", {"saturation": 0.08, "object colour": 0.25}),
    Row("by text alone", {"saturation": 0.02}),
]


def test_a_bar_is_as_long_as_its_value() -> None:
    svg = draw_rows("guidance", ROWS).svg().decode()
    bars = {
        note: float(width)
        for width, note in re.findall(r'width="([\d.]+)" [^>]*><title>([^<]+)</title></rect>', svg)
    }
    assert list(bars) == [
        "guidance 1, saturation: 0.0400",
        "guidance 20, saturation: 0.0800",
        "by text alone, saturation: 0.0200",
        "guidance 1, object colour: 0.9900",
        "guidance 20, object colour: 0.2500",
    ]
    first, whole, last, *shares = bars.values()
    assert [first / whole, last / whole] == pytest.approx([0.5, 0.25], abs=1e-4)  # of the column's largest
    assert [one / whole for one in shares] == pytest.approx([0.99, 0.25], abs=1e-4)  # of 1


def test_a_study_is_drawn_whatever_pictures_it_has(tmp_path: Path) -> None:
    features.draw(tmp_path, "sizes", ROWS, 3)  # none at all
    assert not list(tmp_path.iterdir())
    shown = [
        Row(row.name, row.values, torch.full((n, 3, 16, 16), n / 12))
        for n, row in zip((12, 2, 5), ROWS, strict=True)
    ]
    features.draw(tmp_path, "guidance", shown, 3)
    with Image.open(tmp_path / "guidance.png") as plot:
        assert plot.format == "PNG"
    with Image.open(tmp_path / "sheet-guidance.png") as sheet:
        assert sheet.size == (32, 48)  # a row of the sheet for each of the table, as long as the shortest
        assert [sheet.getpixel((20, y))[0] for y in (8, 24, 40)] == pytest.approx([255, 42, 106], abs=1)


def test_guidance_is_measured_with_depth_and_without() -> None:
    asked: list[dict[str, Any]] = []

    def paint(prompts: list[str], size: tuple[int, int], what: str, **more: Any) -> torch.Tensor:
        asked.append(more)
        return held.true.picture

    held = scene(6, 5)
    true, *rows = STUDIES["guidance"](paint, 6, 6, 5)  # type: ignore[arg-type]
    assert true.values["object colour"] == 1
    assert [more["guidance"] for more in asked] == [1, 4, 8, 20] * 2
    assert ["depth" in more for more in asked] == [True] * 4 + [False] * 4
    assert all(row.values == true.values for row in rows[:4])
    assert all(
        set(row.values) == {"saturation", "exactly the asked colours", "sky and floor"} for row in rows[4:]
    )
