"""The tokenizer of Besnier & Chen (2023): the VQGAN of Esser et al. 2021 ("Taming Transformers for
High-Resolution Image Synthesis", arXiv 2012.09841; CompVis/taming-transformers), f16, 1024 codes.

It differs from Google's (`vqgan_tokenizer.py`): attention on the coarsest maps, biases everywhere,
strided convolutions for downsampling, the usual shortcut, a 1x1 convolution on either side of the
codebook, and networks that work on images in [-1, 1]. The methods of `TamingVQGAN` nevertheless
take and return images in [0, 1], as everywhere in this project; `encoder` and `decoder` do not.

Names in the state dict are those of the published files.

Axes: B batch, C channels, H W pixels, h w tokens, K codebook size, D width of a code.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskgit_pt.images import as_image_batch
from maskgit_pt.libml import losses
from maskgit_pt.nets import layers
from maskgit_pt.pretrained import PretrainedMixin

COMMITMENT_COST = 0.25
IMAGE_CHANNELS = 3


class ResnetBlock(nn.Module):
    """Norm, swish, 3x3 convolution, twice; a 1x1 shortcut where the width changes."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float):
        super().__init__()
        self.norm1 = layers.GroupNorm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = layers.GroupNorm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)
        else:
            self.nin_shortcut = None

    def forward(self, x: Tensor) -> Tensor:
        residual = x if self.nin_shortcut is None else self.nin_shortcut(x)
        x = self.conv1(layers.norm_and_activate(self.norm1, F.silu, x))
        x = self.conv2(self.dropout(layers.norm_and_activate(self.norm2, F.silu, x)))
        return x + residual if torch.is_grad_enabled() else x.add_(residual)


class AttnBlock(nn.Module):
    """Attention of every place of the map to every other, one head, as a residual."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = layers.GroupNorm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)  # [B, C, h, w]
        # One head: [B, 1, h*w, C]. The axis is there for the ONNX exporter, which knows no attention without.
        query, key, value = (conv(y).flatten(2).mT[:, None] for conv in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(query, key, value)[:, 0]
        return x + self.proj_out(y.mT.reshape(x.shape))


class Downsample(nn.Module):
    """Halves both sides: a strided convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        # OFFICIAL QUIRK: padded at the right and at the bottom only.
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Doubles both sides: nearest neighbour, then a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(layers.upsample(x, 2))


class Level(nn.Module):
    """Blocks of one width, each followed by attention if there is any."""

    def __init__(self, widths: list[int], attention: bool, dropout: float):
        super().__init__()
        self.block = nn.ModuleList(
            ResnetBlock(a, b, dropout) for a, b in itertools.pairwise(widths)
        )
        self.attn = nn.ModuleList(AttnBlock(width) for width in widths[1:] if attention)

    def forward(self, x: Tensor) -> Tensor:
        for block, attn in itertools.zip_longest(self.block, self.attn):
            x = block(x)
            x = x if attn is None else attn(x)
        return x


