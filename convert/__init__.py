"""Weights in and out: Google's Flax files and those of other projects, to PyTorch folders and back.

Never needs JAX, never executes anything that a file contains.
"""

from convert.api import Summary, convert, load_checkpoint, read_flat

__all__ = ["Summary", "convert", "load_checkpoint", "read_flat"]
