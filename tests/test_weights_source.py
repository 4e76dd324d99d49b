"""Names of models, defaults, and the tokenizer: what a name leads to, and what a folder promises."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rawdiff import weights
from rawdiff.errors import HubError, UsageError, WeightsError
from rawdiff.weights import registry, source
from tests.small_models import small_folder, small_tokenizer


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_folder(tmp_path_factory.mktemp("models") / "small", nets=("depth",))


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Iterator[Path]:
    shutil.copytree(pristine, tmp_path / "model")
    yield tmp_path / "model"
    shutil.rmtree(tmp_path / "model")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in this file may reach for a network."""

    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr("socket.socket", refuse)


# Names.


def test_a_folder_by_any_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    monkeypatch.setenv("HOME", str(folder.parent))
    for name in (folder, str(folder), "model", "./model", "~/model", f"{folder}/"):
        opened = weights.open_source(name)
        assert opened.kind == "folder"
        assert opened.root == folder.resolve()
    assert weights.open_source(opened) is opened


def test_a_folder_wins_over_a_hub_id_and_an_alias(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    for name in ("owner/name", "sd1.5"):
        target = folder.parent / name
        target.parent.mkdir(exist_ok=True)
        target.symlink_to(folder)
        assert weights.open_source(name, offline=True).kind == "folder"
        target.unlink()
        with pytest.raises(HubError, match="not in the cache"):
            weights.open_source(name, offline=True, hub=weights.Hub(cache=folder / "none", offline=True))


PATHS = (
    *("./none", "../none", "/none", "~/none", "a/b/c", "none/", "owner/name/", "x.safetensors"),
    *("owner/model.ckpt", "C:\\models\\x", "C:/models", "a\\b", Path("owner/name"), Path("sd1.5")),
)


@pytest.mark.parametrize("name", PATHS)
def test_what_looks_like_a_path_is_never_looked_up(name: str | Path) -> None:
    with pytest.raises((WeightsError, UsageError), match=r"no such folder|no folder here"):
        weights.open_source(name)


@pytest.mark.parametrize(
    "name", ["", "none", "sd9", "owner /name", "ow\0ner/name", "own\ner/x", "-a/b", "a/", "é/b"]
)
def test_what_is_no_name(name: str) -> None:
    with pytest.raises((UsageError, WeightsError)) as caught:
        weights.open_source(name)
    assert "\n" not in str(caught.value)


def test_a_file_is_looked_into(folder: Path) -> None:
    with pytest.raises(WeightsError, match="reads text of width 32, expected 768"):
        weights.open_source(folder / "unet" / "diffusion_pytorch_model.safetensors")


def test_the_embedded_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "EMBEDDED", folder)
    for name in (None, "embedded"):
        opened = weights.open_source(name)
        assert (opened.kind, opened.name) == ("embedded", "embedded")
    assert weights.load_scheduler() is not None
    monkeypatch.setattr(source, "EMBEDDED", folder / "none")
    with pytest.raises(WeightsError, match="install rawdiff again"):
        weights.open_source()


@pytest.mark.parametrize("inside", ["", "..", "a/../..", "/etc", "a\\b", "a/.."])
def test_a_child_stays_inside(pristine: Path, inside: str) -> None:
    with pytest.raises(WeightsError, match="no folder inside"):
        weights.open_source(pristine).child(inside)


def test_importing_weights_imports_no_library() -> None:
    code = (
        "import sys, rawdiff.weights\n"
        "print([m for m in ('diffusers', 'transformers', 'huggingface_hub') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# The registry.


def test_registry_is_consistent() -> None:
    for alias, known in registry.ALIASES.items():
        assert alias == known.alias
        assert known.family in ("sd1", "sd2", "sdxl")
        assert known.licence
        assert all(source._HUB_ID.fullmatch(name) for name in known.repositories)
        assert not set(known.repositories) & set(registry.GONE)
        assert registry.find(known.repositories[0]) is known
    for name, (alias, when) in registry.GONE.items():
        assert registry.find(name) is registry.ALIASES[alias]
        assert when[-4:].isdigit()
    assert registry.find("owner/name") is None
    assert {"sd1.5", "sd2.1", "sdxl", "epicrealism"} <= set(registry.aliases("model"))


def test_nets_of_a_family() -> None:
    net = registry.net_for("depth", "sd1")
    assert net is not None
    assert net.repositories == ("lllyasviel/control_v11f1p_sd15_depth",)
    assert registry.net_for("normal", "sd2") is None


# Defaults.


def test_defaults_from_the_file(pristine: Path) -> None:
    found = weights.read_defaults(pristine)
    assert (found.name, found.native_size, found.guidance, found.sampler) == ("small", (64, 64), 4.0, None)
    assert list(found.controls) == ["depth"]
    assert weights.load_controlnet(found.controls["depth"]).config["cross_attention_dim"] == 32


def test_defaults_from_the_configs(folder: Path) -> None:
    (folder / "rawdiff.json").unlink()
    found = weights.read_defaults(folder)
    assert (found.native_size, found.guidance, dict(found.controls), found.family) == (
        (64, 64),
        7.5,
        {},
        None,
    )
    path = folder / "unet" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "cross_attention_dim": 768, "sample_size": [48, 96]}))
    found = weights.read_defaults(folder)
    assert found.native_size == (384, 768)
    assert found.family == "sd1"
    assert found.controls["depth"] == "sd1.5-depth"
    for bad in ("big", [64], 0, 10**6, 2.5, True):
        path.write_text(json.dumps({**config, "sample_size": bad}))
        with pytest.raises(WeightsError, match="sample_size"):
            weights.read_defaults(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"native_size": [100, 128]}, "is not a multiple of 8"),
        ({"native_size": "128x128"}, "two whole numbers"),
        ({"largest_size": [100, 128]}, "is not a multiple of 8"),
        ({"native_size": [True, 8]}, "two whole numbers"),
        ({"guidance": "4"}, "guidance '4', expected a number"),
        ({"guidance": True}, "expected a number"),
        ({"guidance": 1e999}, "Infinity is not JSON"),
        ({"gidance": 4}, "unknown key 'gidance'"),
        ({"name": 5}, "must be text"),
        ({"sampler": 5}, "must be text"),
        ({"controls": ["depth"]}, "controls must map"),
        ({"controls": {"depth": 5}}, "controls must map"),
        ({"controls": {"depth": "../other"}}, "no folder inside"),
    ],
)
def test_bad_defaults(folder: Path, changes: dict[str, Any], words: str) -> None:
    path = folder / "rawdiff.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(WeightsError, match=words):
        weights.read_defaults(folder)


