"""What a training step hides: a share of the tokens and some labels, drawn by (seed, step, sample) alone."""

import dataclasses
import math
from typing import Any

import ml_collections
import numpy as np
import torch

from maskgit_pt.libml import mask_schedule
from train import randomness

# Schedules of the 2023 reproduction, beside the official ones: r uniform in [0, 1) -> share to mask.
_OTHER_SCHEDULES = {
    "linear": lambda r: r,
    "square": lambda r: r**2,
    "root": lambda r: np.sqrt(r),
    "arccos": lambda r: np.arccos(r) / (math.pi / 2),
}


@dataclasses.dataclass
class Masks:
    """For b samples of n tokens.

    Attributes:
      masked: bool [b, n]; at least one a sample.
      ratio: float32 [b], the share that was aimed at.
      dropped: bool [b], samples without their label.
    """

    masked: np.ndarray
    ratio: np.ndarray
    dropped: np.ndarray


def mask_ratios(uniform: np.ndarray, num_tokens: int, method: str) -> np.ndarray:
    """Shares to mask, float32, of uniform numbers in [0, 1).

    Args:
      uniform: [b].
      num_tokens: n.
      method: "linear", "square", "root", "arccos" (Besnier & Chen 2023), or one of
        `mask_schedule.schedule` ("cosine", "uniform", "pow2", "log", "exp").

    Raises:
      ValueError: an unknown method.
    """
    if method in _OTHER_SCHEDULES:
        return _OTHER_SCHEDULES[method](uniform).astype(np.float32)
    ratio = torch.from_numpy(uniform.astype(np.float32))
    try:
        return mask_schedule.schedule(ratio, num_tokens, method).numpy()
    except ValueError:
        known = ", ".join([*_OTHER_SCHEDULES, *mask_schedule.METHODS])
        raise ValueError(
            f"config.mask_scheduling_method is {method!r}; accepted: {known}"
        ) from None


def settings(config: ml_collections.ConfigDict, num_tokens: int) -> dict[str, Any]:
    """How a run masks: the keyword arguments of `draw`.

    Raises:
      ValueError: an unknown schedule.
    """
    found = {
        "num_tokens": num_tokens,
        "method": config.mask_scheduling_method,
        "min_ratio": config.min_masking_rate,
        "independent": config.independent_masks,
        "label_drop_rate": config.label_drop_rate,
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
    """
    width = -(-(num_tokens + 2) // 4) * 4  # Philox counts in blocks of four
    generator = randomness.generator(seed, "masks", step)
    generator.bit_generator.advance(rows.start * width // 4)
    numbers = generator.random((len(rows), width))  # float64: ties do not happen
    ratio = mask_ratios(numbers[:, 0], num_tokens, method).clip(min_ratio, 1.0)
    scores = numbers[:, 2 : num_tokens + 2]
    if independent:
        masked = scores < ratio[:, None]
        masked |= scores == scores.min(-1, keepdims=True)
    else:
        counts = np.ceil(ratio * num_tokens).astype(np.int64).clip(1, num_tokens)
        limits = np.take_along_axis(np.sort(scores, -1), counts[:, None] - 1, -1)
        masked = scores <= limits
    return Masks(masked, ratio, numbers[:, 1] < label_drop_rate)
