"""Which weights, where, and how: what the command line says beside the request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rawdiff import weights
from rawdiff.errors import UsageError
from rawdiff.jobs.workshop import Workshop, named_model
from rawdiff.probes import NO_PROBE, Probe, ProbeLike, process_age_ms
from rawdiff.say import Say

__all__ = ["Place", "open_workshop", "start_probe"]


@dataclass(frozen=True)
class Place:
    """Which weights, and where and how they are computed with."""

    model: str | None = None
    nets: Mapping[str, str] = field(default_factory=dict)
    vae: str | None = None
    """Another VAE than the model's, or "none" for its own where a recipe names another."""
    device: str | None = None
    dtype: str | None = None
    revision: str | None = None
    offline: bool = False
    speed: str | None = None
    memory: str | None = None
    backend: str | None = None

    @classmethod
    def from_words(cls, nets: Sequence[str] = (), **words: Any) -> Place:
        """With `nets` as KIND=FOLDER or KIND=OWNER/NAME; raises UsageError."""
        named: dict[str, str] = {}
        for text in nets:
            kind, equals, source = text.partition("=")
            if not equals or not kind or not source:
                raise UsageError(
                    f"net {text!r}: expected KIND=FOLDER or KIND=OWNER/NAME, such as depth=nets/depth"
                )
            if kind in named:
                raise UsageError(f"net {kind}: named twice, {named[kind]} and {source}; one is enough")
            named[kind] = source
        return cls(nets=named, **words)


def start_probe(device: str | None, timings: bool, waited_ms: float = 0.0) -> ProbeLike:
    """A probe that counts this process's start and imports too, or the one that does nothing.

    `waited_ms` of the process's life were spent waiting for an answer and count for nothing.
    """
    if not timings:
        return NO_PROBE
    probe = Probe(weights.choose_device(device))
    age_ms = process_age_ms()
    if age_ms is not None:
        probe.before("start and imports", max(0.0, age_ms - waited_ms))
    return probe


def open_workshop(place: Place, say: Say, probe: ProbeLike = NO_PROBE) -> Workshop:
    """The workshop for a place: `model`, else what RAWDIFF_MODEL names, else the embedded model."""
    device = weights.choose_device(place.device)
    weights.use_real_cores(device)
    weights.keep_freed_memory(device)
    return Workshop(
        named_model(place.model),
        nets=place.nets,
        vae=None if place.vae == "none" else place.vae,
        device=place.device,
        dtype=place.dtype,
        revision=place.revision,
        offline=place.offline,
        speed=place.speed,
        memory=place.memory,
        backend=place.backend,
        say=say,
        probe=probe,
    )
