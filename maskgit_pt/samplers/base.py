"""What all samplers share: a state, a step, and the loop around it.

Axes: B batch, n image tokens (h*w, no class token), K codes.
"""

import abc
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from maskgit_pt.libml.rng import Noise, Rng, noise_of

MASK = -1
# What settings that several samplers have do.
STEPS = "Decoding steps."
SCHEDULE = "How fast tokens are decided"
CHOICE_TEMPERATURE = "Gumbel noise on the confidence by which tokens are chosen."

# Maps tokens [B, n] (-1 where masked) and the number of the step to logits [B, n, K].
Predict = Callable[[Tensor, int], Tensor]


@dataclasses.dataclass
class State:
    """What a sampler knows between two steps.

    Attributes:
      tokens: int64 [B, n], what the network sees next, -1 where masked.
      unknown: bool [B, n], what is still to be decided.
      guess: int64 [B, n], the whole guess of the last step; after the last step the result.
      plan: whatever the sampler worked out beforehand.
    """

    tokens: Tensor
    unknown: Tensor
    guess: Tensor
    plan: Any = None


def check_choice_temperature(value: float) -> None:
    """Raises ValueError unless 0 <= value < infinity."""
    if not 0 <= value < math.inf:
        raise ValueError(f"choice_temperature is {value}; accepted: 0 or more")


class Sampler(abc.ABC):
    """Fills in masked tokens in `steps` steps. Subclasses are dataclasses: their fields are the settings.

    Nothing between two steps waits for the device.
    """

    name: str  # on the command line
    steps: int
    more_steps_than_tokens = False  # whether that makes sense

    def begin(self, tokens: Tensor) -> State:
        """The state before the first step; masked tokens are unknown."""
        return State(tokens, tokens == MASK, tokens)

    @abc.abstractmethod
    def step(self, state: State, logits: Tensor, step: int, noise: Noise) -> State:
        """Decides tokens.

        Args:
          state: before the step.
          logits: float32 or float64 [B, n, K].
          step: its number, from 0.
          noise: where draws come from.
        """

    @abc.abstractmethod
    def masked_after(self, tokens: int) -> list[float]:
        """How many of so many unknown tokens are still unknown after each step, as planned."""

    def last_step(self, state: State, start_step: int = 0) -> int:
        """The number of the last step that has something to do, seen before the first one."""
        return self.steps - 1

    def run(
        self, tokens: Tensor, predict: Predict, rng: Rng, start_step: int = 0
    ) -> Iterator[State]:
        """Yields the state after every step; nothing where no step has something to do.

        Args:
          tokens: int64 [B, n], -1 where masked; everything else is kept.
          predict: the network.
          rng: see `libml.rng.noise_of`.
          start_step: the first step to do; above 0 for editing, where part of the image is known.

        Raises:
          ValueError: `tokens` is not 2-D, or not 0 <= start_step < steps.
        """
        if tokens.ndim != 2:
            raise ValueError(f"tokens has shape {list(tokens.shape)}; accepted: [B, h*w]")
        if not 0 <= start_step < self.steps:
            raise ValueError(
                f"start_step is {start_step}; accepted: 0 to steps - 1 = {self.steps - 1}"
            )
        noise = noise_of(rng)
        state = self.begin(tokens)
        for step in range(start_step, self.last_step(state, start_step) + 1):
            logits = predict(state.tokens, step)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            state = self.step(state, logits, step, noise)
            yield state
