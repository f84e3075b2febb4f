"""Clipping, AdamW and the moving average in one pass over the memory, for compiled training.

One after the other, PyTorch's fused kernels move 13 numbers a parameter: the gradient is read for its norm,
read and written by clipping; AdamW reads four and writes three; the average reads two and writes one.
Compiled together they move 10: after the norm, five are read and four written.
"""

import functools
from collections.abc import Callable
from typing import Any

import ml_collections
import torch
from torch import Tensor, nn

from train.tasks import optimizers

COMPILE = {"fullgraph": True, "dynamic": False}


def suits(config: ml_collections.ConfigDict, device: torch.device) -> bool:
    """Whether a run updates its weights so: compiled, on a GPU. (A CPU gets a kernel for each tensor.)"""
    return config.compile and device.type == "cuda"


@torch.no_grad()
def update(
    model: nn.Module,
    optimizer: torch.optim.AdamW,
    average: optimizers.Average | None,
    max_norm: float,
    step: int,
) -> Tensor:
    """Does what `clip_gradients`, `optimizer.step` and `Average.update` do, but for the last bits.

    Args:
      model: with gradients, which stay as they are.
      optimizer: of `make_adamw` for this model, its rate set.
      average: of the model's parameters; None for none.
      max_norm: of the whole gradient; 0 for no clipping.
      step: from 0; for the average's decay.

    Returns:
      The norm of the gradient, a scalar tensor. No wait for the device.
    """
    norm = optimizers.clip_gradients(model.parameters(), 0.0)
    clip = torch.clamp(max_norm / norm, max=1.0) if max_norm > 0 else torch.ones_like(norm)
    averages, share = {}, 0.0
    if average:
        averages = dict(zip(model.parameters(), average.model.parameters(), strict=True))
        share = 1 - average.decay_at(step)
    groups = [group for group in optimizer.param_groups if group["params"]]
    rates = [torch.full_like(norm, group["lr"]) for group in groups]
    _compiled()(
        [_group(optimizer, group, averages) for group in groups],
        rates,
        clip,
        torch.full_like(norm, share),
    )
    return norm


def _group(optimizer: torch.optim.AdamW, group: dict[str, Any], averages: dict) -> tuple:
    """Lists of local tensors, and numbers, that `_walk` takes."""
    lists: list[list[Tensor]] = [[] for _ in range(6)]
    optimizer._init_group(group, *lists)  # makes the moments of the first step, as its `step` does
    parameters, gradients, means, squares, _, steps = lists
    kept = [averages[parameter] for parameter in parameters] if averages else []
    tensors = (parameters, gradients, means, squares, kept, steps)
    local = tuple([optimizers.local(tensor.detach()) for tensor in part] for part in tensors)
    return local, (*group["betas"], group["eps"], group["weight_decay"])


def _walk(groups: list[tuple], rates: list[Tensor], clip: Tensor, share: Tensor) -> None:
    """AdamW (Loshchilov & Hutter 2019, algorithm 2) and the average, in place."""
    for (tensors, numbers), rate in zip(groups, rates, strict=True):
        parameters, gradients, means, squares, averages, steps = tensors
        beta1, beta2, epsilon, decay = numbers
        torch._foreach_add_(steps, 1)
        step = steps[0].double()  # 1 - beta2**step has few digits in float32
        size = (rate / (1 - beta1**step)).to(rate.dtype)
        root = (1 - beta2**step).sqrt().to(rate.dtype)
        gradients = torch._foreach_mul(gradients, clip)
        torch._foreach_lerp_(means, gradients, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
        below = torch._foreach_div(torch._foreach_sqrt(squares), root)
        change = torch._foreach_div(means, torch._foreach_add(below, epsilon))
        torch._foreach_mul_(parameters, 1 - rate * decay)
        torch._foreach_sub_(parameters, torch._foreach_mul(change, size))
        if averages:
            difference = torch._foreach_sub(parameters, averages)
            torch._foreach_add_(averages, torch._foreach_mul(difference, share))


@functools.cache
def _compiled() -> Callable[..., None]:
    return torch.compile(_walk, **COMPILE)
