"""Transformers written again in NumPy and float64, for trees of our models."""

import math

import jax
import numpy as np


def random_tree(params, seed=0):
    """All leaves random, so that no bias or scale is without effect."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    drawn = [
        0.5 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(tree, drawn)


def as_float64(params):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), params)


def norm(x, p, epsilon):
    deviation = np.sqrt(x.var(-1, keepdims=True) + epsilon)
    return (x - x.mean(-1, keepdims=True)) / deviation * p["scale"] + p["bias"]


def dense(x, p):
    return x @ p["kernel"] + p.get("bias", 0)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def attention(y, p, heads, seen):
    """`seen[n, query, key]` says which keys each query may look at."""
    q, k, v = (dense(y, p[name]) for name in "qkv")
    size = y.shape[-1] // heads
    mixed = []
    for start in range(0, y.shape[-1], size):
        cut = slice(start, start + size)
        scores = q[..., cut] @ k[..., cut].swapaxes(-1, -2) / np.sqrt(size)
        mixed.append(softmax(np.where(seen, scores, -1e300)) @ v[..., cut])
    return dense(np.concatenate(mixed, -1), p["out"])


def block(x, p, *, heads, epsilon, activation, seen=True, norm_first=True):
    def mlp(y):
        return dense(activation(dense(y, p["mlp"]["fc1"])), p["mlp"]["fc2"])

    if not norm_first:
        x = norm(x + attention(x, p["attn"], heads, seen), p["norm1"], epsilon)
        return norm(x + mlp(x), p["norm2"], epsilon)
    scales = [p.get(f"layer_scale{i}", {"scale": 1})["scale"] for i in (1, 2)]
    y = attention(norm(x, p["norm1"], epsilon), p["attn"], heads, seen)
    x = x + y * scales[0]
    return x + mlp(norm(x, p["norm2"], epsilon)) * scales[1]


def blocks(x, p, **how):
    for i in range(len(p)):
        x = block(x, p[str(i)], **how)
    return x


def gelu(x):
    return x * np.vectorize(lambda x: (1 + math.erf(x / math.sqrt(2))) / 2)(x)


def quick_gelu(x):
    return x / (1 + np.exp(-1.702 * x))


def gelu_tanh(x):
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def vit(params, images, config, activation, *, both=False):
    """Features of images of the stored size; class token and mean if `both`."""
    p = as_float64(params)
    images, s = np.asarray(images, np.float64), config.patch
    side = images.shape[1] // s
    tokens = []
    for row in range(side):
        for col in range(side):
            cut = images[:, row * s : row * s + s, col * s : col * s + s]
            x = np.einsum("nijc,ijcd->nd", cut, p["embed"]["patch"]["kernel"])
            tokens.append(x + p["embed"]["patch"].get("bias", 0))
    x = np.stack(tokens, 1)
    positions, lead = p["embed"]["positions"], np.zeros((0, config.width))
    if config.class_token:
        lead = p["embed"]["class_token"][None]
        if config.class_position:
            lead, positions = lead + positions[:1], positions[1:]
    lead = np.concatenate([lead, p["embed"].get("register_tokens", lead[:0])])
    x = x + positions
    x = np.concatenate([np.broadcast_to(lead, (len(x), *lead.shape)), x], 1)
    if config.pre_norm:
        x = norm(x, p["pre_norm"], config.epsilon)
    how = {"heads": config.heads, "epsilon": config.epsilon, "activation": activation}
    x = norm(blocks(x, p["blocks"], **how), p["norm"], config.epsilon)
    mean = x[:, len(lead) :].mean(1)
    if both:
        return np.concatenate([x[:, 0], mean], 1)
    return x[:, 0] if config.class_token else mean
