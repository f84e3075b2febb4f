"""What all samplers share: a state, a step, and the loop around it.

Axes: B batch, n image tokens (h*w, no class token), K codes.
"""

import abc
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from maskgit_pt.graphs import to_device
from maskgit_pt.libml import mask_schedule
from maskgit_pt.libml.rng import Noise, Rng, noise_of
from maskgit_pt.settings import check

MASK = -1
# What settings that several samplers have do.
STEPS = "Decoding steps."
SCHEDULE = "How fast tokens are decided"
CHOICE_TEMPERATURE = "Gumbel noise on the confidence by which tokens are chosen."
KEEP_KNOWN = (
    "Tokens that are known keep their values. Without it all are drawn again in their turn, as in the code "
    "of Halton-MaskGIT."
)

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

    def to(self, device: torch.device) -> "State":
        """The same on another device, without waiting for the copies."""
        fields = (self.tokens, self.unknown, self.guess, self.plan)
        return State(*pytree.tree_map_only(Tensor, lambda x: to_device(x, device), fields))


def check_choice_temperature(value: float | list[float], steps: int) -> None:
    """Raises ValueError unless 0 <= value < infinity, or that holds of a list with one value a step."""
    for number in per_step("choice_temperature", value, steps):
        if not 0 <= number < math.inf:
            raise ValueError(f"choice_temperature is {number}; accepted: 0 or more")


def check_mask_ratios(schedule: list[float], steps: int) -> None:
    """Raises ValueError unless a schedule that is a list has one share a step, in [0, 1] and not rising."""
    ratios = per_step("schedule", schedule, steps)
    if not all(1 >= a >= b >= 0 for a, b in itertools.pairwise([1.0, *ratios])):
        raise ValueError(
            f"schedule is {ratios}; accepted: shares of masked tokens after each step, in [0, 1], none "
            "above the one before"
        )


def per_step(name: str, value: float | list[float], steps: int) -> list[float]:
    """Returns the value of every step of a setting that is one number or a list.

    Raises:
      ValueError: the list has not one value a step.
    """
    if not isinstance(value, list):
        return [value] * steps
    if len(value) != steps:
        raise ValueError(f"{name} has {len(value)} values; accepted: one a step, {steps}")
    return value


def decided_after(schedule: str | list[float], steps: int, unknown: Tensor) -> Tensor:
    """Returns how many of `unknown` [B] tokens are decided after each step, int64 [T, B].

    Args:
      schedule: "arccos", one of `mask_schedule.schedule`, or the share of masked tokens after each step.
        In the last step all that are left are decided, and in each step one at least.
      steps: T.
      unknown: int64 [B].
    """
    at_least = torch.arange(1, steps + 1, device=unknown.device)[:, None]
    if schedule == "arccos":
        # float32, as Besnier et al. compute it: at 576 tokens an even T has 191 after half the steps, where
        # exact arithmetic has 192.
        ratios = torch.arange(1, steps + 1)[:, None] / steps  # [T, 1]
        share = 1 - torch.arccos(ratios) / (math.pi * 0.5)
        decided = (share.to(unknown.device) * unknown).long()
    else:
        if isinstance(schedule, list):
            masked = torch.tensor(schedule)[:, None]
        else:
            masked = mask_schedule.decoding_schedule(steps, unknown, schedule)
        masked = (masked.to(unknown.device) * unknown).nan_to_num(0.0)
        decided = unknown - torch.floor(masked).long()
    decided = torch.maximum(decided, at_least).minimum(unknown)
    decided[-1] = unknown
    return decided


class Sampler(abc.ABC):
    """Fills in masked tokens in `steps` steps. Subclasses are dataclasses: their fields are the settings.

    Nothing between two steps waits for the device.

    Raises:
      ValueError: see `settings.check`; a subclass with a `__post_init__` calls this one's.
    """

    name: str  # on the command line
    steps: int
    more_steps_than_tokens = False  # whether that makes sense
    draws_at_start = False  # whether `start` uses the noise
    can_edit = True  # whether it can start from an image that is known in part

    def __post_init__(self):
        check(self)

    def begin(self, tokens: Tensor) -> State:
        """The state before the first step; masked tokens are unknown."""
        return State(tokens, tokens == MASK, tokens)

    def start(self, tokens: Tensor, noise: Noise, num_codes: int | None) -> State:
        """As `begin`, for samplers that need noise or the number of codes for it."""
        return self.begin(tokens)

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
        self,
        tokens: Tensor,
        predict: Predict,
        rng: Rng,
        start_step: int = 0,
        num_codes: int | None = None,
        device: torch.device | None = None,
    ) -> Iterator[State]:
        """Yields the state after every step; nothing where no step has something to do.

        Args:
          tokens: int64 [B, n], -1 where masked; everything else is kept.
          predict: the network.
          rng: see `libml.rng.noise_of`.
          start_step: the first step to do; above 0 for editing, where part of the image is known.
          num_codes: the size of the codebook; a network may have logits beyond it. Only some samplers need
            to know it.
          device: where to decode. Default: where the tokens are. With tokens on the CPU a GPU is never
            waited for, not even for what is worked out before the first step.

        Raises:
          ValueError: `tokens` is not 2-D, or not 0 <= start_step < steps.
        """
        noise = noise_of(rng)
        if self.draws_at_start and device is not None:
            tokens = to_device(tokens, device)
        state, last = self.prepare(tokens, start_step, noise, num_codes)
        yield from self.decide(state.to(device or tokens.device), predict, noise, start_step, last)

    def prepare(
        self, tokens: Tensor, start_step: int, noise: Noise, num_codes: int | None
    ) -> tuple[State, int]:
        """The state before the first step, where the tokens are, and the number of the last step."""
        if tokens.ndim != 2:
            raise ValueError(f"tokens has shape {list(tokens.shape)}; accepted: [B, h*w]")
        if not 0 <= start_step < self.steps:
            raise ValueError(
                f"start_step is {start_step}; accepted: 0 to steps - 1 = {self.steps - 1}"
            )
        state = self.start(tokens, noise, num_codes)
        return state, self.last_step(state, start_step)

    def decide(
        self, state: State, predict: Predict, noise: Noise, first_step: int, last_step: int
    ) -> Iterator[State]:
        """Yields the state after each of these steps; never waits for the device."""
        for step in range(first_step, last_step + 1):
            logits = predict(state.tokens, step)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            state = self.step(state, logits, step, noise)
            yield state
