"""MAGE (Li et al., CVPR 2023, arXiv 2211.09117; LTH14/mage): an image generator without classes.

An encoder sees part of the tokens, a decoder predicts the masked ones; both are pre-norm transformers. With
it comes a tokenizer of Google's architecture with weights of its own. RCG (LTH14/rcg) trains the same
network with classes: `num_classes` above 0.

Names in the state dict are those of the published files, but for the tokenizer's (`vqgan`), which are those
of `VQVAE`. Some published tensors are never used; they are kept, so that files can be written again.

Ids: codes 0..K-1; K + 76 stands first in every sequence; the mask is the last of K + 1001.
Axes: B batch, n image tokens, N = n + 1 positions, V = K + 1001, D width of the encoder, E of the decoder.
"""

import math

import ml_collections
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskgit_pt.nets.vqgan_tokenizer import VQVAE
from maskgit_pt.pretrained import PretrainedMixin

EPSILON = 1e-6
HEAD_EPSILON = 1e-5  # OFFICIAL QUIRK: torch's default in the head's LayerNorm alone
# OFFICIAL QUIRK: 1000 ids of an older design with classes; all images have the class 1100 - 1024 = 76.
EXTRA_IDS = 1001
ONLY_CLASS = 76
# Width -> heads of the encoder of the published sizes: ViT-B, ViT-L, and "huge", which is not published.
PUBLISHED_HEADS = {768: 12, 1024: 16, 1280: 16}
DECODER_HEADS = 16
# How the names of the tensors begin that are never used.
UNUSED = ("cls_token", "mask_token", "patch_embed.", "decoder_pred.")


