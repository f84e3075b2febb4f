"""The bidirectional transformer (official `nets/maskgit_transformer.py`): BERT, post-norm.

Input is the class token followed by the image tokens row by row, with -1 where a token is masked;
output is one logit per vocabulary entry at every position.

Axes: B batch, N tokens (1 + h*w), V vocabulary (codes, classes, mask), D width, H heads.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskgit_pt.nets import layers
from maskgit_pt.pretrained import PretrainedMixin

LAYERNORM_EPSILON = 1e-12  # as BERT; torch's default is 1e-5


class SelfAttention(nn.Module):
    """Flax's `nn.SelfAttention`, which the official `Attention` holds under the name
    `self_attention`.

    `qkv` is the three official projections in one: rows of the query, then the key, then the value;
    within each the head is the slower index.
    """

    def __init__(
        self, hidden_size: int, num_heads: int, dropout_rate: float, broadcast_dropout: bool
    ):
        super().__init__()
        if hidden_size % num_heads:
            raise ValueError(
                f"hidden_size {hidden_size} is not a multiple of num_heads {num_heads}"
            )
        self.num_heads = num_heads
        self.dropout_rate = dropout_rate
        self.broadcast_dropout = broadcast_dropout
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.out = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor, top_down: Tensor | None = None) -> Tensor:
        """`top_down` [B, N, D] joins the values alone: see `self_guidance`."""
        B, N, D = x.shape
        qkv = self.qkv(x).view(B, N, 3, self.num_heads, D // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each [B, H, N, D/H]
        if top_down is not None:
            more = F.linear(top_down, self.qkv.weight[2 * D :], self.qkv.bias[2 * D :])
            value = value + more.view(B, N, self.num_heads, D // self.num_heads).transpose(1, 2)
        rate = self.dropout_rate if self.training else 0.0
        # The official attention mask is all ones: every position sees every other. The scale is
        # SDPA's default, 1/sqrt(D/H).
        if rate > 0.0 and self.broadcast_dropout:
            x = _attention_with_broadcast_dropout(query, key, value, rate)
        else:
            x = F.scaled_dot_product_attention(query, key, value, dropout_p=rate)
        return self.out(x.transpose(1, 2).reshape(B, N, D))  # [B, N, D]


def _attention_with_broadcast_dropout(
    query: Tensor, key: Tensor, value: Tensor, rate: float
) -> Tensor:
    """Attention as Flax drops it out by default: one [N, N] mask for all samples and heads."""
    probs = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1)  # [B, H, N, N]
    mask = F.dropout(torch.ones(probs.shape[-2:], dtype=probs.dtype, device=probs.device), rate)
    return (probs * mask) @ value  # [B, H, N, D/H]


class Attention(nn.Module):
    """Self-attention with its residual and LayerNorm: `LN(Attention(x) + x)`."""

    def __init__(
        self,
        hidden_size: int,
        hidden_dropout_prob: float,
        num_attention_heads: int,
        attention_probs_dropout_prob: float,
        broadcast_dropout: bool,
    ):
        super().__init__()
        self.self_attention = SelfAttention(
            hidden_size, num_attention_heads, attention_probs_dropout_prob, broadcast_dropout
        )
        self.dropout = nn.Dropout(hidden_dropout_prob)
        self.attention_output_ln = nn.LayerNorm(hidden_size, eps=LAYERNORM_EPSILON)

    def forward(self, layer_input: Tensor, top_down: Tensor | None = None) -> Tensor:
        inputs = (layer_input,) if top_down is None else (layer_input, top_down)
        attention_output = self.dropout(self.self_attention(*inputs))
        return self.attention_output_ln(attention_output + layer_input)  # [B, N, D]


def gelu(x: Tensor) -> Tensor:
    """`jax.nn.gelu` as the official code calls it: the tanh approximation, not torch's default erf."""
    return F.gelu(x, approximate="tanh")


_GELU = gelu


class Mlp(nn.Module):
    """Two dense layers with their residual and LayerNorm: `LN(Mlp(y) + y)`. No dropout inside."""

    erf_gelu = (
        False  # True in descendants of Google's network that were trained with torch's default
    )

    def __init__(self, hidden_size: int, hidden_dropout_prob: float, intermediate_size: int):
        super().__init__()
        self.intermediate_output = nn.Linear(hidden_size, intermediate_size)
        self.layer_output = nn.Linear(intermediate_size, hidden_size)
        self.dropout = nn.Dropout(hidden_dropout_prob)
        self.layer_output_ln = nn.LayerNorm(hidden_size, eps=LAYERNORM_EPSILON)

    def forward(self, attention_output: Tensor) -> Tensor:
        dense = _dense_erf_gelu if self.erf_gelu else dense_gelu
        intermediate_output = dense(self.intermediate_output, attention_output)  # [B, N, 4 D]
        layer_output = self.dropout(self.layer_output(intermediate_output))  # [B, N, D]
        return self.layer_output_ln(layer_output + attention_output)


