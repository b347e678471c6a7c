"""Statistics of experts on disk, from made images, into merges."""

import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import public_names as public
import pytest
from safetensors.numpy import load_file, save_file

import centermerge_jax as cm
from centermerge_jax.checkpoints import stage_path
from centermerge_jax.cli import main
from centermerge_jax.convert import load_model
from centermerge_jax.data import preprocess
from centermerge_jax.data.sources import carve, open_source
from centermerge_jax.methods import METHODS
from centermerge_jax.models import clip, heads
from centermerge_jax.models.bert import BertConfig
from centermerge_jax.models.gpt2 import GPT2Config
from centermerge_jax.models.vit import ViTConfig
from centermerge_jax.task_statistics import stored_fisher, stored_grams
from centermerge_jax.trees import named_leaves
from centermerge_jax.zero_shot_files import load_heads
from experiments.configs.table import CONFIGS
from experiments.smoke import make

TASKS = {"mnist": "MNIST", "svhn": "SVHN", "dtd": "DTD"}
EXAMPLES = 5
VISION, TEXT = (64, 256, 10, 2), (64, 256, 33, 14)
HEADS = ("head.", "classifier.")
FUSED = ("in_proj_weight", "c_attn.weight", "qkv.weight")
SIZES = {"depths": (2, 1), "vision": VISION, "text": TEXT, "embed": 6}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("statistics")
    checkpoints, data_dir = make(folder, [CONFIGS["vit_b32_8_cart"]])
    own = checkpoints / "ViT-B-32"
    base = load_model(own / "zeroshot")
    experts = {task: own / title for task, title in TASKS.items()}
    public = folder / "downloads" / "ViT-B-32" / "MNIST.safetensors"
    return {
        "data": data_dir,
        "config": base.config,
        "experts": experts,
        "public": public,
        "heads": own / "heads.safetensors",
        "folder": folder,
    }


def measure(made, expert, output, *words):
    how = ["--data-dir", str(made["data"]), "--examples", str(EXAMPLES), "--batch", "3"]
    main(["statistics", str(expert), *words, *how, "-o", str(output), "--json"])


def refused(capsys, words):
    with pytest.raises(SystemExit) as caught:
        main([str(word) for word in words])
    assert caught.value.code == 2
    return capsys.readouterr().err


def examples(made, task, seed=0):
    """The images and labels that a command uses, prepared by hand."""
    source = open_source(task, "train", data_dir=made["data"])
    _, chosen = carve(len(source), validation=EXAMPLES, seed=seed)
    pixels = preprocess.CLIP.at(32)
    chosen = [source[int(i)] for i in chosen]
    images = np.stack([preprocess.prepare(one.input, pixels) for one in chosen])
    return preprocess.normalise(images, pixels), [one.label for one in chosen]


def loaded(made, task):
    params = load_model(made["experts"][task], config=made["config"]).params
    return jax.tree.map(jnp.asarray, params)


class Batch:
    def __init__(self, inputs, labels, index):
        self.inputs, self.labels = inputs, np.array(labels, np.int32)
        self.index, self.valid = np.array(index), np.ones(len(labels), bool)


def test_gram_matrices_of_an_expert(made, tmp_path, capsys):
    path = tmp_path / "mnist.safetensors"
    measure(made, made["experts"]["mnist"], path, "--task", "mnist", "--seed", "4")
    said = json.loads(capsys.readouterr().out)["mnist"]
    assert said["examples"] == EXAMPLES
    assert said["source"] == f"{EXAMPLES} examples of mnist, train, seed 4"
    found = cm.read_statistics(path)
    images, labels = examples(made, "mnist", seed=4)

    def apply(params, x):
        return clip.image_features(params, x, config=made["config"])

    batch = Batch(images, labels, range(EXAMPLES))
    wanted = cm.gram_statistics(apply, loaded(made, "mnist"), [batch])
    assert found.leaves.keys() == wanted.keys()
    assert "visual/proj/kernel" in wanted
    for name, x in found.read().items():
        np.testing.assert_allclose(x, wanted[name], rtol=1e-4, atol=1e-5)


def test_names_are_those_of_the_checkpoint(made, tmp_path, capsys):
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    measure(made, made["experts"]["mnist"], ours, "--task", "mnist")
    measure(made, made["public"], theirs, "--task", "mnist")
    own, other = load_file(ours), load_file(theirs)
    above = "model.visual.transformer.resblocks.0."
    pairs = {
        "attn.in_proj_weight": "attn/q/kernel",
        "attn.out_proj.weight": "attn/out/kernel",
        "mlp.c_fc.weight": "mlp/fc1/kernel",
        "mlp.c_proj.weight": "mlp/fc2/kernel",
    }
    assert other.keys() == {above + name for name in pairs} | {"model.visual.proj"}
    for name, mine in pairs.items():
        np.testing.assert_allclose(
            other[above + name], own[f"visual/blocks/0/{mine}"], rtol=1e-5
        )


