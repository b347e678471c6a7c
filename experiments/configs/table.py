"""One configuration for each published cell that merging alone gives.

    vit_b32_8_cart = CART on ViT-B/32 and eight tasks

and so on for three models, three numbers of tasks and four methods. What a run needs
is data: the experts of a model and a suite, a method, its hyperparameters as published
or None where they are not, and the number that should come out.

    python -m experiments.configs.table    # all configurations
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from centermerge_jax.pipes import quiet_pipe
from experiments.configs import published

Model = Literal["ViT-B-32", "ViT-B-16", "ViT-L-14"]
Suite = Literal["clip8", "clip14", "clip20"]
Method = Literal["cart", "weight_average", "task_arithmetic", "ties"]

MODELS: Mapping[Model, str] = {
    "ViT-B-32": "vit_b32",
    "ViT-B-16": "vit_b16",
    "ViT-L-14": "vit_l14",
}
"""Architectures, and how names of configurations begin."""

TASKS: Mapping[Suite, int] = {"clip8": 8, "clip14": 14, "clip20": 20}
"""Suites, and how many tasks each has."""

GRIDS: Mapping[Method, Mapping[str, tuple[float, ...]]] = {
    # Ranks of published settings; scales as TSV-M, Iso-C and DC-Merge are searched.
    "cart": {
        "rank": (0.04, 0.08, 0.12, 0.16, 0.32),
        "scale": tuple(i / 10 for i in range(1, 31)),
    },
    "weight_average": {},
    # As nik-dim/tall_masks, src/eval/eval.py.
    "task_arithmetic": {"scale": tuple(i / 10 for i in range(1, 11))},
    # Yadav et al. 2023, arXiv:2306.01708, keep 20 %; scales as published searches.
    "ties": {"density": (0.2,), "scale": tuple(i / 10 for i in range(1, 16))},
}
"""Hyperparameters of each method, and what is tried on validation images where their
value is not known."""

# Which table's number a configuration is held to: the authors' own before others'.
_PREFERRED = ("cart-readme", "esm-table", "ace-notes")


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is merged, how, and what was published for it.

    Attributes:
      name: Key of `CONFIGS`.
      model: Architecture, as open_clip spells it.
      suite: Key of `centermerge_jax.data.registry.SUITES`: its tasks are merged.
      method: Key of `centermerge_jax.methods.registry.METHODS`.
      hyperparameters: Those of the method; None where nobody published them.
      views: Which leaves are matrices: fused q, k and v, as in the paper's code.
      published: Mean test accuracy in per cent.
      source: Where it is from, a key of `published.SOURCES`.
      family: Checkpoints it is over, a key of `published.FAMILIES`; None if not known.
      settings_source: Where the hyperparameters are from, if they were published.
    """

    name: str
    model: Model
    suite: Suite
    method: Method
    hyperparameters: Mapping[str, float | None]
    views: Literal["fused"] = "fused"
    published: float | None
    source: str | None
    family: str | None
    settings_source: str | None = None

    @property
    def unknown(self) -> tuple[str, ...]:
        """Hyperparameters that have to be searched for on validation images."""
        return tuple(k for k, value in self.hyperparameters.items() if value is None)

    @property
    def grid(self) -> Mapping[str, tuple[float, ...]]:
        """What to try for those that are unknown."""
        return {k: GRIDS[self.method][k] for k in self.unknown}

    @property
    def command(self) -> str:
        """What runs it."""
        return f"python -m experiments.run {self.name} --checkpoints DIR --data-dir DIR"

    def __str__(self) -> str:
        """The command, what is merged, and the number that should come out."""
        known = ", ".join(
            f"{k} {'unknown' if v is None else f'{v:g}'}"
            for k, v in self.hyperparameters.items()
        )
        lines = [self.command, f"  {self.method} of {self.model}, {self.suite}"]
        if known:
            lines[-1] += f": {known}"
        if self.settings_source:
            lines[-1] += f" ({published.SOURCES[self.settings_source].where})"
        if self.published is None or self.source is None:
            return "\n".join([*lines, "  nothing published"])
        source = published.SOURCES[self.source]
        family = self.family or "unknown"
        expected = f"expected: {self.published:g} % on {family} checkpoints"
        return "\n".join([*lines, f"  {expected} ({source.where}; {source.trust})"])


def _config(model: Model, suite: Suite, method: Method) -> Config:
    where = {"model": model, "suite": suite, "method": method}
    found = {cell.source: cell for cell in published.cells(**where, metric="accuracy")}
    cell = next((found[source] for source in _PREFERRED if source in found), None)
    hyperparameters: dict[str, float | None] = dict.fromkeys(GRIDS[method])
    setting = None
    for known in published.SETTINGS:
        if all(getattr(known, field) == value for field, value in where.items()):
            setting = known
            hyperparameters = {"rank": known.rank, "scale": known.scale}
    return Config(
        name=f"{MODELS[model]}_{TASKS[suite]}_{method}",
        model=model,
        suite=suite,
        method=method,
        hyperparameters=hyperparameters,
        published=cell.value if cell else None,
        source=cell.source if cell else None,
        family=cell.family if cell else None,
        settings_source=setting.source if setting else None,
    )


CONFIGS: Mapping[str, Config] = {
    config.name: config
    for config in (
        _config(model, suite, method)
        for model in MODELS
        for suite in TASKS
        for method in GRIDS
    )
}
"""All configurations by name."""


if __name__ == "__main__":
    with quiet_pipe():
        print("\n".join(map(str, CONFIGS.values())))
