"""Drawing from the likeliest codes alone: top-k and top-p (nucleus) sampling, for every sampler."""

from typing import Any

import torch
from torch import Tensor

from maskgit_pt.libml.rng import Noise


class TruncatedNoise:
    """Draws codes from the likeliest alone, with another source's noise; the rest of it is that source's.

    The k largest probabilities are put into falling order, and the rank is what is drawn. Of equal
    probabilities at the limit those stay that `torch.topk` puts first.

    Args:
      noise: the source.
      top_k: how many codes stay; 0 for all.
      top_p: the share of the probability that stays: the fewest codes that together reach it; 1 for all.
        With both, top-k comes first and the share is of what it leaves.
    """

    def __init__(self, noise: Noise, top_k: int = 0, top_p: float = 1.0):
        self._noise, self.top_k, self.top_p = noise, top_k, top_p

    def __getattr__(self, name: str) -> Any:
        return getattr(self._noise, name)

    def categorical(self, logits: Tensor, probs: Tensor) -> Tensor:
        """Draws int64 [...] from `probs` = softmax(`logits`), [..., K], cut as said above."""
        codes = probs.shape[-1]
        probs, order = probs.topk(min(self.top_k or codes, codes))  # [..., k]
        probs = probs / probs.sum(-1, keepdim=True)
        logits = logits.gather(-1, order)
        if self.top_p < 1:
            before = probs.cumsum(-1) - probs  # probability of the likelier codes
            left_out = before >= self.top_p
            left_out[..., 0] = False
            probs = probs.masked_fill(left_out, 0.0)
            probs = probs / probs.sum(-1, keepdim=True)
            logits = logits.masked_fill(left_out, -torch.inf)
        rank = self._noise.categorical(logits, probs)
        return order.gather(-1, rank[..., None])[..., 0]