def dense_gelu(dense: nn.Linear, x: Tensor) -> Tensor:
    """`gelu(dense(x))`.

    Without gradients, float32 on a CPU, oneDNN does both in one kernel: PyTorch's own tanh GELU takes as long
    as a sixth of the product before it. Who watches the dense layer, or puts another function in the place of
    `gelu`, gets both one after the other.
    """
    plain = torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing()
    plain = plain or bool(dense._forward_hooks) or gelu is not _GELU
    if plain or x.device.type != "cpu" or x.dtype != torch.float32 or not _has_onednn(x.device):
        return gelu(dense(x))
    return torch.ops.mkldnn._linear_pointwise(x, dense.weight, dense.bias, "gelu", [], "tanh")


def _has_onednn(device: torch.device) -> bool:
    return (
        torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and not torch.is_autocast_enabled(device.type)
    )


def _dense_erf_gelu(dense: nn.Linear, x: Tensor) -> Tensor:
    return F.gelu(dense(x))


class TransformerLayer(nn.Module):
    """One layer: `Attention`, then `Mlp`, each post-norm."""

    def __init__(
        self,
        intermediate_size: int,
        hidden_size: int,
        hidden_dropout_prob: float,
        num_attention_heads: int,
        attention_probs_dropout_prob: float,
        broadcast_dropout: bool,
    ):
        super().__init__()
        self.attention = Attention(
            hidden_size,
            hidden_dropout_prob,
            num_attention_heads,
            attention_probs_dropout_prob,
            broadcast_dropout,
        )
        self.mlp = Mlp(hidden_size, hidden_dropout_prob, intermediate_size)

    def forward(self, layer_input: Tensor, top_down: Tensor | None = None) -> Tensor:
        inputs = (layer_input,) if top_down is None else (layer_input, top_down)
        return self.mlp(self.attention(*inputs))  # [B, N, D]


class Embed(nn.Module):
    """Word plus position embedding, LayerNorm, optional projection to `hidden_size`, dropout."""

    def __init__(
        self,
        embedding_size: int,
        hidden_dropout_prob: float,
        vocab_size: int,
        max_position_embeddings: int,
        hidden_size: int | None = None,
    ):
        super().__init__()
        self.word_embeddings = nn.Embedding(vocab_size, embedding_size)
        self.position_embeddings = nn.Embedding(max_position_embeddings, embedding_size)
        self.embeddings_ln = nn.LayerNorm(embedding_size, eps=LAYERNORM_EPSILON)
        self.embedding_hidden_mapping = (
            nn.Linear(embedding_size, hidden_size) if hidden_size else nn.Identity()
        )
        self.dropout = nn.Dropout(hidden_dropout_prob)

    def forward(self, input_ids: Tensor) -> Tensor:
        V = self.word_embeddings.num_embeddings
        layers.check_ids("input_ids", input_ids, "B, N", -V, V - 1)
        N, max_N = input_ids.shape[-1], self.position_embeddings.num_embeddings
        if N > max_N:
            raise ValueError(f"input_ids has {N} positions; this model has {max_N}")
        # OFFICIAL QUIRK: the mask id is -1 and reaches the table's last row by wrapping around, as
        # negative indices do in JAX.
        rows = torch.where(input_ids < 0, input_ids + V, input_ids)
        embeddings = self.word_embeddings(rows) + self.position_embeddings.weight[:N]  # [B, N, D]
        return self.dropout(self.embedding_hidden_mapping(self.embeddings_ln(embeddings)))


class Bias(nn.Module):
    """Adds a learnable bias over the last axis, in float32 or better."""

    def __init__(self, size: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(size))

    def forward(self, inputs: Tensor) -> Tensor:
        # OFFICIAL QUIRK: the sum is taken in float32 whatever the network computes in, so bfloat16
        # weights give float32 logits. (Official float64 is rounded to float32 here; ours stays.)
        dtype = torch.promote_types(inputs.dtype, torch.float32)
        return inputs.to(dtype) + self.bias[: inputs.shape[-1]].to(dtype)


class MlmLayer(nn.Module):
    """The head: dense, GELU, LayerNorm, then the dot product with the word-embedding table itself."""

    erf_gelu = False  # as in `Mlp`

    def __init__(self, hidden_size: int, vocab_size: int):
        super().__init__()
        self.mlm_dense = nn.Linear(hidden_size, hidden_size)
        self.mlm_ln = nn.LayerNorm(hidden_size, eps=LAYERNORM_EPSILON)
        self.mlm_bias = Bias(vocab_size)

    def forward(self, last_layer: Tensor, embeddings: Tensor) -> Tensor:
        dense = _dense_erf_gelu if self.erf_gelu else dense_gelu
        mlm_hidden = self.mlm_ln(dense(self.mlm_dense, last_layer))  # [B, N, D]
        return self.mlm_bias(F.linear(mlm_hidden, embeddings))  # [B, N, V]


