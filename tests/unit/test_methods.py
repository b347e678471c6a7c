"""Every method against its formula in NumPy float64."""

import functools

import numpy as np
import pytest
import zoo
from numpy_methods import REFERENCES, wide

import centermerge_jax as cm
from centermerge_jax import views
from centermerge_jax.methods import METHODS
from centermerge_jax.random_numbers import uniforms

EVERY = pytest.mark.parametrize("name", list(METHODS))

OTHERS = [
    ("ace_merging", {"heterogeneity": 0.0, "fraction": 0.5, "ridge": 0.01}),
    ("breadcrumbs", {"density": 0.3, "outliers": 0.2}),
    ("cart_data_free", {"rank": 0.25}),
    ("cart_data_free", {"energy": 0.6}),
    ("cart_data_free", {"noise": 0.7, "scale": 0.5}),
    ("cart_data_free", {"rank": 0.4, "energy": 0.8, "match": "length"}),
    ("cart_data_free_whole", {"energy": 0.6}),
    ("cart_data_free_whole", {"noise": 0.7}),
    ("cart_data_free_whole", {"rank": 0.25, "match": "length"}),
    ("consensus", {"threshold": 0.2, "agree": 3}),
    ("dc_merge", {"keep": 0.2}),
    ("fisher", {"floor": 0.01}),
    ("from_merging", {"power": 2.0}),
    ("iso_cts", {"common": 0.4}),
    ("knots", {"density": 0.3}),
    ("lata", {"curve": "log"}),
    ("lata", {"curve": "threshold", "threshold": 0.0}),
    ("quantised", {"bits": 3, "base_bits": 4}),
    ("regmean", {"off_diagonal": 0.2}),
    ("sce", {"density": 0.3}),
    ("slerp", {"t": 0.9}),
    ("star", {"energy": 0.8}),
    ("subspace_boosting", {"beta": 0.3}),
    ("svc", {"merger": "iso_c"}),
    ("svc", {"merger": "tsv_m", "scale": 1.0}),
    ("tsv_m", {"scale": 1.5}),
    ("weight_scope_alignment", {"variance": "pooled"}),
    ("wudi", {"learning_rate": 1e-3}),
]


def flat_kernel(rows):
    """To and from `[out, in]` for a Flax kernel whose first axes are its inputs."""

    def split(leaves):
        (x,) = leaves
        return [x.reshape(int(np.prod(x.shape[:rows])), -1).T]

    def join(name):
        return lambda matrices: [matrices[0].T.reshape(zoo.SHAPES[name])]

    return split, join


def layouts(*, fused):
    """How the reference sees the leaves of the zoo."""
    found = {}
    for name in zoo.MATRICES:
        split, join = flat_kernel(2 if name.endswith("out/kernel") else 1)
        found[(name,)] = split, join(name)
    if not fused:
        return found
    for layer in range(zoo.LAYERS):
        # In the order of their names, as a tree has them.
        names = tuple(
            f"blocks/{layer}/attn/{x}/kernel" for x in ("key", "query", "value")
        )
        for name in names:
            del found[(name,)]

        def split(leaves):
            return [np.concatenate([x.reshape(zoo.WIDTH, -1) for x in leaves], 1).T]

        def join(matrices):
            parts = np.split(matrices[0].T, 3, axis=1)
            return [part.reshape(zoo.SHAPES[names[0]]) for part in parts]  # noqa: B023

        found[names] = split, join
    return found


def reference(name, experts, base, *, fused=False, **told):
    given = zoo.data(METHODS[name], experts)
    if name in zoo.RANDOM:
        given["uniforms"] = lambda *of: np.float64(uniforms(0, name, *of))
    wide_experts = {task: wide(tree) for task, tree in experts.items()}
    table = layouts(fused=fused)
    return REFERENCES[name](wide_experts, wide(base), table, **told, **given)


def agrees(found, wanted, base, *, tolerance=2e-4):
    """Within a share of what the merge changes, as that is a float32 difference."""
    for leaf, x in wanted.items():
        unit = max(np.abs(x - base[leaf]).max(), 0.02)
        np.testing.assert_allclose(
            np.float64(found[leaf]), x, rtol=0, atol=tolerance * unit, err_msg=leaf
        )


@EVERY
def test_the_formula(name):
    experts, base = zoo.models()
    experts = zoo.tasks_of(name, experts)
    told = zoo.settings(METHODS[name])
    found = zoo.run(name, experts, base, **told)
    agrees(found, reference(name, experts, base, **told), base)


@pytest.mark.parametrize(("name", "changed"), OTHERS)
def test_other_hyperparameters(name, changed):
    experts, base = zoo.models()
    experts = zoo.tasks_of(name, experts)
    told = zoo.settings(METHODS[name]) | changed
    found = zoo.run(name, experts, base, **told)
    agrees(found, reference(name, experts, base, **told), base)


