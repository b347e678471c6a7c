"""What is to be merged, as data: `centermerge merge`'s flags are its fields.

Free of JAX, so that the command line can show its help at once.
"""

from dataclasses import dataclass

DTYPES = ("float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A merge of checkpoints on disk.

    Attributes:
      experts: Checkpoints of the fine-tuned models: safetensors files, hub folders
        (single or sharded), or Orbax directories. Each is called by its file or folder
        name; NAME=PATH calls it otherwise.
      base: Checkpoint of the pretrained model, for methods that need it.
      method: cart, weight_average, task_arithmetic, or truncated_task_arithmetic.
      rank: Directions kept of each matrix: 0.08 is 8 % of min(m, n), 1.0 is everything,
        and without a dot, 16, a number of directions.
      scale: Factor on the sum of the task vectors.
      rest: For truncated_task_arithmetic, what leaves that are no matrices become:
        their mean, the sum of their task vectors, or the base.
      views: Which leaves are matrices: auto, fused (queries, keys and values as one),
        or a TOML file of rules.
      solver: auto, exact (full SVD), gram (eigenvectors of the Gram matrix), or
        subspace (block iteration on it).
      dtype: Type of the floating leaves of the output: float32, bfloat16, float16 or
        float64. By default the experts' own, and then all experts need the same.
      path: Where the parameters lie inside Orbax directories, such as params or
        state/params.
      exclude: Regular expressions; leaves whose whole name matches one are left out.
      keep: Regular expressions; leaves whose whole name matches one (a task head) are
        not merged but copied from the model that --keep-from names.
      keep_from: The expert, or 'base', whose leaves --keep keeps.
    """

    experts: tuple[str, ...]
    base: str | None = None
    method: str = "cart"
    rank: int | float | None = None
    scale: float | None = None
    rest: str | None = None
    views: str | None = None
    solver: str | None = None
    dtype: str | None = None
    path: str | None = None
    exclude: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    keep_from: str | None = None
