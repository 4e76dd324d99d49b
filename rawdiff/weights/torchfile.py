"""Files that `torch.save` wrote (.bin, .pt, .pth, .ckpt): no code in them is ever run, and no more read than needed.

A zipped file (torch 1.6 and later) is opened with the tensors' bytes left where they are: `torch.load` with
`weights_only=True` onto the meta device says where each lies, and they are read one at a time. Before that the
list of the archive's records and every name in its pickle are checked. The format before it is read whole.
"""

from __future__ import annotations

import os
import pickletools
import struct
import warnings
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rawdiff.errors import ResourceError, WeightsError
from rawdiff.weights.disk import in_blocks, read_blocks, read_exactly
from rawdiff.weights.header import DTYPES

__all__ = ["PickleFile", "ZippedFile", "read_pickle"]

_REMEDY = "get the safetensors file of this model"

_MAX_RECORDS = 200_000
_MAX_PICKLE_BYTES = 64 * 2**20
"""Names and shapes alone: a checkpoint of Stable Diffusion with EMA has 0.4 MB."""

_SAFE_NAMES = {
    *("collections OrderedDict", "torch Size", "torch device", "_codecs encode"),
    *(
        f"torch._utils _rebuild_{kind}"
        for kind in ("tensor", "tensor_v2", "parameter", "sparse_tensor", "qtensor")
    ),
    *("torch._utils _rebuild_meta_tensor_no_storage", "torch.serialization _get_layout"),
    *(
        "torch.storage UntypedStorage",
        "torch.storage TypedStorage",
        "torch.nn.parameter Parameter",
        "torch Tensor",
    ),
}
_SAFE_DTYPE = (
    "float",
    "double",
    "half",
    "bfloat",
    "int",
    "long",
    "short",
    "uint8",
    "bool",
    "complex",
    "quint8",
)
_DTYPE_NAMES = {dtype: name for name, (dtype, _) in DTYPES.items() if dtype is not None}