def test_defaults_without_a_size(folder: Path) -> None:
    (folder / "rawdiff.json").write_text('{"name": "x"}')
    with pytest.raises(WeightsError, match="no native_size"):
        weights.read_defaults(folder)


# The tokenizer.


def change_tokenizer(folder: Path, **changes: Any) -> None:
    path = folder / "tokenizer" / "tokenizer_config.json"
    table = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in table.items() if v is not None}))


def test_tokenizer(pristine: Path, tmp_path: Path) -> None:
    found, expected = weights.load_tokenizer(pristine), small_tokenizer(tmp_path / "t")
    for text in ("a red cube on the grass", "", "Sphères, 3 of them!", "\u4e2d \x00 " * 40):
        assert found(text).input_ids == expected(text).input_ids
    assert found.model_max_length == 77
    ids = found(
        "grass " * 100, padding="max_length", truncation=True, max_length=found.model_max_length
    ).input_ids
    assert len(ids) == 77


@pytest.mark.parametrize("missing", ["tokenizer.json", "vocab.json", "merges.txt"])
def test_tokenizer_from_the_old_or_the_new_files(folder: Path, missing: str) -> None:
    """Stable Diffusion 1's folders have no tokenizer.json; vocabulary and merges make the same of every text."""
    expected = weights.load_tokenizer(folder)
    (folder / "tokenizer" / missing).unlink()
    if missing != "tokenizer.json":
        (folder / "tokenizer" / ({"vocab.json", "merges.txt"} - {missing}).pop()).unlink()
    found = weights.load_tokenizer(folder)
    for text in ("a red cube on the grass", "the blue spheres é 中"):
        assert found(text).input_ids == expected(text).input_ids
    assert len(found("red").input_ids) == 3  # merged: one token between start and end


def test_a_number_that_the_text_encoder_does_not_have(folder: Path) -> None:
    """As many tokens as it has, and one of them beyond: an index error at the first prompt that holds it."""
    (folder / "tokenizer" / "tokenizer.json").unlink()
    path = folder / "tokenizer" / "vocab.json"
    vocabulary = json.loads(path.read_text())
    path.write_text(json.dumps({**vocabulary, "a</w>": 90_000}))
    with pytest.raises(WeightsError, match="a token of the number 90000, expected at most"):
        weights.load_tokenizer(folder)
    path.write_text(json.dumps(vocabulary))
    weights.load_tokenizer(folder)


def test_the_length_is_the_encoders_where_the_tokenizer_has_none(folder: Path) -> None:
    change_tokenizer(folder, model_max_length=None)
    assert weights.load_tokenizer(folder).model_max_length == 77
    change_tokenizer(folder, model_max_length=int(1e30))
    assert weights.load_tokenizer(folder).model_max_length == 77
    change_tokenizer(folder, model_max_length=60)
    assert weights.load_tokenizer(folder).model_max_length == 60
    for length in ("77", [1], 77.0, True, 2, 0, -5):
        change_tokenizer(folder, model_max_length=length)
        with pytest.raises(WeightsError, match=r"model_max_length .*, expected a whole number from 3"):
            weights.load_tokenizer(folder)
    change_tokenizer(folder, model_max_length=128)
    with pytest.raises(WeightsError, match="model_max_length 128, expected at most 77"):
        weights.load_tokenizer(folder)


def test_tokenizers_that_do_not_fit(folder: Path) -> None:
    config = folder / "text_encoder" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "vocab_size": 500}))
    with pytest.raises(WeightsError, match="tokens, expected at most 500"):
        weights.load_tokenizer(folder)
    change_tokenizer(folder, tokenizer_class="BertTokenizer")
    with pytest.raises(WeightsError, match="class 'BertTokenizer', expected CLIPTokenizer"):
        weights.load_tokenizer(folder)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", "{}"),
        ("tokenizer.json", '{"version": "1.0", "model": {"type": "Evil"}}'),
        ("tokenizer.json", ""),
        ("vocab.json", "[]"),
        ("vocab.json", '{"a": "b"}'),
        ("tokenizer_config.json", "<html>"),
    ],
)
def test_damaged_tokenizers(folder: Path, name: str, content: str) -> None:
    (folder / "tokenizer" / name).write_text(content)
    with pytest.raises(WeightsError) as caught:
        weights.load_tokenizer(folder)
    assert "tokenizer" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_without_files(folder: Path) -> None:
    for name in ("tokenizer.json", "merges.txt"):
        (folder / "tokenizer" / name).unlink()
    with pytest.raises(WeightsError, match=r"expected vocab.json and merges.txt"):
        weights.load_tokenizer(folder)
    shutil.rmtree(folder / "tokenizer")
    with pytest.raises(WeightsError, match="has no tokenizer/ folder"):
        weights.load_tokenizer(folder)
