"""The sampler of Di[M]O, one-step generators distilled from a masked model (Zhu et al., arXiv 2503.15457)."""

import dataclasses

import torch
from torch import Tensor

from maskgit_pt.libml.rng import Noise
from maskgit_pt.samplers.base import MASK, STEPS, Sampler, State
from maskgit_pt.settings import setting


@dataclasses.dataclass
class DimoSampler(Sampler):
    """Draws all tokens at once, from a start that is random instead of all masked.

    The start is what makes images differ: some positions are masked, the others hold random codes, and the
    embeddings are disturbed by normal noise. Every token is then drawn anew, the random codes too. The
    weights must be those of a network trained for it; others give no image in one step.

    Args:
      steps: 1.
      mask_ratio: share of the positions that are masked at the start.
      embedding_noise: sigma; the embeddings e become sigma * noise + sqrt(1 - sigma**2) * e.
    """

    steps: int = setting(1, STEPS, least=1)
    mask_ratio: float = setting(0.6, "Share of the tokens masked at the start.", least=0)
    embedding_noise: float = setting(0.1, "Normal noise on the embeddings.", least=0)

    name = "dimo"
    draws_at_start = True
    can_edit = False

    def __post_init__(self):
        super().__post_init__()
        if self.steps != 1:
            raise ValueError(f"steps is {self.steps}; accepted by the sampler {self.name!r}: 1")
        for name in ("mask_ratio", "embedding_noise"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; accepted: 0 to 1")

    def start(self, tokens: Tensor, noise: Noise, num_codes: int | None) -> State:
        if num_codes is None:
            raise ValueError(f"the sampler {self.name!r} needs the number of codes")
        B, n = tokens.shape
        codes = (noise.uniform((B, n), tokens.device) * num_codes).long().clamp(max=num_codes - 1)
        places = noise.uniform((B, n), tokens.device).argsort(-1)  # a permutation for each sample
        masked = max(1, int(torch.tensor(n * self.mask_ratio).round()))
        tokens = codes.masked_fill(places < masked, MASK)
        return State(tokens, torch.ones_like(tokens, dtype=torch.bool), tokens)

    def step(self, state: State, logits: Tensor, step: int, noise: Noise) -> State:
        drawn = noise.categorical(logits, logits.softmax(-1))
        return State(drawn, torch.zeros_like(state.unknown), drawn)

    def masked_after(self, tokens: int) -> list[float]:
        return [0.0]
