"""Previews: what the run takes the finished picture for, at each step, as small pictures.

The clean latents that a step amounts to are decoded by the model's own VAE, so that colours are true for every
model; latents of a larger picture are averaged first, so that no side is decoded at more than 256 pixels. At
768x512 that costs a ninth of a decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch.nn import functional

from rawdiff import images
from rawdiff.decode import decode
from rawdiff.errors import NonFiniteError, ResourceError
from rawdiff.geometry import FACTOR
from rawdiff.graphs import EAGER
from rawdiff.say import Say, say_nothing

if TYPE_CHECKING:
    from torch import Tensor

    from rawdiff.jobs.job import Job
    from rawdiff.run import Run
    from rawdiff.step import Step

__all__ = ["LARGEST_PX", "Previews", "reduced"]

LARGEST_PX = 256


def reduced(latents: Tensor, largest_px: int = LARGEST_PX) -> Tensor:
    """Latents [B,4,h,w] averaged by the least whole factor that decodes to at most `largest_px` a side."""
    height, width = latents.shape[-2:]
    factor = max(1, -(-max(height, width) * FACTOR // largest_px))
    if factor == 1:
        return latents
    return functional.adaptive_avg_pool2d(latents, (max(1, height // factor), max(1, width // factor)))


class Previews:
    """A watcher that writes `FOLDER/STEM-steps/step-01.png`, ...; a step that cannot be shown is left out.

    Where they cannot be written that is said once, and the run goes on without them.
    """

    watch: Sequence[str] = ("x0",)

    def __init__(self, folder: Path, stem: str, say: Say) -> None:
        self._folder, self._stem, self._say = folder, f"{stem}-steps", say
        self._home: Path | None = None
        self._job: Job | None = None
        self._given_up = False

    def begin(self, run: Run, first: int, job: Job) -> None:
        self._job = job
        if self._home is None and not self._given_up:
            try:
                self._home = self._make_home()
            except ResourceError as error:
                self._give_up(error)
            else:
                self._say(f"previews: {self._home}")

    def step(self, run: Run, step: Step) -> None:
        if self._home is None or self._given_up:
            return
        try:
            # By itself, but where the VAE is put away between its turns.
            runner = run.setup.runner if run.setup.runner.frugal else EAGER
            small, probe = reduced(step.x0), run.setup.probe
            pictures = decode(run.setup.vae, small, runner=runner, say=say_nothing, probe=probe)
        except NonFiniteError:  # early x0 may overflow in half precision; the run itself is checked elsewhere
            return
        digits = len(str(len(run)))
        for seed, picture in zip(run.seeds, pictures, strict=True):
            which = f"-seed{seed}" if self._job is not None and len(self._job.seeds) > 1 else ""
            note = {"preview": {"step": step.index, "t": step.row.t, "seed": seed}}
            path = self._home / f"step-{step.index + 1:0{digits}d}{which}.png"
            # Overwriting: a batch that ran out of memory is drawn again in halves.
            try:
                images.write_png(path, images.to_pil(picture), note, overwrite=True)
            except ResourceError as error:
                self._give_up(error)
                return

    def _give_up(self, error: ResourceError) -> None:
        """The pictures themselves go on without previews."""
        self._given_up = True
        self._say(f"no more previews: {error}")

    def end(self) -> None:
        pass

    def _make_home(self) -> Path:
        for _ in range(1000):
            home = images.next_path(self._folder, self._stem, "")
            try:
                home.mkdir()
                return home
            except FileExistsError:
                continue
            except OSError as error:
                raise ResourceError(
                    f"{home}: cannot be made ({(error.strerror or str(error)).lower()})"
                ) from None
        raise ResourceError(f"{self._folder}: no free name for the previews after 1000 tries")
