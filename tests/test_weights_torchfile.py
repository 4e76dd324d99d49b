"""Files that torch.save wrote, as others may have spoilt them: valid or our error, no code run, bounded."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import random
import resource
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rawdiff.errors import ResourceError, WeightsError
from rawdiff.weights import torchfile
from rawdiff.weights.tensorfile import open_tensors
from rawdiff.weights.torchfile import ZippedFile

BASE = torch.arange(40, dtype=torch.float32)
TENSORS = {
    "plain": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "turned": torch.arange(12, dtype=torch.float32).reshape(3, 4).t(),
    "part": BASE[8:20].reshape(3, 4),
    "steps": BASE[::3],
    "half": torch.linspace(-1, 1, 7).half(),
    "brain": torch.linspace(-1, 1, 6).bfloat16().reshape(2, 3),
    "scalar": torch.tensor(2.5),
    "empty": torch.empty(0, 3),
    "parameter": torch.nn.Parameter(torch.ones(3)),
}


def saved(value: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def rezip(
    content: bytes, change: Callable[[str, bytes], bytes | None], method: int = zipfile.ZIP_STORED
) -> bytes:
    """The archive anew, each record as `change` returns it (None: left out)."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w", method) as new:
        for record in old.infolist():
            data = change(record.filename, old.read(record))
            if data is not None:
                new.writestr(record.filename, data)
    return buffer.getvalue()


@pytest.mark.parametrize("nested", [False, True])
def test_every_kind_of_tensor_arrives(tmp_path: Path, nested: bool) -> None:
    value = {"state_dict": TENSORS, "global_step": 470000, "lr": 1e-4} if nested else TENSORS
    file = open_tensors(write(tmp_path / "x.ckpt", saved(value)))
    assert isinstance(file, ZippedFile)
    assert set(file.shapes()) == set(TENSORS)
    for name, expected in TENSORS.items():
        found = file.read(name)
        assert torch.equal(found, expected)
        assert found.dtype == expected.dtype
        assert found.is_contiguous()
        assert file.shapes()[name] == tuple(expected.shape)
    assert torch.equal(file.read("plain", (1, 3)), TENSORS["plain"][1:3])
    assert torch.equal(file.read("turned", (2, 4)), TENSORS["turned"][2:4])
    file.close()


def test_only_what_is_asked_for_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    whole = torchfile.read_exactly
    monkeypatch.setattr(
        torchfile, "read_exactly", lambda d, size, o, p: read.append(size) or whole(d, size, o, p)
    )
    file = open_tensors(write(tmp_path / "x.ckpt", saved({"a": torch.ones(1000), "b": torch.ones(50)})))
    assert read == []
    file.read("b")
    assert read == [200]


