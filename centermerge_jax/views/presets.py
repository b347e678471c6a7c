r"""Views for the names that Flax and PyTorch models commonly have.

`auto` treats the projections of attention and MLP blocks as matrices and leaves alone
embeddings, positions, patch convolutions, norms, biases and task heads, as the
published code of the method does. `fused` is `auto` with separate queries, keys and
values joined into one matrix, as that code has it for CLIP, whose checkpoints store
them so.

A joint and a separate factorisation are different algorithms: rank 8 % of one fused
`[3 d, d]` matrix is not rank 8 % of three `[d, d]` ones.
"""

import re
from collections.abc import Callable, Mapping

from centermerge_jax.errors import ViewError, listing
from centermerge_jax.trees import Params, leaf_shapes
from centermerge_jax.views.matrix_view import MatrixView
from centermerge_jax.views.rules import Rule, apply_rules

_QKV = r"(?:q|k|v|query|key|value|[qkv]_proj)"
_IN = r"(?i)(?:.*[./])?"  # whatever modules stand above; '.' parts names in PyTorch

_NOT_MATRICES = (
    # Norms, biases and layer scales are vectors unless something stacks them.
    Rule(_IN + r"(?:\w*bias|scale|gamma|beta)"),
    Rule(_IN + r"\w*(?:norm|ln)(?:_?\w{1,5})?[./](?:weight|scale|kernel)"),
    # Tables that are looked up, not multiplied, and the convolution that cuts patches.
    Rule(_IN + r"\w*(?:embed|position|relative_attention_bias)\w*(?:[./].*)?"),
    Rule(_IN + r"(?:wte|wpe|shared)[./]\w+"),
    Rule(_IN + r"\w*(?:token|tokens|cls|probe)"),
    Rule(_IN + r"\w*conv\w*[./](?:kernel|weight)"),
    Rule(_IN + r"weight", ndim=4),
    # Task heads, and the projections into the shared space of image and text.
    Rule(_IN + r"(?:heads?|\w*_head|classifier|score|logits|qa_outputs)(?:[./].*)?"),
    Rule(r"fc[./](?:kernel|weight)"),
    Rule(_IN + r"(?:visual_projection|text_projection)(?:[./].*)?"),
    Rule(r"(?:.*visual[./])?proj"),
)

_MATRICES = (
    # Flax attention: `DenseGeneral` kernels with an axis for the heads.
    Rule(_IN + _QKV + r"[./]kernel", rows=(0,), cols=(1, 2), ndim=3),
    Rule(_IN + r"\w*(?:o|out|proj|output)[./]kernel", rows=(0, 1), cols=(2,), ndim=3),
    Rule(_IN + r"\w*qkv\w*[./]kernel", rows=(0,), cols=(1, 2, 3), ndim=4),
    # Dense layers: Flax `(in, out)`, PyTorch `(out, in)`; an SVD does not mind.
    Rule(_IN + r"(?:kernel|weight|\w+_weight)", rows=(0,), cols=(1,), ndim=2),
)

_JOINED = (
    Rule(
        rf"(?i)((?:.*[./])?){_QKV}[./]kernel",
        rows=(0,),
        cols=(1, 2),
        ndim=3,
        join=r"\1qkv",
    ),
    Rule(
        rf"(?i)((?:.*[./])?){_QKV}[./]kernel",
        rows=(0,),
        cols=(1,),
        ndim=2,
        join=r"\1qkv",
    ),
    Rule(
        rf"(?i)((?:.*[./])?){_QKV}[./]weight",
        rows=(0,),
        cols=(1,),
        ndim=2,
        join=r"\1qkv",
        side="rows",
    ),
)


def auto(
    tree: Params, *, scanned: str | None = None, layer_axis: int = 0
) -> dict[str, MatrixView | None]:
    """Views by the common names of Flax and PyTorch modules.

    Args:
      tree: Parameters.
      scanned: Regular expression that matches the whole names of leaves stacked over
        layers (`nn.scan`); each layer is then a matrix of its own. Bind it with
        `functools.partial(auto, scanned=...)` where a function takes `views`.
      layer_axis: The axis that counts layers in those leaves.

    Returns:
      A view, or None for "not a matrix", for each floating leaf.

    Raises:
      ViewError: A leaf of two or more axes has an uncommon name, or `scanned` matches
        nothing.

    Example:
      >>> import numpy as np
      >>> kernel, head = np.ones((8, 2, 4)), np.ones((8, 3))
      >>> table = auto({"attn": {"q": {"kernel": kernel}}, "head": head})
      >>> table["attn/q/kernel"].joint_shape, table["head"]
      ((8, 8), None)
    """
    return _preset((*_NOT_MATRICES, *_MATRICES), tree, scanned, layer_axis)


def fused(
    tree: Params, *, scanned: str | None = None, layer_axis: int = 0
) -> dict[str, MatrixView | None]:
    """As `auto`, with separate queries, keys and values joined into one matrix.

    Example:
      >>> import numpy as np
      >>> leaf = {"kernel": np.ones((8, 8))}
      >>> table = fused({"attn": {"q": leaf, "k": leaf, "v": leaf}})
      >>> table["attn/q/kernel"].joint_shape
      (8, 24)
    """
    rules = (*_NOT_MATRICES, *_JOINED, *_MATRICES)
    return _preset(rules, tree, scanned, layer_axis)


PRESETS: Mapping[str, Callable[[Params], dict[str, MatrixView | None]]] = {
    "auto": auto,
    "fused": fused,
}


def _preset(
    rules: tuple[Rule, ...], tree: Params, scanned: str | None, layer_axis: int
) -> dict[str, MatrixView | None]:
    shapes = leaf_shapes(tree)
    stacked: dict[str, int] = {}
    if scanned is not None:
        stacked = {
            name: range(len(shape))[layer_axis]
            for name, shape in shapes.items()
            if re.fullmatch(scanned, name) and shape
        }
        if not stacked:
            names = list(shapes)[:10]
            raise ViewError(
                listing(f"scanned={scanned!r} matches none of {{n}} leaf names", names)
            )
    # An `nnx.State` that went through a file has its boxes as dictionary keys.
    known_as = {name.removesuffix("/value"): name for name in shapes}
    if len(known_as) < len(shapes):
        known_as = {name: name for name in shapes}
    table, _ = apply_rules(
        rules,
        {short: shapes[name] for short, name in known_as.items()},
        layer_axes={
            s: stacked[name] for s, name in known_as.items() if name in stacked
        },
    )
    return {known_as[short]: view for short, view in table.items()}
