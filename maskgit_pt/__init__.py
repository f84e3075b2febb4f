"""MaskGIT in PyTorch, equal to Google's JAX code; see README.md."""

from maskgit_pt.nets.maskgit_transformer import Transformer
from maskgit_pt.nets.vqgan_tokenizer import VQVAE

__version__ = "0.1.0"

__all__ = ["VQVAE", "Transformer"]