class Call:
    """Pickled as a call of anything."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("protocol", [2, 4])
def test_no_code_is_run(tmp_path: Path, legacy: bool, protocol: int) -> None:
    mark = tmp_path / "run"
    value = {"a": torch.ones(1), "bomb": Call(Path.touch, mark)}
    options = {"_use_new_zipfile_serialization": not legacy, "pickle_protocol": protocol}
    path = write(tmp_path / "x.ckpt", saved(value, **options))
    with pytest.raises(WeightsError, match="not a readable PyTorch file"):
        open_tensors(path)
    assert not mark.exists()
    torch.load(path, weights_only=False)  # the bomb is live
    assert mark.exists()


def test_what_a_pickle_may_call_for(tmp_path: Path) -> None:
    """torch would let a bytearray of any size be made; a name outside the list is never looked up."""
    for function, arguments, words in (
        (bytearray, (2**40,), r"calls for '(builtins|__builtin__) bytearray'"),
        (eval, ("1/0",), r"calls for '(builtins|__builtin__) eval'"),
        (exec, ("raise SystemExit",), r"calls for '(builtins|__builtin__) exec'"),
    ):
        path = write(tmp_path / "x.ckpt", saved({"a": torch.ones(1), "b": Call(function, *arguments)}))
        with pytest.raises(WeightsError, match=words):
            open_tensors(path)


def test_archives_that_torch_does_not_write(tmp_path: Path) -> None:
    content = saved(TENSORS)
    bomb = lambda name, data: bytes(200 * 2**20) if name.endswith("data.pkl") else data  # noqa: E731
    cases = {
        "compressed": (rezip(content, lambda n, d: d, zipfile.ZIP_DEFLATED), "is compressed"),
        "bomb": (rezip(content, bomb, zipfile.ZIP_DEFLATED), "is compressed"),
        "order": (
            rezip(content, lambda n, d: b"big" if n.endswith("byteorder") else d),
            "another byte order",
        ),
        "short": (
            rezip(content, lambda n, d: d[:-4] if n.endswith("data/0") else d),
            "not where its pickle says",
        ),
        "gone": (rezip(content, lambda n, d: None if n.endswith("data/0") else d), "x.ckpt: "),
        "no pickle": (rezip(content, lambda n, d: None if n.endswith("data.pkl") else d), "not a readable"),
        "cut": (content[:-30], "not a readable"),
        "other": (
            rezip(saved({}), lambda n, d: pickle.dumps(3) if n.endswith("data.pkl") else d),
            "holds int",
        ),
    }
    for name, (data, words) in cases.items():
        with pytest.raises(WeightsError, match=words) as caught:
            open_tensors(write(tmp_path / "x.ckpt", data))
        assert "\n" not in str(caught.value), name


def test_a_tensor_larger_than_its_bytes(tmp_path: Path) -> None:
    """Two numbers on the disk that claim to be 2**40 in memory."""
    for value in (torch.ones(2)[:1].expand(2**40), torch.ones(2)[None].expand(2**30, 2)):
        with pytest.raises(WeightsError, match=r"claims .* numbers of 8 bytes"):
            open_tensors(write(tmp_path / "x.ckpt", saved({"a": value})))


@pytest.mark.parametrize("legacy", [False, True])
def test_a_table_that_holds_itself(tmp_path: Path, legacy: bool) -> None:
    table: dict[str, Any] = {"a": torch.ones(1)}
    table["state_dict"] = table
    path = write(tmp_path / "x.ckpt", saved(table, _use_new_zipfile_serialization=not legacy))
    with pytest.raises(WeightsError, match="'state_dict' is dict, expected a tensor"):
        open_tensors(path)


def mutate(rng: random.Random, good: bytes) -> bytes:
    """Bits flipped, bytes replaced, cut, doubled: in the pickle, the directory or anywhere."""
    data = bytearray(good)
    pickled = data.find(b"data.pkl")
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        start, reach = rng.choice(((0, len(data)), (pickled, 900), (max(len(data) - 900, 0), 900)))
        at = min(start + rng.randrange(reach), len(data) - 1)
        kind = rng.randrange(5)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at] = rng.randrange(256)
        elif kind == 2:
            data[at : at + 4] = rng.choice((0, 1, 2**31 - 1, 2**32 - 1)).to_bytes(4, "little")
        elif kind == 3:
            del data[at : at + rng.randrange(1, 12)]
        else:
            data[at:at] = data[at : at + rng.randrange(1, 40)]
        data = data or bytearray(b"P")
    return bytes(data)


def judge(path: Path, content: bytes) -> bool:
    """Open and read everything: a valid result or our own error, nothing else. True when it was valid."""
    path.write_bytes(content)
    try:
        file = open_tensors(path)
        with contextlib.closing(file):
            for name, shape in file.shapes().items():
                assert tuple(file.read(name).shape) == shape
    except (WeightsError, ResourceError) as error:
        lines = str(error).splitlines()
    else:
        return True
    assert len(lines) == 1
    return False


def fuzz(path: Path, count: int, seed: int = 0, legacy: bool = False) -> int:
    """Mutate a checkpoint `count` times; returns how many were valid."""
    rng = random.Random(seed)
    tensors = {name: value for name, value in TENSORS.items() if name != "empty"}
    good = saved({"state_dict": tensors, "global_step": 3}, _use_new_zipfile_serialization=not legacy)
    return sum(judge(path, mutate(rng, good)) for _ in range(count))


@pytest.mark.parametrize("legacy", [False, True])
def test_mutated_checkpoints(tmp_path: Path, legacy: bool) -> None:
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.process_time()
    valid = fuzz(tmp_path / "x.ckpt", 300, legacy=legacy)
    assert time.process_time() - begin < 30.0
    assert 0 < valid < 270
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 300 * 1024


def test_descriptors_are_given_back(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    fuzz(tmp_path / "x.ckpt", 20)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_read_where_there_is_no_pread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows."""
    path = write(tmp_path / "x.pt", saved(TENSORS))
    for name in ("pread", "preadv"):
        monkeypatch.delattr(os, name)
    file = open_tensors(path)
    try:
        for name, expected in TENSORS.items():
            assert torch.equal(file.read(name), expected)
    finally:
        file.close()
