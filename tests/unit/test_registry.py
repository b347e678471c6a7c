"""The task table and the class names, held against TFDS and the published facts."""

import ast
import dataclasses
import importlib.util
import json
from pathlib import Path

import pytest

from centermerge_jax.data import prompts, registry, sets, text_sets
from centermerge_jax.data.builders import image_sets, official_sets
from centermerge_jax.data.builders import text_sets as text_builders
from centermerge_jax.data.registry import SUITES, TASKS
from centermerge_jax.errors import DataError, ParameterError

# Wang et al. 2024, the order in which means over 8, 14 and 20 tasks are taken.
BENCHMARK = [
    "Cars", "DTD", "EuroSAT", "GTSRB", "MNIST", "RESISC45", "SVHN", "SUN397",
    "STL10", "OxfordIIITPet", "Flowers102", "CIFAR100", "PCAM", "FER2013",
    "CIFAR10", "Food101", "FashionMNIST", "RenderedSST2", "EMNIST", "KMNIST",
]  # fmt: skip
COUNTS = (
    196, 47, 10, 43, 10, 45, 10, 397, 10, 37, 102, 100, 2, 7, 10, 101, 10, 2, 10, 10,
)  # fmt: skip
CLIP = SUITES["clip20"]


@pytest.fixture(scope="module")
def tfds_sources() -> Path:
    """The folder of TFDS, found without importing it."""
    spec = importlib.util.find_spec("tensorflow_datasets")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0])


def names_in(source: Path) -> list[list[str]]:
    """All lists of texts that a Python file has, without running it."""
    lists = [n for n in ast.walk(ast.parse(source.read_text())) if type(n) is ast.List]
    found = []
    for node in lists:
        values = [e.value for e in node.elts if isinstance(e, ast.Constant)]
        if len(values) == len(node.elts) and all(isinstance(v, str) for v in values):
            found.append(values)
    return found


def test_suites_are_in_the_order_of_the_benchmark():
    titles = [TASKS[name].title for name in CLIP]
    assert titles == BENCHMARK
    assert [name.lower() for name in BENCHMARK] == list(CLIP)
    assert SUITES["clip8"] == CLIP[:8]
    assert SUITES["clip14"] == CLIP[:14]
    assert len(SUITES["glue7"]) == 7
    for names in SUITES.values():
        assert len(set(names)) == len(names)
        assert set(names) <= set(TASKS)
    assert {name for names in SUITES.values() for name in names} == set(TASKS)


def test_class_counts():
    assert tuple(TASKS[name].classes for name in CLIP) == COUNTS
    for name, spec in TASKS.items():
        assert len(registry.class_names(name)) == spec.classes


def test_every_task_can_be_had_from_somewhere():
    for spec in TASKS.values():
        assert (spec.tfds is None) == bool(spec.why_not)
        assert spec.tfds or (spec.folder and spec.hub)
        if spec.folder:
            assert prompts.load_prompts(spec.name).folders
        assert spec.splits.test not in {spec.splits.train, spec.splits.validation}
        assert spec.inputs == ("image",) or spec.kind == "text"


def test_every_file_belongs_to_a_task_and_says_where_it_is_from():
    folder = Path(prompts.__file__).parent / "class_names"
    assert {path.stem for path in folder.iterdir()} == set(CLIP)
    for path in folder.iterdir():
        content = json.loads(path.read_text())
        assert "nik-dim/tall_masks" in content["source"]
        assert content["licence"]


@pytest.mark.parametrize("name", CLIP)
def test_templates_have_one_place_for_the_name(name):
    found = prompts.load_prompts(name)
    assert found.templates
    for text in found.templates:
        assert text.count("{}") == 1
        assert not set("{}") & set(text.replace("{}", ""))


def test_the_benchmarks_spelling_is_kept():
    assert prompts.class_names("fer2013")[3] == "['happy', 'smiling']"
    assert prompts.class_names("food101")[16:18] == ("cheese_plate", "cheesecake")
    assert prompts.class_names("cifar100")[1] == "aquarium_fish"
    assert prompts.class_names("eurosat")[0] == "annual crop land"
    assert prompts.class_names("oxfordiiitpet")[1] == "American Bulldog"
    assert prompts.class_names("cars")[0] == "AM General Hummer SUV 2000"
    assert prompts.templates("pcam") == ("this is a photo of {}",)


# --- against TFDS


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("dtd", "dtd_key_attributes.txt"),
        ("sun397", "sun397_labels.txt"),
        ("food101", "food-101_classes.txt"),
    ],
)
def test_labels_of_tfds_become_those_of_the_benchmark(tfds_sources, name, file):
    theirs = (tfds_sources / "image_classification" / file).read_text().split()
    ours = prompts.load_prompts(name).folders
    folders = [label.removeprefix("/").replace("/", "_") for label in theirs]
    moved = [TASKS[name].benchmark_label(label) for label in range(len(theirs))]
    assert [ours[label] for label in moved] == folders
    # The folders are read in sorted order by the benchmark.
    assert list(ours) == sorted(ours)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("cars", "image_classification/cars196.py"),
        ("fashionmnist", "image_classification/mnist.py"),
        ("kmnist", "image_classification/mnist.py"),
    ],
)
def test_class_names_are_those_of_tfds(tfds_sources, name, file):
    assert list(prompts.class_names(name)) in names_in(tfds_sources / file)
    assert not TASKS[name].relabel


