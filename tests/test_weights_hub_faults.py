"""The hub: a dozen ways in which it fails, each in its own words."""

from __future__ import annotations

import errno
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rawdiff import weights
from rawdiff.errors import HubError, RawdiffError
from rawdiff.weights import snapshot
from rawdiff.weights.hub_errors import retry_after_s
from tests.small_hub import PAGE, Fault, Request, SmallHub, body, reset_after, status, truncated_at

pytest_plugins = ["tests.hub_fixtures"]

REPOSITORY = "owner/small"
UNET = "unet/diffusion_pytorch_model.safetensors"
Reach = Callable[..., weights.Hub]


def test_a_reset_connection_is_taken_up_where_it_broke(
    served: SmallHub, reach: Reach, pristine: Path
) -> None:
    passing: Fault = lambda request: False  # noqa: E731
    served.faults = [passing, *[reset_after(100_000)] * 6]
    found = weights.load_unet(weights.open_source(REPOSITORY, hub=reach()))
    assert torch.equal(found.conv_in.weight, weights.load_unet(pristine).conv_in.weight)
    ranges = [headers.get("Range") for _, path, headers in served.requests if path.endswith(UNET)]
    assert ranges[0] is None
    assert all(str(value).startswith("bytes=") for value in ranges[1:])
    assert len(ranges) == 7


def test_a_server_that_cannot_resume_starts_over(served: SmallHub, reach: Reach) -> None:
    served.ranges = False
    served.faults = [lambda request: False, reset_after(100_000)]
    weights.load_unet(weights.open_source(REPOSITORY, hub=reach()))


FILE_FAULTS: dict[str, tuple[list[Fault], str]] = {
    "reset": ([reset_after(0)] * 9, r"cannot reach http.*check network and proxy"),
    "truncated": ([truncated_at(50)] * 9, r"broke unet/config.json off after 50 of \d+ bytes"),
    "too long": ([body(b"{" * 99_999)], r"more than the \d+ bytes listed"),
    "portal": ([body(PAGE)], r"sent a web page in place of unet/config.json: this network wants a login"),
    "401": ([status(401)], r"refused the login \(401\).*log in again|no repository"),
    "403": ([status(403)], r"forbids \(403\).*ask for access at http"),
    "gated": ([status(403, X_Error_Code="GatedRepo")], r"is gated: accept its terms at http"),
    "404": ([status(404, X_Error_Code="EntryNotFound")], r"has no unet/config.json; look at"),
    "429": ([status(429, Retry_After="3600")], r"allows no more requests now \(429\): try again in 3600 s"),
    "429 without end": ([status(429, Retry_After="0")] * 9, r"\(429\): try again in 0 s"),
    "500": ([status(500)] * 9, r"failed \(500\) at unet/config.json"),
    "418": ([status(418)], r"answered 418 to unet/config.json"),
}


@pytest.mark.parametrize("name", FILE_FAULTS)
def test_faults_of_a_download(served: SmallHub, reach: Reach, tmp_path: Path, name: str) -> None:
    served.faults, words = list(FILE_FAULTS[name][0]), FILE_FAULTS[name][1]
    opened = weights.open_source(REPOSITORY, hub=reach())
    with pytest.raises(HubError, match=words) as caught:
        weights.load_unet(opened)
    assert caught.value.exit_code == 5
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").rglob("*.incomplete"))
    served.faults = []
    weights.load_unet(opened)


LISTING_FAULTS: dict[str, tuple[list[Fault], str]] = {
    "reset": ([reset_after(0)] * 9, r"cannot reach http"),
    "portal": ([body(PAGE)], r"a page that is no answer of a hub: this network wants a login first"),
    "other json": ([body(b"[1, 2]", "application/json")], r"makes no sense|no answer"),
    "no commit": ([body(b"{}", "application/json")], r"makes no sense|is the commit"),
    "401": ([status(401)], r"refused the login \(401\)|has no repository"),
    "403": ([status(403)], r"forbids \(403\)"),
    "gated": ([status(403, X_Error_Code="GatedRepo")], r"is gated: accept its terms"),
    "404": (
        [status(404)],
        r"has no repository owner/small, or keeps it private: check the name.*nor is there a folder",
    ),
    "no such repository": ([status(401, X_Error_Code="RepoNotFound")], r"has no repository owner/small"),
    "no such revision": ([status(404, X_Error_Code="RevisionNotFound")], r"no such revision"),
    "429": ([status(429, Retry_After="3600")], r"\(429\): try again in 3600 s"),
    "503": ([status(503)] * 9, r"failed \(503\)"),
    "circle": (
        [status(302, Location="/api/models/owner/small/revision/main?blobs=true")] * 99,
        "redirects without end",
    ),
}