class Middle(nn.Module):
    """Block, attention, block."""

    def __init__(self, channels: int, dropout: float):
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, dropout)
        self.attn_1 = AttnBlock(channels)
        self.block_2 = ResnetBlock(channels, channels, dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    """Images [B, 3, H, W] in [-1, 1] -> [B, z_channels, H/2^(L-1), W/2^(L-1)], L levels."""

    def __init__(self, config: dict):
        super().__init__()
        widths, attention = _levels(config)
        self.conv_in = nn.Conv2d(IMAGE_CHANNELS, config["channels"], 3, padding=1)
        self.down = nn.ModuleList()
        width_in = config["channels"]
        for i, width in enumerate(widths):
            blocks = [width_in] + [width] * config["num_res_blocks"]
            level = Level(blocks, attention[i], config["dropout"])
            if i < len(widths) - 1:
                level.downsample = Downsample(width)
            self.down.append(level)
            width_in = width
        self.mid = Middle(width_in, config["dropout"])
        self.norm_out = layers.GroupNorm(width_in)
        self.conv_out = nn.Conv2d(width_in, config["z_channels"], 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(layers.in_fast_order(x))
        for level in self.down:
            x = level(x)
            if hasattr(level, "downsample"):
                x = level.downsample(x)
        x = self.mid(x)
        return self.conv_out(layers.norm_and_activate(self.norm_out, F.silu, x))


class Decoder(nn.Module):
    """[B, z_channels, h, w] -> images [B, 3, 2^(L-1) h, 2^(L-1) w] around [-1, 1], not clipped."""

    def __init__(self, config: dict):
        super().__init__()
        widths, attention = _levels(config)
        self.conv_in = nn.Conv2d(config["z_channels"], widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], config["dropout"])
        self.up = nn.ModuleList()
        for i, width in enumerate(widths):
            # One block more than in the encoder. `up` counts from full resolution, which comes last.
            width_in = widths[min(i + 1, len(widths) - 1)]
            blocks = [width_in] + [width] * (config["num_res_blocks"] + 1)
            level = Level(blocks, attention[i], config["dropout"])
            if i > 0:
                level.upsample = Upsample(width)
            self.up.append(level)
        self.norm_out = layers.GroupNorm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], IMAGE_CHANNELS, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.conv_in(layers.in_fast_order(x)))
        for level in reversed(self.up):
            x = level(x)
            if hasattr(level, "upsample"):
                x = level.upsample(x)
        return self.conv_out(layers.norm_and_activate(self.norm_out, F.silu, x))


def _levels(config: dict) -> tuple[list[int], list[bool]]:
    """Width of each level from full resolution on, and whether it has attention.

    That depends on the side that a level has at the nominal resolution, whatever the image's.
    """
    multipliers = config["channel_multipliers"]
    widths = [config["channels"] * multiplier for multiplier in multipliers]
    sides = [config["resolution"] >> i for i in range(len(multipliers))]
    return widths, [side in config["attention_resolutions"] for side in sides]