@pytest.mark.parametrize("labels", ["sampled", "given"])
def test_fisher_information_of_an_expert(made, tmp_path, capsys, labels):
    how = ["--task", "mnist", "--kind", "fisher", "--heads", str(made["heads"])]
    how += ["--labels", labels, "--seed", "2"]
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    measure(made, made["experts"]["mnist"], ours, *how)
    found = cm.read_statistics(ours)
    assert found.origin.source.endswith(f"seed 2, labels {labels}")
    images, answers = examples(made, "mnist", seed=2)
    head = jax.tree.map(jnp.asarray, load_heads(made["heads"]).head("mnist"))

    def apply(params, x):
        return heads.apply(head, clip.image_features(params, x, config=made["config"]))

    wanted = cm.fisher_statistics(
        apply,
        loaded(made, "mnist"),
        [Batch(images, answers, range(EXAMPLES))],
        key=jax.random.key(2),
        labels=labels,
    )
    wanted = named_leaves(wanted)
    read = found.read()
    assert read.keys() == wanted.keys()
    for name, x in read.items():
        np.testing.assert_allclose(x, wanted[name], rtol=1e-3, atol=1e-7)
    if labels == "sampled":
        return
    measure(made, made["public"], theirs, *how)
    found = load_file(theirs)
    assert found.keys() == load_file(made["public"]).keys()
    fused = found["model.visual.transformer.resblocks.0.attn.in_proj_weight"]
    k = read["visual/blocks/0/attn/k/kernel"]
    np.testing.assert_allclose(fused[len(k) : 2 * len(k)], k.T, rtol=1e-4, atol=1e-9)


FAMILIES = {
    "openclip": (public.openclip(**SIZES), None),
    "hf-clip": (public.hf_clip(**SIZES), None),
    "timm": (public.timm(), ViTConfig()),
    "hf-dinov2": (public.hf_dinov2(), ViTConfig()),
    "hf-bert": (public.hf_bert(), BertConfig()),
    "hf-roberta": (public.hf_roberta(), BertConfig()),
    "hf-gpt2": (public.hf_gpt2(), GPT2Config()),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_leaf_of_a_family_finds_its_place(family, tmp_path):
    shapes, config = FAMILIES[family]
    leaves = public.arrays(shapes)
    save_file(leaves, tmp_path / "model.safetensors")
    model = load_model(tmp_path / "model.safetensors", source=family, config=config)
    # Parameters in place of their Fisher information go back to where they were.
    found = stored_fisher(model, model.params)
    left = {name for name, x in leaves.items() if name not in found}
    assert not {
        name
        for name in left
        if leaves[name].dtype == np.float32 and not name.startswith(HEADS)
    }
    zeros = {name for name, x in found.items() if not np.any(x)}
    assert zeros <= {"embeddings.mask_token"}  # of which our model makes nothing
    for name in found.keys() - zeros:
        np.testing.assert_array_equal(found[name], leaves[name])
    kernels = {
        name: np.eye(len(x))
        for name, x in named_leaves(model.params).items()
        if name.endswith("kernel") and np.ndim(x) == 2
    }
    grams = stored_grams(model, kernels)
    fused = [name for name in leaves if name.endswith(FUSED)]
    assert len(grams) == len(kernels) - 2 * len(fused)
    for name, gram in grams.items():
        assert len(gram) in leaves[name].shape


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["EXPERT"], "of which task"),
        ([], "statistics of what"),
        (["EXPERT", "--task", "minst"], "did you mean 'mnist'"),
        (["EXPERT", "EXPERT", "--task", "mnist"], "of several give TASK=EXPERT"),
        (["EXPERT", "--task", "mnist", "--kind", "merged_gram"], "depends on all"),
        (["EXPERT", "--task", "mnist", "--kind", "fisher"], "no head for mnist"),
        (["EXPERT", "--task", "mnist", "--examples", "0"], "at least 1"),
        (["mnist=EXPERT", "mnist=EXPERT"], "two experts are given for mnist"),
        (["EXPERT", "--task", "mnist", "-o", "x"], "a file, NAME.safetensors"),
        (["mnist=EXPERT", "-o", "x.safetensors"], "a folder"),
        (["EXPERT", "--task", "cola"], "takes images"),
    ],
)
def test_wrong_statistics(made, tmp_path, capsys, words, message):
    words = [word.replace("EXPERT", str(made["experts"]["mnist"])) for word in words]
    output = tmp_path / ("o.safetensors" if "--task" in words else "o")
    if "-o" not in words:
        words += ["-o", str(output)]
    words += ["--data-dir", str(made["data"])]
    assert message in refused(capsys, ["statistics", *words])
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def measured(made, tmp_path_factory):
    """Statistics of three experts: `{kind: {task: file}}`."""
    folder = tmp_path_factory.mktemp("measured")
    found = {}
    for kind in ("gram", "fisher"):
        words = [f"{task}={path}" for task, path in made["experts"].items()]
        how = ["--data-dir", str(made["data"]), "--examples", "4", "--batch", "4"]
        how += ["--kind", kind, "--heads", str(made["heads"]), "--quiet"]
        main(["statistics", *words, *how, "-o", str(folder / kind)])
        found[kind] = {task: folder / kind / f"{task}.safetensors" for task in TASKS}
    return found


