"""Flax's weight initialisers that PyTorch does not have."""

import math

from torch import Tensor, nn

# Standard deviation of a unit normal cut at 2 sigma: Flax divides by it so that the cut
# distribution has the variance asked for.
_TRUNCATED_STD = 0.87962566103423978


def lecun_normal_(weight: Tensor) -> Tensor:
    """Flax's default for kernels: truncated normal of variance 1 / fan_in. weight: [out, in, ...]."""
    std = math.sqrt(1.0 / (weight.numel() // weight.shape[0])) / _TRUNCATED_STD
    return nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


def variance_scaling_uniform_(weight: Tensor, fan: int) -> Tensor:
    """Uniform of variance 1 / fan."""
    limit = math.sqrt(3.0 / fan)
    return nn.init.uniform_(weight, -limit, limit)
