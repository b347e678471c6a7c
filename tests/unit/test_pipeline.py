"""Sources, carving, batches and their cache, on examples made here."""

import dataclasses
import io
import pickle
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from centermerge_jax.data.cache import Cached
from centermerge_jax.data.examples import Example, FolderSource, Subset
from centermerge_jax.data.pipeline import Batch, batches
from centermerge_jax.data.preprocess import CLIP, prepare
from centermerge_jax.data.prompts import load_prompts
from centermerge_jax.data.registry import find
from centermerge_jax.data.sources import carve, open_source
from centermerge_jax.data.specs import ImageFolder, Splits
from centermerge_jax.data.tfds_source import prepared_folder
from centermerge_jax.errors import DataError, ParameterError

SMALL = CLIP.at(4)


def _source(count: int) -> list[Example]:
    """Grey images whose value is their number."""
    return [Example(np.full((6, 6), i, np.uint8), i % 3) for i in range(count)]


def _seen(made) -> list[int]:
    return [i for batch in made for i in batch.index[batch.valid].tolist()]


def _same(one: Batch, other: Batch) -> bool:
    pairs = zip(vars(one).values(), vars(other).values(), strict=True)
    return all(x is y is None or (x == y).all() for x, y in pairs)


# --- once over


@pytest.mark.parametrize("count", [1, 2, 7, 12, 13])
@pytest.mark.parametrize("hosts", [1, 2, 3, 5])
@pytest.mark.parametrize("seed", [None, 3])
def test_every_example_once_and_all_hosts_as_many_batches(count, hosts, seed):
    source = _source(count)
    seen, lengths = [], []
    for host in range(hosts):
        made = batches(
            source, batch=2, preprocessing=SMALL, seed=seed, shard=(host, hosts)
        )
        passed = list(made)
        lengths.append(len(passed))
        assert len(made) == len(passed)
        seen += _seen(passed)
    assert sorted(seen) == list(range(count))
    assert set(lengths) == {-(-count // (2 * hosts))}


def test_rows_are_the_examples_that_they_say():
    source = _source(11)
    for batch in batches(source, batch=4, preprocessing=SMALL, seed=1):
        for row in range(4):
            if batch.valid[row]:
                image, label = source[batch.index[row]]
                assert batch.labels[row] == label
                assert (batch.images[row] == prepare(image, SMALL)).all()


def test_padding_is_zero_and_marked():
    last = list(batches(_source(5), batch=3, preprocessing=SMALL))[-1]
    assert last.valid.tolist() == [True, True, False]
    assert last.index.tolist() == [3, 4, -1]
    assert last.labels.tolist() == [0, 1, 0]
    assert last.images[:2].all()
    assert not last.images[2].any()
    assert last.images.dtype == np.uint8
    assert last.labels.dtype == np.int32


def test_a_host_without_examples_pads_whole_batches():
    alone = list(batches(_source(2), batch=2, preprocessing=SMALL, shard=(2, 3)))
    assert len(alone) == 1
    assert not alone[0].valid.any()
    assert alone[0].images.shape == (2, 4, 4, 3)


# --- order


def test_the_order_is_the_source_s_without_a_seed():
    assert _seen(batches(_source(7), batch=3, preprocessing=SMALL)) == list(range(7))


def test_seeds_shuffle_repeatably():
    def order(seed):
        return _seen(batches(_source(50), batch=8, preprocessing=SMALL, seed=seed))

    assert order(0) == order(0)
    assert order(0) != order(1)
    assert order(0) != list(range(50))


def test_an_order_can_be_passed_over_again():
    made = batches(_source(9), batch=2, preprocessing=SMALL, seed=5)
    assert all(map(_same, made, made))


def test_hosts_take_turns_in_the_one_order():
    settings = {"preprocessing": SMALL, "seed": 2}
    whole = _seen(batches(_source(13), batch=1, **settings))
    for host in range(3):
        part = batches(_source(13), batch=4, shard=(host, 3), **settings)
        assert _seen(part) == whole[host::3]


@pytest.mark.parametrize("start", [0, 2, 4])
def test_a_pass_can_go_on_in_the_middle(start):
    settings = {"batch": 3, "preprocessing": SMALL, "seed": 4, "shard": (1, 2)}
    whole = list(batches(_source(20), **settings))
    rest = batches(_source(20), start=start, **settings)
    assert len(whole) == 4
    assert len(rest) == 4 - start
    assert all(map(_same, rest, whole[start:]))


def test_workers_give_the_same_batches():
    settings = {"batch": 3, "preprocessing": SMALL, "seed": 7}
    here = list(batches(_source(20), **settings))
    there = list(batches(_source(20), workers=2, **settings))
    assert len(there) == len(here) == 7
    assert all(map(_same, here, there))
    # Nothing keeps the workers' shared memory.
    assert all(type(batch.images) is np.ndarray for batch in there)


def test_a_pass_that_is_broken_off_leaves_nothing_running():
    made = iter(batches(_source(20), batch=2, preprocessing=SMALL))
    next(made)
    made.close()
    with pytest.raises(StopIteration):
        next(made)


# --- texts


class _Tokens(NamedTuple):
    ids: np.ndarray
    mask: np.ndarray


def _tokenize(texts) -> _Tokens:
    """Five places; a token is the length of a word."""
    ids = np.full((len(texts), 5), 9, np.int32)
    mask = np.zeros((len(texts), 5), np.int32)
    for row, text in enumerate(texts):
        words = (text if isinstance(text, str) else " ".join(text)).split()
        ids[row, : len(words)] = [len(word) for word in words]
        mask[row, : len(words)] = 1
    return _Tokens(ids, mask)


def test_texts_become_tokens():
    source = [Example("a bcd", 0), Example("ef", 1), Example(("a b", "c"), 1)]
    made = list(batches(source, batch=2, preprocessing=_tokenize))
    assert made[0].images is None
    assert made[0].ids.tolist() == [[1, 3, 9, 9, 9], [2, 9, 9, 9, 9]]
    assert made[0].mask.tolist() == [[1, 1, 0, 0, 0], [1, 0, 0, 0, 0]]
    assert made[1].ids.tolist() == [[1, 1, 1, 9, 9], [0] * 5]
    assert made[1].mask.tolist() == [[1, 1, 1, 0, 0], [0] * 5]
    assert made[1].inputs.keys() == {"ids", "mask"}


def test_a_host_without_texts_has_batches_of_the_same_shape():
    alone = list(
        batches([Example("a", 0)], batch=2, preprocessing=_tokenize, shard=(1, 2))
    )
    assert alone[0].ids.tolist() == [[0] * 5] * 2


# --- errors


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch": 0}, "batch is at least 1; got 0"),
        ({"seed": -1}, "seed is at least 0 and below 2.32; got -1"),
        ({"shard": (2, 2)}, r"shard is \(index, number of hosts\).*got \(2, 2\)"),
        ({"workers": -1}, "workers is at least 0; got -1"),
        ({"start": 4}, "start is between 0 and 3; got 4"),
    ],
)
def test_numbers_outside_their_range(wrong, message):
    settings = {"batch": 2, "preprocessing": SMALL} | wrong
    with pytest.raises(ParameterError, match=message):
        batches(_source(5), **settings)


