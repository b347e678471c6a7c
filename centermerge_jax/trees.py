"""Parameter trees: the names of their leaves, and whether several are the same tree.

Any pytree is a parameter tree: nested dictionaries, Flax `FrozenDict` and `nnx.State`,
Equinox modules, tuples and lists inside. Leaves are addressed by *name*, the path keys
joined by `/`, because names are what view rules, error messages and files speak.

Floating leaves are merged. Everything else (integers, booleans, PRNG keys, functions,
strings) is *carried*: it has to be equal in all experts and is passed on untouched.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from centermerge_jax.errors import ParameterError, StructureError, listing

Params = Any
"""A pytree of arrays. (Python's type system cannot say more.)"""

X64 = "to compute in float64 switch on jax_enable_x64 (JAX_ENABLE_X64=1)"
"""The cure for float64 where JAX would make float32 of it."""

_Path = tuple[Any, ...]


def path_name(path: _Path) -> str:
    """The name of the leaf at a key path of `jax.tree_util`.

    A terminal *attribute* `value` is the box that `nnx.State` puts around each array,
    not part of the name; a dictionary key `value` is.

    Example:
      >>> from jax.tree_util import DictKey, GetAttrKey
      >>> path_name((DictKey("dense"), DictKey("kernel"), GetAttrKey("value")))
      'dense/kernel'
    """
    if path and getattr(path[-1], "name", None) == "value":
        path = path[:-1]
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named_leaves(tree: Params) -> dict[str, Any]:
    """The leaves of a tree by name, in tree order.

    Raises:
      StructureError: Two leaves have one name, as in `{"a": {"b": x}, "a/b": y}`.

    Example:
      >>> named_leaves({"dense": {"kernel": 1.0, "bias": 2.0}})
      {'dense/bias': 2.0, 'dense/kernel': 1.0}
    """
    pairs = jax.tree_util.tree_leaves_with_path(tree)
    names = [path_name(path) for path, _ in pairs]
    if doubled := [name for name, count in Counter(names).items() if count > 1]:
        raise StructureError(listing("{n} leaf name{s} used more than once", doubled))
    return dict(zip(names, (leaf for _, leaf in pairs), strict=True))


def layer_of(leaf: str) -> tuple[str, int]:
    """What stands before the first number in a leaf's name, and that number.

    Without a number between `/` or `.` it is in no layer: its name, and -1.

    Example:
      >>> layer_of("encoder/blocks/3/mlp/kernel"), layer_of("norm/scale")
      (('encoder/blocks', 3), ('norm/scale', -1))
    """
    found = re.match(r"((?:.*?[/.])?)([0-9]+)(?:[/.]|$)", leaf)
    return (found[1].rstrip("/."), int(found[2])) if found else (leaf, -1)


def layer_depths(leaves: Iterable[str]) -> dict[str, int]:
    """How many layers each stack of layers has, by what stands before their numbers.

    Example:
      >>> layer_depths(["blocks/0/w", "blocks/1/w", "norm/scale"])
      {'blocks': 2}
    """
    depths: dict[str, int] = {}
    for prefix, layer in map(layer_of, leaves):
        if layer >= 0:
            depths[prefix] = max(depths.get(prefix, 0), layer + 1)
    return depths


def is_array(leaf: Any) -> bool:
    """Whether a leaf is numbers: an array, its shape and dtype, or a Python number."""
    kinds = jax.Array | np.ndarray | np.generic | int | float | complex
    return isinstance(leaf, kinds | jax.ShapeDtypeStruct)


def dtype_of(leaf: Any) -> Any:
    """The dtype of an array leaf; of a Python number the one that JAX gives it."""
    return leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)


def is_merged(leaf: Any) -> bool:
    """Whether a leaf takes part in a merge: it is floating."""
    return is_array(leaf) and jnp.issubdtype(dtype_of(leaf), jnp.floating)


def leaf_shapes(tree: Params) -> dict[str, tuple[int, ...]]:
    """The shapes of the floating leaves by name, in tree order."""
    leaves = named_leaves(tree)
    return {name: np.shape(leaf) for name, leaf in leaves.items() if is_merged(leaf)}


def compute_dtype(dtype: Any) -> Any:
    """The type to compute in: float32, or float64 for float64 leaves."""
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def describe(leaf: Any) -> str:
    """A leaf as error messages show it, such as `float32[384, 1536]`."""
    if not is_array(leaf):
        return type(leaf).__name__
    return f"{dtype_of(leaf)}{list(np.shape(leaf))}"


