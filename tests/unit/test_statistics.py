"""Gram matrices, Fisher information and their files against NumPy in float64."""

from types import SimpleNamespace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpy_transformers as reference
import pytest
from flax import linen

import centermerge_jax as cm
from centermerge_jax.models import bert, gpt2, heads, vit
from centermerge_jax.models.bert import BertConfig
from centermerge_jax.models.gpt2 import GPT2Config
from centermerge_jax.models.vit import ViTConfig
from centermerge_jax.statistics import Origin, leaf_digests
from centermerge_jax.statistics.matrix_inputs import order_of_use
from centermerge_jax.trees import named_leaves

VIT = ViTConfig(patch=2, grid=2, width=8, depth=2, heads=2, layer_scale=True)
BERT = BertConfig(
    vocabulary=20, context=7, width=12, depth=2, heads=3, hidden=20, types=2
)
GPT2 = GPT2Config(vocabulary=20, context=7, width=12, depth=1, heads=3)
IDS = np.array([[18, 3, 4, 19, 0, 0], [18, 5, 19, 0, 0, 0], [18, 1, 2, 3, 4, 19]])
MASK = (IDS != 0).astype(np.int32)


class Seen:
    """A matrix that notes what it is multiplied with."""

    __array_ufunc__ = None

    def __init__(self, matrix):
        self.matrix, self.inputs = matrix, []

    def __rmatmul__(self, x):
        self.inputs.append(x)
        return x @ self.matrix


def watched(tree):
    """The same tree in float64, whose dense kernels note their inputs."""
    if not isinstance(tree, dict):
        return np.asarray(tree, np.float64)
    return {
        name: Seen(np.asarray(x, np.float64))
        if name == "kernel" and np.ndim(x) == 2
        else watched(x)
        for name, x in tree.items()
    }


def expected(tree, rows, above=""):
    """x^T x / n of what the kernels of a watched tree saw in these rows."""
    found = {}
    for name, x in tree.items():
        if isinstance(x, dict):
            found |= expected(x, rows, f"{above}{name}/")
        elif isinstance(x, Seen) and x.inputs:
            (seen,) = x.inputs
            real = seen[rows] if seen.ndim > 2 else seen[rows.any(axis=-1)]
            real = real.reshape(-1, seen.shape[-1])
            found[above + name] = real.T @ real / len(real)
    return found


def batch(inputs, valid, labels=None, start=0):
    count = len(valid)
    return SimpleNamespace(
        inputs=inputs,
        valid=np.array(valid, bool),
        labels=np.zeros(count, np.int32) if labels is None else np.array(labels),
        index=start + np.arange(count),
    )


def same(found, wanted, rtol=1e-5):
    assert found.keys() == wanted.keys()
    for name, x in wanted.items():
        assert found[name].dtype == np.float32, name
        np.testing.assert_allclose(
            found[name], x, rtol=rtol, atol=rtol * np.abs(x).max(), err_msg=name
        )


def test_every_matrix_of_a_vision_transformer():
    params = reference.random_tree(vit.init(VIT, jax.random.key(0)))
    images = np.random.default_rng(0).normal(size=(3, 4, 4, 3)).astype(np.float32)
    tree = watched(params)
    how = {"heads": 2, "epsilon": VIT.epsilon, "activation": reference.gelu}
    patches = np.stack(
        [
            images[:, r : r + 2, c : c + 2].reshape(3, -1)
            for r in (0, 2)
            for c in (0, 2)
        ],
        1,
    )
    x = patches @ tree["embed"]["patch"]["kernel"].reshape(12, 8)
    x = x + tree["embed"]["patch"]["bias"]
    first = np.broadcast_to(tree["embed"]["class_token"], (3, 1, 8))
    x = np.concatenate([first, x], 1) + tree["embed"]["positions"]
    reference.blocks(x, tree["blocks"], **how)
    # The second batch has one image, and two of padding that is no number.
    padded = np.concatenate([images[2:], np.full((1, 4, 4, 3), np.nan, np.float32)])
    found = cm.gram_statistics(
        lambda p, x: vit.apply(p, x, config=VIT),
        params,
        [batch(images[:2], [1, 1]), batch(padded, [1, 0])],
    )
    assert len(found) == 12
    same(found, expected(tree, np.ones((3, 5), bool)))


