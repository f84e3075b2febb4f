"""The sampler of MAGE (Li et al. 2023, arXiv 2211.09117; LTH14/mage)."""

import dataclasses
import math

import torch
from torch import Tensor

from maskgit_pt.libml.rng import Noise
from maskgit_pt.samplers.base import (
    CHOICE_TEMPERATURE,
    MASK,
    STEPS,
    Sampler,
    State,
    check_choice_temperature,
    per_step,
)
from maskgit_pt.settings import setting


@dataclasses.dataclass
class MageSampler(Sampler):
    """Google's decoding as MAGE's code has it: cosine schedule, the least confident tokens are masked again.

    Differences from the "official" sampler: tokens are drawn before the Gumbel noise, in another way; the
    noise is float64; and the number of tokens to mask is rounded after the cosine in float64. One token at
    least is masked again after every step, the last one too, where the guess is whole all the same. One
    that is left over early is drawn again in every step. MAGE counts the unknown tokens of the first
    sample for the whole batch; here each sample has its own count, which is the same unless samples begin
    with different numbers of known tokens.

    Args:
      steps: T; published images have 20.
      choice_temperature: factor of the Gumbel noise on the log confidences, falling to 0 at the last step
        (ViT-B: 6); or a list of the factors, one a step.
    """

    steps: int = setting(20, STEPS, least=1)
    choice_temperature: float | list[float] = setting(6.0, CHOICE_TEMPERATURE, least=0)

    name = "mage"
    more_steps_than_tokens = True

    def __post_init__(self):
        super().__post_init__()
        check_choice_temperature(self.choice_temperature, self.steps)

    def planned(self, tokens: int, step: int) -> int:
        """How many of so many tokens the schedule masks after a step."""
        return math.floor(tokens * math.cos(math.pi / 2 * ((step + 1) / self.steps)))

    def noise_scale(self, step: int) -> float:
        """The factor of the Gumbel noise in a step."""
        if isinstance(self.choice_temperature, list):
            return per_step("choice_temperature", self.choice_temperature, self.steps)[step]
        return self.choice_temperature * (1 - (step + 1) / self.steps)

    def step(self, state: State, logits: Tensor, step: int, noise: Noise) -> State:
        probs = logits.softmax(-1)
        drawn = noise.categorical(logits, probs)  # [B, n], known tokens included
        guess = torch.where(state.unknown, drawn, state.tokens)
        confidence = probs.gather(-1, drawn[..., None])[..., 0].log()
        gumbel = noise.gumbel(confidence.shape, torch.float64, confidence.device)
        confidence = confidence + (self.noise_scale(step) * gumbel).to(confidence.dtype)
        confidence = confidence.masked_fill(~state.unknown, torch.inf)
        count = (state.unknown.sum(-1) - 1).clamp(max=self.planned(guess.shape[1], step))
        cut = confidence.sort(-1).values.gather(1, count.clamp(min=1)[:, None] - 1)
        unknown = state.unknown & (confidence <= cut)
        return State(guess.masked_fill(unknown, MASK), unknown, guess, state.plan)

    def masked_after(self, tokens: int) -> list[float]:
        masked, left = [], tokens
        for step in range(self.steps):
            left = max(1, min(left - 1, self.planned(tokens, step)))
            masked.append(float(left))
        return masked
