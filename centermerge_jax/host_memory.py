"""Arrays in this process's own memory, which NumPy and JAX can share.

On the CPU, NumPy's elementwise passes beat XLA's here: XLA copies NumPy arrays on the
way in, and takes fresh memory in small pages for every result, where NumPy asks for
large ones.
"""

import ctypes
import math
import os
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

_ALIGNMENT = 64  # bytes, from which on XLA takes an array over without copying it


def on_host(x: Any) -> bool:
    """Whether an array's values lie in this process's memory, ready for NumPy."""
    if isinstance(x, Tracer):
        return False
    if isinstance(x, jax.Array):
        devices = x.devices()
        return len(devices) == 1 and {d.platform for d in devices} == {"cpu"}
    return jax.default_backend() == "cpu"


def empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Memory that `as_jax` needs not copy.

    Example:
      >>> x = empty((2, 3), np.float32)
      >>> x.shape, x.ctypes.data % 64
      ((2, 3), 0)
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


class Arena:
    """Memory that is used again and again, as the system is slow to give new one.

    Example:
      >>> arena = Arena()
      >>> arena.clear(1000)
      >>> x = arena.allocate(600).view(np.float32)
      >>> arena.holds(x), x.ctypes.data % 64
      (True, 0)
    """

    def __init__(self) -> None:
        """Takes no memory yet."""
        self._memory = np.empty(0, np.uint8)
        self._used = 0

    def clear(self, size: int) -> None:
        """Forgets all that was allocated, and sees to it that so many bytes fit in."""
        self._used = 0
        if size > self._memory.size:
            self._memory = np.empty(0, np.uint8)  # gone before there is more
            self._memory = empty((size,), np.uint8)

    def allocate(self, size: int) -> np.ndarray:
        """Some of the memory, as `uint8[size]`; fresh memory when it is used up."""
        start = -(-self._used // _ALIGNMENT) * _ALIGNMENT
        if start + size > self._memory.size:
            return empty((size,), np.uint8)
        self._used = start + size
        return self._memory[start : self._used]

    def holds(self, x: np.ndarray) -> bool:
        """Whether an array may lie in this memory."""
        return np.may_share_memory(x, self._memory)


def as_jax(x: np.ndarray, like: Any = None) -> Array:
    """The same memory as a JAX array; nobody may write to it any more.

    Args:
      x: An array, best from `empty`.
      like: Its device is taken, if it is a JAX array.
    """
    device = next(iter(like.devices())) if isinstance(like, jax.Array) else None
    return jax.device_put(x, device, may_alias=True)


def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # where processes are not bound to cores


def give_back() -> None:
    """Returns freed memory to the system, which glibc otherwise keeps in pieces.

    Without it a merge in parts grows by what all parts have ever used. Elsewhere than
    on glibc nothing happens.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
