"""What is known of a task before any of its data is there."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["image", "text"]

Metric = Literal["accuracy", "matthews"]
"""Accuracy, or Matthews' correlation coefficient."""

VALIDATION_SHARE = 10
"""One in so many training examples is for choosing, and"""

VALIDATION_MOST = 5000
"""at most so many: the rule of nik-dim/tall_masks, `src/datasets/registry.py`."""


@dataclass(frozen=True)
class Splits:
    """Which parts of a set are for what.

    Attributes:
      train: The split for fitting.
      test: The split for reporting.
      validation: The split for choosing; where it is None, `TaskSpec.validation`
        examples are carved out of `train`.
    """

    train: str = "train"
    test: str = "test"
    validation: str | None = None


@dataclass(frozen=True)
class ImageFolder:
    """Where images lie in one folder per class, as `tfds.ImageFolder` wants them.

    Attributes:
      path: Below the folder of all data: `path/split/class/image`.
      splits: Names of the folders of the splits.
    """

    path: str
    splits: Splits = Splits()


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """A classification task: where its data is, and what is measured.

    Attributes:
      name: Key in `registry.TASKS`: the title in small letters.
      title: As the benchmark spells it, in folders of checkpoints and in tables.
      kind: What is classified.
      classes: How many there are.
      tfds: Name of the TFDS set with its configuration and without version; None where
        TFDS does not have what the benchmark uses.
      why_not: Then, what TFDS lacks.
      ours: Whether the TFDS builder is one of `centermerge_jax.data.builders`.
      folder: Image folders that are read instead, or rather, when they are there.
      hub: Name on the Hugging Face hub, with its configuration if it has some: what
        TFDS's bridge can prepare.
      splits: Splits of the TFDS set.
      inputs: Features that are classified: an image, a text, or two texts.
      label: Feature with the class.
      relabel: Pairs of a TFDS label and the benchmark's, where they differ.
      label_names: Names of the classes, where no prompts have them.
      metric: What is reported.
      tests: Number of test examples that the published results are over, if known.
      note: What to know before quoting a number.
    """

    name: str
    title: str
    kind: Kind
    classes: int
    tfds: str | None = None
    why_not: str = ""
    ours: bool = False
    folder: ImageFolder | None = None
    hub: str | None = None
    splits: Splits = Splits()
    inputs: tuple[str, ...] = ("image",)
    label: str = "label"
    relabel: tuple[tuple[int, int], ...] = ()
    label_names: tuple[str, ...] = ()
    metric: Metric = "accuracy"
    tests: int | None = None
    note: str = ""

    def benchmark_label(self, label: int) -> int:
        """The benchmark's label of what has this label in the TFDS set.

        Example:
          >>> spec = TaskSpec(
          ...     name="abc", title="ABC", kind="image", classes=3,
          ...     relabel=((1, 2), (2, 1)))
          >>> [spec.benchmark_label(label) for label in range(3)]
          [0, 2, 1]
        """
        return dict(self.relabel).get(label, label)

    @staticmethod
    def validation(count: int) -> int:
        """How many of `count` training examples are for choosing.

        Example:
          >>> TaskSpec.validation(1020), TaskSpec.validation(262144)
          (102, 5000)
        """
        return min(count // VALIDATION_SHARE, VALIDATION_MOST)
