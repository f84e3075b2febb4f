"""LlamaGen's VQ tokenizer (Sun et al. 2024, "Autoregressive model beats diffusion", arXiv 2406.06525;
FoundationVision/LlamaGen), which Halton-MaskGIT works on: VQ-16, 16384 codes of 8 numbers.

It is built from the blocks of the taming VQGAN (`taming_vqgan.py`). It differs in the order of names, in
attention on the last level alone, and in its codes: features and codes are compared as unit vectors, and
the unit vectors are what is decoded.

Its networks work on images in [-1, 1]. The methods of `LlamaGenVQ` nevertheless take and return images in
[0, 1], as everywhere in this project; `encoder` and `decoder` do not.

Names in the state dict are those of the published file.

Axes: B batch, C channels, H W pixels, h w tokens, K codebook size, D width of a code.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskgit_pt.nets import layers
from maskgit_pt.nets.taming_vqgan import (
    COMMITMENT_COST,
    IMAGE_CHANNELS,
    AttnBlock,
    Downsample,
    ResnetBlock,
    UnitRangeTokenizer,
    Upsample,
)

_CODES_REMEMBERED = 65536  # the length of a record that the authors keep while training


class Level(nn.Module):
    """Residual blocks of one width, each followed by attention if there is any."""

    def __init__(self, widths: list[int], attention: bool, dropout: float):
        super().__init__()
        self.res = nn.ModuleList(ResnetBlock(a, b, dropout) for a, b in itertools.pairwise(widths))
        self.attn = nn.ModuleList(AttnBlock(width) for width in widths[1:] if attention)

    def forward(self, x: Tensor) -> Tensor:
        for block, attn in itertools.zip_longest(self.res, self.attn):
            x = block(x)
            x = x if attn is None else attn(x)
        return x


def middle(channels: int, dropout: float) -> nn.Sequential:
    """Block, attention, block."""
    return nn.Sequential(
        ResnetBlock(channels, channels, dropout),
        AttnBlock(channels),
        ResnetBlock(channels, channels, dropout),
    )


class Encoder(nn.Module):
    """Images [B, 3, H, W] in [-1, 1] -> [B, z_channels, H/2^(L-1), W/2^(L-1)], L levels."""

    def __init__(self, config: dict):
        super().__init__()
        widths = [config["channels"] * m for m in config["channel_multipliers"]]
        self.conv_in = nn.Conv2d(IMAGE_CHANNELS, config["channels"], 3, padding=1)
        self.conv_blocks = nn.ModuleList()
        width_in, last = config["channels"], len(widths) - 1
        for i, width in enumerate(widths):
            blocks = [width_in] + [width] * config["num_res_blocks"]
            level = Level(blocks, i == last, config["dropout"])
            if i < last:
                level.downsample = Downsample(width)
            self.conv_blocks.append(level)
            width_in = width
        self.mid = middle(width_in, config["dropout"])
        self.norm_out = layers.GroupNorm(width_in)
        self.conv_out = nn.Conv2d(width_in, config["z_channels"], 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(layers.in_fast_order(x))
        for level in self.conv_blocks:
            x = level(x)
            if hasattr(level, "downsample"):
                x = level.downsample(x)
        x = self.mid(x)
        return self.conv_out(layers.norm_and_activate(self.norm_out, F.silu, x))


class Decoder(nn.Module):
    """[B, z_channels, h, w] -> images [B, 3, 2^(L-1) h, 2^(L-1) w] around [-1, 1], not clipped."""

    def __init__(self, config: dict):
        super().__init__()
        # `conv_blocks` counts from the coarsest level; one block more than in the encoder.
        widths = [config["channels"] * m for m in reversed(config["channel_multipliers"])]
        self.conv_in = nn.Conv2d(config["z_channels"], widths[0], 3, padding=1)
        self.mid = middle(widths[0], config["dropout"])
        self.conv_blocks = nn.ModuleList()
        width_in, last = widths[0], len(widths) - 1
        for i, width in enumerate(widths):
            blocks = [width_in] + [width] * (config["num_res_blocks"] + 1)
            level = Level(blocks, i == 0, config["dropout"])
            if i < last:
                level.upsample = Upsample(width)
            self.conv_blocks.append(level)
            width_in = width
        self.norm_out = layers.GroupNorm(width_in)
        self.conv_out = nn.Conv2d(width_in, IMAGE_CHANNELS, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.conv_in(layers.in_fast_order(x)))
        for level in self.conv_blocks:
            x = level(x)
            if hasattr(level, "upsample"):
                x = level.upsample(x)
        return self.conv_out(layers.norm_and_activate(self.norm_out, F.silu, x))


class VectorQuantizer(nn.Module):
    """The codebook, `embedding.weight` [K, D] of any lengths, used as unit vectors.

    `codebook_used` is a record of the last codes seen in training. Nothing reads it here; it is kept because
    the published file has it.
    """

    def __init__(self, num_codes: int, embed_dim: int):
        super().__init__()
        self.embedding = nn.Embedding(num_codes, embed_dim)
        nn.init.uniform_(self.embedding.weight, -1 / num_codes, 1 / num_codes)
        self.register_buffer("codebook_used", torch.zeros(_CODES_REMEMBERED))

    def codes(self) -> Tensor:
        """The unit vectors, [K, D]."""
        return F.normalize(self.embedding.weight, dim=-1)

    def encode_ids(self, x: Tensor) -> Tensor:
        """The nearest code by direction, the first on ties: [B, D, h, w] -> int64 [B, h, w]."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        x = F.normalize(x.movedim(1, -1).to(dtype), dim=-1)  # [B, h, w, D]
        return (x @ F.normalize(self.embedding.weight.to(dtype), dim=-1).T).argmax(-1)

    def decode_ids(self, ids: Tensor) -> Tensor:
        """Looks the unit vectors up: int64 [B, h, w] -> [B, D, h, w]."""
        return F.embedding(ids, self.codes()).movedim(-1, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """As `LlamaGenVQ.encode`, of features [B, D, h, w]; what it gives are unit vectors.

        The authors' entropy loss has the factor 0.
        """
        indices = self.encode_ids(x)
        quantized = self.decode_ids(indices)
        result = {"encoding_indices": indices, "raw": x}
        x = F.normalize(x, dim=1)
        if self.training:
            result["q_latent_loss"] = ((quantized - x.detach()) ** 2).mean()
            result["e_latent_loss"] = COMMITMENT_COST * ((quantized.detach() - x) ** 2).mean()
            result["quantizer_loss"] = result["e_latent_loss"] + result["q_latent_loss"]
            quantized = x + (quantized - x).detach()
        return quantized, result


class LlamaGenVQ(UnitRangeTokenizer):
    """The tokenizer; defaults are the published VQ-16.

    Every method takes and returns images in [0, 1]; the authors' work in [-1, 1].

    Args:
      num_codes: K.
      embed_dim: D, width of a code.
      z_channels: width of the features on the outer side of the 1x1 convolutions.
      channels: width at full resolution, a multiple of 32, else ValueError.
      channel_multipliers: of each level, from full resolution on; VQ-8 has (1, 2, 2, 4).
      num_res_blocks: of each level of the encoder; the decoder has one more.
      dropout: in the residual blocks.
    """

    model_type = "llamagen_vq"

    def __init__(
        self,
        num_codes: int = 16384,
        embed_dim: int = 8,
        z_channels: int = 256,
        channels: int = 128,
        channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4),
        num_res_blocks: int = 2,
        dropout: float = 0.0,
    ):
        super().__init__()
        self._config = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        self._config["channel_multipliers"] = list(channel_multipliers)
        self.encoder = Encoder(self._config)
        self.decoder = Decoder(self._config)
        self.quantize = VectorQuantizer(num_codes, embed_dim)
        self.quant_conv = nn.Conv2d(z_channels, embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, z_channels, 1)
