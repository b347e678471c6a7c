"""The paper's benchmark from end to end, on tiny checkpoints in the real formats."""

import dataclasses
import functools
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import public_names as public
import pytest
from disk import write_hub
from safetensors.numpy import load_file

import centermerge_jax as cm
from centermerge_jax.cli import main
from centermerge_jax.convert import load_model
from centermerge_jax.data import registry
from centermerge_jax.models import clip, heads
from centermerge_jax.progress import silent
from centermerge_jax.zero_shot_files import load_heads
from experiments.configs.table import CONFIGS
from experiments.run import Inputs, run
from experiments.smoke import IMAGES, MODELS, make


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark")
    return (*make(folder, list(CONFIGS.values())), folder)


@functools.cache
def ran(name, made):
    """The results of a configuration, and their folder."""
    checkpoints, data_dir, folder = made
    config = CONFIGS[name]
    output = folder / "runs" / name
    grid = {key: values[:2] for key, values in config.grid.items()}
    found = run(
        config,
        Inputs.find(config, checkpoints, data_dir),
        output,
        grid=grid,
        batch=8,
        workers=0,
        limit=None,
        progress=silent,
    )
    return found, output


@pytest.mark.parametrize("name", CONFIGS)
def test_every_configuration_runs(name, made):
    config = CONFIGS[name]
    found, output = ran(name, made)
    written = json.loads((output / "results.json").read_text())
    left = {"inputs.json", "merged", "results.json", "search.json"}
    assert left >= {path.name for path in output.iterdir()}
    assert list(written["tasks"]) == list(registry.SUITES[config.suite])
    scores = [task["score"] for task in written["tasks"].values()]
    assert written["summary"]["score"] == pytest.approx(np.mean(scores))
    assert all(task["items"] >= IMAGES - 2 for task in written["tasks"].values())
    chosen = found["settings"]["hyperparameters"]
    assert set(chosen) == set(config.hyperparameters)
    for key, value in config.hyperparameters.items():
        assert chosen[key] == value or key in config.unknown
    assert (output / "search.json").exists() == bool(config.unknown)
    manifest = json.loads((output / "merged" / "centermerge.json").read_text())
    assert manifest["method"] == config.method


def test_the_merged_encoder_is_what_the_library_makes_of_the_experts(made):
    checkpoints, _, _ = made
    _, output = ran("vit_b32_8_cart", made)
    merged = load_file(output / "merged" / "model.safetensors")
    titles = [task.title for task in registry.select(["clip8"])]
    folder = checkpoints / "ViT-B-32"
    experts = [load_file(folder / title / "model.safetensors") for title in titles]
    experts = [
        {n: x for n, x in tree.items() if n.startswith("visual/")} for tree in experts
    ]
    assert merged.keys() == experts[0].keys()
    wanted = cm.cart(experts, rank=0.12, scale=2.0, views=cm.views.fused)
    separate = cm.cart(experts, rank=0.12, scale=2.0)
    differs = 0.0
    for name, leaf in wanted.items():
        np.testing.assert_allclose(merged[name], leaf, atol=1e-5)
        differs = max(differs, np.abs(leaf - separate[name]).max())
    assert differs > 1e-3  # fused is another merge


def test_answers_are_those_of_the_model_applied_by_hand(made):
    checkpoints, data_dir, _ = made
    found, output = ran("vit_b32_8_cart", made)
    from centermerge_jax.data import preprocess
    from centermerge_jax.data.sources import open_source

    folder = checkpoints / "ViT-B-32"
    base = load_model(folder / "zeroshot")
    params = load_model(output / "merged", config=base.config).params
    params = jax.tree.map(jnp.asarray, params)
    head = load_heads(folder / "heads.safetensors").head("svhn")
    source = open_source("svhn", "test", data_dir=data_dir)
    pixels = preprocess.CLIP.at(32)
    right = 0
    for i in range(len(source)):
        image, label = source[i]
        one = preprocess.normalise(preprocess.prepare(image, pixels)[None], pixels)
        config = MODELS["ViT-B-32"]
        features = clip.image_features(params, one, config=config)
        logits = heads.apply(jax.tree.map(jnp.asarray, head), features)
        right += int(logits.argmax()) == label
    assert found["tasks"]["svhn"]["score"] == pytest.approx(right / len(source))


def test_what_is_there_is_not_done_again(made):
    name = "vit_b32_8_ties"
    _, output = ran(name, made)
    before = (output / "merged" / "model.safetensors").stat().st_mtime_ns
    search = (output / "search.json").read_text()
    ran.__wrapped__(name, made)
    assert (output / "merged" / "model.safetensors").stat().st_mtime_ns == before
    assert (output / "search.json").read_text() == search
    points = json.loads(search)["points"]
    assert len(points) == 2  # scales; there is one density


