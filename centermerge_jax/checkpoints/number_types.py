"""Which types of numbers, and which shapes, an array read from a file may have.

Files name their types, and damaged or hostile ones name anything: nothing is made of a
name before it is known here.
"""

from collections.abc import Sequence
from math import prod

import ml_dtypes
import numpy as np

_NUMPY = (
    "bool",
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
)
_ML_DTYPES = (
    "bfloat16",
    *("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"),
    "float8_e8m0fnu",
)
_BY_NAME = {
    **{name: np.dtype(name) for name in _NUMPY},
    **{name: np.dtype(getattr(ml_dtypes, name)) for name in _ML_DTYPES},
}
_MAX_AXES, _MAX_BYTES = 64, 2**63 - 1  # NumPy's


def known(name: str) -> np.dtype | None:
    """The type of this name, of those that NumPy, Flax and PyTorch name alike.

    Example:
      >>> known("bfloat16"), known("float32"), known("object")
      (dtype(bfloat16), dtype('float32'), None)
    """
    return _BY_NAME.get(name)


def is_possible(shape: Sequence[int], dtype: np.dtype) -> bool:
    """Whether NumPy can make such an array at all, were there the memory.

    Example:
      >>> byte = np.dtype("uint8")
      >>> is_possible((2, 0), byte), is_possible((0, 2**63), byte)
      (True, False)
    """
    # Zeros do not count: NumPy refuses 0 times too much as well.
    return (
        len(shape) <= _MAX_AXES
        and all(axis >= 0 for axis in shape)
        and prod(max(1, axis) for axis in shape) * dtype.itemsize <= _MAX_BYTES
    )
