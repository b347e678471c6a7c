"""What is to be merged, as data: `centermerge merge`'s flags are its fields.

A recipe file (`recipe_files`) is read into the same object. Free of JAX, so that the
command line can show its help at once.
"""

import re
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from fractions import Fraction

from centermerge_jax.errors import ParameterError

DTYPES = ("float32", "bfloat16", "float16", "float64")

_UNITS = {
    "": 1,
    "B": 1,
    "kB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
    "TB": 1000**4,
    "KiB": 1024,
    "MiB": 1024**2,
    "GiB": 1024**3,
    "TiB": 1024**4,
}


@dataclass(frozen=True)
class Override:
    """Another rank or scale for some leaves.

    The first override whose pattern matches a leaf speaks for it; what it does not give
    is the recipe's. `overrides.leaf_settings` applies them.

    Attributes:
      match: Regular expression that has to match the *whole* leaf name.
      rank: As in the recipe.
      scale: As in the recipe.

    Raises:
      ParameterError: `match` is no regular expression, or nothing is given for it.

    Example:
      >>> first_block = Override("blocks/0/.*", scale=1.0)
    """

    match: str
    _: KW_ONLY
    rank: int | float | tuple[int | float, ...] | None = None
    scale: float | Mapping[str, float] | tuple[float, ...] | None = None

    def __post_init__(self):
        """Refuses what cannot be an override before any leaf is looked at."""
        try:
            re.compile(self.match)
        except re.error as error:
            raise ParameterError(f"override {self.match!r}: {error}") from None
        if self.rank is None and self.scale is None:
            raise ParameterError(
                f"override {self.match!r} changes nothing: give it a rank or a scale"
            )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A merge of checkpoints on disk.

    Attributes:
      experts: Checkpoints of the fine-tuned models: safetensors files, hub folders
        (single or sharded), or Orbax directories. Each is called by its file or folder
        name; NAME=PATH calls it otherwise.
      base: Checkpoint of the pretrained model, for methods that need it.
      method: Name of the method; `centermerge methods` lists them.
      rank: Directions kept of each matrix: 0.08 is 8 % of min(m, n), 1.0 is everything,
        and without a dot, 16, a number of directions. Several are spread evenly over
        the layers, with straight lines between them.
      scale: Factor on the sum of the task vectors; or one for each task by name; or
        several, spread over the layers as ranks are.
      weights: For weight_average, the weight of each task by name; only their ratios
        count. All equal by default.
      density: For methods that drop numbers, the share of each task vector that is
        kept.
      set: NAME=VALUE: further hyperparameters of the method, by the names that
        `centermerge methods` shows.
      overrides: Other ranks and scales for leaves whose names match.
      rest: For methods that merge matrices around a base, what other leaves become:
        mean, the experts' mean; sum, the base and their task vectors times the scale;
        scaled_mean, the base and the mean of these times the scale; or base.
      views: Which leaves are matrices: auto, fused (queries, keys and values as one),
        or a TOML file of rules.
      solver: auto, exact (full SVD), gram (eigenvectors of the Gram matrix), or
        subspace (block iteration on it).
      dtype: Type of the floating leaves of the output: float32, bfloat16, float16 or
        float64. By default the experts' own, and then all experts need the same.
      path: Where the parameters lie inside Orbax directories, such as params or
        state/params.
      names: MODEL=FILE: the leaves of that model, an expert or 'base', are called as
        the file says.
      statistics: NAME=FILE for each expert: what `centermerge statistics` measured of
        it, for methods that need to know inputs or gradients.
      exclude: Regular expressions; leaves whose whole name matches one are left out.
      keep: Regular expressions; leaves whose whole name matches one (a task head) are
        not merged but copied from the model that --keep-from names.
      keep_from: The expert, or 'base', whose leaves --keep keeps.
      memory: Memory that the process may take in all, such as 500MB; 4GiB by default.
      output: The new checkpoint: a file if it ends in .safetensors, else a folder.
      format: Form of an output folder, hub or orbax; by default that of the first
        expert.
    """

    experts: tuple[str, ...]
    base: str | None = None
    method: str = "cart"
    rank: int | float | tuple[int | float, ...] | None = None
    scale: float | Mapping[str, float] | tuple[float, ...] | None = None
    weights: Mapping[str, float] | None = None
    density: float | None = None
    set: tuple[str, ...] = ()
    overrides: tuple[Override, ...] = ()
    rest: str | None = None
    views: str | None = None
    solver: str | None = None
    dtype: str | None = None
    path: str | None = None
    names: tuple[str, ...] = ()
    statistics: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    keep_from: str | None = None
    memory: str | None = None
    output: str | None = None
    format: str | None = None


def parse_size(text: str, *, of: str = "a size") -> int:
    """The number of bytes that a text such as `4GiB` says.

    Args:
      text: A number and a unit: B, kB, MB, GB, TB (powers of 1000), KiB, MiB, GiB, TiB
        (powers of 1024). Without a unit it is a whole number of bytes.
      of: What it is the size of, for the message.

    Returns:
      At least 1; parts of a byte are cut off.

    Raises:
      ParameterError: It is not of that form.

    Example:
      >>> parse_size("1.5GiB"), parse_size("500 MB"), parse_size("4096")
      (1610612736, 500000000, 4096)
    """
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]*)", text.strip())
    if found and found[2] in _UNITS:
        count = Fraction(found[1]) * _UNITS[found[2]]
        if count >= 1 and (_UNITS[found[2]] > 1 or count.denominator == 1):
            return int(count)
    units = ", ".join(unit for unit in _UNITS if unit)
    raise ParameterError(
        f"{of} is a number and one of {units}, such as 4GiB, or a whole number of "
        f"bytes, and at least 1; got {text!r}"
    )
