"""The sampler of UnlockMGM (Hur et al., NeurIPS 2024, arXiv 2410.13136; JiwanHur/UnlockMGM)."""

import dataclasses
import math

import torch
from torch import Tensor

from maskgit_pt.libml.rng import Noise, TorchNoise
from maskgit_pt.samplers.base import (
    CHOICE_TEMPERATURE,
    MASK,
    SCHEDULE,
    STEPS,
    Sampler,
    State,
    check_choice_temperature,
    check_mask_ratios,
    per_step,
)
from maskgit_pt.settings import setting

SCHEDULES = {
    "cosine": lambda r: torch.cos(r * math.pi * 0.5),
    "linear": lambda r: (1 - r).clamp(1e-6, 1.0),
    "sqrt": lambda r: (1 - r.sqrt()).clamp(1e-6, 1.0),
}
_LEAST = 1e-20  # what logarithms are taken of


@dataclasses.dataclass
class SelfGuidanceSampler(Sampler):
    """Parallel decoding as the authors of self-guidance run it, with its oddities kept.

    - The temperature of the choice compounds: step k of T has tau (1 - 1/T) ... (1 - k/T), not
      tau (1 - k/T). 25 over 18 steps is 23.6, 21.0, 17.5, 13.6, 9.8, 6.5, ...
    - The confidence of a known token is the largest float, whose logarithm is 88.7 in float32, not
      infinite: at a high temperature a known token, a given one as well, can be masked again.

    Their settings: 18 steps, scale 1, temperature 25 at 256 px and 45 at 512 px. Scale 0 is their
    plain sampler; more needs a `SelfGuidedTransformer`. An image without unknown tokens, which their
    code never has, stays as it is.

    Args:
      steps: T.
      schedule: share of masked tokens, of `SCHEDULES`: cosine, linear, sqrt; or a list, the share after
        each step.
      choice_temperature: tau; or a list of the temperatures, one a step, which then do not compound.
      added_temperature: added to tau at every step, which their plain sampler can do.
      self_guidance: s; or a list, one a step.
    """

    steps: int = setting(18, STEPS, least=1)
    schedule: str | list[float] = setting("cosine", f"{SCHEDULE}: {', '.join(SCHEDULES)}.")
    choice_temperature: float | list[float] = setting(25.0, CHOICE_TEMPERATURE, least=0)
    added_temperature: float = setting(0.0, "Added to --choice_temperature at every step.", least=0)
    self_guidance: float | list[float] = setting(
        1.0,
        "Scale s of the guidance by the network's own second pass; above 0 it needs a network with the "
        "module for it.",
        least=0,
    )

    name = "self-guidance"
    more_steps_than_tokens = True

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.schedule, list):
            check_mask_ratios(self.schedule, self.steps)
        elif self.schedule not in SCHEDULES:
            raise ValueError(f"schedule is {self.schedule!r}; known: {', '.join(SCHEDULES)}")
        check_choice_temperature(self.choice_temperature, self.steps)
        for scale in self.scales():
            if not 0 <= scale < math.inf:
                raise ValueError(f"self_guidance is {scale}; accepted: 0 or more")

    def counts(self, tokens: int) -> list[int]:
        """How many of so many tokens the schedule masks after each step; -1 at the end of cosine."""
        if isinstance(self.schedule, list):
            shares = torch.tensor(self.schedule)
        else:
            steps = range(1, self.steps + 1)
            shares = SCHEDULES[self.schedule](torch.tensor([k / self.steps for k in steps]))
        return torch.floor(tokens * shares).int().tolist()

    def scales(self) -> list[float]:
        """s of every step."""
        return per_step("self_guidance", self.self_guidance, self.steps)

    def temperatures(self) -> list[float]:
        """tau of every step."""
        if isinstance(self.choice_temperature, list):
            return [tau + self.added_temperature for tau in self.choice_temperature]
        result, tau = [], self.choice_temperature
        for step in range(1, self.steps + 1):
            tau = tau * (1 - step / self.steps) + self.added_temperature
            result.append(tau)
        return result

    def begin(self, tokens: Tensor) -> State:
        state = super().begin(tokens)
        state.plan = self.counts(tokens.shape[1]), self.temperatures()
        return state

    def step(self, state: State, logits: Tensor, step: int, noise: Noise) -> State:
        counts, temperatures = state.plan
        probs = logits.softmax(-1)
        guess = torch.where(state.unknown, _draw(logits, probs, noise), state.tokens)
        confidence = probs.gather(-1, guess.clamp(0, probs.shape[-1] - 1)[..., None])[..., 0]
        known = torch.finfo(confidence.dtype).max
        confidence = confidence.masked_fill(~state.unknown, known)
        uniform = noise.uniform(guess.shape, guess.device).to(confidence.dtype)
        gumbel = -_log(-_log(uniform))
        score = _log(confidence) + temperatures[step] * gumbel
        most = state.unknown.sum(-1, keepdim=True) - 1  # [B, 1]
        count = most.clamp(max=counts[step]).clamp(min=1)
        cut = score.sort(-1).values.gather(-1, count.clamp(max=guess.shape[1] - 1))
        unknown = (score < cut) & state.unknown.any(-1, keepdim=True)
        return State(guess.masked_fill(unknown, MASK), unknown, guess, state.plan)

    def masked_after(self, tokens: int) -> list[float]:
        counts, masked = [], tokens
        for count in self.counts(tokens)[:-1]:
            masked = max(min(count, masked - 1), 1)
            counts.append(float(masked))
        return [*counts, 0.0]  # the last guess is whole


def _draw(logits: Tensor, probs: Tensor, noise: Noise) -> Tensor:
    """One code a position; PyTorch's noise sample by sample, as the authors' calls of multinomial."""
    if isinstance(noise, TorchNoise):
        rows = zip(logits, probs, strict=True)
        return torch.stack([noise.categorical(*row) for row in rows])
    return noise.categorical(logits, probs)


def _log(x: Tensor) -> Tensor:
    return x.clamp(min=_LEAST).log()
