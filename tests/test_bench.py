"""`rawdiff bench`: its table, JSON and page, what it counts, what its proposals do, and what it refuses."""

from __future__ import annotations

import base64
import io
import json
import math
import time
from dataclasses import fields, replace
from html.parser import HTMLParser
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from rawdiff.decode import decode
from rawdiff.errors import ResourceError, UsageError
from rawdiff.jobs.place import Place, open_workshop
from rawdiff.jobs.prepared import Prepared
from rawdiff.jobs.request import ControlRequest, Request
from rawdiff.jobs.workshop import Workshop
from rawdiff.nets.exact import Exact
from rawdiff.openvino import version
from rawdiff.probes import Probe
from rawdiff.say import say_nothing
from rawdiff.study import bench
from rawdiff.study.bench import Settings, arms, flops, measuring, report, work
from rawdiff.study.bench.arms import chosen, proposals
from rawdiff.study.bench.page import as_html
from rawdiff.study.bench.parts import REST
from tests.cli_run import Result, Terminal, depth_map, rawdiff
from tests.openvino_cases import needed

pytest_plugins = ["tests.cli_fixtures"]

PROMPT = 'a red <cube> & "grass"'
REPEAT = 2


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, model: Path) -> tuple[Result, Path]:
    """A whole study of a small model, by the command line."""
    folder = tmp_path_factory.mktemp("bench")
    words: list[Any] = [
        "-p",
        PROMPT,
        "--depth",
        depth_map(folder / "d.png"),
        "--size",
        "48x40",
        "--fit",
        "crop",
    ]
    words += ["--steps", 4, "--guidance", 4, "--seed", 3, "--model", model, "--repeat", REPEAT]
    return rawdiff("bench", *words, "--json", folder / "b.json", "--html", folder / "b.html"), folder


