"""The transformer of Besnier et al. 2025, "Halton scheduler for masked generative image transformer"
(arXiv 2503.17076; valeoai/Halton-MaskGIT): a DiT for masked tokens.

It differs from the authors' first one (`besnier_transformer.py`) in almost everything. The class sets shift,
scale and gate of every layer (adaLN) instead of being a token. Norms are RMS norms, queries and keys
are normalised, the MLPs are gated (SwiGLU), and register tokens stand behind the image tokens.

Names in the state dict are those of the published files, which name the embedding of the tokens a second
time as `head.weight`.

Ids: codes 0..K-1, mask K. Classes 0..num_classes-1, no class num_classes.
Axes: B batch, n image tokens, N positions (n + registers), D width, H heads, K codebook size.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskgit_pt.nets.besnier_transformer import check_shapes
from maskgit_pt.pretrained import PretrainedMixin

EPSILON = 1e-5
INITIAL_STD = 0.02
# Width -> heads of the published sizes (tiny, small, base, large, and xlarge, which is not published).
PUBLISHED_HEADS = {384: 6, 512: 6, 768: 12, 1024: 16, 1152: 16}


def rms_normalize(x: Tensor) -> Tensor:
    """x / sqrt(mean(x**2) + 1e-5) over the last axis; half precision is computed in float32."""
    y = x.to(torch.promote_types(x.dtype, torch.float32))
    return (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + EPSILON)).to(x.dtype)


class RMSNorm(nn.Module):
    """`rms_normalize` with a gain and, if asked for, a bias."""

    def __init__(self, hidden_size: int, bias: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.bias = nn.Parameter(torch.zeros(hidden_size)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.weight * rms_normalize(x)
        return x if self.bias is None else x + self.bias


class Attention(nn.Module):
    """Self-attention over all positions, without biases.

    The width of a head is floor(D / H). Where H does not divide D (the published "small": 512 and 6), the
    projections are narrower than D. Queries and keys are normalised over all heads together.
    """

    def __init__(self, hidden_size: int, num_heads: int, dropout: float):
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        inner = hidden_size // num_heads * num_heads
        self.wq = nn.Linear(hidden_size, inner, bias=False)
        self.wk = nn.Linear(hidden_size, inner, bias=False)
        self.wv = nn.Linear(hidden_size, inner, bias=False)
        self.wo = nn.Linear(inner, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        projections = rms_normalize(self.wq(x)), rms_normalize(self.wk(x)), self.wv(x)
        query, key, value = (
            y.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for y in projections
        )  # each [B, H, N, floor(D/H)]
        rate = self.dropout if self.training else 0.0
        x = F.scaled_dot_product_attention(query, key, value, dropout_p=rate)
        return F.dropout(self.wo(x.transpose(1, 2).flatten(2)), rate)  # [B, N, D]


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) * w3 x), without biases; dropout on the product."""

    def __init__(self, hidden_size: int, intermediate_size: int, dropout: float):
        super().__init__()
        self.dropout = dropout
        self.w1 = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.w2 = nn.Linear(intermediate_size, hidden_size, bias=False)
        self.w3 = nn.Linear(hidden_size, intermediate_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.w1(x)) * self.w3(x)
        return self.w2(F.dropout(x, self.dropout, self.training))


def modulation(hidden_size: int, parts: int) -> nn.Sequential:
    """What turns the embedding of the class into `parts` vectors."""
    return nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, parts * hidden_size))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """[B, N, D] moved by vectors [B, 1, D]."""
    return x * (1 + scale) + shift


class Block(nn.Module):
    """Attention and MLP, each shifted, scaled and gated as the class says."""

    def __init__(self, hidden_size: int, num_heads: int, intermediate_size: int, dropout: float):
        super().__init__()
        self.mlp = modulation(hidden_size, 6)
        self.ln1 = RMSNorm(hidden_size)
        self.attn = Attention(hidden_size, num_heads, dropout)
        self.ln2 = RMSNorm(hidden_size)
        self.ff = FeedForward(hidden_size, intermediate_size, dropout)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x [B, N, D], condition [B, D] -> [B, N, D]."""
        vectors = self.mlp(condition)[:, None].chunk(6, dim=-1)
        shift1, scale1, gate1, shift2, scale2, gate2 = vectors  # each [B, 1, D]
        x = x + gate1 * self.attn(modulate(self.ln1(x), shift1, scale1))
        return x + gate2 * self.ff(modulate(self.ln2(x), shift2, scale2))


class LastNorm(nn.Module):
    """The norm before the head, shifted and scaled as the class says."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.norm_final = RMSNorm(hidden_size, bias=True)
        self.mlp = modulation(hidden_size, 2)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return modulate(self.norm_final(x), *self.mlp(condition)[:, None].chunk(2, dim=-1))


class Head(nn.Module):
    """Logits by the embedding of the tokens, with a bias of its own."""

    def __init__(self, entries: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(entries))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return F.linear(x, embedding, self.bias)


