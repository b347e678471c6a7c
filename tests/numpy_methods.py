"""Every method once more: its formula in NumPy float64, leaf by leaf, matrix by matrix.

Written from the formulas in the papers' layout and sharing no code with the library.
Models are flat dictionaries of arrays. `matrices` says which leaves are matrices, by
pairs of functions to and from `[out, in]` arrays; joined leaves come under a tuple of
their names.
"""

import functools
import math

import numpy as np
from numpy.linalg import eigh, norm, svd

EPS = 1e-9  # singular values below this share of the largest are absent


def wide(tree):
    return {name: np.asarray(x, np.float64) for name, x in tree.items()}


def mean_of(experts):
    return {
        name: sum(tree[name] for tree in experts.values()) / len(experts)
        for name in next(iter(experts.values()))
    }


def deltas(experts, base, name):
    return np.stack([tree[name] - base[name] for tree in experts.values()])


# ---- leaf by leaf -------------------------------------------------------------------


def per_leaf(function):
    """A method from a function of one leaf of all experts and of the base."""

    def method(experts, base, matrices, **told):
        return {
            name: function(
                [tree[name] for tree in experts.values()], base[name], **told
            )
            for name in base
        }

    return method


def lerp(x, base, t):
    return (1 - t) * x[0] + t * x[1]


def slerp(x, base, t, parallel=0.9995):
    a, b = x
    cos = np.vdot(a, b) / (norm(a) * norm(b))
    if abs(cos) >= parallel:
        return lerp(x, base, t)
    w = math.acos(cos)
    return (math.sin((1 - t) * w) * a + math.sin(t * w) * b) / math.sin(w)


def normalised_mean(x, base):
    direction = sum(y / norm(y) for y in x)
    return direction / norm(direction) * np.mean([norm(y) for y in x])


def karcher_mean(x, base):
    units = [y / norm(y) for y in x]
    p = sum(units) / norm(sum(units))
    for _ in range(200):
        tangent = np.zeros_like(p)
        for u in units:
            angle = math.acos(min(1.0, np.vdot(u, p)))
            side = u - np.vdot(u, p) * p
            if norm(side) > 0:
                tangent += angle * side / norm(side) / len(x)
        step = norm(tangent)
        if step == 0:
            break
        p = math.cos(step) * p + math.sin(step) * tangent / step
    return p * np.mean([norm(y) for y in x])


def norm_matching(x, base):
    mean = np.mean(x, axis=0)
    if mean.ndim < 2:
        return mean
    return mean * np.mean([norm(y) for y in x]) / norm(mean)


def weight_scope_alignment(x, base, variance="mean"):
    if base.ndim < 2:
        return np.mean(x, axis=0)
    mus, variances = [y.mean() for y in x], [y.var() for y in x]
    mu, common = np.mean(mus), np.mean(variances)
    if variance == "pooled":
        common = (
            np.mean([v + m**2 for v, m in zip(variances, mus, strict=True)]) - mu**2
        )
    moved = [(y - y.mean()) * math.sqrt(common / y.var()) + mu for y in x]
    return np.mean(moved, axis=0)


def model_stock(x, base):
    taus = [y - base for y in x]
    cosines = [
        np.vdot(a, b) / (norm(a) * norm(b))
        for i, a in enumerate(taus)
        for b in taus[i + 1 :]
    ]
    cos = max(0.0, np.mean(cosines))
    t = len(x) * cos / (1 + (len(x) - 1) * cos)
    return t * np.mean(x, axis=0) + (1 - t) * base


def from_merging(x, base, power=1.0, scale=1.0):
    taus = [y - base for y in x]
    weights = [norm(tau) ** power for tau in taus]
    merged = sum(w * tau for w, tau in zip(weights, taus, strict=True)) / sum(weights)
    return base + scale * merged