def test_bert_without_its_padding_and_with_its_pooler():
    params = reference.random_tree(bert.init(BERT, jax.random.key(0)))
    tree = watched(params)
    embed = tree["embed"]
    x = embed["tokens"]["embedding"][IDS] + embed["positions"][: IDS.shape[1]]
    x = reference.norm(x + embed["types"]["embedding"][0], embed["norm"], BERT.epsilon)
    seen = MASK.astype(bool)[:, None, :]
    how = {"heads": 3, "epsilon": BERT.epsilon, "activation": reference.gelu}
    x = reference.blocks(x, tree["blocks"], seen=seen, norm_first=False, **how)
    reference.dense(x[:, 0], tree["pooler"])

    def apply(params, tokens):
        hidden = bert.apply(params, tokens["ids"], tokens["mask"], config=BERT)
        return bert.pool(params, hidden)

    tokens = {"ids": IDS, "mask": MASK}
    found = cm.gram_statistics(apply, params, [batch(tokens, [1, 1, 1])])
    assert "pooler/kernel" in found
    same(found, expected(tree, MASK.astype(bool)))


def test_batches_of_any_size_and_one_leaf_alone():
    params = reference.random_tree(gpt2.init(GPT2, jax.random.key(0)))

    def apply(params, tokens):
        hidden = gpt2.apply(params, tokens["ids"], tokens["mask"], config=GPT2)
        return gpt2.last_token(hidden, tokens["mask"])

    def parts(size):
        for start in range(0, 3, size):
            rows = slice(start, start + size)
            ids, mask = IDS[rows], MASK[rows]
            lack = size - len(ids)
            ids, mask = (np.pad(x, ((0, lack), (0, 0))) for x in (ids, mask))
            valid = np.arange(size) < size - lack
            yield batch({"ids": ids, "mask": mask}, valid)

    whole = cm.gram_statistics(apply, params, parts(3))
    divided = cm.gram_statistics(apply, params, parts(2))
    same(divided, {name: np.asarray(x) for name, x in whole.items()})
    name = "blocks/0/mlp/fc2/kernel"
    alone = cm.gram_statistics(apply, params, parts(3), leaves=[name])
    same(alone, {name: np.asarray(whole[name])})
    with pytest.raises(cm.ParameterError, match="multiplied with: norm/scale"):
        cm.gram_statistics(apply, params, parts(3), leaves=["norm/scale"])


def test_models_of_other_libraries():
    x = np.random.default_rng(0).normal(size=(4, 3, 6)).astype(np.float32)
    rows = x.reshape(-1, 6).astype(np.float64)
    wanted = rows.T @ rows / len(rows)
    layer = linen.MultiHeadDotProductAttention(num_heads=2)
    variables = layer.init(jax.random.key(0), x)
    found = cm.gram_statistics(layer.apply, variables, [batch(x, [1] * 4)])
    for name in ("query", "key", "value"):  # kernels [in, heads, head_dim]
        np.testing.assert_allclose(
            found[f"params/{name}/kernel"], wanted, rtol=1e-4, atol=1e-5
        )
    assert found["params/out/kernel"].shape == (6, 6)
    module = eqx.nn.MLP(6, 2, 5, depth=1, key=jax.random.key(0))
    arrays, static = eqx.partition(module, eqx.is_array)

    def apply(arrays, x):  # weights [out, in], one item at a time
        return jax.vmap(jax.vmap(eqx.combine(arrays, static)))(x)

    found = cm.gram_statistics(apply, arrays, [batch(x, [1] * 4)])
    assert sorted(found) == ["layers/0/weight", "layers/1/weight"]
    np.testing.assert_allclose(found["layers/0/weight"], wanted, rtol=1e-4, atol=1e-5)


