"""The optimizer, its schedule, clipping, and the exponential moving average of the weights."""

import math
from collections.abc import Iterable

import ml_collections
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

SCHEDULES = ("constant", "cosine", "linear")
DECAYS = ("all", "matrices", "matrices+embeddings")


def make_adamw(model: nn.Module, config: ml_collections.ConfigDict) -> torch.optim.AdamW:
    """AdamW with decoupled weight decay (Loshchilov & Hutter 2019), fused.

    Its rate is set before every step, see `learning_rate`.

    Args:
      model: whose parameters to train, those that require a gradient.
      config: `config.optimizer`; with decay "matrices" biases, norms and embeddings do not decay; with
        "matrices+embeddings" biases and all that has one dimension do not (as timm's
        `param_groups_weight_decay`).
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    decays, others = [p for _, p in named], []
    if config.decay == "matrices":
        matrices = {
            id(module.weight)
            for module in model.modules()
            if isinstance(module, nn.Linear | nn.Conv2d)
        }
        decays = [p for _, p in named if id(p) in matrices]
        others = [p for _, p in named if id(p) not in matrices]
    elif config.decay == "matrices+embeddings":
        decays = [p for name, p in named if p.dim() > 1 and not name.endswith(".bias")]
        others = [p for name, p in named if p.dim() <= 1 or name.endswith(".bias")]
    groups = [{"params": decays, "weight_decay": config.weight_decay}]
    if others:
        groups.append({"params": others, "weight_decay": 0.0})
    return torch.optim.AdamW(
        groups, lr=0.0, betas=(config.beta1, config.beta2), eps=config.epsilon, fused=True
    )


def learning_rate(
    config: ml_collections.ConfigDict, step: int, num_steps: int, lr: float | None = None
) -> float:
    """The learning rate of a step, counted from 0.

    Rises linearly to `lr` at the end of the warm-up; then stays, or falls to `lr_min` at the last step.

    Args:
      config: `config.optimizer`.
      step: from 0.
      num_steps: of the run.
      lr: the highest rate; default: `config.lr`.
    """
    lr = config.lr if lr is None else lr
    if step < config.warmup_steps:
        return lr * (step + 1) / config.warmup_steps
    if config.lr_schedule == "constant":
        return lr
    progress = (step - config.warmup_steps) / max(1, num_steps - 1 - config.warmup_steps)
    share = (
        1 - progress if config.lr_schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
    )
    return config.lr_min + (lr - config.lr_min) * share


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Sets the rate of all groups; a group may have an "lr_scale" of its own."""
    for group in optimizer.param_groups:
        group["lr"] = value * group.get("lr_scale", 1.0)


@torch.no_grad()
def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scales the whole gradient down to `max_norm` if it is longer.

    Exactly max_norm / norm, as optax's `clip_by_global_norm` (torch's own adds 1e-6 to the norm).

    Args:
      parameters: with gradients.
      max_norm: 0 for no clipping.

    Returns:
      The norm before, a scalar tensor. No wait for the device.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if hasattr(norm, "full_tensor"):  # FSDP2: a DTensor whose parts are on other devices
        norm = norm.full_tensor()
    if max_norm > 0:
        scale = torch.clamp(max_norm / norm, max=1.0)
        torch._foreach_mul_([local(gradient) for gradient in gradients], scale)
    return norm


class Average:
    """The exponential moving average of a model's parameters, kept in a second model.

    average <- decay * average + (1 - decay) * parameters; for the first steps with the smaller decay
    (1 + step) / (10 + step), so that the random start is forgotten soon.

    Args:
      average: a model with the values to start from; without gradients from now on.
      decay: in [0, 1).
    """

    def __init__(self, average: nn.Module, decay: float):
        self.model = average.eval().requires_grad_(False)
        self.decay = decay

    def decay_at(self, step: int) -> float:
        """The decay of a step, counted from 0."""
        return min(self.decay, (1 + step) / (10 + step))

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Takes in the parameters of `model` after step `step`, counted from 0."""
        decay = self.decay_at(step)
        average = [local(p) for p in self.model.parameters()]
        get_ema_multi_avg_fn(decay)(average, [local(p.detach()) for p in model.parameters()], None)


def local(tensor: Tensor) -> Tensor:
    """The part of a sharded tensor that is here."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
