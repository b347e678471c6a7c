"""What the demo does how long: every number of it in one place."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Size of the demo.

    Attributes:
      tasks: Sets in `centermerge_jax.data.sets.SETS`.
      pixels: Side of the images, a multiple of 14.
      frozen_blocks: Blocks that fine-tuning leaves alone; their output is kept.
      shots: Labelled images of each class that the task's linear head is fitted on.
      train: Images of each task at most for fine-tuning.
      validation: Images of each task at most for choosing scale and rank.
      test: Images of each task at most for the table.
      steps: Fine-tuning steps for each task.
      batch: Images a step.
      learning_rate: Peak of the schedule: linear warm-up, then a cosine to zero.
      weight_decay: Of AdamW.
      head_decay: L2 penalty of the head's weights.
      ranks: Shares of rank that are tried.
      scales: For each method, the scales that are tried.
      seed: Of everything random.
    """

    tasks: tuple[str, ...] = ("mnist", "fashion", "xray", "br35h")
    pixels: int = 28
    frozen_blocks: int = 6
    shots: int = 16
    train: int = 4000
    validation: int = 400
    test: int = 1000
    steps: int = 250
    batch: int = 32
    learning_rate: float = 3e-5
    weight_decay: float = 0.01
    head_decay: float = 0.1
    ranks: tuple[float, ...] = (0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.0)
    centered_scales: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0, 6.0)
    uncentered_scales: tuple[float, ...] = (0.2, 0.3, 0.5, 0.8, 1.2)
    seed: int = 0


QUICK = Settings()
"""About five minutes on two cores."""

FULL = Settings(
    pixels=42,
    frozen_blocks=4,
    train=10000,
    validation=1000,
    test=10000,
    steps=1000,
    ranks=(0.01, 0.02, 0.04, 0.08, 0.12, 0.16, 0.24, 0.32, 0.48, 0.64, 1.0),
    centered_scales=(0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0),
    uncentered_scales=(0.1, 0.2, 0.3, 0.4, 0.5, 0.8, 1.0),
)
"""Much longer: larger images, more of them, more blocks and steps, a finer grid."""
