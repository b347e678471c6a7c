"""Experts as real fine-tuning leaves them, but made in seconds.

Base weights are Gaussian; each task vector is `u diag(s) v^T` with the singular values
that `spectrum.py` measured on real experts and with random singular vectors: one pair
of orthonormal factors for each shape (a QR factorisation is dear at these sizes), whose
rows are permuted and change sign anew for each layer and task, which leaves them
orthonormal and sends them to other subspaces. What real experts share between tasks is
not imitated: it would fall out in the centring.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

import centermerge_jax as cm
from centermerge_jax.views import Rule
from experiments.benchmarks.spectrum import Which, relative_norm, spectrum

VIEWS = (
    Rule(r".*\.(in_proj_weight|(out_proj|c_fc|c_proj)\.weight)", rows=(0,), cols=(1,)),
    Rule(r"conv1\.weight|.*positional_embedding|proj"),
)
"""As in the paper's code: queries, keys and values are one matrix; embeddings, the
patch convolution and the output projection are none."""

SCALE, RANK = 1.5, 0.08


@dataclass(frozen=True)
class Architecture:
    """Shapes of a CLIP image encoder.

    Attributes:
      name: What it is called.
      layers: Blocks.
      width: Of the residual stream.
      patch: Side of a patch in pixels.
      tokens: Patches and the class token.
      outputs: Dimension of the joint space.
    """

    name: str
    layers: int
    width: int
    patch: int
    tokens: int
    outputs: int

    def matrices(self) -> dict[str, tuple[str, tuple[int, int]]]:
        """Kind and shape of the matrices of one block, by the end of their names."""
        d = self.width
        return {
            "attn.in_proj_weight": ("qkv", (3 * d, d)),
            "attn.out_proj.weight": ("out", (d, d)),
            "mlp.c_fc.weight": ("fc1", (4 * d, d)),
            "mlp.c_proj.weight": ("fc2", (d, 4 * d)),
        }

    def others(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all other leaves."""
        d = self.width
        shapes: dict[str, tuple[int, ...]] = {
            "class_embedding": (d,),
            "positional_embedding": (self.tokens, d),
            "conv1.weight": (d, 3, self.patch, self.patch),
            "proj": (d, self.outputs),
        }
        for norm in ("ln_pre", "ln_post"):
            shapes |= {f"{norm}.weight": (d,), f"{norm}.bias": (d,)}
        for i in range(self.layers):
            block = {
                "attn.in_proj_bias": (3 * d,),
                "attn.out_proj.bias": (d,),
                "mlp.c_fc.bias": (4 * d,),
                "mlp.c_proj.bias": (d,),
                **{
                    f"ln_{n}.{leaf}": (d,)
                    for n in (1, 2)
                    for leaf in ("weight", "bias")
                },
            }
            shapes |= {f"{prefix(i)}.{name}": shape for name, shape in block.items()}
        return shapes


VIT_B_32 = Architecture("ViT-B/32", 12, 768, 32, 50, 512)
VIT_L_14 = Architecture("ViT-L/14", 24, 1024, 14, 257, 768)
ARCHITECTURES = {"b32": VIT_B_32, "l14": VIT_L_14}


def prefix(layer: int) -> str:
    """Name of a block."""
    return f"transformer.resblocks.{layer}"


class Deltas:
    """Task vectors of one shape: singular values of one kind, random vectors."""

    def __init__(
        self,
        kind: str,
        shape: tuple[int, int],
        rng: np.random.Generator,
        which: Which = "raw",
    ):
        """Factorises two Gaussian matrices."""
        size = min(shape)
        self._s = spectrum(kind, size, which=which).astype(np.float32)
        self._s /= np.linalg.norm(self._s)
        self._u, self._v = (
            np.linalg.qr(rng.standard_normal((side, size), np.float32))[0]
            for side in shape
        )
        self._rng = rng

    def draw(self) -> np.ndarray:
        """One more of them, of norm 1."""
        u, v = self._shuffled(self._u), self._shuffled(self._v)
        return (u * self._s) @ v.T

    def _shuffled(self, x: np.ndarray) -> np.ndarray:
        signs = self._rng.choice(np.array([-1, 1], np.float32), len(x))
        return x[self._rng.permutation(len(x))] * signs[:, None]


def stack(kind: str, shape: tuple[int, int], count: int, *, seed: int) -> np.ndarray:
    """`count` centred task vectors of one kind and shape, of norm 1."""
    deltas = Deltas(kind, shape, np.random.default_rng(seed), "centred")
    return np.stack([deltas.draw() for _ in range(count)])


def experts(
    architecture: Architecture, *, tasks: int, seed: int
) -> dict[str, dict[str, np.ndarray]]:
    """Experts of one base: flat trees named as a PyTorch CLIP image encoder is."""
    rng = np.random.default_rng(seed)
    named: dict[str, dict[str, np.ndarray]] = {f"task{t}": {} for t in range(tasks)}

    def add(name: str, base: np.ndarray, delta: Any) -> None:
        for tree in named.values():
            tree[name] = base + delta()

    for name, shape in architecture.others().items():
        base = 0.02 * rng.standard_normal(shape, np.float32)
        add(name, base, lambda s=shape: 2e-4 * rng.standard_normal(s, np.float32))
    for leaf, (kind, shape) in architecture.matrices().items():
        deltas, share = Deltas(kind, shape, rng), np.float32(relative_norm(kind))
        for layer in range(architecture.layers):
            base = 0.02 * rng.standard_normal(shape, np.float32)
            size = share * np.linalg.norm(base)
            add(f"{prefix(layer)}.{leaf}", base, lambda d=deltas, z=size: z * d.draw())
    return named


def merge(named: Any, **how: Any) -> Any:
    """Ours, with the settings that all benchmarks share unless they say others."""
    return cm.cart(named, **{"rank": RANK, "scale": SCALE, "views": VIEWS} | how)
