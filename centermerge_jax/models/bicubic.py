"""Resizing a table of positions as the models that were trained with it do."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def resize(
    table: Float[Array, "rows cols d"], rows: int, cols: int, *, smooth: bool = False
) -> Float[Array, "{rows} {cols} d"]:
    """The table at another size, by cubics along both axes.

    Args:
      table: A vector for each place of a grid.
      rows: Wanted rows of the grid.
      cols: Wanted columns.
      smooth: Whether shrinking smooths: see `smooth_weights`.

    Returns:
      The table itself where the size is its own already.

    Example:
      >>> resize(jnp.ones((4, 4, 8)), 2, 3).shape
      (2, 3, 8)
    """
    if table.shape[:2] == (rows, cols):
        return table
    line = smooth_weights if smooth else weights
    return jnp.einsum(
        "ri,cj,ijd->rcd",
        line(table.shape[0], rows),
        line(table.shape[1], cols),
        table,
        precision=jax.lax.Precision.HIGHEST,
    )


def weights(
    source: int, target: int, *, a: float = -0.75
) -> Float[np.ndarray, "target source"]:
    r"""The matrix that resizes a line of `source` samples to `target` by cubics.

    Row i has Keys' kernel with parameter `a` around `(i + 1/2) source/target - 1/2`;
    samples outside are those at the edge, and shrinking does not smooth.

    Args:
      source: Number of samples given.
      target: Number of samples wanted.
      a: Slope of the kernel at distance 1. PyTorch and ONNX have -0.75;
        `jax.image.resize` has -0.5, which is why it cannot be used here.

    Returns:
      float32 weights, each row summing to one.

    Example:
      >>> weights(4, 4).tolist() == np.eye(4).tolist()
      True

    References:
      Keys, Cubic Convolution Interpolation for Digital Image Processing, 1981, eq. 15.
    """
    centres = (np.arange(target) + 0.5) * (source / target) - 0.5
    matrix = np.zeros((target, source))
    for tap in range(-1, 3):
        index = np.floor(centres).astype(int) + tap
        x = np.abs(centres - index)
        near = (a + 2) * x**3 - (a + 3) * x**2 + 1
        far = a * (x**3 - 5 * x**2 + 8 * x - 4)
        edge = np.clip(index, 0, source - 1)
        np.add.at(matrix, (np.arange(target), edge), np.where(x <= 1, near, far))
    return matrix.astype(np.float32)


def smooth_weights(source: int, target: int) -> Float[np.ndarray, "target source"]:
    """As `weights`, with the kernel as wide as the distance of the wanted samples.

    This is what PyTorch calls antialiasing, and Pillow resizing: the kernel's parameter
    is -1/2, and what it would take from outside is taken from all inside.

    Example:
      >>> [f"{weight:.2f}" for weight in smooth_weights(4, 2)[0]]
      ['0.46', '0.46', '0.12', '-0.04']
    """
    scale = source / target
    centres = (np.arange(target) + 0.5) * scale
    places = np.arange(source) + 0.5
    x = np.abs(places[None] - centres[:, None]) / max(scale, 1.0)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    matrix = np.where(x <= 1, near, np.where(x <= 2, far, 0.0))
    return (matrix / matrix.sum(axis=1, keepdims=True)).astype(np.float32)
