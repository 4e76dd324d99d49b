"""What can go wrong with a model hub, each in one sentence that says what to do."""

from __future__ import annotations

import errno
import json

from rawdiff.errors import HubError

__all__ = ["NotThereError", "TransientError", "explain", "retry_after_s"]


class NotThereError(HubError):
    """The hub answers, and has no such repository, revision or file: a mirror may have it."""


class TransientError(HubError):
    """The connection failed or the hub is busy: trying again may help."""

    wait_s: float | None = None


def retry_after_s(headers: object) -> float | None:
    """Seconds that the hub asks to wait, if it says."""
    value = headers.get("Retry-After") if hasattr(headers, "get") else None
    return float(value) if isinstance(value, str) and value.isascii() and value.isdigit() else None


def explain(error: Exception, repository: str, endpoint: str, what: str) -> HubError:
    """The HubError for whatever escaped while `what` of `repository` was asked from `endpoint`."""
    if isinstance(error, HubError):
        return error
    import httpx2
    from huggingface_hub import errors

    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    page = f"{endpoint}/{repository}"
    if isinstance(error, errors.GatedRepoError):
        return HubError(
            f"{repository} is gated: accept its terms at {page}, then log in with `hf auth login`"
        )
    if isinstance(error, errors.DisabledRepoError):
        return NotThereError(
            f"{repository} was disabled by {endpoint}; use another repository or a local folder"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return NotThereError(
            f"{repository} has no such revision ({what}); look at {page}/tree/main for its branches"
        )
    if isinstance(error, errors.EntryNotFoundError):
        return NotThereError(f"{repository} has no {what}; look at {page}/tree/main for its files")
    if isinstance(error, errors.RepositoryNotFoundError) or status == 404:
        return NotThereError(
            f"{endpoint} has no repository {repository}, or keeps it private: check the name; "
            "if it is yours, log in with `hf auth login`"
        )
    if isinstance(error, errors.HFValidationError):
        return HubError(f"{repository[:120]!a} is no repository name; expected OWNER/NAME")
    if status == 401:
        return HubError(
            f"{endpoint} refused the login (401) for {repository}: log in again with `hf auth login`"
        )
    if status == 403:
        return HubError(f"{endpoint} forbids (403) {repository} to this login: ask for access at {page}")
    if status == 429:
        wait_s = retry_after_s(getattr(response, "headers", None))
        again = f"in {wait_s:.0f} s" if wait_s is not None else "in a few minutes"
        busy = TransientError(f"{endpoint} allows no more requests now (429): try again {again}, or log in")
        busy.wait_s = wait_s
        return busy
    if status is not None and status >= 500:
        return TransientError(f"{endpoint} failed ({status}) at {what} of {repository}: try again later")
    if status is not None:
        return HubError(f"{endpoint} answered {status} to {what} of {repository}, expected the file")
    if isinstance(error, errors.OfflineModeIsEnabled):
        return HubError(
            f"{repository}: HF_HUB_OFFLINE is set, so no connection is made: unset it, or cache it first"
        )
    if isinstance(error, httpx2.TooManyRedirects):
        return _portal(endpoint, "redirects without end")
    if isinstance(error, httpx2.TimeoutException):
        return TransientError(
            f"{endpoint} did not answer in time at {what} of {repository}: try again, {_network()}"
        )
    if isinstance(error, (httpx2.TransportError, ConnectionError)):
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        return TransientError(f"cannot reach {endpoint} for {what} of {repository} ({reason}): {_network()}")
    if isinstance(error, OSError):
        return _disk(error, repository)
    if isinstance(error, (json.JSONDecodeError, UnicodeDecodeError)):
        return _portal(endpoint, "a page that is no answer of a hub")
    reason = " ".join(str(error).split())[:120]
    return HubError(f"{endpoint} gave an answer that makes no sense at {what} of {repository} ({reason})")


def _network() -> str:
    return "check network and proxy, or use a local folder, or --offline with what is cached"


def _portal(endpoint: str, found: str) -> HubError:
    return HubError(
        f"{endpoint} answered with {found}: this network wants a login first, or HF_ENDPOINT is wrong; "
        "log in to the network, or correct HF_ENDPOINT"
    )


def _disk(error: OSError, repository: str) -> HubError:
    place = f" at {error.filename}" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return HubError(f"no space left{place} for {repository}: free some, or set HF_HOME to a larger disk")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return HubError(
            f"the cache cannot be written{place} for {repository}: set HF_HOME to a folder of yours"
        )
    reason = (error.strerror or str(error) or type(error).__name__).lower()
    return HubError(f"the cache failed{place} for {repository} ({reason}): set HF_HOME to another folder")
