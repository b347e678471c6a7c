"""The methods as text and as data, from their registry: the help on methods."""

import inspect
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

from centermerge_jax.methods import Method


def overview(methods: Mapping[str, Method]) -> str:
    """A line for each method: its name, what it needs, and what it does.

    Example:
      >>> from centermerge_jax.methods import METHODS
      >>> print(overview({"ties": METHODS["ties"]}))
      method  needs  what it does
      ties    base   Trims task vectors, elects a sign for each number, ...
    """
    rows = [("method", "needs", "what it does")]
    rows += [(name, ", ".join(needs(m)), m.summary) for name, m in methods.items()]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "\n".join(f"{a:{widths[0]}}  {b:{widths[1]}}  {c}" for a, b, c in rows)


def needs(method: Method) -> list[str]:
    """What a method needs beside the experts.

    Example:
      >>> from centermerge_jax.methods import METHODS
      >>> needs(METHODS["emr"]), needs(METHODS["regmean"])
      (['base', 'task'], ['gram statistics'])
    """
    found = ["base"] * method.needs_base + ["task"] * method.needs_task
    if method.data:
        found.append(f"{method.data} statistics")
    if method.ordered:
        found.append("order")
    return found


def one_method(name: str, method: Method) -> str:
    """What a method does and takes."""
    doc = inspect.getdoc(method.function) or ""
    flags = ("rank", "scale", "rest", "weights", "density")
    lines = []
    for key, parameter in method.own.items():
        flag = f"--{key}" if key in flags else f"--set {key}="
        default = "needed" if parameter.default is parameter.empty else "optional"
        if default == "optional" and parameter.default is not None:
            default = f"{parameter.default} by default"
        lines.append(f"  {flag:24} {kind(parameter.annotation):28} {default}")
    if method.data:
        lines.append(f"  {'--statistics':24} {method.data:28} needed, for each task")
    title = f"{name}   needs: {', '.join(needs(method)) or 'nothing but the experts'}"
    return f"{title}\n\n{doc}\n\nOn the command line:\n" + "\n".join(lines)


def kind(annotation: Any) -> str:
    """A type, as users are told of it.

    Example:
      >>> kind(float), kind(Literal["linear", "log"]), kind(int | None)
      ('number', 'linear or log', 'whole number')
    """
    if get_origin(annotation) is Literal:
        return " or ".join(get_args(annotation))
    kinds = get_args(annotation) or (annotation,)
    if str in kinds:
        return "name"
    if int in kinds and float in kinds:
        return "share (0.08) or number (16)"
    return "whole number" if int in kinds else "number"


def as_json(methods: Mapping[str, Method]) -> dict[str, Any]:
    """The methods as plain data, for machines."""
    return {
        name: {
            "summary": method.summary,
            "needs": needs(method),
            "scope": method.scope,
            "reference": method.reference,
            "hyperparameters": {
                key: {
                    "type": kind(parameter.annotation),
                    "needed": parameter.default is parameter.empty,
                    "default": None
                    if parameter.default is parameter.empty
                    else parameter.default,
                    "grid": list(method.grid.get(key, ())),
                }
                for key, parameter in method.own.items()
            },
        }
        for name, method in methods.items()
    }


def page(methods: Mapping[str, Method]) -> str:
    """All methods as a page of documentation, in Markdown."""
    head = ("method", "needs", "sees", "hyperparameters", "holds", "from")
    lines = [f"| {' | '.join(head)} |", "|---|---|---|---|---|---|"]
    for name, method in methods.items():
        told = []
        for key, parameter in method.own.items():
            default = parameter.default
            given = "" if default in (parameter.empty, None) else f" = {default}"
            grid = ", ".join(map(str, method.grid.get(key, ())))
            told.append(f"`{key}{given}`" + (f" ({grid})" if grid else ""))
        cells = (
            f"`{name}`<br>{method.summary}",
            ", ".join(needs(method)),
            method.scope,
            "<br>".join(told),
            ", ".join(method.laws),
            method.reference,
        )
        escaped = [cell.replace("|", "\\|") for cell in cells]
        lines.append(f"| {' | '.join(escaped)} |")
    return _INTRODUCTION + "\n".join(lines) + "\n"


_INTRODUCTION = """\
# All methods

Made from the registry by `python -m centermerge_jax.method_pages`; a test keeps it so.
`centermerge methods NAME` shows the formula of one and how to write its settings;
`cm.methods.NAME` is the function.

*Needs* is what a method takes beside the experts: the pretrained model (`--base`), the
name of the task whose model it makes (`--set task=...`), statistics of the experts'
data (`--statistics`, from `centermerge statistics`). *Sees* is how much of a model it
has to have at once: single numbers, matrices, leaves, or the whole tree (then the merge
holds everything in memory). A method that sees leaves counts layers that are stacked in
one leaf as one; one that sees matrices does not. *Order* is needed where the result
depends on which expert is first: they are in the order of their names. Values in
brackets are those that `experiments/all_methods.py` tries. *Holds* names the laws that
a test checks of it:

- order: the order of the experts does not matter;
- translation: what is added to all experts and the base is added to the result;
- scale_zero: with scale 0 it is its origin, the base or the mean;
- one_expert: one expert alone is returned; equal: equal experts are returned;
- linear: task vectors twice as long change the origin twice as much.

Adding, negating and analogies of tasks are `task_arithmetic` with a scale for each
task: `scale={"a": 1, "b": 1}`, `{"a": -1}`, `{"c": 1, "b": 1, "a": -1}`. CART around
another origin, such as another merge, is `truncated_task_arithmetic` with that as base
and `rest="base"`. Merging parts of a network only, and keeping the others of one model,
is `--keep REGEX --keep-from NAME` for any method.

"""


if __name__ == "__main__":
    from centermerge_jax.methods import METHODS

    print(page(METHODS), end="")
