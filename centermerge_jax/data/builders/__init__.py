"""TFDS builders of the real sets, and preparing sets for reading without TensorFlow."""

from centermerge_jax.data.builders.preparing import prepare as prepare
