"""What a training step hides: a share of the tokens and some labels, drawn by (seed, step, sample) alone."""

import dataclasses
import functools
import math
from typing import Any

import ml_collections
import numpy as np
import torch

from maskgit_pt.libml import mask_schedule
from maskgit_pt.nets.mage import masking_ratio_at
from maskgit_pt.samplers.ordered import halton_place
from train import randomness

# Schedules of the 2023 reproduction, beside the official ones: r uniform in [0, 1) -> share to mask.
_OTHER_SCHEDULES = {
    "linear": lambda r: r,
    "square": lambda r: r**2,
    "root": lambda r: np.sqrt(r),
    "arccos": lambda r: np.arccos(r) / (math.pi / 2),
}
# Name -> (inverse distribution function of r and the numbers, default numbers): "beta", "beta:12:3".
_DISTRIBUTIONS = {
    "beta": (lambda r, a, b: np.interp(r, *_beta_table(a, b)), (12.0, 3.0)),
    "truncnorm": (masking_ratio_at, (0.55,)),
}
ORDERS = ("random", "halton", "halton+shift")


@dataclasses.dataclass
class Masks:
    """For b samples of n tokens.

    Attributes:
      masked: bool [b, n]; at least one a sample.
      ratio: float32 [b], the share that was aimed at.
      dropped: bool [b], samples without their label.
      withheld: bool [b, n], masked tokens that MAGE's encoder does not see, as many a sample; or None.
    """

    masked: np.ndarray
    ratio: np.ndarray
    dropped: np.ndarray
    withheld: np.ndarray | None = None


def mask_ratios(uniform: np.ndarray, num_tokens: int, method: str) -> np.ndarray:
    """Shares to mask, float32, of uniform numbers in [0, 1).

    Args:
      uniform: [b].
      num_tokens: n.
      method: "linear", "square", "root", "arccos" (Besnier & Chen 2023), or one of
        `mask_schedule.schedule` ("cosine", "uniform", "pow2", "log", "exp"). Or a distribution:
        "beta:12:3", the share to mask by Beta(a, b), a and b 1 or more (AutoNAT, Ni et al. 2024, arXiv
        2406.05478; "beta" is this one, 0.8 on average); "truncnorm:0.55", the normal one with deviation .25
        around this centre, cut to [0.5, 1] (MAGE, Li et al. 2023; "truncnorm" is this one).

    Raises:
      ValueError: an unknown method, or numbers that do not fit it.
    """
    name, *numbers = method.split(":")
    if name in _DISTRIBUTIONS:
        inverse, defaults = _DISTRIBUTIONS[name]
        return inverse(uniform, *_numbers_of(method, numbers, defaults)).astype(np.float32)
    if method in _OTHER_SCHEDULES:
        return _OTHER_SCHEDULES[method](uniform).astype(np.float32)
    ratio = torch.from_numpy(uniform.astype(np.float32))
    try:
        return mask_schedule.schedule(ratio, num_tokens, method).numpy()
    except ValueError:
        known = ", ".join(
            [*_OTHER_SCHEDULES, *mask_schedule.METHODS, "beta:12:3", "truncnorm:0.55"]
        )
        raise ValueError(
            f"config.mask_scheduling_method is {method!r}; accepted: {known}"
        ) from None


def _numbers_of(method: str, given: list[str], defaults: tuple[float, ...]) -> list[float]:
    """The numbers in the name of a distribution."""
    try:
        numbers = [float(text) for text in given] or list(defaults)
    except ValueError:
        numbers = []
    least, most = (1.0, 1000.0) if method.startswith("beta") else (0.0, 1.0)
    if len(numbers) != len(defaults) or not all(least <= n <= most for n in numbers):
        example = ":".join([method.partition(":")[0], *map("{:g}".format, defaults)])
        raise ValueError(
            f"config.mask_scheduling_method is {method!r}; accepted: numbers as in {example!r}, each "
            f"from {least:g} to {most:g}"
        )
    return numbers