class HaltonTransformer(PretrainedMixin, nn.Module):
    """The transformer of Halton-MaskGIT; defaults are the published base model for 256 pixels.

    Args:
      num_codes: K, the codebook size.
      num_classes: without the one that stands for "no class".
      num_tokens: n, the image tokens (grid side squared); the only length the model takes.
      hidden_size, num_hidden_layers, num_attention_heads: sizes. The number of heads need not divide the
        width.
      intermediate_size: inner width of the gated MLPs; None: floor(8/3 hidden_size), rounded up to a
        multiple of 256, as published.
      num_registers: tokens behind the image tokens that only the layers see.
      dropout: in training, on attention weights, after the attention and inside the MLPs.

    Raises:
      ValueError: more heads than hidden_size.
    """

    model_type = "halton_transformer"

    def __init__(
        self,
        num_codes: int = 16384,
        num_classes: int = 1000,
        num_tokens: int = 256,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        intermediate_size: int | None = None,
        num_registers: int = 1,
        dropout: float = 0.1,
    ):
        super().__init__()
        if not 1 <= num_attention_heads <= hidden_size:
            raise ValueError(
                f"num_attention_heads is {num_attention_heads}; accepted: 1 to hidden_size = {hidden_size}"
            )
        if intermediate_size is None:
            intermediate_size = 256 * math.ceil((8 * hidden_size // 3) / 256)
        self._config = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        self.num_codes, self.num_classes, self.num_tokens = num_codes, num_classes, num_tokens
        self.cls_emb = nn.Embedding(num_classes + 1, hidden_size)
        self.tok_emb = nn.Embedding(num_codes + 1, hidden_size)
        self.pos_emb = nn.Embedding(num_tokens, hidden_size)
        blocks = [
            Block(hidden_size, num_attention_heads, intermediate_size, dropout)
            for _ in range(num_hidden_layers)
        ]
        self.transformer = nn.ModuleDict({"layers": nn.ModuleList(blocks)})
        self.last_norm = LastNorm(hidden_size)
        self.head = Head(num_codes + 1)
        self.reg_tokens = nn.Embedding(num_registers, hidden_size) if num_registers else None
        self.reset_parameters()

    @property
    def mask_id(self) -> int:
        """The id of a masked token: the one after the last code."""
        return self.num_codes

    def reset_parameters(self) -> None:
        """Initial values as published: a layer adds nothing at first, since its gates are 0.

        Linear layers are Xavier uniform with zero bias, embeddings normal with standard deviation .02, the
        layers' modulations 0; that of the last norm is not.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=INITIAL_STD)
        for block in self.transformer["layers"]:
            nn.init.zeros_(block.mlp[1].weight)
            nn.init.zeros_(block.mlp[1].bias)

    def forward(self, tokens: Tensor, labels: Tensor, drop_label: Tensor | None = None) -> Tensor:
        """Predicts every token.

        Args:
          tokens: int64 [B, n]; codes, `mask_id` where masked.
          labels: int64 [B], classes.
          drop_label: bool [B], True where "no class" replaces the class; None: nowhere.

        Returns:
          logits [B, n, K + 1] in the dtype of the weights; the last column is the mask.

        Raises:
          ValueError: not n tokens, or not one label for each row.
        """
        check_shapes(tokens, labels, self.num_tokens)
        if drop_label is not None:
            labels = torch.where(drop_label, self.num_classes, labels)
        condition = self.cls_emb(labels)  # [B, D]
        x = self.tok_emb(tokens) + self.pos_emb.weight  # [B, n, D]
        if self.reg_tokens is not None:
            # Not len(x), which would fix the batch in an exported graph.
            x = torch.cat(
                [x, self.reg_tokens.weight.expand(x.shape[0], -1, -1)], dim=1
            )  # [B, N, D]
        for block in self.transformer["layers"]:
            x = block(x, condition)
        x = self.last_norm(x[:, : self.num_tokens], condition)  # [B, n, D]
        return self.head(x, self.tok_emb.weight)  # [B, n, K + 1]

    def code_logits(self, tokens: Tensor, labels: Tensor, num_codes: int | None = None) -> Tensor:
        """The model as samplers call it.

        Args:
          tokens: int64 [B, n]; -1 where masked. Other ids are passed on, `mask_id` included, which
            a position may have drawn.
          labels: int64 [B]; -1 for no class.
          num_codes: K as the caller takes it to be; None: as the model has it.

        Returns:
          float32 logits [B, n, K + 1]; the last column is the mask.

        Raises:
          ValueError: as `forward`, or another num_codes than the model's.
        """
        if num_codes not in (None, self.num_codes):
            raise ValueError(f"num_codes is {num_codes}; this model has {self.num_codes}")
        tokens = torch.where(tokens < 0, self.mask_id, tokens)
        return self(tokens, labels, drop_label=labels < 0).float()

    @property
    def blocks(self) -> list[nn.Module]:
        """The repeated layers, first to last."""
        return list(self.transformer["layers"])

    def num_classes_with(self, num_codes: int) -> int:
        """The number of classes.

        Raises:
          ValueError: the network was made for another number of codes.
        """
        if self.num_codes != num_codes:
            raise ValueError(
                f"the transformer has {self.num_codes} codes, the tokenizer {num_codes}"
            )
        return self.num_classes
