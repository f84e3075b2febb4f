"""The image tokenizer (official nets/vqgan_tokenizer.py): VQGAN without its attention blocks."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from parity.reference import layers, losses

_ACTIVATIONS = {"relu": nn.relu, "swish": nn.swish}


def _activation(config: ml_collections.ConfigDict) -> Callable[[jax.Array], jax.Array]:
    name = config.vqvae.activation_fn
    if name not in _ACTIVATIONS:
        raise NotImplementedError(f"activation_fn {name!r}: one of {sorted(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


class ResBlock(nn.Module):
    """(Norm, activation, conv) twice, plus the input; a convolution where the width changes."""

    filters: int
    norm_fn: Callable[..., nn.Module]
    conv_fn: Callable[..., nn.Module]
    dtype: Any = jnp.float32
    activation_fn: Callable[[jax.Array], jax.Array] = nn.relu
    use_conv_shortcut: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shortcut = x
        for _ in range(2):
            x = self.activation_fn(self.norm_fn()(x))
            x = self.conv_fn(self.filters, kernel_size=(3, 3), use_bias=False)(x)
        if shortcut.shape[-1] != self.filters:
            # OFFICIAL QUIRK: the shortcut starts from the processed x, not from the block's input.
            size = (3, 3) if self.use_conv_shortcut else (1, 1)
            shortcut = self.conv_fn(self.filters, kernel_size=size, use_bias=False)(x)
        return x + shortcut


class _Coder(nn.Module):
    """What encoder and decoder share: their configuration and how they make a residual block."""

    config: ml_collections.ConfigDict
    train: bool

    def _norm_fn(self) -> Callable[..., nn.Module]:
        return layers.get_norm_layer(
            train=self.train, dtype=self.dtype, norm_type=self.config.vqvae.norm_type
        )

    def _res_blocks(self, x: jax.Array, filters: int) -> jax.Array:
        for _ in range(self.config.vqvae.num_res_blocks):
            x = ResBlock(
                filters,
                norm_fn=self._norm_fn(),
                conv_fn=nn.Conv,
                dtype=self.dtype,
                activation_fn=_activation(self.config),
            )(x)
        return x


class Encoder(_Coder):
    """Images [B, H, W, 3] in [0, 1] -> features [B, h, w, D], h = H / 2^(levels - 1)."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        vqvae = self.config.vqvae
        x = nn.Conv(vqvae.filters, kernel_size=(3, 3), use_bias=False)(x)
        for level, multiplier in enumerate(vqvae.channel_multipliers):
            filters = vqvae.filters * multiplier
            x = self._res_blocks(x, filters)
            if level == len(vqvae.channel_multipliers) - 1:
                break
            if vqvae.conv_downsample:
                x = nn.Conv(filters, kernel_size=(4, 4), strides=(2, 2))(x)
            else:
                x = layers.dsample(x)
        x = self._res_blocks(x, filters)
        x = _activation(self.config)(self._norm_fn()()(x))
        return nn.Conv(vqvae.embedding_dim, kernel_size=(1, 1))(x)


class Decoder(_Coder):
    """Features [B, h, w, D] -> images [B, H, W, output_dim], not clipped."""

    output_dim: int = 3
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        vqvae = self.config.vqvae
        multipliers = list(vqvae.channel_multipliers)
        x = nn.Conv(vqvae.filters * multipliers[-1], kernel_size=(3, 3))(x)
        x = self._res_blocks(x, vqvae.filters * multipliers[-1])
        for level in reversed(range(len(multipliers))):
            filters = vqvae.filters * multipliers[level]
            x = self._res_blocks(x, filters)
            if level > 0:
                x = nn.Conv(filters, kernel_size=(3, 3))(layers.upsample(x, 2))
        x = _activation(self.config)(self._norm_fn()()(x))
        return nn.Conv(self.output_dim, kernel_size=(3, 3))(x)


class _Quantizer(nn.Module):
    """The codebook [K, D] and what both quantizers do with it."""

    config: ml_collections.ConfigDict
    train: bool
    dtype: Any = jnp.float32

    def _codebook(self, width: int) -> jax.Array:
        init = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")
        codebook = self.param("codebook", init, (self.config.vqvae.codebook_size, width))
        return jnp.asarray(codebook, dtype=self.dtype)

    def _distances(self, x: jax.Array) -> jax.Array:
        codebook = self._codebook(x.shape[-1])
        flat = losses.squared_euclidean_distance(x.reshape((-1, x.shape[-1])), codebook)
        return flat.reshape((*x.shape[:-1], codebook.shape[0]))

    def _one_hot(self, indices: jax.Array) -> jax.Array:
        return jax.nn.one_hot(indices, self.config.vqvae.codebook_size, dtype=self.dtype)

    def get_codebook(self) -> jax.Array:
        return jnp.asarray(self.variables["params"]["codebook"], dtype=self.dtype)

    def quantize(self, z: jax.Array) -> jax.Array:
        """Weights over the codes [..., K] -> features [..., D]."""
        return jnp.dot(z, self.get_codebook())

    def decode_ids(self, ids: jax.Array) -> jax.Array:
        return jnp.take(self.variables["params"]["codebook"], ids, axis=0)


