"""How to reach a model hub: its address, its login, its patience, and what a repository holds at a commit.

Built on huggingface_hub's API client and session. See `snapshot` for the files themselves.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from rawdiff.errors import HubError
from rawdiff.say import Say, say_nothing
from rawdiff.weights.hub_cache import COMMIT, Remote, check_name
from rawdiff.weights.hub_errors import TransientError, explain

__all__ = ["Hub"]

_LONGEST_WAIT_S = 30.0

T = TypeVar("T")


@dataclass(frozen=True)
class Hub:
    """How to reach a hub, and where its files are kept.

    `endpoint` defaults to HF_ENDPOINT or huggingface.co, `cache` to huggingface_hub's, `token` to its login
    (False: none). With `offline` no socket is opened. `say` gets a line for each thing worth telling. What
    fails in passing is tried `tries` times, after `wait_s`, twice that, ...
    """

    endpoint: str | None = None
    cache: Path | None = None
    token: str | bool | None = None
    offline: bool = False
    tries: int = 4
    wait_s: float = 1.0
    timeout_s: float = 10.0
    say: Say = say_nothing

    @property
    def url(self) -> str:
        """The hub's address, without a slash at its end."""
        from huggingface_hub import constants

        return (self.endpoint or os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")

    @property
    def is_offline(self) -> bool:
        """Whether connections are forbidden, by `offline` or by HF_HUB_OFFLINE."""
        if self.offline:
            return True
        from huggingface_hub import is_offline_mode

        return bool(is_offline_mode())

    def list_files(self, repository: str, revision: str) -> tuple[str, dict[str, Remote]]:
        """The commit that `revision` is now, and each of its files with size and hash; raises HubError."""
        return self.attempt(lambda: self._list(repository, revision), repository, f"revision {revision}")

    def _list(self, repository: str, revision: str) -> tuple[str, dict[str, Remote]]:
        from huggingface_hub import HfApi

        api = HfApi(endpoint=self.url, token=self.token, library_name="rawdiff")
        info = api.model_info(repository, revision=revision, files_metadata=True, timeout=self.timeout_s)
        if not isinstance(info.sha, str) or not COMMIT.fullmatch(info.sha):
            found = str(info.sha)[:60]
            raise HubError(f"{self.url} says {found!a} is the commit of {repository}, expected 40 digits")
        listed = {}
        for file in info.siblings or []:
            size_bytes = file.lfs.size if file.lfs is not None else file.size
            digest = file.lfs.sha256 if file.lfs is not None else file.blob_id
            listed[file.rfilename] = check_name(file.rfilename, digest, size_bytes, repository)
        return info.sha, listed

    def attempt(self, action: Callable[[], T], repository: str, what: str) -> T:
        """`action()`, tried again while its fault is a passing one; whatever escapes becomes a HubError."""
        for k in range(self.tries):
            wait_s = self.wait_s * 2**k
            try:
                return action()
            except Exception as error:  # the client lets its own, httpx's and JSON's errors through
                fault = explain(error, repository, self.url, what)
                if isinstance(fault, TransientError) and fault.wait_s is not None:
                    wait_s = fault.wait_s
                if not isinstance(fault, TransientError) or k + 1 == self.tries or wait_s > _LONGEST_WAIT_S:
                    raise fault from error
            time.sleep(wait_s)
        raise AssertionError("the last try raises")
