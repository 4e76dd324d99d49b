"""What the embedded model's scripts share: numbers on their command lines, and tables as pictures."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest
from PIL import Image

from scripts.embedded.fit import counting, share
from scripts.embedded.plots import draw_rows, write_rows
from scripts.embedded.steering import Row


@pytest.mark.parametrize("text", ["-3", "nan", "inf", "much", ""])
def test_what_counts_is_a_number_of_at_least_0(text: str) -> None:
    assert counting("0") == 0
    assert counting("10") == 10
    for kind in (counting, share):
        with pytest.raises(argparse.ArgumentTypeError, match="expected a number"):
            kind(text)


def test_a_share_is_at_most_1() -> None:
    assert share("1") == 1
    with pytest.raises(argparse.ArgumentTypeError, match="from 0 to 1"):
        share("1.01")


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
    assert "object colour" not in draw_rows("guidance", ROWS, {"saturation": "chroma"}).svg().decode()


def test_a_plot_is_written_by_its_ending(tmp_path: Path) -> None:
    with Image.open(write_rows(tmp_path / "a.png", "guidance", ROWS)) as picture:
        assert picture.format == "PNG"
    assert write_rows(tmp_path / "a.svg", "guidance", ROWS).read_bytes().startswith(b"<svg")
