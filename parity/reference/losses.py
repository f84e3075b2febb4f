"""Losses of both training stages (official libml/losses.py)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def squared_euclidean_distance(
    a: jax.Array, b: jax.Array, b2: jax.Array | None = None, precision: Any = None
) -> jax.Array:
    """|a_i|^2 - 2 a_i b_j + |b_j|^2 for a [n, D] and b [m, D] -> [n, m]; b2: |b|^2 as [1, m]."""
    if b2 is None:
        b2 = jnp.sum(b.T**2, axis=0, keepdims=True)
    a2 = jnp.sum(a**2, axis=1, keepdims=True)
    ab = jnp.matmul(a, b.T, precision=precision)
    return a2 - 2 * ab + b2


def sigmoid_cross_entropy_with_logits(*, labels: jax.Array, logits: jax.Array) -> jax.Array:
    """max(x, 0) - x z + log(1 + exp(-|x|)) per element, with the slope of x > 0 at x = 0."""
    positive = logits >= jnp.zeros_like(logits)
    rectified = jnp.where(positive, logits, jnp.zeros_like(logits))
    minus_magnitude = jnp.where(positive, -logits, logits)
    return rectified - logits * labels + jnp.log1p(jnp.exp(minus_magnitude))


def apply_label_smoothing(one_hot_targets: jax.Array, label_smoothing: float) -> jax.Array:
    """Takes `label_smoothing` from the target and spreads it over all C classes, its own too."""
    share = label_smoothing / one_hot_targets.shape[-1]
    return one_hot_targets * (1.0 - label_smoothing) + share


def l1_loss(y_true: jax.Array, y_pred: jax.Array) -> jax.Array:
    """Mean absolute difference, float32."""
    return jnp.mean(jnp.abs(jnp.asarray(y_true - y_pred, jnp.float32)))


def l2_loss(y_true: jax.Array, y_pred: jax.Array) -> jax.Array:
    """Mean squared difference, float32."""
    return jnp.mean(jnp.square(jnp.asarray(y_true - y_pred, jnp.float32)))


def gradient_penalty_without_bn(
    net: Callable[..., Any], variables: Any, x: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(logits, d sum(logits) / d x) of `net(train=False)`; samples must be independent."""
    out, vjp = jax.vjp(lambda images: net(train=False).apply(variables, images, mutable=False), x)
    return out, vjp(jnp.ones_like(out))[0]


def r1_gradient_penalty(
    net: Callable[..., Any], variables: Any, x: jax.Array, penalty_cost: float = 1.0
) -> tuple[jax.Array, jax.Array]:
    """(logits, cost * mean over samples of the squared norm of d logit / d image), float32."""
    out, gradient = gradient_penalty_without_bn(net, variables, x)
    gradient = jnp.asarray(gradient.reshape((x.shape[0], -1)), jnp.float32)
    return out, jnp.mean(jnp.sum(jnp.square(gradient), axis=-1)) * penalty_cost


def get_perplexity(inputs: jax.Array, axis_name: str = "batch") -> tuple[jax.Array, jax.Array]:
    """Codebook perplexity of one-hot `inputs` [..., K]: (over all replicas, over this one)."""
    own = jnp.mean(inputs.reshape((-1, inputs.shape[-1])), axis=0)
    own = jnp.asarray(own, jnp.float32)

    def perplexity(probs: jax.Array) -> jax.Array:
        return jnp.exp(-jnp.sum(probs * jnp.log(probs + 1e-5)))

    return perplexity(lax.pmean(own, axis_name=axis_name)), perplexity(own)


def entropy_loss(
    affinity: jax.Array, loss_type: str = "softmax", temperature: float = 1.0
) -> jax.Array:
    """Mean entropy per sample minus entropy of the mean, of affinity [..., K] / temperature."""
    flat = affinity.reshape(-1, affinity.shape[-1]) / temperature
    probs = jax.nn.softmax(flat, axis=-1)
    # OFFICIAL QUIRK: 1e-5 is added to the logits, where log_softmax cancels it.
    log_probs = jax.nn.log_softmax(flat + 1e-5, axis=-1)
    if loss_type == "softmax":
        targets = probs
    elif loss_type == "argmax":
        hard = jax.nn.one_hot(jnp.argmax(flat, axis=-1), flat.shape[-1], dtype=flat.dtype)
        targets = probs - lax.stop_gradient(probs - hard)  # straight through
    else:
        raise ValueError(f"entropy loss {loss_type!r}: 'softmax' or 'argmax'")
    mean_target = jnp.mean(targets, axis=0)
    entropy_of_mean = -jnp.sum(mean_target * jnp.log(mean_target + 1e-5))
    mean_entropy = -jnp.mean(jnp.sum(targets * log_probs, axis=-1))
    return mean_entropy - entropy_of_mean


def discriminator_loss(
    *, real_logit: jax.Array, fake_logit: jax.Array, loss_type: str = "hinge"
) -> jax.Array:
    """What the discriminator minimizes; "hinge" or "non-saturating"."""
    if loss_type == "hinge":
        real, fake = jax.nn.relu(1.0 - real_logit), jax.nn.relu(1.0 + fake_logit)
    elif loss_type == "non-saturating":
        real = sigmoid_cross_entropy_with_logits(
            labels=jnp.ones_like(real_logit), logits=real_logit
        )
        fake = sigmoid_cross_entropy_with_logits(
            labels=jnp.zeros_like(fake_logit), logits=fake_logit
        )
    else:
        raise ValueError(f"discriminator loss {loss_type!r}: 'hinge' or 'non-saturating'")
    return jnp.mean(real + fake)


def generator_loss(*, fake_logit: jax.Array, loss_type: str = "hinge") -> jax.Array:
    """What the generator minimizes; "hinge" or "non-saturating"."""
    if loss_type == "hinge":
        return -jnp.mean(fake_logit)
    if loss_type == "non-saturating":
        return jnp.mean(
            sigmoid_cross_entropy_with_logits(labels=jnp.ones_like(fake_logit), logits=fake_logit)
        )
    raise ValueError(f"generator loss {loss_type!r}: 'hinge' or 'non-saturating'")


def sequence_cross_entropy_loss(*, labels: jax.Array, logits: jax.Array) -> jax.Array:
    """Mean cross entropy of logits [B, N, C] at labels [B, N]."""
    targets = jax.nn.one_hot(labels, logits.shape[-1])
    return -jnp.mean(jnp.sum(jax.nn.log_softmax(logits, axis=-1) * targets, axis=-1))


def weighted_sequence_cross_entropy_loss(
    *,
    labels: jax.Array,
    logits: jax.Array,
    weights: jax.Array,
    label_smoothing: float = 0.0,
) -> jax.Array:
    """Cross entropy of logits [B, N, C]: mean by weights [B, N] in a sample, then over samples.

    Not the mean over all weighted positions: a sample counts the same however few positions it has.
    """
    targets = jax.nn.one_hot(labels, logits.shape[-1])
    targets = apply_label_smoothing(targets, label_smoothing)
    loss = -jnp.sum(targets * jax.nn.log_softmax(logits), axis=-1)
    return jnp.mean(jnp.sum(loss * weights, axis=-1) / jnp.sum(weights, axis=-1))
