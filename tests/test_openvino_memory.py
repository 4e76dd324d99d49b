"""Memory with backend openvino: what its copies of the weights take, and what happens where it gives out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rawdiff
from rawdiff import images, recipe
from rawdiff.errors import ResourceError
from rawdiff.jobs.request import Request
from rawdiff.jobs.workshop import Workshop
from rawdiff.nets import calls
from rawdiff.nets.memory import OutOfMemory, is_out_of_memory, least_bytes
from rawdiff.openvino import OpenVino, Store, package
from rawdiff.weights import read_config
from tests.cli_run import depth_map, pixels
from tests.cli_run import rawdiff as command
from tests.exact_cases import Case, randn
from tests.lora_files import kohya, random_changes, write
from tests.openvino_cases import needed, runner
from tests.reference import silent
from tests.small_models import small_folder, small_text_encoder, small_unet

pytestmark = needed

SAID = "Check 'ptr' failed at src/cpu_memory.cpp:257:\nFailed to allocate 72000000 bytes of memory"
"""What OpenVINO 2026.4 raises as a RuntimeError."""
QUICK = ("--size", "40x48", "--steps", "2", "--seed", "3")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("converted") / "rawdiff" / "openvino")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_folder(tmp_path_factory.mktemp("model") / "small", nets=("depth",))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path, store: Store) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAWDIFF_MODEL", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(store.folder.parent.parent))
    return tmp_path


def failing(monkeypatch: pytest.MonkeyPatch, kind: type) -> list[str]:
    """OpenVINO's words when a call of this kind is run; what was run."""
    tried: list[str] = []
    run = OpenVino.__call__

    def limited(self: Any, call: Any, *arguments: Any, **options: Any) -> Any:
        tried.append(type(call).__name__)
        if isinstance(call, kind):
            raise RuntimeError(SAID)
        return run(self, call, *arguments, **options)

    monkeypatch.setattr(OpenVino, "__call__", limited)
    return tried


# Where it gives out.


@pytest.mark.parametrize("kind", [calls.UNetDecode, calls.DecodePicture])
def test_the_command_goes_on_by_torch(here: Path, monkeypatch: pytest.MonkeyPatch, kind: type) -> None:
    """Two at once, one, then torch; the picture is torch's, and its recipe says so."""
    tried = failing(monkeypatch, kind)
    words = ("gen", "-p", "a red cube", *QUICK, "--count", "2", "--batch", "2")
    done = command(*words, "--backend", "openvino").ok()
    assert kind.__name__ in tried
    told = done.err.splitlines()
    assert "out of memory with 2 pictures at once: going on with 1" in told
    assert "out of memory at 40x48: going on by torch with memory low, which is slower" in told
    for path, own in zip(done.lines, command(*words, "--memory", "low").ok().lines, strict=True):
        assert "backend" not in recipe.read(path)["made"]
        assert recipe.read(path)["id"] == recipe.read(own)["id"]
        assert np.abs(pixels(path).astype(int) - pixels(own)).max() <= 1


def test_from_python_it_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = rawdiff.load(folder, backend="openvino", say=silent)
    failing(monkeypatch, calls.UNetDecode)
    run = model.prepare("a cube", size=(48, 40), steps=2, seed=3, say=silent)
    with pytest.raises(OutOfMemory, match="out of memory on cpu in step 0: take a smaller size") as caught:
        next(run)
    assert "\n" not in str(caught.value)


