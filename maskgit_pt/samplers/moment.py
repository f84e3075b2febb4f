"""The moment sampler (Hayakawa et al., "Demystifying MaskGIT sampler and beyond", arXiv 2510.04525)."""

import dataclasses

import torch
from torch import Tensor

from maskgit_pt.libml.rng import Noise
from maskgit_pt.samplers.base import (
    CHOICE_TEMPERATURE,
    SCHEDULE,
    STEPS,
    Sampler,
    State,
    check_choice_temperature,
    check_mask_ratios,
    decided_after,
)
from maskgit_pt.settings import setting


@dataclasses.dataclass
class MomentSampler(Sampler):
    """Chooses positions first and draws their tokens then: MaskGIT's sampler, seen from the other end.

    MaskGIT's sampler draws a token x at every position and keeps those whose log p(x) + a * Gumbel is
    largest. Where few of many positions are kept, that is to choose a position with weight sum over x of
    p(x)**b, b = 1 + 1/a, and to draw its token from p**b, normalised: noise on the choice is a softmax
    temperature in disguise. This sampler does just that: the positions with the largest
    log(sum p**b) + Gumbel are decided, and their tokens drawn at temperature 1/b. In the last step nothing is
    left to choose; there, as with MaskGIT's, tokens are drawn from p itself.

    Args:
      steps: T.
      schedule: share of masked tokens after each step, see `base.decided_after`.
      choice_temperature: a in the first step is a little below it and falls linearly to 0, as with the
        official sampler: a = choice_temperature * (1 - (s + 1) / T); or a list of a, one a step.
    """

    steps: int = setting(16, STEPS, least=1)
    schedule: str | list[float] = setting(
        "cosine", f"{SCHEDULE}: arccos, cosine, uniform, pow2.5 (any power), log, exp."
    )
    choice_temperature: float | list[float] = setting(4.5, CHOICE_TEMPERATURE, least=0)

    name = "moment"

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.schedule, list):
            check_mask_ratios(self.schedule, self.steps)
        self._decided_after(torch.tensor([16]))  # complains about an unknown schedule
        check_choice_temperature(self.choice_temperature, self.steps)
        if any(self.exponent(step) is None for step in range(self.steps - 1)):
            raise ValueError(
                f"choice_temperature is {self.choice_temperature}; accepted by the sampler {self.name!r}: "
                "above 0 before the last step"
            )

    def exponent(self, step: int) -> float | None:
        """b = 1 + 1/a of a step; None where a is 0."""
        if isinstance(self.choice_temperature, list):
            temperature = self.choice_temperature[step]
        else:
            temperature = self.choice_temperature * (1 - (step + 1) / self.steps)
        return 1 + 1 / temperature if temperature > 0 else None

    def _decided_after(self, unknown: Tensor) -> Tensor:
        return decided_after(self.schedule, self.steps, unknown)

    def begin(self, tokens: Tensor) -> State:
        state = super().begin(tokens)
        decided = self._decided_after(state.unknown.sum(-1))  # [T, B]
        state.plan = decided.diff(dim=0, prepend=torch.zeros_like(decided[:1]))
        return state

    def step(self, state: State, logits: Tensor, step: int, noise: Noise) -> State:
        last = step == self.steps - 1
        exponent = 1.0 if last else self.exponent(step)
        moments = (exponent * logits.log_softmax(-1)).logsumexp(-1)  # log sum p**b, [B, n]
        scores = moments + noise.gumbel(moments.shape, moments.dtype, moments.device)
        scores = scores.masked_fill(~state.unknown, -torch.inf)
        count = state.unknown.sum(-1) if last else state.plan[step]
        now = state.unknown & self._choose(scores, count[:, None], state.unknown)
        sharpened = exponent * logits
        drawn = noise.categorical(sharpened, sharpened.softmax(-1))
        guess = torch.where(state.unknown, drawn, state.tokens)
        tokens = torch.where(now, drawn, state.tokens)
        return State(tokens, state.unknown & ~now, guess, state.plan)

    def _choose(self, scores: Tensor, count: Tensor, unknown: Tensor) -> Tensor:
        """The positions to decide, bool [B, n]: `count` [B, 1] of them."""
        return places(scores) < count

    def masked_after(self, tokens: int) -> list[float]:
        decided = self._decided_after(torch.tensor([tokens]))[:, 0]
        return [tokens - float(count) for count in decided]


def places(scores: Tensor) -> Tensor:
    """The place of each score [B, n] in its row, the largest first, int64 [B, n]."""
    return scores.argsort(dim=-1, descending=True, stable=True).argsort(-1)
