"""Zero-shot heads on disk: saved with all they depend on, checked when they are read.

A file is safetensors with one leaf `TASK/kernel` for each task. Keep it *beside* the
folder of a model, not in it, where it would be taken for a part of the weights.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import isfinite
from pathlib import Path

import numpy as np

from centermerge_jax.atomic_files import write_whole
from centermerge_jax.checkpoints import open_checkpoint, refuse_existing
from centermerge_jax.errors import CheckpointError, listing
from centermerge_jax.zero_shot import Heads, Prompts

_KEY = "zero_shot_heads"
_LEAF = "/kernel"


def save_heads(path: str | Path, heads: Heads) -> None:
    """Writes heads to a safetensors file under a name that is free.

    Leaves are `TASK/kernel`; everything else is one JSON text in the header.

    Raises:
      CheckpointError: The file exists, or cannot be written.
    """
    from safetensors.numpy import save

    path = Path(path)
    if path.suffix != ".safetensors":
        raise CheckpointError(
            f"{path}: the name of a file of heads ends in .safetensors"
        )
    refuse_existing(path)
    facts = {
        "logit_scale": heads.logit_scale,
        "text_digest": heads.text_digest,
        "tokenizer_digest": heads.tokenizer_digest,
        "prompts": {task: asdict(prompts) for task, prompts in heads.prompts.items()},
    }
    # One entry: the library writes several in no fixed order.
    entry = {_KEY: json.dumps(facts, ensure_ascii=False, sort_keys=True)}
    leaves = {f"{task}{_LEAF}": kernel for task, kernel in heads.kernels.items()}
    write_whole(path, save(leaves, metadata=entry))


def load_heads(path: str | Path) -> Heads:
    """Reads heads and checks them.

    Raises:
      CheckpointError: It is no file of heads, or one of them does not fit its class
        names or is not finite.
    """
    path = Path(path)
    checkpoint = open_checkpoint(path)
    try:
        facts = json.loads(checkpoint.metadata[_KEY])
        prompts = {
            task: Prompts(
                tuple(entry["classes"]), tuple(entry["templates"]), entry["source"]
            )
            for task, entry in facts["prompts"].items()
        }
        scale = float(facts["logit_scale"])
        digests = {k: facts[k] for k in ("text_digest", "tokenizer_digest")}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(f"{path} is no file of zero-shot heads") from error
    problems = [] if isfinite(scale) else [f"the logit scale is {scale}"]
    expected = {f"{task}{_LEAF}": task for task in prompts}
    leaves = checkpoint.read_all()
    found = {expected.get(leaf, leaf): np.asarray(x) for leaf, x in leaves.items()}
    problems += [f"{task}: has no kernel" for task in prompts if task not in found]
    for task, kernel in found.items():
        problems += _faults(task, kernel, prompts)
    if problems:
        raise CheckpointError(f"{path}: " + listing("{n} fault{s}", problems))
    return Heads(kernels=found, prompts=prompts, logit_scale=scale, **digests)


def _faults(task: str, kernel: np.ndarray, prompts: Mapping[str, Prompts]) -> list[str]:
    if task not in prompts:
        return [f"{task}: is not a head"]
    count = len(prompts[task].classes)
    if kernel.dtype != np.float32 or kernel.ndim != 2 or kernel.shape[1] != count:
        shape = f"{kernel.dtype}{list(kernel.shape)}"
        return [f"{task}: is {shape}, expected float32 with {count} columns"]
    if not np.isfinite(kernel).all():
        return [f"{task}: has values that are not finite"]
    return []


def check_heads(
    heads: Heads,
    classes: Mapping[str, Sequence[str]],
    *,
    embed: int,
    digest: str | None = None,
) -> list[str]:
    """Checks that heads are those of the tasks and of the model at hand.

    Args:
      heads: From a file.
      classes: Names of each task's classes in the order of its labels.
      embed: Length of the model's image features.
      digest: `text_digest` of the model's own text encoder, where it has one.

    Returns:
      Remarks for the user: differences that may be meant.

    Raises:
      CheckpointError: A head is missing, has other classes or another order of them,
        or is for features of another length; all of them are listed.
    """
    problems = []
    for task, names in classes.items():
        kernel = heads.kernels.get(task)
        if kernel is None:
            problems.append(f"{task}: no head; there are {', '.join(heads.kernels)}")
            continue
        if kernel.shape[0] != embed:
            problems.append(
                f"{task}: the head is for features of {kernel.shape[0]} numbers, the "
                f"model's have {embed}"
            )
        problems += _other_classes(task, heads.prompts[task].classes, tuple(names))
    if problems:
        raise CheckpointError(
            listing(
                "{n} problem{s} with the heads",
                problems,
                "Make them with this model's text encoder: centermerge heads.",
            )
        )
    if digest is not None and digest != heads.text_digest:
        remark = "the heads were made with another text encoder than the model's own"
        return [f"{remark}: {heads.text_digest[:12]}, not {digest[:12]}"]
    return []


def _other_classes(
    task: str, found: tuple[str, ...], expected: tuple[str, ...]
) -> list[str]:
    if found == expected:
        return []
    if len(found) != len(expected):
        return [f"{task}: {len(found)} classes, expected {len(expected)}"]
    if sorted(found) == sorted(expected):
        return [f"{task}: the classes are in another order"]
    place = next(
        i
        for i, pair in enumerate(zip(found, expected, strict=True))
        if len({*pair}) > 1
    )
    return [f"{task}: class {place} is {found[place]!r}, expected {expected[place]!r}"]