def test_stacked_layers_in_a_scan():
    rng = np.random.default_rng(0)
    params = {
        "layers": {"kernel": rng.normal(size=(3, 4, 4)).astype(np.float32)},
        "shared": rng.normal(size=(4, 4)).astype(np.float32),
    }
    x = rng.normal(size=(5, 4)).astype(np.float32)

    @jax.jit
    def apply(params, x):
        def layer(x, kernel):
            return jnp.tanh(x @ kernel @ params["shared"].T), None

        return jax.lax.scan(jax.checkpoint(layer), x, params["layers"]["kernel"])[0]

    layers, shared, y = [], 0, x[:4].astype(np.float64)
    for kernel in params["layers"]["kernel"]:
        layers.append(y.T @ y / 4)
        y = y @ kernel
        shared = shared + y.T @ y / 12
        y = np.tanh(y @ params["shared"].T)
    found = cm.gram_statistics(apply, params, [batch(x, [1, 1, 1, 1, 0])])
    same(found, {"layers/kernel": np.stack(layers), "shared": shared})


def test_matrices_that_do_not_meet_inputs_have_none():
    params = {"a": np.eye(2, dtype=np.float32), "b": np.eye(2, dtype=np.float32)}

    def apply(params, x):
        return (params["a"] @ params["b"])[None] * x[:, None]

    x = batch(np.ones((1, 2), np.float32), [1])
    with pytest.raises(cm.DataError, match="no inputs of any matrix"):
        cm.gram_statistics(apply, params, [x])
    assert order_of_use(apply, params, x.inputs) == ["a", "b"]


def test_inputs_that_are_not_finite():
    x = np.array([[1.0], [np.nan]], np.float32)
    with pytest.raises(cm.DataError, match="not finite: w"):
        cm.gram_statistics(
            lambda p, x: x @ p["w"],
            {"w": np.ones((1, 1), np.float32)},
            [batch(x, [1, 1])],
        )


def classifier(params, x):
    hidden = jnp.tanh(x @ params["in"]["kernel"] + params["in"]["bias"][None])
    return heads.apply(params["out"], hidden)


def small(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "in": {
            "kernel": rng.normal(size=(4, 5)).astype(np.float32),
            "bias": rng.normal(size=5).astype(np.float32),
        },
        "out": {"kernel": rng.normal(size=(5, 3)).astype(np.float32)},
        "steps": np.int32(7),
    }


def fisher_by_hand(params, x, labels):
    """The mean of squared derivatives, example by example in float64."""
    w, b, v = (
        np.asarray(leaf, np.float64)
        for leaf in (
            params["in"]["kernel"], params["in"]["bias"], params["out"]["kernel"]
        )
    )  # fmt: skip
    sums = [np.zeros_like(leaf) for leaf in (w, b, v)]
    for one, label in zip(x.astype(np.float64), labels, strict=True):
        h = np.tanh(one @ w + b)
        logits = h @ v
        p = np.exp(logits - logits.max())
        d = p / p.sum() - np.eye(3)[label]
        back = (v @ d) * (1 - h**2)
        for total, g in zip(
            sums, (np.outer(one, back), back, np.outer(h, d)), strict=True
        ):
            total += g**2
    return {
        name: total / len(x)
        for name, total in zip(
            ("in/kernel", "in/bias", "out/kernel"), sums, strict=True
        )
    }


def test_fisher_information_of_given_labels():
    params, rng = small(), np.random.default_rng(1)
    x = rng.normal(size=(7, 4)).astype(np.float32)
    labels = rng.integers(0, 3, 7).astype(np.int32)
    padded = np.concatenate([x[4:], np.full((1, 4), np.nan, np.float32)])
    batches = [
        batch(x[:4], [1] * 4, labels[:4]),
        batch(padded, [1, 1, 1, 0], [*labels[4:], 99], start=4),
    ]
    found = cm.fisher_statistics(
        classifier, params, batches, key=jax.random.key(0), labels="given"
    )
    assert jax.tree.structure(found) == jax.tree.structure(params)
    leaves = named_leaves(found)
    assert int(leaves.pop("steps")) == 7
    same(leaves, fisher_by_hand(params, x, labels))
    batches[0].labels[1] = 3
    with pytest.raises(cm.DataError, match="label 3 is outside the 3 classes"):
        cm.fisher_statistics(
            classifier, params, batches, key=jax.random.key(0), labels="given"
        )


