"""Weights in and out: Google's Flax files to PyTorch folders and back. Never needs JAX."""

from convert.api import Summary, convert, load_checkpoint, read_flat

__all__ = ["Summary", "convert", "load_checkpoint", "read_flat"]
