"""Losses of GANs and of masked modelling (official `libml/losses.py`).

Reductions and defaults as official; results are scalars unless stated. Half-precision inputs are
computed in float32.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

# The official losses guard their logarithms with this constant.
_LOG_GUARD = 1e-5


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def squared_euclidean_distance(a: Tensor, b: Tensor, b2: Tensor | None = None) -> Tensor:
    """Squared distances between all pairs, as |a|^2 - 2ab + |b|^2.

    Args:
      a: [n, d].
      b: [m, d].
      b2: squared norms of `b`, [1, m], if the caller has them already.

    Returns:
      [n, m]; rounding may make it slightly negative, as in the official code.
    """
    if b2 is None:
        b2 = (b**2).sum(1)[None, :]
    a2 = (a**2).sum(1, keepdim=True)
    return a2 - 2 * (a @ b.T) + b2


def sigmoid_cross_entropy_with_logits(*, labels: Tensor, logits: Tensor) -> Tensor:
    """Binary cross-entropy of each logit, of the shape of `logits`; `labels` in [0, 1]."""
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="none")


def apply_label_smoothing(one_hot_targets: Tensor, label_smoothing: float) -> Tensor:
    """Moves `label_smoothing` of the mass to all C classes alike, the right one included.

    Args:
      one_hot_targets: [..., C].
      label_smoothing: in [0, 1].
    """
    num_classes = one_hot_targets.shape[-1]
    return one_hot_targets * (1.0 - label_smoothing) + label_smoothing / num_classes


def l1_loss(y_true: Tensor, y_pred: Tensor) -> Tensor:
    """Mean absolute difference."""
    return _at_least_float32(y_true - y_pred).abs().mean()


def l2_loss(y_true: Tensor, y_pred: Tensor) -> Tensor:
    """Mean squared difference."""
    return _at_least_float32(y_true - y_pred).square().mean()


def r1_gradient_penalty(
    net: Callable[[Tensor], Tensor], x: Tensor, penalty_cost: float = 1.0
) -> tuple[Tensor, Tensor]:
    """R1: the squared norm of the discriminator's gradient at real images (Mescheder et al. 2018).

    Args:
      net: the discriminator.
      x: real images [B, ...].
      penalty_cost: factor of the penalty.

    Returns:
      The discriminator's output, and the penalty, which is differentiable in the weights.
    """
    out, gradient = gradient_penalty_without_bn(net, x)
    penalty = _at_least_float32(gradient.flatten(1)).square().sum(-1)  # [B]
    return out, penalty.mean() * penalty_cost


def gradient_penalty_without_bn(
    net: Callable[[Tensor], Tensor], x: Tensor
) -> tuple[Tensor, Tensor]:
    """The output of `net` and the gradient of its sum at `x`, kept in the graph.

    Right for nets that treat samples independently (no batch norm, no dropout). The official
    `gradient_penalty`, for other nets, has an empty body and is not here.
    """
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        out = net(x)
        (gradient,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    return out, gradient


def get_perplexity(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Perplexity of the use of the codes.

    Args:
      inputs: encodings [..., K], each summing to 1.

    Returns:
      exp(entropy) of the mean encoding: over all processes of the default process group (official:
      over the devices of `pmap`), and over this process alone. Equal without a process group.
    """
    local_probs = _at_least_float32(inputs.flatten(0, -2).mean(0))  # [K]
    return _exp_entropy(_mean_over_processes(local_probs)), _exp_entropy(local_probs)


