"""Preprocessing against float64 statements of filters and of torchvision's rounding."""

import dataclasses
import io

import jax
import numpy as np
import pytest
from PIL import Image

from centermerge_jax.data import preprocess
from centermerge_jax.data.preprocess import CLIP, DINO, IMAGENET, Preprocessing
from centermerge_jax.errors import DataError, ParameterError

# --- float64 statements


def _cubic(x):
    """Keys' kernel with a = -1/2."""
    x = np.abs(x)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _triangle(x):
    return np.maximum(0.0, 1 - np.abs(x))


def _line(source: int, target: int, kernel) -> np.ndarray:
    """[target, source]; the kernel is widened when it shrinks, rows sum to one."""
    scale = source / target
    centres = (np.arange(target) + 0.5) * scale
    places = np.arange(source) + 0.5
    matrix = kernel((places[None] - centres[:, None]) / max(scale, 1.0))
    return matrix / matrix.sum(axis=1, keepdims=True)


def _resize(pixels, height, width, kernel, *, order="cr"):
    """Columns and rows, in that order or the other, each clipped to what bytes hold."""
    x = pixels.astype(np.float64)
    for axis in order:
        if axis == "c":
            x = np.einsum("cw,hwk->hck", _line(x.shape[1], width, kernel), x)
        else:
            x = np.einsum("rh,hwk->rwk", _line(x.shape[0], height, kernel), x)
        x = x.clip(0, 255)
    return x


def _reference(pixels, *, resized, size, kernel, order="cr"):
    """Shorter side, centre crop: rounding as torchvision documents and does it."""
    height, width = pixels.shape[:2]
    short, long = min(height, width), max(height, width)
    other = int(resized * long / short)
    height, width = (resized, other) if height <= width else (other, resized)
    x = _resize(pixels, height, width, kernel, order=order)
    top, left = round((height - size) / 2.0), round((width - size) / 2.0)
    return x[top : top + size, left : left + size]


def _noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    rng = np.random.default_rng(height * 1000 + width)
    return rng.integers(0, 256, (height, width, channels)).astype(np.uint8)


# --- resizing


@pytest.mark.parametrize(
    ("height", "width"),
    [(300, 451), (451, 300), (333, 333), (224, 225), (100, 149), (28, 28), (640, 227)],
)
def test_clip_is_bicubic_to_one_grey_level(height, width):
    pixels = _noise(height, width)
    found = preprocess.prepare(pixels, CLIP)
    # Which axis is first is Pillow's choice: rows in tall ones. It matters where the
    # first overshoots what bytes hold, as noise makes it do all the time.
    order = "rc" if (height, width) == (640, 227) else "cr"
    wanted = _reference(pixels, resized=224, size=224, kernel=_cubic, order=order)
    assert found.shape == (224, 224, 3)
    assert np.abs(found - np.rint(wanted)).max() <= 1
    # One grey level is rounding; on the average there is hardly any.
    assert np.abs(found - wanted).mean() < 0.4


@pytest.mark.parametrize(
    ("preset", "kernel"),
    [(IMAGENET, _triangle), (DINO, _cubic)],
    ids=["imagenet", "dino"],
)
def test_presets_with_a_margin(preset, kernel):
    pixels = _noise(301, 420)
    found = preprocess.prepare(pixels, preset)
    wanted = _reference(pixels, resized=256, size=224, kernel=kernel)
    assert np.abs(found - np.rint(wanted)).max() <= 1


def test_the_statements_tell_the_filters_apart():
    pixels = _noise(301, 420)
    found = preprocess.prepare(pixels, DINO)
    wrong = _reference(pixels, resized=256, size=224, kernel=_triangle)
    assert np.abs(found - wrong).max() > 10


def test_square_stretches():
    pixels = _noise(30, 60)
    square = dataclasses.replace(CLIP.at(24), resize="square")
    found = preprocess.prepare(pixels, square)
    wanted = _resize(pixels, 24, 24, _cubic)
    assert np.abs(found - np.rint(wanted)).max() <= 1


# --- rounding, seen on ramps whose value is the place


