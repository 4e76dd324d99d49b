"""Files of tensors: what is read is what was written, and what is wrong is said in rawdiff's own words."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import random
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from rawdiff.errors import WeightsError
from rawdiff.weights import header
from rawdiff.weights.tensorfile import SafetensorsFile, open_tensors

TENSORS = {
    "a": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "b.weight": torch.linspace(-1, 1, 5).bfloat16(),
    "c": torch.arange(7),
    "empty": torch.empty(0, 3),
    "half": torch.randn(1, 9, generator=torch.Generator().manual_seed(1)).half(),
    "scalar": torch.tensor(1.5, dtype=torch.float64),
}


def pack(table: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file by hand: any header, any claim about its length."""
    raw = table if isinstance(table, bytes) else json.dumps(table).encode()
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + data


def entry(shape: list[Any], begin: Any, end: Any, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_reads_back_what_safetensors_wrote(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file(TENSORS, path, metadata={"format": "pt"})
    file = open_tensors(path)
    assert set(file.shapes()) == set(TENSORS)
    for name, value in TENSORS.items():
        found = file.read(name)
        assert found.dtype == value.dtype
        assert torch.equal(found, value)
    file.close()


def test_reads_back_what_torch_wrote(tmp_path: Path) -> None:
    for zipped in (True, False):
        path = tmp_path / f"{zipped}.bin"
        torch.save(TENSORS, path, _use_new_zipfile_serialization=zipped)
        file = open_tensors(path)
        for name, value in TENSORS.items():
            assert torch.equal(file.read(name), value)
        assert file.dtypes()["b.weight"] == "BF16"


def test_tensors_live_on_when_the_file_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file(TENSORS, path)
    value = open_tensors(path).read("a")
    with path.open("r+b") as file:
        file.truncate(10)
    assert torch.equal(value, TENSORS["a"])


def test_a_file_cut_while_open_is_an_error_and_no_crash(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"big": torch.randn(1000, 1000)}, path)
    file = open_tensors(path)
    with path.open("r+b") as other:
        other.truncate(2_000_000)
    with pytest.raises(WeightsError, match=r"was cut at byte 2000000 .* download it again"):
        file.read("big")
    file.close()


BAD_HEADERS: dict[str, tuple[Any, str]] = {
    "duplicate": (
        pack(b'{"a":' + json.dumps(entry([0], 0, 0)).encode() + b',"a":{}}'),
        "header is not valid JSON \\('a': a key occurs twice\\)",
    ),
    "duplicate inside": (
        pack(b'{"a":{"dtype":"F32","dtype":"F16","shape":[0],"data_offsets":[0,0]}}'),
        "header is not valid JSON \\('dtype': a key occurs twice\\)",
    ),
    "not json": (pack(b'{"a": '), "header is not valid JSON \\(Expecting value: line 1 column 7"),
    "not utf-8": (pack(b'{"\xff": 1}'), "header is not valid JSON \\('utf-8' codec can't decode byte 0xff"),
    "deep": (pack(b'{"a":' + b"[" * 100_000 + b"}"), "not valid JSON|more than"),
    "nan": (pack(b'{"a": NaN}'), "header is not valid JSON \\(NaN is not JSON\\)"),
    "huge number": (
        pack(b'{"a": ' + b"9" * 5000 + b"}"),
        "header is not valid JSON \\(9{20}... is too large\\)",
    ),
    "list": (pack(b'{"a":1} '.replace(b'{"a":1}', b"[]").rjust(9)), "no weight file|JSON"),
    "no fields": (pack({"a": {"dtype": "F32"}}), "not described"),
    "extra field": (pack({"a": {**entry([0], 0, 0), "x": 1}}), "not described"),
    "unknown dtype": (pack({"a": entry([1], 0, 4, "F33")}, b"0000"), "F33"),
    "dtype is a list": (pack({"a": entry([1], 0, 4, ["F32"])}, b"0000"), "does not know"),
    "negative shape": (pack({"a": entry([-1, -1], 0, 4)}, b"0000"), "no valid shape"),
    "shape of booleans": (pack({"a": entry([True], 0, 4)}, b"0000"), "no valid shape"),
    "fractional shape": (pack({"a": entry([1.0], 0, 4)}, b"0000"), "no valid shape"),
    "overflowing shape": (pack({"a": entry([2**31, 2**31, 4], 0, 0)}), "spans 0 bytes"),
    "wrong span": (pack({"a": entry([2], 0, 4)}, b"0000"), "spans 4 bytes, expected 8"),
    "backwards": (pack({"a": entry([1], 4, 0)}, b"0000"), "spans -4 bytes"),
    "three offsets": (
        pack({"a": {"dtype": "F32", "shape": [], "data_offsets": [0, 4, 4]}}, b"0000"),
        "offsets",
    ),
    "overlap": (pack({"a": entry([1], 0, 4), "b": entry([1], 0, 4)}, b"0000"), "overlaps"),
    "gap": (pack({"a": entry([1], 4, 8)}, b"00000000"), "leaves a gap"),
    "cut": (pack({"a": entry([2], 0, 8)}, b"0000"), "is cut short"),
    "tail": (pack({"a": entry([1], 0, 4)}, b"000000"), "bytes that no tensor owns"),
    "metadata": (pack({"__metadata__": {"a": 1}, "a": entry([1], 0, 4)}, b"0000"), "__metadata__"),
    "header past the end": (pack({"a": entry([1], 0, 4)}, b"0000", length=10_000), "truncated"),
    "header of 2**63": (pack({"a": 1}, length=2**63), "no weight file|truncated"),
    "empty": (b"", "empty file; download it again"),
    "three bytes": (b"\x05\0\0", "no weight file|truncated"),
    "html": (b"<!DOCTYPE html><title>Log in</title>", "web page"),
    "html with space": (b"\n\n  <html><head>", "web page"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "git lfs pull"),
    "gguf": (b"GGUF\x03\0\0\0" + b"\0" * 32, "GGUF"),
    "zip": (b"PK\x03\x04" + b"\0" * 64, "zipped PyTorch pickle"),
    "pickle": (pickle.dumps({"a": 1}, protocol=2), "PyTorch pickle"),
    "gzip": (b"\x1f\x8b" + b"\0" * 40, "gzip"),
    "json": (b'{"a": "just some text of JSON"}', "JSON"),
    "noise": (bytes(range(40, 140)), "no weight file"),
}


@pytest.mark.parametrize("name", BAD_HEADERS)
def test_bad_files_are_named_in_one_line(tmp_path: Path, name: str) -> None:
    content, words = BAD_HEADERS[name]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=words) as caught:
        open_tensors(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 4


def test_a_header_length_that_spells_gzip_is_no_gzip(tmp_path: Path) -> None:
    raw = json.dumps({"a": entry([1], 0, 4)}).encode().ljust(0x8B1F)
    path = tmp_path / "x.safetensors"
    path.write_bytes(pack(raw, b"\0\0\x80\x3f"))
    assert open_tensors(path).read("a").tolist() == [1.0]


def test_limits_hold_in_bounded_time(tmp_path: Path) -> None:
    """Half a million empty tensors in 31 MB take a naive reader 14 s and a gigabyte."""
    path = tmp_path / "x.safetensors"
    many = b",".join(b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % k for k in range(110_000))
    path.write_bytes(pack(b"{" + many + b"}"))
    begin = time.process_time()
    with pytest.raises(WeightsError, match="more than 100000 tensors"):
        open_tensors(path)
    with path.open("wb") as file:  # sparse: 200 MB that take no space
        file.write((150 * 2**20).to_bytes(8, "little") + b"{")
        file.truncate(200 * 2**20)
    with pytest.raises(WeightsError, match="header of 157286400 bytes"):
        open_tensors(path)
    assert time.process_time() - begin < 2.0


def test_files_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="not a regular file"):
        open_tensors(tmp_path)
    with pytest.raises(WeightsError, match="no such file"):
        open_tensors(tmp_path / "none.safetensors")
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(WeightsError, match="not a regular file"):
        open_tensors(tmp_path / "pipe.safetensors")


