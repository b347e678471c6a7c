"""The errors a user can cause, and how their messages are written.

When to raise what:

* the caller's *trees* do not fit together (a missing, extra or misshapen leaf, a dtype
  that cannot be merged): `StructureError`;
* a *hyperparameter* is outside its range (rank, scale, a task name): `ParameterError`;
* a *view rule* covers nothing, or a leaf is covered by no rule: `ViewError`;
* a *file* is absent, unreadable, truncated, or would be overwritten: `CheckpointError`;
* *data* could not be fetched or is not what was promised: `DataError`.

A message says the rule, what came, where (checkpoint and leaf), and the cure when it is
known. Everything wrong is listed at once (`listing`), because fixing a checkpoint one
leaf per run is misery. The command line prints any `MergeError` on stderr without a
traceback and exits with status 2; whatever else escapes is a bug and exits with 1.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

_SHOWN = 20


class MergeError(ValueError):
    """Base class: something about the input, not a bug in the library."""


class StructureError(MergeError):
    """Experts (or an expert and the base) are not the same tree."""


class ParameterError(MergeError):
    """A hyperparameter is outside its range or of the wrong kind."""


class ViewError(MergeError):
    """A leaf has no matrix view, or a view rule matches nothing."""


class CheckpointError(MergeError):
    """A checkpoint cannot be read or written."""


class DataError(MergeError):
    """A data set or pretrained model cannot be had, or is not what was promised."""


def listing(header: str, problems: Sequence[str], cure: str = "") -> str:
    """Formats many problems as one message, the first twenty of them in full.

    Args:
      header: What the problems have in common, without its colon. `{n}` becomes their
        number and `{s}` the ending of a plural.
      problems: One line each, beginning with the place (checkpoint, leaf).
      cure: What to do about it, when that is known.

    Returns:
      One line for one problem; else the header, indented problems, and the cure on a
      line of its own.

    Example:
      >>> print(listing("{n} difference{s}", ["a: missing"], "Look at a."))
      1 difference: a: missing. Look at a.
      >>> print(listing("{n} difference{s}", ["a: missing", "b: extra"]))
      2 differences:
        a: missing
        b: extra
    """
    plural = "" if len(problems) == 1 else "s"
    header = header.format(n=len(problems), s=plural)
    if len(problems) == 1:
        return f"{header}: {problems[0]}" + (f". {cure}" if cure else "")
    lines = [f"{header}:", *(f"  {problem}" for problem in problems[:_SHOWN])]
    if len(problems) > _SHOWN:
        lines.append(f"  ... and {len(problems) - _SHOWN} more")
    if cure:
        lines.append(cure)
    return "\n".join(lines)


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two JSON objects, a line for each key.

    Example:
      >>> changes({"rank": 8, "scale": 1.5}, {"rank": 8, "scale": 2.0})
      ['scale was 1.5, now 2.0']
    """
    now = json.loads(json.dumps(now))
    return [
        f"{key} was {before.get(key)!r}, now {now.get(key)!r}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]
