"""Checkpoints on disk from family to family, and back to the bytes they came from."""

import dataclasses
import json
import pickle
import types

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import public_names as public
import pytest
from safetensors.numpy import load_file, save_file

import centermerge_jax as cm
from centermerge_jax import named_models
from centermerge_jax.checkpoints import manifest_path, open_checkpoint
from centermerge_jax.cli import main
from centermerge_jax.convert import TARGETS, convert, load_model
from centermerge_jax.errors import CheckpointError, ParameterError
from centermerge_jax.models import bert, clip, vit
from centermerge_jax.models.naming.clip import OPENCLIP

# The narrowest CLIP whose heads are as wide as OpenAI's.
VISION, TEXT = (64, 256, 10, 2), (64, 256, 33, 14)
CLIP = {"depths": (2, 1), "vision": VISION, "text": TEXT, "embed": 6}
BERT = {
    "model_type": "bert",
    "num_attention_heads": 2,
    "id2label": {"0": "no", "1": "yes"},
}


def write(path, shapes, *, config=None, dtype=np.float32, seed=0):
    """A file, or a folder with its configuration and a tokeniser."""
    leaves = public.arrays(shapes, dtype)
    leaves = {name: np.asarray(x + x.dtype.type(seed)) for name, x in leaves.items()}
    file = path
    if path.suffix != ".safetensors":
        path.mkdir()
        (path / "config.json").write_text(json.dumps(config))
        (path / "vocab.txt").write_text("a\nb\n")
        file = path / "model.safetensors"
    save_file(leaves, file, metadata={"format": "pt"})
    return path, leaves


def same(path, expected):
    """Names, shapes, types and bytes of all leaves."""
    found = open_checkpoint(path).read_all()
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        got = np.asarray(found[name])
        assert (got.shape, got.dtype) == (x.shape, x.dtype), name
        assert got.tobytes() == x.tobytes(), name


def on_device(model):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), model.params)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_around_all_families_of_clip(tmp_path, dtype):
    start, leaves = write(
        tmp_path / "openclip.safetensors", public.openclip(**CLIP), dtype=dtype
    )
    stations = {
        "hf": "hf-clip",
        "flax": "flax",
        "orbax": "orbax",
        "back.safetensors": "openclip",
    }
    path = start
    for name, target in stations.items():
        done = convert(path, tmp_path / name, target=target)
        assert (done.target, done.left_behind) == (target, ())
        path = tmp_path / name
    same(path, leaves)
    assert open_checkpoint(path).metadata == {"format": "pt"}
    hugging = load_file(tmp_path / "hf" / "model.safetensors")
    assert {name: x.shape for name, x in hugging.items()} == public.hf_clip(**CLIP)
    said = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert said["architectures"] == ["CLIPModel"]
    nested = open_checkpoint(tmp_path / "orbax")
    assert set(nested.structure) == {"visual", "text", "logit_scale"}
    record = json.loads(manifest_path(tmp_path / "orbax").read_text())
    assert record["method"] == "convert"
    assert record["inputs"]["model"]["path"] == str(tmp_path / "flax")
    # What is on the way is one model, and it runs.
    images = jnp.ones((1, 6, 6, 3))
    features = [
        np.asarray(clip.image_features(on_device(model), images, config=model.config))
        for model in map(load_model, (start, *(tmp_path / name for name in stations)))
    ]
    for other in features[1:]:
        np.testing.assert_array_equal(other, features[0])


def test_hf_is_the_family_that_fits(tmp_path):
    start, _ = write(tmp_path / "openclip.safetensors", public.openclip(**CLIP))
    assert convert(start, tmp_path / "hf", target="hf").target == "hf-clip"
    manifest = json.loads(manifest_path(tmp_path / "hf").read_text())
    assert manifest["hyperparameters"]["to"] == "hf"


def test_every_target_is_known():
    assert set(TARGETS) == {
        "hf",
        "openclip",
        "hf-clip",
        "hf-clip-vision",
        "timm",
        "hf-dinov2",
        "hf-bert",
        "hf-roberta",
        "hf-gpt2",
        "flax",
        "orbax",
    }


def test_image_encoders_with_leftovers(tmp_path):
    start, leaves = write(
        tmp_path / "finetuned.safetensors", public.image_encoder(**CLIP)
    )
    convert(start, tmp_path / "orbax", target="orbax")
    done = convert(tmp_path / "orbax", tmp_path / "bare.safetensors", target="openclip")
    plain = {name.removeprefix("model."): x for name, x in leaves.items()}
    same(tmp_path / "bare.safetensors", plain)
    convert(
        tmp_path / "orbax",
        tmp_path / "back.safetensors",
        target="openclip",
        prefix="model.",
    )
    same(tmp_path / "back.safetensors", leaves)
    # The same family keeps the prefix without being told.
    convert(start, tmp_path / "copy.safetensors", target="openclip")
    same(tmp_path / "copy.safetensors", leaves)
    # Hugging Face's model has no place for them, and the record says so.
    done = convert(start, tmp_path / "hf", target="hf-clip")
    assert done.left_behind == (
        "extra/ln_final.bias",
        "extra/ln_final.weight",
        "extra/positional_embedding",
        "extra/text_projection",
        "extra/token_embedding.weight",
    )
    record = json.loads(manifest_path(tmp_path / "hf").read_text())
    assert record["hyperparameters"]["left_behind"] == list(done.left_behind)
    said = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert said["architectures"] == ["CLIPVisionModelWithProjection"]
    model = load_model(start)
    assert (model.family, model.prefix) == ("openclip", "model.")
    assert set(model.params) == {"visual", "logit_scale"}
    assert set(model.extra) == {
        name.removeprefix("extra/") for name in done.left_behind
    }
    text = model.config.text
    assert (text.width, model.config.embed) == (6, 6)


