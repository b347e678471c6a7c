"""Sets of the Hugging Face hub, in the form in which TFDS's bridge leaves them.

The bridge itself takes a package and a network; what it writes is what any builder of
TFDS writes, under the name, version, features and splits that it makes of the hub's.
"""

import io

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.utils import conversion_utils

from centermerge_jax.data import registry
from centermerge_jax.data.builders import prepare
from centermerge_jax.data.hub_sets import bridged, hub_parts
from centermerge_jax.data.pipeline import batches
from centermerge_jax.data.preprocess import CLIP
from centermerge_jax.data.sources import open_source
from centermerge_jax.errors import DataError

COUNTS = {"train": 40, "test": 20}
KANA = registry.class_names("kmnist")


class Bridge(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """What the bridge would have made of a set of the hub."""

    VERSION = tfds.core.Version("0.0.0")
    RELEASE_NOTES = {"0.0.0": "as sets of parquet files have it"}  # noqa: RUF012

    def __init__(self, hub, features, items, **settings):
        self.name = bridged(hub).split("/")[0]
        self.features, self.items = tfds.features.FeaturesDict(features), items
        config = hub_parts(hub)[1]
        if config is not None:
            config = tfds.core.BuilderConfig(name=bridged(hub).split("/")[1])
            config.version = self.VERSION
        super().__init__(file_format="array_record", config=config, **settings)

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=self.features)

    def _split_generators(self, dl_manager):
        del dl_manager
        return {split: self._generate_examples(split) for split in self.items}

    def _generate_examples(self, split):
        yield from enumerate(self.items[split])


def _bridge(hub, features, items, data_dir):
    Bridge(hub, features, items, data_dir=data_dir).download_and_prepare()


def _image(value):
    return Image.fromarray(np.full((28, 28, 3), value, np.uint8))


def _kmnist(data_dir, *, names=KANA, image="image", label="label", counts=COUNTS):
    """An image's grey is its number; labels go round, by the name of the class."""
    features = {
        image: tfds.features.Image(encoding_format="png"),
        label: tfds.features.ClassLabel(names=names),
        "id": tfds.features.Scalar(np.int64),
    }
    items = {
        split: [{image: _image(i), label: i % len(names), "id": i} for i in range(n)]
        for split, n in counts.items()
    }
    _bridge("tanganke/kmnist", features, items, data_dir)


def _grey(example):
    return int(np.asarray(Image.open(io.BytesIO(example.input)))[0, 0, 0])


def test_names_are_those_of_the_bridge():
    hubs = {spec.hub for spec in registry.TASKS.values() if spec.hub}
    assert len(hubs) == 26
    for hub in hubs:
        parts = [part for part in hub_parts(hub) if part]
        made = [conversion_utils.to_tfds_name(part) for part in parts]
        assert bridged(hub) == "/".join(made)


def test_a_task_without_its_tfds_set_reads_the_hub_s(tmp_path):
    _kmnist(tmp_path)
    assert (tmp_path / "tanganke__kmnist/0.0.0/features.json").is_file()
    parts = {
        split: list(open_source("kmnist", split, data_dir=tmp_path))
        for split in ("train", "validation", "test")
    }
    assert [len(part) for part in parts.values()] == [36, 4, 20]
    for part in parts.values():
        assert all(example.label == _grey(example) % 10 for example in part)
    carved = {_grey(e) for e in parts["train"] + parts["validation"]}
    assert carved == set(range(40))
    source = open_source("kmnist", "test", data_dir=tmp_path)
    [batch] = batches(source, batch=20, preprocessing=CLIP.at(28))
    assert batch.images.shape == (20, 28, 28, 3)
    assert batch.images[:, 14, 14, 1].tolist() == [_grey(e) for e in parts["test"]]