@pytest.mark.parametrize(
    "name", [n for n, m in METHODS.items() if "views" in m.hyperparameters]
)
def test_queries_keys_and_values_as_one_matrix(name):
    experts, base = zoo.models()
    experts = zoo.tasks_of(name, experts)
    told = zoo.settings(METHODS[name])
    found = zoo.run(name, experts, base, **told, views=views.fused)
    if name == "della":  # its rows are the same ones
        return agrees(found, reference(name, experts, base, **told), base)
    return agrees(found, reference(name, experts, base, fused=True, **told), base)


def stacked(tree):
    """The blocks' leaves stacked over the layers, as `nn.scan` has them."""
    found = {n: x for n, x in tree.items() if not n.startswith("blocks/")}
    for name in tree:
        if name.startswith("blocks/0/"):
            layers = [tree[name.replace("/0/", f"/{i}/")] for i in range(zoo.LAYERS)]
            found[name.replace("/0/", "/")] = np.stack(layers)
    return found


@pytest.mark.parametrize(
    "name",
    [n for n, m in METHODS.items() if m.scope == "matrix" and n != "regmean_plus_plus"],
)
def test_layers_in_one_leaf_are_matrices_of_their_own(name):
    experts, base = zoo.models()
    told = zoo.settings(METHODS[name])
    wanted = zoo.run(name, experts, base, **told)
    given = {
        kind: {task: stacked(tree) for task, tree in trees.items()}
        for kind, trees in zoo.data(METHODS[name], experts).items()
    }
    see = functools.partial(views.auto, scanned="blocks/.*")
    piled = {task: stacked(tree) for task, tree in experts.items()}
    found = zoo.run(name, piled, stacked(base), **told, **given, views=see)
    agrees(found, {n: np.float64(x) for n, x in stacked(wanted).items()}, stacked(base))


def test_cart_with_the_fewest_directions_of_an_energy():
    experts, base = zoo.models()
    found = METHODS["cart"].function(experts, rank=1.0, energy=0.6, scale=1.5)
    origin = {n: np.mean([t[n] for t in experts.values()], axis=0) for n in base}
    for names, (split, join) in layouts(fused=False).items():
        (name,) = names
        total = 0.0
        for tree in experts.values():
            (x,) = split([np.float64(tree[name]) - origin[name]])
            u, s, vh = np.linalg.svd(x, full_matrices=False)
            k = 1 + int(np.argmax(np.cumsum(s**2) / np.sum(s**2) >= 0.6))
            assert k < len(s)
            total += (u[:, :k] * s[:k]) @ vh[:k]
        (wanted,) = join([total])
        np.testing.assert_allclose(
            found[name], origin[name] + 1.5 * wanted, rtol=0, atol=2e-5
        )


@pytest.mark.parametrize("solver", ["exact", "gram"])
def test_cart_with_a_rank_for_each_task(solver):
    experts, _ = zoo.models()
    ranks = {"a": 2, "b": 0.5, "c": 1}
    cart = METHODS["cart"].function
    found = cart(experts, rank=ranks, scale=1.0, solver=solver)
    # Each task's own share of the merge, at its rank.
    alone = {
        task: cart(
            experts,
            rank=rank,
            scale=np.array([float(task == other) for other in experts]),
            solver=solver,
        )
        for task, rank in ranks.items()
    }
    for name in zoo.MATRICES:
        origin = np.mean([tree[name] for tree in experts.values()], axis=0)
        wanted = origin + sum(np.asarray(x[name]) - origin for x in alone.values())
        np.testing.assert_allclose(found[name], wanted, rtol=0, atol=2e-5)
    with pytest.raises(Exception, match="ranks are given for a; the tasks are a, b, c"):
        cart(experts, rank={"a": 2}, scale=1.0)


def test_how_near_directions_may_be_on_an_arc():
    angle = 0.02  # its cosine is 0.9998
    arc = np.float64([0, angle / 2, angle])
    a, middle, b = (np.float32([np.cos(x), np.sin(x)]) for x in arc)
    merge = functools.partial(METHODS["slerp"].function, [{"w": a}, {"w": b}], t=0.5)
    np.testing.assert_allclose(merge(parallel=1.0)["w"], middle, rtol=0, atol=1e-7)
    np.testing.assert_allclose(merge()["w"], (a + b) / 2, rtol=0, atol=1e-7)
    same = METHODS["slerp"].function([{"w": a}, {"w": a}], t=0.3, parallel=1.0)
    np.testing.assert_allclose(same["w"], a, rtol=0, atol=1e-7)
    for parallel in (0.0, 1.1, float("nan")):
        with pytest.raises(cm.ParameterError, match="parallel is a cosine"):
            merge(parallel=parallel)
