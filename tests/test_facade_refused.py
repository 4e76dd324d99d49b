"""The front door, closed: arguments that make no sense, and the line that says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rawdiff
from rawdiff import Control, Model, Run
from rawdiff.errors import InputError, RawdiffError, SizeError, UsageError, WeightsError
from rawdiff.nets.memory import least_bytes
from rawdiff.weights import devices
from tests.reference import hint
from tests.small_models import small_controlnet, small_folder, small_unet
from tests.small_runs import DEPTH, PROMPT, finished, prepared


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_folder(tmp_path_factory.mktemp("model") / "small")


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return rawdiff.load(folder, device="cpu")


IMAGE = hint((48, 40), 2)
MASK, THIN = np.zeros((2, 48, 40), np.float32)
MASK[8:32, 8:32], THIN[:, 9:12] = 1.0, 1.0

REFUSED: dict[str, tuple[dict[str, Any], type[RawdiffError], str]] = {
    "size": ({"size": (50, 40)}, SizeError, "size 40x50 is not a multiple of 8: use 40x48 or 40x56"),
    "size form": ({"size": 512}, UsageError, "size 512"),
    "steps": ({"steps": 0}, UsageError, "steps 0"),
    "many loras": ({"loras": ["a.safetensors"] * 65}, UsageError, "loras: 65 of them, expected at most 64"),
    "many tags": (
        {"prompt": "a" + "<lora:a>" * 65, "syntax": "a1111"},
        UsageError,
        "loras: 65 of them, expected at most 64",
    ),
    "many embeddings": (
        {"embeddings": ["a.pt"] * 65},
        UsageError,
        "embeddings: 65 of them, expected at most 64",
    ),
    "many controls": (
        {"controls": [Control("depth", 5)] * 65},
        UsageError,
        "controls: 65 of them, expected at most 64",
    ),
    "guidance": ({"guidance": float("nan")}, UsageError, "guidance nan"),
    "guidance text": ({"guidance": "7"}, UsageError, "guidance '7'"),
    "guidance list": ({"guidance": [1.0, 2.0]}, UsageError, "guidance: 2 given for 1 images"),
    "rescale": ({"rescale": 2.0}, UsageError, r"rescale 2\.0"),
    "clip skip": ({"clip_skip": 3}, UsageError, "clip skip 3: this text encoder has 3 layers"),
    "seed": ({"seed": 2**32}, UsageError, "seed 4294967296"),
    "seed after": ({"seed": 2**32 - 1, "count": 2}, UsageError, "seed 4294967296"),
    "count": ({"count": 0}, UsageError, "count 0"),
    "prompt": ({"prompt": None}, UsageError, "prompt None"),
    "no prompt": ({"prompt": []}, UsageError, r"prompt \[\]"),
    "surrogate": ({"prompt": "cube \ud800"}, UsageError, "^prompt: what stands at place 5 is no character"),
    "nul": ({"prompt": "cube \0"}, UsageError, "^prompt: holds a NUL character at place 5: remove it$"),
    "prompt number": ({"prompt": ["cube", 5]}, UsageError, "^prompt: found int, expected text$"),
    "negative nul": ({"negative": "\0"}, UsageError, "^negative prompt: holds a NUL character at place 0"),
    "negative": ({"negative": ["a", "b"]}, UsageError, "negative prompt: 2 given for 1 images"),
    "sampler": ({"sampler": "eular"}, UsageError, "sampler 'eular' is not known: did you mean"),
    "sampler form": ({"sampler": 3}, UsageError, "sampler 3: expected a name"),
    "eta": ({"eta": float("nan")}, UsageError, "eta nan"),
    "eta elsewhere": ({"eta": 0.5, "sampler": "euler"}, UsageError, "eta"),
    "two schedules": ({"timesteps": [900, 500]}, UsageError, "steps and timesteps"),
    "watch": ({"watch": ("eps",)}, UsageError, "watch 'eps'"),
    "latents": ({"latents": torch.zeros(1, 4, 2, 2)}, UsageError, r"latents of shape \[1, 4, 2, 2\]"),
    "latents nan": ({"latents": torch.full((1, 4, 6, 5), torch.nan)}, InputError, "NaN"),
    "no such net": (
        {"canny": DEPTH},
        UsageError,
        "control 'canny': this model names no such net .*depth, normal",
    ),
    "no control": ({"controls": ["depth"]}, UsageError, "controls holds a str"),
    "no source": ({"controls": [Control("depth", None)]}, UsageError, "no source"),
    "window": ({"controls": [Control("depth", DEPTH, start=0.6, end=0.2)]}, UsageError, "control window"),
    "no map": ({"depth": "nowhere.png"}, InputError, "nowhere.png"),
    "constant map": ({"depth": DEPTH * 0}, InputError, "constant"),
    "rescale none": ({"rescale": None}, UsageError, "rescale None: expected a number from 0 to 1"),
    "clip skip text": ({"clip_skip": "1"}, UsageError, "clip skip '1': expected a whole number"),
    "clip skip float": ({"clip_skip": 1.0}, UsageError, r"clip skip 1\.0: expected a whole number"),
    "clip skip flag": ({"clip_skip": True}, UsageError, "clip skip True: expected a whole number"),
    "guess": ({"guess": "no"}, UsageError, "guess 'no': expected True or False"),
    "invert": ({"depth_invert": 1}, UsageError, "depth_invert 1: expected True or False"),
    "fit": ({"fit": "x"}, UsageError, "fit 'x': expected crop, pad, stretch, or None"),
    "negative none": ({"negative": None}, UsageError, "negative prompt None: expected text"),
    "eta text": ({"eta": "a"}, UsageError, "eta 'a': expected a number from 0 to 1"),
    "eta none": ({"eta": None}, UsageError, "eta None: expected a number from 0 to 1"),
    "eta large": ({"eta": 2.0}, UsageError, r"eta 2\.0: expected a number from 0 to 1"),
    "timesteps text": ({"timesteps": "ab", "steps": None}, UsageError, "timesteps 'ab': expected a list"),
    "sigmas number": ({"sigmas": 5, "steps": None}, UsageError, "sigmas 5: expected a list"),
    "guidance tensor": ({"guidance": torch.ones(1, 2)}, UsageError, r"guidance \[1.0, 1.0\]"),
    "watch number": ({"watch": 5}, UsageError, "watch 5: expected some of"),
    "say": ({"say": None}, UsageError, "say None: expected something to call"),
    "probe": ({"probe": 3}, UsageError, "probe 3: expected something to call"),
    "seed tensor": ({"seed": torch.zeros(40, 40)}, UsageError, "seed tensor"),
    "one control": (
        {"controls": Control("depth", DEPTH)},
        UsageError,
        "controls is a Control: expected a list",
    ),
    "control number": ({"controls": 5}, UsageError, "controls is a int: expected a list"),
    "control kind": ({"controls": [Control(["depth"], DEPTH)]}, UsageError, "control kind .*expected text"),
    "derive": ({"controls": [Control("normal", DEPTH, derive="no")]}, UsageError, "control derive 'no'"),
    "weight": ({"controls": [Control("depth", DEPTH, weight="a")]}, UsageError, "control weight 'a'"),
    "start": ({"controls": [Control("depth", DEPTH, start=None)]}, UsageError, "control window None-1.0"),
    "net unet": (
        {"controls": [Control("depth", DEPTH, net=small_unet(0))]},
        WeightsError,
        "controlnet: found a UNet2DConditionModel, expected a ControlNetModel",
    ),
    "net module": (
        {"controls": [Control("depth", DEPTH, net=torch.nn.Linear(2, 2))]},
        WeightsError,
        "controlnet: found a Linear, expected a ControlNetModel",
    ),
    "strength": ({"image": IMAGE, "strength": 0.0}, UsageError, r"strength 0\.0: expected a number above 0"),
    "strength high": (
        {"image": IMAGE, "strength": 1.1},
        UsageError,
        r"strength 1\.1: expected a number above 0",
    ),
    "strength nan": ({"image": IMAGE, "strength": float("nan")}, UsageError, "strength nan"),
    "strength text": ({"image": IMAGE, "strength": "1"}, UsageError, "strength '1'"),
    "strength flag": ({"image": IMAGE, "strength": True}, UsageError, "strength True"),
    "strength small": (
        {"image": IMAGE, "strength": 0.1},
        UsageError,
        r"strength 0\.1: leaves none of 5 steps: take at least 0\.2, or more steps",
    ),
    "strength alone": ({"strength": 0.5}, UsageError, "strength: there is no image for it"),
    "mask alone": ({"mask": MASK}, UsageError, "mask: there is no image for it"),
    "paste alone": ({"image": IMAGE, "paste": False}, UsageError, "paste: there is no mask that says"),
    "paste": ({"image": IMAGE, "mask": MASK, "paste": 1}, UsageError, "paste 1: expected True or False"),
    "image and latents": (
        {"image": IMAGE, "latents": torch.zeros(1, 4, 6, 5)},
        UsageError,
        "image and latents were given: a run begins from one of them",
    ),
    "image number": ({"image": 5}, InputError, "a int is no picture"),
    "image aspect": ({"image": IMAGE[:24]}, InputError, "40x24 has another aspect than the picture's 40x48"),
    "image padded": (
        {"image": IMAGE[:24], "fit": "pad"},
        UsageError,
        "fit pad: the border of an image is painted anew by a mask: give one",
    ),
    "mask shape": (
        {"image": IMAGE, "mask": MASK[:40]},
        InputError,
        "array: the mask is 40x40 and the image 40x48: make them the same size",
    ),
    "mask colour": (
        {"image": IMAGE, "mask": IMAGE},
        InputError,
        "is a colour picture; expected a mask in grey",
    ),
    "mask empty": ({"image": IMAGE, "mask": MASK * 0}, InputError, "the mask is white nowhere"),
    "mask dark": ({"image": IMAGE, "mask": MASK * 0.4}, InputError, "the mask is white nowhere"),
    "mask thin": (
        {"image": IMAGE, "mask": THIN},
        InputError,
        "white parts are too thin: make them at least 8",
    ),
    "mask bright": (
        {"image": IMAGE, "mask": MASK * 255},
        InputError,
        r"values 0\.\.255; expected 8 or 16 bits",
    ),
    "no net": ({"controls": [Control("depth", DEPTH, net="./nowhere")]}, WeightsError, "nowhere"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(model: Model, case: str) -> None:
    options, kind, words = REFUSED[case]
    with pytest.raises(kind, match=words) as caught:
        prepared(model, **{"size": (48, 32) if "depth" in str(options) else (48, 40), **options})
    assert "\n" not in str(caught.value)


def test_a_size_that_cannot_fit_is_refused_before_anything_slow(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As the command line refuses it, in the same words."""
    model = rawdiff.load(folder, device="cpu")
    path = prepared(model, count=3).save(tmp_path / "run.safetensors")
    needed = least_bytes(model.unet.config, model.vae.config, (48, 40), 3, 4)
    monkeypatch.setattr(devices, "free_bytes", lambda device: needed)
    assert len(prepared(model, count=3).seeds) == 3
    assert len(prepared(model, count=6, guidance=1.0).seeds) == 6  # half the work: guidance is off
    said = r"^size 32x48 in a batch of 9 needs at least 0\.0 GiB, and 0\.0 GiB are free on cpu: take a smaller size or"
    with pytest.raises(SizeError, match=said) as caught:
        prepared(model, count=9, depth=DEPTH, size=(48, 32))
    assert isinstance(caught.value, MemoryError)  # whoever halves a batch finds it
    assert model.controls == {}  # no net was loaded
    monkeypatch.setattr(devices, "free_bytes", lambda device: needed - 1)
    with pytest.raises(SizeError, match="size 40x48 in a batch of 3 needs at least"):
        model.resume(path)
    monkeypatch.setattr(devices, "free_bytes", lambda device: None)
    assert model.resume(path).seeds == (7, 8, 9)


