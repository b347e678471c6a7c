"""What a search found: the chosen setting tested, and a table."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from centermerge_jax.data.cache import Repeatable
from centermerge_jax.data.specs import TaskSpec
from centermerge_jax.evaluation_report import summarise
from centermerge_jax.methods import METHODS
from centermerge_jax.progress import Report, silent
from centermerge_jax.sweep_checkpoints import Candidates
from centermerge_jax.sweeping import Point, Setting, describe
from centermerge_jax.task_evaluation import Features, evaluate_tasks


def results_of_setting(
    candidates: Candidates,
    method: str,
    setting: Setting,
    features: Mapping[int, Features],
    tasks: Sequence[TaskSpec],
    task_heads: Mapping[str, Any],
    inputs: Mapping[str, Repeatable],
    *,
    progress: Report = silent,
) -> dict[str, Any]:
    """Results of one setting on test examples, as JSON values.

    Args:
      candidates: What is merged.
      method: Name of the method.
      setting: Its hyperparameters.
      features: Of an `Encoder`.
      tasks: The tasks.
      task_heads: Head of each.
      inputs: Batches of each.
      progress: Told which task is at work.
    """
    known = METHODS[method]
    base = (candidates.base,) if known.needs_base else ()
    experts, told_by = candidates.experts, dict(setting)
    if members := told_by.pop("members", None):  # of a soup
        experts = {name: experts[name] for name in members}

    def merged(**told: Any) -> Any:
        arguments = {**candidates.fixed, **told_by, **told}
        return candidates.params(known.function(experts, *base, **arguments))

    alone = known.needs_task
    results: dict[str, Any] = {}
    for some in [[task] for task in tasks] if alone else [list(tasks)]:
        params = merged(**({"task": some[0].name} if alone else {}))
        results |= evaluate_tasks(
            features, params, some, task_heads, inputs, progress=progress
        )
    summary = summarise(results)
    return {
        "mean": summary.score,
        "mean_interval": summary.interval,
        "mean_half_width": summary.half_width,
        "accuracy": {name: r.answers.score for name, r in results.items()},
        "interval": {name: r.interval for name, r in results.items()},
        "items": {name: len(r.answers.labels) for name, r in results.items()},
    }


def table(
    points: Sequence[Point], chosen: Point, tested: Mapping[str, Any] | None
) -> Table:
    """The points for a terminal, in percent, best first; and what the test says."""
    names = list(dict.fromkeys(name for point in points for name in point.setting))
    tasks = list(chosen.scores)
    shown = Table(box=None, padding=(0, 0, 0, 2))
    for head in (*names, "mean", *tasks, "merge s", "evaluate s"):
        shown.add_column(head, justify="right", no_wrap=True)
    for point in sorted(points, key=lambda point: -point.mean):
        shown.add_row(
            *(str(point.setting.get(name, "")) for name in names),
            _percent(point.mean),
            *(_percent(point.scores[task]) for task in tasks),
            f"{point.merge_seconds:.2f}",
            f"{point.evaluate_seconds:.2f}",
        )
    best = describe(chosen.setting) or "no hyperparameter"
    shown.caption = f"chosen: {best}"
    if tested is not None:
        shown.add_section()
        low, high = tested["mean_interval"]
        shown.add_row(
            *["test", *[""] * (len(names) - 1)][: len(names)],
            _percent(tested["mean"]),
            *(_percent(tested["accuracy"][task]) for task in tasks),
        )
        shown.caption += (
            f"; test mean {_percent(tested['mean'])} (95 %: {_percent(low)} to "
            f"{_percent(high)})"
        )
    return shown


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