class _Tensors:
    """Named tensors, checked to be plain; `read` differs."""

    def __init__(self, path: Path, table: Any) -> None:
        self.path = path
        self._table = _named_tensors(path, table)

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of each tensor by name."""
        return {name: tuple(value.shape) for name, value in self._table.items()}

    def dtypes(self) -> Mapping[str, str]:
        """Dtype of each tensor by name, as safetensors names them."""
        return {name: _DTYPE_NAMES.get(v.dtype, str(v.dtype)) for name, v in self._table.items()}

    def key(self, name: str) -> str:
        """How messages call a tensor."""
        return name

    def close(self) -> None:
        """Give back the file."""
        self._table = {}

    def _rows(self, name: str, rows: tuple[int, int] | None) -> Tensor:
        value: Tensor = self._table[name]
        return value if rows is None else value[slice(*rows)]


class PickleFile(_Tensors):
    """A file in the format before torch 1.6, read whole."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, _load(path, path, "cpu"))
        for name, value in self._table.items():
            if value.device.type != "cpu":
                raise WeightsError(f"{path}: {name!a} is not a plain dense tensor")

    def read(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        """One tensor, or its rows from one to before another, on the CPU, in memory of its own."""
        # A copy: tensors of one pickle may be views of one large storage.
        value = self._rows(name, rows)
        return value.detach().clone(memory_format=torch.contiguous_format)

    def blocks(self, name: str, count: int, rows: tuple[int, int] | None = None) -> Iterator[Tensor]:
        """The values of one tensor, or of its rows, `count` at a time."""
        value = self._rows(name, rows).detach().contiguous()
        return (block.clone() for block in in_blocks(value, count))


class ZippedFile(_Tensors):
    """A zip archive with a pickle of names and shapes, and a record for each tensor's bytes."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._descriptor = descriptor
        self._records = _records(path, descriptor)
        with os.fdopen(os.dup(descriptor), "rb") as file:
            file.seek(0)
            super().__init__(path, _load(path, file, "meta"))
        for name, value in self._table.items():
            self._place(name, value)

    def _place(self, name: str, value: Tensor) -> tuple[int, int]:
        """First byte of a tensor in the file, and how many it spans; raises WeightsError for a wrong promise."""
        storage = value.untyped_storage()
        begin = getattr(storage, "_checkpoint_offset", None)
        if begin is None:
            raise WeightsError(f"{self.path}: {name!a} is not a plain dense tensor")
        if self._records.get(begin) != storage.nbytes():
            raise WeightsError(
                f"{self.path}: the bytes of {name!a} are not where its pickle says; download it again"
            )
        span = 0
        if value.numel():
            span = 1 + sum((n - 1) * stride for n, stride in zip(value.shape, value.stride(), strict=True))
        size = value.element_size()
        first = value.storage_offset() * size
        if value.numel() > span or first + span * size > storage.nbytes():
            raise WeightsError(
                f"{self.path}: {name!a} claims {value.numel()} numbers of {storage.nbytes()} bytes; "
                "the file is damaged"
            )
        return begin + first, span * size

    def read(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        """One tensor, or its rows from one to before another, on the CPU, in memory of its own."""
        value = self._found(name, rows)
        if value.numel() == 0:
            return torch.empty(value.shape, dtype=value.dtype)
        begin, size_bytes = self._place(name, value)
        data = read_exactly(self._descriptor, size_bytes, begin, self.path).view(value.dtype)
        return data.as_strided(value.shape, value.stride()).contiguous()

    def blocks(self, name: str, count: int, rows: tuple[int, int] | None = None) -> Iterator[Tensor]:
        """The values of one tensor, or of its rows, `count` at a time, in memory that may be used again."""
        value = self._found(name, rows)
        if not value.is_contiguous():
            return in_blocks(self.read(name, rows), count)
        begin, size_bytes = self._place(name, value)
        return read_blocks(self._descriptor, size_bytes, begin, self.path, value.dtype, count)

    def _found(self, name: str, rows: tuple[int, int] | None) -> Tensor:
        value = self._rows(name, rows)
        if value.dtype not in _DTYPE_NAMES:
            raise WeightsError(f"{self.path}: {name!a} has dtype {value.dtype}, which is not read here")
        return value

    def close(self) -> None:
        """Give back the file."""
        super().close()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _records(
    path: Path, descriptor: int, remedy: str = _REMEDY, known: Sequence[type] = ()
) -> dict[int, int]:
    """Size of each record by the place of its first byte; raises WeightsError for what `torch.save` never writes."""
    names = _SAFE_NAMES | {f"{one.__module__} {one.__qualname__}" for one in known}
    # As Python 2 called the module, and pickles still do.
    names |= {name.replace("builtins", "__builtin__") for name in names}

    def check() -> dict[int, int]:
        with os.fdopen(os.dup(descriptor), "rb") as file, zipfile.ZipFile(file) as archive:
            listed = archive.infolist()
            if len(listed) > _MAX_RECORDS:
                raise ValueError(f"{len(listed)} records, expected at most {_MAX_RECORDS}")
            places = {}
            for record in listed:
                if record.compress_type != zipfile.ZIP_STORED or record.file_size != record.compress_size:
                    raise ValueError(f"record {record.filename[:60]!a} is compressed")
                name = record.filename.rpartition("/")[2].lower()  # torch finds records in either case
                if name == "byteorder" and archive.read(record) != b"little":
                    raise ValueError("written in another byte order")
                if name == "data.pkl":
                    if record.file_size > _MAX_PICKLE_BYTES:
                        raise ValueError(
                            f"a pickle of {record.file_size} bytes, expected names and shapes alone"
                        )
                    _check_names(archive.read(record), names)
                file.seek(record.header_offset)  # the archive seeks where it reads
                name_bytes, extra_bytes = struct.unpack_from("<HH", file.read(30), 26)
                places[record.header_offset + 30 + name_bytes + extra_bytes] = record.file_size
            if sum(record.file_size for record in listed) > os.fstat(descriptor).st_size:
                raise ValueError("its records have more bytes than the file")
            return places

    found: dict[int, int] = _guarded(path, check, remedy)
    return found


def _check_names(pickled: bytes, names: Collection[str]) -> None:
    """Raise ValueError for a name outside `names` and storages: `weights_only` would allow a few more."""
    for operation, argument, _ in pickletools.genops(pickled):
        if operation.name == "GLOBAL":
            name = str(argument)
            module, _, thing = name.partition(" ")
            is_storage = module == "torch" and (thing.endswith("Storage") or thing.startswith(_SAFE_DTYPE))
            if name not in names and not is_storage:
                raise ValueError(f"it calls for {name[:80]!a}, and no code from a file is run")
        elif operation.name in ("STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4"):
            raise ValueError(f"it uses {operation.name}, and no code from a file is run")


def read_pickle(path: Path, descriptor: int, kind: str, remedy: str, known: Sequence[type] = ()) -> Any:
    """All that a "zip" or "pickle" holds, read with `weights_only=True`: no code in it is ever run.

    A zip's records are checked as those of a checkpoint are: it takes no more memory than the file has bytes. `known`
    are inert classes that it may use beside tensors, lists and dicts; `remedy` ends the error's line.
    Raises WeightsError, ResourceError.
    """
    if kind == "zip":
        _records(path, descriptor, remedy, known)
    with (
        torch.serialization.safe_globals(list(known)),
        os.fdopen(os.dup(descriptor), "rb") as file,
    ):
        file.seek(0)
        return _load(path, file, "cpu", remedy)


def _load(path: Path, source: Any, device: str, remedy: str = _REMEDY) -> Any:
    def load() -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's notes on its own old formats
            return torch.load(source, map_location=device, weights_only=True)

    return _guarded(path, load, remedy)


def _guarded(path: Path, work: Callable[[], Any], remedy: str = _REMEDY) -> Any:
    """`work()`, with whatever escapes from a damaged file said in one line."""
    try:
        return work()
    except MemoryError as error:
        raise ResourceError(f"{path}: no memory to load it") from error
    except Exception as error:  # torch and zipfile let a dozen kinds escape from a damaged file
        reason = " ".join(str(error).split())[:160]
        raise WeightsError(
            f"{path}: not a readable PyTorch file of tensors ({type(error).__name__}: {reason}); {remedy}"
        ) from error


def _named_tensors(path: Path, table: Any) -> dict[str, Tensor]:
    """The tensors of a pickle; a training checkpoint keeps them one level down, under "state_dict"."""
    if isinstance(table, dict) and isinstance(table.get("state_dict"), dict):
        table = table["state_dict"]
    if not isinstance(table, dict) or not table:
        raise WeightsError(f"{path}: holds {type(table).__name__}, expected named tensors")
    for name, value in table.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise WeightsError(f"{path}: {str(name)[:80]!a} is {type(value).__name__}, expected a tensor")
        if value.layout != torch.strided or value.is_quantized:
            raise WeightsError(f"{path}: {name!a} is not a plain dense tensor")
    return dict(table)