@pytest.fixture(scope="module")
def values(done: tuple[Result, Path]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((done[1] / "b.json").read_text())
    return found


@pytest.fixture(scope="module")
def workshop(model: Path) -> Workshop:
    return open_workshop(Place(model=str(model)), say_nothing)


def request(**said: Any) -> Request:
    return Request(**{"prompt": "a cube", "size": (48, 40), "steps": 3, "seed": 3, "guidance": 4.0, **said})


@pytest.fixture
def depth(tmp_path: Path) -> tuple[ControlRequest, ...]:
    return (ControlRequest("depth", str(depth_map(tmp_path / "d.png", (48, 40)))),)


# What it prints and writes


def test_the_table_has_every_part_and_proposal(done: tuple[Result, Path], values: dict[str, Any]) -> None:
    result, _ = done
    table = result.ok().out
    for name in (
        "start and imports",
        "load",
        "text encoder",
        "hint features",
        "controlnet depth",
        "unet encode",
    ):
        assert name in table
    for name in (
        "unet decode",
        "guidance",
        "sampler",
        "vae decode",
        "png",
        "GFLOP/s",
        "torch",
        "float32",
        "thread",
    ):
        assert name in table
    assert table.count("The bottleneck is ") == 1
    rows = {line.split()[0]: line for line in result.lines if line}
    for proposal in values["proposals"]:
        assert f"{proposal['saved_s']:+.2f}" in rows[proposal["name"]]
        assert rows[proposal["name"]].endswith("exact" if proposal["exact"] else "approximate")


@pytest.mark.parametrize("where", ["warm", "cold"])
def test_parts_add_up_to_the_whole(values: dict[str, Any], where: str) -> None:
    parts = values["parts"] if where == "warm" else values["cold"]["parts"]
    inner = {tuple(part["path"]): part for part in parts}
    assert inner[()]["share"] == 1.0
    assert inner["step",]["count"] == 4
    for path, part in inner.items():
        own = [other["ms"] for name, other in inner.items() if name and name[:-1] == path]
        if own:
            assert sum(own) == pytest.approx(part["ms"], rel=1e-3, abs=0.05)
        assert part["low_ms"] <= part["ms"] <= part["high_ms"]
    names = {name[0] for name in inner if name}
    assert names >= {"text encoder", "hints", "step", "vae decode", "png", REST}


def test_the_cold_process_is_another_one(values: dict[str, Any]) -> None:
    cold = values["cold"]
    names = [part["name"] for part in cold["parts"] if len(part["path"]) == 1]
    assert {"start and imports", "plan", "hashes", "load"} <= set(names)
    assert cold["end_s"] >= cold["first_picture_s"] > cold["parts"][0]["ms"] / 1e3 * 0.5
    assert cold["cpu_s"] > 0
    assert "a cold process takes" in values["bottleneck"]


def test_the_bottleneck_is_the_largest_part(values: dict[str, Any]) -> None:
    inner = {tuple(part["path"][:-1]) for part in values["parts"] if part["path"]}
    worst = max((p for p in values["parts"] if tuple(p["path"]) not in inner), key=lambda p: p["ms"])
    name = "rest" if worst["name"] == REST else worst["name"]
    assert values["bottleneck"].startswith(f"The bottleneck is {name}")
    assert values["bottleneck"].count(".") >= 1
    assert "\n" not in values["bottleneck"]


def test_rates_are_operations_by_time(values: dict[str, Any]) -> None:
    parts = {tuple(part["path"]): part for part in values["parts"]}
    for path in (
        (),
        ("step", "unet encode"),
        ("step", "unet decode"),
        ("step", "controlnet depth"),
        ("vae decode",),
    ):
        part = parts[path]
        assert part["gflop"] > 0
        assert part["of_ceiling"] == pytest.approx(part["gflops_per_s"] / values["ceiling_gflops_per_s"])
    assert parts["png",]["gflop"] is None
    steps = sum(part["gflop"] or 0.0 for path, part in parts.items() if path[:-1] == ("step",))
    assert steps == pytest.approx(parts["step",]["gflop"])


def test_proposals_are_paired_with_the_command(values: dict[str, Any]) -> None:
    full = values["as_asked"]["seconds"]
    assert len(full) == REPEAT
    found = {proposal["name"]: proposal for proposal in values["proposals"]}
    expected = {f"steps-{n}" for n in (50, 30, 20, 10)} | {
        f"without-{n}" for n in ("kv", "time", "prefix", "scale")
    }
    expected |= {"without-exact", "bf16", "guidance-end-0.75", "guidance-end-0.5", "control-end-0.75"}
    expected |= {
        "control-end-0.5",
        "reuse-2",
        "reuse-3",
        "sampler-euler",
        "sampler-unipc",
        "sampler-dpm++-2m",
    }
    assert set(found) == expected | {"sampler-dpm++-2m-half"}
    for one in found.values():
        assert one["left_out"] is None
        assert len(one["seconds"]) == REPEAT
        assert one["saved_s"] == pytest.approx(
            median(a - b for a, b in zip(full, one["seconds"], strict=True))
        )
        assert one["ratio"] == pytest.approx(median(b / a for a, b in zip(full, one["seconds"], strict=True)))
    assert found["steps-50"]["cpu_ratio"] > 1.5


def test_exact_ones_draw_the_same_picture(values: dict[str, Any]) -> None:
    for one in values["proposals"]:
        if one["exact"]:
            assert one["equal"] or one["psnr_db"] > 80, one["name"]
        else:
            assert not one["equal"], one["name"]
            assert 0 < one["psnr_db"] < 75, one["name"]


class Page(HTMLParser):
    """What a page is made of."""

    EMPTY = ("meta", "img", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.images: list[str] = []
        self.addresses: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [
            value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset")
        ]
        self.images += [dict(attrs)["src"] or ""] if tag == "img" else []
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_complete_in_itself(done: tuple[Result, Path], values: dict[str, Any]) -> None:
    text = (done[1] / "b.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert page.addresses == page.images  # nothing but pictures, and those are inside
    assert not {"script", "link", "iframe", "object", "base"} & set(page.tags)
    assert "http" not in text
    assert "url(" not in text
    assert "@import" not in text
    assert "prefers-color-scheme: dark" in text
    assert page.tags.count("figure") == len(page.images) == 1 + len(values["proposals"])
    assert page.tags.count("svg") == 4
    assert PROMPT in page.text
    assert values["bottleneck"] in page.text
    for address in page.images:
        head, data = address.split(",")
        assert head == "data:image/png;base64"
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            assert (image.format, image.size) == ("PNG", (48, 40))


def test_only_what_was_asked_for_is_written(done: tuple[Result, Path]) -> None:
    assert sorted(path.name for path in done[1].iterdir()) == ["b.html", "b.json", "d.png"]


# What it refuses


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--repeat", "0"], "repeat 0"),
        (["--repeat", "x"], "repeat"),
        (["--no-proposals", "--only", "bf16"], "only"),
        (["--only", "faster"], "only 'faster': no proposal"),
        (["--only", "control"], "control"),
        (["--json", "taken.txt"], "exists already"),
        (["--json=~/taken.txt"], "exists already"),
        (["--json", ""], "json '': expected the name of a file"),
        (["--html", "a" * 300], "the name is too long"),
        (["--html", "."], "name of a file"),
        (["--json", "a", "--html", "a"], "both a"),
        (["--size", "50x40"], "50"),
        (["--steps", "0"], "steps 0"),
        (["--count", "2"], "--count"),
        (["--model", "no/where/at/all"], "no/where"),
    ],
)
def test_mistakes_are_one_line(
    here: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], words: str
) -> None:
    monkeypatch.setenv("HOME", str(here))
    (here / "taken.txt").write_text("mine")
    base = [] if "--size" in options else ["--size", "48x40"]
    result = rawdiff("bench", "-p", "a cube", *base, *options)
    assert result.code == (4 if "--model" in options else 2)
    assert words in result.error
    assert result.out == ""
    assert sorted(path.name for path in here.iterdir()) == ["taken.txt"]
    assert (here / "taken.txt").read_text() == "mine"


