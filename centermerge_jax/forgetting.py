"""What fine-tuning or merging wins on some tasks, and what it loses on all others."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from centermerge_jax.errors import ParameterError


@dataclass(frozen=True)
class Change:
    """How a model differs from the one it was made of.

    Attributes:
      specialisation: E, what it gained on the target tasks, on average.
      stabilisation: F, what it gained on the others; below 0 where it forgot.
      together: O = E + F. It adds differences of unlike sets of tasks: see E and F
        beside it.
      harmonic: H, the harmonic mean of the two accuracies, of target tasks and others.
    """

    specialisation: float
    stabilisation: float
    together: float
    harmonic: float


def change(
    after: Mapping[str, float],
    before: Mapping[str, float],
    *,
    targets: Collection[str],
) -> Change:
    """Compares a model with the one it was made of, on target tasks and on others.

        E = mean over targets of after - before,  F = the same over the others
        O = E + F,  H = 2 a b / (a + b) of the mean accuracies a, b after

    Args:
      after: Accuracy, or another score from 0, by task.
      before: The same before.
      targets: Names of the tasks that it was made for.

    Raises:
      ParameterError: The tasks differ, or there is no target task or no other.

    Example:
      >>> found = change({"cars": 0.9, "dtd": 0.4}, {"cars": 0.6, "dtd": 0.5},
      ...                targets=["cars"])
      >>> round(found.specialisation, 2), round(found.stabilisation, 2)
      (0.3, -0.1)
      >>> round(found.together, 2), round(found.harmonic, 2)
      (0.2, 0.55)

    References:
      Huang et al., "Keeping Yourself is Important in Downstream Tuning MLLM", 2025,
      arXiv:2503.04543.
    """
    if after.keys() != before.keys():
        unlike = sorted(after.keys() ^ before.keys())
        raise ParameterError(f"scored only once: {', '.join(unlike)}")
    if unknown := sorted(set(targets) - after.keys()):
        raise ParameterError(f"no task is called {', '.join(unknown)}")
    others = [task for task in after if task not in targets]
    if not targets or not others:
        raise ParameterError("there has to be a target task, and a task that is none")

    def mean(scores: Mapping[str, float], tasks: Collection[str]) -> float:
        return sum(scores[task] for task in tasks) / len(tasks)

    a, b = mean(after, targets), mean(after, others)
    gained, kept = a - mean(before, targets), b - mean(before, others)
    return Change(gained, kept, gained + kept, 2 * a * b / (a + b) if a + b else 0.0)
