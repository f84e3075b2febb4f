"""One interface over the two sources of noise: a JAX key and a `torch.Generator`.

With a key every draw is the one JAX makes; with a Generator (or None, PyTorch's global one) the
draws are PyTorch's own and faster.
"""

import torch
from torch import Tensor

from maskgit_pt.libml import jax_random
from maskgit_pt.libml.jax_random import Key

Rng = Key | torch.Generator | None


def check(rng: Rng) -> None:
    """Raises TypeError if `rng` is no source of noise."""
    if not (rng is None or isinstance(rng, Key | torch.Generator)):
        raise TypeError(
            f"rng is a {type(rng).__name__}; accepted: maskgit_pt.libml.jax_random.PRNGKey(seed), "
            "a torch.Generator, None"
        )


def split(rng: Rng) -> tuple[Rng, Rng]:
    """`jax.random.split(rng)` for a key; a Generator advances by itself and is returned twice."""
    if isinstance(rng, Key):
        first, second = jax_random.split(rng)
        return first, second
    return rng, rng


def gumbel(rng: Rng, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Standard Gumbel noise of `shape`."""
    if isinstance(rng, Key):
        return jax_random.gumbel(rng, shape, dtype, device)
    noise = torch.empty(shape, dtype=dtype, device=device)
    return -noise.exponential_(generator=rng).log_()


def categorical(rng: Rng, logits: Tensor, probs: Tensor) -> Tensor:
    """Draws from the categorical distribution of the last axis.

    Args:
      rng: a key draws argmax(logits + gumbel) as JAX does; a Generator draws the same distribution
        as argmax(probs / exponential), which needs no logarithms.
      logits: float [..., K].
      probs: softmax(logits).

    Returns:
      int64 [...].
    """
    if isinstance(rng, Key):
        return jax_random.categorical(rng, logits)
    return (probs / torch.empty_like(probs).exponential_(generator=rng)).argmax(-1)
