"""Small models that every program merges alike, and what methods are told of them.

A base, three experts that moved unlike far and partly the same way, and statistics and
random numbers by name: with PyTorch's names and layout, in plain NumPy.
"""

import hashlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from golden import weights

WIDTH, HIDDEN, VOCABULARY, LAYERS = 16, 48, 12, 2
MOVED = {"a": 0.01, "b": 0.02, "c": 0.04}
"""Typical size of each expert's task vector; what typical weights have is 0.03."""
SHARED = 0.8
"""How far experts move together, as a share of how far each moves on its own."""

Model = dict[str, np.ndarray]


def shapes() -> dict[str, tuple[int, ...]]:
    """Every leaf with its shape."""
    found: dict[str, tuple[int, ...]] = {"embed_tokens.weight": (VOCABULARY, WIDTH)}
    for layer in range(LAYERS):
        prefix = f"layers.{layer}."
        for name in "qkvo":
            found[f"{prefix}self_attn.{name}_proj.weight"] = (WIDTH, WIDTH)
            found[f"{prefix}self_attn.{name}_proj.bias"] = (WIDTH,)
        found[f"{prefix}mlp.up_proj.weight"] = (HIDDEN, WIDTH)
        found[f"{prefix}mlp.up_proj.bias"] = (HIDDEN,)
        found[f"{prefix}mlp.down_proj.weight"] = (WIDTH, HIDDEN)
        found[f"{prefix}mlp.down_proj.bias"] = (WIDTH,)
        for norm in ("norm1", "norm2"):
            found[f"{prefix}{norm}.weight"] = (WIDTH,)
            found[f"{prefix}{norm}.bias"] = (WIDTH,)
    return found


def models(
    *,
    experts: str = "abc",
    factors: Mapping[str, float] | None = None,
    leaves: str = ".*",
) -> tuple[dict[str, Model], Model]:
    """Experts by task, and their base.

    Args:
      experts: Which, a letter each.
      factors: By task, what its task vector is multiplied by.
      leaves: Regular expression of the leaves that the models have.

    Example:
      >>> experts, base = models(experts="ab", leaves="embed.*")
      >>> list(experts), {name: x.shape for name, x in base.items()}
      (['a', 'b'], {'embed_tokens.weight': (12, 16)})
    """
    chosen = {n: s for n, s in shapes().items() if re.fullmatch(leaves, n)}
    base = {name: weights.leaf(name, shape) for name, shape in chosen.items()}
    tuned = {}
    for task in experts:
        size = MOVED[task] * (factors or {}).get(task, 1.0)
        tuned[task] = {
            name: x
            + np.float32(size)
            * (
                weights.numbers(f"task {task}: {name}", x.shape)
                + np.float32(SHARED) * weights.numbers(f"tasks: {name}", x.shape)
            )
            for name, x in base.items()
        }
    return tuned, base


def fishers(base: Model, *, tasks: str, size: float) -> dict[str, Model]:
    """Diagonals of Fisher information: squares of numbers of about that size."""
    return {
        task: {
            name: np.float32(size)
            * weights.numbers(f"fisher {task}: {name}", x.shape) ** 2
            for name, x in base.items()
        }
        for task in tasks
    }


def grams(base: Model, *, tasks: str) -> dict[str, Model]:
    """Second moments of the inputs of each matrix: the mean of `x^T x` over 64."""
    found: dict[str, Model] = {}
    for task in tasks:
        found[task] = {}
        for name, leaf in base.items():
            if leaf.ndim == 2 and "embed" not in name:
                x = weights.numbers(f"inputs {task}: {name}", (64, leaf.shape[1]))
                x = x + np.float32(0.5)  # inputs are not centred
                found[task][name] = x.T @ x / np.float32(len(x))
    return found


def uniforms(task: str, leaf: str, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers in [0, 1) of 24 bits.

    Example:
      >>> uniforms("a", "w", (2,)).dtype
      dtype('float32')
    """
    digest = hashlib.sha256(f"uniforms {task}: {leaf}".encode()).digest()
    generator = np.random.Philox(key=int.from_bytes(digest[:16], "little"))
    bits = np.asarray(generator.random_raw(int(np.prod(shape))))
    drawn = (bits >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)
    return drawn.reshape(shape)


def wide(tree: Any) -> Any:
    """The same in float64, at any depth of dictionaries."""
    if isinstance(tree, Mapping):
        return {name: wide(part) for name, part in tree.items()}
    return np.asarray(tree, np.float64)


def vector(model: Mapping[str, np.ndarray]) -> np.ndarray:
    """All numbers of a model, leaf after leaf in the order of `shapes`."""
    names = [name for name in shapes() if name in model]
    return np.concatenate([np.asarray(model[name]).ravel() for name in names])


def moved(merged: Mapping[str, np.ndarray], base: Model) -> np.ndarray:
    """How far a merged model is from the base, as float32."""
    far = vector(merged).astype(np.float64) - vector(base).astype(np.float64)
    return far.astype(np.float32)
