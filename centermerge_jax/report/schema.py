"""What the result files have to hold, checked key by key.

A form is a function `(value, place) -> None` that raises `DataError`, with the place in
the file, when the value is something else.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from centermerge_jax.errors import DataError

Form = Callable[[Any, str], None]


def text(value: Any, place: str) -> None:
    """A string."""
    _hold(isinstance(value, str), place, "a text", value)


def number(value: Any, place: str) -> None:
    """A finite number."""
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    # Integers of JSON may be too large for a float.
    _hold(plain and abs(value) < 1e300, place, "a finite number", value)


def share(value: Any, place: str) -> None:
    """A number in [0, 1]."""
    number(value, place)
    _hold(0 <= value <= 1, place, "in [0, 1]", value)


def whole(value: Any, place: str) -> None:
    """A whole number of 0 or more."""
    plain = isinstance(value, int) and not isinstance(value, bool)
    _hold(plain and 0 <= value < 2**63, place, "a whole number", value)


def positive(value: Any, place: str) -> None:
    """A number of 0 or more."""
    number(value, place)
    _hold(value >= 0, place, "0 or more", value)


def anything(value: Any, place: str) -> None:
    """Whatever it is."""


def maybe(form: Form) -> Form:
    """The form, or null."""

    def check(value: Any, place: str) -> None:
        if value is not None:
            form(value, place)

    return check


def listed(form: Form, *, least: int = 0, length: int | None = None) -> Form:
    """A list whose items have the form."""

    def check(value: Any, place: str) -> None:
        _hold(isinstance(value, list), place, "a list", value)
        count = len(value)
        if length is not None and count != length:
            raise DataError(f"{place} has {count} items, expected {length}")
        if count < least:
            raise DataError(f"{place} has {count} items, expected {least} or more")
        for i, item in enumerate(value):
            form(item, f"{place}[{i}]")

    return check


def table(form: Form, *, keys: Sequence[str] | None = None) -> Form:
    """An object whose values have the form; with at least these keys."""

    def check(value: Any, place: str) -> None:
        _hold(isinstance(value, dict), place, "an object", value)
        for key in keys or ():
            _present(value, key, place)
        for key, item in value.items():
            form(item, _inside(place, key))

    return check


def fields(needed: dict[str, Form], possible: dict[str, Form] | None = None) -> Form:
    """An object with needed and possible keys; others are not looked at."""

    def check(value: Any, place: str) -> None:
        _hold(isinstance(value, dict), place, "an object", value)
        for key, form in needed.items():
            _present(value, key, place)
            form(value[key], _inside(place, key))
        for key, form in (possible or {}).items():
            if key in value:
                form(value[key], _inside(place, key))

    return check


def one_of(*values: str) -> Form:
    """One of these strings."""

    def check(value: Any, place: str) -> None:
        _hold(value in values, place, f"one of {', '.join(values)}", value)

    return check


def _inside(place: str, key: str) -> str:
    return f"{place}.{key}" if place else key


def _present(value: dict[str, Any], key: str, place: str) -> None:
    if key not in value:
        raise DataError(f"{_inside(place, key)} is missing")


def _hold(fine: bool, place: str, expected: str, value: Any) -> None:
    if not fine:
        shown = repr(value)
        shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
        if isinstance(value, float) and not math.isfinite(value):
            shown = "not finite"
        raise DataError(f"{place or 'the file'} is {shown}, expected {expected}")
