"""Numbers that every program makes alike: weights by their names, images, token ids.

A leaf is cut from one block of random numbers, where a digest of its name says, and
scaled as the digest says: 430 million weights take seconds, and no file. Numbers are
uniform and computed here, because NumPy promises to keep the bits of a generator but
not what its distributions make of them.

Plain NumPy: `third_party/parity` imports this into environments without JAX.
"""

import functools
import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

Shapes = Mapping[str, tuple[int, ...]]

# A prime: rows of a matrix larger than the block never repeat one another.
_PERIOD = 2**20 - 3
# Typical trained sizes; large enough that attention is not uniform, and that a wrong
# epsilon in a LayerNorm after an embedding shows.
_MATRIX, _VECTOR = 0.03, 0.1
# 1-D leaves around one: scales of norms, of residual branches, and of logits.
_SCALES = re.compile(r"(.*\.)?(weight|lambda1|gamma|logit_scale)")


def numbers(
    name: str, shape: Sequence[int], *, deviation: float = 1.0, mean: float = 0.0
) -> np.ndarray:
    """float32 numbers of a name: uniform, with that deviation (give or take a quarter).

    Example:
      >>> x = numbers("a", (3, 5))
      >>> bool(np.array_equal(x, numbers("a", (3, 5))))
      True
      >>> bool(np.array_equal(x, numbers("b", (3, 5))))
      False
    """
    digest = hashlib.sha256(name.encode()).digest()
    start = int.from_bytes(digest[:8], "little") % _PERIOD
    factor = np.float32(deviation * (0.75 + digest[8] / 510))
    block = np.roll(_block(), -start) * factor + np.float32(mean)
    return np.resize(block, tuple(shape))


def leaf(name: str, shape: Sequence[int]) -> np.ndarray:
    """The weights of a public name."""
    if len(shape) > 1:
        return numbers(name, shape, deviation=_MATRIX)
    mean = float(_SCALES.fullmatch(name) is not None)
    return numbers(name, shape, deviation=_VECTOR, mean=mean)


def expert_leaf(name: str, shape: Sequence[int], *, index: int) -> np.ndarray:
    """The weights of one of several models fine-tuned from `leaf`'s."""
    update = numbers(f"expert {index}: {name}", shape, deviation=0.1 * _MATRIX)
    return np.asarray(leaf(name, shape) + update)  # an array, also of no axes


class Leaves(Mapping[str, np.ndarray]):
    """A checkpoint that makes each leaf when it is read."""

    def __init__(self, shapes: Shapes):
        """Of these names and shapes."""
        self.shapes = dict(shapes)

    def __getitem__(self, name: str) -> np.ndarray:
        """The leaf."""
        return leaf(name, self.shapes[name])

    def __iter__(self) -> Iterator[str]:
        """Names."""
        return iter(self.shapes)

    def __len__(self) -> int:
        """How many."""
        return len(self.shapes)


def images(count: int, height: int, width: int) -> np.ndarray:
    """Normalised pictures: [count, height, width, 3], deviation about one."""
    return numbers(f"{height} x {width} images", (count, height, width, 3))


def picture(height: int, width: int, *, grey: bool = False) -> np.ndarray:
    """uint8 pixels, [height, width, 3] or [height, width]: slopes, edges and noise.

    Example:
      >>> picture(2, 3).shape, picture(2, 3, grey=True).dtype
      ((2, 3, 3), dtype('uint8'))
    """
    rows, columns = np.mgrid[:height, :width]
    slopes = [255 * rows // height, 255 * columns // width, (rows + columns) % 256]
    edges = 96 * ((rows // 5 + columns // 7) % 2)
    noise = np.random.Philox(key=2).random_raw(height * width * 3) % 64
    pixels = np.stack(slopes, 2) // 2 + edges[..., None]
    pixels = pixels + noise.astype(np.int64).reshape(height, width, 3)
    pixels = pixels.clip(0, 255).astype(np.uint8)
    return pixels[..., 0] if grey else pixels


def token_ids(
    lengths: Sequence[int],
    *,
    width: int,
    vocabulary: int,
    start: int,
    end: int,
    pad: int,
) -> np.ndarray:
    """int32 [len(lengths), width]: start, words, end, then padding.

    Example:
      >>> token_ids([3, 4], width=5, vocabulary=1, start=7, end=9, pad=0).tolist()
      [[7, 0, 9, 0, 0], [7, 0, 0, 9, 0]]
    """
    words = np.random.Philox(key=1).random_raw(len(lengths) * width) % vocabulary
    ids = words.astype(np.int32).reshape(len(lengths), width)
    for row, length in zip(ids, lengths, strict=True):
        row[0], row[length - 1], row[length:] = start, end, pad
    return ids


def fold(shapes: Shapes) -> dict[str, list[int]]:
    """Names with their shapes, the blocks of a network in one line: `unfold` undoes it.

    Example:
      >>> fold({"h.0.w": (2,), "h.1.w": (2,), "n": ()})
      {'h.{0..1}.w': [2], 'n': []}
    """
    blocks: dict[str, list[int]] = {}
    for name in shapes:
        if found := re.search(r"(?<=\.)\d+(?=\.)", name):
            pattern = f"{name[: found.start()]}{{}}{name[found.end() :]}"
            blocks.setdefault(pattern, []).append(int(found[0]))
        else:
            blocks[name] = []
    folded = {}
    for pattern, indices in blocks.items():
        shape = shapes[pattern.replace("{}", "0")]
        line = pattern.replace("{}", f"{{0..{len(indices) - 1}}}")
        folded[line] = list(shape)
    if unfold(folded) != {name: tuple(shape) for name, shape in shapes.items()}:
        raise ValueError(f"blocks are not alike, or not numbered from 0: {shapes}")
    return folded


def unfold(folded: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    """Every name with its shape.

    Example:
      >>> unfold({"h.{0..1}.w": [2], "n": []})
      {'h.0.w': (2,), 'h.1.w': (2,), 'n': ()}
    """
    shapes = {}
    for line, shape in folded.items():
        found = re.search(r"\{0\.\.(\d+)\}", line)
        names = (
            [line.replace(found[0], str(i)) for i in range(int(found[1]) + 1)]
            if found
            else [line]
        )
        shapes |= dict.fromkeys(names, tuple(shape))
    return shapes


@functools.cache
def _block() -> np.ndarray:
    """Uniform numbers of mean zero and variance one."""
    bits = np.random.Philox(key=0).random_raw(_PERIOD)
    # 24 bits are exact in float32.
    share = (bits >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)
    return (share - np.float32(0.5)) * np.float32(math.sqrt(12))