def _mean_over_processes(x: Tensor) -> Tensor:
    """The mean over the default process group, if there is one; gradients flow as if `x` were all of it.

    Averaged over processes, as data-parallel training does, these are the gradients of the loss of the
    whole batch.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return x
    mean = x.detach().clone()
    dist.all_reduce(mean)
    mean /= dist.get_world_size()
    return mean + (x - x.detach())


def _exp_entropy(probs: Tensor) -> Tensor:
    return (-(probs * (probs + _LOG_GUARD).log()).sum()).exp()


def entropy_loss(affinity: Tensor, loss_type: str = "softmax", temperature: float = 1.0) -> Tensor:
    """Entropy of each sample's codes minus entropy of their mean: sure codes, evenly used.

    The mean is that over all processes of the default process group, so that the loss of a batch does not
    depend on how many share it. (The official code takes it on each device of `pmap` alone.)

    Args:
      affinity: [..., K]; larger is nearer.
      loss_type: "softmax", or "argmax" (straight-through one-hot targets).
      temperature: of the softmax.

    Raises:
      ValueError: an unknown `loss_type`.
    """
    flat_affinity = _at_least_float32(affinity).flatten(0, -2) / temperature
    target_probs = probs = flat_affinity.softmax(-1)
    log_probs = (flat_affinity + _LOG_GUARD).log_softmax(-1)
    if loss_type == "argmax":
        one_hots = F.one_hot(flat_affinity.argmax(-1), probs.shape[-1]).to(probs.dtype)
        target_probs = probs - (probs - one_hots).detach()
    elif loss_type != "softmax":
        raise ValueError(f"entropy loss type is {loss_type!r}; known: softmax, argmax")
    avg_probs = _mean_over_processes(target_probs.mean(0))
    avg_entropy = -(avg_probs * (avg_probs + _LOG_GUARD).log()).sum()
    sample_entropy = -(target_probs * log_probs).sum(-1).mean()
    return sample_entropy - avg_entropy


def discriminator_loss(
    *, real_logit: Tensor, fake_logit: Tensor, loss_type: str = "hinge"
) -> Tensor:
    """The discriminator's loss, "hinge" or "non-saturating"; ValueError for another type."""
    if loss_type == "hinge":
        real_loss, fake_loss = F.relu(1.0 - real_logit), F.relu(1.0 + fake_logit)
    elif loss_type == "non-saturating":
        real_loss = sigmoid_cross_entropy_with_logits(
            labels=torch.ones_like(real_logit), logits=real_logit
        )
        fake_loss = sigmoid_cross_entropy_with_logits(
            labels=torch.zeros_like(fake_logit), logits=fake_logit
        )
    else:
        raise ValueError(f"discriminator loss is {loss_type!r}; known: hinge, non-saturating")
    return (real_loss + fake_loss).mean()


def generator_loss(*, fake_logit: Tensor, loss_type: str = "hinge") -> Tensor:
    """The generator's adversarial loss, "hinge" or "non-saturating"; ValueError for another type."""
    if loss_type == "hinge":
        return -fake_logit.mean()
    if loss_type == "non-saturating":
        return sigmoid_cross_entropy_with_logits(
            labels=torch.ones_like(fake_logit), logits=fake_logit
        ).mean()
    raise ValueError(f"generator loss is {loss_type!r}; known: hinge, non-saturating")


def sequence_cross_entropy_loss(*, labels: Tensor, logits: Tensor) -> Tensor:
    """Mean cross-entropy over all positions; labels int64 [B, N] in [0, C), logits [B, N, C]."""
    return F.cross_entropy(_at_least_float32(logits).flatten(0, 1), labels.flatten())


def weighted_sequence_cross_entropy_loss(
    *, labels: Tensor, logits: Tensor, weights: Tensor, label_smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy averaged within each sample by `weights`, then over the samples.

    That is not the mean over all weighted positions: a sample with few masked tokens counts as much as
    one with many.

    Args:
      labels: int64 [B, N], in [0, C) wherever the weight is not zero.
      logits: [B, N, C].
      weights: [B, N]; 1 where the loss counts (the masked tokens), 0 elsewhere. A sample without any
        weight makes the loss NaN, as in the official code.
      label_smoothing: in [0, 1]; see `apply_label_smoothing`.
    """
    logits = _at_least_float32(logits)
    # Official one-hot targets are all zero for a label outside [0, C): class tokens, weight 0.
    inside = (labels >= 0) & (labels < logits.shape[-1])
    loss = F.cross_entropy(
        logits.flatten(0, 1),
        labels.where(inside, 0).flatten(),
        label_smoothing=label_smoothing,
        reduction="none",
    ).view_as(labels)  # [B, N]
    return ((loss * weights).sum(-1) / weights.sum(-1)).mean()