def test_a_typing_mistake_is_an_error(model: Model) -> None:
    with pytest.raises(TypeError, match="guidence"):
        model.prepare(PROMPT, guidence=3.0)  # type: ignore[call-arg]


def test_a_net_of_another_family(model: Model) -> None:
    net = small_controlnet(small_unet(0, shape="deep"), 3)
    with pytest.raises(WeightsError, match="block_out_channels"):
        prepared(model, controls=[Control("any", hint((48, 40), 0), net=net)])


def with_unet(model: Model, channels: int) -> Model:
    return Model(
        source=model.source, unet=small_unet(0, in_channels=channels), vae=model.vae, scheduler=model.scheduler,
        text_encoder=model.text_encoder, tokenizer=model.tokenizer, device=model.device, dtype=model.dtype,
        defaults=model.defaults,
    )  # fmt: skip


def test_a_unet_of_other_channels_is_refused(model: Model) -> None:
    with pytest.raises(WeightsError, match="unet: takes 8 channels, expected 4, or 9 for inpainting"):
        with_unet(model, 8)


def test_an_inpainting_unet_wants_a_mask(model: Model) -> None:
    wide = with_unet(model, 9)
    for given in ({}, {"image": IMAGE}):
        with pytest.raises(
            UsageError, match="this model's UNet takes 9 channels, for inpainting alone: give"
        ):
            prepared(wide, **given)
    assert len(prepared(wide, image=IMAGE, mask=MASK)) == 5


