"""Numbers and settings as people read them."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any


def percent(share: int | float, digits: int = 1) -> str:
    """A share in percent, without the sign.

    Example:
      >>> percent(0.879), percent(0.04, 0)
      ('87.9', '4')
    """
    return f"{100 * share:.{digits}f}"


def with_interval(share: int | float, half: int | float | None) -> str:
    """A share in percent and the half-width of its interval.

    Example:
      >>> with_interval(0.879, 0.0112), with_interval(0.879, None)
      ('87.9 ± 1.1 %', '87.9 %')
    """
    return f"{percent(share)}{f' ± {percent(half)}' if half else ''} %"


def distance(gap: int | float, half: int | float | None) -> str:
    """How far above or below something is, in points.

    Example:
      >>> distance(-3.64, 0.9), distance(0.5, None), distance(-0.04, 0)
      ('3.6 ± 0.9 points below', '0.5 points above', '0.0 points from')
    """
    shown = f"{abs(gap):.1f}"
    side = "from" if float(shown) == 0 else "below" if gap < 0 else "above"
    return f"{shown}{f' ± {half:.1f}' if half else ''} points {side}"


def signed(points: int | float) -> str:
    """Points with their sign.

    Example:
      >>> signed(-3.64), signed(0.5), signed(-0.01)
      ('\u22123.6', '+0.5', '0.0')
    """
    shown = f"{points:+.1f}"
    return "0.0" if float(shown) == 0 else shown.replace("-", "−")  # noqa: RUF001


def seconds(value: int | float) -> str:
    """A time, with as many digits as matter.

    Example:
      >>> seconds(0.753), seconds(58.99), seconds(5400)
      ('0.75 s', '59 s', '90 min')
    """
    if value >= 600:
        return f"{value / 60:.0f} min"
    return f"{value:.2g} s" if value < 10 else f"{value:.0f} s"


def setting_text(
    setting: Mapping[str, Any] | None, tried: Sequence[Mapping[str, Any]] = ()
) -> str:
    """Hyperparameters in a line, with a star for the edges of what was tried.

    Example:
      >>> setting_text({"rank": 0.04, "scale": 4.0}), setting_text({"rank": 16})
      ('rank 4 %, scale 4', 'rank 16')
      >>> setting_text({"scale": 4.0}, [{"scale": 2.0}, {"scale": 4.0}])
      'scale 4*'
    """
    shown = []
    for name, value in (setting or {}).items():
        values = [one[name] for one in tried if name in one]
        star = "*" * at_an_edge(value, values)
        shown.append(f"{name} {_value(name, value)}{star}")
    return ", ".join(shown)


def range_text(settings: Sequence[Mapping[str, Any]]) -> str:
    """Between which numbers, or among which words, settings lie.

    Example:
      >>> range_text([{"rank": 0.04, "scale": 2.0}, {"rank": 0.16, "scale": 2.0}])
      'rank 4 % to 16 %, scale 2'
      >>> range_text([{"merger": "iso_c"}, {"merger": "svc"}])
      'merger iso_c or svc'
    """
    shown = []
    for name in dict.fromkeys(key for setting in settings for key in setting):
        values = list(dict.fromkeys(x[name] for x in settings if name in x))
        ends, between = values, " or "
        if all(isinstance(x, int | float) for x in values):
            ends, between = sorted({min(values), max(values)}), " to "
        shown.append(f"{name} {between.join(_value(name, x) for x in ends)}")
    return ", ".join(shown)


def _value(name: str, value: Any) -> str:
    if name == "rank" and isinstance(value, float) and 0 < value <= 1:
        return f"{100 * value:g} %"
    return f"{value:g}" if isinstance(value, float) else str(value)


def at_an_edge(value: Any, tried: Sequence[Any]) -> bool:
    """Whether it is the smallest or the largest of several numbers.

    Example:
      >>> at_an_edge(3, [1, 2, 3]), at_an_edge(2, [1, 2, 3]), at_an_edge(1, [1])
      (True, False, False)
    """
    if not all(isinstance(x, int | float) for x in tried) or len(set(tried)) < 2:
        return False
    return value in (min(tried), max(tried))


def command_text(command: Any) -> str:
    """A command, of one string or of its words, to be typed again.

    Example:
      >>> command_text(["centermerge", "sweep", "a b"]), command_text("make study")
      ("centermerge sweep 'a b'", 'make study')
    """
    if isinstance(command, list):
        return shlex.join(map(str, command))
    return "" if command is None else str(command)


def ordinal(number: int) -> str:
    """A place in a row.

    Example:
      >>> [ordinal(n) for n in (1, 2, 3, 4, 11, 21, 112)]
      ['1st', '2nd', '3rd', '4th', '11th', '21st', '112th']
    """
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{'th' if number % 100 in (11, 12, 13) else ending}"


def counted(number: int, thing: str) -> str:
    """A number of things.

    Example:
      >>> counted(1, "task"), counted(4, "task")
      ('1 task', '4 tasks')
    """
    return f"{number} {thing}{'' if number == 1 else 's'}"


def listed(words: Sequence[str]) -> str:
    """Words in a sentence.

    Example:
      >>> listed(["a"]), listed(["a", "b", "c"])
      ('a', 'a, b and c')
    """
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"