def test_merged_models_go_back_to_their_family(tmp_path):
    paths, experts = [], []
    for seed in range(3):
        path, leaves = write(
            tmp_path / f"expert{seed}.safetensors", public.openclip(**CLIP), seed=seed
        )
        convert(path, tmp_path / f"expert{seed}", target="flax")
        paths.append(str(tmp_path / f"expert{seed}"))
        experts.append(leaves)
    merged, exported = tmp_path / "merged", tmp_path / "exported.safetensors"
    main(
        ["merge", *paths, "-o", str(merged), "--rank", "4", "--scale", "1.0", "--quiet"]
    )
    convert(merged, exported, target="openclip")
    found = load_file(exported)
    expected = cm.cart([OPENCLIP.read(x) for x in experts], rank=4, scale=1.0)
    assert found.keys() == experts[0].keys()
    for name, x in OPENCLIP.read(found).items():
        np.testing.assert_array_equal(x, expected[name])
    # What no shape tells has come through the merge.
    model = load_model(merged)
    assert model.config == load_model(paths[0]).config
    assert model.config.vision.heads == 1


def test_folders_keep_their_files(tmp_path):
    shapes = public.hf_bert(prefix="bert.") | public.layer(
        "classifier", 2, public.WIDTH
    )
    start, leaves = write(tmp_path / "bert", shapes, config=BERT, dtype=np.float16)
    convert(start, tmp_path / "flax", target="flax")
    convert(tmp_path / "flax", tmp_path / "back", target="hf-bert")
    same(tmp_path / "back", leaves)
    for name in ("config.json", "vocab.txt"):
        text = (start / name).read_text()
        assert (tmp_path / "flax" / name).read_text() == text
        assert (tmp_path / "back" / name).read_text() == text
    # An Orbax folder has no other files; its record knows the configuration.
    convert(start, tmp_path / "orbax", target="orbax")
    for path in (start, tmp_path / "flax", tmp_path / "orbax"):
        model = load_model(path)
        assert model.config.heads == 2
        assert model.head["kernel"].shape == (public.WIDTH, 2)
        ids = jnp.ones((1, 3), jnp.int32)
        hidden = bert.apply(on_device(model), ids, ids, config=model.config)
        assert hidden.shape == (1, 3, public.WIDTH)
    with pytest.raises(CheckpointError, match="from hf-roberta"):
        convert(start, tmp_path / "roberta", target="hf-roberta")


def orbax_berts(folder, *configs):
    """Experts that `convert` made, which have their configuration in their manifest."""
    shapes = public.hf_bert(prefix="bert.")
    for seed, config in enumerate(configs):
        start, _ = write(folder / f"bert{seed}", shapes, config=config, seed=seed)
        convert(start, folder / f"expert{seed}", target="orbax")
    return [str(folder / f"expert{seed}") for seed in range(len(configs))]


@pytest.mark.parametrize(
    ("output", "form"),
    [("merged", "orbax"), ("merged", "hub"), ("merged.safetensors", "safetensors")],
)
def test_merges_of_orbax_folders_still_know_their_network(tmp_path, output, form):
    paths = orbax_berts(tmp_path, BERT, BERT, BERT)
    merged = str(tmp_path / output)
    settings = ("--method", "weight_average", "--format", form, "--quiet")
    main(["merge", *paths, "-o", merged, *settings])
    # No shape tells the number of heads.
    assert load_model(merged).config == load_model(paths[0]).config
    assert load_model(merged).config.heads == 2
    if form == "hub":  # and whoever reads only the usual files knows it too
        assert json.loads((tmp_path / "merged/config.json").read_text()) == BERT


def test_experts_of_two_networks_are_not_merged(tmp_path, capsys):
    # The names of classes say nothing of the network; heads and epsilon do.
    other = {**BERT, "id2label": {"0": "cat"}, "num_attention_heads": 4}
    paths = orbax_berts(tmp_path, BERT, BERT, other)
    for command in (["plan"], ["merge", "-o", str(tmp_path / "merged")]):
        with pytest.raises(SystemExit):
            main([*command, *paths, "--method", "weight_average"])
        assert capsys.readouterr().err.startswith(
            "ERROR: 1 difference from the configuration of 'expert0': expert2: "
            "num_attention_heads is 4, expected 2. "
        )
    assert not (tmp_path / "merged").exists()


