"""FusionBench's methods: its algorithms on a pool of models, or their functions.

A function stands in where an algorithm computes statistics from data by itself, cannot
run, or only has parts of a method.
"""

import contextlib
import copy
import functools
import importlib
import sys
import types
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from golden import merging
from merging_cases import Case, Given, Model
from torch import nn

from fusion_bench.method.dare import DareTaskArithmetic, DareTiesMerging
from fusion_bench.method.emr_merging import EMRMerging
from fusion_bench.method.fisher_merging.fisher_merging import (
    merging_with_fisher_weights,
)
from fusion_bench.method.isotropic_merging import ISO_C_Merge, ISO_CTS_Merge
from fusion_bench.method.knots.knots_utils import subspace_alignment
from fusion_bench.method.linear.expo import ExPOAlgorithm
from fusion_bench.method.magmax import MagMaxAlgorithm
from fusion_bench.method.model_stock import ModelStock
from fusion_bench.method.pruning.magnitude_diff_pruning import (
    MagnitudeDiffPruningAlgorithm,
)
from fusion_bench.method.regmean.regmean import merging_with_regmean_weights
from fusion_bench.method.regmean_plusplus.regmean_plusplus import regmean_params_merge
from fusion_bench.method.simple_average import SimpleAverageAlgorithm
from fusion_bench.method.singular_value_calibration import (
    SingularValueCalibrationArithmeticTask,
    SingularValueCalibrationWithBaseMethod,
)
from fusion_bench.method.slerp import SlerpMergeAlgorithm
from fusion_bench.method.tall_mask import task_arithmetic as tall_algorithm
from fusion_bench.method.tall_mask import utils as tall_mask
from fusion_bench.method.task_arithmetic import TaskArithmeticAlgorithm
from fusion_bench.method.task_singular_vector import TaskSingularVectorMerging
from fusion_bench.method.task_singular_vector.utils import TSVC_utils
from fusion_bench.method.ties_merging import TiesMergingAlgorithm
from fusion_bench.method.ties_merging.ties_merging_utils import (
    disjoint_merge,
    resolve_sign,
    state_dict_to_vector,
    topk_values_mask,
    vector_to_state_dict,
)
from fusion_bench.method.weighted_average import WeightedAverageAlgorithm
from fusion_bench.method.wudi import WUDIMerging
from fusion_bench.modelpool.base_pool import BaseModelPool
from fusion_bench.utils.state_dict_arithmetic import (
    state_dict_sub,
    state_dict_sum,
    state_dict_weighted_sum,
)


def _without_triton(module: str) -> types.ModuleType:
    """A module whose kernels, which need a GPU, are not going to be called."""
    triton = types.ModuleType("triton")
    triton.language = types.ModuleType("triton.language")
    triton.jit = lambda function: function
    triton.autotune = lambda *_, **__: triton.jit
    triton.Config = dict
    triton.language.constexpr = int
    stubs = {"triton": triton, "triton.language": triton.language}
    sys.modules |= stubs
    try:
        return importlib.import_module(module)
    finally:
        for name in stubs:
            del sys.modules[name]


bitdelta = _without_triton("fusion_bench.method.bitdelta.bitdelta_utils.diff")
# Signs are packed into words along the inputs, of which there are 16 here.
bitdelta.pack = functools.partial(bitdelta.pack, n_bits=16)
bitdelta.unpack = functools.partial(bitdelta.unpack, n_bits=16)

TABLE = "embed_tokens.weight"
"""Of two axes, and a table here: what we do not take for a matrix, it is told of."""
MATRICES = r"layers\.0\..*_proj\.weight"
LAYERS = r"layers\.0\..*"
MLP = r"layers\.0\.(?:mlp|norm).*"
SQUARE = r"layers\.0\.self_attn\..*weight"


def algorithm(kind: type, *, base: bool = True) -> Any:
    """A run of one of its algorithms on a pool of models."""

    def run(given: Given, told: Mapping[str, Any]) -> Model:
        merged = kind(**told).run(_pool(given, base=base))
        return _arrays(merged.state_dict())

    return run


def masked(kind: type) -> Any:
    """The same, with our random numbers behind `torch.rand_like`."""

    def run(given: Given, told: Mapping[str, Any]) -> Model:
        drawn = [
            torch.from_numpy(merging.uniforms(task, name, x.shape))
            for task in given.experts
            for name, x in given.base.items()
        ]
        with _drawing(drawn):
            return algorithm(kind)(given, told)

    return run


