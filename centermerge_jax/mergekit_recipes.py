"""Recipes that were written for mergekit, read as ours where they mean the same.

Methods `linear`, `task_arithmetic` and `ties` over whole `models`. What our fields
cannot say exactly is an error with its line; where the tools differ in what they do
with the same recipe, a note says so. After the documentation and behaviour of mergekit
0.1.4.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from centermerge_jax.mergekit_parameters import Case, cases, given, scales
from centermerge_jax.recipe import DTYPES, Override, Recipe
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
_IDLE = ("density", "int8_mask", "rescale")
"""Parameters that mergekit takes for task_arithmetic, where they do nothing."""

_OUTSIDE_LAYERS = r"(?!(?:.*[/.])?[0-9]+(?:[/.].*)?$).*"
"""Matches names without a number between `/` or `.`."""


@dataclass(frozen=True)
class _Model:
    """An entry of `models`."""

    path: str
    entry: Marked
    parameters: Mapping[str, Marked]

    def settings(self, key: str, shared: Mapping[str, Marked]) -> list[Marked]:
        """A parameter of this model and that of all, those of them that are given."""
        found = [part[key] for part in (self.parameters, shared) if key in part]
        if not found:
            raise self.entry.wrong(f"{self.path!r} needs a parameter {key!r}")
        return found


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
    entries = document.entries()
    method = entries["merge_method"]
    if method.text() not in _METHODS:
        raise method.wrong(
            f"{method.text()!r} is not among mergekit's methods that are read here "
            f"({', '.join(_METHODS)}); others take a recipe of centermerge's own form"
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
    for read in (_METHODS[method.text()], _dtype, _tokenizer):
        with problems.gathered():
            fields |= read(document, entries, notes)
    problems.check()
    notes.append(
        "a tensor that a model lacks, or that has another shape, is an error here; "
        "mergekit skips or crops some of them"
    )
    return Recipe(**fields), notes


def _linear(
    document: Marked, entries: Mapping[str, Marked], notes: list[str]
) -> dict[str, Any]:
    """The fields of a weighted average."""
    del notes
    models, shared = _models(document, entries), _parameters(entries)
    problems = Problems()
    _check_parameters(problems, models, shared, general=("normalize",), own=("weight",))
    base = entries.get("base_model")
    with problems.gathered():
        if base is not None and _path(base) not in [model.path for model in models]:
            raise base.wrong(
                "mergekit's linear takes the base as one more model: list it under "
                "models, or leave it out"
            )
    with problems.gathered():
        if not _flag(shared, "normalize", default=True):
            raise shared["normalize"].wrong(
                "false: a weight average always divides by the sum of the weights"
            )
    experts = _named(models)
    weights = {}
    for name, model in experts.items():
        with problems.gathered():
            weight = model.settings("weight", shared)[0]
            if isinstance(weight.value, list):
                raise weight.wrong(
                    "a weight of linear that differs from tensor to tensor cannot be "
                    "said here: give one number"
                )
            weights[name] = float(weight.number())
    problems.check()
    return {
        "method": "weight_average",
        "experts": tuple(f"{name}={model.path}" for name, model in experts.items()),
        "weights": weights,
    }


def _task_arithmetic(
    document: Marked, entries: Mapping[str, Marked], notes: list[str]
) -> dict[str, Any]:
    """The fields of task arithmetic with a scale for each task."""
    base, experts = _around_base(document, entries, notes)
    shared = _parameters(entries)
    problems = Problems()
    _check_parameters(
        problems,
        list(experts.values()),
        shared,
        general=("normalize", "lambda", *_IDLE),
        own=("weight", *_IDLE),
    )
    normalize = False
    with problems.gathered():
        normalize = _flag(shared, "normalize", default=False)
    weights, settings = {}, []
    for name, model in experts.items():
        with problems.gathered():
            settings += model.settings("weight", shared)
            weights[name] = cases(*model.settings("weight", shared))
    factor = []
    with problems.gathered():
        factor = cases(shared["lambda"]) if "lambda" in shared else []
    problems.check()
    # An error about all of them is shown where the first list stands.
    lists = [entry for entry in settings if isinstance(entry.value, list)]
    found = scales(
        (lists or settings)[0],
        weights,
        [*factor, Case(None, 1.0)],
        normalize=normalize,
    )
    parameters = [shared, *(model.parameters for model in experts.values())]
    if idle := sorted({key for part in parameters for key in part if key in _IDLE}):
        notes.append(f"{', '.join(idle)}: no effect, as on mergekit's task_arithmetic")
    return {
        "method": "task_arithmetic",
        "experts": tuple(f"{name}={model.path}" for name, model in experts.items()),
        "base": base,
        "scale": found[None],
        "overrides": _overrides(found, notes),
    }


def _ties(
    document: Marked, entries: Mapping[str, Marked], notes: list[str]
) -> dict[str, Any]:
    """The fields of TIES, for models of one weight and one density."""
    base, experts = _around_base(document, entries, notes)
    shared, models = _parameters(entries), list(experts.values())
    problems = Problems()
    _check_parameters(
        problems,
        models,
        shared,
        general=("normalize", "lambda", "int8_mask", "weight", "density"),
        own=("weight", "density"),
    )
    with problems.gathered():
        if not _flag(shared, "normalize", default=True):
            raise shared["normalize"].wrong(
                "false: ties takes the mean of the task vectors that agree, not the sum"
            )
    weight = density = scale = 1.0
    with problems.gathered():
        weight = _one_number("weight", models, shared)
    with problems.gathered():
        density = _one_number("density", models, shared, default=1.0)
    with problems.gathered():
        scale = float(shared["lambda"].number()) if "lambda" in shared else 1.0
    with problems.gathered():
        if weight <= 0:
            raise document.wrong("weight: ties needs a positive one; it then cancels")
    problems.check()
    if density < 1:
        notes.append(
            "density is of the whole task vector here, as in the paper of TIES; "
            "mergekit trims each tensor by itself"
        )
    notes.append(
        "where task vectors cancel exactly the sign of the majority is elected, as by "
        "the authors of TIES; mergekit takes the positive one"
    )
    return {
        "method": "ties",
        "experts": tuple(f"{name}={model.path}" for name, model in experts.items()),
        "base": base,
        "density": density,
        "scale": scale,
    }


def _one_number(
    key: str,
    models: Sequence[_Model],
    shared: Mapping[str, Marked],
    *,
    default: float | None = None,
) -> float:
    """The number that a parameter is for all models."""
    numbers: set[float] = set()
    last: Marked | None = None
    for model in models:
        given_here = key in model.parameters or key in shared
        if not given_here and default is not None:
            numbers.add(default)
            continue
        last = model.settings(key, shared)[0]
        numbers.add(float(last.number()))
        if len(numbers) > 1:
            raise last.wrong(f"{key} has to be one number for all models here")
    return numbers.pop()


def _around_base(
    document: Marked, entries: Mapping[str, Marked], notes: list[str]
) -> tuple[str, dict[str, _Model]]:
    """The base of a method that needs one, and the other models."""
    if "base_model" not in entries:
        needs = entries["merge_method"].text()
        raise document.wrong(f"key 'base_model': missing; {needs} needs it")
    base = _path(entries["base_model"])
    models = _models(document, entries)
    experts = _named([model for model in models if model.path != base])
    if not experts:
        raise entries["models"].wrong("lists the base alone: there is nothing to add")
    if any(model.path == base and model.parameters for model in models):
        notes.append("parameters of the base have no effect, as in mergekit")
    notes.append(
        "configuration and tokenizer files are those of the first expert by name; "
        "mergekit takes those of base_model"
    )
    return base, experts


def _overrides(
    found: Mapping[str | None, Any], notes: list[str]
) -> tuple[Override, ...]:
    overrides = [
        Override(f".*{re.escape(condition)}.*", scale=scale)
        for condition, scale in found.items()
        if condition is not None
    ]
    if overrides:
        notes.append("a filter that matches no tensor is an error here")
    if isinstance(found[None], tuple):
        notes.append(
            "tensors outside the layers (embeddings, last norm, head) take the first "
            "of the values over the layers, as in mergekit 0.1.4; earlier versions "
            "gave the last to those behind the layers"
        )
        overrides.append(Override(_OUTSIDE_LAYERS, scale=found[None][0]))
    return tuple(overrides)


def _dtype(
    document: Marked, entries: Mapping[str, Marked], notes: list[str]
) -> dict[str, Any]:
    """The type of the output: `out_dtype`, else `dtype`."""
    del document
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
            f"mergekit computes in {theirs}"
        )
    return {"dtype": found.get("out_dtype", found.get("dtype"))}


def _tokenizer(
    document: Marked, entries: Mapping[str, Marked], notes: list[str]
) -> dict[str, Any]:
    """Nothing; only sources that can mean what is done here pass."""
    del document
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


def _models(document: Marked, entries: Mapping[str, Marked]) -> list[_Model]:
    if "models" not in entries:
        raise document.wrong("key 'models': missing; which models are merged?")
    problems = Problems()
    models: list[_Model] = []
    for item in entries["models"].items():
        with problems.gathered():
            keys = given(item)
            for key, entry in keys.items():
                if key not in ("model", "parameters"):
                    raise entry.unknown("key", key, ("model", "parameters"))
            if "model" not in keys:
                raise item.wrong("needs a 'model' in each of its entries")
            path = _path(keys["model"])
            if any(model.path == path for model in models):
                raise keys["model"].wrong(f"{path!r} is listed twice")
            models.append(_Model(path, keys["model"], _parameters(keys)))
    problems.check()
    return models


def _path(entry: Marked) -> str:
    path = entry.text()
    if "+" in path and not Path(path).exists():
        raise entry.wrong(f"{path!r}: adapters (MODEL+ADAPTER) are not read here")
    return path


def _parameters(entries: Mapping[str, Marked]) -> dict[str, Marked]:
    """What stands under `parameters`; an empty mapping is as good as none."""
    entry = entries.get("parameters")
    return given(entry) if entry is not None and entry.value != {} else {}


def _check_parameters(
    problems: Problems,
    models: Sequence[_Model],
    shared: Mapping[str, Marked],
    *,
    general: Sequence[str],
    own: Sequence[str],
) -> None:
    """Refuses parameters that mergekit would ignore without a word."""
    known = list(dict.fromkeys((*general, *own)))
    for key, entry in shared.items():
        with problems.gathered():
            if key not in known:
                raise entry.unknown("parameter", key, known)
    for model in models:
        for key, entry in model.parameters.items():
            with problems.gathered():
                if key in known and key not in own:
                    raise entry.wrong(
                        "mergekit ignores this for a single model: give it under the "
                        "parameters of the whole recipe"
                    )
                if key not in own:
                    raise entry.unknown("parameter", key, own)


def _flag(shared: Mapping[str, Marked], key: str, *, default: bool) -> bool:
    if key not in shared:
        return default
    value = shared[key].value
    if not isinstance(value, bool):
        raise shared[key].wrong("is true or false")
    return value


def _named(models: Sequence[_Model]) -> dict[str, _Model]:
    """The models by the last part of their paths, with a number where it is taken."""
    named: dict[str, _Model] = {}
    for model in models:
        last = PurePosixPath(model.path.partition("@")[0]).name
        stem = last.removesuffix(".safetensors").replace("=", "-") or "model"
        name, number = stem, 1
        while name in named or name == "base":
            number += 1
            name = f"{stem}-{number}"
        named[name] = model
    return named


_Read = Callable[[Marked, Mapping[str, Marked], list[str]], dict[str, Any]]

_METHODS: Mapping[str, _Read] = {
    "linear": _linear,
    "task_arithmetic": _task_arithmetic,
    "ties": _ties,
}
