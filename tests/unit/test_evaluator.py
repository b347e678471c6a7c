"""The evaluator against NumPy float64, whatever the batches, devices and processes."""

import socket
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from centermerge_jax import evaluator
from centermerge_jax.data.examples import Example
from centermerge_jax.data.pipeline import batches as pipeline
from centermerge_jax.data.preprocess import CLIP
from centermerge_jax.errors import DataError, ParameterError
from centermerge_jax.evaluator import evaluate, evaluate_heads

COUNT, WIDTH, CLASSES = 53, 6, 4


@dataclass
class Batch:
    inputs: Any
    labels: np.ndarray
    valid: np.ndarray
    index: np.ndarray


class Data:
    """Items in batches of one size, the last one padded with nonsense."""

    def __init__(self, *, batch=8, seed=0, order=None, shard=(0, 1)):
        rng = np.random.default_rng(seed)
        self.x = rng.normal(size=(COUNT, WIDTH)).astype(np.float32)
        self.labels = rng.integers(0, CLASSES, COUNT).astype(np.int32)
        whole = np.arange(COUNT) if order is None else order
        self.order, self.batch = whole[shard[0] :: shard[1]], batch

    def __len__(self):
        return int(np.ceil(len(self.order) / self.batch))

    def __iter__(self):
        for start in range(0, len(self.order), self.batch):
            index = self.order[start : start + self.batch]
            short = self.batch - len(index)
            x = np.concatenate([self.x[index], np.full((short, WIDTH), np.nan)])
            yield Batch(
                inputs=x.astype(np.float32),
                labels=np.append(self.labels[index], [99] * short).astype(np.int32),
                valid=np.arange(self.batch) < len(index),
                index=np.append(index, [-1] * short),
            )


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(7)
    return {"kernel": rng.normal(size=(WIDTH, CLASSES)).astype(np.float32)}


def apply(params, x):
    return x @ params["kernel"]


def stated(data, kernel):
    """Everything in float64, for all items at once."""
    logits = data.x.astype(np.float64) @ kernel.astype(np.float64)
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    probability = odds / odds.sum(axis=1, keepdims=True)
    loss = -np.log(probability[np.arange(COUNT), data.labels])
    return logits.argmax(axis=1), probability.max(axis=1), loss.mean()


def same(a, b):
    assert a.name == b.name
    np.testing.assert_array_equal(a.index, b.index)
    np.testing.assert_array_equal(a.answers.labels, b.answers.labels)
    np.testing.assert_array_equal(a.answers.predictions, b.answers.predictions)
    np.testing.assert_allclose(
        a.negative_log_likelihood, b.negative_log_likelihood, rtol=1e-6
    )
    np.testing.assert_array_equal(a.calibration.counts, b.calibration.counts)
    np.testing.assert_allclose(a.calibration.error, b.calibration.error, rtol=1e-5)


def test_everything_is_the_float64_statement(params):
    data = Data()
    found = evaluate(apply, params, data, name="t", classes=CLASSES)
    predictions, confidence, loss = stated(data, params["kernel"])
    np.testing.assert_array_equal(found.index, np.arange(COUNT))
    np.testing.assert_array_equal(found.answers.labels, data.labels)
    np.testing.assert_array_equal(found.answers.predictions, predictions)
    assert found.accuracy == (predictions == data.labels).mean()
    assert found.interval[0] < found.accuracy < found.interval[1]
    assert found.negative_log_likelihood == pytest.approx(loss, rel=1e-6)
    bins = np.ceil(confidence * 15).astype(int) - 1
    np.testing.assert_array_equal(
        found.calibration.counts, np.bincount(bins, minlength=15)
    )
    right = predictions == data.labels
    error = sum(
        abs((right[bins == b] - confidence[bins == b]).sum())
        for b in set(bins.tolist())
    )
    assert found.calibration.error == pytest.approx(error / COUNT, rel=1e-5)


@pytest.mark.parametrize("batch", [1, 7, 53, 64])
@pytest.mark.parametrize("device_parallel", [False, True])
def test_batches_padding_order_and_devices_change_nothing(
    params, batch, device_parallel
):
    assert jax.local_device_count() == 2
    plain = evaluate(apply, params, Data(), name="t", classes=CLASSES)
    order = np.random.default_rng(batch).permutation(COUNT)
    found = evaluate(
        apply,
        params,
        Data(batch=batch, order=order),
        name="t",
        classes=CLASSES,
        device_parallel=device_parallel,
    )
    same(found, plain)


