"""The StyleGAN discriminator (official `nets/discriminator.py`); NCHW."""

import math

import ml_collections
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskgit_pt.nets import layers
from maskgit_pt.nets.convolution import Conv2d, conv2d

_BINOMIAL_ROWS = {
    3: [1.0, 2.0, 1.0],
    4: [1.0, 3.0, 3.0, 1.0],
    5: [1.0, 4.0, 6.0, 4.0, 1.0],
    6: [1.0, 5.0, 10.0, 10.0, 5.0, 1.0],
    7: [1.0, 6.0, 15.0, 20.0, 15.0, 6.0, 1.0],
}


class BlurPool2D(nn.Module):
    """Blurs and subsamples each channel (Zhang 2019, "Making convolutional networks shift-invariant
    again").

    Raises:
      ValueError: a filter size other than 3 to 7, or padding other than SAME and VALID.
    """

    def __init__(
        self, filter_size: int = 4, strides: tuple[int, int] = (2, 2), padding: str = "SAME"
    ):
        super().__init__()
        if filter_size not in _BINOMIAL_ROWS:
            raise ValueError(f"filter_size is {filter_size}; known: {list(_BINOMIAL_ROWS)}")
        if padding not in ("SAME", "VALID"):
            raise ValueError(f"padding is {padding!r}; known: SAME, VALID")
        row = torch.tensor(_BINOMIAL_ROWS[filter_size])
        kernel = row[:, None] * row[None, :]
        self.strides, self.padding = strides, padding
        self.register_buffer("kernel", kernel / kernel.sum(), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, ceil(H/stride), ceil(W/stride)] for SAME."""
        size, channels = self.kernel.shape[0], inputs.shape[1]
        padding = (0, 0)
        if self.padding == "SAME":
            top, bottom = layers.same_padding(inputs.shape[-2], size, self.strides[0])
            left, right = layers.same_padding(inputs.shape[-1], size, self.strides[1])
            if top == bottom and left == right:  # of the published filter, on any even side
                padding = (top, left)
            else:
                inputs = F.pad(inputs, (left, right, top, bottom))
        kernel = self.kernel.to(inputs.dtype).expand(channels, 1, size, size)
        return conv2d(inputs, kernel, stride=self.strides, padding=padding, groups=channels)


class ResBlock(nn.Module):
    """Two 3x3 convolutions with a subsampling between; a 1x1 shortcut; their sum over sqrt(2)."""

    def __init__(self, in_channels: int, filters: int, blur_resample: bool):
        super().__init__()
        self.conv0 = Conv2d(in_channels, in_channels, 3, padding=1)
        self.blur = BlurPool2D(filter_size=4) if blur_resample else None
        self.conv_shortcut = Conv2d(in_channels, filters, 1, bias=False)
        self.conv1 = Conv2d(in_channels, filters, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        downsample = self.blur or layers.dsample
        residual = self.conv_shortcut(downsample(x))  # [B, filters, H/2, W/2]
        x = downsample(_leaky_relu(self.conv0(x)))
        x = _leaky_relu(self.conv1(x))
        return (residual + x) / math.sqrt(2)


def _leaky_relu(x: Tensor) -> Tensor:
    return F.leaky_relu(x, negative_slope=0.2)


class Discriminator(nn.Module):
    """Images -> one logit each.

    Args:
      config: as official; read are `config.image_size` (4 to 1024, a power of two; ValueError
        otherwise), `config.discriminator.channel_multiplier` and `.blur_resample`.
    """

    def __init__(self, config: ml_collections.ConfigDict):
        super().__init__()
        multiplier = config.discriminator.channel_multiplier
        filters = {4: 512, 8: 512, 16: 512, 32: 512} | {
            side: 16384 // side * multiplier for side in (64, 128, 256, 512, 1024)
        }
        if config.image_size not in filters:
            raise ValueError(f"image_size is {config.image_size}; known: {list(filters)}")
        side = config.image_size
        self.conv_in = Conv2d(3, filters[side], 3, padding=1)
        self.res_blocks = nn.ModuleList()
        while side > 4:
            block = ResBlock(filters[side], filters[side // 2], config.discriminator.blur_resample)
            self.res_blocks.append(block)
            side //= 2
        self.conv_out = Conv2d(filters[4], filters[4], 3, padding=1)
        self.dense0 = nn.Linear(filters[4] * 4 * 4, filters[4])
        self.dense1 = nn.Linear(filters[4], 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Official initialisation: kernels Xavier uniform, biases 0."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, image_size, image_size] in [0, 1] -> logits [B, 1]."""
        x = _leaky_relu(self.conv_in(x))
        for block in self.res_blocks:
            x = block(x)
        x = _leaky_relu(self.conv_out(x))  # [B, 512, 4, 4]
        x = x.permute(0, 2, 3, 1).flatten(1)  # [B, 4*4*512], channels last as in the official dense
        return self.dense1(_leaky_relu(self.dense0(x)))
