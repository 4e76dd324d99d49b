"""What is added to a model for a run: LoRAs to its weights, triggers of textual inversion to its words.

Each is named by a path, or by the name that the model's rawdiff.json has for one of its own: a word without a dot or
slash is such a name.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rawdiff import weights
from rawdiff.arguments import check_number, shown
from rawdiff.errors import UsageError
from rawdiff.limits import check_few, is_name
from rawdiff.paths import expanded
from rawdiff.syntax import Tag
from rawdiff.weights import digests
from rawdiff.weights.lora_alpha import PEFT_FILE, config_beside

__all__ = ["AddedEmbedding", "AddedLora", "Extras", "say_unknown"]


def say_unknown(what: str, name: str, own: Iterable[str]) -> str:
    """What is said of the name of a "lora" or "embedding" that a model does not bring."""
    return f"{what} {name!r}: this model brings none of that name (it has {', '.join(sorted(own)) or 'none'})"


@dataclass(frozen=True, eq=False)
class AddedLora:
    """A LoRA, read, and how much of it."""

    name: str
    """As it was asked for."""
    lora: weights.Lora
    scale: float
    config: str | None
    """SHA-256 of peft's adapter_config.json, where one was read with it."""

    def describe(self) -> dict[str, Any]:
        """What an account says of it."""
        return {"name": self.name, "sha256": self.lora.sha256, "config": self.config, "scale": self.scale}


@dataclass(frozen=True, eq=False)
class AddedEmbedding:
    """A textual-inversion embedding, read."""

    name: str
    """As it was asked for."""
    embedding: weights.Embedding

    def describe(self) -> dict[str, Any]:
        """What an account says of it."""
        return {"name": self.name, "sha256": self.embedding.sha256, "trigger": self.embedding.trigger}


class Extras:
    """Finds and reads what is added to one model; LoRAs that were asked for last are not read again."""

    def __init__(self, source: weights.Source, defaults: weights.Defaults) -> None:
        self._source, self._defaults = source, defaults
        self._read: dict[Path, AddedLora] = {}

    def loras(self, given: Sequence[Any], tags: Sequence[Tag] = ()) -> tuple[AddedLora, ...]:
        """LoRAs by path or name, each alone or as (path, scale), read; the scale is else 1. Then those of `tags`.

        Raises UsageError for a name that the model does not know, WeightsError for a file that is no LoRA.
        """
        found = []
        check_few("loras", [*_listed("loras", given), *tags])
        for one in [*given, *tags]:
            if isinstance(one, AddedLora):
                found.append(one)
                continue
            name, scale = _pair("loras", one, 1.0)
            found.append(self._lora(name, check_number(f"scale of lora {name}", scale)))
        self._read = {one.lora.path: one for one in found}
        return tuple(found)

    def _lora(self, name: str, scale: float) -> AddedLora:
        path = self.find("lora", name)
        last = self._read.get(path)
        if last is not None and _is_unchanged(path, last):
            return AddedLora(name, last.lora, scale, last.config)
        lora = weights.read_lora(path)
        return AddedLora(name, lora, scale, _config(lora))

    def embeddings(self, given: Sequence[Any]) -> tuple[AddedEmbedding, ...]:
        """Embeddings by path or name, each alone or as (path, trigger), read; the trigger is else the file's own.

        Raises UsageError for a name that the model does not know, WeightsError for a file that is no embedding.
        """
        found = []
        for one in _listed("embeddings", given):
            if isinstance(one, AddedEmbedding):
                found.append(one)
                continue
            name, trigger = _pair("embeddings", one, None)
            path = self.find("embedding", name)
            found.append(AddedEmbedding(name, weights.read_embedding(path, trigger)))
        return tuple(found)

    def find(self, what: str, name: str) -> Path:
        """The file that the name of a "lora" or "embedding" means; UsageError for a name that the model has not."""
        own = self._defaults.loras if what == "lora" else self._defaults.embeddings
        if not is_name(name):
            return expanded(name)
        if name not in own:
            raise UsageError(
                f"{say_unknown(what, name, own)}; a file is given by its path, such as ./{name}.safetensors"
            )
        if what == "lora":  # a hub's files come one by one, and peft keeps alpha in a second
            folder, slash, _ = own[name].rpartition("/")
            if PEFT_FILE in self._source.names(folder):
                self._source.path(f"{folder}{slash}{PEFT_FILE}")
        return self._source.path(own[name])


def _is_unchanged(path: Path, last: AddedLora) -> bool:
    config = config_beside(path, (factors.name for factors in last.lora.factors))
    return (
        digests.sha256(path) == last.lora.sha256
        and config == last.lora.config
        and (config is None or digests.sha256(config) == last.config)
    )


def _config(lora: weights.Lora) -> str | None:
    return None if lora.config is None else digests.sha256(lora.config)


def _listed(what: str, given: object) -> Sequence[Any]:
    if isinstance(given, (str, bytes)) or not isinstance(given, Sequence):
        raise UsageError(f"{what} {shown(given)}: expected a list, such as [{shown('style.safetensors')}]")
    check_few(what, given)
    return given


def _pair(what: str, one: Any, default: Any) -> tuple[str, Any]:
    """A path or name, and what is said with it."""
    path, said = one if isinstance(one, (tuple, list)) and len(one) == 2 else (one, default)
    if not isinstance(path, (str, os.PathLike)) or not os.fspath(path):
        second = "scale" if what == "loras" else "trigger"
        raise UsageError(
            f"{what}: found {shown(one)}, expected a path, a name, or a pair of one and its {second}"
        )
    name = os.fspath(path)
    return (f"./{name}" if isinstance(path, Path) and is_name(name) else name), said
