"""How many images a second are evaluated, beside open_clip on PyTorch?

CLIP ViT-B/32 in float32 encodes batches of images that lie in memory ("encoder"), and
classifies them from bytes with a zero-shot head ("evaluation": normalising, encoding,
logits, counting). Both have the same weights, written by open_clip and read here; the
features of two images are compared. The peer runs in a process of its own, in turns
with ours, with one thread and with all, and is compared with by the faster. Without its
environment, which `make parity` sets up, ours is measured alone.

Run: python -m experiments.benchmarks.evaluation --folder FOLDER_WITH_ROOM
"""

import functools
import json
import statistics
import subprocess
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, Float, Float32, Int32, UInt8

from centermerge_jax.convert import load_model
from centermerge_jax.data import preprocess
from centermerge_jax.data.pipeline import Batch
from centermerge_jax.evaluator import evaluate
from centermerge_jax.models import clip
from experiments.benchmarks.measuring import RESULTS, once, save, show, torch_threads

PEER = Path("third_party/.venv-openclip/bin/python")
SCRIPTS = Path("third_party/parity")
WEIGHTS = "pretrained.safetensors"

Rates = dict[tuple[str, str], list[float]]
"""Images a second in each round, by kind and program."""


@dataclass(frozen=True)
class Task:
    """Images, their classes, and a head, all random.

    Attributes:
      images: RGB bytes.
      labels: Classes.
      head: Of a class each column.
    """

    images: UInt8[np.ndarray, "n 224 224 3"]
    labels: Int32[np.ndarray, " n"]
    head: Float32[np.ndarray, "e classes"]

    def batches(self, size: int) -> list[Batch]:
        """As the input pipeline would give them."""
        return [
            Batch(
                images=self.images[i : i + size],
                labels=self.labels[i : i + size],
                valid=np.ones(size, bool),
                index=np.arange(i, i + size),
            )
            for i in range(0, len(self.images), size)
        ]


def main(
    *,
    folder: Path = Path("centermerge-bench"),
    batch: int = 64,
    batches: int = 4,
    classes: int = 397,
    repeats: int = 3,
    peer: Path = PEER,
    quick: bool = False,
    output: Path = RESULTS,
) -> None:
    """Measures both in turns.

    Args:
      folder: Where weights (0.6 GB) and images are written.
      batch: Images at a time.
      batches: How many of these in a round.
      classes: Of the head; 397, SUN397's, are the most of the paper's tasks.
      repeats: Rounds, of which the median is taken.
      peer: Python of open_clip's environment, left out if it is not there.
      quick: One round of one batch.
      output: Folder for `evaluation.json` and `evaluation.png`.
    """
    if quick:
        batches, repeats = 1, 1
    folder = folder / "evaluation"
    folder.mkdir(parents=True, exist_ok=True)
    task = _task(folder, batch * batches, classes)
    beside = peer.exists()
    if beside:
        _run(peer, "openclip_outputs.py", "save", str(folder))
    else:
        print(f"{peer} is not there: ours is measured alone (make parity)")
    params, config = _model(folder / WEIGHTS if beside else None)
    encode = jax.jit(functools.partial(clip.image_features, config=config))
    ours = _ours(encode, params, config, task, batch)
    for call in ours.values():
        call()  # compiles
    found: Rates = defaultdict(list)
    difference = None
    for _ in range(repeats):
        for kind, call in ours.items():
            found[kind, "ours"].append(len(task.images) / once(call)[0])
        if beside:
            theirs = _peer(peer, folder, batch, found)
            two = preprocess.normalise(task.images[:2], preprocess.CLIP)
            difference = _difference(encode(params, two), theirs)
    lines = _lines(found)
    _show(lines, difference)
    settings = {"batch": batch, "batches": batches, "repeats": repeats}
    record = settings | {"classes": classes, "rates": lines, "difference": difference}
    print("written:", save("evaluation", record, output))
    draw(lines, output / "evaluation.png")


