"""What both sides of a training comparison share: the result of a run, and its tensors as arrays."""

import dataclasses
from typing import Any

import numpy as np
from torch import nn


@dataclasses.dataclass
class Run:
    """What some steps of training leave; arrays by their PyTorch names, numpy.

    Attributes:
      curves: float64 [steps] for each metric: "loss", "grad_norm", ...
      gradients: of the first step, for each network: {network: {parameter: array}}.
      start: parameters before the first step, likewise.
      parameters: after the last step, likewise.
      averages: their moving averages, likewise.
      indices: int64 [steps, B, h, w], the tokenizer's codes; None for a transformer.
      gap: the smallest distance between a nearest code and the next one, over all steps.
    """

    curves: dict[str, np.ndarray]
    gradients: dict[str, dict[str, np.ndarray]]
    start: dict[str, dict[str, np.ndarray]]
    parameters: dict[str, dict[str, np.ndarray]]
    averages: dict[str, dict[str, np.ndarray]]
    indices: np.ndarray | None = None
    gap: float = np.inf


def arrays(model: nn.Module) -> dict[str, np.ndarray]:
    """Copies of the parameters."""
    return {name: p.detach().numpy().copy() for name, p in model.named_parameters()}


def gradients(model: nn.Module) -> dict[str, np.ndarray]:
    """Copies of the gradients."""
    return {name: p.grad.numpy().copy() for name, p in model.named_parameters()}


def curves(steps: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Metrics step by step -> one array for each, in double precision whatever the run's."""
    return {name: np.array([float(step[name]) for step in steps]) for name in steps[0]}
