"""The main job from end to end: real experts, merged, evaluated, tabulated, plotted.

`centermerge demo` calls `run`. The experts are fine-tuned here, from a real pretrained
backbone on real images; everything after that goes the way that a user's own
checkpoints would: written to disk, opened again, merged by the public functions.
"""

from centermerge_jax.demo.run import run as run
from centermerge_jax.demo.settings import FULL as FULL
from centermerge_jax.demo.settings import QUICK as QUICK
from centermerge_jax.demo.settings import Settings as Settings