class Bomb:
    """A pickle that makes a file when it is opened by a careless reader."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("zipped", [True, False])
def test_no_code_in_a_pickle_is_run(tmp_path: Path, zipped: bool) -> None:
    mark = tmp_path / "run"
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.ones(1), "bomb": Bomb(mark)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match="not a readable PyTorch file"):
        open_tensors(path)
    assert not mark.exists()
    torch.load(path, weights_only=False)  # the bomb is live
    assert mark.exists()


def test_a_pickle_renamed_to_safetensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    torch.save(TENSORS, path)
    with pytest.raises(WeightsError, match="zipped PyTorch pickle; expected safetensors"):
        open_tensors(path)


def test_pickles_of_other_things(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    for value, words in (
        ([1, 2], "holds list"),
        ({}, "holds dict"),
        ({"a": 1}, "'a' is int"),
        ({1: torch.ones(1)}, "'1' is Tensor"),
        ({"a": torch.ones(3).to_sparse()}, "not a plain dense tensor"),
        ({"a": torch.ones(3, device="meta")}, "not a plain dense tensor"),
    ):
        torch.save(value, path)
        with pytest.raises(WeightsError, match=words):
            open_tensors(path)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(WeightsError, match="not a readable PyTorch file"):
        open_tensors(path)


def judge(path: Path, content: bytes) -> bool:
    """Open and read everything: a valid result or our own error, nothing else. True when it was valid."""
    path.write_bytes(content)
    try:
        file = open_tensors(path)
    except WeightsError as error:
        found = str(error)
        assert "\n" not in found
        return False
    with contextlib.closing(file):
        for name, shape in file.shapes().items():
            if header.DTYPES[file.dtypes()[name]][0] is not None:
                assert tuple(file.read(name).shape) == shape
    return True


WORDS = [b"0", b"9" * 20, b"-1", b'"F8_E4M3"', b"[]", b"{}", b"null", b"1e9", b'"', b",", b"\xff", b"F64"]


def mutate(rng: random.Random, good: bytes, reach: int) -> bytes:
    """Bits flipped, bytes replaced by words of the trade, cut, doubled; mostly in the first `reach` bytes."""
    data = bytearray(good)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at = rng.randrange(len(data)) if rng.random() < 0.1 else rng.randrange(min(reach, len(data)))
        kind = rng.randrange(5)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at : at + rng.randrange(1, 9)] = rng.choice(WORDS)
        elif kind == 2:
            del data[at : at + rng.randrange(1, 30)]
        elif kind == 3:
            data[at:at] = data[at : at + rng.randrange(1, 60)]
        else:
            data[:8] = ((int.from_bytes(data[:8], "little") + rng.randrange(-9, 9)) % 2**64).to_bytes(
                8, "little"
            )
        data = data or bytearray(b"\0")
    return bytes(data)


def test_mutated_files(tmp_path: Path) -> None:
    rng = random.Random(0)
    good = save(TENSORS, metadata={"format": "pt"})
    head = 8 + int.from_bytes(good[:8], "little")
    begin = time.process_time()
    valid = sum(judge(tmp_path / "x.safetensors", mutate(rng, good, head)) for _ in range(800))
    assert time.process_time() - begin < 20.0
    assert 0 < valid < 400  # some flips are in the data, where every bit is as good as another


def fuzz_headers(count: int, seed: int = 0) -> int:
    """Mutate a header in memory; each result is valid or one of our errors. Returns the number valid."""
    rng = random.Random(seed)
    good = save(TENSORS, metadata={"format": "pt"})
    length = int.from_bytes(good[:8], "little")
    raw, data_bytes = good[8 : 8 + length], len(good) - 8 - length
    valid = 0
    for _ in range(count):
        with contextlib.suppress(WeightsError):
            header.parse_header(mutate(rng, raw, length), data_bytes, "x")
            valid += 1
    return valid


def test_mutated_headers() -> None:
    assert 0 < fuzz_headers(20_000) < 10_000


names = st.text(max_size=6) | st.sampled_from(["a", "b", "__metadata__"])
counts = st.integers(-1, 5) | st.sampled_from([2**31, 2**63, 2**64, 10**30]) | st.booleans() | st.floats()
dtypes = st.sampled_from([*header.DTYPES, "F31", ""]) | st.none() | st.integers()
entries = st.fixed_dictionaries(
    {"dtype": dtypes, "shape": st.lists(counts, max_size=4), "data_offsets": st.lists(counts, max_size=3)}
)


TABLES = st.dictionaries(names, entries | st.none() | counts | st.text(max_size=3), max_size=5)
"""Headers of about the right form."""


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TABLES, st.binary(max_size=40))
def test_structured_headers(tmp_path: Path, table: dict[str, Any], data: bytes) -> None:
    judge(tmp_path / "x.safetensors", pack(table, data))


shapes = st.lists(st.integers(0, 4), max_size=3)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(names.filter(lambda n: n != "__metadata__"), st.tuples(shapes, dtypes), max_size=4))
def test_valid_headers_are_accepted(tmp_path: Path, wanted: dict[str, tuple[list[int], Any]]) -> None:
    table, position = {}, 0
    for name, (shape, dtype) in wanted.items():
        if dtype in header.DTYPES:
            size_bytes = header.DTYPES[dtype][1]
            for side in shape:
                size_bytes *= side
            table[name] = entry(shape, position, position + size_bytes, dtype)
            position += size_bytes
    assert judge(tmp_path / "x.safetensors", pack(table, bytes(position)))


def test_descriptors_are_given_back(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    before = len(list(Path("/proc/self/fd").iterdir()))
    for content, _ in BAD_HEADERS.values():
        judge(path, content)
    judge(path, save(TENSORS))
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_tensor_of_a_kind_that_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(pack({"a": entry([4], 0, 4, "F8_E4M3")}, b"0000"))
    file = open_tensors(path)
    assert isinstance(file, SafetensorsFile)
    with pytest.raises(WeightsError, match="'a' has dtype F8_E4M3"):
        file.read("a")
    file.close()
