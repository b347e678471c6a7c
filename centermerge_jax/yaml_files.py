"""YAML files, read so that every value knows where it stands.

Files are composed into nodes and only scalars are made from them, by PyYAML's safe
constructor: no tag can make an object. Keys given twice are an error, anchors work.
"""

import contextlib
import difflib
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from centermerge_jax.errors import CheckpointError, ParameterError, listing

_MAP, _SEQUENCE = "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"


@dataclass(frozen=True)
class Marked:
    """A value of a YAML file and its place.

    Attributes:
      value: A dict from text to `Marked`, a list of `Marked`, or a plain value.
      where: `FILE:LINE: key 'x'`, with the nearest key: how an error about it begins.
    """

    value: Any
    where: str

    def wrong(self, what: str) -> ParameterError:
        """The error to raise when this value is wrong."""
        return ParameterError(f"{self.where}: {what}")

    def unknown(self, kind: str, key: str, known: Iterable[str]) -> ParameterError:
        """The error to raise when there is no `kind` that is called `key`."""
        names = list(known)
        close = difflib.get_close_matches(key, names, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"
        return self.wrong(f"no such {kind}; {hint}")

    def entries(self) -> dict[str, "Marked"]:
        """The values of a mapping that holds something.

        Raises:
          ParameterError: It is none, or empty.
        """
        if not isinstance(self.value, dict):
            raise self.wrong(f"takes a mapping, NAME: VALUE, not {self._said()}")
        if not self.value:
            raise self.wrong("is empty")
        return self.value

    def items(self) -> list["Marked"]:
        """The values of a list that holds something.

        Raises:
          ParameterError: It is none, or empty.
        """
        if not isinstance(self.value, list):
            raise self.wrong(f"takes a list, not {self._said()}")
        if not self.value:
            raise self.wrong("is empty")
        return self.value

    def text(self) -> str:
        """The value as text.

        Raises:
          ParameterError: It is of another type, or empty.
        """
        if not isinstance(self.value, str):
            plain = not isinstance(self.value, dict | list | None)
            cure = "; put it in quotes" if plain else ""
            raise self.wrong(f"takes a text, not {self._said()}{cure}")
        if not self.value:
            raise self.wrong("is empty")
        return self.value

    def number(self) -> int | float:
        """The value as a number, an int or a float as it is written.

        Raises:
          ParameterError: It is of another type (a bool is), NaN or infinite.
        """
        if type(self.value) not in (int, float):
            cure = ""
            if isinstance(self.value, str) and _is_number(self.value):
                cure = "; in YAML 1e-3 and what is in quotes is text: write 0.001"
            raise self.wrong(f"takes a number, not {self._said()}{cure}")
        if not abs(self.value) <= sys.float_info.max:  # also false for NaN
            raise self.wrong(f"takes a finite number, not {self.value}")
        return self.value

    def _said(self) -> str:
        kinds = {dict: "a mapping", list: "a list", type(None): "nothing"}
        return kinds.get(type(self.value)) or repr(self.value)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


class _SeveralError(ParameterError):
    """Problems as one error that can be taken apart again."""

    def __init__(self, found: list[str]):
        super().__init__(listing("{n} problem{s} in the recipe", found))
        self.found = found


class Problems:
    """What is wrong with a file, gathered so that it is said all at once."""

    def __init__(self):
        """Nothing is wrong yet."""
        self._found: list[str] = []

    @contextlib.contextmanager
    def gathered(self) -> Iterator[None]:
        """Notes the error that the block raises, if it raises one, and goes on."""
        try:
            yield
        except _SeveralError as several:
            self._found += several.found
        except ParameterError as error:
            self._found.append(str(error))

    def check(self) -> None:
        """Raises what has been gathered, the same thing once.

        Raises:
          ParameterError: Something has.
        """
        found = list(dict.fromkeys(self._found))
        if len(found) == 1:
            raise ParameterError(found[0])
        if found:
            raise _SeveralError(found)


def read_yaml(path: str | Path) -> Marked:
    """Reads a YAML file that holds one mapping.

    Raises:
      CheckpointError: The file cannot be read.
      ParameterError: It is not YAML, not one mapping, or has a key twice.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ParameterError(f"{path}: not a text file (UTF-8)") from None
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if not isinstance(node, yaml.MappingNode):
            raise ParameterError(f"{path}:1: not a mapping of keys to values")
        return _Marker(str(path)).marked(node, f"{path}:1")
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise ParameterError(f"{path}{line}: not YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        said = " ".join(str(error).split())
        raise ParameterError(f"{path}: not YAML: {said}") from None
    except RecursionError:
        raise ParameterError(f"{path}: nested too deeply, or in itself") from None


class _Marker:
    """Turns the nodes of one file into marked values."""

    def __init__(self, file: str):
        self._file = file
        self._constructor = yaml.constructor.SafeConstructor()
        # Aliases are the same node again: made once, a short file stays small.
        self._made: dict[tuple[int, str], Marked] = {}

    def marked(self, node: yaml.Node, where: str) -> Marked:
        known = (id(node), where)
        if known not in self._made:
            self._made[known] = Marked(self._value(node, where), where)
        return self._made[known]

    def _value(self, node: yaml.Node, where: str) -> Any:
        if isinstance(node, yaml.MappingNode) and node.tag == _MAP:
            return self._mapping(node)
        if isinstance(node, yaml.SequenceNode) and node.tag == _SEQUENCE:
            key = where.partition(": ")[2]
            return [
                self.marked(item, f"{self._at(item)}: {key}" if key else self._at(item))
                for item in node.value
            ]
        if not isinstance(node, yaml.ScalarNode):
            raise ParameterError(f"{where}: the tag {node.tag} is not known here")
        try:
            return self._constructor.construct_object(node)
        except ValueError as error:  # 2001-99-99 looks like a date
            raise ParameterError(f"{where}: {error}") from None

    def _mapping(self, node: yaml.MappingNode) -> dict[str, Marked]:
        self._refuse_doubles(node)
        self._constructor.flatten_mapping(node)  # what `<<: *anchor` brings in
        values = {}
        for key, value in node.value:
            name = self._key(key)
            values[name] = self.marked(value, f"{self._at(key)}: key {name!r}")
        return values

    def _refuse_doubles(self, node: yaml.MappingNode) -> None:
        lines: dict[str, str] = {}
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            name, at = self._key(key), self._at(key)
            if name in lines:
                first = lines[name].rpartition(":")[2]
                raise ParameterError(f"{at}: key {name!r}: given before, line {first}")
            lines[name] = at

    def _key(self, node: yaml.Node) -> str:
        value = self._value(node, self._at(node))
        if not isinstance(value, str):
            said = "a key" if isinstance(value, dict | list) else f"the key {value!r}"
            raise ParameterError(
                f"{self._at(node)}: {said} is not a text; put it in quotes"
            )
        return value

    def _at(self, node: yaml.Node) -> str:
        return f"{self._file}:{node.start_mark.line + 1}"
