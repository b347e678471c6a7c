"""All methods by name, with what the command line and tables need to know of them."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from centermerge_jax.methods.ace import ace_merging
from centermerge_jax.methods.averages import (
    karcher_mean,
    lerp,
    model_stock,
    norm_matching,
    normalised_mean,
    slerp,
    weight_scope_alignment,
)
from centermerge_jax.methods.cart import cart
from centermerge_jax.methods.cart_variants import (
    cart_indexing,
    low_rank,
    two_pass_cart,
    wise_ft,
)
from centermerge_jax.methods.compressed import one_bit, quantised
from centermerge_jax.methods.data_free import cart_data_free, cart_data_free_whole
from centermerge_jax.methods.dc_merge import dc_merge
from centermerge_jax.methods.della import della
from centermerge_jax.methods.energy import star, subspace_boosting
from centermerge_jax.methods.esm import esm
from centermerge_jax.methods.fisher import fisher
from centermerge_jax.methods.iso import iso_c, iso_cts
from centermerge_jax.methods.knots import knots
from centermerge_jax.methods.layers import lata, lata_statistics, lines, lines_names
from centermerge_jax.methods.magmax import magmax
from centermerge_jax.methods.norms import from_merging, nan_merging, nan_statistics
from centermerge_jax.methods.pcb import pcb
from centermerge_jax.methods.regmean import regmean, regmean_plus_plus
from centermerge_jax.methods.sparse import (
    breadcrumbs,
    dare,
    dare_ties,
    magnitude_mask,
    random_mask,
    sce,
)
from centermerge_jax.methods.svc import svc
from centermerge_jax.methods.task_arithmetic import (
    task_arithmetic,
    truncated_task_arithmetic,
)
from centermerge_jax.methods.task_masks import (
    consensus,
    emr,
    emr_statistics,
    tall_mask,
)
from centermerge_jax.methods.ties import ties, ties_statistics
from centermerge_jax.methods.tsv import cart_tsv, tsv_c, tsv_m
from centermerge_jax.methods.weight_average import weight_average
from centermerge_jax.methods.wudi import wudi, wudi_closed
from centermerge_jax.trees import Params

Data = Literal["gram", "merged_gram", "fisher"]
"""What a method has to know of the data, as `centermerge statistics` measures it."""

Scope = Literal["element", "matrix", "leaf", "tree"]
"""How much of a tree a method has to see at once: single numbers of all models, whole
(joined) matrices and of other leaves single numbers, whole leaves, or everything."""

Law = Literal["order", "translation", "scale_zero", "one_expert", "equal", "linear"]
"""What holds of a method for all experts:

order: it does not matter in which order they are given; translation: what is added to
all of them and the base is added to the result; scale_zero: with scale 0 it is the
origin; one_expert: one alone is returned, with scale 1; equal: equal ones are returned,
with the scale `Method.alike`; linear: task vectors that are all larger by one factor
change the origin by that factor more."""

_GENERAL = ("views", "solver", "dtype", "memory")
"""Arguments that say how, not what."""


@dataclass(frozen=True)
class Method:
    """A merging method as callers see it that know only its name.

    Attributes:
      function: `function(experts[, base], **hyperparameters) -> params`.
      centered: Whether task vectors are taken around the mean: then two experts merge
        into their average.
      scope: How much of a tree it has to see at once.
      statistics: What it has to know of whole trees, where they need not be seen at
        once: `statistics(rows, **hyperparameters)` returns further arguments of the
        function; `rows()` goes once through the leaves of all experts and the base.
      passes: How often `statistics` calls `rows`.
      names: The same from the names of all leaves alone: `names(leaves)`.
      found: The arguments that these return.
      data: The kind of statistics of each expert's data that it needs. They are its
        argument `grams` or `fishers`, by task and leaf name; one that takes `norms`
        gets the norm of each task's Fisher information over the whole tree.
      ordered: Whether the order of the experts matters, which is that of their names.
      affine: Whether it is affine in its scale, if it has one: merges at two scales
        then tell those at all.
      laws: What holds of it.
      alike: The scale with which equal experts are returned: `mean` is 1 over their
        number.
      grid: Values to search over, as its authors did where they say so.
    """

    function: Callable[..., Params]
    centered: bool = False
    scope: Scope = "matrix"
    statistics: Callable[..., Mapping[str, Any]] | None = None
    passes: int = 0
    names: Callable[..., Mapping[str, Any]] | None = None
    found: tuple[str, ...] = ()
    data: Data | None = None
    ordered: bool = False
    affine: bool = True
    laws: tuple[Law, ...] = ()
    alike: Literal["mean"] | float = 1.0
    grid: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    @property
    def needs_base(self) -> bool:
        """Whether it takes the pretrained parameters as second argument."""
        return "base" in inspect.signature(self.function).parameters

    @property
    def needs_task(self) -> bool:
        """Whether it makes one task's model, and so has to be told which."""
        return "task" in self.hyperparameters

    @property
    def hyperparameters(self) -> Mapping[str, inspect.Parameter]:
        """Its keyword-only parameters, without what is found out for it."""
        parameters = inspect.signature(self.function).parameters
        given = (*self.found, *([self.data_argument] if self.data else []))
        return {
            name: parameter
            for name, parameter in parameters.items()
            if parameter.kind is parameter.KEYWORD_ONLY and name not in given
        }

    @property
    def data_argument(self) -> str:
        """What its argument about the data is called."""
        return "fishers" if self.data == "fisher" else "grams"

    @property
    def own(self) -> Mapping[str, inspect.Parameter]:
        """Those of its hyperparameters that say what is merged, not how."""
        return {n: p for n, p in self.hyperparameters.items() if n not in _GENERAL}

    @property
    def summary(self) -> str:
        """What it does, in a line."""
        return self._doc.partition("\n")[0]

    @property
    def reference(self) -> str:
        """The paper that it is from; empty if there is none."""
        _, _, found = self._doc.partition("References:\n")
        return " ".join(found.partition("\n\n")[0].split())

    @property
    def _doc(self) -> str:
        return inspect.getdoc(self.function) or ""


_SUM: tuple[Law, ...] = ("order", "translation", "scale_zero", "one_expert", "linear")
_ONE = (*_SUM, "equal")
_GRID = {"scale": (0.1, 0.2, 0.3, 0.5, 0.7, 1.0)}
_SPECTRAL = {"scale": (0.6, 1.0, 1.5, 2.0, 3.0, 4.0)}