def top(tau, density):
    """The largest numbers of an array, the others zero."""
    count = max(1, math.floor(density * tau.size + 1e-9))
    smallest = np.sort(np.abs(tau), axis=None)[-count]
    return np.where(np.abs(tau) >= smallest, tau, 0)


def magnitude_mask(x, base, density, scale=1.0):
    return base + scale * sum(top(y - base, density) for y in x)


def breadcrumbs(x, base, scale, density=0.1, outliers=0.01):
    total = np.zeros_like(base)
    for y in x:
        tau = (y - base).ravel()
        order = np.argsort(-np.abs(tau), kind="stable")
        first = math.floor(outliers * tau.size + 1e-9)
        count = max(1, math.floor(density * tau.size + 1e-9))
        kept = order[first : first + count]
        part = np.zeros_like(tau)
        part[kept] = tau[kept]
        total += part.reshape(base.shape)
    return base + scale * total


def agreed(parts, weights=None):
    """The (weighted) mean of numbers whose sign is that of their sum."""
    parts = np.stack(parts)
    sign = np.sign(parts.sum(axis=0))
    weights = np.ones(len(parts)) if weights is None else weights
    found = np.zeros(parts.shape[1:])
    for place in np.ndindex(found.shape):
        rows = [
            (w, part[place])
            for w, part in zip(weights, parts, strict=True)
            if part[place] * sign[place] > 0
        ]
        if rows and sum(w for w, _ in rows) > 0:
            found[place] = sum(w * y for w, y in rows) / sum(w for w, _ in rows)
    return found


def magmax(x, base, scale=0.5):
    taus = np.stack([y - base for y in x])
    best = np.zeros_like(base)
    for tau in taus:
        best = np.where(np.abs(tau) >= np.abs(best), tau, best)
    return base + scale * best


def sce(x, base, density=1.0, scale=1.0):
    taus = np.stack([y - base for y in x])
    selected = top(taus.var(axis=0), density) != 0
    parts = taus * selected
    weights = np.array([np.mean(part**2) for part in parts])
    return base + scale * agreed(parts, weights / weights.sum())


def consensus(x, base, scale, threshold=0.4, agree=2):
    taus = [y - base for y in x]
    total = sum(taus)
    votes = sum(np.abs(tau) >= threshold * np.abs(total - tau) for tau in taus)
    return base + scale * np.where(votes >= agree, total, 0)


def one_bit(x, base, scale=1.0):
    if base.ndim < 2:
        return base + scale * sum(y - base for y in x)
    taus = [y - base for y in x]
    return base + scale * sum(np.sign(tau) * np.abs(tau).mean() for tau in taus)


def rounded(x, bits):
    step = (x.max() - x.min()) / (2**bits - 1)
    return x.min() + step * np.round((x - x.min()) / step)


def quantised(x, base, scale, bits=2, base_bits=None):
    taus = [y - base for y in x]
    if base_bits is None:
        return base + scale * sum(rounded(tau, bits) for tau in taus)
    middle = rounded(sum(taus) / len(taus), base_bits)
    return base + scale * sum(middle + rounded(tau - middle, bits) for tau in taus)


# ---- whole models -------------------------------------------------------------------


def nan_merging(experts, base, matrices, scale=1.0):
    lengths = [
        math.sqrt(sum(norm(tree[n] - base[n]) ** 2 for n in base))
        for tree in experts.values()
    ]
    weights = (1 / np.array(lengths)) / sum(1 / np.array(lengths))
    return {
        n: base[n] + scale * np.tensordot(weights, deltas(experts, base, n), axes=1)
        for n in base
    }


def ties(experts, base, matrices, density=0.2, scale=1.0):
    names = list(base)
    flat = [
        np.concatenate([(tree[n] - base[n]).ravel() for n in names])
        for tree in experts.values()
    ]
    merged = agreed([top(tau, density) for tau in flat])
    return unflatten(merged, base, scale)


def unflatten(vector, base, scale):
    found, start = {}, 0
    for n, x in base.items():
        found[n] = x + scale * vector[start : start + x.size].reshape(x.shape)
        start += x.size
    return found