def test_an_empty_source_is_an_error():
    with pytest.raises(DataError, match="no examples"):
        batches([], batch=2, preprocessing=SMALL)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_is_named(workers):
    source = [*_source(4), Example(b"no image", 0)]
    made = batches(source, batch=2, preprocessing=SMALL, workers=workers)
    with pytest.raises(DataError, match="example 4: not a picture that can be read"):
        list(made)


def test_a_label_that_is_kept_secret_is_an_error():
    source = [*_source(3), Example(np.zeros((6, 6), np.uint8), -1)]
    with pytest.raises(DataError, match=r"example 3 has no label \(it is -1\)"):
        list(batches(source, batch=2, preprocessing=SMALL))


# --- cache


class _Counted:
    """Batches that count how often they are passed over."""

    def __init__(self, made):
        self.made, self.passes = made, 0

    def __len__(self):
        return len(self.made)

    def __iter__(self):
        self.passes += 1
        return iter(self.made)


def _counted() -> _Counted:
    return _Counted(batches(_source(7), batch=3, preprocessing=SMALL, seed=0))


def test_a_cache_keeps_all_under_its_limit():
    inner = _counted()
    size = sum(batch.nbytes for batch in inner.made)
    cached = Cached(inner, limit=str(size))
    passes = [list(cached) for _ in range(3)]
    assert inner.passes == 1
    assert cached.full
    assert len(cached) == 3
    for one in passes:
        assert all(map(_same, one, inner.made))