def lerp(given: Given, told: Mapping[str, Any]) -> Model:
    """What `LinearInterpolationAlgorithm` calls: itself it refuses any models."""
    trees = [_tensors(tree) for tree in given.experts.values()]
    return _arrays(state_dict_weighted_sum(trees, [1 - told["t"], told["t"]]))


def fisher(given: Given, told: Mapping[str, Any]) -> Model:
    """From given Fisher information."""
    tasks = list(given.experts)
    values = {
        name: [torch.from_numpy(given.experts[task][name]) for task in tasks]
        for name in given.base
    }
    merged = merging_with_fisher_weights(
        values,
        [_tensors(given.fishers[task]) for task in tasks],
        torch.ones(len(tasks)) / len(tasks),
        **told,
    )
    return _arrays(merged)


def regmean(given: Given, told: Mapping[str, Any]) -> Model:
    """From given Gram matrices, which belong to modules."""
    tasks = list(given.experts)
    values = {
        name: [torch.from_numpy(given.experts[task][name]) for task in tasks]
        for name in given.base
    }
    weights = [
        {
            name.removesuffix(".weight"): torch.from_numpy(gram)
            for name, gram in given.grams[task].items()
        }
        for task in tasks
    ]
    return _arrays(merging_with_regmean_weights(values, weights, **told))


def regmean_plus_plus(given: Given, told: Mapping[str, Any]) -> Model:
    """Matrix by matrix, from given Gram matrices."""
    return _arrays(
        {
            name: regmean_params_merge(
                [torch.from_numpy(tree[name]) for tree in given.experts.values()],
                [torch.from_numpy(grams[name]) for grams in given.grams.values()],
                **told,
            )
            for name in given.base
        }
    )


def emr(given: Given, told: Mapping[str, Any]) -> Model:
    """One task's model."""
    model = EMRMerging().run(_pool(given))
    model.set_task(told["task"])
    return _arrays(model.backbone.state_dict())


def tall(given: Given, told: Mapping[str, Any]) -> Model:
    """One task's model, from the mask of its utility function."""
    total, mask = _total_and_masks(given, told)
    return _around(given, total * mask[list(given.experts).index(told["task"])])


def tall_trees(given: Given, told: Mapping[str, Any]) -> Model:
    """One task's model, from the mask of its algorithm, which itself stops.

    (It mixes parameters with plain tensors, which its own check refuses.)
    """
    taus = _task_vectors(given)
    total = state_dict_sum(taus)
    mask = tall_algorithm.generate_task_masks(
        total,
        taus[list(given.experts).index(told["task"])],
        _tensors(given.base),
        tall_mask_lambda=told["tall_mask_lambda"],
    )
    return {
        name: x + (total[name] * mask[name]).numpy() for name, x in given.base.items()
    }


def consensus(given: Given, told: Mapping[str, Any]) -> Model:
    """Its consensus of masks, which it would read from files, on their sum."""
    total, masks = _total_and_masks(given, told)
    base = _tensors(given.base)
    read = tall_mask.load_tall_mask
    trees = {
        task: vector_to_state_dict(mask, base)
        for task, mask in zip(given.experts, masks, strict=True)
    }
    tall_mask.load_tall_mask = lambda *_: trees
    try:
        kept = tall_mask.construct_consensus_mask(base, told["prun_thre_k"], None)
    finally:
        tall_mask.load_tall_mask = read
    return _around(given, told["scale"] * kept * total)


def knots(given: Given, told: Mapping[str, Any]) -> Model:
    """Its alignment, then the parts of its TIES, on each matrix."""
    taus, merged = _task_vectors(given), {}
    for name, x in given.base.items():
        u, s, vhs = subspace_alignment([tau[name] for tau in taus])
        rows = torch.stack([(s[:, None] * vh).reshape(-1) for vh in vhs])
        if told["threshold"] < 100:
            rows, _ = topk_values_mask(rows, K=told["threshold"])
        aligned = disjoint_merge(rows, "mean", resolve_sign(rows))
        far = u @ aligned.reshape(len(s), -1)
        merged[name] = x + told["scale"] * far.numpy()
    return merged


