"""The models that a recipe for mergekit lists, and what they are called here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from centermerge_jax.mergekit.parameters import given
from centermerge_jax.yaml_files import Marked, Problems


@dataclass(frozen=True)
class Model:
    """An entry of `models`."""

    path: str
    entry: Marked
    parameters: Mapping[str, Marked]


def read_models(document: Marked, entries: Mapping[str, Marked]) -> list[Model]:
    """The models that a recipe lists.

    Raises:
      ParameterError: It lists none, or one twice, or in another form.
    """
    if "models" not in entries:
        raise document.wrong("key 'models': missing; which models are merged?")
    problems = Problems()
    models: list[Model] = []
    for item in entries["models"].items():
        with problems.gathered():
            keys = given(item)
            for key, entry in keys.items():
                if key not in ("model", "parameters"):
                    raise entry.unknown("key", key, ("model", "parameters"))
            if "model" not in keys:
                raise item.wrong("needs a 'model' in each of its entries")
            path = read_path(keys["model"])
            if any(model.path == path for model in models):
                raise keys["model"].wrong(f"{path!r} is listed twice")
            models.append(Model(path, keys["model"], read_parameters(keys)))
    problems.check()
    return models


def read_path(entry: Marked) -> str:
    """Where a model lies.

    Raises:
      ParameterError: It is an adapter on a model.
    """
    path = entry.text()
    if "+" in path and not Path(path).exists():
        raise entry.wrong(f"{path!r}: adapters (MODEL+ADAPTER) are not read here")
    return path


def read_parameters(entries: Mapping[str, Marked]) -> dict[str, Marked]:
    """What stands under `parameters`; an empty mapping is as good as none."""
    entry = entries.get("parameters")
    return given(entry) if entry is not None and entry.value != {} else {}


def by_name(models: Sequence[Model]) -> dict[str, Model]:
    """The models by the last part of their paths, with a number where it is taken."""
    named: dict[str, Model] = {}
    for model in models:
        last = PurePosixPath(model.path.partition("@")[0]).name
        stem = last.removesuffix(".safetensors").replace("=", "-") or "model"
        name, number = stem, 1
        while name in named or name == "base":
            number += 1
            name = f"{stem}-{number}"
        named[name] = model
    return named