def merging(made, method, files, output, *words):
    experts = [f"{task}={path}" for task, path in made["experts"].items()]
    given = [f"--statistics={task}={file}" for task, file in files.items()]
    return ["merge", *experts, "--method", method, *given, "-o", str(output), *words]


def least(words, capsys):
    """The least memory that a merge can do with."""
    said = refused(capsys, ["plan", *words[1:], "--memory", "1MiB"])
    return re.search(r"this merge needs (\w+)", said)[1]


def weights(made):
    folders = made["experts"].items()
    found = {task: load_file(path / "model.safetensors") for task, path in folders}
    return dict(sorted(found.items()))


@pytest.mark.parametrize("memory", ["enough", "little"])
@pytest.mark.parametrize(("name", "kind"), [("regmean", "gram"), ("fisher", "fisher")])
def test_a_merge_on_disk_is_that_in_memory(
    made, measured, tmp_path, capsys, name, kind, memory
):
    files = measured[kind]
    output = tmp_path / "merged"
    words = merging(made, name, files, output)
    if memory == "little":
        words += ["--memory", least(words, capsys)]
        main(["plan", *words[1:], "--json"])
        assert json.loads(capsys.readouterr().out)["parts"] > 1
    main([*words, "--quiet"])
    known = {task: cm.read_statistics(files[task]).read() for task in sorted(files)}
    key = "grams" if kind == "gram" else "fishers"
    wanted = METHODS[name].function(weights(made), **{key: known})
    found = load_file(output / "model.safetensors")
    assert found.keys() == wanted.keys()
    moved = 0.0
    for leaf, x in wanted.items():
        np.testing.assert_allclose(found[leaf], x, rtol=1e-5, atol=1e-6)
        mean = sum(tree[leaf] for tree in weights(made).values()) / len(TASKS)
        moved = max(moved, np.abs(x - mean).max())
    assert moved > 1e-3  # statistics make a difference
    noted = json.loads((output / "centermerge.json").read_text())["statistics"]
    assert noted["dtd"]["path"] == str(files["dtd"])
    assert noted["dtd"]["examples"] == 4
    assert noted["dtd"]["tensors_sha256"] == dict(
        cm.read_statistics(files["dtd"]).sha256
    )


def test_plan_says_what_is_measured_and_what_is_missing(
    made, measured, tmp_path, capsys
):
    words = merging(made, "regmean", measured["gram"], tmp_path / "x")
    main(["plan", *words[1:]])
    said = capsys.readouterr().out
    assert "gram statistics of dtd: 4 examples of dtd, train, seed 0" in said
    some = {task: file for task, file in measured["gram"].items() if task == "dtd"}
    words = merging(made, "regmean", some, tmp_path / "x")
    said = refused(capsys, ["plan", *words[1:]])
    assert "regmean needs statistics of every expert" in said
    assert "none for mnist, svhn" in said
    assert f"centermerge statistics {made['experts']['mnist']} --task TASK" in said


def test_statistics_that_are_not_of_these_experts(made, measured, tmp_path, capsys):
    output, gram = tmp_path / "merged", measured["gram"]
    swapped = {"mnist": gram["svhn"], "svhn": gram["mnist"], "dtd": gram["dtd"]}
    said = refused(capsys, merging(made, "regmean", swapped, output))
    assert f"{gram['svhn']} was made from {made['experts']['svhn']}" in said
    assert f"the expert mnist, {made['experts']['mnist']}" in said
    said = refused(capsys, merging(made, "fisher", gram, output))
    assert "fisher needs statistics of the kind fisher; 3 files of another" in said
    said = refused(capsys, merging(made, "weight_average", gram, output))
    assert "weight_average takes no --statistics" in said
    said = refused(capsys, merging(made, "regmean", {"cars": gram["dtd"]}, output))
    assert "no expert is called cars" in said
    words = merging(made, "regmean", gram, output)
    said = refused(capsys, [*words, f"--statistics=dtd={gram['dtd']}"])
    assert "two files for dtd" in said
    said = refused(capsys, [*words, "--exclude", "visual/(blocks|proj)/.*"])
    assert "none of its leaves is merged" in said
    assert not list(tmp_path.iterdir())


