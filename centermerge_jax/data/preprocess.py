"""From a picture to the pixels that a model was trained on.

Resizing is Pillow's, which smooths when it shrinks; the side that is not asked for and
the place of the crop are rounded as torchvision does; colours come last. So the pixels
are those of the implementations that the public checkpoints were trained and evaluated
with, not merely similar ones: another filter costs a fine-tuned model a few points.

The work is divided in two. `prepare` gives bytes, on the host, in worker processes;
`normalise` gives floats, on the device, where a batch of bytes is a quarter of the
transfer.
"""

import dataclasses
import io
from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from centermerge_jax.errors import DataError, ParameterError

Colour = tuple[float, float, float]
"""Red, green and blue, where 0 is black and 1 is full."""

Picture = Any
"""A Pillow image, an encoded file, or grey or RGB pixels. `Any`: Pillow is optional."""


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How pictures become the inputs of a model.

    Attributes:
      size: Side of the square that the model sees.
      resize: `shortest`: to `resized` pixels along the shorter side, keeping the
        shape, of which the middle is taken. `square`: stretched to a square, nothing
        cut off but a border if `resized` is larger than `size`.
      resized: Length of the shorter side before the middle is taken; `size` if not
        given.
      filter: How pixels are interpolated.
      mean: Subtracted from each colour.
      std: Each colour is divided by it afterwards.

    Raises:
      ParameterError: A size is not positive, or the crop is larger than the picture.

    Example:
      >>> CLIP.size, IMAGENET.at(112).resized
      (224, 128)
    """

    size: int = 224
    resize: Literal["shortest", "square"] = "shortest"
    resized: int | None = None
    filter: Literal["bilinear", "bicubic", "lanczos"] = "bicubic"
    mean: Colour
    std: Colour

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ParameterError(f"size is at least 1; got {self.size}")
        if self.resized is not None and self.resized < self.size:
            raise ParameterError(
                f"resized is at least size, which is {self.size}; got {self.resized}"
            )
        if min(self.std) <= 0:
            raise ParameterError(f"std is positive; got {self.std}")

    def at(self, size: int) -> "Preprocessing":
        """The same for another size of image, with the same share cut off."""
        if self.resized is None:
            return dataclasses.replace(self, size=size)
        resized = round(self.resized * size / self.size)
        return dataclasses.replace(self, size=size, resized=resized)


CLIP = Preprocessing(
    mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711)
)
"""As in the repository `openai/CLIP`, `clip.py:_transform`."""

IMAGENET = Preprocessing(
    resized=256,
    filter="bilinear",
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)
"""As torchvision's classifiers (`transforms._presets.ImageClassification`)."""

DINO = dataclasses.replace(IMAGENET, filter="bicubic")
"""As in `facebookresearch/dinov2`, `make_classification_eval_transform`."""


def prepare(
    picture: Picture, preprocessing: Preprocessing
) -> UInt8[np.ndarray, "size size 3"]:
    """The pixels of one picture that the model sees, as bytes.

    Args:
      picture: A Pillow image, an encoded file, or grey or RGB pixels.
      preprocessing: What the model was trained with.

    Returns:
      RGB bytes.

    Raises:
      DataError: It is no picture, or one whose values do not fit into bytes.

    Note:
      Palettes, transparency and CMYK become RGB *before* resizing, as torchvision's
      data sets and Hugging Face do it; transparency is dropped. CLIP's own transform
      converts afterwards, which for grey and RGB pictures is the same thing.

    Example:
      >>> prepare(np.zeros((5, 8), np.uint8), CLIP.at(4)).shape
      (4, 4, 3)
    """
    from PIL.Image import Resampling  # only those who read images need it

    opened = _opened(picture)
    if 0 in opened.size:
        raise DataError(f"a picture of {opened.size[0]} x {opened.size[1]} pixels")
    if opened.mode not in ("L", "RGB"):
        opened = opened.convert("RGB")
    filtering = Resampling[preprocessing.filter.upper()]
    opened = opened.resize(_resized(opened.size, preprocessing), filtering)
    # CenterCrop rounds half a pixel to the even side.
    left, top = (round((side - preprocessing.size) / 2.0) for side in opened.size)
    box = (left, top, left + preprocessing.size, top + preprocessing.size)
    return np.asarray(opened.crop(box).convert("RGB"))


def _opened(picture: Picture) -> Any:
    from PIL import Image as Pillow

    try:
        if isinstance(picture, bytes):
            picture = Pillow.open(io.BytesIO(picture))
        elif isinstance(picture, np.ndarray):
            grey = picture.ndim == 3 and picture.shape[2] == 1
            picture = Pillow.fromarray(picture[..., 0] if grey else picture)
        picture.load()
    except (OSError, SyntaxError, TypeError, ValueError) as error:
        raise DataError(f"not a picture that can be read: {error}") from error
    if picture.mode[0] in "IF":
        raise DataError(
            f"a picture of mode {picture.mode} has values that are no bytes; scale "
            "them to 0 to 255 first"
        )
    return picture


def _resized(shape: tuple[int, int], preprocessing: Preprocessing) -> tuple[int, int]:
    """Width and height to resize to; torchvision cuts the fraction off."""
    wanted = preprocessing.resized or preprocessing.size
    if preprocessing.resize == "square":
        return wanted, wanted
    width, height = shape
    if width <= height:
        return wanted, int(wanted * height / width)
    return int(wanted * width / height), wanted


def normalise(
    images: UInt8[Array | np.ndarray, "*batch height width 3"],
    preprocessing: Preprocessing,
) -> Float[Array, "*batch height width 3"]:
    """(images / 255 - mean) / std.

    Args:
      images: Bytes, as `prepare` gives them.
      preprocessing: The same as there.

    Returns:
      float32; meant for the inside of a jitted function.

    Raises:
      ParameterError: The images are not bytes: perhaps they are normalised already.

    Example:
      >>> grey = dataclasses.replace(CLIP, mean=(0.5,) * 3, std=(0.5,) * 3)
      >>> normalise(np.full((1, 1, 1, 3), 255, np.uint8), grey).tolist()
      [[[[1.0, 1.0, 1.0]]]]
    """
    if images.dtype != np.uint8:
        raise ParameterError(f"images to normalise are bytes; got {images.dtype}")
    shape = (1,) * (images.ndim - 1) + (3,)
    mean = jnp.array(preprocessing.mean, jnp.float32).reshape(shape)
    std = jnp.array(preprocessing.std, jnp.float32).reshape(shape)
    return (jnp.asarray(images).astype(jnp.float32) / 255 - mean) / std
