"""The bidirectional transformer (official nets/maskgit_transformer.py): BERT, one token type."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

LAYERNORM_EPSILON = 1e-12


def truncated_normal(stddev: float, dtype: Any = jnp.float32) -> Callable[..., jax.Array]:
    """Initializer: a normal distribution cut at two sigmas, times `stddev`."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = dtype) -> jax.Array:
        return stddev * jax.random.truncated_normal(key, -2, 2, shape, dtype)

    return init


def _layer_norm(name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=LAYERNORM_EPSILON, name=name)


class Attention(nn.Module):
    """LN(x + Attention(x)); every position sees every other."""

    hidden_size: int
    hidden_dropout_prob: float
    num_attention_heads: int
    attention_probs_dropout_prob: float
    initializer_fn: Callable[..., jax.Array]

    @nn.compact
    def __call__(
        self, layer_input: jax.Array, input_mask: jax.Array, deterministic: bool
    ) -> jax.Array:
        attend = nn.MultiHeadDotProductAttention(
            num_heads=self.num_attention_heads,
            qkv_features=self.hidden_size,
            dropout_rate=self.attention_probs_dropout_prob,
            deterministic=deterministic,
            kernel_init=self.initializer_fn,
            bias_init=nn.initializers.zeros,
            name="self_attention",
        )
        attended = attend(layer_input, mask=nn.make_attention_mask(input_mask, input_mask))
        dropout = nn.Dropout(self.hidden_dropout_prob, deterministic=deterministic)
        return _layer_norm("attention_output_ln")(dropout(attended) + layer_input)


class Mlp(nn.Module):
    """LN(y + Mlp(y)) with the tanh form of GELU, Flax's default."""

    hidden_size: int
    hidden_dropout_prob: float
    intermediate_size: int
    initializer_fn: Callable[..., jax.Array]

    @nn.compact
    def __call__(self, attention_output: jax.Array, deterministic: bool) -> jax.Array:
        def dense(features: int, name: str) -> nn.Dense:
            return nn.Dense(features, kernel_init=self.initializer_fn, name=name)

        hidden = dense(self.intermediate_size, "intermediate_output")(attention_output)
        hidden = dense(self.hidden_size, "layer_output")(nn.gelu(hidden, approximate=True))
        dropout = nn.Dropout(self.hidden_dropout_prob, deterministic=deterministic)
        return _layer_norm("layer_output_ln")(dropout(hidden) + attention_output)


class TransformerLayer(nn.Module):
    """Attention, then MLP, each with its residual and LayerNorm after it."""

    intermediate_size: int
    hidden_size: int
    hidden_dropout_prob: float
    num_attention_heads: int
    attention_probs_dropout_prob: float
    initializer_fn: Callable[..., jax.Array]

    @nn.compact
    def __call__(
        self, layer_input: jax.Array, input_mask: jax.Array, deterministic: bool
    ) -> jax.Array:
        attended = Attention(
            hidden_size=self.hidden_size,
            hidden_dropout_prob=self.hidden_dropout_prob,
            num_attention_heads=self.num_attention_heads,
            attention_probs_dropout_prob=self.attention_probs_dropout_prob,
            initializer_fn=self.initializer_fn,
        )(layer_input=layer_input, input_mask=input_mask, deterministic=deterministic)
        return Mlp(
            hidden_size=self.hidden_size,
            hidden_dropout_prob=self.hidden_dropout_prob,
            intermediate_size=self.intermediate_size,
            initializer_fn=self.initializer_fn,
        )(attention_output=attended, deterministic=deterministic)


class Embed(nn.Module):
    """Token plus position embedding, LayerNorm, dropout: ids [B, N] -> [B, N, D]."""

    embedding_size: int
    hidden_dropout_prob: float
    vocab_size: int
    max_position_embeddings: int
    initializer_fn: Callable[..., jax.Array]
    hidden_size: int | None = None

    @nn.compact
    def __call__(self, input_ids: jax.Array, deterministic: bool) -> jax.Array:
        def table(rows: int, name: str) -> nn.Embed:
            return nn.Embed(
                rows, self.embedding_size, embedding_init=self.initializer_fn, name=name
            )

        # The mask is id -1: indexing wraps it to the table's last row.
        words = table(self.vocab_size, "word_embeddings")(input_ids)
        positions = table(self.max_position_embeddings, "position_embeddings")(
            jnp.arange(input_ids.shape[-1])[None, :]
        )
        embedded = _layer_norm("embeddings_ln")(words + positions)
        if self.hidden_size:
            embedded = nn.Dense(
                self.hidden_size,
                kernel_init=self.initializer_fn,
                name="embedding_hidden_mapping",
            )(embedded)
        return nn.Dropout(self.hidden_dropout_prob, deterministic=deterministic)(embedded)


class Bias(nn.Module):
    """A learned bias along the last axis.

    OFFICIAL QUIRK: the sum is cast to `dtype`, float32 by default, whatever the input's precision;
    a comparison in float64 sets `dtype` to float64.
    """

    dtype: Any = jnp.float32
    bias_init: Callable[..., jax.Array] = nn.initializers.zeros

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        bias = self.param("bias", self.bias_init, inputs.shape[-1:])
        return jnp.asarray(inputs, self.dtype) + jnp.asarray(bias, self.dtype)


class MlmLayer(nn.Module):
    """Dense, GELU, LayerNorm, dot product with the word embeddings [V, D], bias: -> [B, N, V]."""

    hidden_size: int
    initializer_fn: Callable[..., jax.Array]

    @nn.compact
    def __call__(self, last_layer: jax.Array, embeddings: jax.Array) -> jax.Array:
        hidden = nn.Dense(self.hidden_size, kernel_init=self.initializer_fn, name="mlm_dense")(
            last_layer
        )
        hidden = _layer_norm("mlm_ln")(nn.gelu(hidden, approximate=True))
        return Bias(name="mlm_bias")(jnp.matmul(hidden, embeddings.T))


class Transformer(nn.Module):
    """Token ids [B, N] (-1: masked) -> logits [B, N, V] over codes, classes and the mask."""

    vocab_size: int
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 256
    initializer_range: float = 0.02

    @nn.compact
    def __call__(self, input_ids: jax.Array, deterministic: bool = True) -> jax.Array:
        input_ids = input_ids.astype("int32")
        initializer_fn = truncated_normal(self.initializer_range)
        x = Embed(
            embedding_size=self.hidden_size,
            hidden_dropout_prob=self.hidden_dropout_prob,
            vocab_size=self.vocab_size,
            max_position_embeddings=self.max_position_embeddings,
            initializer_fn=initializer_fn,
        )(input_ids=input_ids, deterministic=deterministic)
        for _ in range(self.num_hidden_layers):
            x = TransformerLayer(
                intermediate_size=self.intermediate_size,
                hidden_size=self.hidden_size,
                hidden_dropout_prob=self.hidden_dropout_prob,
                num_attention_heads=self.num_attention_heads,
                attention_probs_dropout_prob=self.attention_probs_dropout_prob,
                initializer_fn=initializer_fn,
            )(layer_input=x, input_mask=jnp.ones_like(input_ids), deterministic=deterministic)
        words = self.variables["params"]["Embed_0"]["word_embeddings"]["embedding"]
        return MlmLayer(hidden_size=self.hidden_size, initializer_fn=initializer_fn)(
            last_layer=x, embeddings=words
        )
