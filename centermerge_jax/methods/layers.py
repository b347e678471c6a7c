"""Task vectors scaled layer by layer: by depth, or by likeness to another model's.

A leaf's layer is the first part of its name that is a number.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import jax.numpy as jnp

from centermerge_jax.elementwise import widened
from centermerge_jax.errors import ParameterError
from centermerge_jax.leafwise import leafwise
from centermerge_jax.methods.passes import Rows, whole_rows
from centermerge_jax.scales import leaf_scales, one_scale
from centermerge_jax.task_vectors import Experts
from centermerge_jax.trees import (
    Params,
    base_name,
    check_task,
    layer_depths,
    layer_of,
    leaf_shapes,
    named_experts,
)

Curve = Literal["linear", "log", "threshold"]


def lines(
    experts: Experts,
    base: Params,
    *,
    scale: Any,
    slope: float,
    depths: Mapping[str, int] | None = None,
    dtype: Any = None,
) -> Params:
    """Task arithmetic with a scale that grows with the depth of the layer.

        theta = theta_0 + (scale + slope l / (L - 1)) sum_t tau_t

    for layer l of L, from 0; leaves outside of layers have `scale`. Shallow layers,
    which the tasks share, change less than deep ones.

    Args:
      experts: Fine-tuned parameters of at least one expert.
      base: The parameters that they were fine-tuned from.
      scale: Of the first layer: one number, or as for `cm.combine`. 1 / tasks makes it
        the mean.
      slope: What the last layer has more.
      depths: Number of layers of each stack, from `lines_names`, for those who merge
        part by part; else they are found here.
      dtype: Type of the result; the experts' by default.

    Raises:
      StructureError: The trees are not the same.
      ParameterError: `scale` or `slope` is out of range, or no leaf is in a layer.

    References:
      Wang et al., "LiNeS: Post-training Layer Scaling Prevents Forgetting and Enhances
      Model Merging", 2024, arXiv:2410.17146.
    """
    if not math.isfinite(slope):
        raise ParameterError(f"slope is a finite number; got {slope}")
    known = depths or lines_names(leaf_shapes(base))["depths"]
    trees = named_experts(experts)
    tasks = tuple(trees)
    name = base_name(trees)

    def merge(leaf: str, leaves: Sequence[Any], scale: Any) -> Any:
        *tuned, origin = leaves
        prefix, layer = layer_of(leaf)
        above = slope * layer / max(1, known[prefix] - 1) if layer >= 0 else 0.0
        xp = origin.__array_namespace__()
        weights = xp.asarray(scale, dtype=origin.dtype) + above
        weights = xp.broadcast_to(weights, (len(tasks),)).astype(origin.dtype)
        return sum(
            (w * (x - origin) for w, x in zip(weights, tuned, strict=True)), origin
        )

    return leafwise(
        merge,
        trees | {name: base},
        given=leaf_scales(scale, base, tasks),
        dtype=dtype,
        any_dtype=(name,),
    )


def lines_names(names: Iterable[str]) -> dict[str, Any]:
    """What LiNeS has to know of the names of all leaves: `depths`.

    Raises:
      ParameterError: No leaf is in a layer.
    """
    depths = layer_depths(names)
    if not depths:
        raise ParameterError(
            "no leaf is in a layer: none has a number in its name. Of layers stacked "
            "in one leaf, make a leaf each"
        )
    return {"depths": depths}


def lata(
    experts: Experts,
    base: Params,
    *,
    instruct: str,
    scale: Any,
    curve: Curve = "linear",
    threshold: float = 0.95,
    origin: str = "base",
    layer_weights: Mapping[str, Sequence[Any]] | None = None,
    dtype: Any = None,
) -> Params:
    """Task arithmetic with the layers that are unlike instruction following.

        s_l   = cos(tau_t of layer l, tau_instruct of layer l)
        theta = origin + scale * sum_t w_l tau_t

    With the layers ranked by s_l, the most similar first, w_l is `(rank - 1) / (L - 1)`
    (linear), `log(rank) / log(L)` (log) or 1 where `s_l <= threshold`, else 0
    (threshold). Leaves outside of layers have 1.

    To learn, `origin` is the base or the instruction model, and `scale` positive; to
    forget a task, `origin` is the model that has it and `scale` negative.

    Args:
      experts: Fine-tuned parameters of the instruction model and at least one other.
      base: The parameters that they were fine-tuned from.
      instruct: Name of the expert that is the instruction model.
      scale: One number, or one for each leaf, as a tree prefix.
      curve: linear, log, or threshold.
      threshold: Similarity above which a layer is left out, for that curve.
      origin: `base`, or the name of an expert.
      layer_weights: For each layer a weight for each task, from `lata_statistics`,
        for those who cannot hold all trees; else they are found here.
      dtype: Type of the result; the experts' by default.

    Raises:
      StructureError: The trees are not the same.
      ParameterError: There is no such expert or curve, `scale` is out of range, or no
        leaf is in a layer.

    Note:
      The paper gives the curves by name; `linear` and `log` are their natural forms.

    References:
      Chen et al., "Layer-Aware Task Arithmetic", 2025, arXiv:2502.20186.
    """
    trees = named_experts(experts)
    tasks = tuple(trees)
    how = {"instruct": instruct, "curve": curve, "threshold": threshold}
    known = layer_weights
    if known is None:
        rows = whole_rows(experts, base)
        known = lata_statistics(rows, tasks=tasks, **how)["layer_weights"]
    teacher = check_task(instruct, tasks)
    start = len(tasks) if origin == "base" else check_task(origin, tasks)
    name = base_name(trees)

    def merge(leaf: str, leaves: Sequence[Any], scale: Any) -> Any:
        pretrained = leaves[-1]
        xp = pretrained.__array_namespace__()
        scale = xp.asarray(scale, dtype=pretrained.dtype)
        of_layer = known.get(_layer(leaf), [1.0] * len(tasks))
        result = leaves[start]
        for i in range(len(tasks)):
            if i != teacher:
                w = xp.asarray(of_layer[i], dtype=pretrained.dtype)
                result = result + scale * w * (leaves[i] - pretrained)
        return result

    return leafwise(
        merge,
        trees | {name: base},
        given=one_scale(scale, base, tasks),
        dtype=dtype,
        any_dtype=(name,),
    )


def lata_statistics(
    rows: Rows,
    *,
    tasks: tuple[str, ...],
    instruct: str,
    curve: Curve = "linear",
    threshold: float = 0.95,
) -> dict[str, Any]:
    """What LATA has to know of whole layers, from one pass.

    Args:
      rows: Called once; goes through all floating leaves, by name, those of each expert
        and last that of the base.
      tasks: Names of the experts.
      instruct: As for `lata`.
      curve: As for `lata`.
      threshold: As for `lata`.

    Returns:
      `layer_weights`: for each layer a weight for each task.

    Raises:
      ParameterError: There is no such expert or curve, or no leaf is in a layer.
    """
    teacher = check_task(instruct, tasks)
    if curve not in ("linear", "log", "threshold"):
        raise ParameterError(f"curve is linear, log or threshold; got {curve!r}")
    if not -1 <= threshold <= 1:
        raise ParameterError(f"threshold is a cosine in [-1, 1]; got {threshold}")
    sums: dict[str, list[Any]] = {}
    for leaf, row in rows():
        if layer_of(leaf)[1] < 0:
            continue
        *tuned, origin = widened(row)
        deltas = [x - origin for x in tuned]
        own = deltas[teacher]
        new = [((x * own).sum(), (x * x).sum(), (own * own).sum()) for x in deltas]
        layer = _layer(leaf)
        before = sums.get(layer, [(0.0, 0.0, 0.0)] * len(new))
        sums[layer] = [
            tuple(a + b for a, b in zip(p, q, strict=True))
            for p, q in zip(before, new, strict=True)
        ]
    lines_names(sums)
    stacks: dict[str, list[str]] = defaultdict(list)
    for layer in sums:
        stacks[layer_of(layer)[0]].append(layer)
    weights = {}
    for layers in stacks.values():
        for layer in layers:
            at = layers.index(layer)
            weights[layer] = [
                _weight([_cosine(sums[x][i]) for x in layers], at, curve, threshold)
                for i in range(len(tasks))
            ]
    return {"layer_weights": weights}


def _weight(similar: Sequence[Any], at: int, curve: Curve, threshold: float) -> Any:
    """The weight of one of several layers of which similarities are given."""
    own = similar[at]
    if curve == "threshold":
        return jnp.where(own <= threshold, 1.0, 0.0)
    # Of equally similar layers the first counts as more similar.
    before = [(s >= own) if i < at else (s > own) for i, s in enumerate(similar)]
    place = sum(jnp.where(b, 1.0, 0.0) for b in before)
    depth = len(similar)
    if depth == 1:
        return 1.0
    if curve == "linear":
        return place / (depth - 1)
    return jnp.log1p(place) / math.log(depth)


def _cosine(sums: Sequence[Any]) -> Any:
    inner, a, b = sums
    size = jnp.sqrt(a) * jnp.sqrt(b)
    return inner / jnp.where(size > 0, size, 1)


def _layer(leaf: str) -> str:
    prefix, layer = layer_of(leaf)
    return f"{prefix}/{layer}" if prefix else str(layer)
