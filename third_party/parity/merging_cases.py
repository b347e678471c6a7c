"""What a comparison of merging methods consists of, whatever the peer."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import goldens
import numpy as np

sys.path.insert(0, str(goldens.FOLDER.parent))

from golden import merging

Model = dict[str, np.ndarray]

BLOCK = r"embed_tokens.*|layers\.0\..*"
"""One of the two blocks: enough for methods that see one leaf at a time."""
_WHOLE = ("ties", "fisher", "emr")


@dataclass(frozen=True)
class Given:
    """The models of a case, as float64, and what else it may be told.

    Attributes:
      experts: By task.
      base: What they were fine-tuned from.
      fishers: Diagonals of the Fisher information by task; None if the case has none.
      grams: Second moments of inputs by task; None if the case has none.
    """

    experts: dict[str, Model]
    base: Model
    fishers: dict[str, Model] | None = None
    grams: dict[str, Model] | None = None


@dataclass(frozen=True)
class Case:
    """One method with its hyperparameters, as the peer has it and as we do.

    Attributes:
      method: Its name here.
      hyperparameters: What it is told here.
      call: What of the peer is called.
      told: What that is told.
      run: Calls it.
      models: Arguments of `merging.models`.
      data: `fishers` with the size of them, or `grams`.
      masks: Whether random numbers are those of `merging.uniforms`, on both sides.
      leafwise: Whether the method here is given one leaf at a time, since the peer
        sees no more.
      differs: Why the results are not the same; None where they are.
    """

    method: str
    hyperparameters: Mapping[str, Any]
    call: str
    told: Mapping[str, Any]
    run: Callable[[Given, Mapping[str, Any]], Mapping[str, Any]]
    models: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, float | None] = field(default_factory=dict)
    masks: bool = False
    leafwise: bool = False
    differs: str | None = None

    def __post_init__(self) -> None:
        """Cuts the models down where that loses nothing."""
        leaves = {} if self.method in _WHOLE else {"leaves": BLOCK}
        object.__setattr__(self, "models", leaves | dict(self.models))

    def facts(self) -> dict[str, Any]:
        """What the test has to know of it."""
        found = asdict(self) | {"run": None}
        return {name: value for name, value in found.items() if value}

    def given(self) -> Given:
        """Its models."""
        experts, base = merging.models(**self.models)
        tasks = "".join(experts)
        fishers = grams = None
        if "fishers" in self.data:
            fishers = merging.fishers(base, tasks=tasks, size=self.data["fishers"])
        if "grams" in self.data:
            grams = merging.grams(base, tasks=tasks)
        return Given(
            *(merging.wide(x) for x in (experts, base)),
            fishers and merging.wide(fishers),
            grams and merging.wide(grams),
        )

    def result(self) -> np.ndarray:
        """How far the peer's result is from the base."""
        given = self.given()
        merged = self.run(given, self.told)
        arrays = {name: np.asarray(merged[name]) for name in given.base}
        return merging.moved(arrays, given.base)


def inputs() -> Model:
    """The models that are merged, leaf after leaf."""
    experts, base = merging.models()
    arrays = {f"input/{task}": merging.vector(tree) for task, tree in experts.items()}
    return {"input/base": merging.vector(base), **arrays}