@functools.cache
def _beta_table(a: float, b: float) -> tuple[np.ndarray, np.ndarray]:
    """The distribution function of Beta(a, b) and where it has these values, by the trapezoid rule."""
    x = np.linspace(0.0, 1.0, 2**16 + 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        logarithm = np.where(a > 1, (a - 1) * np.log(x), 0.0)
        logarithm = logarithm + np.where(b > 1, (b - 1) * np.log1p(-x), 0.0)
    density = np.exp(logarithm - logarithm.max())
    below = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return below / below[-1], x


def settings(config: ml_collections.ConfigDict, num_tokens: int) -> dict[str, Any]:
    """How a run masks: the keyword arguments of `draw`.

    Raises:
      ValueError: an unknown schedule or order, or an order with independent masks or a grid that is no
        square.
    """
    if config.mask_order not in ORDERS:
        raise ValueError(
            f"config.mask_order is {config.mask_order!r}; accepted: {', '.join(ORDERS)}"
        )
    if config.independent_masks and config.mask_order != "random":
        raise ValueError(
            f"config.mask_order is {config.mask_order!r} with config.independent_masks; accepted: random"
        )
    found = {
        "num_tokens": num_tokens,
        "method": config.mask_scheduling_method,
        "min_ratio": config.min_masking_rate,
        "independent": config.independent_masks,
        "label_drop_rate": config.label_drop_rate,
        "order": config.mask_order,
        "samples_per_ratio": config.samples_per_mask_ratio,
        "withhold": config.task == "mage",
    }
    draw(0, 0, range(1), **found)
    return found


def draw(
    seed: int,
    step: int,
    rows: range,
    num_tokens: int,
    *,
    method: str = "cosine",
    min_ratio: float = 0.0,
    independent: bool = False,
    label_drop_rate: float = 0.0,
    order: str = "random",
    samples_per_ratio: int = 1,
    withhold: bool = False,
) -> Masks:
    """Draws for some rows of the global batch of a step.

    A row's numbers lie at a fixed place of the step's stream, so that any division of the batch over
    processes gives the same masks.

    Args:
      seed, step: select the stream.
      rows: contiguous row numbers of the global batch.
      num_tokens: n.
      method: see `mask_ratios`.
      min_ratio: smaller ratios are raised to this. The authors publish `min_masking_rate` 0.5 without
        the code that reads it; this is how open-muse reads the same setting.
      independent: False masks exactly ceil(ratio * n) tokens; True each token with probability ratio.
      label_drop_rate: probability to drop a label.
      order: "random" masks any tokens; "halton" those that come last in the order in which
        `samplers.HaltonSampler` decides them, always the same; "halton+shift" lets the order go round from a
        random place of its own in each sample, as the sampler with `shift`.
      samples_per_ratio: so many rows in turn share one ratio, that of the first of them (MAGE: those of a
        GPU).
      withhold: whether to say which ceil(min_ratio * n) of the masked tokens MAGE's encoder does not see.
    """
    width = -(-(num_tokens + 2) // 4) * 4  # Philox counts in blocks of four
    first = rows.start - rows.start % samples_per_ratio
    generator = randomness.generator(seed, "masks", step)
    generator.bit_generator.advance(first * width // 4)
    numbers = generator.random((rows.stop - first, width))  # float64: ties do not happen
    places = np.arange(len(numbers)) // samples_per_ratio * samples_per_ratio
    uniform = numbers[places, 0][rows.start - first :]
    numbers = numbers[rows.start - first :]
    ratio = mask_ratios(uniform, num_tokens, method).clip(min_ratio, 1.0)
    scores = _scores(numbers[:, 2 : num_tokens + 2], order)
    if independent:
        masked = scores < ratio[:, None]
        masked |= scores == scores.min(-1, keepdims=True)
    else:
        masked = _least(scores, ratio)
    withheld = _least(scores, np.full_like(ratio, min_ratio)) if withhold else None
    return Masks(masked, ratio, numbers[:, 1] < label_drop_rate, withheld)


def _scores(uniform: np.ndarray, order: str) -> np.ndarray:
    """Numbers [b, n] by which tokens are masked, the least first."""
    if order == "random":
        return uniform
    n = uniform.shape[1]
    place = halton_place(n, torch.device("cpu")).numpy()
    if order == "halton+shift":
        place = (place + np.floor(uniform[:, :1] * n).astype(np.int64)) % n
    return np.broadcast_to(n - 1 - place, uniform.shape)


def _least(scores: np.ndarray, ratio: np.ndarray) -> np.ndarray:
    """bool [b, n], the ceil(ratio * n) least of each row; at least one."""
    n = scores.shape[1]
    counts = np.ceil(ratio * n).astype(np.int64).clip(1, n)
    limits = np.take_along_axis(np.sort(scores, -1), counts[:, None] - 1, -1)
    return scores <= limits