def test_the_cold_process_is_given_what_was_asked_for(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def study(request: Any, place: Any, words: dict[str, Any], *rest: Any) -> list[str]:
        seen.update(words)
        return []

    monkeypatch.setattr(bench, "study", study)
    rawdiff("bench", "--size", "48x40", stdin=Terminal("a cube\nd.png\n"), err=Terminal()).ok()
    assert (seen["prompt"], seen["depth"]) == ("a cube", "d.png")
    rawdiff("bench", "--size", "48x40", "-p", "-", stdin="a cone\n").ok()
    assert (seen["prompt"], seen["depth"]) == ("a cone", None)


@needed
def test_the_networks_by_openvino(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command, its cold process and its proposals alike; each network is compiled before it is measured."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "cache"))
    words = (
        "bench",
        "-p",
        "a cube",
        "--size",
        "48x40",
        "--steps",
        "2",
        "--repeat",
        "1",
        "--backend",
        "openvino",
    )
    done = rawdiff(*words, "--only", "without-kv", "--only", "reuse-2", "--json", "b.json").ok()
    found = json.loads((here / "b.json").read_text())
    assert found["machine"]["backend"] == f"openvino {version()}"
    assert f"openvino {version()}" in done.out.splitlines()[0]
    kv, reuse = found["proposals"]
    assert (kv["left_out"], reuse["left_out"]) == (None, None)
    assert kv["equal"] or kv["psnr_db"] > 60
    assert not reuse["equal"]


def test_files_are_replaced_where_that_is_asked_for(here: Path) -> None:
    """Whole, and no folder."""
    for name in ("b.json", "b.html"):
        (here / name).write_text("mine")
    words = ("bench", "-p", "a cube", "--size", "48x40", "--steps", "1", "--no-proposals", "--repeat", "1")
    files = ("--json", "b.json", "--html", "b.html")
    refused = rawdiff(*words, *files)
    assert (
        refused.code,
        "json b.json: exists already; choose another name, or --overwrite" in refused.error,
    ) == (2, True)
    rawdiff(*words, *files, "--overwrite").ok()
    assert json.loads((here / "b.json").read_text())["format"] == 1
    assert (here / "b.html").read_text().startswith("<!DOCTYPE html>")
    assert "name of a file" in rawdiff(*words, "--json", ".", "--overwrite").error


def test_no_prompt_is_a_mistake(here: Path) -> None:
    assert "no prompt" in rawdiff("bench").error


def test_a_cold_process_that_fails_says_why() -> None:
    with pytest.raises(ResourceError, match="ended with 2: error: steps 0"):
        work.draw_cold({"prompt": "a cube", "steps": 0})


def test_words_become_options() -> None:
    words = {
        "prompt": "-x",
        "depth_invert": False,
        "paste": True,
        "control": ["a=b", "c=d"],
        "seed": 0,
        "fit": None,
    }
    options = ["--prompt=-x", "--no-depth-invert", "--paste", "--control=a=b", "--control=c=d", "--seed=0"]
    assert work.options_of(words) == options


# The proposals


def names(workshop: Workshop, asked: Request, dtype: str = "float32", frugal: bool = False) -> set[str]:
    return {arm.name for arm in proposals(asked, workshop.plan(asked), dtype, frugal=frugal)}


def test_only_what_can_help_is_proposed(workshop: Workshop, depth: tuple[ControlRequest, ...]) -> None:
    plain = names(workshop, request(guidance=1.0, steps=20))
    assert not {name for name in plain if name.startswith(("guidance", "control"))}
    assert "steps-20" not in plain
    assert "steps-10" in plain
    assert "bf16" not in names(workshop, request(), "bfloat16")
    assert not {name for name in names(workshop, request(), frugal=True) if name.startswith("reuse")}
    cut = names(workshop, request(guidance_end=0.6, controls=depth))
    assert "guidance-end-0.5" in cut
    assert "guidance-end-0.75" not in cut
    assert "control-end-0.5" in cut
    assert "without-kv" not in names(workshop, request(repeats=("kv",)))
    assert "sampler-euler" not in names(workshop, request(sampler="euler"))


def test_a_window_is_cut_to_a_share_of_itself(workshop: Workshop, depth: tuple[ControlRequest, ...]) -> None:
    asked = request(controls=(replace(depth[0], weight=0.8, start=0.2, end=0.6),))
    arm = {a.name: a for a in proposals(asked, workshop.plan(asked), "float32", frugal=False)}[
        "control-end-0.5"
    ]
    assert arm.request.controls is not None
    assert arm.request.controls[0].window == pytest.approx((0.8, 0.2, 0.4))


def test_every_trick_is_taken_away_once() -> None:
    assert set(arms.TRICKS) == {field.name for field in fields(Exact)}


def test_names_and_groups_choose(workshop: Workshop) -> None:
    asked = request()
    every = proposals(asked, workshop.plan(asked), "float32", frugal=False)
    assert chosen(every, ()) == every
    assert [arm.name for arm in chosen(every, ("reuse", "bf16"))] == ["bf16", "reuse-2", "reuse-3"]
    with pytest.raises(UsageError, match="steps-50"):
        chosen(every, ("step",))


def test_a_proposal_that_fails_is_left_out(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    probe = Probe()
    probe.before("start and imports", 900.0)
    cold = work.Cold(1.0, 2.0, 0.5, probe.tree().as_dict())
    monkeypatch.setattr(measuring, "draw_cold", lambda words: cold)
    monkeypatch.setattr(measuring, "ceiling", lambda *place: 10.0)
    drawing = measuring.draw

    def failing(*given: Any, reuse: int = 1, **more: Any) -> work.Sample:
        if reuse == 3:
            raise ResourceError("no memory for that")
        return drawing(*given, reuse=reuse, **more)

    monkeypatch.setattr(measuring, "draw", failing)
    settings = Settings(repeat=1, only=("reuse",))
    found = measuring.measure(request(), Place(model=str(model)), {}, settings, say_nothing)
    values = report.as_values(found)
    assert [(one["name"], one["left_out"]) for one in values["proposals"]] == [
        ("reuse-2", None),
        ("reuse-3", "no memory for that"),
    ]
    assert values["proposals"][1]["saved_s"] is None
    assert "reuse-3: left out: no memory for that" in report.lines(found)
    assert b"reuse-3 was left out: no memory for that" in as_html(found)
    assert 0 < values["proposals"][0]["psnr_db"] < 60


# What it counts


def test_operations_of_a_known_module() -> None:
    """A matrix product is 2mnk of them, an attention two of those, a convolution as many as its products."""
    linear, convolution = nn.Linear(32, 48), nn.Conv2d(4, 8, 3, padding=1)
    with torch.no_grad(), flops.counting() as counter:
        probe = flops.FlopProbe(counter)
        with probe("all"):
            with probe("linear"):
                linear(torch.zeros(5, 32))
            with probe("convolution"):
                convolution(torch.zeros(2, 4, 6, 7))
            for _ in range(2):
                with probe("attention"):
                    q = torch.zeros(2, 4, 64, 16)
                    nn.functional.scaled_dot_product_attention(q, q, q)
    assert probe.flops["all", "linear"] == 2 * 5 * 32 * 48
    assert probe.flops["all", "convolution"] == 2 * 2 * 8 * 6 * 7 * 4 * 9
    assert probe.flops["all", "attention"] == 2 * 2 * (2 * 2 * 4 * 64 * 64 * 16)  # twice
    assert probe.flops["all",] == sum(n for path, n in probe.flops.items() if len(path) == 2)


@torch.no_grad()
def test_a_run_counted_by_kinds_of_rows_is_the_run(
    workshop: Workshop, depth: tuple[ControlRequest, ...]
) -> None:
    asked = request(controls=(replace(depth[0], end=0.7),), steps=6, guidance_end=0.5)
    job, model = workshop.plan(asked), workshop.model()
    counted = flops.count(model, job)
    with flops.counting() as counter:
        run = Prepared().run(model, job, 0, 1, watch=(), say=say_nothing, probe=Probe())
        kinds = {(row.guided, row.control) for row in run.plan.rows}
        for _ in run:
            pass
        decode(run.setup.vae, run.latents, say=say_nothing)
    assert len(kinds) == 3
    assert counted[()] == counter.get_total_flops() > 0
    assert counted["step",] == sum(n for path, n in counted.items() if path[:-1] == ("step",))


def test_the_ceiling_is_the_best_product() -> None:
    ticks = iter([0.0, 0.1, 0.0, 0.5, 0.0, 0.25, 0.0, 1.0])  # of the first nothing is told
    found = flops.ceiling(torch.device("cpu"), torch.float32, lambda: next(ticks), size=64, limit_s=0.0)
    assert found == pytest.approx(2e-9 * 64**3 / 0.25)
    assert next(ticks, None) is None
    real = flops.ceiling(torch.device("cpu"), torch.float32, time.process_time, size=512, limit_s=0.1)
    assert 0.1 < real < 1e6


def test_a_probe_goes_by_the_clock_it_is_given() -> None:
    ticks = iter([0.0, 1.0, 3.5, 10.0])
    probe = Probe(clock=lambda: next(ticks))
    with probe("work"):
        pass
    root = probe.tree()
    assert (root.total_ms, root.children["work"].total_ms) == (10_000.0, 2_500.0)


def test_the_distance_of_pictures() -> None:
    black, other = Image.new("RGB", (4, 2)), Image.new("RGB", (4, 2), (3, 0, 0))
    assert measuring.psnr_db(black, black) == math.inf
    assert measuring.psnr_db(black, other) == pytest.approx(10 * math.log10(255**2 / 3))
    with pytest.raises(UsageError, match="expected one size"):
        measuring.psnr_db(black, Image.new("RGB", (2, 4)))
