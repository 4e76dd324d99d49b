"""The picture that a run begins from, and the mask of what is painted anew in it.

White in the mask (from half grey up, as diffusers takes it) is painted anew, black stays. Its greys below and above
that count again where the kept part is pasted back: a soft edge gives a soft seam.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from rawdiff.errors import InputError, UsageError
from rawdiff.geometry import FACTOR, Size, format_size
from rawdiff.images.depth import read_picture
from rawdiff.images.fitting import Fit, plan_fit, say_placement
from rawdiff.images.source import Samples
from rawdiff.say import Say, say_on_stderr

__all__ = ["InitImage", "Paste", "make_init_image"]

GREY = 0.5
"""What lies beyond the edges of a padded picture; the mask paints it anew."""


@dataclass(frozen=True, eq=False)
class Paste:
    """What of a finished picture is taken from the one that it began from."""

    picture: torch.Tensor
    """[3,H,W] fp32 in 0..1, on the CPU."""
    mask: torch.Tensor
    """[H,W] fp32 in 0..1: 0 is the old picture, 1 the new one."""

    def __call__(self, image: Image.Image) -> Image.Image:
        """The RGB picture with the old one where the mask is black: there to the last bit, for 8-bit pictures."""
        new = torch.from_numpy(np.array(image)).double()  # [H,W,3]
        old = 255.0 * self.picture.permute(1, 2, 0).double()
        joined = torch.lerp(old, new, self.mask.double()[..., None])
        return Image.fromarray(joined.round().to(torch.uint8).numpy())


@dataclass(frozen=True, eq=False)
class InitImage:
    """A picture at the run's size, with its mask if part of it shall stay."""

    picture: torch.Tensor
    """[3,H,W] fp32 in 0..1."""
    mask: torch.Tensor | None
    """[H,W] fp32 in 0..1, 1 is painted anew; None where all is."""
    source: Samples
    masking: Samples | None
    fit: Fit

    def describe(self, strength: float, paste: bool | None, blended: bool = False) -> dict[str, Any]:
        """What an account says of it, as plain values: SHA-256 of picture and mask, and how they are used.

        `blended`: what stays is put back after each step, though the UNet is for inpainting.
        """
        return {
            "sha256": self.source.sha256,
            "mask": None if self.masking is None else self.masking.sha256,
            "strength": strength,
            "paste": None if self.masking is None else paste is not False,
            "fit": self.fit,
            **({"blend": True} if blended else {}),
        }

    @property
    def names(self) -> dict[str, Any]:
        """Where picture and mask came from."""
        return {"path": self.source.name, "mask": None if self.masking is None else self.masking.name}

    @property
    def normalised(self) -> torch.Tensor:
        """The picture [1,3,H,W] in -1..1, as the VAE takes it."""
        return 2.0 * self.picture[None] - 1.0

    @property
    def hole(self) -> torch.Tensor | None:
        """The mask [1,1,H,W] as 0 or 1, fp32."""
        return None if self.mask is None else (self.mask >= 0.5).float()[None, None]

    @property
    def paste(self) -> Paste | None:
        """For putting back what stays."""
        return None if self.mask is None else Paste(self.picture, self.mask)


def make_init_image(
    image: Samples, mask: Samples | None, size: Size, *, fit: Fit = None, say: Say = say_on_stderr
) -> InitImage:
    """Bring a picture and its mask, of one size, to `size` (height, width) in pixels.

    Padding needs a mask: the border is painted anew. Raises InputError for a mask of another size, in colour, or that
    paints nothing; UsageError, SizeError.
    """
    if mask is not None and mask.size != image.size:
        raise InputError(
            f"{mask.name}: the mask is {format_size(mask.size)} and the image {format_size(image.size)}: "
            "make them the same size"
        )
    placement = plan_fit(image.size, size, fit, name=image.name, what="image")
    if placement.how == "padded" and mask is None:
        raise UsageError(
            "fit pad: the border of an image is painted anew by a mask: give one (a black one paints the border "
            "alone), or choose crop or stretch"
        )
    say("; ".join((f"image from {image.name}: {image.kind}", *image.notes)))
    say_placement(placement, image.size, image.name, say)
    picture = placement.pad(placement.resample(read_picture(image)), GREY)  # [H,W,3]
    plane = None if mask is None else placement.pad(placement.resample(_read_mask(mask)), 1.0)  # [H,W]
    if mask is not None and plane is not None:
        _check_hole(plane >= 0.5, mask.name, say)
    tensor = torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))
    return InitImage(tensor, None if plane is None else torch.from_numpy(plane.copy()), image, mask, fit)


def _read_mask(samples: Samples) -> NDArray[np.float32]:
    plane = samples.grey()
    if plane is None:
        raise InputError(
            f"{samples.name}: is a colour picture; expected a mask in grey, white where it is painted anew"
        )
    return np.ascontiguousarray(read_picture(replace(samples, array=plane))[..., 0])


def _check_hole(hole: NDArray[np.bool_], name: str, say: Say) -> None:
    """Raise InputError for a mask that leaves nothing to do, in pixels or in latents."""
    if not hole.any():
        raise InputError(f"{name}: the mask is white nowhere, so nothing would be painted: make a part white")
    if not hole[::FACTOR, ::FACTOR].any():  # the nearest pixel is what a latent sees of a mask
        raise InputError(
            f"{name}: the mask's white parts are too thin: make them at least {FACTOR} pixels wide"
        )
    if hole.all():
        say(f"{name}: the mask is white everywhere: nothing of the image stays")
