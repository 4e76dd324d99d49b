"""Pictures to begin from, and masks: what stays, which UNet runs, sizes, forms, saved runs."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import rawdiff as package
from rawdiff import Model, Run
from rawdiff.encode import encode
from rawdiff.images import Paste
from tests.cli_run import rawdiff, write_levels
from tests.reference import error, hint, matters, silent
from tests.small_models import small_folder
from tests.small_runs import finished, prepared

SIZE = (48, 40)
IMAGE = hint(SIZE, 2)
MASK = np.zeros(SIZE, np.float32)
MASK[8:32, 8:32] = 1.0
MASK[32:36, 8:32] = 0.25  # a soft edge, below the half: it stays, and is blended when pasted


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_folder(tmp_path_factory.mktemp("model") / "small", nets=("depth",), inpaint=True)


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return package.load(folder, device="cpu")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return package.load(small_folder(tmp_path_factory.mktemp("model") / "plain", nets=()), device="cpu")


def inpainted(model: Model, **options: Any) -> Run:
    return finished(prepared(model, **{"image": IMAGE, "mask": MASK, "steps": 3, **options}))


# ---- what stays, and which UNet runs


def test_what_stays_is_the_image_itself_and_the_rest_the_run(model: Model) -> None:
    run = inpainted(model)
    raw, done = np.asarray(inpainted(model, paste=False).image()), np.asarray(run.image())
    levels = np.rint(255 * IMAGE).astype(np.uint8)
    stays, hole, edge = MASK == 0, MASK == 1, MASK == 0.25
    assert np.array_equal(done[stays], levels[stays])
    assert not np.array_equal(raw[stays], levels[stays])
    assert np.array_equal(done[hole], raw[hole])
    expected = 0.25 * raw[edge] + 0.75 * 255.0 * IMAGE[edge]
    assert np.abs(done[edge] - expected).max() <= 0.51


def test_a_latent_that_stays_is_the_images(plain: Model) -> None:
    run = inpainted(plain)
    blend = run.setup.blend
    assert blend is not None
    kept = (blend.mask == 0).expand_as(run.latents)
    assert torch.equal(run.latents[kept], blend.latents[kept])
    assert kept.float().mean() > 0.5
    hole = ~kept
    assert error(run.latents[hole], blend.latents[hole]) > 0.1


def test_an_inpainting_unet_has_what_stays_put_back_where_that_is_asked_for(model: Model) -> None:
    """From the same noise; without it the UNet changes what stays."""
    loose, run = inpainted(model), inpainted(model, blend=True)
    blend = run.setup.blend
    assert blend is not None
    assert loose.setup.blend is None
    assert torch.equal(run.setup.conditions.inpaint, loose.setup.conditions.inpaint)
    assert torch.equal(blend.noise, prepared(model, image=IMAGE, mask=MASK, steps=3).state.x)
    picture = 2 * torch.from_numpy(IMAGE).permute(2, 0, 1)[None] - 1
    kept = (blend.mask == 0).expand_as(run.latents)
    whole = encode(model.vae, picture, say=silent).mean
    assert torch.equal(run.latents[kept], whole[kept])
    assert error(loose.latents[kept], whole[kept]) > 0.1
    matters(run, prepared(model, image=IMAGE, mask=MASK, steps=3))
    assert run.recipe["image"] == {**loose.recipe["image"], "blend": True}
    two = inpainted(model, blend=True, count=2)
    assert torch.equal(
        two.latents[kept.expand(2, -1, -1, -1)], whole.expand(2, -1, -1, -1)[kept.expand(2, -1, -1, -1)]
    )


def test_from_the_image_it_is_put_back_as_it_began(model: Model) -> None:
    run = inpainted(model, blend=True, strength=0.7, count=2)
    blend = run.setup.blend
    assert blend is not None
    kept = (blend.mask == 0).expand_as(run.latents)
    assert blend.latents.shape == run.latents.shape
    assert torch.equal(run.latents[kept], blend.latents[kept])
    assert torch.equal(
        inpainted(model, strength=0.7, count=2).setup.conditions.inpaint, run.conditions.inpaint
    )


def test_another_unet_cannot_do_without(plain: Model) -> None:
    with pytest.raises(package.errors.UsageError, match="blend: the model has no inpainting UNet"):
        prepared(plain, image=IMAGE, mask=MASK, blend=False)
    asked, left = inpainted(plain, blend=True), inpainted(plain)
    assert torch.equal(asked.latents, left.latents)
    assert asked.recipe == left.recipe


def test_a_mask_takes_the_models_inpainting_unet_and_nothing_else_does(model: Model) -> None:
    channels = {}
    for name, given in (("none", {}), ("image", {"image": IMAGE}), ("mask", {"image": IMAGE, "mask": MASK})):
        run = prepared(model, **given)
        channels[name] = run.conditions.inpaint is not None
        files = [file.split("/")[0] for file in run.recipe["weights"] if file.startswith("unet")]
        assert set(files) == {"unet_inpaint" if name == "mask" else "unet"}
    assert channels == {"none": False, "image": False, "mask": True}
    assert model.unet.config.in_channels == 4
    assert model.unet_for(masked=True).config.in_channels == 9


def test_an_inpainting_unet_that_is_none_is_refused(tmp_path: Path) -> None:
    folder = small_folder(tmp_path / "model", nets=())
    path = folder / "rawdiff.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "inpaint": "unet"}))
    given: dict[str, Any] = {"image": IMAGE, "mask": MASK}
    with pytest.raises(package.errors.WeightsError, match="inpainting unet: in_channels is 4, expected 9"):
        prepared(package.load(folder, device="cpu"), **given)
    write_levels(IMAGE, tmp_path / "i.png")
    write_levels(MASK, tmp_path / "m.png")
    words = ["--image", tmp_path / "i.png", "--mask", tmp_path / "m.png", "--dry-run", "--model", folder]
    told = rawdiff("gen", "-p", "x", *words)
    assert told.code == 4
    assert "inpainting unet: in_channels is 4, expected 9" in told.error


def test_a_constraint_of_ones_own_comes_after_the_masks(plain: Model) -> None:
    seen: list[torch.Tensor] = []

    def change(x: torch.Tensor, row: Any) -> torch.Tensor:
        seen.append(x.clone())
        return x

    run = prepared(plain, image=IMAGE, mask=MASK, steps=3)
    run.constrain(change)
    list(run)
    assert torch.equal(run.latents, inpainted(plain).latents)
    assert torch.equal(seen[-1], run.latents)


# ---- sizes and fitting


@pytest.mark.parametrize(
    ("shape", "size"),
    [((48, 40), (48, 40)), ((96, 144), (96, 144)), ((50, 100), (48, 96)), ((1032, 1024), (64, 64))],
)
def test_the_size_follows_from_the_image(model: Model, shape: tuple[int, int], size: tuple[int, int]) -> None:
    """Its own where that can be drawn, else its shape at the model's own area."""
    run = prepared(model, image=np.zeros((*shape, 3), np.uint8), size=None, strength=0.2)
    assert run.size == size


