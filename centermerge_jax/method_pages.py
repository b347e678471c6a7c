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
    if method.sequential:
        found.append("sequence")
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