def test_items_are_divided_among_the_devices(params):
    seen = []

    def spying(params, x):
        jax.debug.inspect_array_sharding(x, callback=seen.append)
        return apply(params, x)

    evaluate(spying, params, Data(), name="t", classes=CLASSES)
    assert seen
    assert all(len(sharding.device_set) == 2 for sharding in seen)
    assert all(sharding.shard_shape((8, WIDTH)) == (4, WIDTH) for sharding in seen)


def test_one_compilation_serves_all_batches_and_tasks(params):
    traces = []

    def counting(params, x):
        traces.append(x.shape)
        return apply(params, x)

    evaluate(counting, params, Data(), name="t", classes=CLASSES)
    evaluate(counting, params, Data(seed=1), name="u", classes=CLASSES)
    assert traces == [(8, WIDTH)]


def test_the_next_batch_is_sent_before_answers_are_read(params, monkeypatch):
    """Two batches lie on the device while a third one is made."""
    events = []

    class Told(Data):
        def __iter__(self):
            for number, batch in enumerate(super().__iter__()):
                events.append(("made", number))
                yield batch

    def reading(batch, *others):
        events.append(("read", batch.index[0] // 8))
        return read(batch, *others)

    read = evaluator._read
    monkeypatch.setattr(evaluator, "_read", reading)
    evaluate(apply, params, Told(), name="t", classes=CLASSES)
    assert events[:6] == [
        ("made", 0),
        ("read", 0),  # alone, for the compilation to be timed
        ("made", 1),
        ("made", 2),
        ("made", 3),
        ("read", 1),
    ]
    assert [n for what, n in events if what == "read"] == list(range(7))


def test_bfloat16_logits_are_judged_in_float32(params):
    def half(params, x):
        return apply(params, x).astype(jnp.bfloat16)

    data = Data()
    found = evaluate(half, params, data, name="t", classes=CLASSES)
    logits = np.concatenate([np.asarray(half(params, b.inputs)) for b in data])
    logits = logits[:COUNT].astype(np.float64)
    loss = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(COUNT), data.labels]
    assert found.negative_log_likelihood == pytest.approx(loss.mean(), rel=1e-6)


def test_trees_of_inputs_as_text_models_take_them():
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 9, (10, 3)).astype(np.int32)
    mask = np.ones_like(ids)
    table = rng.normal(size=(9, CLASSES)).astype(np.float32)
    batch = Batch(
        {"ids": ids, "mask": mask},
        ids[:, 0] % CLASSES,
        np.ones(10, bool),
        np.arange(10),
    )

    def bag(table, inputs):
        kept = inputs["mask"][..., None].astype(jnp.float32)
        return (table[inputs["ids"]] * kept).sum(axis=1)

    found = evaluate(bag, table, [batch], name="t", classes=CLASSES)
    expected = table[ids].sum(axis=1).argmax(axis=1)
    np.testing.assert_array_equal(found.answers.predictions, expected)
    assert found.timing.items_per_second is None  # one batch: it compiled


def test_the_pipeline_s_batches_fit():
    pictures = np.arange(5, dtype=np.uint8).repeat(64 * 3).reshape(5, 8, 8, 3) * 50
    source = [Example(picture, i % 2) for i, picture in enumerate(pictures)]
    data = pipeline(source, batch=2, preprocessing=CLIP.at(4), seed=1)

    def brightness(limit, images):
        light = images.astype(jnp.float32).mean(axis=(1, 2, 3))
        return jnp.stack([limit - light, light - limit], axis=1)

    said = []
    found = evaluate(
        brightness,
        np.float32(100),
        data,
        name="t",
        classes=2,
        progress=lambda what, share: said.append((what, share)),
    )
    assert found.index.tolist() == list(range(5))
    assert found.answers.predictions.tolist() == [0, 0, 0, 1, 1]
    assert found.timing.items == 3  # after the first batch
    assert [share for _, share in said] == [pytest.approx(2 / 3), 1]
    assert said[0][0].startswith("t: ")
    assert said[0][0].endswith(" items/s")


# --- heads


def test_heads_share_their_features(params):
    rng = np.random.default_rng(1)
    heads = {
        name: {"kernel": rng.normal(size=(CLASSES, CLASSES)).astype(np.float32)}
        for name in ("a", "b")
    }
    calls, traces = [], []

    def features(params, x):
        traces.append(x.shape)
        jax.debug.callback(lambda: calls.append(1))
        return apply(params, x)

    found = evaluate_heads(
        features,
        params,
        Data(),
        heads,
        apply_head=apply,
        name="t",
        classes=CLASSES,
        device_parallel=False,
    )
    jax.effects_barrier()
    assert len(traces) == 1
    assert len(calls) == len(Data())
    for name, head in heads.items():
        kernel = params["kernel"].astype(np.float64) @ head["kernel"]
        single = evaluate(
            lambda p, x, head=head: apply(head, apply(p, x)),
            params,
            Data(),
            name=f"t, head {name}",
            classes=CLASSES,
        )
        same(found[name], single)
        predictions, _, _ = stated(Data(), kernel)
        np.testing.assert_array_equal(found[name].answers.predictions, predictions)


