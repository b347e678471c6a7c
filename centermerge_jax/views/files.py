"""View rules written in a file, for the command line."""

import dataclasses
import tomllib
from pathlib import Path

from centermerge_jax.errors import ViewError
from centermerge_jax.views.presets import PRESETS
from centermerge_jax.views.resolve import Views
from centermerge_jax.views.rules import Rule


def load(source: str) -> Views:
    """The views that `--views` names: a preset, or the rules of a TOML file.

    A file holds one `[[rule]]` table for each rule, with the attributes of `Rule` as
    keys:

        [[rule]]
        pattern = ".*/(query|key|value)/kernel"
        rows = [0]
        cols = [1, 2]

    Raises:
      ViewError: There is neither such a preset nor such a file, or the file is not of
        that form.
    """
    if source in PRESETS:
        return PRESETS[source]
    path = Path(source)
    if not path.is_file():
        raise ViewError(
            f"--views {source}: neither a file nor a preset ({', '.join(PRESETS)})"
        )
    try:
        content = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ViewError(f"{path}: not a TOML file: {error}") from None
    tables = content.pop("rule", [])
    if content or not isinstance(tables, list) or not tables:
        raise ViewError(
            f"{path}: expected [[rule]] tables only, got {sorted(content) or 'none'}"
        )
    return [_rule(f"{path}: rule {i}", table) for i, table in enumerate(tables, 1)]


def _rule(where: str, table: dict[str, object]) -> Rule:
    known = {field.name for field in dataclasses.fields(Rule)}
    if not isinstance(table, dict) or "pattern" not in table or table.keys() - known:
        raise ViewError(f"{where}: needs 'pattern' and may have {sorted(known)}")
    for key, value in table.items():
        axes = key in ("rows", "cols", "batch")
        if axes and not (
            isinstance(value, list) and all(type(axis) is int for axis in value)
        ):
            raise ViewError(f"{where}: {key} is a list of axes, got {value!r}")
        wanted = int if key in ("ndim", "parts") else str
        if not axes and type(value) is not wanted:
            raise ViewError(f"{where}: {key} is a {wanted.__name__}, got {value!r}")
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in table.items()}
    try:
        return Rule(**values)  # pyright: ignore[reportArgumentType]  checked above
    except ViewError as error:
        raise ViewError(f"{where}: {error}") from None