@pytest.mark.parametrize("name", LISTING_FAULTS)
def test_faults_of_a_listing(served: SmallHub, reach: Reach, name: str) -> None:
    served.listing_faults, words = list(LISTING_FAULTS[name][0]), LISTING_FAULTS[name][1]
    with pytest.raises(HubError, match=words) as caught:
        weights.open_source(REPOSITORY, hub=reach())
    assert caught.value.exit_code == 5
    assert "\n" not in str(caught.value)
    served.listing_faults = []
    weights.open_source(REPOSITORY, hub=reach())


def test_passing_faults_pass(served: SmallHub, reach: Reach) -> None:
    served.listing_faults = [reset_after(0), status(503), status(429, Retry_After="0")]
    served.faults = [status(500), status(429, Retry_After="0"), reset_after(7)]
    weights.load_unet(weights.open_source(REPOSITORY, hub=reach()))


def test_nobody_there(reach: Reach) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(HubError, match=f"cannot reach {url}.*or --offline with what is cached"):
            weights.open_source(REPOSITORY, hub=reach(endpoint=url))
    with pytest.raises(HubError):
        weights.open_source(REPOSITORY, hub=reach(endpoint="nonsense"))


def test_a_silent_hub_times_out(served: SmallHub, reach: Reach) -> None:
    import threading

    release = threading.Event()

    def stall(request: Request) -> bool:
        release.wait(5)
        return False

    served.listing_faults = [stall]
    with pytest.raises(HubError, match="did not answer in time"):
        weights.open_source(REPOSITORY, hub=reach(timeout_s=0.2, tries=1))
    release.set()


def test_a_full_disk(reach: Reach, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = weights.open_source(REPOSITORY, hub=reach())
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10))
    with pytest.raises(HubError, match=r"needs .* more, 10 bytes are free at .*: free some, or set HF_HOME"):
        weights.load_unet(opened)


@pytest.mark.parametrize(
    ("code", "words"),
    [(errno.ENOSPC, "no space left"), (errno.EROFS, "cannot be written"), (errno.EIO, "the cache failed")],
)
def test_a_disk_that_fails(reach: Reach, monkeypatch: pytest.MonkeyPatch, code: int, words: str) -> None:
    opened = weights.open_source(REPOSITORY, hub=reach())
    replace = Path.replace

    def fail(self: Path, target: Path) -> Path:
        if target.parent.name == "blobs":
            raise OSError(code, os.strerror(code), str(self))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(HubError, match=words):
        weights.load_unet(opened)


def test_a_cache_that_is_a_file(reach: Reach, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(HubError, match="the cache"):
        weights.load_unet(weights.open_source(REPOSITORY, hub=reach(cache=tmp_path / "file")))


def test_every_fault_is_ours(served: SmallHub, reach: Reach) -> None:
    """Whatever bytes a hub answers with, one of our errors comes out, or a listing."""
    replies = [b"", b"null", b"5", b'"x"', b"{", b"\xff\xfe", b"[]" * 99, b'{"sha": "%s"}' % (b"0" * 40)]
    replies += [
        b'{"sha":"%s","siblings":%s}' % (b"0" * 40, s) for s in (b"5", b"[5]", b"[{}]", b'[{"rfilename":5}]')
    ]
    replies += [b'{"sha":"%s","siblings":[{"rfilename":"a","lfs":5}]}' % (b"0" * 40)]
    for reply in replies:
        snapshot.forget()
        served.listing_faults = [body(reply, "application/json")]
        try:
            weights.open_source(REPOSITORY, hub=reach())
        except RawdiffError as error:
            found = str(error)
        else:
            found = "listed"
        assert "\n" not in found


@pytest.mark.parametrize(
    ("said", "seconds"), [("30", 30.0), ("²", None), ("soon", None), ("-1", None), (None, None)]
)
def test_how_long_to_wait(said: str | None, seconds: float | None) -> None:
    assert retry_after_s({} if said is None else {"Retry-After": said}) == seconds
