"""MaskGIT in PyTorch, equal to Google's JAX code; see README.md."""

import os
from typing import TYPE_CHECKING, Any

# PyTorch on Linux reads this before its first tensor: large tensors on the CPU in huge pages. A fifth of
# the time of float32 decoding in the tokenizer went into handing out small pages.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

# Noted before the slow imports below: `launch.end_with_torchrun` asks whether it has gone meanwhile.
PARENT_PROCESS = os.getppid()

from maskgit_pt.nets.maskgit_transformer import Transformer  # noqa: E402
from maskgit_pt.nets.vqgan_tokenizer import VQVAE  # noqa: E402

if TYPE_CHECKING:
    from maskgit_pt.pipeline import MaskGIT

__version__ = "0.1.0"

__all__ = ["VQVAE", "MaskGIT", "Transformer"]


def __getattr__(name: str) -> Any:
    """Imports `MaskGIT` on first use: whoever wants the networks alone need not wait for Pillow."""
    if name == "MaskGIT":
        from maskgit_pt.pipeline import MaskGIT

        return MaskGIT
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
