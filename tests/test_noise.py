"""Noise: the same numbers everywhere, one generator an image, the k-th draw is the k-th draw."""

from __future__ import annotations

import hashlib

import pytest
import torch

from rawdiff.errors import UsageError
from rawdiff.noise import MAX_SEED, Noise, check_seeds, random_seed

GOLDEN = {
    (0, (8, 8), 0): "cc2e396b0f7eee29697357d709898d648b2545b68e76110909676686f58990fe",
    (0, (8, 8), 1): "a525ee61cfd28a764e344f927e7bea8f29ec1efd580c1195a4aacd7247365afc",
    (7, (64, 96), 0): "df3daa1aa87c00b49918d9fadad972baa4f66f1f090bd1fa1f8f9a155a0b7bf9",
    (MAX_SEED, (49, 65), 2): "18b67f65f252219244e471c95ccfd6e56e824bffe0240f06687a6c3c81c50e06",
}
"""(seed, latent size, draw): SHA-256 of the fp32 bytes. A change here is a change of every picture."""


@pytest.mark.parametrize(("key", "expected"), GOLDEN.items())
def test_golden(key: tuple[int, tuple[int, int], int], expected: str) -> None:
    seed, size, k = key
    drawn = Noise([seed], size).draw(k)
    assert drawn.shape == (1, 4, *size)
    assert drawn.dtype == torch.float32
    assert hashlib.sha256(drawn.numpy().tobytes()).hexdigest() == expected


def test_it_is_what_torch_draws() -> None:
    generator = torch.Generator().manual_seed(5)
    expected = [torch.randn(1, 4, 6, 9, generator=generator) for _ in range(3)]
    noise = Noise([5], (6, 9))
    assert all(torch.equal(noise.draw(k), expected[k]) for k in range(3))


def test_an_image_of_a_batch_gets_its_own() -> None:
    together = Noise([3, 9, 4], (5, 7))
    for k in range(3):
        drawn = together.draw(k)
        for image, seed in enumerate([3, 9, 4]):
            assert torch.equal(drawn[image : image + 1], Noise([seed], (5, 7)).draw(k))


def test_any_order() -> None:
    noise = Noise([3], (5, 7))
    forward = [noise.draw(k) for k in range(5)]
    for k in (4, 0, 3, 3, 1):
        assert torch.equal(noise.draw(k), forward[k])
    assert not torch.equal(forward[0], forward[1])


def test_a_copy_has_a_place_of_its_own() -> None:
    noise = Noise([3], (5, 7))
    forward = [noise.draw(k) for k in range(4)]
    noise.draw(1)
    other = noise.copy()
    assert torch.equal(other.draw(2), forward[2])
    assert torch.equal(other.draw(3), forward[3])
    assert torch.equal(noise.draw(2), forward[2])


def test_seeds() -> None:
    assert check_seeds(7, 3) == (7, 8, 9)
    assert check_seeds([5, 5, 0], 3) == (5, 5, 0)
    assert check_seeds(MAX_SEED, 1) == (MAX_SEED,)
    for count in (1, 4):
        assert 0 <= random_seed(count) <= MAX_SEED + 1 - count


@pytest.mark.parametrize(
    ("seed", "count", "words"),
    [
        (-1, 1, "seed -1: expected a whole number from 0 to 4294967295"),
        (MAX_SEED + 1, 1, "seed 4294967296"),
        (MAX_SEED, 2, "seed 4294967296"),
        (1.0, 1, r"seed 1\.0"),
        (True, 1, "seed True"),
        ("7", 1, "seed|seeds"),
        ([1, 2], 3, "2 seeds for 3 images"),
        ([1, None], 2, "seed None"),
    ],
)
def test_bad_seeds(seed: object, count: int, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        check_seeds(seed, count)  # type: ignore[arg-type]
