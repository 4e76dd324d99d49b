"""Which module may import which: the order of the design, held by reading the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "rawdiff"

ORDER = [
    "version", "errors", "limits", "paths", "syntax", "say", "strict_json", "geometry", "probes", "noise", "sampler",
    "conditions", "plan", "state", "blend", "nets", "graphs", "prediction", "networks", "predict", "step",
    "loop", "weights", "images", "choice_file", "openvino", "controls", "vocabulary", "prompts", "texts", "remarks",
    "arguments", "extras", "copies", "adapting", "autoencoder", "decode", "encode", "beginning", "recipe", "saved",
    "run", "files", "parts", "binding", "preparing", "resuming", "model", "jobs", "study", "cli", "__main__",
]  # fmt: skip
"""A module imports from those before it. `rawdiff/__init__.py` is beside the order: it looks names up lazily."""

FORBIDDEN = [("images", "weights"), ("weights", "images")]
CENTRE = [
    "noise",
    "sampler",
    "conditions",
    "plan",
    "state",
    "blend",
    "nets",
    "graphs",
    "prediction",
    "networks",
    "predict",
    "step",
    "loop",
]
"""What knows nothing of images, files, devices or commands."""
LIBRARIES = {"diffusers": ["weights", "nets"], "transformers": ["weights", "nets"]}

FILES = sorted(PACKAGE.rglob("*.py"))


def home(file: Path) -> str:
    """The name in ORDER that a file belongs to; "" for the package's own `__init__`."""
    first = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def imports(file: Path) -> Iterator[str]:
    """Every module that a file imports, anywhere in it, in full; type-checking imports too."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            assert node.module is not None
            yield node.module
            if node.module == "rawdiff":  # from rawdiff import images
                yield from (f"rawdiff.{alias.name}" for alias in node.names)


def own(file: Path) -> Iterator[str]:
    """Names in ORDER that a file imports."""
    for name in imports(file):
        parts = name.split(".")
        if parts[0] == "rawdiff" and len(parts) > 1 and parts[1] in ORDER:
            yield parts[1]


def test_every_module_has_its_place() -> None:
    assert {home(file) for file in FILES} - {""} <= set(ORDER)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_point_one_way(file: Path) -> None:
    here = home(file)
    if not here:
        return
    for name in own(file):
        assert ORDER.index(name) <= ORDER.index(here), f"{here} imports {name}"
        assert (here, name) not in FORBIDDEN, f"{here} imports {name}"


@pytest.mark.parametrize("name", CENTRE)
def test_the_centre_knows_no_files(name: str) -> None:
    foreign = {"weights", "images", "controls", "saved", "recipe", "run", "model", "study", "cli"}
    for file in FILES:
        if home(file) == name:
            assert not foreign & set(own(file)), file
            libraries = {module.split(".")[0] for module in imports(file)}
            assert not libraries & {
                "PIL",
                "cv2",
                "pathlib",
                "os",
                "io",
                "safetensors",
                "typer",
                "huggingface_hub",
            }


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_the_big_libraries_stay_where_they_are_opened(file: Path) -> None:
    for name in imports(file):
        allowed = LIBRARIES.get(name.split(".")[0])
        assert allowed is None or home(file) in allowed, f"{file} imports {name}"


def test_the_loop_fits_a_screen() -> None:
    assert len((PACKAGE / "loop.py").read_text().splitlines()) <= 80


def imported_by(code: str) -> set[str]:
    """Top-level modules loaded once `code` has run in a fresh interpreter."""
    report = "import sys; print(' '.join({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; {report}"], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_importing_rawdiff_is_light() -> None:
    assert not imported_by("import rawdiff") & {"torch", "numpy", "diffusers", "transformers", "PIL", "cv2"}


def test_the_front_door_opens_without_the_big_libraries() -> None:
    loaded = imported_by("import rawdiff; rawdiff.load, rawdiff.Control, rawdiff.Probe")
    assert "torch" in loaded
    assert not loaded & {"diffusers", "transformers", "cv2", "scipy", "torchsde"}


def test_the_names_of_the_package() -> None:
    import rawdiff

    for name in rawdiff.__all__:
        assert getattr(rawdiff, name) is not None
        assert name in dir(rawdiff)
    with pytest.raises(AttributeError, match="no attribute 'Modell'"):
        rawdiff.Modell  # noqa: B018
