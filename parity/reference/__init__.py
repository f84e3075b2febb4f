"""The Flax reference: MaskGIT in JAX as Google's code computes it, to compare `maskgit_pt` with.

Same modules, classes, arguments and parameter tree as the official package
(google-research/maskgit), so that a checkpoint of either fits the other; written for this project,
and running on today's JAX. Layouts are Flax's: images [B, H, W, C], kernels HWIO.

    from parity.reference import Transformer, VQVAE, decode, load
"""

from parity import jax_code  # noqa: F401  (first: it says which extra is missing)
from parity.reference.loading import load
from parity.reference.maskgit_transformer import Transformer
from parity.reference.parallel_decode import decode
from parity.reference.vqgan_tokenizer import VQVAE

__all__ = ["VQVAE", "Transformer", "decode", "load"]