LOADED: dict[str, tuple[dict[str, Any], str]] = {
    "nets": ({"nets": 5}, "nets 5: expected {kind: folder or hub id}"),
    "nets kind": ({"nets": {5: "x"}}, "nets: the kind 5: expected text"),
    "nets value": ({"nets": {"depth": 5}}, "nets: depth is 5: expected a folder or hub id"),
    "nets none": ({"nets": {"depth": None}}, "nets: depth is None: expected a folder"),
    "nets module": ({"nets": {"depth": torch.nn.Linear(1, 1)}}, "nets: depth is a module"),
    "controls": ({"controls": "depth"}, "controls 'depth': expected a list of kinds"),
    "controls number": ({"controls": 5}, "controls 5: expected a list of kinds"),
    "offline": ({"offline": "no"}, "offline 'no': expected True or False"),
    "say": ({"say": "loud"}, "say 'loud': expected something to call"),
}


@pytest.mark.parametrize("case", LOADED)
def test_loading_refused(folder: Path, case: str) -> None:
    options, words = LOADED[case]
    with pytest.raises(UsageError) as caught:
        rawdiff.load(folder, **options)
    assert str(caught.value).startswith(words)


def nothing(x: torch.Tensor, row: Any) -> Any:
    """A constraint that forgot to return."""


