"""What a recipe for mergekit tells its method: models, and parameters of each or all.

Answers are as good as the recipe: what is wrong is gathered, with its line, and a
default stands in until `check` raises it.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from centermerge_jax.errors import ParameterError
from centermerge_jax.mergekit.models import (
    Model,
    by_name,
    read_models,
    read_parameters,
    read_path,
)
from centermerge_jax.mergekit.parameters import Case, cases, given, scales
from centermerge_jax.recipe import Override
from centermerge_jax.yaml_files import Marked, Problems

_OUTSIDE_LAYERS = r"(?!(?:.*[/.])?[0-9]+(?:[/.].*)?$).*"
"""Matches names without a number between `/` or `.`."""


@dataclass(frozen=True)
class Told:
    """A recipe for mergekit, as the reader of its method sees it.

    Attributes:
      document: The whole recipe.
      entries: Its keys.
      method: What the method is called there.
      models: The models that it lists.
      shared: Parameters of the whole recipe.
      notes: What differs from mergekit, to be said to the user.
      problems: What is wrong, gathered.
    """

    document: Marked
    entries: Mapping[str, Marked]
    method: str
    models: Sequence[Model]
    shared: Mapping[str, Marked]
    notes: list[str] = field(default_factory=list)
    problems: Problems = field(default_factory=Problems)

    @classmethod
    def by(cls, document: Marked, notes: list[str]) -> "Told":
        """What a recipe tells.

        Raises:
          ParameterError: Its models or parameters cannot be read.
        """
        entries = given(document)
        models, shared = read_models(document, entries), read_parameters(entries)
        method = entries["merge_method"].text()
        return cls(document, entries, method, models, shared, notes)

    def takes(self, *, general: Sequence[str] = (), own: Sequence[str] = ()) -> None:
        """Refuses parameters that mergekit would ignore without a word.

        Args:
          general: Those that it takes for the whole recipe.
          own: Those that it takes for a model as well.
        """
        known = list(dict.fromkeys((*general, *own)))
        for key, entry in self.shared.items():
            with self.problems.gathered():
                if key not in known:
                    raise self._unknown(entry, key, known)
        for model in self.models:
            if model.path == self.base:
                continue
            for key, entry in model.parameters.items():
                with self.problems.gathered():
                    if key in known and key not in own:
                        raise entry.wrong(
                            "mergekit ignores this for a single model: give it under "
                            "the parameters of the whole recipe"
                        )
                    if key not in own:
                        raise self._unknown(entry, key, own)

    @property
    def base(self) -> str | None:
        """The path of the base, if there is one."""
        return (
            read_path(self.entries["base_model"])
            if "base_model" in self.entries
            else None
        )

    def all(self) -> dict[str, Model]:
        """All models that are listed, by name, for a method to which they are alike."""
        if self.base not in (None, *(model.path for model in self.models)):
            with self.problems.gathered():
                raise self.entries["base_model"].wrong(
                    f"mergekit's {self.method} takes the base as one more model: list "
                    "it under models, or leave it out"
                )
        return by_name(self.models)

    def around_base(self) -> tuple[str, dict[str, Model]]:
        """The base of a method that needs one, and the other models by name.

        Raises:
          ParameterError: There is no base, or nothing else.
        """
        base = self.base
        if base is None:
            raise self.document.wrong(
                f"key 'base_model': missing; {self.method} needs it"
            )
        experts = by_name([model for model in self.models if model.path != base])
        if not experts:
            raise self.entries["models"].wrong(
                "lists the base alone: there is nothing to add"
            )
        if any(model.path == base and model.parameters for model in self.models):
            self.notes.append("parameters of the base have no effect, as in mergekit")
        self.notes.append(
            "configuration and tokenizer files are those of the first expert by name; "
            "mergekit takes those of base_model"
        )
        return base, experts

    def with_base(self) -> dict[str, Model]:
        """All models by name, and the base as one of them."""
        listed = {model.path: model for model in self.models}
        if self.base is not None:
            listed.setdefault(
                self.base, Model(self.base, self.entries["base_model"], {})
            )
        return by_name([*listed.values()])

    def flag(self, key: str, *, default: bool) -> bool:
        """What is true or false of the whole recipe."""
        if key not in self.shared:
            return default
        with self.problems.gathered():
            value = self.shared[key].value
            if not isinstance(value, bool):
                raise self.shared[key].wrong("is true or false")
            return value
        return default

    def number(self, key: str, *, default: float) -> float:
        """A number of the whole recipe."""
        if key in self.shared:
            with self.problems.gathered():
                return _number(key, self.shared[key])
        return default

    def numbers(
        self, key: str, models: Mapping[str, Model], *, default: float | None = None
    ) -> dict[str, float]:
        """A number of each model, which may be that of the whole recipe."""
        known = self._known(key, models, default)
        return {name: known.get(name, 1.0) for name in models}

    def common(
        self, key: str, models: Mapping[str, Model], *, default: float | None = None
    ) -> float:
        """A number of each model, which has to be the same for all."""
        known = self._known(key, models, default)
        first = next(iter(known.values()), 1.0)
        for name, number in known.items():
            if number != first:
                with self.problems.gathered():
                    settings = self._settings(models[name], key)
                    where = settings[0] if settings else models[name].entry
                    raise where.wrong(f"{key} has to be one number for all models here")
                break
        return first

    def _known(
        self, key: str, models: Mapping[str, Model], default: float | None
    ) -> dict[str, float]:
        """The numbers of those models where nothing is wrong with it."""
        found = {}
        for name, model in models.items():
            with self.problems.gathered():
                if default is not None and not self._settings(model, key):
                    found[name] = default
                else:
                    found[name] = _number(key, self._first(model, key))
        return found

    def share(self, key: str, value: float) -> float:
        """The value, if it is above 0 and at most 1."""
        if not 0 < value <= 1:
            self.refuse(key, f"{value} is not above 0 and at most 1")
            return 1.0
        return value

    def refuse(self, key: str, why: str) -> None:
        """Says that a parameter cannot be as it is, where it stands first."""
        parts = (*self._parts(), self.entries)
        with self.problems.gathered():
            for part in parts:
                if key in part:
                    raise part[key].wrong(why)
            raise self.entries["merge_method"].wrong(f"{key}: {why}")

    def is_given(self, key: str) -> bool:
        """Whether a parameter stands anywhere."""
        return any(key in part for part in self._parts())

    def idle(self, *keys: str) -> None:
        """Notes parameters that are given and have no effect there either."""
        if found := sorted(key for key in keys if self.is_given(key)):
            self.notes.append(
                f"{', '.join(found)}: no effect, as on mergekit's {self.method}"
            )

    def scales(
        self, experts: Mapping[str, Model], *, normalize: bool, factor: float = 1.0
    ) -> dict[str, Any]:
        """The fields `scale` and `overrides`: `weight * lambda * factor` of each model.

        Raises:
          ParameterError: They cannot be said here.
        """
        weights, settings = {}, []
        for name, model in experts.items():
            with self.problems.gathered():
                self._first(model, "weight")
                settings += self._settings(model, "weight")
                weights[name] = cases(*self._settings(model, "weight"))
        common = []
        if "lambda" in self.shared:
            with self.problems.gathered():
                common = cases(self.shared["lambda"])
        if len(weights) < len(experts):
            return {}  # that some are missing is gathered
        # An error about all of them is shown where the first list stands.
        lists = [entry for entry in settings if isinstance(entry.value, list)]
        found = scales(
            (lists or settings)[0],
            weights,
            [*common, Case(None, 1.0)],
            normalize=normalize,
        )
        found = {key: _times(scale, factor) for key, scale in found.items()}
        return {"scale": found[None], "overrides": self._overrides(found)}

    def _overrides(self, found: Mapping[str | None, Any]) -> tuple[Override, ...]:
        overrides = [
            Override(f".*{re.escape(condition)}.*", scale=scale)
            for condition, scale in found.items()
            if condition is not None
        ]
        if overrides:
            self.notes.append("a filter that matches no tensor is an error here")
        if isinstance(found[None], tuple):
            self.notes.append(
                "tensors outside the layers (embeddings, last norm, head) take the "
                "first of the values over the layers, as in mergekit since 0.1.4; "
                "earlier versions gave the last to those behind the layers"
            )
            overrides.append(Override(_OUTSIDE_LAYERS, scale=found[None][0]))
        return tuple(overrides)

    def _settings(self, model: Model, key: str) -> list[Marked]:
        """A parameter of a model and that of all, those of them that are given."""
        parts = (model.parameters, self.shared)
        return [part[key] for part in parts if key in part]

    def _first(self, model: Model, key: str) -> Marked:
        found = self._settings(model, key)
        if not found:
            raise model.entry.wrong(f"{model.path!r} needs a parameter {key!r}")
        return found[0]

    def _parts(self) -> list[Mapping[str, Marked]]:
        return [*(model.parameters for model in self.models), self.shared]

    def _unknown(self, entry: Marked, key: str, known: Sequence[str]) -> ParameterError:
        if known:
            return entry.unknown("parameter", key, known)
        return entry.wrong(f"mergekit's {self.method} takes no such parameter")


def _number(key: str, entry: Marked) -> float:
    if isinstance(entry.value, list):
        raise entry.wrong(
            f"a {key} that differs from tensor to tensor cannot be said here: give one "
            "number"
        )
    return float(entry.number())


def _times(scale: Any, factor: float) -> Any:
    if isinstance(scale, Mapping):
        return {task: x * factor for task, x in scale.items()}
    return tuple(x * factor for x in scale)
