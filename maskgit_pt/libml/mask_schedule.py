"""Mask schedules (official `libml/mask_schedule.py`): which share of the tokens is masked at a time."""

import math

import torch
from torch import Tensor

METHODS = ("uniform", "pow<exponent>, e.g. pow2.5", "cosine", "log", "exp")


def schedule(ratio: float | Tensor, total_unknown: int | Tensor, method: str = "cosine") -> Tensor:
    """The share of tokens to mask, which falls from 1 to 0 as `ratio` rises from 0 to 1.

    Args:
      ratio: in [0, 1); in sampling (step + 1) / steps, in training uniform noise. A float counts as
        float32, in which the official code computes: float64 rounds some mask counts differently.
      total_unknown: tokens that can be masked; read by "log" and "exp" alone. Broadcasts with `ratio`.
      method: "uniform", "cosine", "log", "exp" or "pow" with its exponent ("pow2.5").

    Returns:
      The ratio, clipped to [1e-6, 1]; float32 (or the dtype of `ratio`).

    Raises:
      ValueError: an unknown method.
    """
    if not isinstance(ratio, Tensor):
        ratio = torch.tensor(ratio, dtype=torch.float32)
    if method == "uniform":
        mask_ratio = 1.0 - ratio
    elif method == "pow2":
        # One rounding, as XLA contracts 1 - x * x into a fused multiply-add.
        mask_ratio = (1.0 - ratio.double() ** 2).to(ratio.dtype)
    elif method.startswith("pow"):
        mask_ratio = 1.0 - ratio ** _exponent(method)
    elif method == "cosine":
        mask_ratio = torch.cos(math.pi / 2.0 * ratio)
    elif method == "log":
        ratio, log2_total = _with_log2(ratio, total_unknown)
        mask_ratio = -torch.log2(ratio) / log2_total
    elif method == "exp":
        ratio, log2_total = _with_log2(ratio, total_unknown)
        # exp2 by way of exp, as XLA does it.
        mask_ratio = 1 - torch.exp(-log2_total * (1 - ratio) * math.log(2.0))
    else:
        raise ValueError(f"mask schedule is {method!r}; known: {', '.join(METHODS)}")
    return mask_ratio.clamp(1e-6, 1.0)


def _exponent(method: str) -> float:
    try:
        exponent = float(method.removeprefix("pow"))
    except ValueError:
        exponent = 0.0
    if not 0 < exponent < math.inf:
        raise ValueError(f"mask schedule is {method!r}; known: {', '.join(METHODS)}")
    return exponent


def _with_log2(ratio: Tensor, total_unknown: int | Tensor) -> tuple[Tensor, Tensor]:
    """`ratio` and log2(total_unknown), in the dtype of `ratio` on the device of `total_unknown`."""
    total = torch.as_tensor(total_unknown).to(ratio.dtype)
    return ratio.to(total.device), torch.log2(total)


def decoding_schedule(num_iter: int, total_unknown: Tensor, method: str = "cosine") -> Tensor:
    """`schedule` at the ratios of all decoding steps, (s + 1) / T, rounded as in the official loop.

    Where the exact number of tokens to mask is whole (uniform, pow2, pow3), its floor hangs on the last bit.
    XLA compiles the official loop with T as a constant: the division becomes a product with the
    reciprocal of T, powers of that constant are folded, and 1 - x * y is rounded once. At T = 12 and 256
    tokens "uniform" then masks one token less in one step than `schedule` at the rounded ratio would.

    Args:
      num_iter: T.
      total_unknown: int [B].
      method: see `schedule`.

    Returns:
      float32 [T, 1] or [T, B]; on the CPU where it does not depend on `total_unknown`, so that the counts
      are the same on every device.
    """
    power = {"uniform": 1, "pow2": 2, "pow3": 3}.get(method)
    if power is not None:
        return one_minus_ratios(num_iter, power).clamp(1e-6, 1.0)
    steps, reciprocal = _steps_and_reciprocal(num_iter)
    return schedule(steps * reciprocal, total_unknown, method)


def one_minus_ratios(num_iter: int, power: int = 1) -> Tensor:
    """1 - ((s + 1) / T)**power for every step s, rounded as described above; float32 [T, 1]."""
    steps, reciprocal = _steps_and_reciprocal(num_iter)
    product = (steps**power).double() * (reciprocal**power).double()  # exact in float64
    return (1.0 - product).float()


def _steps_and_reciprocal(num_iter: int) -> tuple[Tensor, Tensor]:
    steps = torch.arange(1, num_iter + 1, dtype=torch.float32)[:, None]  # [T, 1]
    return steps, 1.0 / torch.tensor(num_iter, dtype=torch.float32)