def test_torch_that_has_none_left_either(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(Workshop, "_draw", lambda *given: (_ for _ in ()).throw(RuntimeError(SAID)))
    workshop = Workshop(folder, backend="openvino", say=silent)
    job = workshop.plan(Request(prompt="a", size=(48, 40), steps=1, seed=3))
    with pytest.raises(ResourceError, match="out of memory at 40x48 on cpu: take a smaller size"):
        list(workshop.draw(job))
    assert workshop.runner.made_with is None


def test_what_gives_out_while_converting_is_told_as_such(
    monkeypatch: pytest.MonkeyPatch, store: Store
) -> None:
    """And not that the network cannot be converted."""
    load = package.load

    class Broken:
        def __getattr__(self, name: str) -> Any:
            return lambda *given: (_ for _ in ()).throw(RuntimeError(SAID)) if name == "load" else self

    monkeypatch.setattr(
        package, "load", lambda name="openvino": Broken() if name.endswith("frontend") else load(name)
    )
    case = Case(shape="plain")
    with pytest.raises(RuntimeError, match="Failed to allocate") as caught:
        case.prepared(runner=runner(Store(store.folder / "none")))(randn(1, 4, *case.size), case.plan.rows[0])
    assert is_out_of_memory(caught.value)


# What is counted before.


def free(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr("rawdiff.weights.devices.free_bytes", lambda device: count)


def test_copies_of_weights_count_before_anything_is_loaded(
    here: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that LoRAs keep, and with openvino the networks'; a plan is refused for what its run could not have."""
    unet, text = small_unet(0), small_text_encoder(20)
    changes = random_changes({"unet": unet, "text_encoder": text}, 1)
    lora = write(here / "style.safetensors", kohya(changes))
    parts = {"unet": unet, "text_encoder": text}
    kept = sum(4 * parts[part].get_submodule(name).weight.numel() for part, name in changes)
    assert kept > 1000
    bare = least_bytes(read_config(folder, "unet"), read_config(folder, "vae"), (48, 40), 1, 4)
    words = ("gen", "-p", "a", *QUICK, "--dry-run")
    free(monkeypatch, bare + kept - 1)
    command(*words).ok()
    said = command(*words, "--lora", lora)
    assert said.code == 2
    assert "for copies of weights), and" in said.error
    assert said.error.endswith("take a smaller size, or memory low")
    free(monkeypatch, bare + kept)
    command(*words, "--lora", lora).ok()
    command(*words, "--lora", f"{lora}@0").ok()  # none of it is put on
    model = rawdiff.load(folder, controls=["depth"], say=silent)
    laid_out = sum(4 * w.numel() for net in (model.unet, model.controls["depth"]) for w in net.parameters())
    depth = ("--depth", depth_map(here / "d.png", (48, 40)))
    free(monkeypatch, bare + kept + laid_out - 1)
    said = command(*words, *depth, "--lora", lora, "--backend", "openvino")
    assert said.error.endswith("take a smaller size, or backend torch")
    free(monkeypatch, bare + kept + laid_out)
    command(*words, *depth, "--lora", lora, "--backend", "openvino").ok()


def test_nothing_is_loaded_to_tell_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not there yet is told from its config: the inpainting UNet, a LoRA in it, a ControlNet."""
    folder = small_folder(tmp_path / "model", nets=("depth",), inpaint=True)
    lora = write(tmp_path / "style.safetensors", kohya(random_changes({"unet": small_unet(0)}, 1)))
    found = {}
    for loaded in (False, True):
        for backend in ("torch", "openvino"):
            model = rawdiff.load(folder, backend=backend, say=silent)
            added = model.extras.loras([(lora, 1.0)])
            if loaded:
                model.unet_for(masked=True)
                model.net("depth")
            with monkeypatch.context() as patch:
                patch.setattr("rawdiff.weights.load_unet", None)
                patch.setattr("rawdiff.weights.load_controlnet", None)
                nets = [model.known_net("depth")]
                inpainting = sum(w.numel() for w in small_unet(5, in_channels=9).parameters()) * 4
                assert model.more_bytes(masked=True) == (inpainting if backend == "openvino" else 0)
                found[loaded, backend] = model.more_bytes(masked=True, added=added, nets=nets)
    assert found[True, "torch"] == found[False, "torch"] > 1000
    assert found[True, "openvino"] == found[False, "openvino"] > 2 * found[True, "torch"]


def test_what_is_held_already_is_not_counted_again(
    here: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workshop = Workshop(folder, backend="openvino", say=silent)
    request = Request(prompt="a", size=(48, 40), steps=1, seed=3)
    list(workshop.draw(workshop.plan(request)))
    model = workshop.model()
    assert model.more_bytes(masked=False, added=()) == 0
    model.runner.drop()
    own = sum(4 * w.numel() for w in model.unet.parameters())
    assert model.more_bytes(masked=False, added=()) == own
    net = model.net("depth")
    assert model.more_bytes(masked=False) == own  # a run without it does not pay for it
    more = sum(4 * w.numel() for w in net.parameters())
    assert model.more_bytes(masked=False, nets=[model.known_net("depth"), net]) == own + more
    list(workshop.draw(workshop.plan(request)))
    free(monkeypatch, least_bytes(model.unet.config, model.vae.config, (48, 40), 1, 4))
    [drawn] = workshop.draw(workshop.plan(request))
    assert drawn.recipe["made"]["backend"].startswith("openvino")
    assert images.pixels_sha256(drawn.image) == drawn.recipe["made"]["pixels"]