def tsv_c(given: Given, told: Mapping[str, Any]) -> Model:
    """One task's model, from its factors."""
    vectors = {
        task: types.SimpleNamespace(vector=tau)
        for task, tau in zip(given.experts, _task_vectors(given), strict=True)
    }
    kept = TSVC_utils.compress_tv(vectors, told["sv_reduction"])[told["task"]]
    merged = {}
    for name, x in given.base.items():
        part = kept[name]
        far = part["dim1"] if "dim1" in part else (part["u"] * part["s"]) @ part["v"]
        merged[name] = x + far.numpy()
    return merged


def one_bit(given: Given, told: Mapping[str, Any]) -> Model:
    """Its compressed matrices, unpacked as `load_diff` does."""
    (tuned,) = given.experts.values()
    merged = {}
    for name, x in given.base.items():
        kept = bitdelta.BinaryDiff(torch.from_numpy(x), torch.from_numpy(tuned[name]))
        signs = bitdelta.unpack(kept.mask) * 2 - 1
        merged[name] = x + (signs * kept.coeff).detach().numpy().T
    return merged


class _Tree(nn.Module):
    """A module whose `state_dict` has any names."""

    def put(self, path: list[str], x: torch.Tensor) -> None:
        if len(path) == 1:
            self.register_parameter(path[0], nn.Parameter(x))
            return
        if path[0] not in self._modules:
            self.add_module(path[0], _Tree())
        self._modules[path[0]].put(path[1:], x)


class _Pool(BaseModelPool):
    """Loads every model anew, as pools of files do: algorithms change what they get."""

    def load_model(self, *args: Any, **kwargs: Any) -> nn.Module:
        return copy.deepcopy(super().load_model(*args, **kwargs))


def _module(tree: Model) -> nn.Module:
    module = _Tree()
    for name, x in tree.items():
        module.put(name.split("."), torch.from_numpy(x.copy()))
    return module


def _pool(given: Given, *, base: bool = True) -> BaseModelPool:
    models = {"_pretrained_": _module(given.base)} if base else {}
    trees = {task: _module(tree) for task, tree in given.experts.items()}
    return _Pool(models | trees)


def _tensors(tree: Model) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(x.copy()) for name, x in tree.items()}


def _arrays(tree: Mapping[str, torch.Tensor]) -> Model:
    return {name: x.detach().numpy() for name, x in tree.items()}


def _task_vectors(given: Given) -> list[dict[str, torch.Tensor]]:
    base = _tensors(given.base)
    return [state_dict_sub(_tensors(t), base) for t in given.experts.values()]


