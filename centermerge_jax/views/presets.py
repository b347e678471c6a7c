r"""Views for the names that Flax and PyTorch models commonly have.

`auto` treats the projections of attention and MLP blocks as matrices and leaves alone
embeddings, positions, patch convolutions, norms, biases and task heads, as the
published code of the method does. `fused` is `auto` with separate queries, keys and
values joined into one matrix, as that code has it for CLIP, whose checkpoints store
them so. `split` is the other way round: what a checkpoint stores fused is three
matrices.

A joint and a separate factorisation are different algorithms: rank 8 % of one fused
`[3 d, d]` matrix is not rank 8 % of three `[d, d]` ones.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace

from centermerge_jax.errors import ViewError, listing
from centermerge_jax.trees import Params, leaf_shapes
from centermerge_jax.views.matrix_view import MatrixView
from centermerge_jax.views.rules import Rule, apply_rules

_QKV = r"(?:q|k|v|query|key|value|[qkv]_proj)"
_IN = r"(?i)(?:.*[./])?"  # whatever modules stand above; '.' parts names in PyTorch

_FUSED = (
    _IN
    + r"(?:in_proj_weight|\w*qkv\w*[./](?:weight|kernel)|c_attn[./](?:weight|kernel))"
)

_ROOT = r"(?i)(?:(?:params|model|module)[./])*"  # a head stands at the top

# Each speaks of the leaf or of the module right above it, never of whole subtrees: a
# transformer inside an "embedder" has matrices like any other.
_NOT_MATRICES = (
    Rule(_IN + r"(?:\w*bias|scale|gamma|beta)"),
    # Tables that are looked up, not multiplied.
    Rule(_IN + r"(?:\w*_)?(?:embed(?:ding)?s?|positions?|tokens?|cls|probe)"),
    Rule(_IN + r"(?:wte|wpe|shared|relative_attention_bias)[./]\w+"),
    Rule(_IN + r"(?:\w*_)?embed(?:ding)?s?(?:_\w+)?[./](?:weight|embedding)"),
    Rule(_IN + r"\w*mask"),  # which is added, not multiplied
    # Convolutions, among them the one that cuts patches.
    *(Rule(_IN + r"\w*conv\w*[./](?:kernel|weight)", ndim=n) for n in (3, 4, 5)),
    Rule(_IN + r"\w*(?:patch|stem|downsample)\w*[./](?:.*[./])?kernel", ndim=4),
    Rule(_IN + r"weight", ndim=4),
    # Task heads, and the projections into the shared space of image and text.
    Rule(_ROOT + r"(?:heads?|\w*_head|classifier|score|logits|qa_outputs)(?:[./].*)?"),
    Rule(_IN + r"(?:lm_head|visual_projection|text_projection)(?:[./]\w+)?"),
    Rule(_IN + r"(?:visual|text)/proj/kernel"),
    Rule(_IN + r"pooler[./](?:dense[./])?(?:kernel|weight)"),
    # What our models have no use for; see `convert`.
    Rule(r"(?:.*/)?extra/.*"),
    Rule(_ROOT + r"fc[./](?:kernel|weight)"),
    Rule(_IN + r"visual[./]proj"),
    Rule("proj"),
)

_MATRICES = (
    # Flax attention: `DenseGeneral` kernels with an axis for the heads.
    Rule(_IN + _QKV + r"[./]kernel", rows=(0,), cols=(1, 2), ndim=3),
    Rule(
        _IN
        + r"\w*att(?:n|ention)\w*[./](?:o|out|output|proj|o_proj|out_proj)[./]kernel",
        rows=(0, 1),
        cols=(2,),
        ndim=3,
    ),
    Rule(_IN + r"\w*qkv\w*[./]kernel", rows=(0,), cols=(1, 2, 3), ndim=4),
    # Dense layers: Flax `(in, out)`, PyTorch `(out, in)`; an SVD does not mind.
    Rule(_IN + r"(?:kernel|weight|\w+_weight)", rows=(0,), cols=(1,), ndim=2),
)

_CONV1D = Rule(
    _IN + r"(?:[cq]_attn|c_fc|c_proj)[./]weight",
    rows=(0,),
    cols=(1,),
    ndim=2,
    inputs="rows",
)
"""GPT-2's layers in PyTorch, which alone have inputs as rows. OpenCLIP calls ordinary
layers `c_fc` and `c_proj` too, but has no `c_attn`."""

_JOINED = tuple(
    Rule(
        rf"(?i)((?:.*[./])?){_QKV}[./]{leaf}",
        rows=(0,),
        cols=cols,
        ndim=1 + len(cols),
        join=r"\1qkv",
        side="rows" if leaf == "weight" else "cols",  # PyTorch has outputs as rows
    )
    for leaf, cols in (("kernel", (1, 2)), ("kernel", (1,)), ("weight", (1,)))
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


def split(
    tree: Params, *, scanned: str | None = None, layer_axis: int = 0
) -> dict[str, MatrixView | None]:
    """As `auto`, with fused queries, keys and values taken as three matrices.

    Raises:
      ViewError: As for `auto`; or a leaf that is called like fused queries, keys and
        values is not three equal matrices.

    Example:
      >>> import numpy as np
      >>> table = split({"attn.in_proj_weight": np.ones((24, 8))})
      >>> view = table["attn.in_proj_weight"]
      >>> view.batch_shape, view.joint_shape
      ((3,), (8, 8))
    """
    table, odd = auto(tree, scanned=scanned, layer_axis=layer_axis), []
    for name, view in table.items():
        if view is None or not re.fullmatch(_FUSED, name.removesuffix("/value")):
            continue
        table[name] = _thirds(view)
        if table[name] is None:
            odd.append(f"{name} {list(view.shape)}")
    if odd:
        raise ViewError(
            listing(
                "{n} leaf name{s} of fused queries, keys and values, which are not "
                "three equal matrices",
                odd,
                "Give rules for them: Rule(..., parts=3, side=...).",
            )
        )
    return table


def _thirds(view: MatrixView) -> MatrixView | None:
    """The view as three matrices side by side; None where it is not."""
    if view.m == 3 * view.n:
        return replace(view, parts=3, side="rows")
    first = view.shape[view.cols[0]]
    if view.n == 3 * view.m and (len(view.cols) == 1 or first == 3):
        return replace(view, parts=3, side="cols")
    return None


PRESETS: Mapping[str, Callable[[Params], dict[str, MatrixView | None]]] = {
    "auto": auto,
    "fused": fused,
    "split": split,
}


def _preset(
    rules: tuple[Rule, ...], tree: Params, scanned: str | None, layer_axis: int
) -> dict[str, MatrixView | None]:
    shapes = leaf_shapes(tree)
    stacked: dict[str, int] = {}
    if scanned is not None:
        stacked = {
            name: layer_axis % len(shape)
            for name, shape in shapes.items()
            if re.fullmatch(scanned, name) and -len(shape) <= layer_axis < len(shape)
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
    if any(
        re.fullmatch(_IN + r"c_attn[./]weight", name) and shape[-1] == 3 * shape[-2]
        for name, shape in shapes.items()
    ):
        rules = (*_NOT_MATRICES, _CONV1D, *rules)
    table, _ = apply_rules(
        rules,
        {short: shapes[name] for short, name in known_as.items()},
        layer_axes={
            s: stacked[name] for s, name in known_as.items() if name in stacked
        },
    )
    _check_biases(table, {short: shapes[name] for short, name in known_as.items()})
    return {known_as[short]: view for short, view in table.items()}


def _check_biases(
    table: Mapping[str, MatrixView | None], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """A bias tells the outputs of its kernel, and so a layer axis that nobody named."""
    odd = []
    for name, view in table.items():
        bias = shapes.get(re.sub(r"(kernel|weight)$", "bias", name))
        if view is None or bias is None:
            continue
        outputs = [
            tuple(view.shape[axis] for axis in (*view.batch, *side))
            for side in (view.rows, view.cols)
        ]
        if sorted(bias) not in [sorted(side) for side in outputs]:
            odd.append(f"{name} {list(view.shape)} has a bias {list(bias)}")
    if odd:
        raise ViewError(
            listing(
                "{n} kernel{s} seen with other outputs than the bias has",
                odd,
                "For leaves stacked over layers use functools.partial(views.auto, "
                "scanned=REGEX, layer_axis=...), else give rules.",
            )
        )
