"""Methods of mergekit that average models, or their directions."""

from collections.abc import Mapping
from typing import Any

from centermerge_jax.mergekit.models import Model, by_name
from centermerge_jax.mergekit.told import Told

_STEPS, _TOLERANCE = 10.0, 1e-5
"""What mergekit's `karcher` does unless told otherwise."""


def linear(told: Told) -> dict[str, Any]:
    """The fields of a weighted average."""
    told.takes(general=("normalize",), own=("weight",))
    models = told.all()
    if not told.flag("normalize", default=True):
        told.refuse(
            "normalize",
            "false: a weight average always divides by the sum of the weights",
        )
    weights = told.numbers("weight", models)
    return {"method": "weight_average", "experts": experts(models), "weights": weights}


def slerp(told: Told) -> dict[str, Any]:
    """The fields of the arc from the base to the other model."""
    told.takes(general=("t",))
    base, others = told.around_base()
    if not told.is_given("t"):
        told.refuse("t", "missing; where between the two models?")
    t = told.number("t", default=0.5)
    if len(others) != 1:
        told.refuse("models", f"slerp is between the base and one; got {len(others)}")
    models = told.with_base()
    _note_zeros(told)
    first = models[min(models)]  # ours goes from the first to the second by name
    return _arc(models, t if first.path == base else 1 - t)


def nuslerp(told: Told) -> dict[str, Any]:
    """The fields of the arc between two models, divided as their weights say."""
    told.takes(general=("nuslerp_row_wise", "nuslerp_flatten"), own=("weight",))
    _refuse_base(told)
    if not told.flag("nuslerp_flatten", default=True):
        told.refuse("nuslerp_flatten", "false: here the arc is that of whole tensors")
    told.flag("nuslerp_row_wise", default=False)
    told.idle("nuslerp_row_wise")
    models = by_name(told.models)
    if len(models) != 2:
        told.refuse("models", f"nuslerp is between two; got {len(models)}")
    weights = told.numbers("weight", models)
    total = sum(weights.values())
    _note_zeros(told)
    # Where the sum is below that, mergekit takes the middle.
    found = _arc(models, 0.5 if abs(total) < 1e-6 else weights[max(weights)] / total)
    return found | {"set": (*found["set"], "parallel=1.0")}


def karcher(told: Told) -> dict[str, Any]:
    """The fields of the mean on the sphere."""
    told.takes(general=("max_iter", "tol"))
    models = told.all()
    if told.number("max_iter", default=_STEPS) < _STEPS:
        told.refuse("max_iter", "fewer than 10: here steps go on to the mean")
    if not 0 <= told.number("tol", default=_TOLERANCE) <= _TOLERANCE:
        told.refuse("tol", "above 0.00001: here steps go on to the mean")
    told.notes.append(
        "steps go on until they reach the mean on the sphere; mergekit stops after "
        "max_iter of them or below tol, and gives no direction to tensors whose norm "
        "is below tol"
    )
    return {"method": "karcher_mean", "experts": experts(models)}


def multislerp(told: Told) -> dict[str, Any]:
    """The fields of the mean of directions, with the mean of norms."""
    told.takes(general=("normalize_weights", "eps"), own=("weight",))
    _refuse_base(told)
    if told.number("eps", default=1e-8) > 1e-6:
        told.refuse("eps", "above 0.000001: here nothing is added to norms")
    models = by_name(told.models)
    weights = told.numbers("weight", models)
    normalize = told.flag("normalize_weights", default=True)
    if not normalize and abs(sum(weights.values()) - 1) > 1e-8:
        told.refuse(
            "normalize_weights",
            "false: here weights are divided by their sum, which is not 1",
        )
    return {"method": "normalised_mean", "experts": experts(models), "weights": weights}


def model_stock(told: Told) -> dict[str, Any]:
    """The fields of model stock, of whole tensors."""
    told.takes(general=("filter_wise",))
    base, others = told.around_base()
    if told.flag("filter_wise", default=False):
        told.refuse("filter_wise", "true: here one factor is found for whole tensors")
    if len(others) < 2:
        told.refuse("models", "model_stock needs two beside the base")
    told.notes.append(
        "where task vectors oppose each other the base is taken; mergekit's factor is "
        "negative there, and leads away from the mean"
    )
    told.notes.append(
        "task vectors are compared however short they are; mergekit takes those for "
        "unlike whose norms in a tensor multiply to less than 0.000001"
    )
    return {"method": "model_stock", "experts": experts(others), "base": base}


def experts(models: Mapping[str, Model]) -> tuple[str, ...]:
    """`NAME=PATH` for each."""
    return tuple(f"{name}={model.path}" for name, model in models.items())


def _arc(models: Mapping[str, Model], t: float) -> dict[str, Any]:
    """The fields of `slerp` from the first to the second model, by name."""
    in_order = dict(sorted(models.items()))
    return {"method": "slerp", "experts": experts(in_order), "set": (f"t={t!r}",)}


def _refuse_base(told: Told) -> None:
    if told.base is not None:
        told.refuse(
            "base_model",
            f"with a base mergekit's {told.method} turns task vectors; here models "
            "alone: leave it out",
        )


def _note_zeros(told: Told) -> None:
    told.notes.append(
        "a tensor that is zero in one model is taken on the straight line; mergekit "
        "takes it at a right angle to the other"
    )
