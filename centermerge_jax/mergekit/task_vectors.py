"""Methods of mergekit that add task vectors to a base."""

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from centermerge_jax.mergekit.averages import experts
from centermerge_jax.mergekit.models import Model
from centermerge_jax.mergekit.told import Told

_SHARED = ("normalize", "rescale", "lambda", "int8_mask")
"""What mergekit takes for the whole recipe in all methods of this kind."""

_TIE = (
    "where task vectors cancel exactly {ours}; mergekit elects the positive sign there"
)
_OTHER_NUMBERS = (
    "random numbers are others than mergekit's, and come from --set seed=..."
)
_COUNTS = (
    "at least one number of each tensor is kept, and shares of a tensor are counted "
    "exactly; mergekit may keep one less"
)


def task_arithmetic(told: Told) -> dict[str, Any]:
    """The fields of task arithmetic with a scale for each task."""
    idle = ("density", "int8_mask", "rescale")
    told.takes(general=("normalize", "lambda", *idle), own=("weight", *idle))
    base, models = told.around_base()
    normalize = told.flag("normalize", default=False)
    told.idle(*idle)
    return _fields("task_arithmetic", base, models) | told.scales(
        models, normalize=normalize
    )


def ties(told: Told) -> dict[str, Any]:
    """The fields of TIES, for models of one weight and one density."""
    told.takes(general=_SHARED, own=("weight", "density"))
    base, models = told.around_base()
    _refuse_rescaling(told)
    scale = _mean_of_agreeing(told, models, normalize=True)
    density = told.share("density", told.common("density", models, default=1.0))
    if density < 1:
        told.notes.append(
            "density is of the whole task vector here, as in the paper of TIES; "
            "mergekit trims each tensor by itself"
        )
    told.notes.append(_TIE.format(ours="the sign of the majority is elected"))
    return _fields("ties", base, models) | {"density": density, "scale": scale}


def dare_linear(told: Told) -> dict[str, Any]:
    """The fields of DARE; without `rescale`, of a random mask."""
    told.takes(general=_SHARED, own=("weight", "density"))
    base, models = told.around_base()
    density = told.share("density", told.common("density", models, default=1.0))
    rescale = told.flag("rescale", default=True)
    normalize = told.flag("normalize", default=False)
    told.flag("int8_mask", default=False)
    told.idle("int8_mask")
    _note_random(told, density, rescale=rescale)
    fields = _fields("dare" if rescale else "random_mask", base, models)
    return fields | {"density": density} | told.scales(models, normalize=normalize)


def dare_ties(told: Told) -> dict[str, Any]:
    """The fields of DARE with elected signs, for models of one weight and density."""
    told.takes(general=_SHARED, own=("weight", "density"))
    base, models = told.around_base()
    density = told.share("density", told.common("density", models, default=1.0))
    rescale = told.flag("rescale", default=True)
    scale = _mean_of_agreeing(told, models, normalize=False)
    _note_random(told, density, rescale=rescale)
    told.notes.append(_TIE.format(ours="the base is left as it is"))
    # Ours divides by the density; one factor on all task vectors changes no sign.
    scale = scale if rescale else scale * density
    return _fields("dare_ties", base, models) | {"density": density, "scale": scale}


def breadcrumbs(told: Told) -> dict[str, Any]:
    """The fields of breadcrumbs, for models of one density."""
    told.takes(general=_SHARED, own=("weight", "density", "gamma"))
    base, models = told.around_base()
    density = told.share("density", told.common("density", models, default=1.0))
    outliers = told.common("gamma", models, default=0.01)
    _refuse_rescaling(told)
    told.flag("int8_mask", default=False)
    told.idle("int8_mask")
    if density == 1:
        told.notes.append("density of 1: outliers are kept as well, as in mergekit")
        outliers = 0.0
    elif not 0 <= outliers < 1 or _sum(density, outliers) > 1:
        told.refuse(
            "gamma",
            f"density {density} and gamma {outliers} exceed 1 together: mergekit then "
            "keeps outliers, centermerge fewer numbers",
        )
    else:
        told.notes.append(_COUNTS)
    normalize = told.flag("normalize", default=False)
    return (
        _fields("breadcrumbs", base, models)
        | {"density": density, "set": (f"outliers={outliers!r}",)}
        | told.scales(models, normalize=normalize)
    )


