"""Samplers that decide tokens in an order fixed beforehand, whatever the network says."""

import abc
import dataclasses
import functools
import math

import torch
from torch import Tensor

from maskgit_pt.libml.rng import Noise
from maskgit_pt.samplers.base import (
    KEEP_KNOWN,
    SCHEDULE,
    STEPS,
    Sampler,
    State,
    check_mask_ratios,
    decided_after,
)
from maskgit_pt.settings import setting


@dataclasses.dataclass
class OrderedSampler(Sampler):
    """Step by step the next tokens of the order; what is decided stays.

    Args:
      steps: T.
      schedule: share of masked tokens after each step, see `base.decided_after`.
    """

    steps: int = setting(32, STEPS, least=1)
    schedule: str | list[float] = setting(
        "arccos", f"{SCHEDULE}: arccos, cosine, uniform, pow2.5 (any power), log, exp."
    )

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.schedule, list):
            check_mask_ratios(self.schedule, self.steps)
        self._decided_after(torch.tensor([16]))  # complains about an unknown schedule

    @abc.abstractmethod
    def order(self, shape: torch.Size, noise: Noise, device: torch.device) -> Tensor:
        """A number for each position, [B, n] or [n]: lower ones come first."""

    def _decided_after(self, unknown: Tensor) -> Tensor:
        return decided_after(self.schedule, self.steps, unknown)

    def begin(self, tokens: Tensor) -> State:
        state = super().begin(tokens)
        state.plan = (self._decided_after(state.unknown.sum(-1)), None)
        return state

    def step(self, state: State, logits: Tensor, step: int, noise: Noise) -> State:
        decided, rank = state.plan
        if rank is None:
            # The place of each unknown token in the order of those that were unknown at the start.
            order = self.order(state.tokens.shape, noise, state.tokens.device)
            order = order.masked_fill(~state.unknown, torch.inf).expand_as(state.tokens)
            rank = order.argsort(dim=-1, stable=True).argsort(-1)
        drawn = noise.categorical(logits, logits.softmax(-1))
        now = state.unknown & (rank < decided[step][:, None])
        guess = torch.where(state.unknown, drawn, state.tokens)
        tokens = torch.where(now, drawn, state.tokens)
        return State(tokens, state.unknown & ~now, guess, (decided, rank))

    def masked_after(self, tokens: int) -> list[float]:
        decided = self._decided_after(torch.tensor([tokens]))[:, 0]
        return [tokens - float(count) for count in decided]


@dataclasses.dataclass
class RandomSampler(OrderedSampler):
    """Every sample in a random order of its own: what confidence is compared with."""

    name = "random"

    def order(self, shape: torch.Size, noise: Noise, device: torch.device) -> Tensor:
        return noise.uniform(shape, device)


@dataclasses.dataclass
class HaltonSampler(OrderedSampler):
    """The order of a Halton sequence, which spreads the tokens of a step over the image.

    Besnier et al., "Halton scheduler for masked generative image transformer", ICLR 2025. Their results are
    with 32 steps and constant guidance of .5 to 1.5 (see docs/weights.md); their quick start has guidance 2,
    `shift`, and logits multiplied by 1 to 1.2 (`Decoding.logit_scale_last`).

    Args:
      shift: start every sample at a random place of the order, which goes round (the authors' `randomize`).
      keep_known: leave known tokens out of the order, so that one can edit. Without it every position is
        drawn when its turn comes, and known tokens are only seen until then, as in the authors' code.
    """

    shift: bool = setting(False, "Start each sample at a random place of the order.")
    keep_known: bool = setting(True, KEEP_KNOWN)

    name = "halton"
    more_steps_than_tokens = True  # the surplus does nothing, as in the authors' code

    def begin(self, tokens: Tensor) -> State:
        state = super().begin(tokens)
        if not self.keep_known:
            state.unknown = torch.ones_like(state.unknown)
            state.plan = (self._decided_after(state.unknown.sum(-1)), None)
        return state

    def order(self, shape: torch.Size, noise: Noise, device: torch.device) -> Tensor:
        B, n = shape
        place = halton_place(n, device)
        if self.shift:
            start = (noise.uniform((B, 1), device) * n).long()  # [B, 1]
            place = (place + start) % n
        return place.float()


@functools.cache
def halton_place(tokens: int, device: torch.device) -> Tensor:
    """The place of each position in the Halton order, int64 [tokens].

    It is made once for each device, so that no step copies it there.

    Raises:
      ValueError: the tokens are no square image.
    """
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise ValueError(f"the Halton order is for square images; {tokens} tokens are not one")
    with torch.inference_mode(False):
        return halton_order(side).argsort().to(device)


def halton_order(side: int) -> Tensor:
    """The positions (row * side + column) of a square grid in Halton order, int64 [side * side].

    Point k = 1, 2, ... has row floor(side * phi2(k)) and column floor(side * phi3(k)), phi being the
    radical inverse; each cell counts at its first visit. (The authors' code stops after 10,000 points: from
    side 64 on some cells are then never visited.)
    """
    return torch.tensor(_halton_cells(side))


@functools.cache
def _halton_cells(side: int) -> tuple[int, ...]:
    cells: dict[int, None] = {}
    point = 0
    while len(cells) < side * side:
        point += 1
        cells.setdefault(_radical_inverse(point, 2, side) * side + _radical_inverse(point, 3, side))
    return tuple(cells)


def _radical_inverse(k: int, base: int, side: int) -> int:
    """floor(side * phi(k)) in whole numbers: phi mirrors the digits of k at the point."""
    numerator, denominator = 0, 1
    while k:
        k, digit = divmod(k, base)
        numerator, denominator = numerator * base + digit, denominator * base
    return side * numerator // denominator
