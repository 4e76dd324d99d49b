"""LoRAs and embeddings as somebody asks for them: by words alone, before anything is opened."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rawdiff.errors import UsageError
from rawdiff.limits import check_text

__all__ = ["EmbeddingRequest", "LoraRequest"]


@dataclass(frozen=True)
class LoraRequest:
    """One LoRA, by its path or by the name that the model has for one of its own."""

    name: str
    scale: float = 1.0
    sha256: str | None = None
    """What the file's SHA-256 must be, where a recipe says so."""
    config: str | None = None
    """The same of the adapter_config.json that was read with it."""

    def check(self) -> None:
        """Raise UsageError for a path or scale that makes no sense."""
        _check_name("lora", self.name)
        if not math.isfinite(self.scale):
            raise UsageError(f"lora {self.name}: scale {self.scale}; expected a finite number such as 0.8")


@dataclass(frozen=True)
class EmbeddingRequest:
    """One embedding, by its path or by the name that the model has for one of its own."""

    name: str
    trigger: str | None = None
    """The word for it, where it is not the file's own."""
    sha256: str | None = None
    """What the file's SHA-256 must be, where a recipe says so."""

    def check(self) -> None:
        """Raise UsageError for a path or trigger that makes no sense."""
        _check_name("embedding", self.name)
        if self.trigger is not None:
            check_text("trigger", self.trigger)


def _check_name(what: str, name: str) -> None:
    if not name:
        raise UsageError(f"{what}: its path is empty; leave the option out for none")
    check_text(f"{what} {ascii(name)[:60]}", name)