def test_features_are_compiled_once_for_tasks_of_any_number_of_classes(params):
    traces = []

    def features(params, x):
        traces.append(x.shape)
        return apply(params, x)

    for classes in (4, 5):
        head = {"kernel": np.eye(CLASSES, classes, dtype=np.float32)}
        found = evaluate_heads(
            features,
            params,
            Data(),
            {"t": head},
            apply_head=apply,
            name="t",
            classes=classes,
        )
        assert found["t"].name == "t"
        assert found["t"].answers.confusion.shape == (classes, classes)
    assert traces == [(8, WIDTH)]


# --- what is wrong is said


def test_logits_that_are_not_finite_stop_at_once(params):
    made = []

    class Counted(Data):
        def __iter__(self):
            for batch in super().__iter__():
                made.append(1)
                yield batch

    bad = {"kernel": params["kernel"].copy()}
    bad["kernel"][0, 0] = np.nan
    with pytest.raises(DataError, match=r"dtd: the logits of 8 of 8.*item 0\)"):
        evaluate(apply, bad, Counted(), name="dtd", classes=CLASSES)
    assert len(made) == 1

    one = Data().x[20, 0]

    def overflows(params, x):
        return apply(params, x) * jnp.where(x[:, :1] == one, np.inf, 1.0)

    with pytest.raises(DataError, match=r"dtd: the logits of 1 of .*item 20\)"):
        evaluate(overflows, params, Data(), name="dtd", classes=CLASSES)


def test_other_numbers_of_classes_are_errors(params):
    with pytest.raises(ParameterError, match=r"t: .*logits \[8, 4\].*has 3 classes"):
        evaluate(apply, params, Data(), name="t", classes=3)


def test_labels_outside_the_classes(params):
    data = Data()
    data.labels[[3, 9]] = [-1, CLASSES]
    message = r"t: the labels of 2 items are outside 0 to 3 \(first: item 3 has -1\)"
    with pytest.raises(DataError, match=message):
        evaluate(apply, params, data, name="t", classes=CLASSES)


def test_items_that_come_twice(params):
    data = Data()
    data.order = np.append(data.order, [5, 7])
    with pytest.raises(DataError, match=r"t: 2 items came more .*first: item 5\)"):
        evaluate(apply, params, data, name="t", classes=CLASSES)


def test_nothing_to_evaluate(params):
    with pytest.raises(DataError, match="t: there is no batch"):
        evaluate(apply, params, [], name="t", classes=CLASSES)
    (batch,) = Data(batch=64)
    batch.valid[:] = False
    with pytest.raises(DataError, match="t: there is no item"):
        evaluate(apply, params, [batch], name="t", classes=CLASSES)


# --- processes

PROGRAM = """
import sys
import jax
import numpy as np
import pytest
port, process = sys.argv[1], int(sys.argv[2])
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=process)
from test_evaluator import CLASSES, Data, WIDTH, apply
from centermerge_jax.errors import DataError
from centermerge_jax.evaluator import evaluate
kernel = np.random.default_rng(7).normal(size=(WIDTH, CLASSES)).astype(np.float32)
found = evaluate(apply, {"kernel": kernel}, Data(shard=(process, 2)), name="t",
                 classes=CLASSES)
np.save(sys.argv[3], np.stack([found.index, found.answers.predictions]))
try:
    evaluate(apply, {"kernel": kernel}, Data(), name="t", classes=CLASSES)
except DataError as error:
    print(error)
"""


def test_two_processes_are_one(params, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    from pathlib import Path

    runs = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(port), str(i), tmp_path / f"{i}.npy"],
            cwd=Path(__file__).parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    told = [run.communicate(timeout=120) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], told
    expected, _, _ = stated(Data(), params["kernel"])
    for i, (out, _) in enumerate(told):
        index, predictions = np.load(tmp_path / f"{i}.npy")
        np.testing.assert_array_equal(index, np.arange(COUNT))
        np.testing.assert_array_equal(predictions, expected)
        # Both were given all items: both say so, and neither waits for the other.
        assert "53 items came more than once" in out
        assert "different shards" in out
