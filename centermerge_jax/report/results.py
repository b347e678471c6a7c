"""Result files: found, read, and held against what they promise."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from centermerge_jax.errors import CheckpointError, DataError
from centermerge_jax.report import schema
from centermerge_jax.report.schema import fields, listed, maybe, table

KINDS = ("comparison", "analysis", "sweep")
"""What a result can be, in the order in which a report shows them."""

VERDICTS = ("shown", "contradicted", "open", "mixed")
"""What can be said of a claim."""


@dataclass(frozen=True)
class Result:
    """One result.

    Attributes:
      path: Its file.
      kind: One of `KINDS`.
      content: The JSON object.
      digest: SHA-256 of the file, in hexadecimal.
    """

    path: Path
    kind: str
    content: Mapping[str, Any]
    digest: str


def read_results(paths: Sequence[str | Path]) -> tuple[list[Result], list[str]]:
    """The results in files and folders, checked.

    Args:
      paths: JSON files; or folders, in which all files that end in .json are read, at
        any depth. There, JSON that has no `kind` is of something else, and left out.

    Returns:
      The results, those of a folder together and in the order of `KINDS`, else as they
      were given, each file once; and a note for each file that was left out.

    Raises:
      CheckpointError: A file is not there, cannot be read or is no JSON.
      DataError: It is of another kind, or a key is missing or holds something else; or
        there is no result at all.
    """
    found: dict[Path, Result] = {}
    notes = []
    for path, named in _files(paths):
        if path.resolve() in found:
            continue
        content, digest = _read(path)
        if not named and not (isinstance(content, dict) and "kind" in content):
            notes.append(f"{path} is no result: it has no kind")
            continue
        kind = _check(path, content)
        found[path.resolve()] = Result(path, kind, content, digest)
    if not found:
        shown = ", ".join(map(str, paths))
        raise DataError(f"there are no results in {shown or 'nothing'}")
    folders = list(dict.fromkeys(path.parent for path in found))
    order = sorted(
        found,
        key=lambda path: (folders.index(path.parent), KINDS.index(found[path].kind)),
    )
    return [found[path] for path in order], notes


def _files(paths: Sequence[str | Path]) -> Iterator[tuple[Path, bool]]:
    """Every file, and whether it was named itself."""
    for path in map(Path, paths):
        if not path.is_dir():
            yield path, True
            continue
        for folder, folders, names in os.walk(path):
            folders.sort()
            for name in sorted(names):
                if name.endswith(".json"):
                    yield Path(folder) / name, False


def _read(path: Path) -> tuple[Any, str]:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from error
    try:
        content = json.loads(raw, parse_constant=_refuse)
        json.dumps(content, ensure_ascii=False).encode()  # no half of a letter
    except (ValueError, RecursionError) as error:
        shown = str(error) or type(error).__name__
        raise CheckpointError(f"{path} is no JSON: {shown}") from error
    return content, hashlib.sha256(raw).hexdigest()


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not of JSON")


def _check(path: Path, content: Any) -> str:
    """The kind of a result that is as it should be."""
    try:
        fields({"kind": schema.one_of(*KINDS)})(content, "")
        _COMMON(content, "")
        _CHECKS[content["kind"]](content)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    return content["kind"]


_COMMON = fields(
    {},
    {
        "command": maybe(schema.anything),
        "date": maybe(schema.text),
        "versions": maybe(table(schema.anything)),
        "settings": maybe(table(schema.anything)),
    },
)

_SETTING = table(schema.anything)
_SLACK = 1e-3  # of a gap, which may have been rounded


def _check_comparison(content: Mapping[str, Any]) -> None:
    fields({"tasks": listed(schema.text, least=1)})(content, "")
    tasks = content["tasks"]
    accuracy = table(schema.share, keys=tasks)
    run = fields(
        {},
        {
            "seed": maybe(schema.anything),
            "setting": maybe(_SETTING),
            "validation": maybe(schema.share),
            "points": maybe(listed(fields({}, {"setting": maybe(_SETTING)}))),
            "items": maybe(table(schema.whole)),
            "mean": maybe(schema.share),
            "merge_seconds": maybe(schema.positive),
            "search_seconds": maybe(schema.positive),
            "peak_bytes": maybe(schema.positive),
        },
    )
    method = fields(
        {"accuracy": accuracy, "mean": schema.share},
        {
            "label": maybe(schema.text),
            "group": maybe(schema.text),
            "runs": listed(run),
            "mean_half_width": maybe(schema.positive),
            "accuracy_half_width": maybe(table(maybe(schema.positive))),
            "normalised": maybe(schema.positive),
            **{
                f"over_{reference}{ending}": maybe(schema.number)
                for reference in ("experts", "joint")
                for ending in ("", "_half_width")
            },
        },
    )
    claim = fields(
        {"claim": schema.text, "verdict": schema.one_of(*VERDICTS)},
        {"figure": maybe(schema.text), "numbers": maybe(schema.text)},
    )
    fields(
        {"methods": table(method)},
        {
            "title": maybe(schema.text),
            "setup": maybe(listed(schema.text)),
            "seeds": listed(schema.anything),
            "curves": maybe(table(_check_curve)),
            "claims": maybe(listed(claim)),
        },
    )(content, "")
    if not content["methods"]:
        raise DataError("methods is empty")
    _check_gaps(content["methods"])


def _check_curve(value: Any, place: str) -> None:
    fields(
        {
            "shares": listed(schema.share, least=1),
            "scales": listed(schema.number, least=1),
        }
    )(value, place)
    row = listed(maybe(schema.share), length=len(value["scales"]))
    whole = listed(row, length=len(value["shares"]))
    tested = listed(schema.share, length=len(value["shares"]))
    fields({"accuracy": whole}, {"tested": maybe(tested)})(value, place)
    if not any(x is not None for row in value["accuracy"] for x in row):
        raise DataError(f"{place}.accuracy has no number")


def _check_gaps(methods: Mapping[str, Any]) -> None:
    """Gaps are shares, as accuracies are: points in their place would be wide bars."""
    for name, row in methods.items():
        for reference in ("experts", "joint"):
            given = row.get(f"over_{reference}")
            if given is None or reference not in methods:
                continue
            gap = row["mean"] - methods[reference]["mean"]
            if abs(given - gap) > _SLACK:
                raise DataError(
                    f"methods.{name}.over_{reference} is {given:g}, but the means "
                    f"differ by {gap:.4f}"
                )


def _check_analysis(content: Mapping[str, Any]) -> None:
    fields(
        {
            "tasks": listed(schema.text, least=1),
            "shares": listed(schema.share, least=1),
            "origins": listed(schema.one_of("mean", "base"), least=1),
            "matrices": table(schema.anything),
        },
        {"title": maybe(schema.text)},
    )(content, "")
    count, tasks = len(content["shares"]), len(content["tasks"])
    curve = maybe(listed(maybe(schema.number), length=count))
    square = listed(listed(schema.number, length=tasks), length=tasks)
    means = fields(
        {},
        {
            "interference_top": curve,
            "interference_whole": curve,
            "interference_none": curve,
            "reconstruction": curve,
            "reconstruction_relative": curve,
            "alignment": square,
            "cosine": square,
        },
    )
    origins = content["origins"]
    fields({"mean_over_matrices": fields(dict.fromkeys(origins, means))})(content, "")
    for name, matrix in content["matrices"].items():
        place = f"matrices.{name}"
        shape = listed(schema.whole, length=2)
        fields({"shape": shape, "layer": maybe(schema.whole)})(matrix, place)
        if 0 in matrix["shape"]:
            raise DataError(f"{place}.shape has a side of 0")
        for origin in origins:
            _check_spectrum(matrix, origin, f"{place}.{origin}", tasks)


def _check_spectrum(
    matrix: Mapping[str, Any], origin: str, place: str, tasks: int
) -> None:
    values = "singular_values"
    rows = listed(listed(schema.positive), length=tasks)
    fields({origin: fields({values: rows})})(matrix, place.rsplit(".", 1)[0])
    measured = matrix[origin]
    count = len(measured[values][0])
    fields({values: listed(listed(schema.positive, length=count))})(measured, place)
    indices = listed(schema.whole, length=count)
    fields({}, {"indices": indices})(measured, place)


def _check_sweep(content: Mapping[str, Any]) -> None:
    test = fields(
        {"accuracy": table(schema.share), "mean": schema.share},
        {"mean_half_width": maybe(schema.positive), "items": table(schema.whole)},
    )
    point = fields(
        {"setting": _SETTING, "validation": schema.share},
        {"per_task": table(schema.share), "seconds": maybe(schema.positive)},
    )
    fields(
        {
            "method": schema.text,
            "tasks": listed(schema.text),
            "points": listed(point, least=1),
            "chosen": fields({"setting": _SETTING, "validation": schema.share}),
        },
        {
            "metric": maybe(schema.text),
            "test": maybe(test),
            "seconds": maybe(table(maybe(schema.positive))),
        },
    )(content, "")


_CHECKS = {
    "comparison": _check_comparison,
    "analysis": _check_analysis,
    "sweep": _check_sweep,
}