def pcb(experts, base, matrices, scale, density=0.1):
    taus = np.stack(
        [
            np.concatenate([(tree[n] - base[n]).ravel() for n in base])
            for tree in experts.values()
        ]
    )
    tasks, count = taus.shape

    def minmax(rows):
        low, high = rows.min(axis=1)[:, None], rows.max(axis=1)[:, None]
        return (rows - low) / (high - low)

    ordered = np.sort(np.abs(taus), axis=1)
    low = ordered[:, int(count * 1e-4)][:, None]
    high = ordered[:, int(count * (1 - 1e-4)) - 1][:, None]
    size = np.clip(np.abs(taus), low, high)
    score = np.exp(tasks * minmax(size) ** 2) * np.tanh(taus * taus.sum(axis=0))
    floor = np.sort(score, axis=1)[:, int(count * (1 - density))][:, None]
    weights = minmax(np.maximum(score, floor))
    merged = (np.sign(taus) * size * weights).sum(0) / np.maximum(weights.sum(0), 1e-12)
    return unflatten(merged, base, scale)


def tall_mask(experts, base, matrices, task, threshold=0.4):
    found = {}
    for n in base:
        taus = deltas(experts, base, n)
        own, total = taus[list(experts).index(task)], taus.sum(axis=0)
        found[n] = base[n] + total * (np.abs(own) >= threshold * np.abs(total - own))
    return found


def emr(experts, base, matrices, task):
    at = list(experts).index(task)
    unified, own, kept = {}, 0.0, 0.0
    for n in base:
        taus = deltas(experts, base, n)
        sign = np.sign(taus.sum(axis=0))
        largest = np.where(taus * sign > 0, np.abs(taus), 0).max(axis=0)
        unified[n] = np.where(taus[at] * sign > 0, sign * largest, 0)
        own += np.abs(taus[at]).sum()
        kept += np.abs(unified[n]).sum()
    return {n: base[n] + own / kept * unified[n] for n in base}


def layer(name):
    return next((int(part) for part in name.split("/") if part.isdigit()), None)


def lines(experts, base, matrices, scale, slope):
    depth = 1 + max(layer(n) for n in base if layer(n) is not None)
    found = {}
    for n in base:
        above = 0 if layer(n) is None else slope * layer(n) / (depth - 1)
        found[n] = base[n] + (scale + above) * deltas(experts, base, n).sum(axis=0)
    return found


def lata(experts, base, matrices, instruct, scale, curve="linear", threshold=0.95):
    depth = 1 + max(layer(n) for n in base if layer(n) is not None)

    def of_layer(tree, number):
        names = [n for n in base if layer(n) == number]
        return np.concatenate([(tree[n] - base[n]).ravel() for n in names])

    found = dict(base)
    for task, tree in experts.items():
        if task == instruct:
            continue
        cosines = []
        for number in range(depth):
            a, b = of_layer(tree, number), of_layer(experts[instruct], number)
            cosines.append(np.vdot(a, b) / (norm(a) * norm(b)))
        order = sorted(range(depth), key=lambda i: -cosines[i])
        for n in base:
            weight = 1.0
            if layer(n) is not None:
                rank = 1 + order.index(layer(n))
                weight = {
                    "linear": (rank - 1) / (depth - 1),
                    "log": math.log(rank) / math.log(depth),
                    "threshold": float(cosines[layer(n)] <= threshold),
                }[curve]
            found[n] = found[n] + scale * weight * (tree[n] - base[n])
    return found


def fisher(experts, base, matrices, fishers, floor=1e-6):
    found = {}
    lengths = {
        task: math.sqrt(sum(norm(fishers[task][n]) ** 2 for n in base))
        for task in experts
    }
    for n in base:
        weights = {
            task: np.maximum(fishers[task][n] / lengths[task], floor)
            for task in experts
        }
        total = sum(weights.values())
        found[n] = sum(weights[task] * experts[task][n] for task in experts) / total
    return found


