"""What was found fastest on a GPU, kept for the next process: other kernels would give other bits."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any, cast

import torch

from rawdiff import paths, strict_json
from rawdiff.errors import ResourceError
from rawdiff.images.durable import publish

__all__ = ["ChoiceFile"]


class ChoiceFile:
    """Answers by question, in `choices.json` of the cache folder, apart for each GPU, torch and cuDNN.

    A file that is broken, or that cannot be written, counts as none, and what is asked is measured again. Processes
    may share it, since it is replaced whole.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def get(self, question: str) -> str | None:
        """The answer; None where there is none."""
        answers = self._read().get(self._machine())
        found = answers.get(question) if isinstance(answers, dict) else None
        return found if isinstance(found, str) else None

    def put(self, question: str, answer: str) -> None:
        """Keep an answer, if that can be."""
        whole, machine = self._read(), self._machine()
        answers = whole.get(machine)
        whole[machine] = {**(answers if isinstance(answers, dict) else {}), question: answer}
        with contextlib.suppress(ResourceError, OSError):
            path = _path()
            path.parent.mkdir(parents=True, exist_ok=True)
            publish(path, json.dumps(whole, indent=1).encode(), overwrite=True)

    def _machine(self) -> str:
        name, cudnn = torch.cuda.get_device_name(self._device), cast("Any", torch.backends.cudnn).version()
        return f"{name}, torch {torch.__version__}, cuDNN {cudnn}"

    def _read(self) -> dict[str, Any]:
        try:
            found = strict_json.loads(_path().read_text(encoding="utf-8"))
        except (ResourceError, OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


def _path() -> Path:
    return paths.cache_folder() / "choices.json"
