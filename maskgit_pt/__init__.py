"""MaskGIT in PyTorch, equal to Google's JAX code; see README.md."""

__version__ = "0.1.0"
