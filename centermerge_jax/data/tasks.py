"""What an image classification task is: three splits that share no image.

Whatever the images come from, evaluation and training see a `Task`. Its validation
split is taken out of the training images, never out of the test images, and an image
that occurs twice, pixel for pixel, is kept once, in the split where it matters most:
test before validation before training. So no test image was ever seen.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int, Int32, UInt8

from centermerge_jax.errors import DataError


@dataclass(frozen=True, eq=False)
class Split:
    """Images and their labels.

    Attributes:
      images: RGB bytes.
      labels: Index into the task's classes.
    """

    images: UInt8[np.ndarray, "n height width 3"]
    labels: Int32[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(
        self, index: slice | Int[np.ndarray, " m"] | Bool[np.ndarray, " n"]
    ) -> "Split":
        return Split(self.images[index], self.labels[index])


@dataclass(frozen=True, eq=False)
class Task:
    """A named classification problem.

    Attributes:
      name: Unique among tasks that are merged together.
      classes: Their names; a label is an index into them.
      train: For fitting.
      validation: For choosing; taken out of the training images.
      test: For reporting, and nothing else.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split

    def splits(self) -> dict[str, Split]:
        """All three, by name."""
        return {
            "train": self.train,
            "validation": self.validation,
            "test": self.test,
        }


def make_task(
    name: str,
    classes: tuple[str, ...],
    *,
    train: Split,
    test: Split,
    validation: int,
    seed: int = 0,
) -> Task:
    """A task whose splits share no image.

    Args:
      name: The task's name.
      classes: Names of the classes.
      train: Images for fitting and choosing.
      test: Images for reporting.
      validation: How many of `train` are for choosing, in the classes' proportions.
      seed: Decides which.

    Returns:
      The task. Its splits may be somewhat smaller than asked: repeated images go.

    Raises:
      DataError: A label has no class, or `validation` leaves nothing for training.
    """
    labels = np.concatenate([train.labels, test.labels])
    if not np.isin(labels, np.arange(len(classes))).all():
        raise DataError(f"{name}: a label is outside 0 to {len(classes) - 1}")
    test = test[unseen(test)]
    train = train[unseen(train, before=test)]
    if not 0 < validation < len(train):
        raise DataError(
            f"{name}: validation must be between 1 and {len(train) - 1} images, of "
            f"{len(train)} that are not for testing: got {validation}"
        )
    order = arrange(train.labels, seed=seed)
    return Task(
        name,
        classes,
        train=train[order[validation:]],
        validation=train[order[:validation]],
        test=test,
    )


def arrange(
    labels: Int[np.ndarray, " n"], *, seed: int, balanced: bool = False
) -> Int[np.ndarray, " n"]:
    """A random order in which every beginning has the right share of each class.

    Args:
      labels: Labels of the images to be ordered.
      seed: Decides the order.
      balanced: As many of each class as there are, instead of their proportions.

    Returns:
      A permutation; its first n entries are a stratified sample of n images, and what
      remains is disjoint from them.

    Example:
      >>> labels = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1])
      >>> labels[arrange(labels, seed=0)[:3]].tolist().count(1)
      1
      >>> labels[arrange(labels, seed=0, balanced=True)[:6]].tolist().count(1)
      3
    """
    rng = np.random.default_rng(seed)
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        # The j-th of n members stands at (j + u) / n of the way, u random to mix them.
        steps = np.arange(len(members)) + rng.uniform(size=len(members))
        place[members] = steps if balanced else steps / len(members)
    return np.argsort(place, kind="stable")


def unseen(split: Split, *, before: Split | None = None) -> Bool[np.ndarray, " n"]:
    """Which images are neither earlier in the split nor anywhere in `before`.

    Example:
      >>> images = np.zeros((3, 1, 1, 3), np.uint8)
      >>> images[2] = 1
      >>> unseen(Split(images, np.zeros(3, np.int32))).tolist()
      [True, False, True]
    """
    known = set() if before is None else {_digest(image) for image in before.images}
    fresh = np.zeros(len(split), bool)
    for i, image in enumerate(split.images):
        digest = _digest(image)
        fresh[i] = digest not in known
        known.add(digest)
    return fresh


def _digest(image: UInt8[np.ndarray, "height width 3"]) -> bytes:
    return hashlib.sha256(image.tobytes()).digest()