@pytest.mark.parametrize("name", ["oxford_iiit_pet", "resisc45", "oxford_flowers102"])
def test_class_names_are_those_of_tfds_spelt_otherwise(tfds_sources, name):
    file = tfds_sources / "datasets" / name / f"{name}_dataset_builder.py"
    task = {"oxford_iiit_pet": "oxfordiiitpet", "oxford_flowers102": "flowers102"}
    ours = prompts.class_names(task.get(name, name))
    (theirs,) = (names for names in names_in(file) if len(names) == len(ours))
    other = [
        i
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True))
        if a.lower() != b.lower().replace("_", " ")
    ]
    # Globe flower, pink and yellow dahlia, air plant: the same flowers.
    assert other == ([15, 59, 92] if name == "oxford_flowers102" else [])


def test_glue_is_as_tfds_has_it(tfds_sources):
    source = tfds_sources / "text" / "glue.py"
    lists = names_in(source)
    constants = {
        node.value
        for node in ast.walk(ast.parse(source.read_text()))
        if isinstance(node, ast.Constant)
    }
    for name in SUITES["glue7"]:
        spec = TASKS[name]
        assert list(spec.label_names) in lists
        assert {*spec.inputs, spec.name} <= constants
        assert spec.metric == ("matthews" if name == "cola" else "accuracy")


# --- looking up


def test_names_are_found_however_they_are_written():
    assert registry.find("SST-2") is registry.find("sst2")
    assert registry.find("fashion_mnist").title == "FashionMNIST"
    assert [spec.name for spec in registry.select(["mnist", "clip8"])][:2] == [
        "mnist",
        "cars",
    ]


def test_unknown_names_are_refused_with_a_hint():
    with pytest.raises(ParameterError, match=r"called 'eurostat'; .*'eurosat'"):
        registry.find("eurostat")
    with pytest.raises(ParameterError, match="known: cars"):
        registry.select(["clip8", "???"])
    with pytest.raises(DataError, match=r"no class names .* 'cola'"):
        prompts.class_names("cola")
    with pytest.raises(DataError, match="no class names"):
        prompts.class_names("../class_names/mnist")


def test_a_spoilt_file_is_refused(monkeypatch, tmp_path):
    folder = tmp_path / "class_names"
    folder.mkdir()
    found = prompts.load_prompts("mnist")
    content = dataclasses.asdict(found) | {
        "classes": ["0", "0", ""],
        "templates": ["{} or {}", "none"],
        "folders": ["a"],
    }
    (folder / "spoilt.json").write_text(json.dumps(content))
    monkeypatch.setattr(prompts.resources, "files", lambda _: tmp_path)
    with pytest.raises(DataError) as caught:
        prompts.load_prompts.__wrapped__("spoilt")
    assert str(caught.value) == (
        "6 problems in spoilt.json:\n"
        "  task: is 'mnist'\n"
        "  classes: some are there twice\n"
        "  classes: '' is no text\n"
        "  folders: not as many as classes\n"
        "  templates: '{} or {}' does not have one {}\n"
        "  templates: 'none' does not have one {}"
    )


# --- the page about it


def test_the_page_says_where_every_task_is_read_from():
    page = Path(__file__).parents[2] / "docs" / "benchmark.md"
    rows = [
        [cell.strip().strip("`") for cell in line.split("|")[1:-1]]
        for line in page.read_text().splitlines()
        if line.startswith("|")
    ]
    found = {row[0]: row for row in rows if row[0] in BENCHMARK}
    for name in CLIP:
        spec = TASKS[name]
        _, classes, tests, tfds, folder, hub = found[spec.title]
        assert (int(classes), int(tests.replace(",", ""))) == (spec.classes, spec.tests)
        assert (tfds, hub) == (spec.tfds or "", spec.hub or "")
        path, _, splits = folder.partition("/")
        assert path == (spec.folder.path if spec.folder else "")
        if spec.folder:
            parts = spec.folder.splits
            named = {parts.train, parts.test, parts.validation} - {None}
            assert set(splits.strip("{}").split(",")) == named


def test_the_page_has_all_sets_that_travel_in_packages():
    page = Path(__file__).parents[2] / "docs" / "benchmark.md"
    rows = [
        [cell.strip().strip("`") for cell in line.split("|")[1:-1]]
        for line in page.read_text().splitlines()
        if line.startswith("| `")
    ]
    found = {row[0]: row[1:] for row in rows if row[0] in TASKS}
    assert list(found) == [spec.name for spec in registry.REAL]
    for spec, known in zip(
        registry.REAL,
        [
            sets.SETS[name]
            for name in ("br35h", "xray", "traffic", "textile", "quickdraw")
        ]
        + list(text_sets.SETS.values()),
        strict=True,
    ):
        kind, classes, *_, package = found[spec.name]
        assert (kind, int(classes)) == (f"{spec.kind}s", spec.classes)
        assert package == known.package
    assert SUITES["real"] == ("mnist", "fashionmnist", "cifar10", *found)


def test_every_set_of_ours_has_a_builder():
    ours = image_sets.BUILDERS | text_builders.BUILDERS
    assert sorted(ours) == sorted(spec.tfds or "" for spec in registry.REAL)
    assert {TASKS[name].tfds for name in SUITES["real"]} == {
        *ours,
        *official_sets.BUILDERS,
    }
