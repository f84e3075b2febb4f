"""Classifier-free guidance: logits = (1 + w) conditional - w unconditional, w changing over the steps.

In the literature that writes g conditional + (1 - g) unconditional, g is 1 + w.
"""

import math

from torch import Tensor

SCHEDULES = ("constant", "linear", "linear-r", "power-cosine<power>, e.g. power-cosine4")
_DEFAULT_POWER = 4.0  # MDT's


def weights(schedule: str, scale: float, masked_after: list[float], tokens: int) -> list[float]:
    """The weight w of every step.

    Args:
      schedule: "constant": w everywhere; "linear": rising from 0 to w over the steps, w s / (S - 1) (Besnier
        & Chen 2023); "linear-r": w times the share decided after the step (xyfJASON/maskgit-pytorch);
        "power-cosine": w (1 - cos(pi x**power)) / 2 at x = s / (S - 1) (MDT, Gao et al. 2023, whose power
        is 4: late).
      scale: w.
      masked_after: tokens still masked after each step, `Sampler.masked_after`.
      tokens: how many there are.

    Raises:
      ValueError: an unknown schedule.
    """
    steps = len(masked_after)
    progress = [step / (steps - 1) if steps > 1 else 1.0 for step in range(steps)]
    if schedule == "constant":
        return [scale] * steps
    if schedule == "linear":
        return [scale * x for x in progress]
    if schedule == "linear-r":
        return [scale * (tokens - masked) / tokens for masked in masked_after]
    power = _power(schedule)
    return [scale * (1 - math.cos(math.pi * x**power)) / 2 for x in progress]


def _power(schedule: str) -> float:
    name, _, power = schedule.partition("power-cosine")
    try:
        value = float(power or _DEFAULT_POWER)
    except ValueError:
        value = 0.0
    if name or not schedule or not 0 < value < math.inf:
        raise ValueError(f"guidance schedule is {schedule!r}; known: {', '.join(SCHEDULES)}")
    return value


def guide(conditional: Tensor, unconditional: Tensor, weight: float | Tensor) -> Tensor:
    """(1 + w) conditional - w unconditional."""
    return (1 + weight) * conditional - weight * unconditional
