"""Weights in and out: Google's Flax files and those of other projects, to PyTorch folders and back.

It never executes anything that a file contains. It never needs JAX, but for one format: Orbax checkpoints
are read and written by orbax-checkpoint, which imports JAX (the extra "jax"); see `formats/orbax.py`.
"""

from convert.api import Summary, convert, load_checkpoint, read_flat

__all__ = ["Summary", "convert", "load_checkpoint", "read_flat"]
