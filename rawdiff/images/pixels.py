"""Decoded tensors -> 8-bit pictures, rounded exactly as diffusers rounds them."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from rawdiff.errors import NonFiniteError, UsageError

__all__ = ["pixels_sha256", "to_pil", "to_uint8"]


def to_uint8(image: torch.Tensor) -> NDArray[Any]:
    """[3,H,W] or [B,3,H,W] in -1..1 -> uint8 [H,W,3] or [B,H,W,3].

    Scaled and clamped in the tensor's own dtype, then float32, times 255, half to even. Raises
    NonFiniteError for NaN or Inf (a black picture otherwise) and UsageError for another shape.
    """
    if image.ndim not in (3, 4) or image.shape[-3] != 3 or not image.is_floating_point():
        raise UsageError(
            f"picture: got {image.dtype} of shape {tuple(image.shape)}; expected floats [B,3,H,W]"
        )
    image = image.detach()
    if not bool(torch.isfinite(image).all()):
        raise NonFiniteError("the decoded picture holds NaN or Inf; decode it in float32")
    levels = (image * 0.5 + 0.5).clamp(0, 1).float().mul(255).round()  # [...,3,H,W] fp32 0..255
    return levels.to(torch.uint8).movedim(-3, -1).contiguous().cpu().numpy()


def to_pil(image: torch.Tensor) -> Image.Image:
    """[3,H,W] (or [1,3,H,W]) in -1..1 -> an RGB picture; errors as `to_uint8`."""
    if image.ndim == 4 and image.shape[0] == 1:
        image = image[0]
    if image.ndim != 3:
        raise UsageError(f"picture: got shape {tuple(image.shape)}; expected one picture [3,H,W]")
    return Image.fromarray(to_uint8(image))


def pixels_sha256(picture: NDArray[Any] | Image.Image) -> str:
    """SHA-256, in hexadecimal, of a picture's shape, type and samples, however its file is compressed."""
    array = np.asarray(picture)
    digest = hashlib.sha256(f"{array.shape} {array.dtype.str}\n".encode())
    digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