class Attention(nn.Module):
    """Self-attention; one matrix gives query, key and value, within each the head is the slower index."""

    def __init__(self, width: int, num_heads: int, dropout: float):
        super().__init__()
        if width % num_heads:
            raise ValueError(f"width {width} is not a multiple of {num_heads} attention heads")
        self.num_heads, self.dropout = num_heads, dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        B, N, D = x.shape
        qkv = self.qkv(x).view(B, N, 3, self.num_heads, D // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each [B, H, N, D/H]
        rate = self.dropout if self.training else 0.0
        x = F.scaled_dot_product_attention(query, key, value, dropout_p=rate)
        x = self.proj(x.transpose(1, 2).reshape(B, N, D))
        return F.dropout(x, self.dropout, self.training)


class Mlp(nn.Module):
    """Two dense layers with a GELU (exact, by erf) between, each followed by dropout."""

    def __init__(self, width: int, hidden: int, dropout: float):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(F.gelu(self.fc1(x)), self.dropout, self.training)
        return F.dropout(self.fc2(x), self.dropout, self.training)


class Block(nn.Module):
    """One layer: attention, then MLP, each pre-norm with its residual."""

    def __init__(self, width: int, num_heads: int, mlp_size: int, dropout: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=EPSILON)
        self.attn = Attention(width, num_heads, dropout)
        self.norm2 = nn.LayerNorm(width, eps=EPSILON)
        self.mlp = Mlp(width, mlp_size, dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class TokenEmbedding(nn.Module):
    """Word plus position embedding and LayerNorm."""

    def __init__(self, vocabulary: int, positions: int, width: int):
        super().__init__()
        self.word_embeddings = nn.Embedding(vocabulary, width)
        self.position_embeddings = nn.Embedding(positions, width)
        self.LayerNorm = nn.LayerNorm(width, eps=EPSILON)

    def forward(self, ids: Tensor) -> Tensor:
        return self.LayerNorm(self.word_embeddings(ids) + self.position_embeddings.weight)


class Head(nn.Module):
    """Dense, GELU, LayerNorm, then the dot product with the word embeddings, which it does not train."""

    def __init__(self, decoder_size: int, width: int, vocabulary: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, 1, vocabulary))
        self.fc = nn.Linear(decoder_size, width)
        self.ln = nn.LayerNorm(width, eps=HEAD_EPSILON)

    def hidden(self, x: Tensor) -> Tensor:
        """[B, N, E] -> [B, N, D]."""
        return self.ln(F.gelu(self.fc(x)))

    def forward(self, x: Tensor, words: Tensor) -> Tensor:
        """[B, N, E] and words [K or V, D] -> logits [B, N, K or V]."""
        return F.linear(self.hidden(x), words.detach()) + self.bias[..., : len(words)]


class Mage(PretrainedMixin, nn.Module):
    """Encoder, decoder and tokenizer; defaults are the published ViT-B.

    ViT-L has hidden_size 1024, num_hidden_layers 24, num_attention_heads 16, decoder_hidden_size 1024.

    Args:
      num_codes: K.
      num_tokens: n, the only length the model takes.
      hidden_size, num_hidden_layers, num_attention_heads: D and the other sizes of the encoder.
      decoder_hidden_size, decoder_num_layers, decoder_num_heads: E and the other sizes of the decoder.
      mlp_ratio: width of the MLPs as a multiple of D and E.
      patch_size: of the unused patch embedding.
      num_classes: 0; or of RCG's class-conditional model, where the class's vector takes the first place
        after the embedding.
      dropout: after the embedding, on attention weights, after attention and both layers of the MLPs.
      vqvae: settings of the tokenizer, see `VQVAE`; None: a model without one.

    Raises:
      ValueError: a width that is no multiple of its heads.
    """

    model_type = "mage"
    takes_guidance = False  # it was trained without dropped labels

    def __init__(
        self,
        num_codes: int = 1024,
        num_tokens: int = 256,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        decoder_hidden_size: int = 768,
        decoder_num_layers: int = 8,
        decoder_num_heads: int = DECODER_HEADS,
        mlp_ratio: int = 4,
        patch_size: int = 16,
        num_classes: int = 0,
        dropout: float = 0.1,
        vqvae: dict | None = None,
    ):
        super().__init__()
        self._config = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        if vqvae is None:
            del self._config["vqvae"]
        self.num_codes, self.num_tokens, self.num_classes = num_codes, num_tokens, num_classes
        self.dropout = dropout
        D, E, N = hidden_size, decoder_hidden_size, num_tokens + 1
        vocabulary = num_codes + EXTRA_IDS
        self.cls_token = nn.Parameter(torch.zeros(1, 1, D))  # not used, nor are the next three
        self.pos_embed = nn.Parameter(torch.zeros(1, N, D), requires_grad=False)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, E))
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, N, E), requires_grad=False)
        self.decoder_pos_embed_learned = nn.Parameter(torch.zeros(1, N, E))
        self.token_emb = TokenEmbedding(vocabulary, N, D)
        # Not used; the authors' files have it.
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, D, patch_size, patch_size)})
        self.blocks = nn.ModuleList(
            Block(D, num_attention_heads, mlp_ratio * D, dropout) for _ in range(num_hidden_layers)
        )
        self.norm = nn.LayerNorm(D, eps=EPSILON)
        self.decoder_embed = nn.Linear(D, E)
        self.decoder_blocks = nn.ModuleList(
            Block(E, decoder_num_heads, mlp_ratio * E, dropout) for _ in range(decoder_num_layers)
        )
        self.decoder_norm = nn.LayerNorm(E, eps=EPSILON)
        self.decoder_pred = nn.Linear(E, 3 * patch_size**2)  # not used
        self.mlm_layer = Head(E, D, vocabulary)
        if num_classes:
            self.class_emb = nn.Embedding(num_classes, D)
        if vqvae is not None:
            tokenizer = VQVAE(ml_collections.ConfigDict({"vqvae": vqvae}))
            self.vqgan = tokenizer.requires_grad_(False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The authors' initialisation: dense layers Xavier uniform, embeddings normal with .02."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        nn.init.xavier_uniform_(self.patch_embed["proj"].weight.flatten(1))
        for parameter in (self.cls_token, self.mask_token, self.decoder_pos_embed_learned):
            nn.init.normal_(parameter, std=0.02)
        for table in (self.pos_embed, self.decoder_pos_embed):
            if not table.is_meta:
                table.data.copy_(sine_table(table.shape[-1], self.num_tokens))

    @property
    def mask_id(self) -> int:
        """The id of a masked token, the last one."""
        return self.num_codes + EXTRA_IDS - 1

    def num_classes_with(self, num_codes: int) -> int:
        """Classes, 0 for a model that makes images without a label; ValueError: other codes."""
        if num_codes != self.num_codes:
            raise ValueError(
                f"the transformer has {self.num_codes} codes, the tokenizer {num_codes}"
            )
        return self.num_classes

    def embed(self, tokens: Tensor, labels: Tensor | None = None) -> Tensor:
        """Tokens int64 [B, n], -1 or `mask_id` where masked -> [B, N, D]."""
        first = torch.full_like(tokens[:, :1], self.num_codes + ONLY_CLASS)
        ids = torch.cat([first, torch.where(tokens < 0, self.mask_id, tokens)], 1)
        x = F.dropout(self.token_emb(ids), self.dropout, self.training)
        if self.num_classes:
            # OFFICIAL QUIRK: after position, LayerNorm and dropout, so that the class has none of them.
            x = torch.cat([self.class_emb(labels)[:, None], x[:, 1:]], 1)
        return x

    @staticmethod
    def leave_out(x: Tensor, dropped: Tensor) -> Tensor:
        """[B, N, D] without the dropped places, bool [B, N], as many in every row -> [B, kept places, D]."""
        return x[~dropped].view(len(x), -1, x.shape[-1])

    def encode(self, x: Tensor) -> Tensor:
        """[B, kept places, D] -> the same; row 0 or the mean of the others represents the image."""
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def fill(self, latent: Tensor, masked: Tensor, dropped: Tensor | None = None) -> Tensor:
        """The decoder's input: everything masked gets what the encoder made of the class's place.

        Args:
          latent: [B, kept places, D], from `encode`.
          masked: bool [B, N].
          dropped: bool [B, N], places left out of `latent`, as many in every row; None: none.

        Returns:
          [B, N, E].
        """
        x = self.decoder_embed(latent)
        if dropped is not None:
            # Where a kept place stands among the kept ones; dropped ones are masked, and overwritten.
            place = (~dropped).cumsum(-1) - 1
            x = x.gather(1, place[..., None].expand(-1, -1, x.shape[-1]))
        x = torch.where(masked[..., None], x[:, :1], x)
        return x + self.decoder_pos_embed_learned

    def decode(self, x: Tensor) -> Tensor:
        """[B, N, E] -> the same, what the head takes."""
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_norm(x)

    def forward(
        self, tokens: Tensor, labels: Tensor | None = None, dropped: Tensor | None = None
    ) -> Tensor:
        """Predicts every token.

        Args:
          tokens: int64 [B, n], codes, -1 or `mask_id` where masked.
          labels: int64 [B]; only for a model with classes.
          dropped: bool [B, n], masked places that the encoder does not see, as many in every row.

        Returns:
          logits [B, n, K] in the dtype of the weights.

        Raises:
          ValueError: not n tokens, or no labels for a model with classes.
        """
        if tokens.shape[1:] != (self.num_tokens,):
            raise ValueError(
                f"tokens has shape {list(tokens.shape)}; this model takes [B, {self.num_tokens}]"
            )
        if self.num_classes and labels is None:
            raise ValueError(f"labels is None; this model has {self.num_classes} classes")
        masked = F.pad((tokens < 0) | (tokens == self.mask_id), (1, 0))
        x = self.embed(tokens, labels)
        if dropped is not None:
            dropped = F.pad(dropped, (1, 0))
            x = self.leave_out(x, dropped)
        x = self.decode(self.fill(self.encode(x), masked, dropped))
        return self.mlm_layer(x[:, 1:], self.token_emb.word_embeddings.weight[: self.num_codes])

    def code_logits(
        self, tokens: Tensor, labels: Tensor | None = None, num_codes: int | None = None
    ) -> Tensor:
        """The model as samplers call it; labels are not used where there are no classes.

        Args:
          tokens: int64 [B, n]; -1 where masked.
          labels: int64 [B].
          num_codes: K as the caller takes it to be; None: as the model has it.

        Returns:
          float32 logits [B, n, K].

        Raises:
          ValueError: as `forward`, or another num_codes than the model's.
        """
        if num_codes not in (None, self.num_codes):
            raise ValueError(f"num_codes is {num_codes}; this model has {self.num_codes}")
        return self(tokens, labels).float()


def masking_ratio(generator: np.random.RandomState, centre: float = 0.55) -> float:
    """A ratio from the normal distribution with deviation .25 around `centre`, cut to [0.5, 1]."""
    return float(masking_ratio_at(generator.uniform(), centre))


def masking_ratio_at(probability: float | np.ndarray, centre: float = 0.55) -> np.ndarray:
    """The inverse distribution function of `masking_ratio`, float64."""
    centre, deviation = torch.tensor([centre, 0.25], dtype=torch.float64)
    normal = torch.distributions.Normal(centre, deviation)
    low, high = normal.cdf(torch.tensor([0.5, 1.0], dtype=torch.float64))
    ratio = normal.icdf(low + torch.as_tensor(probability, dtype=torch.float64) * (high - low))
    return ratio.clamp(0.5, 1.0).numpy()


def sine_table(width: int, num_tokens: int) -> Tensor:
    """The fixed sine and cosine table [1, 1 + n, width] of MAE, columns before rows; the first row is 0."""
    side = math.isqrt(num_tokens)
    frequencies = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angles = [place.flatten()[:, None] * frequencies for place in (columns, rows)]
    table = torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], 1)
    return F.pad(table, (0, width - table.shape[1], 1, num_tokens - side * side))[None].float()
