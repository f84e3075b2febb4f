"""Layers that the tokenizer and the discriminator share (official nets/layers.py)."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax


def _l2_normalize(x: jax.Array, axis: int | None = None, eps: float = 1e-12) -> jax.Array:
    """x / sqrt(sum(x^2) + eps) along `axis` (None: over all elements)."""
    squared_norm = jnp.sum(x * x, axis=axis, keepdims=True)
    return x * lax.rsqrt(squared_norm + eps)


def get_norm_layer(train: bool, dtype: Any, norm_type: str = "BN") -> Callable[..., nn.Module]:
    """A constructor of the normalization layer "BN", "LN" or "GN".

    GroupNorm and LayerNorm keep Flax's defaults: epsilon 1e-6, 32 groups. BatchNorm computes in
    float32 whatever `dtype` says, as official.
    """
    if norm_type == "GN":
        return functools.partial(nn.GroupNorm, dtype=dtype)
    if norm_type == "LN":
        return functools.partial(nn.LayerNorm, dtype=dtype)
    if norm_type == "BN":
        return functools.partial(
            nn.BatchNorm,
            use_running_average=not train,
            momentum=0.9,
            epsilon=1e-5,
            dtype=jnp.float32,
        )
    raise NotImplementedError(f"norm_type {norm_type!r}: one of 'BN', 'LN', 'GN'")


def tensorflow_style_avg_pooling(
    x: jax.Array, window_shape: tuple[int, int], strides: tuple[int, int], padding: str
) -> jax.Array:
    """Average pooling of [B, H, W, C] that divides by the number of real, not padded, cells."""

    def window_sum(values: jax.Array) -> jax.Array:
        return lax.reduce_window(
            values, 0.0, lax.add, (1, *window_shape, 1), (1, *strides, 1), padding
        )

    return window_sum(x) / window_sum(jnp.ones_like(x))


def upsample(x: jax.Array, factor: int = 2) -> jax.Array:
    """Nearest neighbour: [B, H, W, C] -> [B, factor * H, factor * W, C]."""
    return jnp.repeat(jnp.repeat(x, factor, axis=1), factor, axis=2)


def dsample(x: jax.Array) -> jax.Array:
    """2x2 average pooling, SAME: [B, H, W, C] -> [B, ceil(H / 2), ceil(W / 2), C]."""
    return tensorflow_style_avg_pooling(x, (2, 2), (2, 2), padding="same")