def test_padding_paints_the_border_anew(model: Model) -> None:
    """Outpainting: a black mask paints the border alone."""
    run = inpainted(model, image=IMAGE[:24], mask=MASK[:24] * 0, fit="pad")
    done, levels = np.asarray(run.image()), np.rint(255 * IMAGE[:24]).astype(np.uint8)
    assert np.array_equal(done[12:36], levels)
    assert run.recipe["image"]["fit"] == "pad"


def test_a_white_mask_paints_everything_and_says_so(model: Model) -> None:
    said: list[str] = []
    prepared(model, image=IMAGE, mask=MASK * 0 + 1, say=said.append)
    assert "array: the mask is white everywhere: nothing of the image stays" in said
    assert "image from array: float32 array" in said


@pytest.mark.parametrize("kind", ["bool", "uint8", "uint16", "PIL", "tensor", "colours alike"])
def test_a_mask_in_any_form(plain: Model, kind: str) -> None:
    binary = (MASK >= 0.5).astype(np.float32)
    forms: dict[str, Any] = {
        "bool": binary > 0,
        "uint8": (255 * binary).astype(np.uint8),
        "uint16": (65535 * binary).astype(np.uint16),
        "PIL": Image.fromarray((255 * binary).astype(np.uint8)),
        "tensor": torch.from_numpy(binary)[None, None],
        "colours alike": np.repeat(binary[..., None], 3, axis=2),
    }
    assert torch.equal(inpainted(plain, mask=forms[kind]).latents, inpainted(plain, mask=binary).latents)


def test_half_grey_is_white(plain: Model) -> None:
    """As diffusers takes it: 128 of 255 is painted anew, 127 stays."""
    levels = np.where(MASK == 1, 128, 127).astype(np.uint8)
    run = inpainted(plain, mask=levels)
    assert torch.equal(run.latents, inpainted(plain).latents)
    matters(run, prepared(plain, image=IMAGE, mask=np.full(SIZE, 128, np.uint8), steps=3))


