"""Checkpoints with the shapes of Llama, made in seconds and written leaf by leaf.

Task vectors are low-rank and noise. The noise is one Gaussian array, rolled along for
each leaf and expert: it is made once, and no two leaves have the same.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from centermerge_jax.checkpoints import LeafInfo, safetensors_writing

DIRECTIONS = 32


@dataclass(frozen=True)
class Llama:
    """Shapes of a model.

    Attributes:
      hidden: Width.
      between: Width of the MLP.
      layers: Blocks.
      vocabulary: Rows of the embeddings.
      heads: Of 64 numbers each; a quarter of them for keys and values.
    """

    hidden: int
    between: int
    layers: int
    vocabulary: int

    @property
    def heads(self) -> int:
        """Attention heads of 64 numbers."""
        return self.hidden // 64

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of all leaves, named as `LlamaForCausalLM` names them."""
        h, f, kv = self.hidden, self.between, self.hidden // 4
        shapes: dict[str, tuple[int, ...]] = {
            "model.embed_tokens.weight": (self.vocabulary, h),
            "lm_head.weight": (self.vocabulary, h),
            "model.norm.weight": (h,),
        }
        block = {
            "self_attn.q_proj": (h, h),
            "self_attn.k_proj": (kv, h),
            "self_attn.v_proj": (kv, h),
            "self_attn.o_proj": (h, h),
            "mlp.gate_proj": (f, h),
            "mlp.up_proj": (f, h),
            "mlp.down_proj": (h, f),
            "input_layernorm": (h,),
            "post_attention_layernorm": (h,),
        }
        for i in range(self.layers):
            shapes |= {f"model.layers.{i}.{n}.weight": s for n, s in block.items()}
        return shapes

    def config(self) -> dict[str, object]:
        """What `config.json` says."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.between,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads // 4,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": False,
            "torch_dtype": "float32",
        }


# The widest is that of TinyLlama 1.1B.
SIZES = {
    "5MiB": Llama(256, 512, 2, 100),
    "0.3GiB": Llama(1024, 2816, 4, 16000),
    "1.2GiB": Llama(1024, 2816, 28, 16000),
    "4GiB": Llama(2048, 5632, 22, 32000),
}


def write_models(model: Llama, folder: Path, *, experts: int, seed: int = 0) -> None:
    """Writes hub folders `base`, `expert0`, ..., unless they are there already."""
    infos = {n: LeafInfo(s, np.dtype("float32")) for n, s in model.shapes().items()}
    names = ["base", *(f"expert{i}" for i in range(experts))]
    missing = [name for name in names if not (folder / name / "config.json").exists()]
    layouts = {}
    for name in missing:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for file in (folder / name).iterdir():
            file.unlink()
        layouts[name] = safetensors_writing.lay_out(
            infos, folder / name, metadata={"format": "pt"}, max_shard_bytes=10**12
        )
        safetensors_writing.create(layouts[name])
    if missing:
        for leaf, values in _values(model, experts=experts, seed=seed):
            for name, value in zip(names, values, strict=True):
                if name in layouts:
                    safetensors_writing.write(layouts[name].slots[leaf], value)
    for name in missing:
        (folder / name / "config.json").write_text(json.dumps(model.config()))


def _values(
    model: Llama, *, experts: int, seed: int
) -> Iterator[tuple[str, Iterator[np.ndarray]]]:
    rng = np.random.default_rng(seed)
    largest = max(int(np.prod(shape)) for shape in model.shapes().values())
    noise = rng.standard_normal(largest + 2**20, np.float32)

    def some(shape: tuple[int, ...]) -> np.ndarray:
        start = int(rng.integers(2**20))
        return noise[start : start + int(np.prod(shape))].reshape(shape)

    def models(shape: tuple[int, ...]) -> Iterator[np.ndarray]:
        base = 0.02 * some(shape)
        yield base
        for _ in range(experts):
            delta = 3e-4 * some(shape)
            if len(shape) > 1:
                u = some((shape[0], DIRECTIONS)) / DIRECTIONS
                delta += 1e-3 * u @ some((DIRECTIONS, shape[1]))
            yield base + delta

    for leaf, shape in model.shapes().items():
        yield leaf, models(shape)