def test_texts_with_a_configuration(tmp_path):
    text = tfds.features.Scalar(np.object_)
    names = ["unacceptable", "acceptable"]
    features = {"sentence": text, "label": tfds.features.ClassLabel(names=names)}
    rows = [{"sentence": f"naïve {i}", "label": i % 2} for i in range(20)]
    items = {"train": rows, "validation": rows[:6]}
    _bridge("nyu-mll/glue/cola", features, items, tmp_path)
    test = sorted(open_source("cola", "test", data_dir=tmp_path))
    assert test == [(f"naïve {i}", i % 2) for i in range(6)]
    assert len(open_source("cola", "validation", data_dir=tmp_path)) == 2


def test_tfds_s_own_set_goes_first(tmp_path):
    _kmnist(tmp_path)
    folder = tmp_path / "tanganke__kmnist"
    own = tmp_path / "kmnist"
    folder.rename(own)
    _kmnist(tmp_path, counts={"train": 40, "test": 3})
    for path in (own / "0.0.0").iterdir():
        text = "tanganke__kmnist"
        path.rename(path.with_name(path.name.replace(text, "kmnist")))
    info = own / "0.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace("tanganke__kmnist", "kmnist"))
    assert len(open_source("kmnist", "test", data_dir=tmp_path)) == 20


# --- what differs from the task


def test_classes_in_another_order_are_translated(tmp_path):
    _kmnist(tmp_path, names=[f"{name.upper()} " for name in KANA[::-1]])
    for example in open_source("kmnist", "test", data_dir=tmp_path):
        assert example.label == 9 - _grey(example) % 10


def test_numbers_say_nothing_about_the_order(tmp_path):
    _kmnist(tmp_path, names=[str(i) for i in range(10)])
    for example in open_source("kmnist", "test", data_dir=tmp_path):
        assert example.label == _grey(example) % 10


def test_features_of_other_names_are_found_by_their_kind(tmp_path):
    _kmnist(tmp_path, image="img", label="fine_label")
    for example in open_source("kmnist", "test", data_dir=tmp_path):
        assert example.label == _grey(example) % 10


def test_other_classes_are_refused(tmp_path):
    _kmnist(tmp_path, names=[*KANA[:8], "wo", "n"])
    with pytest.raises(DataError) as caught:
        open_source("kmnist", "test", data_dir=tmp_path)
    assert "1 problem with the names of the classes" in str(caught.value)
    assert f"9 is 'n', expected {KANA[9]!r}" in str(caught.value)
    assert "label.labels.txt" in str(caught.value)


def test_another_number_of_classes_is_refused(tmp_path):
    _kmnist(tmp_path, names=KANA[:9])
    with pytest.raises(DataError, match=r"0\.0\.0 has 9 classes; KMNIST has 10"):
        open_source("kmnist", "test", data_dir=tmp_path)


def test_one_name_for_two_classes_is_refused(tmp_path):
    _kmnist(tmp_path, names=[*KANA[:8], "wo", "WO"])
    with pytest.raises(DataError, match="some mean the same class"):
        open_source("kmnist", "test", data_dir=tmp_path)


def test_missing_features_and_splits_are_named(tmp_path):
    _kmnist(tmp_path, counts={"train": 40, "valid": 5})
    with pytest.raises(DataError, match="no split 'test': it has train, valid"):
        open_source("kmnist", "test", data_dir=tmp_path)
    text = {"text": tfds.features.Scalar(np.object_)}
    _bridge("nyu-mll/glue/cola", text, {"validation": [{"text": "a"}]}, tmp_path)
    with pytest.raises(DataError, match="no feature 'sentence', 'label': it has text"):
        open_source("cola", "test", data_dir=tmp_path)


def test_preparing_says_what_it_takes(tmp_path):
    # Not one of the packages that this project is developed with.
    with pytest.raises(DataError, match="takes the package datasets, once"):
        prepare("huggingface:tanganke/kmnist", data_dir=tmp_path)
    with pytest.raises(DataError, match="those are called ORGANISATION/SET"):
        prepare("huggingface:kmnist", data_dir=tmp_path)
