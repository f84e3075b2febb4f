"""The tokenizer (official `nets/vqgan_tokenizer.py`): a VQGAN without attention.

Images are [B, 3, H, W] in [0, 1] (not [-1, 1]); features [B, D, h, w] with h = H/16 for the
published models; indices [B, h, w]. The official code is NHWC, this is NCHW.
"""

import copy
import functools
from collections.abc import Callable

import ml_collections
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskgit_pt.images import as_image_batch
from maskgit_pt.libml import losses
from maskgit_pt.libml import rng as rng_lib
from maskgit_pt.nets import layers
from maskgit_pt.nets.initializers import lecun_normal_, variance_scaling_uniform_
from maskgit_pt.pretrained import PretrainedMixin

ACTIVATIONS: dict[str, Callable[..., Tensor]] = {"relu": F.relu, "swish": F.silu}


def get_activation(name: str) -> Callable[..., Tensor]:
    """Returns the activation that `config.vqvae.activation_fn` names; ValueError if unknown."""
    if name not in ACTIVATIONS:
        raise ValueError(f"activation_fn is {name!r}; known: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def conv(in_channels: int, filters: int, kernel_size: int, bias: bool = True) -> nn.Conv2d:
    """Flax's `nn.Conv` at stride 1: SAME padding."""
    return nn.Conv2d(in_channels, filters, kernel_size, padding=kernel_size // 2, bias=bias)


def _norm(vqvae: ml_collections.ConfigDict) -> Callable[[int], nn.Module]:
    norm = layers.get_norm_layer(vqvae.norm_type)
    groups = vqvae.get("norm_groups")
    return norm if groups is None else functools.partial(norm, groups=groups)


def _with_norm_groups(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The configuration; with `norm_groups` where the official 32 do not divide the filters."""
    vqvae = config.vqvae
    official = vqvae.filters % layers.GROUPNORM_GROUPS == 0
    if official or vqvae.norm_type != "GN" or vqvae.get("norm_groups") is not None:
        return config
    config = copy.deepcopy(config)
    with config.unlocked():
        config.vqvae.norm_groups = layers.group_count(vqvae.filters)
    return config


def _middle_blocks(vqvae: ml_collections.ConfigDict) -> int:
    return vqvae.get("middle_blocks", vqvae.num_res_blocks)


class ResBlock(nn.Module):
    """Norm, activation, 3x3 convolution, twice; no biases."""

    def __init__(
        self,
        in_channels: int,
        filters: int,
        norm_fn: Callable[[int], nn.Module],
        activation_fn: Callable[..., Tensor],
        use_conv_shortcut: bool = False,
    ):
        super().__init__()
        self.activation_fn = activation_fn
        self.norm0 = norm_fn(in_channels)
        self.conv0 = conv(in_channels, filters, 3, bias=False)
        self.norm1 = norm_fn(filters)
        self.conv1 = conv(filters, filters, 3, bias=False)
        if in_channels != filters:
            # OFFICIAL QUIRK: see forward; hence `filters`, not `in_channels`, as its input.
            self.conv_shortcut = conv(filters, filters, 3 if use_conv_shortcut else 1, bias=False)
        else:
            self.conv_shortcut = None

    def forward(self, x: Tensor) -> Tensor:
        residual = x
        x = self.conv0(layers.norm_and_activate(self.norm0, self.activation_fn, x))
        x = self.conv1(layers.norm_and_activate(self.norm1, self.activation_fn, x))
        if self.conv_shortcut is not None:
            # OFFICIAL QUIRK: where the width changes the shortcut convolves the processed x and the
            # block's input is dropped. It looks like a slip, but the weights are trained with it.
            residual = self.conv_shortcut(x)
        return x + residual if torch.is_grad_enabled() else x.add_(residual)


class Encoder(nn.Module):
    """Images [B, 3, H, W] -> features [B, embedding_dim, H/2^(L-1), W/2^(L-1)], L levels."""

    def __init__(self, config: ml_collections.ConfigDict):
        super().__init__()
        cfg = config.vqvae
        norm_fn = _norm(cfg)
        self.activation_fn = get_activation(cfg.activation_fn)
        self.num_res_blocks = cfg.num_res_blocks
        widths = [cfg.filters * multiplier for multiplier in cfg.channel_multipliers]
        self.conv_in = conv(3, cfg.filters, 3, bias=False)
        # One flat list, numbered as Flax numbers the blocks: level by level, then the middle.
        self.res_blocks = nn.ModuleList()
        self.downsample_convs = nn.ModuleList()
        width_in = cfg.filters
        for level, width in enumerate([*widths, widths[-1]]):
            for _ in range(_middle_blocks(cfg) if level == len(widths) else cfg.num_res_blocks):
                self.res_blocks.append(ResBlock(width_in, width, norm_fn, self.activation_fn))
                width_in = width
            if cfg.conv_downsample and level < len(widths) - 1:
                self.downsample_convs.append(nn.Conv2d(width, width, 4, stride=2))
        self.num_levels = len(widths)
        self.norm_out = norm_fn(width_in)
        self.conv_out = conv(width_in, cfg.embedding_dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(layers.in_fast_order(x))
        for i, block in enumerate(self.res_blocks):
            x = block(x)
            level, j = divmod(i, self.num_res_blocks)
            if j == self.num_res_blocks - 1 and level < self.num_levels - 1:
                x = self._downsample(x, level)
        return self.conv_out(layers.norm_and_activate(self.norm_out, self.activation_fn, x))

    def _downsample(self, x: Tensor, level: int) -> Tensor:
        if len(self.downsample_convs):
            return self.downsample_convs[level](layers.pad_same(x, 4, 2))
        return layers.dsample(x)


class Decoder(nn.Module):
    """Features [B, embedding_dim, h, w] -> images [B, output_dim, 2^(L-1) h, 2^(L-1) w], unclipped."""

    def __init__(self, config: ml_collections.ConfigDict, output_dim: int = 3):
        super().__init__()
        cfg = config.vqvae
        norm_fn = _norm(cfg)
        self.activation_fn = get_activation(cfg.activation_fn)
        self.num_res_blocks = cfg.num_res_blocks
        widths = [cfg.filters * multiplier for multiplier in cfg.channel_multipliers]
        self.conv_in = conv(cfg.embedding_dim, widths[-1], 3)
        # Numbered as in Flax: the middle, then level by level from the coarsest.
        self.res_blocks = nn.ModuleList()
        self.upsample_convs = nn.ModuleList()
        width_in = widths[-1]
        self.middle_blocks = _middle_blocks(cfg)
        for stage, width in enumerate([widths[-1], *reversed(widths)]):
            for _ in range(cfg.num_res_blocks if stage else self.middle_blocks):
                self.res_blocks.append(ResBlock(width_in, width, norm_fn, self.activation_fn))
                width_in = width
            if 0 < stage < len(widths):
                self.upsample_convs.append(conv(width, width, 3))
        self.norm_out = norm_fn(width_in)
        self.conv_out = conv(width_in, output_dim, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(layers.in_fast_order(x))
        for i, block in enumerate(self.res_blocks):
            x = block(x)
            stage, j = divmod(i + self.num_res_blocks - self.middle_blocks, self.num_res_blocks)
            if j == self.num_res_blocks - 1 and 0 < stage <= len(self.upsample_convs):
                x = self.upsample_convs[stage - 1](layers.upsample(x, 2))
        return self.conv_out(layers.norm_and_activate(self.norm_out, self.activation_fn, x))


class _Quantizer(nn.Module):
    """What both quantizers share: the codebook [K, D] and the search for the nearest code."""

    def __init__(self, config: ml_collections.ConfigDict):
        super().__init__()
        self.config = config.vqvae
        self.codebook = nn.Parameter(
            torch.empty(self.config.codebook_size, self.config.embedding_dim)
        )

    def distances(self, x: Tensor) -> Tensor:
        """Squared distances [B, h, w, K] of features [B, D, h, w] to all codes, float32 or better."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        x = x.movedim(1, -1).to(dtype)  # [B, h, w, D]
        flat = losses.squared_euclidean_distance(x.flatten(0, -2), self.codebook.to(dtype))
        return flat.view(*x.shape[:-1], len(self.codebook))

    def encode_ids(self, x: Tensor) -> Tensor:
        """The nearest code, the first on ties: [B, D, h, w] -> int64 [B, h, w]."""
        return self.distances(x).argmin(-1)

    def quantize(self, z: Tensor) -> Tensor:
        """Mixes the codes: encodings [B, h, w, K] -> [B, D, h, w]."""
        return (z @ self.codebook.to(z.dtype)).movedim(-1, 1)

    def decode_ids(self, ids: Tensor) -> Tensor:
        """Looks the codes up: int64 [B, h, w] -> [B, D, h, w]."""
        return F.embedding(ids, self.codebook).movedim(-1, 1)

    def get_codebook(self) -> Tensor:
        """The codebook, [K, D]."""
        return self.codebook


class VectorQuantizer(_Quantizer):
    """Nearest code, with straight-through gradients and the VQ losses in training mode."""

    def forward(self, x: Tensor, **kwargs) -> tuple[Tensor, dict[str, Tensor]]:
        """Quantizes.

        Args:
          x: features [B, D, h, w].

        Returns:
          The quantized features [B, D, h, w] (in training mode with the gradient of x), and a dict:
          "encodings" one-hot [B, h, w, K], "encoding_indices" int64 [B, h, w], "raw" (x); in training
          mode also "quantizer_loss" and its parts "e_latent_loss", "q_latent_loss", "entropy_loss".
        """
        distances = self.distances(x)  # [B, h, w, K]
        encoding_indices = distances.argmin(-1)  # [B, h, w]
        encodings = F.one_hot(encoding_indices, distances.shape[-1]).to(distances.dtype)
        # Equal to `quantize(encodings)`, the official product, as all other terms of its sums are zero.
        quantized = self.decode_ids(encoding_indices)
        result_dict = {}
        if self.training:
            result_dict = self._losses(x, quantized, distances)
            quantized = x + (quantized - x).detach()
        result_dict |= {"encodings": encodings, "encoding_indices": encoding_indices, "raw": x}
        return quantized, result_dict

    def _losses(self, x: Tensor, quantized: Tensor, distances: Tensor) -> dict[str, Tensor]:
        cfg = self.config
        x, quantized = (v.to(distances.dtype) for v in (x, quantized))
        e_latent_loss = ((quantized.detach() - x) ** 2).mean() * cfg.commitment_cost
        q_latent_loss = ((quantized - x.detach()) ** 2).mean()
        entropy_loss = torch.zeros_like(q_latent_loss)
        if cfg.entropy_loss_ratio != 0:
            entropy_loss = cfg.entropy_loss_ratio * losses.entropy_loss(
                -distances, loss_type=cfg.entropy_loss_type, temperature=cfg.entropy_temperature
            )
        return {
            "quantizer_loss": e_latent_loss + q_latent_loss + entropy_loss,
            "e_latent_loss": e_latent_loss,
            "q_latent_loss": q_latent_loss,
            "entropy_loss": entropy_loss,
        }


class GumbelVQ(_Quantizer):
    """Gumbel-softmax over the codes in training mode, nearest code otherwise."""

    def forward(
        self, x: Tensor, *, tau: float = 1.0, rng: rng_lib.Rng = None
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Quantizes.

        Args:
          x: features [B, D, h, w].
          tau: temperature of the softmax; training mode only.
          rng: source of the Gumbel noise; training mode only.

        Returns:
          The quantized features [B, D, h, w], and a dict: "quantizer_loss" (0.0), "encodings"
          [B, h, w, K] (soft in training mode, one-hot otherwise), "encoding_indices" int64 [B, h, w].
        """
        distances = self.distances(x)  # [B, h, w, K]
        encoding_indices = distances.argmin(-1)
        if self.training:
            noise = rng_lib.gumbel(rng, distances.shape, distances.dtype, distances.device)
            encodings = ((noise - distances) / tau).softmax(-1)
            quantized = self.quantize(encodings).to(x.dtype)
        else:
            encodings = F.one_hot(encoding_indices, distances.shape[-1]).to(distances.dtype)
            quantized = self.decode_ids(encoding_indices)
        return quantized, {
            "quantizer_loss": 0.0,
            "encodings": encodings,
            "encoding_indices": encoding_indices,
        }


QUANTIZERS = {"vq": VectorQuantizer, "gumbel": GumbelVQ}


class VQVAE(PretrainedMixin, nn.Module):
    """The tokenizer: encoder, quantizer, decoder.

    Args:
      config: as official; read is `config.vqvae` (see `configs/vqgan_config.py`). Beyond the official
        settings it may hold `middle_blocks`, where there are not as many as on a level, and `norm_groups`,
        where GroupNorm has not 32. Filters that 32 groups do not divide get `layers.group_count` of them,
        and the model's own configuration says so; official code cannot compute such a model.

    Raises:
      ValueError: an unknown quantizer, norm or activation.
    """

    model_type = "maskgit_vqvae"

    def __init__(self, config: ml_collections.ConfigDict):
        super().__init__()
        if config.vqvae.quantizer not in QUANTIZERS:
            raise ValueError(
                f"quantizer is {config.vqvae.quantizer!r}; known: {', '.join(QUANTIZERS)}"
            )
        self.config = config = _with_norm_groups(config)
        self.encoder = Encoder(config)
        self.quantizer = QUANTIZERS[config.vqvae.quantizer](config)
        self.decoder = Decoder(config)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Official (Flax) initialisation: kernels LeCun normal, biases 0, codebook uniform."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                lecun_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        # OFFICIAL QUIRK: "fan in" of the table [K, D] is K, the number of codes.
        codebook = self.quantizer.codebook
        variance_scaling_uniform_(codebook, fan=codebook.shape[0])

    @property
    def downsampling(self) -> int:
        """Pixels per token along one side: 16 for the published models."""
        return 2 ** (self.encoder.num_levels - 1)

    def encode(
        self, images: Tensor, tau: float = 1.0, rng: rng_lib.Rng = None
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Images [B, 3, H, W] in [0, 1] -> quantized features [B, D, h, w] and the quantizer's dict.

        `tau` and `rng` matter to GumbelVQ in training mode alone.
        """
        return self.quantizer(self.encoder(images), tau=tau, rng=rng)

    def decode(self, x: Tensor) -> Tensor:
        """Quantized features [B, D, h, w] -> images [B, 3, H, W], not clipped, as official."""
        return self.decoder(x)

    def get_codebook_funct(self) -> Tensor:
        """The codebook [K, D], under the official name."""
        return self.quantizer.get_codebook()

    def encode_to_indices(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W], floating-point in [0, 1] or uint8 -> int64 [B, h, w].

        Raises:
          ValueError: images of another shape, dtype or range, see `images.as_image_batch`.
        """
        images = as_image_batch(images, self.downsampling).to(self.get_codebook_funct().dtype)
        return self.quantizer.encode_ids(self.encoder(images))

    def decode_from_indices(self, indices: Tensor) -> Tensor:
        """int64 [B, h, w] -> images [B, 3, H, W]; values around [0, 1], not clipped, as official.

        Raises:
          TypeError, ValueError: no such codes, see `layers.check_ids`.
        """
        layers.check_ids("indices", indices, "B, h, w", 0, len(self.get_codebook_funct()) - 1)
        return self.decode(self.quantizer.decode_ids(indices))

    def forward(self, images: Tensor, tau: float = 1.0, rng: rng_lib.Rng = None) -> Tensor:
        """Reconstructs: [B, 3, H, W] -> [B, 3, H, W].

        OFFICIAL QUIRK, mended: the official `__call__` hands `encode`'s pair to the decoder and fails.
        """
        return self.decode(self.encode(images, tau, rng)[0])

    def to_config(self) -> dict:
        """`{"vqvae": {...}}`, all that the constructor reads."""
        return {"vqvae": self.config.vqvae.to_dict()}

    @classmethod
    def from_config(cls, config: dict) -> "VQVAE":
        """The inverse of `to_config`."""
        return cls(ml_collections.ConfigDict(config))