def test_a_cache_keeps_nothing_above_its_limit():
    inner = _counted()
    size = sum(batch.nbytes for batch in inner.made)
    cached = Cached(inner, limit=str(size - 1))
    passes = [list(cached) for _ in range(2)]
    assert inner.passes == 2
    assert not cached.full
    assert all(map(_same, *passes))


def test_batches_that_grow_do_not_break_the_limit():
    small, large = list(batches(_source(2), batch=1, preprocessing=SMALL))
    large = dataclasses.replace(large, images=np.zeros((1, 99, 99, 3), np.uint8))
    inner = _Counted([small, large])
    cached = Cached(inner, limit=str(3 * small.nbytes))
    assert list(cached) == list(cached) == [small, large]
    assert not cached.full
    assert inner.passes == 2


def test_a_pass_that_is_broken_off_fills_no_cache():
    inner = _counted()
    cached = Cached(inner)
    next(iter(cached))
    assert not cached.full
    assert len(list(cached)) == 3
    assert cached.full


def test_a_limit_that_is_no_size_is_refused():
    with pytest.raises(ParameterError, match="limit is a number and one of"):
        Cached([], limit="much")


# --- carving


def test_carving_is_disjoint_whole_and_stable():
    fitting, choosing = carve(1000, validation=100, seed=0)
    assert len(choosing) == 100
    assert sorted([*fitting, *choosing]) == list(range(1000))
    again = carve(1000, validation=100, seed=0)
    assert (again[1] == choosing).all()
    assert (carve(1000, validation=100, seed=1)[1] != choosing).any()
    # Written down: a change here would silently change every tuned coefficient.
    assert carve(20, validation=4)[1].tolist() == CARVED


CARVED = [4, 10, 14, 16]


def test_carving_more_takes_more_of_the_same():
    _, few = carve(500, validation=20)
    _, many = carve(500, validation=40)
    assert set(few) < set(many)


def test_carving_is_spread_evenly():
    _, choosing = carve(10_000, validation=1000)
    counts = np.histogram(choosing, bins=10, range=(0, 10_000))[0]
    assert np.abs(counts - 100).max() < 40  # four standard deviations


@pytest.mark.parametrize("validation", [0, 10, 11])
def test_carving_leaves_something_for_both(validation):
    with pytest.raises(DataError, match="between 1 and 9 of 10"):
        carve(10, validation=validation)


# --- folders and subsets


def _png(value: int) -> bytes:
    out = io.BytesIO()
    Image.new("L", (3, 5), value).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def folder(tmp_path):
    for label, name in enumerate(["b", "a"]):
        (tmp_path / name).mkdir()
        for i in range(2):
            (tmp_path / name / f"{i}.png").write_bytes(_png(10 * label + i))
        (tmp_path / name / "notes.txt").write_text("no image")
    return tmp_path


def test_folders_are_classes(folder):
    found = [label for _, label in FolderSource(folder)]
    assert found == [0, 0, 1, 1]
    source = FolderSource(folder, classes=["b", "a"])
    assert [label for _, label in source] == [0, 0, 1, 1]
    [made] = batches(source, batch=4, preprocessing=SMALL)
    assert made.images[:, 0, 0, 0].tolist() == [0, 1, 10, 11]
    assert len(pickle.loads(pickle.dumps(source))) == 4


def test_folders_that_do_not_fit_are_listed(folder):
    with pytest.raises(DataError) as caught:
        FolderSource(folder, classes=["b", "c"])
    assert "2 differences in" in str(caught.value)
    assert "c: no such folder" in str(caught.value)
    assert "a: no such class" in str(caught.value)
    with pytest.raises(DataError, match="is no folder"):
        FolderSource(folder / "nope")


def test_subsets_count_anew():
    source = Subset(_source(10), np.array([7, 2, 5]))
    [made] = batches(source, batch=3, preprocessing=SMALL)
    assert made.images[:, 0, 0, 0].tolist() == [7, 2, 5]
    assert made.index.tolist() == [0, 1, 2]