def _total_and_masks(
    given: Given, told: Mapping[str, Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of all task vectors, and the mask of each task, as flat vectors."""
    flat = torch.vstack(
        [state_dict_to_vector(_tensors(t)) for t in given.experts.values()]
    )
    base = state_dict_to_vector(_tensors(given.base))
    masks = tall_mask.generate_task_masks(
        flat - base, flat, base, tall_mask_lambda=told["tall_mask_lambda"]
    )
    return state_dict_to_vector(state_dict_sum(_task_vectors(given))), masks


def _around(given: Given, far: torch.Tensor) -> Model:
    tree = vector_to_state_dict(far, _tensors(given.base))
    return {name: x + tree[name].numpy() for name, x in given.base.items()}


@contextlib.contextmanager
def _drawing(numbers: list[torch.Tensor]) -> Iterator[None]:
    """`torch.rand_like` returns these numbers from the other end, one tensor a call.

    It keeps what is above the share to drop, we what is below the share to keep.
    """
    left = iter(numbers)
    before = torch.rand_like
    torch.rand_like = lambda like: 1 - next(left).reshape(like.shape)
    try:
        yield
    finally:
        torch.rand_like = before
    if next(left, None) is not None:
        raise AssertionError("there are random numbers left")


def _case(
    method: str,
    ours: dict[str, Any],
    call: Any,
    told: dict[str, Any],
    run: Any = None,
    **rest: Any,
) -> Case:
    return Case(method, ours, call.__name__, told, run or algorithm(call), **rest)


_EMBEDDING = {"exclude_keys": [TABLE]}
_TIES = {"scaling_factor": 0.7, "remove_keys": [], "merge_func": "mean"}
_DARE = {"only_on_linear_weights": False, "rescale": True}

CASES = {
    "weight_average": _case("weight_average", {}, SimpleAverageAlgorithm, {}),
    "weight_average_weighted": _case(
        "weight_average",
        {"weights": {"a": 1.0, "b": 2.0, "c": 5.0}},
        WeightedAverageAlgorithm,
        {"weights": [1.0, 2.0, 5.0], "normalize": True},
    ),
    "lerp": _case(
        "lerp",
        {"t": 0.3},
        state_dict_weighted_sum,
        {"t": 0.3},
        lerp,
        models={"experts": "ab"},
    ),
    "slerp": _case(
        "slerp",
        {"t": 0.3},
        SlerpMergeAlgorithm,
        {"t": 0.3},
        algorithm(SlerpMergeAlgorithm, base=False),
        models={"experts": "ab"},
    ),
    "model_stock": _case("model_stock", {}, ModelStock, {}, models={"experts": "ab"}),
    "model_stock_three": _case(
        "model_stock",
        {},
        ModelStock,
        {},
        differs="FusionBench takes the cosine of the mean angle, ours is the mean cosine",
    ),
    "task_arithmetic": _case(
        "task_arithmetic",
        {"scale": 0.4},
        TaskArithmeticAlgorithm,
        {"scaling_factor": 0.4},
    ),
    "wise_ft": _case(
        "wise_ft",
        {"scale": 1.3},
        ExPOAlgorithm,
        {"extrapolation_factor": 0.3},
        models={"experts": "b"},
    ),
    "ties": _case(
        "ties",
        # As many of the 5696 numbers as FusionBench keeps: one more than 20 %.
        {"density": 1140.5 / 5696, "scale": 0.7},
        TiesMergingAlgorithm,
        {"threshold": 20, **_TIES},
    ),
    "ties_share": _case(
        "ties",
        {"density": 0.2, "scale": 0.7},
        TiesMergingAlgorithm,
        {"threshold": 20, **_TIES},
        differs="FusionBench, like the authors' code, keeps one number more of each "
        "task vector",
    ),
    "magmax": _case("magmax", {}, MagMaxAlgorithm, {"scaling_factor": 0.5}),
    "magnitude_mask": _case(
        "magnitude_mask",
        {"density": 0.5},
        MagnitudeDiffPruningAlgorithm,
        {"prune_ratio": 0.5, "extract_names": [MATRICES]},
        models={"experts": "b", "leaves": MATRICES},
        differs="FusionBench keeps the largest of each row, ours of the whole leaf",
    ),
    "dare": _case(
        "dare",
        {"density": 0.6, "scale": 0.4},
        DareTaskArithmetic,
        {"sparsity_ratio": 0.4, "scaling_factor": 0.4, **_DARE},
        masked(DareTaskArithmetic),
        masks=True,
    ),
    "dare_ties": _case(
        "dare_ties",
        {"density": 0.6, "scale": 0.7},
        DareTiesMerging,
        # Nothing is trimmed: a threshold of 100 is an error.
        {"sparsity_ratio": 0.4, "threshold": 99.99, **_TIES, **_DARE},
        masked(DareTiesMerging),
        masks=True,
    ),
    "fisher": _case(
        "fisher",
        {"floor": 1e-12},
        merging_with_fisher_weights,
        {"normalize_fisher_weight": True, "minimal_fisher_weight": 1e-6},
        fisher,
        data={"fishers": 1e3},
    ),
    "fisher_small": _case(
        "fisher",
        {"floor": 1e-6},
        merging_with_fisher_weights,
        {"normalize_fisher_weight": True, "minimal_fisher_weight": 1e-6},
        fisher,
        data={"fishers": 1e-6},
        differs="FusionBench adds its least weight before it divides by the norm, so "
        "that small information counts for little; ours is relative to the norm",
    ),
    "regmean": _case(
        "regmean",
        {"off_diagonal": 0.95, "ridge": 0.0},
        merging_with_regmean_weights,
        {"reduce_non_diagonal_ratio": 0.95},
        regmean,
        data={"grams": None},
    ),
    "regmean_default_ridge": _case(
        "regmean",
        {},
        merging_with_regmean_weights,
        {"reduce_non_diagonal_ratio": 0.95},
        regmean,
        data={"grams": None},
    ),
    "regmean_plus_plus": _case(
        "regmean_plus_plus",
        {"off_diagonal": 0.6, "ridge": 0.0},
        regmean_params_merge,
        {"reduce_non_diagonal_ratio": 0.6},
        regmean_plus_plus,
        models={"leaves": MATRICES},
        data={"grams": None},
    ),
    "tall_mask": _case(
        "tall_mask",
        {"task": "b", "threshold": 0.4},
        tall_mask.generate_task_masks,
        {"task": "b", "tall_mask_lambda": 0.4},
        tall,
    ),
    "tall_mask_algorithm": _case(
        "tall_mask",
        {"task": "b", "threshold": 0.4},
        tall_algorithm.generate_task_masks,
        {"task": "b", "tall_mask_lambda": 0.4},
        tall_trees,
        differs="FusionBench's algorithm compares the task vector with the base's "
        "weights, where its utility function has the expert's",
    ),
    "consensus": _case(
        "consensus",
        {"threshold": 0.4, "agree": 2, "scale": 0.4},
        tall_mask.construct_consensus_mask,
        {"tall_mask_lambda": 0.4, "prun_thre_k": 2, "scale": 0.4},
        consensus,
    ),
    "emr": _case(
        "emr",
        {"task": "b"},
        EMRMerging,
        {"task": "b"},
        emr,
        models={"leaves": SQUARE},
    ),
    "emr_unequal_leaves": _case(
        "emr",
        {"task": "b"},
        EMRMerging,
        {"task": "b"},
        emr,
        differs="FusionBench, like the authors' code, adds up means of leaves, the "
        "paper all numbers",
    ),
    "iso_c": _case(
        "iso_c", {"scale": 1.3}, ISO_C_Merge, {"scaling_factor": 1.3, **_EMBEDDING}
    ),
    "iso_cts": _case(
        "iso_cts",
        {"scale": 1.5, "common": 0.8},
        ISO_CTS_Merge,
        {"scaling_factor": 1.5, "common_space_fraction": 0.8, **_EMBEDDING},
    ),
    "iso_cts_half": _case(
        "iso_cts",
        {"scale": 1.5, "common": 0.5},
        ISO_CTS_Merge,
        {"scaling_factor": 1.5, "common_space_fraction": 0.5},
        models={"leaves": MLP},
    ),
    "tsv_m": _case(
        "tsv_m",
        {"scale": 0.9},
        TaskSingularVectorMerging,
        {"alpha": 0.9},
        models={"leaves": MLP},
    ),
    "tsv_c": _case(
        "tsv_c",
        {"task": "b"},
        TSVC_utils.compress_tv,
        {"task": "b", "sv_reduction": 1 / 3},
        tsv_c,
        models={"leaves": LAYERS},
    ),
    "knots": _case(
        "knots",
        {"scale": 0.7},
        subspace_alignment,
        {"scale": 0.7, "threshold": 100},
        knots,
        models={"leaves": MATRICES},
    ),
    "knots_trimmed": _case(
        "knots",
        # As many of 256 coordinates as it keeps: one more than 20 %.
        {"scale": 0.7, "density": 52.5 / 256},
        subspace_alignment,
        {"scale": 0.7, "threshold": 20},
        knots,
        models={"leaves": SQUARE},
    ),
    "svc": _case(
        "svc",
        {"scale": 0.4, "rest": "sum"},
        SingularValueCalibrationArithmeticTask,
        {"scaling_factor": 0.4, "alpha": 1 / 3},
        models={"leaves": LAYERS},
    ),
    "svc_tsv_m": _case(
        "svc",
        {"scale": 0.9, "merger": "tsv_m"},
        SingularValueCalibrationWithBaseMethod,
        {
            "alpha": 1.0,
            "base_method": {
                "_target_": "fusion_bench.method.TaskSingularVectorMerging",
                "alpha": 0.9,
            },
        },
        models={"leaves": MLP},
    ),
    "wudi": _case(
        "wudi",
        {"rest": "scaled_mean"},
        WUDIMerging,
        {"iter_num": 300, **_EMBEDDING},
    ),
    "one_bit": _case(
        "one_bit",
        {},
        bitdelta.BinaryDiff,
        {},
        one_bit,
        models={"experts": "b", "leaves": r"layers\.0\..*up_proj\.weight"},
    ),
}