def test_statistics_files_that_are_damaged(made, measured, tmp_path, capsys):
    output, files = tmp_path / "merged", dict(measured["gram"])
    raw = files["dtd"].read_bytes()
    files["dtd"] = tmp_path / "dtd.safetensors"
    files["dtd"].write_bytes(raw[:-5])
    said = refused(capsys, merging(made, "regmean", files, output))
    assert "truncated" in said
    half = len(raw) // 2
    files["dtd"].write_bytes(raw[:half] + bytes(len(raw) - half))
    said = refused(capsys, merging(made, "regmean", files, output))
    assert "damaged leaf name" in said
    assert [file.name for file in tmp_path.iterdir()] == ["dtd.safetensors"]


def test_statistics_of_other_leaves(made, measured, tmp_path, capsys):
    found = cm.read_statistics(measured["gram"]["dtd"])
    name = "visual/blocks/0/mlp/fc1/kernel"
    values = found.read()
    files = measured["gram"] | {"dtd": tmp_path / "dtd.safetensors"}

    def said(changed):
        files["dtd"].unlink(missing_ok=True)
        cm.write_statistics(files["dtd"], changed, origin=found.origin)
        return refused(capsys, merging(made, "regmean", files, tmp_path / "merged"))

    less = {leaf: x for leaf, x in values.items() if leaf != name}
    assert f"{name}: no Gram matrix for dtd" in said(less)
    assert "float32[7, 7], no Gram matrix for float32[64, 256] of dtd" in said(
        values | {name: np.eye(7, dtype=np.float32)}
    )
    assert "has head, which dtd has not" in said(values | {"head": np.eye(2)})


def test_leaves_without_fisher_information(made, measured, tmp_path, capsys):
    found = cm.read_statistics(measured["fisher"]["dtd"])
    files = measured["fisher"] | {"dtd": tmp_path / "dtd.safetensors"}
    values = found.read()
    del values["visual/norm/bias"]
    cm.write_statistics(files["dtd"], values, origin=found.origin)
    words = merging(made, "fisher", files, tmp_path / "merged")
    assert "has no visual/norm/bias; heads can be left out" in refused(capsys, words)
    main([*words, "--exclude", "visual/norm/bias", "--quiet"])


def test_a_merge_goes_on_with_the_same_statistics_only(
    made, measured, tmp_path, capsys
):
    files = {task: tmp_path / f"{task}.safetensors" for task in TASKS}
    for task, file in files.items():
        shutil.copyfile(measured["gram"][task], file)
    output, given = tmp_path / "merged", [f"{t}={file}" for t, file in files.items()]

    memory = least(merging(made, "regmean", files, output), capsys)

    def merged(**how):
        more = {"statistics": tuple(given), "memory": memory}
        cm.stream.merge(made["experts"], output, "regmean", **more, **how)

    def stop(text, share):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merged(progress=stop)
    before = cm.read_statistics(files["dtd"])
    values = {name: 2 * x for name, x in before.read().items()}
    files["dtd"].unlink()
    cm.write_statistics(files["dtd"], values, origin=before.origin)
    with pytest.raises(cm.CheckpointError, match=r"dtd\.safetensors"):
        merged(resume=True)
    shutil.rmtree(stage_path(output))
    with pytest.raises(KeyboardInterrupt):
        merged(progress=stop)
    merged(resume=True)


def test_regmean_plus_plus_on_disk(made, measured, tmp_path, capsys):
    words = [f"{task}={path}" for task, path in made["experts"].items()]
    how = ["--data-dir", str(made["data"]), "--examples", "4", "--batch", "4"]
    how += ["--kind", "merged_gram", "-o", str(tmp_path / "files"), "--quiet"]
    main(["statistics", *words, *how])
    files = {task: tmp_path / "files" / f"{task}.safetensors" for task in TASKS}
    behind = cm.read_statistics(files["dtd"])
    assert set(behind.origin.together) == set(TASKS)
    plain = cm.read_statistics(measured["gram"]["dtd"])
    # What stands before the first block is merged for one, and not for the other.
    name = "visual/blocks/0/attn/q/kernel"
    assert np.abs(behind.read([name])[name] - plain.read([name])[name]).max() > 1e-4
    main(merging(made, "regmean_plus_plus", files, tmp_path / "merged", "--quiet"))
    words = [f"{task}={made['experts'][task]}" for task in ("dtd", "svhn")]
    given = [f"--statistics={task}={files[task]}" for task in ("dtd", "svhn")]
    words = ["merge", *words, *given, "--method", "regmean_plus_plus"]
    said = refused(capsys, [*words, "-o", tmp_path / "two"])
    assert "not made together for just these ones" in said
