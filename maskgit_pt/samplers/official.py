"""The official parallel decoding (Chang et al. 2022, section 3.2; official `parallel_decode.py`)."""

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from maskgit_pt.libml import mask_schedule, parallel_decode
from maskgit_pt.libml.rng import Noise
from maskgit_pt.samplers.base import (
    CHOICE_TEMPERATURE,
    SCHEDULE,
    STEPS,
    Sampler,
    State,
    check_choice_temperature,
    check_mask_ratios,
)
from maskgit_pt.settings import setting


@dataclasses.dataclass
class OfficialSampler(Sampler):
    """Keeps the most confident tokens of every step and masks the others again.

    With a JAX key the tokens are those of `parallel_decode.decode`, class position in the noise included.

    Args:
      steps: T.
      schedule: share of masked tokens, see `mask_schedule.schedule`; or a list of it, one a step.
      choice_temperature: factor of the Gumbel noise on the log confidences, falling linearly to 0; or a list
        of the factors, one a step.
    """

    steps: int = setting(16, STEPS, least=1)
    schedule: str | list[float] = setting(
        "cosine", f"{SCHEDULE}: cosine, uniform, pow2.5 (any power), log, exp."
    )
    choice_temperature: float | list[float] = setting(4.5, CHOICE_TEMPERATURE, least=0)

    name = "official"

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.schedule, list):
            check_mask_ratios(self.schedule, self.steps)
        else:
            mask_schedule.schedule(0.5, 16, self.schedule)  # complains about an unknown one
        check_choice_temperature(self.choice_temperature, self.steps)

    def begin(self, tokens: Tensor) -> State:
        state = super().begin(tokens)
        state.plan = self._plan(state.unknown.sum(-1))
        return state

    def _plan(self, unknown: Tensor) -> tuple[Tensor, Tensor]:
        """`parallel_decode.plan`, with the lists that it does not know."""
        listed = isinstance(self.schedule, list), isinstance(self.choice_temperature, list)
        mask_lens, temperatures = parallel_decode.plan(
            unknown,
            self.steps,
            0.0 if listed[1] else self.choice_temperature,
            "cosine" if listed[0] else self.schedule,
        )
        if listed[0]:
            ratios = torch.tensor(self.schedule, device=unknown.device)[:, None]
            mask_lens = torch.floor(unknown * ratios)
        if listed[1]:
            temperatures = torch.tensor(self.choice_temperature, device=unknown.device)[:, None]
        return mask_lens, temperatures

    def step(self, state: State, logits: Tensor, step: int, noise: Noise) -> State:
        tokens, unknown = state.tokens, state.unknown
        # The official noise covers the class token, which stands first; its draws are thrown away.
        class_position = getattr(noise, "covers_class_token", False)
        if class_position:
            tokens, unknown = F.pad(tokens, (1, 0)), F.pad(unknown, (1, 0))
            logits = F.pad(logits, (0, 0, 1, 0))
        mask_lens, temperatures = state.plan
        guess, tokens = parallel_decode.decide(
            tokens, unknown, logits, mask_lens[step], temperatures[step], noise
        )
        if class_position:
            guess, tokens = guess[:, 1:], tokens[:, 1:]
        # After the last step, too, one token is still masked in `tokens`; the guess is whole.
        return State(tokens, tokens < 0, guess, state.plan)

    def masked_after(self, tokens: int) -> list[float]:
        mask_lens, _ = self._plan(torch.tensor([tokens]))
        counts, masked = [], float(tokens)
        for count in mask_lens[:-1, 0].tolist():
            masked = max(min(count, masked - 1), min(1.0, masked))  # as in `decide`
            counts.append(masked)
        return [*counts, 0.0]  # the last guess is whole
