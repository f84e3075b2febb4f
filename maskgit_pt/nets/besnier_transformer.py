"""The transformer of Besnier & Chen (2023), "A Pytorch Reproduction of Masked Generative Image
Transformer" (arXiv 2310.14400; valeoai/Maskgit-pytorch, first version of the code): pre-norm.

It differs from Google's (`maskgit_transformer.py`) in more than the side of the norms: the class
token comes last, one class more stands for "no class" so that sampling can use guidance, and the
mask has an ordinary id that the model may also predict.

Names in the state dict are those of the published files.

Ids: codes 0..K-1, mask K, class c is K + 1 + c, no class K + 1 + num_classes.
Axes: B batch, n image tokens, N positions (n + 1), V vocabulary (K + num_classes + 2), D width,
H heads, K codebook size.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskgit_pt.pretrained import PretrainedMixin

# OFFICIAL QUIRK: two epsilons. The layers around the blocks have BERT's, the blocks torch's default.
OUTER_EPSILON = 1e-12
BLOCK_EPSILON = 1e-5
INITIAL_STD = 0.02


class Attention(nn.Module):
    """Self-attention over all positions; no dropout on its output.

    `mha` has the parameters of `nn.MultiheadAttention`.
    """

    def __init__(self, hidden_size: int, num_heads: int, dropout: float):
        super().__init__()
        self.mha = PackedAttention(hidden_size, num_heads, dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.mha(x)


class PackedAttention(nn.Module):
    """What `nn.MultiheadAttention` computes for itself, by its names; dropout on the weights.

    Rows of `in_proj_weight`: all of the query, then the key, then the value; within each the head
    is the slower index.
    """

    def __init__(self, hidden_size: int, num_heads: int, dropout: float):
        super().__init__()
        if hidden_size % num_heads:
            raise ValueError(
                f"hidden_size {hidden_size} is not a multiple of num_attention_heads {num_heads}"
            )
        self.num_heads = num_heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * hidden_size, hidden_size))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * hidden_size))
        self.out_proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        B, N, D = x.shape
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)  # [B, N, 3 D]
        qkv = qkv.view(B, N, 3, self.num_heads, D // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each [B, H, N, D/H]
        rate = self.dropout if self.training else 0.0
        x = F.scaled_dot_product_attention(query, key, value, dropout_p=rate)
        return self.out_proj(x.transpose(1, 2).reshape(B, N, D))  # [B, N, D]


class Mlp(nn.Module):
    """Two dense layers with a GELU (exact, by erf) between, each followed by dropout."""

    def __init__(self, hidden_size: int, intermediate_size: int, dropout: float):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(hidden_size, intermediate_size),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(intermediate_size, hidden_size),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class PreNorm(nn.Module):
    """A residual branch: `x + fn(norm(x))`."""

    def __init__(self, hidden_size: int, fn: nn.Module):
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size, eps=BLOCK_EPSILON)
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fn(self.norm(x))


class BesnierTransformer(PretrainedMixin, nn.Module):
    """The masked-token transformer of Besnier & Chen; defaults are the published 256-pixel model.

    The 512-pixel model has num_tokens 1024 and is otherwise the same.

    Args:
      num_codes: K, the codebook size.
      num_classes: without the one that stands for "no class".
      num_tokens: n, the image tokens (grid side squared); the only length the model takes.
      hidden_size, num_hidden_layers, num_attention_heads, intermediate_size: sizes; hidden_size
        must be a multiple of num_attention_heads, else ValueError.
      dropout: on attention weights, inside and after the MLPs, and after the norms that precede a
        dense layer outside the blocks.
      latent_features: of Di4C's students (Hayakawa et al., arXiv 2410.08709; sony/di4c), 128: a number in
        [0, 1] joins the sequence as one more token, so that tokens of one step can depend on each other
        through it. 0 for none.
    """

    model_type = "besnier_transformer"
    takes_embedding_noise = True  # as Di[M]O's generators need it

    def __init__(
        self,
        num_codes: int = 1024,
        num_classes: int = 1000,
        num_tokens: int = 256,
        hidden_size: int = 768,
        num_hidden_layers: int = 24,
        num_attention_heads: int = 16,
        intermediate_size: int = 3072,
        dropout: float = 0.1,
        latent_features: int = 0,
    ):
        super().__init__()
        self._config = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        if not latent_features:
            del self._config["latent_features"]
        self.num_codes = num_codes
        self.latent_features = latent_features
        self.num_tokens = num_tokens
        vocabulary = num_codes + num_classes + 2
        self.tok_emb = nn.Embedding(vocabulary, hidden_size)
        self.pos_emb = nn.Parameter(torch.empty(1, num_tokens + 1, hidden_size))
        self.first_layer = nn.Sequential(
            nn.LayerNorm(hidden_size, eps=OUTER_EPSILON),
            nn.Dropout(dropout),
            nn.Linear(hidden_size, hidden_size),
            nn.GELU(),
            nn.LayerNorm(hidden_size, eps=OUTER_EPSILON),
            nn.Dropout(dropout),
            nn.Linear(hidden_size, hidden_size),
        )
        blocks = [
            nn.Sequential(
                PreNorm(hidden_size, Attention(hidden_size, num_attention_heads, dropout)),
                PreNorm(hidden_size, Mlp(hidden_size, intermediate_size, dropout)),
            )
            for _ in range(num_hidden_layers)
        ]
        self.transformer = nn.ModuleDict({"layers": nn.Sequential(*blocks)})
        self.last_layer = nn.Sequential(
            nn.LayerNorm(hidden_size, eps=OUTER_EPSILON),
            nn.Dropout(dropout),
            nn.Linear(hidden_size, hidden_size),
            nn.GELU(),
            nn.LayerNorm(hidden_size, eps=OUTER_EPSILON),
        )
        # OFFICIAL QUIRK: a bias for every position, classes and class position included, of which
        # only the image tokens' codes and mask are ever used.
        self.bias = nn.Parameter(torch.zeros(num_tokens + 1, vocabulary))
        if latent_features:
            self.latent_projection = nn.Sequential(
                nn.Linear(latent_features, 4 * latent_features),
                nn.GELU(),
                nn.Linear(4 * latent_features, hidden_size),
            )
        self.reset_parameters()

    @property
    def mask_id(self) -> int:
        """The id of a masked token: the one after the last code."""
        return self.num_codes

    def reset_parameters(self) -> None:
        """Weights and embeddings truncated normal (at 2 sigma), biases 0, LayerNorm 1 and 0.

        Like `Transformer`, for training from scratch; not taken from the published code.
        """
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.reset_parameters()
                continue
            for name, parameter in module.named_parameters(recurse=False):
                if name.endswith("bias"):
                    nn.init.zeros_(parameter)
                else:
                    nn.init.trunc_normal_(
                        parameter, std=INITIAL_STD, a=-2 * INITIAL_STD, b=2 * INITIAL_STD
                    )

    def forward(
        self,
        tokens: Tensor,
        labels: Tensor,
        drop_label: Tensor | None = None,
        latent: Tensor | None = None,
        embedding_noise: Tensor | None = None,
        noise_level: Tensor | None = None,
    ) -> Tensor:
        """Predicts every image token.

        Args:
          tokens: int64 [B, n]; codes, or `mask_id` where masked.
          labels: int64 [B], classes counted from 0; ignored where dropped.
          drop_label: bool [B], True where the class is replaced by "no class". OFFICIAL QUIRK: None
            drops every class.
          latent: float32 [B] in [0, 1], for a model with `latent_features`; None leaves its token out.
          embedding_noise: float32 [B, n, D], standard normal; the embeddings e of the image tokens become
            level * noise + sqrt(1 - level**2) * e, as Di[M]O's one-step generators are trained.
          noise_level: float32 [B] in [0, 1], the level; needed with `embedding_noise`.

        Returns:
          logits [B, n, K + 1] in the dtype of the weights; the last column is the mask.

        Raises:
          ValueError: not n tokens, or not one label for each row.
        """
        check_shapes(tokens, labels, self.num_tokens)
        B, n = tokens.shape
        no_class = self.tok_emb.num_embeddings - 1
        if drop_label is None:
            drop_label = torch.ones_like(labels, dtype=torch.bool)
        classes = torch.where(drop_label, no_class, labels + self.num_codes + 1)
        # OFFICIAL QUIRK: the class is the last of the sequence.
        ids = torch.cat([tokens, classes.view(B, 1)], dim=1)  # [B, N]
        x = self.tok_emb(ids)  # [B, N, D]
        if embedding_noise is not None:
            level = noise_level[:, None, None].to(x.dtype)
            disturbed = level * embedding_noise.to(x.dtype) + torch.sqrt(1 - level**2) * x[:, :n]
            x = torch.cat([disturbed, x[:, n:]], dim=1)
        x = x + self.pos_emb
        if latent is not None:
            x = torch.cat([x, self._embed_latent(latent)[:, None]], dim=1)  # [B, N + 1, D]
        x = self.first_layer(x)
        x = self.transformer["layers"](x)
        K = self.num_codes + 1  # codes and mask; nothing else is needed from the head
        x = self.last_layer(x[:, :n])  # [B, n, D]
        return F.linear(x, self.tok_emb.weight[:K]) + self.bias[:n, :K]

    def _embed_latent(self, latent: Tensor) -> Tensor:
        """[B] -> [B, D], through sines and cosines of 1000 times the number, as for times of diffusion."""
        half = self.latent_features // 2
        powers = torch.arange(half, dtype=torch.float32, device=latent.device) / (half - 1)
        angles = 1000 * latent.float()[:, None] * torch.exp(-math.log(10000) * powers)  # [B, half]
        features = torch.cat([angles.sin(), angles.cos()], dim=1)
        return self.latent_projection(features.to(self.tok_emb.weight.dtype))

    def code_logits(
        self, tokens: Tensor, labels: Tensor, num_codes: int | None = None, **drawn: Tensor
    ) -> Tensor:
        """The model as samplers call it.

        Args:
          tokens: int64 [B, n]; -1 where masked. Other ids are passed on, `mask_id` included, which
            a position may have drawn.
          labels: int64 [B]; -1 for no class.
          num_codes: K as the caller takes it to be; None: as the model has it.
          **drawn: `latent`, `embedding_noise` and `noise_level` of `forward`.

        Returns:
          float32 logits [B, n, K + 1]; the last column is the mask.

        Raises:
          ValueError: as `forward`, or another num_codes than the model's.
        """
        if num_codes not in (None, self.num_codes):
            raise ValueError(f"num_codes is {num_codes}; this model has {self.num_codes}")
        tokens = torch.where(tokens < 0, self.mask_id, tokens)
        return self(tokens, labels, drop_label=labels < 0, **drawn).float()

    @property
    def blocks(self) -> list[nn.Module]:
        """The repeated layers, first to last."""
        return list(self.transformer["layers"])

    def num_classes_with(self, num_codes: int) -> int:
        """The number of classes.

        Raises:
          ValueError: the network was made for another number of codes.
        """
        if self._config["num_codes"] != num_codes:
            raise ValueError(
                f"the transformer has {self._config['num_codes']} codes, the tokenizer {num_codes}"
            )
        return self._config["num_classes"]


def check_shapes(tokens: Tensor, labels: Tensor, num_tokens: int) -> None:
    """Raises ValueError unless tokens are [B, num_tokens] and labels [B]."""
    if tokens.dim() != 2 or tokens.shape[1] != num_tokens:
        raise ValueError(
            f"tokens has shape {list(tokens.shape)}; this model takes [B, {num_tokens}]"
        )
    if labels.shape != tokens.shape[:1]:
        raise ValueError(
            f"labels has shape {list(labels.shape)}; accepted: [{tokens.shape[0]}], one for "
            "each row of tokens"
        )