class Transformer(PretrainedMixin, nn.Module):
    """The masked-token transformer (Chang et al. 2022, section 3.2); defaults as official.

    The published models have vocab_size 2025 (1024 codes, 1000 classes, mask), 24 layers of width
    768 with 16 heads, and 257 (256 px) or 1025 (512 px) positions: see
    `configs/maskgit_class_cond_config.py`.

    Args:
      vocab_size: V; the last id is the mask.
      hidden_size, num_hidden_layers, num_attention_heads, intermediate_size: sizes; hidden_size must
        be a multiple of num_attention_heads, else ValueError.
      hidden_dropout_prob: dropout after the embedding, the attention projection and the MLP.
      attention_probs_dropout_prob: dropout on the attention probabilities.
      max_position_embeddings: the longest sequence, class token included.
      initializer_range: standard deviation of the initial weights.
      broadcast_dropout: attention dropout as Flax does it by default, one mask for the whole batch and
        all heads. False draws each element on its own and lets flash attention run in training.
    """

    model_type = "maskgit_transformer"

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        intermediate_size: int = 3072,
        hidden_dropout_prob: float = 0.1,
        attention_probs_dropout_prob: float = 0.1,
        max_position_embeddings: int = 256,
        initializer_range: float = 0.02,
        broadcast_dropout: bool = True,
    ):
        super().__init__()
        self._config = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        self.embed = Embed(hidden_size, hidden_dropout_prob, vocab_size, max_position_embeddings)
        self.layers = nn.ModuleList(
            TransformerLayer(
                intermediate_size,
                hidden_size,
                hidden_dropout_prob,
                num_attention_heads,
                attention_probs_dropout_prob,
                broadcast_dropout,
            )
            for _ in range(num_hidden_layers)
        )
        self.mlm_layer = MlmLayer(hidden_size, vocab_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Official initialisation: weights truncated normal (at 2 sigma), biases 0, LayerNorm 1 and 0."""
        std = self._config["initializer_range"]
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
            if isinstance(module, nn.Linear | Bias):
                nn.init.zeros_(module.bias)
            if isinstance(module, nn.LayerNorm):
                module.reset_parameters()

    def forward(
        self, input_ids: Tensor, num_logits: int | None = None, first_position: int = 0
    ) -> Tensor:
        """Predicts every token.

        Args:
          input_ids: int64 [B, N]; codes, classes offset by the number of codes, -1 where masked.
          num_logits: how many logits to compute; 1024 gives what sampling uses (`logits[..., :1024]`
            of the official code) without the cost of the rest. Default: all V.
          first_position: leave the logits of earlier positions out; 1 skips the class token.

        Returns:
          logits [B, N - first_position, V or num_logits], float32 (float64 for a float64 model).

        Raises:
          TypeError, ValueError: no such ids, see `layers.check_ids`; more positions than the model has.
        """
        x = self.hidden(input_ids)  # [B, N, D]
        return self.mlm_layer(x[:, first_position:], self.head_weight[:num_logits])

    def hidden(self, input_ids: Tensor) -> Tensor:
        """The last layer's output [B, N, D], which the head makes logits of; `input_ids` as `forward`."""
        x = self.embed(input_ids)
        for layer in self.layers:
            x = layer(x)
        return x

    @property
    def head_weight(self) -> Tensor:
        """The matrix [V, D] that the head multiplies with: the word-embedding table itself."""
        return self.embed.word_embeddings.weight

    def code_logits(self, tokens: Tensor, labels: Tensor, num_codes: int) -> Tensor:
        """Predicts the image tokens: what the samplers of `maskgit_pt.samplers` call.

        Args:
          tokens: int64 [B, h*w], codes, -1 where masked.
          labels: int64 [B], class ids; -1 drops the class, for guidance, by putting the mask token in
            its place.
          num_codes: how many codes the tokenizer has.

        Returns:
          logits [B, h*w, num_codes], as `forward`.
        """
        class_tokens = torch.where(labels < 0, labels, labels + num_codes)
        return self(torch.cat([class_tokens[:, None], tokens], 1), num_codes, first_position=1)

    @property
    def num_tokens(self) -> int:
        """The tokens of an image; the class token, which stands before them, is not counted."""
        return self._config["max_position_embeddings"] - 1

    @property
    def blocks(self) -> list[nn.Module]:
        """The repeated layers, first to last."""
        return list(self.layers)

    def num_classes_with(self, num_codes: int) -> int:
        """The classes that the vocabulary holds beside `num_codes` codes and the mask."""
        return self._config["vocab_size"] - num_codes - 1
