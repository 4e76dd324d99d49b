"""Every error that rawdiff raises on purpose.

    RawdiffError                 exit code
    |- UsageError                2   an argument is wrong
    |  |- SizeError              2   a size that is no multiple of 8, or out of bounds
    |  |- StaleStep              2   a Step read after the loop went on
    |  `- NotTabular             2   a scheduler whose step is not affine, asked for as a table
    |- InputError                3   a picture, map, manifest or saved run cannot be used
    |- WeightsError              4   a weight file, config or model folder cannot be used
    |- HubError                  5   a model hub cannot be reached, or says no
    |- ResourceError             6   memory, disk, device
    |  `- NonFiniteError         6   NaN or Inf in the loop or in the decoded picture
    `- BatchError                7   some items of a batch failed

A message says what was found, what was expected, and what to do, on one line. The command line prints it
as it is and exits with `exit_code`.
"""

__all__ = [
    "BatchError",
    "HubError",
    "InputError",
    "NonFiniteError",
    "NotTabular",
    "RawdiffError",
    "ResourceError",
    "SizeError",
    "StaleStep",
    "UsageError",
    "WeightsError",
]


class RawdiffError(Exception):
    """Base of every error raised on purpose."""

    exit_code = 1


class UsageError(RawdiffError):
    """An argument is wrong."""

    exit_code = 2


class SizeError(UsageError):
    """A size that the networks cannot run: not a multiple of 8, not positive, or absurdly large."""


class StaleStep(UsageError):
    """A Step was read after the loop advanced; `.keep()` it or have the run keep what it watches."""


class NotTabular(UsageError):
    """A scheduler's step is not affine (or not finite), so no table of it exists."""


class InputError(RawdiffError):
    """A picture, a map, a manifest or a saved run cannot be used."""

    exit_code = 3


class WeightsError(RawdiffError):
    """A weight file, its config or a model folder cannot be used."""

    exit_code = 4


class HubError(RawdiffError):
    """A model hub cannot be reached, refuses, or has no such thing."""

    exit_code = 5


class ResourceError(RawdiffError):
    """Memory, disk or device gave out."""

    exit_code = 6


class NonFiniteError(ResourceError):
    """NaN or Inf appeared in the loop or in a decoded picture."""


class BatchError(RawdiffError):
    """Some items of a batch failed; the others are done."""

    exit_code = 7
