"""A small model with every kind of leaf, and what methods have to be told of it."""

import jax.numpy as jnp
import numpy as np

from centermerge_jax.methods import METHODS

WIDTH, HEADS, HIDDEN, LAYERS = 16, 2, 24, 2

SHAPES = {
    "embed/embedding": (10, WIDTH),
    "norm/scale": (WIDTH,),
    "small/kernel": (2, 2),
    "tables/gates": (3,),
}
for _layer in range(LAYERS):
    SHAPES |= {
        f"blocks/{_layer}/attn/query/kernel": (WIDTH, HEADS, WIDTH // HEADS),
        f"blocks/{_layer}/attn/key/kernel": (WIDTH, HEADS, WIDTH // HEADS),
        f"blocks/{_layer}/attn/value/kernel": (WIDTH, HEADS, WIDTH // HEADS),
        f"blocks/{_layer}/attn/out/kernel": (HEADS, WIDTH // HEADS, WIDTH),
        f"blocks/{_layer}/mlp/fc1/kernel": (WIDTH, HIDDEN),
        f"blocks/{_layer}/mlp/fc1/bias": (HIDDEN,),
    }
MATRICES = [name for name in SHAPES if name.endswith("kernel")]

NEEDED = {
    "density": 0.5,
    "instruct": "b",
    "rank": 0.25,
    "scale": 0.5,
    "slope": 0.5,
    "t": 0.3,
    "task": "a",
}
"""Values of hyperparameters that have no default."""

ONE, TWO = ("wise_ft",), ("lerp", "slerp")
RANDOM = ("random_mask", "dare", "dare_ties", "della")


def models(count=3, *, seed=0, size=0.02, dtype=np.float32):
    """Experts by name, and their base, as flat trees."""
    rng = np.random.default_rng(seed)

    def draw():
        return {name: rng.normal(size=shape) for name, shape in SHAPES.items()}

    base = draw()
    names = [chr(ord("a") + i) for i in range(count)]
    tuned = {
        # Experts that moved unlike far.
        name: {n: base[n] + (1 + i) * size * x for n, x in draw().items()}
        for i, name in enumerate(names)
    }
    return {n: cast(tree, dtype) for n, tree in tuned.items()}, cast(base, np.float32)


def cast(tree, dtype):
    return {name: np.asarray(jnp.asarray(x, dtype)) for name, x in tree.items()}


def data(method, tasks, seed=7):
    """Statistics of each task, of the kind that a method needs."""
    rng = np.random.default_rng(seed)
    if method.data in ("gram", "merged_gram"):
        return {
            "grams": {
                task: {name: gram(rng, name) for name in MATRICES} for task in tasks
            }
        }
    if method.data == "fisher":
        return {
            "fishers": {
                task: {
                    name: np.float32(rng.uniform(size=shape) ** 4)
                    for name, shape in SHAPES.items()
                }
                for task in tasks
            }
        }
    return {}


def gram(rng, name):
    inputs = {"small/kernel": 2}.get(name, WIDTH)
    x = rng.normal(size=(60, inputs)) * np.linspace(0.5, 2, inputs)
    return np.float32(x.T @ x / len(x))


def settings(method, **changed):
    """Hyperparameters for all that a method has to be told."""
    own = method.own
    found = {
        name: NEEDED[name]
        for name, parameter in own.items()
        if parameter.default is parameter.empty
    }
    return found | {name: value for name, value in changed.items() if name in own}


def tasks_of(name, experts):
    """As many of the experts as a method takes."""
    count = 1 if name in ONE else 2 if name in TWO else len(experts)
    return dict(list(experts.items())[:count])


def run(name, experts, base, **hyperparameters):
    """A method by its name, on experts, with what it needs."""
    method = METHODS[name]
    given = data(method, experts) | hyperparameters
    return method.function(experts, *([base] if method.needs_base else []), **given)
