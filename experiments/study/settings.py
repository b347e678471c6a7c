"""What the studies do how long: every number of them in one place."""

from dataclasses import dataclass, field, replace
from typing import Literal

from centermerge_jax.demo import Settings


@dataclass(frozen=True, kw_only=True)
class Study:
    """One study.

    Attributes:
      kind: What the network reads.
      training: Tasks, their sizes and the fine-tuning, as the demo has them.
      seeds: Each with its own heads, validation items, and order of the items.
      shares: Ranks of the curves, as shares of full rank.
      centered_scales: Scales that are tried around the mean, for the curves.
      uncentered_scales: The same around the base.
      test: Items of each task that are tested, at most.
      tokens: Length of texts.
      methods: Which are compared; all by default.
      smoke: Whether it is next to nothing, to see that it works.
    """

    kind: Literal["vision", "text"]
    training: Settings
    seeds: tuple[int, ...]
    shares: tuple[float, ...] = field(
        default=(0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.0)
    )
    # The higher the rank, the larger the scale that it needs.
    centered_scales: tuple[float, ...] = tuple(2.0**i for i in range(-2, 8))
    uncentered_scales: tuple[float, ...] = (0.1, 0.2, 0.4, 0.7, 1.0)
    test: int = 500
    tokens: int = 32
    methods: tuple[str, ...] = ()
    smoke: bool = False

    def at(self, seed: int) -> Settings:
        """The training with one of the seeds."""
        return replace(self.training, seed=seed)


VISION = Study(
    kind="vision",
    training=Settings(
        tasks=(
            "br35h",
            "cifar10",
            "fashion",
            "mnist",
            "quickdraw",
            "textile",
            "traffic",
            "xray",
        ),
        pixels=42,
        frozen_blocks=6,
        train=3200,
        validation=128,
        test=1000,
        steps=100,
        batch=32,
        learning_rate=5e-5,
    ),
    seeds=(0, 1, 2),
    uncentered_scales=(0.01, 0.02, 0.03, 0.05, 0.1, 0.2),
)
"""DINOv2-S on eight sets of images."""

TEXT = Study(
    kind="text",
    training=Settings(
        tasks=(
            "emotion",
            "entity_sentiment",
            "humor",
            "newsgroups20",
            "sms_spam",
            "support",
        ),
        frozen_blocks=3,
        train=3200,
        validation=128,
        test=1000,
        steps=90,
        batch=36,
        learning_rate=1e-4,
    ),
    seeds=(0, 1),
    centered_scales=tuple(2.0**i for i in range(-1, 8)),
    tokens=24,
)
"""MiniLM on six sets of texts; the batch can be divided by six for joint training."""

STUDIES = {study.kind: study for study in (VISION, TEXT)}


def smoke(study: Study) -> Study:
    """Next to nothing of a study: three tasks, one block, a few items and steps."""
    tasks = {"vision": ("fashion", "mnist", "traffic"), "text": ("humor", "sms_spam")}
    small = replace(
        study.training,
        tasks=(*tasks[study.kind], *(("support",) if study.kind == "text" else ())),
        pixels=28,
        frozen_blocks={"vision": 11, "text": 5}[study.kind],
        shots=2,
        train=64,
        validation=16,
        test=40,
        steps=2,
        batch=6,
    )
    return replace(
        study,
        training=small,
        smoke=True,
        seeds=study.seeds[:1],
        shares=(0.08, 1.0),
        centered_scales=(1.0, 2.0),
        uncentered_scales=(0.3, 0.6),
        tokens=8,
        methods=(
            "weight_average",
            "task_arithmetic",
            "truncated_task_arithmetic",
            "cart",
            "cart_data_free",
        ),
    )
