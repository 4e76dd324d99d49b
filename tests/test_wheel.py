"""The package as others get it: a wheel, in an environment of its own, away from this tree."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
MAP = ROOT / "metadata" / "solids" / "05_moonlight.png"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by pip from a copy of what git tracks, with the setuptools at hand."""
    source = tmp_path_factory.mktemp("source")
    out = tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, tracked.decode().split("\0")):
        if name.startswith(("rawdiff/", "pyproject", "README", "LICENSE")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(out),
        str(source),
    ]
    subprocess.run(build, check=True, capture_output=True)
    (found,) = out.glob("*.whl")
    return found


def test_the_wheel_holds_the_package_the_model_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as held:
        names = set(held.namelist())
    inside = {n for n in names if not re.match(r"rawdiff-[^/]+\.dist-info/", n)}
    assert {n.split("/")[0] for n in inside} == {"rawdiff"}
    tracked = subprocess.run(
        ["git", "ls-files", "rawdiff"], cwd=ROOT, capture_output=True, check=True, text=True
    )
    assert inside == set(tracked.stdout.split())
    assert wheel.stat().st_size < 40_000_000


def test_a_wheel_installed_elsewhere_draws_the_picture_that_the_tree_draws(
    wheel: Path, tmp_path: Path
) -> None:
    site = tmp_path / "site"
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(site),
        str(wheel),
    ]
    subprocess.run(install, check=True, capture_output=True)
    draw = ["gen", "-p", "a cyan sphere on a stone floor at night", "--depth", str(MAP), "--size", "192x192"]
    draw += ["--seed", "5", "--steps", "4"]
    # -I: neither the current directory nor the editable install of this tree is seen, only what is named here.
    packages = [str(site), sysconfig.get_paths()["purelib"]]
    start = f"import sys; sys.path[:0] = {packages}; import rawdiff.cli as c; "
    start += "print(c.__file__); sys.exit(c.main(sys.argv[1:]))"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "RAWDIFF"))}
    pictures = []
    for code in (start, "import sys; from rawdiff.cli import main; sys.exit(main(sys.argv[1:]))"):
        folder = tmp_path / f"run{len(pictures)}"
        folder.mkdir()
        flags = ["-I", "-S"] if code == start else []
        done = subprocess.run(
            [sys.executable, *flags, "-c", code, *draw],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        lines = done.stdout.split("\n")
        assert code != start or lines[0].startswith(str(site))
        pictures.append((folder / lines[-2]).read_bytes() if (folder / lines[-2]).is_file() else b"")
    ours, theirs = (Image.open(BytesIO(data)) for data in pictures)
    assert ours.size == (192, 192)
    assert ours.tobytes() == theirs.tobytes()