def _task(folder: Path, count: int, classes: int) -> Task:
    """Made, and written for the peer."""
    rng = np.random.default_rng(0)
    task = Task(
        images=rng.integers(0, 256, (count, 224, 224, 3), dtype=np.uint8),
        labels=rng.integers(0, classes, count, dtype=np.int32),
        head=rng.standard_normal((clip.VIT_B_32.embed, classes), np.float32),
    )
    for name, array in vars(task).items():
        np.save(folder / f"{name}.npy", array)
    return task


def _model(weights: Path | None) -> tuple[Any, clip.CLIPConfig]:
    """The peer's weights, or random ones: they take the same time."""
    if weights is None:
        return clip.init(clip.VIT_B_32, jax.random.key(0)), clip.VIT_B_32
    loaded = load_model(weights)
    if not isinstance(loaded.config, clip.CLIPConfig):
        raise TypeError(f"{weights} is {loaded.family}, not CLIP")
    return jax.tree.map(jnp.asarray, loaded.params), loaded.config


def _ours(
    encode: Callable[[Any, Array], Array],
    params: Any,
    config: clip.CLIPConfig,
    task: Task,
    size: int,
) -> dict[str, Callable[[], Any]]:
    """A round of each kind."""
    batches = task.batches(size)
    pixels = [preprocess.normalise(b.inputs, preprocess.CLIP) for b in batches]
    head = jnp.asarray(task.head)

    def apply(params: Any, images: UInt8[Array, "b 224 224 3"]) -> Array:
        x = preprocess.normalise(images, preprocess.CLIP)
        features = clip.image_features(params, x, config=config)
        features /= jnp.linalg.norm(features, axis=-1, keepdims=True)
        return jnp.exp(params["logit_scale"]) * features @ head

    classes = head.shape[1]
    return {
        "encoder": lambda: [encode(params, x) for x in pixels],
        "evaluation": lambda: evaluate(
            apply, params, batches, name="benchmark", classes=classes
        ),
    }


def _peer(
    peer: Path, folder: Path, size: int, found: Rates
) -> Float[np.ndarray, "2 e"]:
    """A round of the peer; its features of two images."""
    threads = [str(count) for count in torch_threads()]
    arguments = (str(folder), "--batch", str(size), "--threads", *threads)
    record = json.loads(_run(peer, "speed_openclip.py", *arguments).splitlines()[-1])
    for line in record["rates"]:
        count = line["threads"]
        program = f"open_clip, {count} thread{'s' * (count > 1)}"
        found[line["kind"], program].append(line["images_per_second"])
    return np.array(record["features"], np.float32)


def _run(peer: Path, script: str, *arguments: str) -> str:
    command = [str(peer), str(SCRIPTS / script), *arguments]
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout


def _difference(ours: Float[Array, "2 e"], theirs: Float[np.ndarray, "2 e"]) -> float:
    """Norm of the difference as a share of the norm."""
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def _lines(found: Rates) -> list[dict[str, Any]]:
    """Medians, and how ours stands to the faster peer."""
    rates = {key: statistics.median(values) for key, values in found.items()}
    lines = []
    for (kind, program), rate in sorted(rates.items()):
        peers = [r for (k, p), r in rates.items() if k == kind and p != "ours"]
        # Times slower: 1.2 is the most that is allowed of ours.
        slower = max(peers) / rate if peers else None
        line = {"kind": kind, "program": program, "images_per_second": rate}
        lines.append(line | {"time / best open_clip": slower})
    return lines


def _show(lines: Sequence[Mapping[str, Any]], difference: float | None) -> None:
    columns = ("kind", "program", "images/s", "time / best open_clip")
    show("Evaluation of ViT-B/32", columns, [tuple(line.values()) for line in lines])
    if difference is not None:
        print(f"features differ by {difference:.1e} of their norm")


def draw(lines: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Images a second of all programs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 0.6 + 0.35 * len(lines)), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(
        [f"{line['kind']}: {line['program']}" for line in lines],
        [line["images_per_second"] for line in lines],
        color=["#1f5fa8" if line["program"] == "ours" else "0.6" for line in lines],
    )
    axes.bar_label(bars, fmt="%.1f", padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("images/s")
    figure.savefig(path, dpi=160)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
