"""The StyleGAN discriminator of the tokenizer's training (official nets/discriminator.py)."""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax import lax

from parity.reference import layers

default_kernel_init = nn.initializers.xavier_uniform()


class BlurPool2D(nn.Module):
    """Blurs each channel of [B, H, W, C] with a binomial filter; keeps every `strides`-th pixel."""

    filter_size: int = 4
    strides: tuple[int, int] = (2, 2)
    padding: str = "SAME"

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        if not 3 <= self.filter_size <= 7:
            raise ValueError(f"filter_size {self.filter_size}: 3, 4, 5, 6 or 7")
        row = np.array([math.comb(self.filter_size - 1, i) for i in range(self.filter_size)])
        kernel = np.outer(row, row) / row.sum() ** 2  # exact: a power of two divides integers
        channels = inputs.shape[-1]
        kernel = jnp.asarray(kernel, inputs.dtype)[:, :, None, None]
        return lax.conv_general_dilated(
            inputs,
            jnp.tile(kernel, (1, 1, 1, channels)),
            self.strides,
            self.padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=channels,
            precision=lax.Precision.HIGHEST,
        )


class ResBlock(nn.Module):
    """(Two convolutions and a downsampling + a downsampled 1x1 shortcut) / sqrt(2)."""

    filters: int
    activation_fn: Callable[[jax.Array], jax.Array]
    blur_resample: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def resample(values: jax.Array) -> jax.Array:
            return BlurPool2D()(values) if self.blur_resample else layers.dsample(values)

        conv = functools.partial(nn.Conv, kernel_init=default_kernel_init)
        hidden = resample(self.activation_fn(conv(x.shape[-1], (3, 3))(x)))
        shortcut = conv(self.filters, (1, 1), use_bias=False)(resample(x))
        hidden = self.activation_fn(conv(self.filters, (3, 3))(hidden))
        return (shortcut + hidden) / math.sqrt(2)


class Discriminator(nn.Module):
    """Images [B, H, W, 3] of side config.image_size (4, 8, ... 1024) -> logits [B, 1]."""

    config: ml_collections.ConfigDict
    train: bool
    dtype: Any = jnp.float32

    def _filters(self, side: int) -> int:
        multiplier = self.config.discriminator.channel_multiplier
        return 512 if side <= 32 else 16384 // side * multiplier

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        activation_fn = functools.partial(nn.leaky_relu, negative_slope=0.2)
        conv = functools.partial(nn.Conv, kernel_size=(3, 3), kernel_init=default_kernel_init)
        dense = functools.partial(nn.Dense, kernel_init=default_kernel_init)
        side = self.config.image_size
        x = activation_fn(conv(self._filters(side))(x))
        while side > 4:
            side //= 2
            x = ResBlock(
                self._filters(side), activation_fn, self.config.discriminator.blur_resample
            )(x)
        x = activation_fn(conv(self._filters(4))(x))
        x = activation_fn(dense(self._filters(4))(x.reshape((x.shape[0], -1))))
        return dense(1)(x)