class VectorQuantizer(nn.Module):
    """The codebook, `embedding.weight` [K, D], and the search for the nearest code."""

    def __init__(self, num_codes: int, embed_dim: int):
        super().__init__()
        self.embedding = nn.Embedding(num_codes, embed_dim)
        nn.init.uniform_(self.embedding.weight, -1 / num_codes, 1 / num_codes)

    def encode_ids(self, x: Tensor) -> Tensor:
        """The nearest code, the first on ties: [B, D, h, w] -> int64 [B, h, w]."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        x = x.movedim(1, -1).to(dtype)  # [B, h, w, D]
        codes = self.embedding.weight.to(dtype)
        distances = losses.squared_euclidean_distance(x.flatten(0, -2), codes)
        return distances.argmin(-1).view(x.shape[:-1])

    def decode_ids(self, ids: Tensor) -> Tensor:
        """Looks the codes up: int64 [B, h, w] -> [B, D, h, w]."""
        return self.embedding(ids).movedim(-1, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """As `TamingVQGAN.encode`, of features [B, D, h, w]."""
        indices = self.encode_ids(x)
        quantized = self.decode_ids(indices)
        result = {"encoding_indices": indices, "raw": x}
        if self.training:
            # OFFICIAL QUIRK: the factor is on the term that moves the codes; the paper has it on the
            # other one, which holds the encoder to them.
            result["e_latent_loss"] = ((quantized.detach() - x) ** 2).mean()
            result["q_latent_loss"] = COMMITMENT_COST * ((quantized - x.detach()) ** 2).mean()
            result["quantizer_loss"] = result["e_latent_loss"] + result["q_latent_loss"]
            quantized = x + (quantized - x).detach()
        return quantized, result


class UnitRangeTokenizer(PretrainedMixin, nn.Module):
    """Takes and returns images in [0, 1] around networks that work on images in [-1, 1].

    Subclasses bring `encoder`, `quant_conv`, `quantize`, `post_quant_conv` and `decoder`.
    """

    @property
    def downsampling(self) -> int:
        """Pixels per token along one side: 16 for the published model."""
        return 2 ** (len(self._config["channel_multipliers"]) - 1)

    def get_codebook_funct(self) -> Tensor:
        """The codebook [K, D]; named as in `VQVAE`."""
        return self.quantize.embedding.weight

    def encode(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Quantizes.

        Args:
          images: float [B, 3, H, W] in [0, 1], sides multiples of `downsampling`.

        Returns:
          The quantized features [B, D, h, w] (in training mode with the gradient of the encoder), and a
          dict: "encoding_indices" int64 [B, h, w], "raw" features [B, D, h, w] before quantizing; in
          training mode also "quantizer_loss", the sum of "e_latent_loss" and "q_latent_loss".
        """
        return self.quantize(self._features(images))

    def decode(self, x: Tensor) -> Tensor:
        """Quantized features [B, D, h, w] -> images [B, 3, H, W] around [0, 1], not clipped."""
        return (self.decoder(self.post_quant_conv(x)) + 1) / 2

    def encode_to_indices(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W], floating-point in [0, 1] or uint8 -> int64 [B, h, w].

        Raises:
          ValueError: images of another shape, dtype or range, see `images.as_image_batch`.
        """
        images = as_image_batch(images, self.downsampling).to(self.get_codebook_funct().dtype)
        return self.quantize.encode_ids(self._features(images))

    def decode_from_indices(self, indices: Tensor) -> Tensor:
        """int64 [B, h, w] -> images [B, 3, H, W] around [0, 1], not clipped.

        Raises:
          TypeError, ValueError: no such codes, see `layers.check_ids`.
        """
        layers.check_ids("indices", indices, "B, h, w", 0, len(self.get_codebook_funct()) - 1)
        return self.decode(self.quantize.decode_ids(indices))

    def forward(self, images: Tensor) -> Tensor:
        """Reconstructs: [B, 3, H, W] -> [B, 3, H, W], both in [0, 1]; the result is not clipped."""
        return self.decode(self.encode(images)[0])

    def _features(self, images: Tensor) -> Tensor:
        """Images in [0, 1] -> [B, D, h, w], what the codes are compared with."""
        return self.quant_conv(self.encoder(2 * images - 1))


class TamingVQGAN(UnitRangeTokenizer):
    """The tokenizer; defaults are the published vqgan_imagenet_f16_1024.

    Every method takes and returns images in [0, 1].

    Args:
      num_codes: K.
      embed_dim: D, width of a code.
      z_channels: width of the features on the outer side of the 1x1 convolutions.
      resolution: nominal side in pixels; decides, with attention_resolutions, which levels have
        attention. Images of any size that is a multiple of `downsampling` are accepted.
      channels: width at full resolution, a multiple of 32, else ValueError.
      channel_multipliers: of each level, from full resolution on.
      num_res_blocks: of each level of the encoder; the decoder has one more.
      attention_resolutions: sides at nominal resolution of the levels with attention.
      dropout: in the residual blocks.
    """

    model_type = "taming_vqgan"

    def __init__(
        self,
        num_codes: int = 1024,
        embed_dim: int = 256,
        z_channels: int = 256,
        resolution: int = 256,
        channels: int = 128,
        channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4),
        num_res_blocks: int = 2,
        attention_resolutions: tuple[int, ...] = (16,),
        dropout: float = 0.0,
    ):
        super().__init__()
        self._config = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        for name in ("channel_multipliers", "attention_resolutions"):
            self._config[name] = list(self._config[name])
        self.encoder = Encoder(self._config)
        self.decoder = Decoder(self._config)
        self.quantize = VectorQuantizer(num_codes, embed_dim)
        self.quant_conv = nn.Conv2d(z_channels, embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, z_channels, 1)
