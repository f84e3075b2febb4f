"""The confidence sampler in the code of Halton-MaskGIT (valeoai/Halton-MaskGIT, 2025)."""

import dataclasses
import math

import torch
from torch import Tensor

from maskgit_pt.libml.rng import Noise
from maskgit_pt.samplers.base import (
    CHOICE_TEMPERATURE,
    KEEP_KNOWN,
    MASK,
    SCHEDULE,
    STEPS,
    Sampler,
    State,
    check_mask_ratios,
)
from maskgit_pt.samplers.confidence import CHOICES, check_choice, with_noise
from maskgit_pt.settings import setting

# Share of the tokens that are known after a step, at r rising from 0 to 1.
SCHEDULES = {
    "root": lambda r: r**0.5,
    "linear": lambda r: r,
    "square": lambda r: r**2,
    "cosine": lambda r: 1 - torch.cos(r * math.pi * 0.5),
    "arccos": lambda r: 1 - torch.arccos(r) / (math.pi * 0.5),
}


@dataclasses.dataclass
class Confidence2025Sampler(Sampler):
    """Brings the number of known tokens to a planned one in each step, the most confident first.

    It differs from "confidence", the sampler of the 2023 report, in its counts: the schedule gives how many
    tokens are known in all, and the first step decides one. And without `keep_known`, as the authors'
    code has it, nothing ever stays: every known token is drawn again in every step, so that given tokens
    are lost, and a token that drew the mask is unknown again.

    Args:
      steps: T.
      schedule: of `SCHEDULES`; or a list of the shares of masked tokens after each step.
      choice_temperature: factor of the Gumbel noise on the log confidences, only for "linear", which makes
        it fall to 0; or a list of the factors, one a step.
      choice: as of the "confidence" sampler.
      keep_known: known tokens keep their values.
    """

    steps: int = setting(12, STEPS, least=1)
    schedule: str | list[float] = setting("arccos", f"{SCHEDULE}: {', '.join(SCHEDULES)}.")
    choice_temperature: float | list[float] = setting(4.5, CHOICE_TEMPERATURE, least=0)
    choice: str = setting("linear", "Which randomness in choosing tokens.", choices=CHOICES)
    keep_known: bool = setting(True, KEEP_KNOWN)

    name = "confidence-2025"

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.schedule, list):
            check_mask_ratios(self.schedule, self.steps)
        elif self.schedule not in SCHEDULES:
            raise ValueError(f"schedule is {self.schedule!r}; known: {', '.join(SCHEDULES)}")
        check_choice(self)

    def known_after(self, tokens: int) -> list[int]:
        """How many of `tokens` are known after each step, given ones included."""
        # float32 and `linspace`, as the authors have it: other arithmetic differs by a token.
        ratios = torch.linspace(0, 1, self.steps)
        if self.steps == 1:
            ratios = torch.ones(1)  # the authors' code cannot do one step
        if isinstance(self.schedule, list):
            share = 1 - torch.tensor(self.schedule)
        else:
            share = SCHEDULES[self.schedule](ratios)
        planned = (share * tokens).int().tolist()
        known = [min(tokens, max(count, step + 1)) for step, count in enumerate(planned)]
        return [*known[:-1], tokens]

    def start(self, tokens: Tensor, noise: Noise, num_codes: int | None) -> State:
        state = self.begin(tokens)
        state.plan = (self.known_after(tokens.shape[1]), num_codes)
        return state

    def step(self, state: State, logits: Tensor, step: int, noise: Noise) -> State:
        known_after, num_codes = state.plan
        probs = logits.softmax(-1)
        drawn = noise.categorical(logits, probs)  # [B, n], known tokens included
        score = with_noise(self, probs.gather(-1, drawn[..., None])[..., 0], step, noise)
        score = score.masked_fill(~state.unknown, torch.inf)
        threshold = score.topk(known_after[step]).values[:, -1:]
        chosen = score >= threshold
        redrawn = state.unknown if self.keep_known else torch.ones_like(state.unknown)
        tokens = torch.where(chosen & redrawn, drawn, state.tokens)
        guess = torch.where(redrawn, drawn, state.tokens)
        unknown = tokens == MASK
        if num_codes is not None:
            unknown |= tokens >= num_codes
        return State(tokens, unknown, guess, state.plan)

    def masked_after(self, tokens: int) -> list[float]:
        return [float(tokens - known) for known in self.known_after(tokens)]