def test_pasting_is_exact_and_blends() -> None:
    old = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0)).mul(255).round() / 255
    new = Image.fromarray(np.random.default_rng(1).integers(0, 256, (8, 8, 3), np.uint8))
    for level in (0.0, 0.5, 1.0):
        done = np.asarray(Paste(old, torch.full((8, 8), level))(new)).astype(float)
        expected = level * np.asarray(new) + (1 - level) * 255 * old.permute(1, 2, 0).numpy()
        assert np.abs(done - expected).max() <= (0.51 if level == 0.5 else 1e-4)


# ---- saved runs


@pytest.mark.parametrize("after", [0, 1])
@pytest.mark.parametrize("more", [{}, {"blend": True}, {"blend": True, "count": 2, "strength": 0.7}])
def test_an_inpainting_run_resumes_to_the_bit(
    model: Model, tmp_path: Path, after: int, more: dict[str, Any]
) -> None:
    straight = inpainted(model, sampler="euler a", **more)
    run = prepared(model, image=IMAGE, mask=MASK, steps=3, sampler="euler a", **more)
    for _ in range(after):
        next(run)
    again = model.resume(run.save(tmp_path / "run.safetensors"), say=silent)
    assert torch.equal(finished(again).latents, straight.latents)
    assert np.array_equal(np.asarray(again.image()), np.asarray(straight.image()))
    fork = run.fork()
    assert torch.equal(finished(fork).latents, straight.latents)


def test_a_mask_run_cannot_go_on_with_another_image(model: Model, tmp_path: Path) -> None:
    given: dict[str, Any] = {"mask": MASK, "steps": 3}
    path = prepared(model, image=IMAGE, **given).save(tmp_path / "run.safetensors")
    other = prepared(model, image=hint(SIZE, 3), **given)
    with pytest.raises(package.errors.InputError, match=r"the saved run differs in image: image\.sha256 is"):
        model.resume(path, run=other)
    assert model.resume(path, run=prepared(model, image=IMAGE, **given)).state.i == 0


# ---- parts


def test_an_inpainting_unet_with_every_exact_trick_off(model: Model) -> None:
    off = package.Exact(kv=False, time=False, prefix=False, scale=False)
    run, plainly = inpainted(model, count=2), inpainted(model, count=2, exact=off)
    assert error(plainly.latents, run.latents) <= 1e-4
    assert run.conditions.inpaint is not None
    assert run.conditions.inpaint.shape == (2, 5, 6, 5)


def test_what_an_inpainting_unet_sees_is_cut_and_picked_with_the_rest(model: Model) -> None:
    found = prepared(model, image=IMAGE, mask=MASK, count=3).conditions
    assert found.inpaint is not None
    picked, cut = found.select([2, 0]).inpaint, found.crop(1, 2, 4, 3).inpaint
    assert picked is not None
    assert torch.equal(picked, found.inpaint[[2, 0]])
    assert cut is not None
    assert torch.equal(cut, found.inpaint[..., 1:5, 2:5])


@pytest.mark.parametrize("named", [5, "../unet", "C:/unet", "nowhere"])
def test_an_inpainting_unet_that_is_not_there_is_refused(tmp_path: Path, named: Any) -> None:
    folder = small_folder(tmp_path / "model", nets=())
    path = folder / "rawdiff.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "inpaint": named}))
    words = {
        5: "inpaint must be a folder",
        "../unet": "is no folder inside a model",
        "C:/unet": "is no folder inside a model",
        "nowhere": "has no unet/ folder",
    }
    with pytest.raises(package.errors.WeightsError, match=words[named]):
        prepared(package.load(folder, device="cpu"), image=IMAGE, mask=MASK)


def test_a_picture_is_encoded_once_more_where_half_precision_gives_nan(plain: Model) -> None:
    class Odd(torch.nn.Module):
        """A convolution that overflows in half precision alone."""

        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner, self.weight = inner, inner.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.inner(x)
            return out if out.dtype == torch.float32 else out * torch.inf

    half = copy.deepcopy(plain.vae).bfloat16()
    picture = 2 * torch.from_numpy(IMAGE).permute(2, 0, 1)[None] - 1
    said: list[str] = []
    expected = encode(copy.deepcopy(half).float(), picture, say=said.append)
    half.encoder.conv_in = Odd(half.encoder.conv_in)
    found = encode(half, picture, say=said.append)
    assert said == ["the VAE gave NaN in bfloat16: encoding once more in fp32"]
    assert torch.equal(found.mean, expected.mean)
    with torch.no_grad():
        half.encoder.conv_out.bias[0] = torch.nan
    with pytest.raises(package.errors.NonFiniteError, match="NaN or Inf in the encoded picture"):
        encode(half, picture, say=said.append)
