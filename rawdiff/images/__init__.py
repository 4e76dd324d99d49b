"""Pictures and maps in, pictures with their recipe out.

source.py      a path, PIL image, array or tensor -> samples at full precision, upright, hashed
  files.py       bounded bytes, and what they are by content
  png_chunks.py  a PNG's chunks, verified before any decoder sees them
  tiff_tags.py   how a TIFF's samples must be read
  npy.py         .npy without trust
  pillow.py, opencv.py   the decoders, held to their word
depth.py       samples -> a depth map in 0..1 by an explicit range policy; pictures in 0..1
fitting.py     same aspect resampled, another aspect only by choice
normals.py     normal maps from depth
edges.py       Canny edges
hints.py       what a ControlNet is shown
init_image.py  the picture that a run begins from, its mask, and pasting back
pixels.py      decoded tensors -> 8 bits
png.py         PNG with its recipe, and recipes back
durable.py     files that are whole or not there
names.py       names that are not taken
"""

from __future__ import annotations

from rawdiff.images.depth import DepthMap, DepthRange, parse_depth_range, read_depth, read_picture
from rawdiff.images.durable import check_writable, publish, write_file
from rawdiff.images.edges import canny
from rawdiff.images.fitting import Fit, fit, same_aspect
from rawdiff.images.hints import DERIVABLE, HINTS_VERSION, Hint, make_hint, save_hints
from rawdiff.images.init_image import InitImage, Paste, make_init_image
from rawdiff.images.names import name_key, next_path, picture_name, stem_from
from rawdiff.images.normals import normal_from_depth
from rawdiff.images.pixels import pixels_sha256, to_pil, to_uint8
from rawdiff.images.png import encode_png, read_recipe, read_text, write_next, write_png
from rawdiff.images.source import ImageSource, Samples, open_source

__all__ = [
    "DERIVABLE",
    "HINTS_VERSION",
    "DepthMap",
    "DepthRange",
    "Fit",
    "Hint",
    "ImageSource",
    "InitImage",
    "Paste",
    "Samples",
    "canny",
    "check_writable",
    "encode_png",
    "fit",
    "make_hint",
    "make_init_image",
    "name_key",
    "next_path",
    "normal_from_depth",
    "open_source",
    "parse_depth_range",
    "picture_name",
    "pixels_sha256",
    "publish",
    "read_depth",
    "read_picture",
    "read_recipe",
    "read_text",
    "same_aspect",
    "save_hints",
    "stem_from",
    "to_pil",
    "to_uint8",
    "write_file",
    "write_next",
    "write_png",
]