class VectorQuantizer(_Quantizer):
    """Nearest code with straight-through gradients and the VQ losses."""

    @nn.compact
    def __call__(self, x: jax.Array, **kwargs: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        distances = self._distances(x)
        encoding_indices = jnp.argmin(distances, axis=-1)
        encodings = self._one_hot(encoding_indices)
        quantized = self.quantize(encodings)
        result = {}
        if self.train:
            result = self._losses(x, quantized, distances)
            quantized = x + jax.lax.stop_gradient(quantized - x)
        result |= {"encodings": encodings, "encoding_indices": encoding_indices, "raw": x}
        return quantized, result

    def _losses(
        self, x: jax.Array, quantized: jax.Array, distances: jax.Array
    ) -> dict[str, jax.Array]:
        """Commitment, codebook and entropy loss and their sum, each cast to float32 as official."""
        vqvae, stop = self.config.vqvae, jax.lax.stop_gradient
        parts = {
            "e_latent_loss": jnp.mean((stop(quantized) - x) ** 2) * vqvae.commitment_cost,
            "q_latent_loss": jnp.mean((quantized - stop(x)) ** 2),
            "entropy_loss": 0.0,
        }
        if vqvae.entropy_loss_ratio != 0:
            entropy = losses.entropy_loss(
                -distances,
                loss_type=vqvae.entropy_loss_type,
                temperature=vqvae.entropy_temperature,
            )
            parts["entropy_loss"] = entropy * vqvae.entropy_loss_ratio
        parts = {name: jnp.asarray(value, jnp.float32) for name, value in parts.items()}
        return {"quantizer_loss": sum(parts.values()), **parts}


class GumbelVQ(_Quantizer):
    """In training a softmax over the codes with Gumbel noise, else the nearest code; no loss."""

    @nn.compact
    def __call__(self, x: jax.Array, *, tau: float = 1.0) -> tuple[jax.Array, dict[str, Any]]:
        distances = self._distances(x)
        encoding_indices = jnp.argmin(distances, axis=-1)
        if self.train:
            noise = jax.random.gumbel(self.make_rng("rng"), distances.shape, dtype=self.dtype)
            encodings = jax.nn.softmax((-distances + noise) / tau, axis=-1)
        else:
            encodings = self._one_hot(encoding_indices)
        return self.quantize(encodings), {
            "quantizer_loss": 0.0,
            "encodings": encodings,
            "encoding_indices": encoding_indices,
        }


class VQVAE(nn.Module):
    """Encoder, quantizer ("vq" or "gumbel") and decoder."""

    config: ml_collections.ConfigDict
    train: bool
    dtype: Any = jnp.float32
    activation_fn: Callable[[jax.Array], jax.Array] = nn.relu

    def setup(self) -> None:
        quantizers = {"vq": VectorQuantizer, "gumbel": GumbelVQ}
        name = self.config.vqvae.quantizer
        if name not in quantizers:
            raise NotImplementedError(f"quantizer {name!r}: one of {sorted(quantizers)}")
        common = {"config": self.config, "train": self.train, "dtype": self.dtype}
        self.quantizer = quantizers[name](**common)
        self.encoder = Encoder(**common)
        self.decoder = Decoder(**common, output_dim=3)

    def encode(self, input_dict: dict[str, Any]) -> tuple[jax.Array, dict[str, Any]]:
        """{"image": [B, H, W, 3], "tau": Gumbel temperature} -> (quantized, results)."""
        features = self.encoder(input_dict["image"])
        if self.config.vqvae.quantizer == "gumbel" and self.train:
            return self.quantizer(features, tau=input_dict["tau"])
        return self.quantizer(features)

    def decode(self, x: jax.Array) -> jax.Array:
        return self.decoder(x)

    def get_codebook_funct(self) -> jax.Array:
        return self.quantizer.get_codebook()

    def decode_from_indices(self, inputs: Any) -> jax.Array:
        """Indices [B, h, w], or a dict with "encoding_indices" -> images [B, H, W, 3]."""
        ids = inputs["encoding_indices"] if isinstance(inputs, dict) else inputs
        return self.decode(self.quantizer.decode_ids(ids))

    def encode_to_indices(self, inputs: Any) -> jax.Array:
        """Images [B, H, W, 3], or a dict with "image" -> indices [B, h, w]."""
        image = inputs["image"] if isinstance(inputs, dict) else inputs
        return self.quantizer(self.encoder(image))[1]["encoding_indices"]

    def __call__(self, input_dict: dict[str, Any]) -> jax.Array:
        """Reconstruction [B, H, W, 3].

        The official method hands the decoder the pair (quantized, results) and so cannot run; this
        is what it means.
        """
        return self.decoder(self.encode(input_dict)[0])