METHODS: Mapping[str, Method] = {
    # around the mean of the experts
    "cart": Method(
        cart,
        centered=True,
        laws=_ONE,
        grid={"rank": (0.04, 0.08), "scale": (2.0, 3.0, 4.5)},
    ),
    "cart_data_free": Method(
        cart_data_free,
        centered=True,
        laws=_ONE,
        grid={"rank": (0.04, 0.08, 0.16), "match": ("projection", "length")},
    ),
    "cart_data_free_whole": Method(
        cart_data_free_whole,
        centered=True,
        scope="tree",
        laws=_ONE,
        grid={"rank": (0.04, 0.08, 0.16), "match": ("projection", "length")},
    ),
    "cart_tsv": Method(
        cart_tsv,
        centered=True,
        laws=("order", "translation", "scale_zero", "one_expert", "equal", "linear"),
        grid={"rank": (0.08, 0.16), "scale": (2.0, 3.0, 4.5)},
    ),
    "two_pass_cart": Method(
        two_pass_cart,
        laws=("order", "translation", "one_expert", "equal", "linear"),
        grid={"rank": (0.08, 0.16), "scale": (0.05, 0.2, 0.5)},
    ),
    "cart_indexing": Method(
        cart_indexing,
        laws=("translation", "scale_zero", "one_expert", "equal"),
        grid={"rank": (0.04, 0.08, 0.16, 0.32)},
    ),
    # averages
    "weight_average": Method(
        weight_average,
        scope="element",
        laws=("order", "translation", "one_expert", "equal"),
    ),
    "lerp": Method(
        lerp,
        scope="element",
        ordered=True,
        laws=("translation", "equal"),
        grid={"t": (0.3, 0.5, 0.7)},
    ),
    "slerp": Method(
        slerp,
        scope="leaf",
        ordered=True,
        laws=("equal",),
        grid={"t": (0.3, 0.5, 0.7)},
    ),
    "normalised_mean": Method(
        normalised_mean, scope="leaf", laws=("order", "one_expert", "equal")
    ),
    "karcher_mean": Method(
        karcher_mean, scope="leaf", laws=("order", "one_expert", "equal")
    ),
    "norm_matching": Method(
        norm_matching, scope="leaf", laws=("order", "one_expert", "equal")
    ),
    "weight_scope_alignment": Method(
        weight_scope_alignment, scope="leaf", laws=("order", "one_expert", "equal")
    ),
    "model_stock": Method(
        model_stock,
        scope="leaf",
        laws=("order", "translation", "one_expert", "equal", "linear"),
    ),
    "fisher": Method(
        fisher,
        scope="element",
        data="fisher",
        found=("norms",),
        laws=("order", "translation", "one_expert", "equal"),
    ),
    "regmean": Method(
        regmean,
        data="gram",
        laws=("order", "translation", "one_expert", "equal"),
        grid={"off_diagonal": (0.5, 0.9, 0.95, 1.0)},
    ),
    "regmean_plus_plus": Method(
        regmean_plus_plus,
        data="merged_gram",
        laws=("order", "translation", "one_expert", "equal"),
        grid={"off_diagonal": (0.5, 0.9, 0.95, 1.0)},
    ),
    # around the base, number by number or leaf by leaf
    "task_arithmetic": Method(
        task_arithmetic, scope="element", laws=_ONE, alike="mean", grid=_GRID
    ),
    "ties": Method(
        ties,
        scope="element",
        statistics=ties_statistics,
        passes=3,
        found=("thresholds", "majority"),
        laws=("order", "translation", "scale_zero", "linear"),
        grid={"density": (0.2,), "scale": (0.3, 0.5, 0.8, 1.0, 1.2, 1.5)},
    ),
    "magnitude_mask": Method(
        magnitude_mask,
        scope="leaf",
        laws=("order", "translation", "scale_zero", "linear"),
        grid={"density": (0.1, 0.2, 0.4), "scale": (0.5, 1.0)},
    ),
    "random_mask": Method(
        random_mask,
        scope="leaf",
        laws=("order", "translation", "scale_zero", "linear"),
        grid={"density": (0.2, 0.5), "scale": (0.3, 0.5, 1.0)},
    ),
    "dare": Method(
        dare,
        scope="leaf",
        laws=("order", "translation", "scale_zero", "linear"),
        grid={"density": (0.1, 0.5), "scale": (0.2, 0.3, 0.5)},
    ),
    "dare_ties": Method(
        dare_ties,
        scope="leaf",
        laws=("order", "translation", "scale_zero", "linear"),
        grid={"density": (0.1, 0.5), "scale": (0.3, 0.5, 1.0)},
    ),
    "breadcrumbs": Method(
        breadcrumbs,
        scope="leaf",
        laws=("order", "translation", "scale_zero", "linear"),
        grid={"density": (0.05, 0.1, 0.2), "scale": (0.3, 0.6)},
    ),
    "della": Method(
        della,
        scope="leaf",
        laws=("order", "translation", "scale_zero", "linear"),
        grid={"density": (0.3, 0.7), "scale": (0.3, 0.5, 1.0)},
    ),
    "magmax": Method(magmax, scope="element", ordered=True, laws=_ONE, grid=_GRID),
    "sce": Method(
        sce,
        scope="leaf",
        laws=_ONE,
        grid={"density": (0.2, 0.5, 1.0), "scale": (1.0, 2.0)},
    ),
    "pcb": Method(
        pcb,
        scope="tree",
        laws=("order", "translation", "scale_zero"),
        grid={"density": (0.02, 0.05, 0.1), "scale": (1.2, 1.8)},
    ),
    "consensus": Method(
        consensus,
        scope="element",
        laws=("order", "translation", "scale_zero", "linear"),
        grid={"threshold": (0.2, 0.4, 0.6), "scale": (0.4, 0.8)},
    ),
    "tall_mask": Method(
        tall_mask, scope="element", laws=("translation", "one_expert", "linear")
    ),
    "emr": Method(
        emr,
        scope="element",
        statistics=emr_statistics,
        passes=1,
        found=("rescales",),
        laws=("translation", "one_expert", "equal", "linear"),
    ),
    "from_merging": Method(
        from_merging,
        scope="leaf",
        laws=_ONE,
        grid={"power": (1.0, 2.0, 4.0), "scale": (1.0, 2.0)},
    ),
    "nan_merging": Method(
        nan_merging,
        scope="leaf",
        statistics=nan_statistics,
        passes=1,
        found=("norms",),
        laws=_ONE,
        grid={"scale": (1.0, 1.5, 2.0, 3.0)},
    ),
    "one_bit": Method(
        one_bit,
        scope="leaf",
        laws=("order", "translation", "scale_zero", "linear"),
        grid=_GRID,
    ),
    "quantised": Method(
        quantised,
        scope="leaf",
        laws=("order", "translation", "scale_zero", "linear"),
        grid={"bits": (2, 3), "scale": (0.2, 0.3, 0.5)},
    ),
    "lines": Method(
        lines,
        scope="leaf",
        names=lines_names,
        found=("depths",),
        laws=("order", "translation"),
        grid={"scale": (0.15, 0.3), "slope": (0.0, 0.3, 0.6)},
    ),
    "lata": Method(
        lata,
        scope="leaf",
        statistics=lata_statistics,
        passes=1,
        found=("layer_weights",),
        laws=("order", "translation", "scale_zero", "linear"),
        grid={"curve": ("linear", "log"), "scale": (0.3, 0.5, 1.0)},
    ),
    "wise_ft": Method(
        wise_ft,
        scope="element",
        laws=("translation", "scale_zero", "one_expert", "linear"),
        grid={"scale": (0.2, 0.4, 0.6, 0.8, 1.0)},
    ),
    # matrix by matrix
    "truncated_task_arithmetic": Method(
        truncated_task_arithmetic,
        laws=("order", "translation", "linear"),
        grid={"rank": (0.08, 0.16), "scale": (0.3, 0.5, 1.0)},
    ),
    "low_rank": Method(
        low_rank,
        laws=("order", "translation", "scale_zero", "linear"),
        grid={"rank": (0.04, 0.08, 0.16), "scale": (1.0,)},
    ),
    "tsv_m": Method(tsv_m, laws=_SUM, grid=_SPECTRAL),
    "tsv_c": Method(tsv_c, laws=("translation", "one_expert", "linear")),
    "iso_c": Method(
        iso_c,
        laws=("order", "translation", "scale_zero", "linear"),
        grid=_SPECTRAL,
    ),
    "iso_cts": Method(
        iso_cts,
        laws=("order", "translation", "scale_zero", "linear"),
        grid=_SPECTRAL,
    ),
    "dc_merge": Method(
        dc_merge,
        laws=("order", "translation", "scale_zero", "linear"),
        grid=_SPECTRAL,
    ),
    "knots": Method(
        knots,
        laws=_ONE,
        grid={"density": (0.2, 1.0), "scale": (0.25, 0.5, 1.0)},
    ),
    "star": Method(
        star,
        laws=("order", "translation", "scale_zero", "linear"),
        grid={"energy": (0.6, 0.9), "scale": (0.5, 1.0, 2.0)},
    ),
    "subspace_boosting": Method(
        subspace_boosting,
        laws=("order", "translation", "scale_zero", "linear"),
        grid={"beta": (0.005, 0.01), "scale": (0.2, 0.3, 0.45)},
    ),
    "svc": Method(
        svc,
        affine=False,
        laws=("order", "translation", "scale_zero", "linear"),
        grid={"merger": ("task_arithmetic", "iso_c"), "scale": (0.5, 1.0, 2.0)},
    ),
    "wudi": Method(
        wudi,
        laws=("order", "translation", "scale_zero"),
        grid={"learning_rate": (1e-6, 1e-5, 1e-4), "scale": (1.0, 1.3)},
    ),
    "wudi_closed": Method(
        wudi_closed,
        laws=("order", "translation", "scale_zero", "linear"),
        grid={"scale": (0.5, 0.8, 1.0, 1.2, 1.5)},
    ),
    "ace_merging": Method(
        ace_merging,
        laws=("order", "translation", "scale_zero"),
        grid={"ridge": (1e-6, 1e-5, 1e-4), "scale": (0.8, 1.0)},
    ),
    "esm": Method(
        esm,
        scope="tree",
        data="gram",
        laws=("order", "translation", "scale_zero", "linear"),
        grid={"scale": (0.2, 0.3, 0.45, 0.7, 1.0, 1.5)},
    ),
}
