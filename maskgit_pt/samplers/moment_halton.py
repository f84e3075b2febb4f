"""The moment sampler joined with the Halton order (Hayakawa et al., arXiv 2510.04525)."""

import dataclasses
import math

import torch
from torch import Tensor

from maskgit_pt.samplers.moment import MomentSampler, places
from maskgit_pt.samplers.ordered import halton_place
from maskgit_pt.settings import setting


@dataclasses.dataclass
class MomentHaltonSampler(MomentSampler):
    """Chooses some positions of every step by the Halton order and the others by their moment.

    The Halton order explores: it spreads positions over the image and does not look at the network. The
    moment exploits: it takes positions whose tokens are nearly certain. Tokens of both are drawn alike, from
    p**b. At explore 0 this is the moment sampler, at 1 the Halton order with the moment sampler's
    temperatures. The paper weighs the two against each other; the even share of every step is ours.

    Args:
      explore: share of the positions of each step that the Halton order chooses, rounded down.
      The others are as of `MomentSampler`.
    """

    explore: float = setting(
        0.5, "Share of each step's tokens chosen by the Halton order.", least=0
    )

    name = "moment-halton"

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.explore <= 1 or math.isnan(self.explore):
            raise ValueError(f"explore is {self.explore}; accepted: 0 to 1")

    def _choose(self, scores: Tensor, count: Tensor, unknown: Tensor) -> Tensor:
        order = halton_place(scores.shape[1], scores.device)
        order = -order.to(scores.dtype).expand_as(scores)
        by_order = (self.explore * count).long()  # [B, 1]
        explored = places(order.masked_fill(~unknown, -torch.inf)) < by_order
        rest = scores.masked_fill(explored, -torch.inf)
        return explored | (places(rest) < count - by_order)