def named_experts(
    experts: Mapping[str, Params] | Sequence[Params],
) -> dict[str, Params]:
    """The experts by task name, in the order of the task axis.

    A mapping is ordered by sorted name: a dictionary comes out of `jax.jit` sorted, and
    insertion order would let eager and jitted runs number the tasks differently. A
    sequence keeps its order and its tasks are named '0', '1', ....

    Raises:
      ParameterError: There is no expert, or they are neither a mapping nor a sequence.
    """
    if isinstance(experts, Mapping):
        if wrong := [key for key in experts if not isinstance(key, str)]:
            raise ParameterError(f"task names are strings, got {wrong[:3]}")
        named = {name: experts[name] for name in sorted(experts)}
    elif isinstance(experts, Sequence) and not isinstance(experts, str | bytes):
        named = {str(i): tree for i, tree in enumerate(experts)}
    else:
        kind = type(experts).__name__
        raise ParameterError(
            f"experts are a mapping from task name to parameters or a list of "
            f"parameters, got {kind}"
        )
    if not named:
        raise ParameterError("there is no expert to merge")
    return named


def check_task(task: str, tasks: tuple[str, ...]) -> int:
    """The place of a task.

    Raises:
      ParameterError: There is no task of that name.
    """
    if task not in tasks:
        raise ParameterError(
            f"no task is called {task!r}; there are {', '.join(tasks)}"
        )
    return tasks.index(task)


def base_name(experts: Mapping[str, Params]) -> str:
    """What to call the base among experts: whatever they are called, it is free."""
    return "base" if "base" not in experts else "the base"


def align(
    trees: Mapping[str, Params], *, any_dtype: Sequence[str] = ()
) -> tuple[Any, dict[str, tuple[Any, ...]]]:
    """Checks that all trees are the same tree and brings their leaves together.

    Args:
      trees: Parameter trees by the name that messages should call them.
      any_dtype: Names of the trees whose floating leaves may have another dtype than
        those of the first one, and whose carried leaves other values (a base).

    Returns:
      The structure of the first tree, and for each leaf name the leaves of all trees.

    Raises:
      StructureError: Listing every leaf that is missing, extra, of another shape or
        type, complex, float64 without `jax_enable_x64`, or a carried leaf that differs.

    Note:
      Under `jax.jit` the values of carried leaves are unknown and are not compared.
    """
    leaves = {name: named_leaves(tree) for name, tree in trees.items()}
    first, expected = next(iter(leaves.items()))
    problems = [
        f"{first}: {leaf} {fault}"
        for leaf, value in expected.items()
        if (fault := _unmergeable(value))
    ]
    for name, found in list(leaves.items())[1:]:
        problems += [
            f"{name}: missing {leaf}" for leaf in expected if leaf not in found
        ]
        problems += [f"{name}: extra {leaf}" for leaf in found if leaf not in expected]
        problems += [
            f"{name}: {leaf} {fault}"
            for leaf in expected
            if leaf in found
            and (fault := _difference(expected[leaf], found[leaf], name in any_dtype))
        ]
    if problems:
        unshared = any(": missing " in p or ": extra " in p for p in problems)
        cure = "What is not shared (task heads) can be left out: --exclude, --keep."
        header = f"{{n}} difference{{s}} from '{first}'"
        raise StructureError(listing(header, problems, cure if unshared else ""))
    structures = {name: jax.tree.structure(tree) for name, tree in trees.items()}
    if unlike := [n for n, s in structures.items() if s != structures[first]]:
        raise StructureError(
            f"{', '.join(unlike)}: same leaves as '{first}', but other containers or "
            "static fields around them"
        )
    rows = {leaf: tuple(found[leaf] for found in leaves.values()) for leaf in expected}
    return structures[first], rows


def _unmergeable(leaf: Any) -> str:
    """Why a leaf cannot be in a merge at all, or nothing."""
    if not is_array(leaf):
        return ""
    if jnp.issubdtype(dtype_of(leaf), jnp.complexfloating):
        return f"is {describe(leaf)}: complex leaves cannot be merged"
    if dtype_of(leaf) == np.float64 and not jax.config.read("jax_enable_x64"):
        return f"is {describe(leaf)}: {X64}"
    return ""


def _difference(expected: Any, found: Any, any_dtype: bool) -> str:
    """In what a leaf differs from the one it should match, or nothing."""
    if fault := _unmergeable(found):
        return fault
    if is_array(expected) != is_array(found):
        return f"is {describe(found)}, expected {describe(expected)}"
    if not is_array(expected):
        same = expected is found or bool(expected == found)
        return "" if same else f"is {found!r}, expected {expected!r}"
    both_merged = is_merged(expected) and is_merged(found)
    if np.shape(expected) != np.shape(found) or (
        dtype_of(expected) != dtype_of(found) and not (any_dtype and both_merged)
    ):
        return f"is {describe(found)}, expected {describe(expected)}"
    # A base has its own counters and keys; those of the experts are carried.
    if is_merged(expected) or any_dtype or _equal(expected, found):
        return ""
    return f"({describe(found)}) has other values; only floating leaves are merged"


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tracer) or isinstance(b, Tracer):
        return True
    if jnp.issubdtype(dtype_of(a), jax.dtypes.prng_key):
        a, b = jax.random.key_data(a), jax.random.key_data(b)
    return np.array_equal(a, b)
