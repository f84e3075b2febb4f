"""Remasking diffusion sampling, ReMDM (Wang et al., arXiv 2503.00307)."""

import dataclasses
import math

import torch
from torch import Tensor

from maskgit_pt.libml.rng import Noise
from maskgit_pt.samplers.base import MASK, STEPS, Sampler, State
from maskgit_pt.settings import setting

REMASKINGS = ("rescale", "cap", "conf", "loop", "none")


@dataclasses.dataclass
class RemdmSampler(Sampler):
    """Decides each masked token by chance, and masks decided ones again by chance: errors can be mended.

    Time falls from t = 1 to 0; a share alpha(t) = 1 - t is decided. From t to s a masked token is decided
    with probability (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t), and a decided one masked again with
    sigma (equation 6 of the paper), where sigma_max = min(1, (1 - alpha_s) / alpha_t) and

    - "rescale": sigma = eta sigma_max;  "cap": sigma = min(eta, sigma_max);
    - "conf": sigma_max shared out among the decided tokens by softmax(-probability when decided);
    - "loop": sigma = eta while alpha is held at `alpha_on`, between t = `t_on` and `t_off`; else 0;
    - "none": sigma = 0, plain masked diffusion (MDLM).

    The authors' best setting on Google's weights is rescale, eta .05, 64 steps, softmax temperature .8.
    Given tokens are never masked.

    Args:
      steps: T; can be more than there are tokens.
      remasking: one of the above.
      eta: strength of remasking, in [0, 1].
      t_on, t_off, alpha_on: of "loop", 0 < t_off < t_on < 1, 0 < alpha_on < 1.
    """

    steps: int = setting(64, STEPS, least=1)
    remasking: str = setting("rescale", "Which tokens are masked again.", choices=REMASKINGS)
    eta: float = setting(0.05, "Strength of remasking.", least=0)
    t_on: float = setting(0.55, "With --remasking=loop: the time at which the loop begins.")
    t_off: float = setting(0.05, "With --remasking=loop: the time at which the loop ends.")
    alpha_on: float = setting(
        0.9, "With --remasking=loop: the share of decided tokens in the loop."
    )

    name = "remdm"
    more_steps_than_tokens = True

    def __post_init__(self):
        super().__post_init__()
        if self.remasking not in REMASKINGS:
            raise ValueError(f"remasking is {self.remasking!r}; known: {', '.join(REMASKINGS)}")
        if not 0 < self.alpha_on < 1:
            raise ValueError(f"alpha_on is {self.alpha_on}; accepted: between 0 and 1")
        most = 1.0
        if self.remasking == "loop":
            most = min(1.0, (1 - self.alpha_on) / self.alpha_on)
        if not 0 <= self.eta <= most:
            raise ValueError(f"eta is {self.eta}; accepted: 0 to {most:.4g} with {self.remasking}")
        if not 0 < self.t_off < self.t_on < 1:
            raise ValueError(
                f"t_on, t_off are {self.t_on}, {self.t_off}; accepted: 0 < t_off < t_on < 1"
            )

    def alpha(self, t: float) -> float:
        """The share of decided tokens at time t."""
        if self.remasking != "loop":
            return 1 - t
        if t > self.t_on:
            return (1 - t) * self.alpha_on / (1 - self.t_on)
        if t > self.t_off:
            return self.alpha_on
        return 1 - t * (1 - self.alpha_on) / self.t_off

    def rates(self, step: int) -> tuple[float, float]:
        """Probabilities of deciding a masked token and of masking a decided one in this step.

        For "conf" the second is sigma_max, still to be shared out.
        """
        t, s = 1 - step / self.steps, 1 - (step + 1) / self.steps
        alpha_t, alpha_s = self.alpha(t), 1.0 if step == self.steps - 1 else self.alpha(s)
        sigma_max = min(1.0, (1 - alpha_s) / alpha_t) if alpha_t > 0 else 1.0
        sigma = {
            "rescale": self.eta * sigma_max,
            "cap": min(self.eta, sigma_max),
            "conf": sigma_max,
            "loop": self.eta if math.isclose(alpha_t, alpha_s) else 0.0,
            "none": 0.0,
        }[self.remasking]
        decide = self._decide(alpha_t, alpha_s, 0.0 if self.remasking == "conf" else sigma)
        return decide, sigma

    @staticmethod
    def _decide(alpha_t: float, alpha_s: float, sigma: float) -> float:
        return min(1.0, max(0.0, (alpha_s - (1 - sigma) * alpha_t) / (1 - alpha_t)))

    def begin(self, tokens: Tensor) -> State:
        state = super().begin(tokens)
        # Given tokens, and the probability with which each token was decided.
        state.plan = (~state.unknown, torch.zeros(tokens.shape, device=tokens.device))
        return state

    def step(self, state: State, logits: Tensor, step: int, noise: Noise) -> State:
        given, confidence = state.plan
        decide, sigma = self.rates(step)
        probs = logits.softmax(-1)
        drawn = noise.categorical(logits, probs)
        u = noise.uniform(state.tokens.shape, state.tokens.device)  # one change a token at most
        now = state.unknown & (u < decide)
        remask_rate = sigma
        if self.remasking == "conf":
            remask_rate = sigma * self._shares(~state.unknown & ~given, confidence)
        remasked = ~state.unknown & ~given & (u < remask_rate)
        probability = probs.gather(-1, drawn[..., None])[..., 0]
        confidence = torch.where(now, probability.to(confidence.dtype), confidence)
        guess = torch.where(state.unknown, drawn, state.tokens)
        tokens = torch.where(now, drawn, state.tokens).masked_fill(remasked, MASK)
        return State(tokens, (state.unknown & ~now) | remasked, guess, (given, confidence))

    @staticmethod
    def _shares(decided: Tensor, confidence: Tensor) -> Tensor:
        """softmax(-confidence) over the decided tokens; 0 elsewhere. [B, n]."""
        weights = torch.exp(-confidence) * decided
        return weights / weights.sum(-1, keepdim=True).clamp_min(1e-30)

    def masked_after(self, tokens: int) -> list[float]:
        shares = [self.alpha(1 - (step + 1) / self.steps) for step in range(self.steps - 1)]
        return [tokens * (1 - share) for share in shares] + [0.0]
