"""All tasks by name, and the suites that results are quoted over."""

import difflib
from collections.abc import Mapping, Sequence

from centermerge_jax.data import prompts, sets, text_sets
from centermerge_jax.data.clip_tasks import EIGHT, LAST_SIX, SIX_MORE
from centermerge_jax.data.specs import Metric, Splits, TaskSpec
from centermerge_jax.errors import ParameterError


def _glue(
    title: str,
    inputs: tuple[str, ...],
    label_names: tuple[str, ...],
    *,
    test: str = "validation",
    metric: Metric = "accuracy",
    note: str = "",
) -> TaskSpec:
    name = title.lower().replace("-", "")
    return TaskSpec(
        name=name,
        title=title,
        kind="text",
        classes=len(label_names),
        tfds=f"glue/{name}",
        hub=f"nyu-mll/glue/{name}",
        # Labels of the test split are not public: the benchmark reports on validation.
        splits=Splits("train", test),
        inputs=inputs,
        label_names=label_names,
        metric=metric,
        note=note,
    )


_ENTAILED = ("entailment", "not_entailment")

GLUE: tuple[TaskSpec, ...] = (
    _glue("CoLA", ("sentence",), ("unacceptable", "acceptable"), metric="matthews"),
    _glue("SST-2", ("sentence",), ("negative", "positive")),
    _glue(
        "MRPC",
        ("sentence1", "sentence2"),
        ("not_equivalent", "equivalent"),
        note="Others report the mean of accuracy and F1.",
    ),
    _glue(
        "QQP",
        ("question1", "question2"),
        ("not_duplicate", "duplicate"),
        note="Others report the mean of accuracy and F1.",
    ),
    _glue(
        "MNLI",
        ("premise", "hypothesis"),
        ("entailment", "neutral", "contradiction"),
        test="validation_matched",
        note="Checkpoints may have another order of the three labels.",
    ),
    _glue("QNLI", ("question", "sentence"), _ENTAILED),
    _glue("RTE", ("sentence1", "sentence2"), _ENTAILED),
)
"""The seven GLUE tasks, as david3684/AdaRank evaluates them (`lm/utils` at dfa5358)."""


def _real(name: str, known: sets.ImageSet | text_sets.TextSet) -> TaskSpec:
    text = isinstance(known, text_sets.TextSet)
    kind = "text" if text else "image"
    return TaskSpec(
        name=name,
        title=name,
        kind=kind,
        classes=len(known.classes),
        tfds=name,
        ours=True,
        splits=Splits(validation="validation" if text and known.choosing else None),
        inputs=(kind,),
        label_names=known.classes,
        note=known.note,
    )


REAL: tuple[TaskSpec, ...] = (
    _real("br35h", sets.SETS["br35h"]),
    _real("chest_xray", sets.SETS["xray"]),
    _real("traffic_lights", sets.SETS["traffic"]),
    _real("textile", sets.SETS["textile"]),
    _real("quickdraw", sets.SETS["quickdraw"]),
    *(_real(name, known) for name, known in text_sets.SETS.items()),
)
"""Sets that travel inside packages, beside MNIST, Fashion-MNIST and CIFAR-10."""

TASKS: Mapping[str, TaskSpec] = {
    spec.name: spec for spec in (*EIGHT, *SIX_MORE, *LAST_SIX, *GLUE, *REAL)
}
"""Every task by name."""


def _names(*groups: Sequence[TaskSpec]) -> tuple[str, ...]:
    return tuple(spec.name for group in groups for spec in group)


SUITES: Mapping[str, tuple[str, ...]] = {
    "clip8": _names(EIGHT),
    "clip14": _names(EIGHT, SIX_MORE),
    "clip20": _names(EIGHT, SIX_MORE, LAST_SIX),
    "glue7": _names(GLUE),
    "real": ("mnist", "fashionmnist", "cifar10", *_names(REAL)),
}
"""Tasks over which means are taken, in the order of the benchmark."""


def find(name: str) -> TaskSpec:
    """The task of a name; capitals, `-` and `_` do not matter.

    Raises:
      ParameterError: There is none; the message has what is close.

    Example:
      >>> find("OxfordIIITPet").tfds, find("sst-2").tfds
      ('oxford_iiit_pet', 'glue/sst2')
    """
    plain = {_plain(known): spec for known, spec in TASKS.items()}
    if _plain(name) in plain:
        return plain[_plain(name)]
    close = difflib.get_close_matches(_plain(name), plain, n=1)
    hint = (
        f"did you mean {plain[close[0]].name!r}?"
        if close
        else f"known: {', '.join(TASKS)}"
    )
    raise ParameterError(f"no task is called {name!r}; {hint}")


def select(names: Sequence[str]) -> tuple[TaskSpec, ...]:
    """Tasks by their names and by the names of suites, each once.

    Raises:
      ParameterError: One is neither.

    Example:
      >>> [spec.title for spec in select(["dtd", "clip8"])][:3]
      ['DTD', 'Cars', 'EuroSAT']
    """
    wanted = [task for name in names for task in SUITES.get(name, (name,))]
    return tuple({spec.name: spec for spec in map(find, wanted)}.values())


def class_names(name: str) -> tuple[str, ...]:
    """Names of the classes of a task in the order of the benchmark's labels.

    Raises:
      ParameterError: There is no such task.

    Example:
      >>> class_names("rte")
      ('entailment', 'not_entailment')
    """
    spec = find(name)
    return spec.label_names or prompts.class_names(spec.name)


def known_names(spec: TaskSpec) -> list[tuple[str, ...]]:
    """Lists of names of a task's classes, each in the order of its labels.

    Those that texts are made of come first, then those of folders of images.

    Example:
      >>> [names[1:3] for names in known_names(find("eurosat"))]
      [('forest', 'brushland or shrubland'), ('Forest', 'HerbaceousVegetation')]
    """
    if spec.label_names:
        return [spec.label_names]
    found = prompts.load_prompts(spec.name)
    return [names for names in (found.classes, found.folders) if names]


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")
