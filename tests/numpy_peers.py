"""Formulas of peers where they are not ours, in NumPy: what explains the difference.

Each takes experts, base, and what our method is told in that case.
"""

import itertools

import numpy as np
from golden import merging
from numpy.linalg import norm


def leaf_by_leaf(function):
    """A formula from one of the task vectors of a leaf, `[tasks, *shape]`."""

    def formula(experts, base, told):
        return {
            name: leaf + function(deltas(experts, base, name), name, told)
            for name, leaf in base.items()
        }

    return formula


def deltas(experts, base, name):
    origin = base[name].astype(np.float64)
    return np.stack([tree[name] - origin for tree in experts.values()])


def largest(x, count):
    """All but the largest `count` magnitudes of an array are zero."""
    smallest = np.sort(abs(x), axis=None)[x.size - count]
    return np.where(abs(x) >= smallest, x, 0)


def agreeing_mean(x, weights=None):
    """Of those with the sign of the sum."""
    weights = np.ones(len(x)) if weights is None else weights
    agree = (x * np.sign(x.sum(0)) > 0) * weights.reshape(-1, *(1,) * (x.ndim - 1))
    total = agree.sum(0)
    return (agree * x).sum(0) / np.where(total > 0, total, 1)


def same_l1(x, kept):
    """What is kept, so much larger that the sum of magnitudes stays."""
    left = x * kept
    return left * abs(x).sum() / abs(left).sum()


def drawn(experts, name, shape):
    return np.stack([merging.uniforms(task, name, shape) for task in experts])


# ---- mergekit -----------------------------------------------------------------------


@leaf_by_leaf
def mergekit_model_stock_opposed(x, name, told):
    cosines = [
        np.vdot(a, b) / (norm(a) * norm(b)) for a, b in itertools.combinations(x, 2)
    ]
    c = np.mean(cosines)  # not at least 0
    return len(x) * c / (1 + (len(x) - 1) * c) * x.mean(0)


@leaf_by_leaf
def mergekit_ties_whole(x, name, told):
    count = int(told["density"] * x[0].size)  # of each tensor
    return told["scale"] * agreeing_mean(np.stack([largest(y, count) for y in x]))


def mergekit_dare_masked(experts, base, told):
    merged = {}
    for name, leaf in base.items():
        x = deltas(experts, base, name)
        kept = drawn(experts, name, leaf.shape) < told["density"]
        parts = [same_l1(y, mask) for y, mask in zip(x, kept, strict=True)]
        merged[name] = leaf + told["scale"] * sum(parts)
    return merged


def mergekit_della_masked(experts, base, told):
    merged = {}
    for name, leaf in base.items():
        x = deltas(experts, base, name)
        ranks = abs(x).argsort(-1).argsort(-1)
        slope = 2 * told["epsilon"] * ranks / (x.shape[-1] - 1)
        kept = (
            drawn(experts, name, leaf.shape) < told["density"] - told["epsilon"] + slope
        )
        parts = [same_l1(y, mask) for y, mask in zip(x, kept, strict=True)]
        merged[name] = leaf + told["scale"] * agreeing_mean(np.stack(parts))
    return merged


@leaf_by_leaf
def mergekit_breadcrumbs_crowded(x, name, told):
    count = int(told["density"] * x[0].size)
    top = int(told["outliers"] * x[0].size)
    first = max(0, x[0].size - count - top)  # rather fewer outliers than too few others
    kept = abs(x).reshape(len(x), -1).argsort(-1).argsort(-1).reshape(x.shape)
    return told["scale"] * (x * ((kept >= first) & (kept < first + count))).sum(0)


@leaf_by_leaf
def mergekit_sce_small(x, name, told):
    selected = largest(x.var(0), int(told["density"] * x[0].size)) != 0
    return agreeing_mean(x * selected)  # weights of all tasks are equal


# ---- FusionBench --------------------------------------------------------------------


@leaf_by_leaf
def fusionbench_model_stock_three(x, name, told):
    angles = [
        np.arccos(np.vdot(a, b) / (norm(a) * norm(b)))
        for a, b in itertools.combinations(x, 2)
    ]
    c = np.cos(np.mean(angles))
    return len(x) * c / (1 + (len(x) - 1) * c) * x.mean(0)


def fusionbench_ties_share(experts, base, told):
    flat = np.stack(
        [merging.vector(merging.wide(tree)) for tree in experts.values()]
    ) - merging.vector(merging.wide(base))
    count = int(told["density"] * flat.shape[1]) + 1
    merged = agreeing_mean(np.stack([largest(x, count) for x in flat]))
    return around(base, told["scale"] * merged)


@leaf_by_leaf
def fusionbench_magnitude_mask(x, name, told):
    (tau,) = x
    count = tau.shape[1] - int((1 - told["density"]) * tau.shape[1])
    return np.stack([largest(row, count) for row in tau])


def fusionbench_fisher_small(experts, base, told):
    fishers, floor = merging.wide(told["fishers"]), told["floor"]
    weights = {
        task: 1 / (norm(merging.vector(fishers[task])) + floor) for task in experts
    }
    merged = {}
    for name in base:
        parts = {
            task: weights[task] * (fishers[task][name] + floor) for task in experts
        }
        total = sum(parts.values())
        merged[name] = sum(parts[t] * experts[t][name] for t in experts) / total
    return merged


def fusionbench_tall_mask_algorithm(experts, base, told):
    merged = {}
    for name, leaf in base.items():
        x = deltas(experts, base, name)
        own, total = x[list(experts).index(told["task"])], x.sum(0)
        mask = abs(leaf - own) > told["threshold"] * abs(total - own)
        merged[name] = leaf + mask * total
    return merged


def fusionbench_emr_unequal_leaves(experts, base, told):
    at, parts, own, unified = list(experts).index(told["task"]), {}, 0.0, 0.0
    for name in base:
        x = deltas(experts, base, name)
        sign = np.sign(x.sum(0))
        agree = x * sign > 0
        parts[name] = sign * (abs(x) * agree).max(0) * agree[at]
        own += abs(x[at]).mean()
        unified += abs(parts[name]).mean()
    return {name: leaf + own / unified * parts[name] for name, leaf in base.items()}


def around(base, vector):
    """The base, and a vector of all numbers added to it."""
    merged, start = {}, 0
    for name in merging.shapes():
        leaf = base[name].astype(np.float64)
        merged[name] = leaf + vector[start : start + leaf.size].reshape(leaf.shape)
        start += leaf.size
    return merged