def test_a_vision_transformer_between_two_libraries(tmp_path):
    shapes = public.hf_dinov2(vision=VISION)
    start, leaves = write(
        tmp_path / "dino",
        shapes,
        config={"model_type": "dinov2", "num_attention_heads": 4},
    )
    done = convert(start, tmp_path / "timm.safetensors", target="timm")
    assert done.left_behind == ("extra/embeddings.mask_token",)
    found = load_file(tmp_path / "timm.safetensors")
    expected = public.timm(vision=VISION, layer_scale=True)
    assert {name: x.shape for name, x in found.items()} == {
        name: x for name, x in expected.items() if not name.startswith("head.")
    }
    query = leaves["encoder.layer.1.attention.attention.query.weight"]
    np.testing.assert_array_equal(found["blocks.1.attn.qkv.weight"][:64], query)
    model = load_model(tmp_path / "timm.safetensors", config=load_model(start).config)
    images = jnp.ones((1, 6, 6, 3))
    features = vit.apply(on_device(model), images, config=model.config)
    assert (features.shape, model.config.heads) == ((1, 64), 4)
    plain, _ = write(tmp_path / "plain.safetensors", public.timm(vision=VISION))
    with pytest.raises(
        CheckpointError, match="blocks/0/layer_scale1/scale: is missing"
    ):
        convert(plain, tmp_path / "x", target="hf-dinov2")
    # timm's with registers has no position of the class token, theirs has.
    registers = public.timm(vision=(64, 256, 10, 2), layer_scale=True, registers=4)
    source, _ = write(tmp_path / "registers.safetensors", registers)
    with pytest.raises(CheckpointError, match="is a vit, which hf-dinov2 cannot hold"):
        convert(source, tmp_path / "x", target="hf-dinov2")
    convert(source, tmp_path / "flax", target="flax")
    assert load_model(tmp_path / "flax").config.registers == 4


def test_tensors_that_files_save_once_have_both_names(tmp_path, monkeypatch):
    shapes = public.hf_gpt2(prefix="transformer.")
    words, other = "transformer.wte.weight", "lm_head.weight"
    leaves = public.arrays(shapes)
    source = tmp_path / "gpt2.safetensors"
    save_file(
        {name: x for name, x in leaves.items() if name != words}
        | {other: leaves[words]},
        source,
    )
    # As PyTorch's files are opened: the first name in the alphabet has the tensor.
    tied = dataclasses.replace(open_checkpoint(source), tied={words: other})
    with monkeypatch.context() as patch:
        patch.setattr(named_models, "open_checkpoint", lambda *_, **__: tied)
        convert(source, tmp_path / "flax.safetensors", target="flax")
    convert(
        tmp_path / "flax.safetensors", tmp_path / "back.safetensors", target="hf-gpt2"
    )
    same(tmp_path / "back.safetensors", leaves | {other: leaves[words]})


def test_what_is_refused(tmp_path):
    start, _ = write(tmp_path / "x.safetensors", public.openclip(**CLIP))
    out = tmp_path / "out"
    refused = {
        (ParameterError, "no target 'clip'; there are hf, openclip"): {
            "target": "clip"
        },
        (ParameterError, "timm cannot hold a model of the kind clip"): {
            "target": "timm"
        },
        (ParameterError, "no family 'clip'"): {"target": "flax", "source": "clip"},
        (CheckpointError, "its names are those of openclip, not of hf-clip"): {
            "target": "flax",
            "source": "hf-clip",
        },
    }
    for (kind, message), arguments in refused.items():
        with pytest.raises(kind, match=message):
            convert(start, out, **arguments)
        assert not out.exists()
    with pytest.raises(CheckpointError, match="exists already"):
        convert(start, start, target="flax")
    with pytest.raises(CheckpointError, match="one file, not the folder"):
        convert(start, tmp_path / "y.safetensors", target="orbax")
    headed = public.image_encoder("image_encoder.model.", **CLIP) | public.layer(
        "classification_head", 3, 6
    )
    path, _ = write(tmp_path / "headed.safetensors", headed)
    with pytest.raises(CheckpointError, match="head/kernel: has no counterpart"):
        convert(path, out, target="hf-clip")
    broken = public.openclip(**CLIP)
    del broken["visual.proj"]
    path, _ = write(tmp_path / "broken.safetensors", broken)
    with pytest.raises(
        CheckpointError, match=r"broken\.safetensors.*visual\.proj: is m"
    ):
        load_model(path)


def test_the_number_of_heads_has_to_be_known(tmp_path):
    shapes = public.hf_bert(sizes=(384, 4, 33, 14))
    path, _ = write(tmp_path / "minilm.safetensors", shapes)
    with pytest.raises(CheckpointError, match="num_attention_heads: is not known"):
        load_model(path)
    # To give it other names nobody needs it.
    convert(path, tmp_path / "flax", target="flax")
    assert not (tmp_path / "flax" / "config.json").exists()


def test_pickled_modules_are_refused_with_a_way_out(tmp_path):
    path = tmp_path / "finetuned.pt"
    path.write_bytes(pickle.dumps(types.SimpleNamespace(model="a whole module")))
    with pytest.raises(CheckpointError, match=r"finetuned\.pt: refused.*whole modules"):
        load_model(path)