# ---- random numbers -----------------------------------------------------------------


def dropped(experts, base, uniforms, density, name):
    parts = []
    for task, tree in experts.items():
        tau = tree[name] - base[name]
        parts.append(np.where(uniforms(task, name, tau.shape) < density, tau, 0))
    return parts


def random_mask(experts, base, matrices, uniforms, density, scale=1.0):
    return {
        n: base[n] + scale * sum(dropped(experts, base, uniforms, density, n))
        for n in base
    }


def dare(experts, base, matrices, uniforms, density, scale):
    return {
        n: base[n] + scale / density * sum(dropped(experts, base, uniforms, density, n))
        for n in base
    }


def dare_ties(experts, base, matrices, uniforms, density, scale=1.0):
    return {
        n: base[n]
        + scale / density * agreed(dropped(experts, base, uniforms, density, n))
        for n in base
    }


def della(experts, base, matrices, uniforms, density, epsilon=0.15, scale=1.0):
    own = {n: pair for names, pair in matrices.items() for n in names}
    found = {}
    for n in base:
        split, join = own.get(n, (None, None))
        parts = []
        for task, tree in experts.items():
            tau, drawn = tree[n] - base[n], uniforms(task, n, base[n].shape)
            if split is None:
                rows, chance = [np.atleast_2d(tau)], [np.atleast_2d(drawn)]
            else:
                rows, chance = split([tau]), split([drawn])
            kept = []
            for block, u in zip(rows, chance, strict=True):
                out = np.zeros_like(block)
                for i, row in enumerate(block):
                    order = np.argsort(np.abs(row), kind="stable")
                    for rank, j in enumerate(order):
                        place = rank / (len(row) - 1) if len(row) > 1 else 0.5
                        p = density - epsilon + 2 * epsilon * place
                        out[i, j] = row[j] / p if u[i, j] < p else 0
                kept.append(out)
            if split is None:
                parts.append(kept[0].reshape(base[n].shape))
            else:
                (part,) = join(kept)
                parts.append(part)
        found[n] = base[n] + scale * agreed(parts)
    return found


# ---- matrix by matrix ---------------------------------------------------------------


def rest_of(experts, base, name, rest, scale):
    taus = deltas(experts, base, name)
    return (
        base[name]
        + taus.sum(axis=0)
        * {
            "sum": scale,
            "mean": 1 / len(taus),
            "scaled_mean": scale / len(taus),
            "base": 0.0,
        }[rest]
    )


def per_matrix(function, *, rest, centred=False):
    """A method from a function of the deltas `[tasks, out, in]` of one matrix."""

    def method(experts, base, matrices, *, scale=1.0, rest=rest, **told):
        origin = mean_of(experts) if centred else base
        found = {
            n: origin[n] if centred else rest_of(experts, base, n, rest, scale)
            for n in base
        }
        for names, (split, join) in matrices.items():
            stacks = [
                split([tree[n] - origin[n] for n in names]) for tree in experts.values()
            ]
            merged = [
                function(np.stack(one), **told) for one in zip(*stacks, strict=True)
            ]
            for n, part in zip(names, join(merged), strict=True):
                found[n] = origin[n] + scale * part
        return found

    return method


def cut(matrix, k):
    u, s, vh = svd(matrix, full_matrices=False)
    return u[:, :k], s[:k], vh[:k]


def low(matrix, k):
    u, s, vh = cut(matrix, k)
    return (u * s) @ vh


def share(rank, x):
    return max(1, math.floor(rank * min(x.shape[1:])))


def nearest_frame(x):
    """The polar factor on the span of x."""
    u, s, vh = svd(x, full_matrices=False)
    there = s > EPS * s[0]
    return u[:, there] @ vh[there]