def test_sampled_labels_depend_on_the_example_and_not_on_its_batch():
    params, rng = small(), np.random.default_rng(1)
    x = rng.normal(size=(6, 4)).astype(np.float32)
    key = jax.random.key(3)
    logits = classifier(jax.tree.map(jnp.asarray, params), jnp.asarray(x))
    labels = [
        int(jax.random.categorical(jax.random.fold_in(key, i), jax.nn.log_softmax(row)))
        for i, row in enumerate(logits)
    ]
    whole = cm.fisher_statistics(classifier, params, [batch(x, [1] * 6)], key=key)
    leaves = {n: leaf for n, leaf in named_leaves(whole).items() if n != "steps"}
    same(leaves, fisher_by_hand(params, x, labels))
    apart = [batch(x[i : i + 1], [1], start=i) for i in (5, 3, 0, 1, 4, 2)]
    again = cm.fisher_statistics(classifier, params, apart, key=key)
    for name, leaf in named_leaves(again).items():
        np.testing.assert_allclose(leaf, named_leaves(whole)[name], rtol=1e-5)
    other = cm.fisher_statistics(classifier, params, apart, key=jax.random.key(4))
    assert not np.allclose(other["out"]["kernel"], whole["out"]["kernel"])


def test_sampled_labels_are_drawn_from_the_model():
    # Of one example many times: the mean over labels is the exact expectation.
    params, x = small(), np.float32([[0.3, -0.2, 0.1, 0.4]])
    count = 4000
    many = np.repeat(x, count, axis=0)
    found = cm.fisher_statistics(
        classifier, params, [batch(many, [1] * count)], key=jax.random.key(0)
    )
    logits = classifier(jax.tree.map(jnp.asarray, params), jnp.asarray(x))
    chances = np.asarray(jax.nn.softmax(logits[0]), np.float64)
    each = [fisher_by_hand(params, x, [label]) for label in range(3)]
    for name in ("in/kernel", "out/kernel"):
        exact = sum(p * one[name] for p, one in zip(chances, each, strict=True))
        np.testing.assert_allclose(
            named_leaves(found)[name], exact, rtol=0.1, atol=0.05 * exact.max()
        )


def test_fisher_needs_logits():
    x = [batch(np.ones((2, 4), np.float32), [1, 1])]
    key = jax.random.key(0)
    with pytest.raises(cm.ParameterError, match="logits"):
        cm.fisher_statistics(lambda p, x: x[:, 0], small(), x, key=key)
    with pytest.raises(cm.DataError, match="no example"):
        cm.fisher_statistics(classifier, small(), [], key=key)


def regmean(leaves, *, grams, views=None):
    """W = (sum G_t)^-1 (sum G_t W_t), in the layout of Flax; the mean of the rest."""
    tasks = list(leaves)
    merged = {}
    for name in leaves[tasks[0]]:
        w = [np.asarray(leaves[task][name], np.float64) for task in tasks]
        merged[name] = np.float32(sum(w) / len(w))
        if name in grams[tasks[0]]:
            g = [np.asarray(grams[task][name], np.float64) for task in tasks]
            ridge = 1e-6 * np.trace(sum(g)) / len(g[0]) * np.eye(len(g[0]))
            right = sum((a + ridge / 2) @ b for a, b in zip(g, w, strict=True))
            merged[name] = np.float32(np.linalg.solve(sum(g) + ridge, right))
    return merged


