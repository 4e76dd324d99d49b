"""The maps for real models: which place, seen from where, and what one would ask for there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scripts.metadata import outdoors, raycast, rooms, surfaces

__all__ = ["PLACES", "Place", "disparity"]

NEGATIVE = "blurry, low quality, distorted, watermark, text"


@dataclass(frozen=True)
class Place:
    """One map, at `size`, for pictures of `picture` (height, width)."""

    path: str  # inside metadata/
    surfaces: Callable[[], list[surfaces.Surface]]
    camera: raycast.Camera
    prompt: str
    seed: int
    picture: tuple[int, int]
    size: tuple[int, int] | None = None  # of the map; the picture's where None
    negative: str | None = NEGATIVE


LIVING_ROOM = raycast.Camera((0.15, 1.4, 0.0), turn=-0.06, horizon=0.42, focal=0.96)
BEDROOM = raycast.Camera((-0.35, 1.45, 0.1), turn=0.10, horizon=0.40, focal=0.98)
CORRIDOR = raycast.Camera((0.0, 1.5, 0.0), horizon=0.47, focal=0.80)
COLONNADE = raycast.Camera((0.35, 1.6, 0.2), horizon=0.60, focal=0.85)
LAKE = raycast.Camera((2.0, 19.0, 0.0), horizon=0.44, focal=0.95)
PATH = raycast.Camera((0.1, 1.9, 0.0), turn=0.02, horizon=0.46, focal=0.90)
STREET = raycast.Camera((0.6, 2.0, -1.0), turn=-0.02, horizon=0.58, focal=0.95)

PLACES: tuple[Place, ...] = (
    Place(
        "real_models/living_room.png",
        rooms.living_room,
        LIVING_ROOM,
        "a photo of a bright Scandinavian living room, grey linen sofa, oak coffee table, mustard armchair, "
        "bookshelves, soft morning light, interior photography",
        seed=101,
        picture=(512, 768),
    ),
    Place(
        "real_models/bedroom.png",
        rooms.bedroom,
        BEDROOM,
        "a cosy bedroom in the evening, warm bedside lamps, knitted blanket on the bed, velvet armchair by the "
        "window, wooden floor, architectural digest, 35mm photograph",
        seed=102,
        picture=(512, 768),
    ),
    Place(
        "real_models/corridor.png",
        rooms.corridor,
        CORRIDOR,
        "a long hallway of an old grand hotel, dark green walls, panelled wooden doors, red carpet runner, brass "
        "lamps, symmetrical composition, cinematic, kodak portra",
        seed=103,
        picture=(768, 512),
    ),
    Place(
        "real_models/colonnade.png",
        rooms.colonnade,
        COLONNADE,
        "the nave of an ancient Roman basilica, marble columns, vaulted stone ceiling, sunbeams through the dust, "
        "polished floor, highly detailed photograph",
        seed=104,
        picture=(512, 768),
    ),
    Place(
        "real_models/mountain_lake.png",
        outdoors.mountain_lake,
        LAKE,
        "a log cabin on the shore of an alpine lake, pine trees, snowy mountains in the background, autumn morning "
        "mist, golden hour, landscape photography, 8k",
        seed=105,
        picture=(512, 768),
    ),
    Place(
        "real_models/forest_path.png",
        outdoors.forest_path,
        PATH,
        "a hiking trail through a pine forest, mossy boulders, fresh snow on the ground, low winter sun, photograph, "
        "sharp focus",
        seed=106,
        picture=(768, 512),
    ),
    Place(
        "real_models/street.png",
        outdoors.street,
        STREET,
        "a quiet street in a small English town, brick houses, parked cars, trees, a church spire at the end of the "
        "road, overcast autumn day, street photography",
        seed=107,
        picture=(512, 768),
    ),
    Place(
        "real_models/corridor.npy",
        rooms.corridor,
        CORRIDOR,
        "the corridor of a spaceship, white panels, sealed bulkhead doors, glowing blue strip lights, reflective "
        "floor, science fiction film still",
        seed=108,
        picture=(768, 512),
        size=(384, 256),
    ),
    Place(
        "real_models/mountain_lake.npy",
        outdoors.mountain_lake,
        LAKE,
        "a watercolour painting of a cabin by a lake in spring, wildflowers, pine trees, distant mountains, loose "
        "brush strokes, soft colours",
        seed=109,
        picture=(512, 768),
        size=(256, 384),
        negative=None,
    ),
)


def disparity(place: Place) -> NDArray[np.float64]:
    """[H,W] float64 in 0..1: the nearest point is 1, the farthest (the sky, where there is one) 0."""
    depth = raycast.cast(place.surfaces(), place.camera, place.size or place.picture)
    return raycast.disparity(depth)