def whitened(x, k):
    factors = [cut(matrix, k) for matrix in x]
    u = nearest_frame(np.concatenate([f[0] for f in factors], axis=1))
    v = nearest_frame(np.concatenate([f[2] for f in factors], axis=0))
    return (u * np.concatenate([f[1] for f in factors])) @ v


def tsv_m(x):
    return whitened(x, max(1, min(x.shape[1:]) // len(x)))


def cart_tsv(x, rank):
    return whitened(x, share(rank, x))


def cart(x, rank):
    return sum(low(matrix, share(rank, x)) for matrix in x)


def marchenko_pastur_median(b):
    """By the midpoint rule and the density in its first form."""
    low, high = (1 - math.sqrt(b)) ** 2, (1 + math.sqrt(b)) ** 2
    count = 400_000
    x = low + (np.arange(count) + 0.5) / count * (high - low)
    weights = np.cumsum(np.sqrt((high - x) * (x - low)) / x)
    return x[np.searchsorted(weights, weights[-1] / 2)]


def noise_edge(m, n):
    b = min(m, n) / max(m, n)
    top = math.sqrt(2 * (b + 1) + 8 * b / ((b + 1) + math.sqrt(b**2 + 14 * b + 1)))
    return top / math.sqrt(marchenko_pastur_median(b))


def found_low(matrix, rank, energy, noise):
    """The directions of one matrix that are kept without a search."""
    u, s, vh = svd(matrix, full_matrices=False)
    if rank is None:
        rank = 0.08 if energy is None and noise is None else 1.0
    keep = np.arange(len(s)) < share(rank, matrix[None])
    if energy is not None:
        reached = np.cumsum(s**2) >= energy * np.sum(s**2)
        keep &= np.arange(len(s)) <= np.argmax(reached)
    if noise is not None:
        keep &= s > noise * noise_edge(*matrix.shape) * np.median(s)
    return (u * (s * keep)) @ vh


def cart_data_free(experts, base, matrices, *, whole=False, scale=1.0, **told):
    match = told.pop("match", "projection")
    keep = {key: told.get(key) for key in ("rank", "energy", "noise")}
    origin = mean_of(experts)
    stacks = {
        names: [
            np.stack(one)
            for one in zip(
                *(split([t[n] - origin[n] for n in names]) for t in experts.values()),
                strict=True,
            )
        ]
        for names, (split, _) in matrices.items()
    }
    lows = {
        names: [np.stack([found_low(x, **keep) for x in one]) for one in found]
        for names, found in stacks.items()
    }

    def factor(low, full):
        """From the same tasks' vectors, `[tasks, numbers]`."""
        length = norm(low.sum(axis=0))
        if length < 1e-3 * norm(low) or not length:
            return 0.0
        if match == "length":
            return min(100, np.mean([norm(x) for x in full]) / length)
        return min(100, sum(norm(x) ** 2 for x in low) / length**2)

    def flat(found):
        return np.concatenate([x.reshape(len(x), -1) for one in found for x in one], 1)

    of_model = factor(flat(lows.values()), flat(stacks.values()))
    found = dict(origin)
    for names, (_, join) in matrices.items():
        merged = [
            (of_model if whole else factor(flat([[low]]), flat([[full]]))) * low.sum(0)
            for low, full in zip(lows[names], stacks[names], strict=True)
        ]
        for n, part in zip(names, join(merged), strict=True):
            found[n] = origin[n] + scale * part
    return found


def two_pass_cart(experts, base, matrices, rank, scale, first_rank=0.08):
    first = per_matrix(cart, rest="mean", centred=True)(
        experts, base, matrices, rank=first_rank, scale=1.0
    )
    second = per_matrix(cart, rest="base")
    return second(experts, first, matrices, rank=rank, scale=scale)


def cart_indexing(experts, base, matrices, task, rank, scale=1.0):
    origin = mean_of(experts)
    found = {n: origin[n] + scale * (experts[task][n] - origin[n]) for n in origin}
    for names, (split, join) in matrices.items():
        parts = [
            low(x, max(1, math.floor(rank * min(x.shape))))
            for x in split([experts[task][n] - origin[n] for n in names])
        ]
        for n, part in zip(names, join(parts), strict=True):
            found[n] = origin[n] + scale * part
    return found


def low_rank(experts, base, matrices, rank, scale=1.0):
    return per_matrix(cart, rest="sum")(experts, base, matrices, rank=rank, scale=scale)


def tsv_c(experts, base, matrices, task):
    count = len(experts)
    one = per_matrix(lambda x: low(x[0], max(1, min(x[0].shape) // count)), rest="sum")
    return one({task: experts[task]}, base, matrices)


def iso_c(x):
    u, s, vh = svd(x.sum(axis=0), full_matrices=False)
    return s.mean() * (u @ vh)


def iso_cts(x, common=0.8):
    tasks, r = len(x), min(x.shape[1:])
    own = round((r - int(common * r)) / tasks)
    own -= r < tasks * own  # more than there is, by rounding up
    k = r - tasks * own
    u, s, vh = cut(x.sum(axis=0), k)
    left, values, right = [], [], []
    for matrix in x:
        a, b, c = cut(matrix - u @ u.T @ matrix, own)
        left, values, right = [*left, a], [*values, b], [*right, c]
    values = np.concatenate([*values, s])
    frame = nearest_frame(np.concatenate([*left, u], axis=1))
    return values.mean() * frame @ nearest_frame(np.concatenate([*right, vh]))


def dc_merge(x, keep=0.001):
    tasks, r = len(x), min(x.shape[1:])
    k = max(1, r // tasks)
    factors = [cut(matrix, k) for matrix in x]
    u = nearest_frame(np.concatenate([f[0] for f in factors], axis=1))
    v = nearest_frame(np.concatenate([f[2] for f in factors], axis=0))
    entries = [top(u.T @ ((a * s) @ b) @ v.T, keep) for a, s, b in factors]
    merged = agreed(entries)
    mask = np.kron(np.eye(tasks), np.ones((k, k)))
    return u @ (merged * mask) @ v


def knots(x, density=1.0):
    u, s, vh = svd(np.concatenate(list(x), axis=1), full_matrices=False)
    there = s > EPS * s[0]
    parts = np.split((s[:, None] * vh)[there], len(x), axis=1)
    return u[:, there] @ agreed([top(part, density) for part in parts])


def star(x, energy=0.4):
    total = np.zeros(x.shape[1:])
    for matrix in x:
        u, s, vh = svd(matrix, full_matrices=False)
        k = 1 + int(np.argmax(np.cumsum(s) / s.sum() >= energy))
        total += (u[:, :k] * (s[:k] * s.sum() / s[:k].sum())) @ vh[:k]
    return total / len(x)


def subspace_boosting(x, beta=0.01):
    u, s, vh = svd(x.sum(axis=0), full_matrices=False)
    first = int(np.argmax(np.cumsum(s) / s.sum() >= beta))
    return (u * np.maximum(s, s[first])) @ vh


def svc(experts, base, matrices, scale, merger="task_arithmetic"):
    def calibrated(x):
        merged = tsv_m(x) if merger == "tsv_m" else x.sum(axis=0)
        a = 1.0 if merger == "tsv_m" else 1 / len(x)
        u, s, vh = svd(scale * merged, full_matrices=False)
        if merger == "iso_c":  # flat, it has no directions of its own
            s = np.full_like(s, s.mean())
            merged = (u * s) @ vh / scale
        gammas = []
        for r in range(len(s)):
            whole = u[:, r] @ (scale * merged)
            shares = [
                np.dot(whole, u[:, r] @ m) / np.dot(u[:, r] @ m, u[:, r] @ m) for m in x
            ]
            gammas.append(len(x) / sum(max(a, y) for y in shares))
        return (u * (np.array(gammas) * s)) @ vh / scale

    rest = "sum" if merger == "task_arithmetic" else "scaled_mean"
    method = per_matrix(calibrated, rest=rest)
    return method(experts, base, matrices, scale=scale)


def wudi(x, steps=300, learning_rate=1e-5):
    m = x.sum(axis=0)
    first, second = np.zeros_like(m), np.zeros_like(m)
    for step in range(1, steps + 1):
        gradient = sum(2 * (m - d) @ d.T @ d / norm(d) ** 2 for d in x)
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        change = (first / (1 - 0.9**step)) / (
            np.sqrt(second / (1 - 0.999**step)) + 1e-8
        )
        m = m - learning_rate * change
    return m


def wudi_closed(x):
    a = sum(d.T @ d / norm(d) ** 2 for d in x)
    b = sum(d @ d.T @ d / norm(d) ** 2 for d in x)
    inverse = np.linalg.pinv(a, rcond=1e-6, hermitian=True)
    return b @ inverse + x.sum(axis=0) @ (np.eye(len(a)) - a @ inverse)


def regmean(experts, base, matrices, grams, off_diagonal=0.95, ridge=1e-6):
    found = mean_of(experts)
    for names, (split, join) in matrices.items():
        stacks = {
            task: split([tree[n] for n in names]) for task, tree in experts.items()
        }
        merged = []
        for i in range(len(next(iter(stacks.values())))):
            left, right = 0.0, 0.0
            every = {task: np.float64(grams[task][names[0]]) for task in experts}
            each = ridge * np.mean([np.diag(g) for g in every.values()])
            for task in experts:
                g = every[task]
                g = off_diagonal * g + (1 - off_diagonal) * np.diag(np.diag(g))
                g = g + each * np.eye(len(g))
                left, right = left + stacks[task][i] @ g, right + g
            merged.append(left @ np.linalg.inv(right))
        found |= dict(zip(names, join(merged), strict=True))
    return found


def esm(experts, base, matrices, grams, scale):
    found = {n: rest_of(experts, base, n, "scaled_mean", scale) for n in base}
    updates = {}
    for names, (split, _) in matrices.items():
        stacks = [
            split([tree[n] - base[n] for n in names]) for tree in experts.values()
        ]
        x = np.stack([stack[0] for stack in stacks])
        tasks, out = x.shape[:2]
        k = max(1, out // tasks)
        lengths = np.array([norm(d) for d in x])
        us, vs = [], []
        for task, d, length in zip(experts, x, lengths, strict=True):
            values, vectors = eigh(d @ np.float64(grams[task][names[0]]) @ d.T)
            values, vectors = np.maximum(values[::-1][:k], 0), vectors[:, ::-1][:, :k]
            g = (values / values.mean()) ** 0.15
            g = g / g.mean()
            us.append(vectors * g)
            a = vectors.T @ d * (length / lengths.mean()) ** 2
            vs.append(a * g[:, None])
        u, v = np.concatenate(us, axis=1), np.concatenate(vs, axis=0)
        columns = norm(v, axis=0)
        v = v * (columns / columns.mean()) ** 2
        frames = [nearest_frame(y) * svd(y, compute_uv=False).mean() for y in (u, v)]
        updates[names] = 2 * frames[0] @ frames[1]

    def kind(names):
        return tuple(
            tuple("*" if part.isdigit() else part for part in n.split("/"))
            for n in names
        )

    for names, update in updates.items():
        alike = [norm(y) for other, y in updates.items() if kind(other) == kind(names)]
        changed = [n for n in alike if n > 0] or [1.0]
        weight = (norm(update) / np.mean(changed)) ** 2
        split, join = matrices[names]
        for n, part in zip(names, join([weight * update]), strict=True):
            found[n] = base[n] + scale * part
    return found


def ace_merging(x, ridge=1e-5, heterogeneity=0.3, fraction=0.3):
    tasks, r = len(x), min(x.shape[1:])
    sizes = np.array([norm(d) ** 2 for d in x])
    logs = np.log(sizes + 1e-12)
    unlike = tasks > 1 and logs.var(ddof=1) / logs.mean() ** 2 > heterogeneity
    numerator, denominator, plain, ridges = 0.0, 0.0, [], []
    for d in x:
        e = d - d.mean(axis=0)
        unit = np.trace(e.T @ e) if unlike else 1.0
        plain.append(e.T @ e / unit)
        ridges.append(plain[-1] + ridge / unit * np.eye(x.shape[2]))
        numerator = numerator + e @ ridges[-1]
        denominator = denominator + ridges[-1]
    row = sum(plain).mean(axis=0) / (sizes.mean() if unlike else 1.0)
    merged = numerator @ np.linalg.inv(denominator + row[None])
    if unlike:
        middle = sum(ridges) / tasks
        residual = merged + sum(d @ (c - middle) for d, c in zip(x, plain, strict=True))
        u, s, vh = cut(residual, max(1, int(fraction * r)))
        merged = merged + s.mean() * (u @ vh)
    return merged


def truncated_task_arithmetic(experts, base, matrices, rank, scale):
    return per_matrix(cart, rest="mean")(
        experts, base, matrices, rank=rank, scale=scale
    )


REFERENCES = {
    "cart": per_matrix(cart, rest="mean", centred=True),
    "cart_tsv": per_matrix(cart_tsv, rest="mean", centred=True),
    "cart_data_free": cart_data_free,
    "cart_data_free_whole": functools.partial(cart_data_free, whole=True),
    "two_pass_cart": two_pass_cart,
    "cart_indexing": cart_indexing,
    "weight_average": per_leaf(lambda x, base: np.mean(x, axis=0)),
    "lerp": per_leaf(lerp),
    "slerp": per_leaf(slerp),
    "normalised_mean": per_leaf(normalised_mean),
    "karcher_mean": per_leaf(karcher_mean),
    "norm_matching": per_leaf(norm_matching),
    "weight_scope_alignment": per_leaf(weight_scope_alignment),
    "model_stock": per_leaf(model_stock),
    "fisher": fisher,
    "regmean": regmean,
    "regmean_plus_plus": regmean,
    "task_arithmetic": per_leaf(
        lambda x, base, scale: base + scale * sum(y - base for y in x)
    ),
    "ties": ties,
    "magnitude_mask": per_leaf(magnitude_mask),
    "random_mask": random_mask,
    "dare": dare,
    "dare_ties": dare_ties,
    "breadcrumbs": per_leaf(breadcrumbs),
    "della": della,
    "magmax": per_leaf(magmax),
    "sce": per_leaf(sce),
    "pcb": pcb,
    "consensus": per_leaf(consensus),
    "tall_mask": tall_mask,
    "emr": emr,
    "from_merging": per_leaf(from_merging),
    "nan_merging": nan_merging,
    "one_bit": per_leaf(one_bit),
    "quantised": per_leaf(quantised),
    "lines": lines,
    "lata": lata,
    "wise_ft": per_leaf(lambda x, base, scale: base + scale * (x[0] - base)),
    "truncated_task_arithmetic": truncated_task_arithmetic,
    "low_rank": low_rank,
    "tsv_m": per_matrix(tsv_m, rest="scaled_mean"),
    "tsv_c": tsv_c,
    "iso_c": per_matrix(iso_c, rest="scaled_mean"),
    "iso_cts": per_matrix(iso_cts, rest="scaled_mean"),
    "dc_merge": per_matrix(dc_merge, rest="scaled_mean"),
    "knots": per_matrix(knots, rest="scaled_mean"),
    "star": per_matrix(star, rest="scaled_mean"),
    "subspace_boosting": per_matrix(subspace_boosting, rest="sum"),
    "svc": svc,
    "wudi": per_matrix(wudi, rest="base"),
    "wudi_closed": per_matrix(wudi_closed, rest="base"),
    "ace_merging": per_matrix(ace_merging, rest="scaled_mean"),
    "esm": esm,
}
