"""Splits of prepared TFDS sets as sources; TensorFlow is not needed for reading them.

The sets have to be stored as array_record (`builders.prepare` does so), which is read
from any place. What a source has opened stays behind when it is pickled: each worker
process opens its own on first use.
"""

import functools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from centermerge_jax.data.examples import Example
from centermerge_jax.errors import DataError


def import_tfds() -> Any:
    """The package `tensorflow_datasets`, which is optional and slow to import.

    Raises:
      DataError: It is not installed.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise DataError(
            f"TFDS sets take packages ({error}): pip install 'centermerge_jax[eval]'"
        ) from error
    return tfds


class TfdsSource:
    """One split of a prepared TFDS set.

    Args:
      folder: Where the set's version is, with its `dataset_info.json`.
      split: One of its splits, or a part of one, such as `train[:90%]`.
      inputs: Name of the feature that is classified: an image, a text; or of two texts.
      label: Name of the feature with the class.
      relabel: What some of its labels are to become.

    Raises:
      DataError: It is stored in another format than array_record, or has no such split
        or feature.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        *,
        inputs: Sequence[str],
        label: str = "label",
        relabel: Mapping[int, int] = MappingProxyType({}),
    ) -> None:
        """Looks into the description of the set, and opens nothing yet."""
        self.folder = Path(folder)
        self.split = split
        self.inputs = tuple(inputs)
        self.label = label
        self.relabel = dict(relabel)
        info = json.loads((self.folder / "dataset_info.json").read_text())
        stored = info.get("fileFormat", "tfrecord")
        if stored != "array_record":
            raise DataError(
                f"{self.folder} is stored as {stored}, which only TensorFlow reads; "
                "prepare it again with file_format='array_record'"
            )
        known = stored_features(self.folder)
        missing = [name for name in (*inputs, label) if name not in known]
        if missing:
            raise DataError(
                f"{self.folder} has no feature {', '.join(map(repr, missing))}: it has "
                f"{', '.join(sorted(known))}"
            )
        self._texts = {
            name
            for name in inputs
            if not known[name]["pythonClassName"].endswith(".Image")
        }

    def __getstate__(self) -> dict[str, Any]:
        """Everything but what is open."""
        return {k: v for k, v in vars(self).items() if k != "_records"}

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int, /) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"{index} is not below {len(self)}")  # ends a `for` loop
        return self._example(self._records[index])

    def __getitems__(self, indices: Sequence[int]) -> list[Example]:
        """Several at once, which is quicker than one by one."""
        return [self._example(r) for r in self._records.__getitems__(indices)]

    @functools.cached_property
    def _records(self) -> Any:
        tfds = import_tfds()
        builder = tfds.builder_from_directory(self.folder)
        # Images stay encoded: Pillow decodes them, as in the implementations that
        # ours is measured against.
        images = {
            name: tfds.decode.SkipDecoding()
            for name, feature in builder.info.features.items()
            if isinstance(feature, tfds.features.Image)
        }
        try:
            return builder.as_data_source(split=self.split, decoders=images or None)
        except (KeyError, ValueError) as error:
            raise DataError(
                f"{self.folder} has no split {self.split!r}: it has "
                f"{', '.join(sorted(builder.info.splits))}"
            ) from error

    def _example(self, record: dict[str, Any]) -> Example:
        values = [
            record[name].decode() if name in self._texts else record[name]
            for name in self.inputs
        ]
        label = int(record[self.label])
        return Example(
            values[0] if len(values) == 1 else tuple(values),
            self.relabel.get(label, label),
        )


def stored_features(folder: Path) -> Mapping[str, Any]:
    """What the description of a prepared set says of each feature."""
    features = json.loads((folder / "features.json").read_text(encoding="utf-8"))
    return features["featuresDict"]["features"]


def find_prepared(name: str, data_dir: Path) -> Path | None:
    """Where a TFDS set was prepared, in its newest version; None if it was not.

    Args:
      name: Name of the set, with its configuration if it has some: `glue/mrpc`.
      data_dir: Where sets are prepared: `data_dir/name/version`.
    """
    found = {
        tuple(map(int, path.parent.name.split("."))): path.parent
        for path in (Path(data_dir) / name).glob("*/dataset_info.json")
        if re.fullmatch(r"\d+\.\d+\.\d+", path.parent.name)
    }
    return found[max(found)] if found else None


def prepared_folder(name: str, data_dir: Path) -> Path:
    """Where a TFDS set was prepared, in its newest version: see `find_prepared`.

    Raises:
      DataError: It is not there; the message has the command that prepares it.
    """
    found = find_prepared(name, data_dir)
    if found is None:
        raise DataError(
            f"{name} is not prepared in {data_dir}; to do so:\n"
            f"  {command(name, data_dir)}"
        )
    return found


def command(name: str, data_dir: Path) -> str:
    """What prepares a set."""
    return f"python -m centermerge_jax.data.builders {name} --data-dir {data_dir}"
