"""What each matrix of a model is multiplied with, found in the traced program.

A model is any function of parameters and inputs. It is traced by JAX, and its program
is run step by step: where an array that varies with the inputs is multiplied with a
leaf of the parameters, that array is handed to whoever wants to know. So no model has
to be written for it: Flax, Equinox and plain functions are all alike.

Followed are leaves that are cast, copied or transposed before they are used, in nested
`jit`s, and in a scan over stacked layers. A leaf that is changed before (normalised,
say, or scaled) is another matrix, of which nothing is said; nor is it of leaves that
are used in a `cond` or a `while` loop.

References:
  JAX documentation, "Writing custom Jaxpr interpreters in JAX".
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core
from jaxtyping import Array

from centermerge_jax.trees import Params, named_leaves

Fold = Callable[[str, Array, int], Any]
"""`fold(leaf, x, batch)`: makes what is kept of the inputs `[*batch, *rows, in]` of a
leaf, of which `batch` axes count matrices: arrays in a tree, which are then added."""

_CALLS = (
    "jit",
    "pjit",
    "closed_call",
    "core_call",
    "custom_jvp_call",
    "custom_vjp_call",
    "checkpoint",
    "remat2",
)
_SAME = ("convert_element_type", "copy", "copy_p", "reduce_precision")


class _Origin(NamedTuple):
    """The leaf that a value is, and which of its axes each axis of the value is."""

    leaf: str
    axes: tuple[int, ...]


@dataclass(frozen=True)
class _Traced:
    """A value of the program.

    Attributes:
      value: Itself.
      origin: The leaf that it is, if it is one.
      varies: Whether it depends on the inputs.
    """

    value: Any
    origin: _Origin | None = None
    varies: bool = False


@dataclass
class _Found:
    """What has been seen while a program is run.

    Attributes:
      fold: What is to be made of inputs.
      kept: What it made, by leaf.
      order: All leaves that were used, the first one first.
    """

    fold: Fold | None
    kept: dict[str, Any] = field(default_factory=dict)
    order: dict[str, None] = field(default_factory=dict)

    def add(self, leaf: str, made: Any) -> None:
        """Takes in what was made at one use of a leaf."""
        if leaf in self.kept:
            made = jax.tree.map(jnp.add, self.kept[leaf], made)
        self.kept[leaf] = made


def fold_inputs(
    apply: Callable[[Any, Any], Any], params: Params, inputs: Any, *, fold: Fold
) -> dict[str, Any]:
    """Folds what each leaf is multiplied with in one run of a model.

    Args:
      apply: `params, inputs -> anything`.
      params: Its parameters.
      inputs: Its inputs.
      fold: Called at each product with a leaf.

    Returns:
      What `fold` made, by leaf name; the sum where a leaf is used more than once. Of a
      leaf that a scan goes through the results are stacked, one for each layer.

    Example:
      >>> def apply(params, x):
      ...     return jnp.tanh(x @ params["a"]) @ params["b"].T
      >>> params = {"a": jnp.ones((2, 3)), "b": jnp.ones((4, 3))}
      >>> fold_inputs(apply, params, jnp.ones((5, 2)), fold=lambda _, x, n: x.sum(0))
      {'a': Array([5., 5.], dtype=float32), 'b': Array([4.82..., 4.82..., 4.82...],...)}
    """
    return _run(apply, params, inputs, fold).kept


def order_of_use(
    apply: Callable[[Any, Any], Any], params: Params, inputs: Any
) -> list[str]:
    """The leaves that a model uses, in the order in which it first does.

    Example:
      >>> def apply(params, x):
      ...     return x * params["scale"] @ params["a"]
      >>> params = {"a": jnp.ones((2, 3)), "b": jnp.ones(3), "scale": jnp.ones(())}
      >>> order_of_use(apply, params, jnp.ones((5, 2)))
      ['scale', 'a']
    """
    order: list[str] = []

    def run(params: Params, inputs: Any) -> None:
        order.extend(_run(apply, params, inputs, None).order)

    jax.eval_shape(run, params, inputs)
    return order


def _run(
    apply: Callable[[Any, Any], Any], params: Params, inputs: Any, fold: Fold | None
) -> _Found:
    leaves = named_leaves(params)
    # The order of the flat arguments: parameters first.
    flat = [*leaves.values(), *jax.tree.leaves(inputs)]
    program = jax.make_jaxpr(apply)(params, inputs)
    known = [
        _Traced(leaf, _Origin(name, tuple(range(jnp.ndim(leaf)))))
        for name, leaf in leaves.items()
    ]
    given = [_Traced(x, varies=True) for x in flat[len(leaves) :]]
    found = _Found(fold)
    _walk(program.jaxpr, program.consts, [*known, *given], found)
    return found


def _walk(
    program: core.Jaxpr,
    consts: Sequence[Any],
    arguments: Sequence[_Traced],
    found: _Found,
) -> list[_Traced]:
    """Runs a program; what its results are."""
    values: dict[Any, _Traced] = {}
    values |= zip(program.constvars, map(_Traced, consts), strict=True)
    values |= zip(program.invars, arguments, strict=True)

    def read(var: Any) -> _Traced:
        return _Traced(var.val) if isinstance(var, core.Literal) else values[var]

    for step in program.eqns:
        given = [read(var) for var in step.invars]
        name = step.primitive.name
        inner = step.params.get("jaxpr", step.params.get("call_jaxpr"))
        if name in _CALLS and inner is not None:
            closed = getattr(inner, "jaxpr", inner)
            results = _walk(closed, getattr(inner, "consts", ()), given, found)
        elif name == "scan":
            results = _scan(step, given, found)
        else:
            results = _step(step, given, found)
        values |= zip(step.outvars, results, strict=True)
    return [read(var) for var in program.outvars]


def _step(
    step: core.JaxprEqn, given: Sequence[_Traced], found: _Found
) -> list[_Traced]:
    """Runs one operation that has no program inside, or one that is not looked into."""
    for each in given:
        if each.origin is not None:
            found.order.setdefault(each.origin.leaf)
    name = step.primitive.name
    if name == "dot_general" and found.fold is not None:
        _product(step.params["dimension_numbers"], given, found)
    values = [each.value for each in given]
    parameters = step.primitive.get_bind_params(step.params)
    made = step.primitive.bind(*values, **parameters)
    made = made if step.primitive.multiple_results else [made]
    origin = None
    if given and (first := given[0].origin) is not None:
        if name in _SAME:
            origin = first
        elif name == "transpose":
            turned = (first.axes[axis] for axis in step.params["permutation"])
            origin = _Origin(first.leaf, tuple(turned))
    varies = any(each.varies for each in given)
    return [_Traced(value, origin, varies) for value in made]


def _product(numbers: Any, given: Sequence[_Traced], found: _Found) -> None:
    """Looks at a product: is it one of inputs and a leaf?"""
    (contracted, batch), (first, second) = numbers, given
    for x, leaf, own, its in (
        (first, second, 0, 1),
        (second, first, 1, 0),
    ):
        if not x.varies or leaf.origin is None:
            continue
        axes = leaf.origin.axes
        order = sorted(
            range(len(contracted[its])), key=lambda i: axes[contracted[its][i]]
        )
        inside = [contracted[own][i] for i in order]
        counted = sorted(range(len(batch[its])), key=lambda i: axes[batch[its][i]])
        outside = [batch[own][i] for i in counted]
        rows = [i for i in range(x.value.ndim) if i not in {*inside, *outside}]
        turned = x.value.transpose((*outside, *rows, *inside))
        size = math.prod(x.value.shape[i] for i in inside)
        shape = (*turned.shape[: len(outside) + len(rows)], size)
        assert found.fold is not None
        name = leaf.origin.leaf
        found.add(name, found.fold(name, turned.reshape(shape), len(outside)))


def _scan(
    step: core.JaxprEqn, given: Sequence[_Traced], found: _Found
) -> list[_Traced]:
    """Runs a scan again, with what is found in each turn as a further result."""
    fixed, carried = step.params["num_consts"], step.params["num_carry"]
    inner = step.params["jaxpr"]
    shared, start, rows = (
        given[:fixed],
        given[fixed : fixed + carried],
        given[fixed + carried :],
    )
    varies = any(each.varies for each in given)
    order: dict[str, None] = {}

    def row_of(each: _Traced, value: Any) -> _Traced:
        origin = each.origin
        if origin is not None:
            origin = _Origin(origin.leaf, origin.axes[1:])
        return _Traced(value, origin, each.varies)

    def turn(carry: Any, row: Any) -> tuple[Any, Any]:
        inside = _Found(found.fold)
        arguments = [
            *shared,
            *(_Traced(value, varies=varies) for value in carry),
            *(row_of(each, value) for each, value in zip(rows, row, strict=True)),
        ]
        results = _walk(inner.jaxpr, inner.consts, arguments, inside)
        order.update(inside.order)
        values = [each.value for each in results]
        return values[:carried], (values[carried:], inside.kept)

    carry, (stacked, kept) = jax.lax.scan(
        turn,
        [each.value for each in start],
        [each.value for each in rows],
        length=step.params["length"],
        reverse=step.params["reverse"],
    )
    found.order.update({leaf: None for leaf in order if leaf not in found.order})
    layered = {each.origin.leaf for each in rows if each.origin is not None}
    for leaf, made in kept.items():
        one = leaf not in layered  # a single matrix, used in every turn
        found.add(leaf, jax.tree.map(lambda x: x.sum(axis=0), made) if one else made)
    return [_Traced(value, varies=varies) for value in [*carry, *stacked]]
