"""What every recipe for mergekit has: its keys, its type, its tokenizer, its method."""

from collections.abc import Callable, Mapping
from typing import Any

from centermerge_jax.mergekit import averages, task_vectors
from centermerge_jax.mergekit.parameters import given
from centermerge_jax.mergekit.told import Told
from centermerge_jax.recipe import DTYPES, Recipe
from centermerge_jax.yaml_files import Marked, Problems

_ABSENT = ("slices", "modules", "chat_template")
_KEYS = (
    "merge_method",
    "models",
    "base_model",
    "parameters",
    "dtype",
    "out_dtype",
    "tokenizer",
    "tokenizer_source",
)
METHODS: Mapping[str, Callable[[Told], dict[str, Any]]] = {
    read.__name__: read
    for read in (
        averages.linear,
        averages.slerp,
        averages.nuslerp,
        averages.karcher,
        averages.multislerp,
        averages.model_stock,
        task_vectors.task_arithmetic,
        task_vectors.ties,
        task_vectors.dare_linear,
        task_vectors.dare_ties,
        task_vectors.breadcrumbs,
        task_vectors.della,
        task_vectors.sce,
    )
}
"""What reads the parameters of a method, by its name there."""


def is_mergekit(document: Marked) -> bool:
    """Whether a file was written for mergekit: those alone have a `merge_method`."""
    return isinstance(document.value, dict) and "merge_method" in document.value


def from_mergekit(document: Marked) -> tuple[Recipe, list[str]]:
    """The recipe that means the same as one for mergekit.

    Args:
      document: A file for which `is_mergekit` is true.

    Returns:
      The recipe, and notes on what differs from mergekit all the same.

    Raises:
      ParameterError: Listing what cannot be said here, each with its line.
    """
    method = document.entries()["merge_method"]
    if method.text() not in METHODS:
        raise method.wrong(
            f"{method.text()!r} is not among mergekit's methods that are read here "
            f"({', '.join(METHODS)}); others take a recipe of centermerge's own form"
        )
    entries = given(document)
    problems = Problems()
    notes: list[str] = []
    fields: dict[str, Any] = {}
    for key, entry in entries.items():
        with problems.gathered():
            if key in _ABSENT:
                raise entry.wrong("mergekit has this, centermerge has not")
            if key not in _KEYS:
                raise entry.unknown("key", key, (*_KEYS, *_ABSENT))
    with problems.gathered():
        told = Told.by(document, notes)
        with told.problems.gathered():
            fields |= METHODS[method.text()](told)
        told.problems.check()
    for read in (_dtype, _tokenizer):
        with problems.gathered():
            fields |= read(entries, notes)
    problems.check()
    notes.append(
        "a tensor that a model lacks is an error here; mergekit goes on without the "
        "model where the tensor is optional (a tied head, a bias)"
    )
    return Recipe(**fields), notes


def _dtype(entries: Mapping[str, Marked], notes: list[str]) -> dict[str, Any]:
    """The type of the output: `out_dtype`, else `dtype`."""
    found = {}
    for key in ("dtype", "out_dtype"):
        if key in entries:
            name = entries[key].text().removeprefix("torch.")
            if name not in DTYPES:
                raise entries[key].unknown(f"type as {name!r}", name, DTYPES)
            found[key] = name
    if found.get("dtype") != "float32":
        theirs = found.get("dtype", "the models' own type")
        notes.append(
            "sums are taken in float32 and rounded once, to the output's type; "
            f"mergekit computes in {theirs}, or rounds models to it first"
        )
    return {"dtype": found.get("out_dtype", found.get("dtype"))}


def _tokenizer(entries: Mapping[str, Marked], notes: list[str]) -> dict[str, Any]:
    """Nothing; only sources that can mean what is done here pass."""
    sources = [entries[key] for key in ("tokenizer_source",) if key in entries]
    if "tokenizer" in entries:
        for key, entry in given(entries["tokenizer"]).items():
            if key != "source":
                raise entry.wrong("mergekit has this, centermerge has not")
            sources.append(entry)
    for source in sources:
        if source.text() not in ("base", "union"):
            raise source.wrong(f"{source.text()!r}: only base and union are read here")
    if sources:
        notes.append(
            "no vocabulary is built: embeddings are merged row by row, so all models "
            "need the same vocabulary"
        )
    return {}