def della(told: Told) -> dict[str, Any]:
    """The fields of DELLA, for models of one weight, density and epsilon."""
    told.takes(general=_SHARED, own=("weight", "density", "epsilon"))
    base, models = told.around_base()
    density = told.share("density", told.common("density", models, default=1.0))
    epsilon = told.common("epsilon", models, default=0.15)
    if not told.flag("rescale", default=True):
        told.refuse("rescale", "false: here each number is divided by its probability")
    scale = _mean_of_agreeing(told, models, normalize=True)
    if density == 1:
        epsilon = 0.0  # nothing is dropped
    elif not (epsilon >= 0 and density > epsilon and _sum(density, epsilon) < 1):
        told.refuse(
            "epsilon",
            f"density {density} and epsilon {epsilon}: as in mergekit, density +- "
            "epsilon has to lie between 0 and 1",
        )
    else:
        told.notes.append(_OTHER_NUMBERS)
        told.notes.append(
            "each number that is kept is divided by its own probability, as in the "
            "paper, so that on average every number stays; mergekit multiplies a "
            "tensor so that its L1 norm stays, which makes small numbers smaller on "
            "average and large ones larger"
        )
        told.notes.append(
            "magnitudes are ranked along the last axis of tensors of more than two; "
            "mergekit ranks along the second"
        )
    told.notes.append(_TIE.format(ours="the base is left as it is"))
    fields = {"density": density, "scale": scale, "set": (f"epsilon={epsilon!r}",)}
    return _fields("della", base, models) | fields


def sce(told: Told) -> dict[str, Any]:
    """The fields of SCE."""
    told.takes(general=("select_topk", "int8_mask"))
    base, models = told.around_base()
    density = told.share("select_topk", told.number("select_topk", default=1.0))
    told.flag("int8_mask", default=False)
    told.notes.append(
        "task vectors weigh as much as their squares sum to, as in the paper; mergekit "
        "weighs all alike in tensors where the mean squares sum to less than 0.000001, "
        "which those of usual fine-tuning do"
    )
    if density < 1:
        told.notes.append(
            "select_topk is a share of all numbers of a tensor; mergekit takes it of "
            "those that differ between the models"
        )
        told.notes.append(_COUNTS)
    told.notes.append(_TIE.format(ours="the base is left as it is"))
    return _fields("sce", base, models) | {"density": density}


def _fields(method: str, base: str, models: Mapping[str, Model]) -> dict[str, Any]:
    return {"method": method, "experts": experts(models), "base": base}


def _mean_of_agreeing(
    told: Told, models: Mapping[str, Model], *, normalize: bool
) -> float:
    """The scale where what agrees in sign is averaged and the one weight cancels."""
    if not told.flag("normalize", default=normalize):
        said = "false" if "normalize" in told.shared else "is false unless given"
        told.refuse(
            "normalize",
            f"{said}: {told.method} takes the mean of the task vectors that agree "
            "here, not the sum",
        )
    if told.common("weight", models) <= 0:
        told.refuse("weight", f"{told.method} needs a positive one; it then cancels")
    told.flag("int8_mask", default=False)
    return told.number("lambda", default=1.0)


def _refuse_rescaling(told: Told) -> None:
    if told.flag("rescale", default=False):
        told.refuse("rescale", "true: here what is kept stays as it is")


def _note_random(told: Told, density: float, *, rescale: bool) -> None:
    if density == 1:
        return
    told.notes.append(_OTHER_NUMBERS)
    if rescale:
        told.notes.append(
            "what is kept is divided by the density, as in the paper; mergekit "
            "multiplies a tensor so that its L1 norm stays: on average the same, but "
            "for small tensors"
        )


def _sum(*shares: float) -> Fraction:
    """The exact sum of numbers as they are written."""
    return sum((Fraction(repr(share)) for share in shares), Fraction(0))