def test_the_newest_version_is_taken(tmp_path):
    for version in ("1.9.0", "1.10.0", "notes"):
        (tmp_path / "x" / version).mkdir(parents=True)
        (tmp_path / "x" / version / "dataset_info.json").write_text("{}")
    assert prepared_folder("x", tmp_path).name == "1.10.0"


def test_a_set_that_is_not_prepared_says_how(tmp_path):
    command = f"python -m centermerge_jax.data.builders x --data-dir {tmp_path}"
    with pytest.raises(DataError) as caught:
        prepared_folder("x", tmp_path)
    assert command in str(caught.value)


# --- tasks

SPEC = find("renderedsst2")
"""A task of two classes that is read from image folders."""


@pytest.fixture
def rendered(tmp_path):
    """Image folders: 20 for training, 6 for testing; an image is its number."""
    value = 0
    for split, count in (("train", 10), ("test", 3)):
        for name in ("negative", "positive"):
            folder = tmp_path / "rendered-sst2" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                (folder / f"{i}.png").write_bytes(_png(value))
                value += 1
    return tmp_path


def _values(source) -> list[int]:
    return [np.asarray(Image.open(io.BytesIO(e.input)))[0, 0] for e in source]


def test_a_task_s_splits_are_disjoint_and_the_test_split_whole(rendered):
    parts = [
        _values(open_source(SPEC, split, data_dir=rendered))
        for split in ("train", "validation", "test")
    ]
    assert [len(part) for part in parts] == [18, 2, 6]
    assert sorted(parts[0] + parts[1]) == list(range(20))
    assert parts[2] == list(range(20, 26))
    other = _values(open_source(SPEC, "validation", data_dir=rendered, seed=1))
    assert set(other) != set(parts[1])
    test = open_source(SPEC, "test", data_dir=rendered, seed=1)
    assert _values(test) == parts[2]


def test_a_validation_split_of_its_own_is_taken(rendered):
    folder = ImageFolder("rendered-sst2", Splits("train", "test", "test"))
    spec = dataclasses.replace(SPEC, folder=folder)
    train = open_source(spec, "train", data_dir=rendered)
    assert _values(train) == list(range(20))
    assert len(open_source(spec, "validation", data_dir=rendered)) == 6


def test_folders_are_preferred_and_tfds_is_the_other_way(rendered, tmp_path):
    spec = dataclasses.replace(SPEC, tfds="some_set")
    assert len(open_source(spec, "test", data_dir=rendered)) == 6
    with pytest.raises(DataError, match="some_set is not prepared in"):
        open_source(spec, "test", data_dir=tmp_path / "elsewhere")


def test_what_tfds_lacks_says_where_to_put_it(tmp_path):
    with pytest.raises(DataError) as caught:
        open_source(SPEC, "train", data_dir=tmp_path)
    assert f"not read from TFDS: {SPEC.why_not}" in str(caught.value)
    said = f"{tmp_path}/rendered-sst2/SPLIT/CLASS/, splits being train and test"
    assert said in str(caught.value)
    assert f"builders huggingface:{SPEC.hub} --data-dir" in str(caught.value)


def test_labels_of_folders_are_the_benchmark_s(tmp_path):
    folders = load_prompts("fer2013").folders
    assert list(folders) != sorted(folders)
    for value, name in enumerate(folders):
        folder = tmp_path / "fer2013" / "test" / name
        folder.mkdir(parents=True)
        (folder / "0.png").write_bytes(_png(value))
    source = open_source("fer2013", "test", data_dir=tmp_path)
    assert [label for _, label in source] == _values(source) == list(range(7))


def test_the_number_of_class_folders_is_checked(rendered):
    spec = dataclasses.replace(SPEC, classes=3)
    with pytest.raises(DataError, match="has 2 folders of classes; RenderedSST2 has 3"):
        open_source(spec, "test", data_dir=rendered)


def test_tasks_go_by_their_name(tmp_path):
    with pytest.raises(DataError, match="sms_spam is not prepared in"):
        open_source("sms_spam", "test", data_dir=tmp_path)
    with pytest.raises(ParameterError, match="no task is called 'sms'"):
        open_source("sms", "test", data_dir=tmp_path)
