"""MaskGIT in PyTorch, equal to Google's JAX code; see README.md."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maskgit_pt.nets.maskgit_transformer import Transformer
    from maskgit_pt.nets.vqgan_tokenizer import VQVAE
    from maskgit_pt.pipeline import MaskGIT

__version__ = "0.1.0"

__all__ = ["VQVAE", "MaskGIT", "Transformer"]

_HOMES = {
    "MaskGIT": "maskgit_pt.pipeline",
    "Transformer": "maskgit_pt.nets.maskgit_transformer",
    "VQVAE": "maskgit_pt.nets.vqgan_tokenizer",
}


def __getattr__(name: str) -> Any:
    """Imports on first use: a command line parses its flags before PyTorch is there."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