def test_other_checkpoints_are_not_mistaken_for_the_former(made, tmp_path):
    checkpoints, data_dir, _ = made
    _, output = ran("vit_b32_8_cart", made)
    config = CONFIGS["vit_b32_8_cart"]
    inputs = Inputs.find(config, checkpoints, data_dir)
    other = dataclasses.replace(inputs, base=inputs.experts["mnist"])
    how = {"grid": {}, "batch": 8, "workers": 0, "limit": None, "progress": silent}
    with pytest.raises(cm.ParameterError, match="results of other checkpoints"):
        run(config, other, output, **how)


def test_a_search_goes_on_where_it_was(made):
    name = "vit_b32_8_ties"
    _, output = ran(name, made)
    record = output / "search.json"
    points = json.loads(record.read_text())["points"]
    kept = {**points[0], "score": 0.123}
    record.write_text(json.dumps({"points": [kept]}))
    ran.__wrapped__(name, made)
    again = json.loads(record.read_text())["points"]
    assert again == [kept, points[1]]


def test_a_merged_model_goes_back_to_open_clip_s_names(made, tmp_path):
    _, output = ran("vit_b32_8_cart", made)
    target = tmp_path / "back.safetensors"
    main(["convert", str(output / "merged"), str(target), "--to", "openclip"])
    leaves = load_file(target)
    fused = leaves["visual.transformer.resblocks.0.attn.in_proj_weight"]
    own = load_file(output / "merged" / "model.safetensors")
    q = own["visual/blocks/0/attn/q/kernel"]
    np.testing.assert_array_equal(fused[: len(q)], q.T)


def test_evaluate_on_the_command_line(made, tmp_path, capsys):
    checkpoints, data_dir, _ = made
    folder = checkpoints / "ViT-B-32"
    written = tmp_path / "results.json"
    how = ["--heads", str(folder / "heads.safetensors"), "--data-dir", str(data_dir)]
    model = str(folder / "MNIST")
    main(
        ["evaluate", model, "--tasks", "mnist", "pcam", *how, "--output", str(written)]
    )
    shown = capsys.readouterr().out
    assert "mnist" in shown
    assert "mean" in shown
    found = json.loads(written.read_text())
    assert found["settings"]["model"] == model
    assert found["versions"]["jax"] == jax.__version__
    assert (
        "mnist: 12 test examples; published results are over 10000"
        in (found["settings"]["remarks"])
    )
    again = tmp_path / "again.json"
    assert found["tasks"]["pcam"]["score"]
    more = [*how, "--experts", str(written), "--output", str(again), "--quiet"]
    main(["evaluate", model, "--tasks", "pcam", *more])
    assert json.loads(again.read_text())["summary"]["normalised"] == 1.0


INTERRUPTED = """
import os, signal
from centermerge_jax.cli import main
from centermerge_jax.evaluation_drafts import Draft

# Where tests run in the background of a shell, SIGINT is ignored from the start.
signal.signal(signal.SIGINT, signal.default_int_handler)
keep = Draft.keep

def keep_and_interrupt(self, results):
    keep(self, results)
    if len(self.results) == 2:
        os.kill(os.getpid(), signal.SIGINT)

Draft.keep = keep_and_interrupt
main()
"""


def test_an_interrupted_evaluation_goes_on(made, tmp_path, capsys):
    checkpoints, data_dir, _ = made
    folder = checkpoints / "ViT-B-32"
    written = tmp_path / "results.json"
    words = ["evaluate", str(folder / "MNIST"), "--tasks", "clip20", "--output"]
    words += [str(written), "--heads", str(folder / "heads.safetensors")]
    words += ["--data-dir", str(data_dir)]
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 130, done.stderr
    said = "interrupted; what is finished is kept: --resume continues"
    assert said in done.stderr
    before = json.loads(written.read_text())
    assert before["summary"] is None
    assert len(before["tasks"]) == 2
    assert [*before["tasks"], *before["unfinished"]] == list(registry.SUITES["clip20"])
    with pytest.raises(SystemExit):
        main(words)
    assert "is of an unfinished evaluation: continue" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*words, "--resume", "--limit", "5"])
    assert "limit was None, now 5" in capsys.readouterr().err
    main([*words, "--resume"])
    assert "mean" in capsys.readouterr().out
    after = json.loads(written.read_text())
    assert "unfinished" not in after
    for key in ("date", "versions", "settings"):
        assert after[key] == before[key]
    for name, task in before["tasks"].items():
        assert after["tasks"][name] == task
    again = tmp_path / "again.json"
    main([*words[:5], str(again), *words[6:], "--quiet"])
    whole = json.loads(again.read_text())
    assert after["summary"] == whole["summary"]
    for name, task in whole["tasks"].items():
        own = after["tasks"][name]
        assert task | {"timing": None} == own | {"timing": None}
    with pytest.raises(SystemExit):
        main([*words[:4], *words[6:], "--resume"])
    assert "--resume continues a file" in capsys.readouterr().err