HANDS: dict[str, tuple[Callable[[Run], Any], str]] = {
    "state": (lambda run: setattr(run, "state", 5), "state: found a int, expected a RunState"),
    "step's state": (lambda run: setattr(next(run), "state", None), "state: found a NoneType"),
    "change": (lambda run: run.change(5), "latents: found a int, expected a tensor"),  # type: ignore[arg-type]
    "change forget": (lambda run: run.change(run.latents, forget="no"), "forget 'no': expected"),  # type: ignore[arg-type]
    "constrain": (lambda run: run.constrain(5), "constrain 5: expected something to call"),  # type: ignore[arg-type]
    "constraint": (
        lambda run: (run.constrain(nothing), next(run)),
        "latents: found a NoneType, expected a tensor [1, 4, 6, 5]; a constraint has to return it",
    ),
    "image": (lambda run: (next(run), run.image("0")), "image '0': expected a whole number"),  # type: ignore[arg-type]
    "image of another": (lambda run: (next(run), run.image(1)), "image 1: this run has 1"),
    "save": (lambda run: run.save(5), "path 5: expected a path"),  # type: ignore[arg-type]
    "save image": (lambda run: run.save_image(5), "path 5: expected a path"),  # type: ignore[arg-type]
    "save image nowhere": (lambda run: run.save_image(""), "path '.': expected a file, such as cube.png"),
}


@pytest.mark.parametrize("case", HANDS)
def test_refused_by_a_run(model: Model, case: str) -> None:
    do, words = HANDS[case]
    with pytest.raises(UsageError) as caught:
        do(prepared(model))
    assert str(caught.value).startswith(words)


def test_a_run_goes_on_after_a_wrong_state(model: Model) -> None:
    run = prepared(model)
    step = next(run)
    with pytest.raises(UsageError):
        step.state = 5  # type: ignore[assignment]
    assert torch.equal(finished(run).latents, finished(prepared(model)).latents)


def test_half_precision_on_a_cpu_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="fp16 on a CPU"):
        rawdiff.load(folder, device="cpu", dtype="fp16")
