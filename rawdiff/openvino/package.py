"""The openvino package: an extra, imported when it is needed."""

from __future__ import annotations

import importlib
from importlib import metadata
from typing import Any

from rawdiff.errors import UsageError

__all__ = ["load", "version"]


def load(name: str = "openvino") -> Any:
    """The openvino package, or a module of it; UsageError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UsageError(
            "backend openvino needs openvino, which is not installed: pip install 'rawdiff[openvino]'"
        ) from None


def version() -> str | None:
    """Its version; None where it is not installed."""
    try:
        return metadata.version("openvino")
    except metadata.PackageNotFoundError:
        return None
