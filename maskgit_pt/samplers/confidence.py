"""The confidence sampler of the 2023 reproduction (Besnier & Chen, arXiv 2310.14400)."""

import dataclasses
import math

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

# Share of the tokens that a step decides, before normalisation, at r falling from 1 to 0.
SCHEDULES = {
    "root": lambda r: 1 - r.sqrt(),
    "linear": lambda r: 1 - r,
    "square": lambda r: 1 - r**2,
    "cosine": lambda r: torch.cos(r * math.pi * 0.5),
    "arccos": lambda r: torch.arccos(r) / (math.pi * 0.5),
}
_DI4C = "di4c-"  # before the name of a schedule
CHOICES = ("linear", "warm_up", "random", "none")
_WARM_UP_STEPS = 2


@dataclasses.dataclass
class ConfidenceSampler(Sampler):
    """Decides a planned number of tokens a step, the most confident ones; what is decided stays.

    The report's settings: 8 steps and choice_temperature 4.5 at 256 px, 15 steps and 7 at 512 px, both
    with "arccos" and guidance 3 and 2.8 rising linearly. (Its `sm_temp` multiplies the logits: it is
    one over our softmax temperature.)

    Args:
      steps: T.
      schedule: of `SCHEDULES`: root, linear, square, cosine, arccos, each step's count being in proportion to
        it; "di4c-" and one of these, the share of masked tokens after each step, as Di4C's code has it (its
        students: 4 steps, di4c-arccos, guidance 6, linear); or a list of such shares.
      choice_temperature: factor of the Gumbel noise on the log confidences, only for "linear", which makes
        it fall; or a list of the factors, one a step.
      choice: "linear", noise that falls to 0 at the last step; "random", confidences are random numbers;
        "warm_up", random for two steps, then the plain probability; "none", the plain probability.
    """

    steps: int = setting(12, STEPS, least=1)
    schedule: str | list[float] = setting(
        "arccos", f"{SCHEDULE}: {', '.join(SCHEDULES)}; {_DI4C}arccos."
    )
    choice_temperature: float | list[float] = setting(4.5, CHOICE_TEMPERATURE, least=0)
    choice: str = setting("linear", "Which randomness in choosing tokens.", choices=CHOICES)

    name = "confidence"

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.schedule, list):
            check_mask_ratios(self.schedule, self.steps)
        elif self.schedule.removeprefix(_DI4C) not in SCHEDULES:
            known = f"{', '.join(SCHEDULES)}, each also with {_DI4C} before it"
            raise ValueError(f"schedule is {self.schedule!r}; known: {known}")
        check_choice(self)

    def counts(self, tokens: int) -> list[int]:
        """How many tokens each step decides; sums to `tokens`.

        With many steps for few tokens the last can be 0 or negative: sampling ends before it.
        """
        if self.steps == 1:
            return [tokens]
        if isinstance(self.schedule, list):
            decided = decided_after(self.schedule, self.steps, torch.tensor([tokens]))
            return decided[:, 0].diff(prepend=torch.tensor([0])).tolist()
        if self.schedule.startswith(_DI4C):
            share = SCHEDULES[self.schedule.removeprefix(_DI4C)]
            masked = (share(torch.linspace(0, 1, self.steps + 1)) * tokens).round().int()
            counts = (-masked.diff()).clamp(min=1).tolist()
            counts[-1] += tokens - sum(counts)
            return counts
        share = SCHEDULES[self.schedule](torch.linspace(1, 0, self.steps))
        counts = (share / share.sum() * tokens).round().clamp(min=1).int().tolist()
        counts[-1] += tokens - sum(counts)
        return counts

    def begin(self, tokens: Tensor, unknown: Tensor | None = None) -> State:
        """As for all samplers; `unknown` bool [B, n] marks more than the masked tokens as unknown."""
        unknown = tokens < 0 if unknown is None else unknown
        most = int(unknown.sum(-1).max()) if unknown.numel() else 0
        return State(tokens, unknown, tokens, plan=(self.counts(tokens.shape[1]), most))

    def last_step(self, state: State, start_step: int = 0) -> int:
        counts, most = state.plan
        decided, last = 0, start_step - 1
        # Steps left out at the start are missed at the end: the last guess is whole all the same.
        for count in counts[start_step:]:
            if decided >= most or (count < 1 and last >= start_step):
                break
            decided += count
            last += 1
        return last

    def step(self, state: State, logits: Tensor, step: int, noise: Noise) -> State:
        probs = logits.softmax(-1)
        drawn = noise.categorical(logits, probs)  # [B, n], known tokens included
        confidence = probs.gather(-1, drawn[..., None])[..., 0]
        confidence = with_noise(self, confidence, step, noise)
        confidence = confidence.masked_fill(~state.unknown, -torch.inf)
        # Samples with fewer unknown tokens have a threshold of -inf and decide all of them.
        count = max(state.plan[0][step], 1)
        top = confidence.topk(min(count, confidence.shape[1]))
        written = state.unknown & (confidence >= top.values[:, -1:])
        # On ties more tokens are written than leave the mask, as in the report's code: the network sees
        # them, and they may be drawn again.
        tokens = torch.where(written, drawn, state.tokens)
        unknown = state.unknown.scatter(1, top.indices, False)
        return State(tokens, unknown, torch.where(state.unknown, drawn, state.tokens), state.plan)

    def masked_after(self, tokens: int) -> list[float]:
        decided = torch.tensor(self.counts(tokens)).cumsum(0)
        return [max(0.0, tokens - float(count)) for count in decided]


def check_choice(sampler: Sampler) -> None:
    """Raises ValueError unless its `choice` is one of `CHOICES` and its `choice_temperature` makes sense."""
    if sampler.choice not in CHOICES:
        raise ValueError(f"choice is {sampler.choice!r}; known: {', '.join(CHOICES)}")
    check_choice_temperature(sampler.choice_temperature, sampler.steps)


def with_noise(sampler: Sampler, confidence: Tensor, step: int, noise: Noise) -> Tensor:
    """Adds noise to the probabilities [B, n], as `choice` and `choice_temperature` of the sampler say."""
    if sampler.choice == "linear":
        scale = sampler.choice_temperature
        if isinstance(scale, list):
            scale = scale[step]
        else:
            scale *= 1 - (step / (sampler.steps - 1) if sampler.steps > 1 else 1.0)
        gumbel = noise.gumbel(confidence.shape, confidence.dtype, confidence.device)
        return torch.log(confidence) + scale * gumbel
    if sampler.choice == "random" or (sampler.choice == "warm_up" and step < _WARM_UP_STEPS):
        return noise.uniform(confidence.shape, confidence.device)
    return confidence