def _ramp(height: int, width: int) -> np.ndarray:
    """Red is the column, green the row."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.arange(width)
    pixels[..., 1] = np.arange(height)[:, None]
    return pixels


@pytest.mark.parametrize(
    ("height", "width", "left", "top"),
    [
        (8, 9, 0, 0),  # half a pixel, to the even side: down
        (8, 11, 2, 0),  # one and a half: up
        (8, 13, 2, 0),  # two and a half: down
        (11, 8, 0, 2),
        (8, 12, 2, 0),
    ],
)
def test_crops_begin_where_torchvision_begins_them(height, width, left, top):
    # The shorter side is the size already, so nothing is interpolated.
    found = preprocess.prepare(_ramp(height, width), CLIP.at(8))
    assert found[0, :, 0].tolist() == list(range(left, left + 8))
    assert found[:, 0, 1].tolist() == list(range(top, top + 8))


@pytest.mark.parametrize(
    ("width", "height", "wanted"),
    # 224 * 500 / 333 = 336.3; 224 * 640 / 427 = 335.7, where rounding would say 336.
    [(500, 333, (336, 224)), (427, 640, (224, 335)), (50, 50, (224, 224))],
)
def test_the_longer_side_is_cut_off(width, height, wanted):
    assert preprocess._resized((width, height), CLIP) == wanted


# --- colours


def _encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


def test_grey_is_repeated():
    grey = _noise(40, 50, 1)
    found = preprocess.prepare(grey, CLIP.at(20))
    assert (found[..., 0] == found[..., 1]).all()
    assert (found[..., 0] == found[..., 2]).all()
    flat = preprocess.prepare(grey[..., 0], CLIP.at(20))
    assert (found == flat).all()
    # The same as if it had been RGB before it was resized.
    rgb = preprocess.prepare(np.repeat(grey, 3, axis=2), CLIP.at(20))
    assert (found == rgb).all()


@pytest.mark.parametrize("mode", ["P", "RGBA", "CMYK", "LA", "1"])
def test_other_modes_become_rgb_before_they_are_resized(mode):
    image = Image.fromarray(_noise(40, 50)).convert(mode)
    if mode == "RGBA":
        image.putalpha(Image.fromarray(_noise(40, 50, 1)[..., 0]))
    rgb = np.asarray(image.convert("RGB"))
    found = preprocess.prepare(_encoded(image, "TIFF"), CLIP.at(20))
    assert (found == preprocess.prepare(rgb, CLIP.at(20))).all()
    wanted = _reference(rgb, resized=20, size=20, kernel=_cubic)
    assert np.abs(found - np.rint(wanted)).max() <= 1


def test_files_and_pixels_and_images_agree():
    pixels = _noise(30, 45)
    image = Image.fromarray(pixels)
    found = preprocess.prepare(image, CLIP.at(16))
    assert (found == preprocess.prepare(pixels, CLIP.at(16))).all()
    assert (found == preprocess.prepare(_encoded(image), CLIP.at(16))).all()
    assert found.dtype == np.uint8


def test_the_picture_given_stays_as_it_is():
    pixels = _noise(30, 45)
    kept = pixels.copy()
    out = preprocess.prepare(pixels, CLIP.at(16))
    assert (pixels == kept).all()
    assert not np.may_share_memory(out, pixels)


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (b"not an image", "not a picture that can be read"),
        (_encoded(Image.new("RGB", (40, 40)))[:60], "not a picture that can be read"),
        (np.zeros((4, 4), np.uint16), "mode I;16 has values that are no bytes"),
        (np.zeros((4, 4), np.float32), "mode F has values that are no bytes"),
        (np.zeros((4, 4, 5), np.uint8), "not a picture that can be read"),
        (np.zeros((4, 4), np.complex64), "not a picture that can be read"),
    ],
)
def test_bad_pictures_are_refused(picture, message):
    with pytest.raises(DataError, match=message):
        preprocess.prepare(picture, CLIP)


# --- numbers


def test_normalising_is_that_of_the_references():
    images = _noise(6, 5)[None]
    for preset in (CLIP, IMAGENET, DINO):
        mean, std = np.array(preset.mean), np.array(preset.std)
        wanted = (images.astype(np.float64) / 255 - mean) / std
        for found in (
            preprocess.normalise(images, preset),
            jax.jit(lambda x, p=preset: preprocess.normalise(x, p))(images),
        ):
            assert found.dtype == np.float32
            assert np.abs(found - wanted).max() < 1e-6


def test_one_image_without_a_batch():
    image = _noise(6, 5)
    alone = preprocess.normalise(image, CLIP)
    assert (alone == preprocess.normalise(image[None], CLIP)[0]).all()


def test_normalising_twice_is_refused():
    once = preprocess.normalise(_noise(4, 4), CLIP)
    # The shapes that annotations ask for are only checked in tests.
    with pytest.raises((ParameterError, TypeError)):
        preprocess.normalise(once, CLIP)


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ParameterError, match="size is at least 1; got 0"):
        CLIP.at(0)
    with pytest.raises(ParameterError, match="resized is at least size, which is 224"):
        dataclasses.replace(IMAGENET, resized=200)
    with pytest.raises(ParameterError, match="std is positive"):
        Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 0.0, 1.0))


def test_other_sizes_keep_the_share_of_the_margin():
    assert IMAGENET.at(112).resized == 128
    assert CLIP.at(336).resized is None