def test_grams_behind_merged_blocks():
    config = ViTConfig(patch=2, grid=2, width=8, depth=3, heads=2)
    keys = jax.random.split(jax.random.key(0))
    experts = {
        name: reference.random_tree(vit.init(config, key), seed)
        for seed, (name, key) in enumerate(zip("ab", keys, strict=True))
    }
    rng = np.random.default_rng(0)
    images = {n: rng.normal(size=(6, 4, 4, 3)).astype(np.float32) for n in "ab"}
    data = {name: [batch(x, [1] * 6)] for name, x in images.items()}

    def apply(params, x):
        return vit.apply(params, x, config=config)

    found = cm.merged_prefix_grams(apply, experts, data, merge=regmean)
    # By hand: the prefix of the merged model, then the expert's own block.
    plain = {n: cm.gram_statistics(apply, experts[n], data[n]) for n in "ab"}
    assert found["a"].keys() == plain["a"].keys()
    own = {n: named_leaves(experts[n]) for n in "ab"}
    merged = regmean(own, grams=found)
    for block in range(3):
        for name in "ab":
            done = ("embed/", *(f"blocks/{i}/" for i in range(block)))
            mixed = {
                leaf: merged[leaf] if leaf.startswith(done) else x
                for leaf, x in own[name].items()
            }
            tree = jax.tree.unflatten(
                jax.tree.structure(experts[name]), list(mixed.values())
            )
            grams = cm.gram_statistics(apply, tree, data[name])
            for leaf, gram in grams.items():
                if leaf.startswith(f"blocks/{block}/"):
                    np.testing.assert_allclose(found[name][leaf], gram, rtol=1e-4)
    last = "blocks/2/attn/q/kernel"
    assert np.abs(found["a"][last] - plain["a"][last]).max() > 0.1
    usual = cm.merged_prefix_grams(apply, experts, data)  # the library's own RegMean
    first = "blocks/0/attn/q/kernel"  # only means before it
    np.testing.assert_allclose(usual["a"][first], found["a"][first], rtol=1e-4)
    assert np.abs(usual["a"][last] - found["a"][last]).max() > 1e-3  # off the diagonal
    with pytest.raises(cm.ParameterError, match="experts for a, b, and data for a"):
        cm.merged_prefix_grams(apply, experts, {"a": data["a"]}, merge=regmean)


def origin(kind="gram", **changes):
    facts = {
        "kind": kind,
        "task": "cars",
        "examples": 2,
        "source": "2 examples of cars",
        "expert": "experts/cars",
        "expert_sha256": leaf_digests([("w", np.zeros(2, np.float32))]),
    }
    return Origin(**facts | changes)


def test_files_come_back(tmp_path):
    path = tmp_path / "cars.safetensors"
    values = {"b/w": jnp.arange(6.0).reshape(2, 3), "a": np.float32([3, 4])}
    cm.write_statistics(path, values, origin=origin())
    found = cm.read_statistics(path)
    assert found.origin == origin()
    assert list(found.leaves) == ["a", "b/w"]
    read = found.read()
    for name, x in values.items():
        assert read[name].dtype == np.float32
        np.testing.assert_array_equal(read[name], x)
    assert found.norm(["a"]) == 5
    assert not [file for file in tmp_path.iterdir() if file != path]
    with pytest.raises(cm.CheckpointError, match="exists"):
        cm.write_statistics(path, values, origin=origin())


def test_files_that_cannot_be(tmp_path):
    x = {"w": np.float32([1, np.nan])}
    with pytest.raises(cm.CheckpointError, match=r"not finite: cars: .* w \(1 NaN"):
        cm.write_statistics(tmp_path / "x.safetensors", x, origin=origin())
    with pytest.raises(cm.CheckpointError, match=r"ends in \.safetensors"):
        cm.write_statistics(tmp_path / "x", {"w": np.ones(2)}, origin=origin())
    assert not list(tmp_path.iterdir())


def test_files_that_are_damaged_or_others(tmp_path):
    path = tmp_path / "cars.safetensors"
    cm.write_statistics(path, {"w": np.ones((9, 9), np.float32)}, origin=origin())
    raw = path.read_bytes()
    path.write_bytes(raw[:-4])
    with pytest.raises(cm.CheckpointError, match="truncated"):
        cm.read_statistics(path)
    path.write_bytes(raw[:-4] + b"abcd")
    with pytest.raises(cm.CheckpointError, match="1 damaged leaf name: w"):
        cm.read_statistics(path).read()
    path.write_bytes(raw.replace(b'\\"version\\": 1', b'\\"version\\": 9'))
    with pytest.raises(cm.CheckpointError, match="version 9 of the format"):
        cm.read_statistics(path)
    path.write_bytes(raw.replace(b'\\"kind\\": \\"gram\\"', b'\\"kind\\": \\"gran\\"'))
    with pytest.raises(cm.CheckpointError, match="damaged header"):
        cm.read_statistics(path)
    from safetensors.numpy import save_file

    save_file({"w": np.ones(2)}, path)
    with pytest.raises(cm.CheckpointError, match="no file of statistics"):
        cm.read_statistics(path)