def test_merged_classifiers_of_dinov2_with_each_expert_s_head(made, tmp_path):
    """Heads of two widths of the backbone, on a backbone that has none."""
    _, data_dir, _ = made
    config = {"model_type": "dinov2", "num_attention_heads": 1, "image_size": 70}
    counts = {"mnist": 10, "pcam": 2, "svhn": 10}
    for i, (task, classes) in enumerate(counts.items()):
        shapes = public.hf_dinov2(vision=(64, 256, 26, 14), prefix="dinov2.")
        shapes |= public.layer("classifier", classes, 2 * 64)
        rng = np.random.default_rng(i)
        leaves = {k: rng.normal(size=s) / 8 for k, s in shapes.items()}
        leaves = {k: x.astype(np.float32) for k, x in leaves.items()}
        write_hub(tmp_path / task, leaves, config=config)
    experts = {task: str(tmp_path / task) for task in counts}
    merged, written = str(tmp_path / "merged"), tmp_path / "results.json"
    recipe = ["--method", "cart", "--rank", "0.25", "--scale", "1.5"]
    main(["merge", *experts.values(), "-o", merged, *recipe, "--exclude", "class.*"])
    how = ["--data-dir", str(data_dir), "--size", "70", "--output"]
    own = [f"--heads={task}={experts[task]}" for task in ("mnist", "pcam")]
    main(["evaluate", merged, "--tasks", "mnist", "pcam", *own, *how, str(written)])
    tasks = json.loads(written.read_text())["tasks"]
    assert {task: found["classes"] for task, found in tasks.items()} == {
        "mnist": 10,
        "pcam": 2,
    }
    # An expert's own head, from its own checkpoint or named apart.
    for heads_of in ([], own[:1]):
        output = str(tmp_path / f"{len(heads_of)}.json")
        alone = ["evaluate", experts["mnist"], "--tasks", "mnist", *heads_of, *how]
        main([*alone, output])
    first, second = (
        json.loads((tmp_path / f"{i}.json").read_text())["tasks"]["mnist"]["answers"]
        for i in (0, 1)
    )
    assert first == second


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "minst", "--heads", "HEADS"], "did you mean 'mnist'"),
        (["--tasks", "mnist"], "no head for mnist"),
        (["--tasks", "cola", "--heads", "HEADS"], "cola: no head"),
        (["--tasks", "mnist", "--heads", "NOWHERE"], "NOWHERE"),
        (["--tasks", "mnist", "--heads", "HEADS", "--data-dir", "x"], "not prepared"),
        (["--tasks", "mnist", "--heads", "HEADS", "--limit", "0"], "limit"),
        (["--tasks", "mnist", "--heads", "HEADS", "--experts", "NO"], "NO"),
        (["--tasks", "mnist", "--heads", "MINST=x"], "did you mean 'mnist'"),
        (["--tasks", "mnist", "--heads", "HEADS", "--heads", "dtd=EXPERT"], "no task"),
        (["--tasks", "sms_spam", "--heads", "sms_spam=EXPERT"], "no head for sms_spam"),
    ],
)
def test_wrong_evaluations(made, arguments, message, capsys):
    checkpoints, data_dir, _ = made
    folder = checkpoints / "ViT-B-32"
    places = {
        "HEADS": str(folder / "heads.safetensors"),
        "EXPERT": str(folder / "DTD"),
    }
    words = [
        functools.reduce(lambda w, place: w.replace(*place), places.items(), word)
        for word in arguments
    ]
    if "--data-dir" not in words:
        words += ["--data-dir", str(data_dir)]
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", str(folder / "MNIST"), *words])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_missing_checkpoints_are_listed(made, tmp_path):
    _, data_dir, _ = made
    with pytest.raises(cm.ParameterError, match="10 checkpoints missing"):
        Inputs.find(CONFIGS["vit_b32_8_cart"], tmp_path, data_dir)
