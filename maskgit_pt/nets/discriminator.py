"""The StyleGAN discriminator (official `nets/discriminator.py`); NCHW."""

import itertools
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


OFFICIAL, BY_IMAGE = WIDTH_RULES = ("official", "image")
_WIDEST, _FIRST = 512, 64  # channels; the first layer's at 256 px
_OFFICIAL_SIDES = tuple(2**i for i in range(2, 11))  # 4 to 1024


def widths(image_size: int, multiplier: int = 1, rule: str = OFFICIAL) -> list[int]:
    """The channels of the discriminator at the image's size, and after each halving.

    Args:
      image_size: pixels along one side.
      multiplier: `channel_multiplier`. With official widths it counts above 32 px alone.
      rule: "official": 512 channels up to 32 px, fewer above. "image": the same from 256 px on; smaller
        images begin with 64 channels, as those of 256 px, double them with each halving, and have at most
        eight times as many as pixels along one side, or 512. Then any multiple of 4 is accepted.

    Raises:
      ValueError: a size that the rule does not know.
    """
    official = image_size in _OFFICIAL_SIDES
    if rule == OFFICIAL or (official and image_size >= 256):
        if not official:
            raise ValueError(
                f"the discriminator with official widths: image_size is {image_size}; accepted: "
                f"{', '.join(map(str, _OFFICIAL_SIDES))}; or any multiple of 4 with width_rule 'image'"
            )
        sides = [image_size >> i for i in range(image_size.bit_length() - 2)]
        return [_WIDEST if side <= 32 else 16384 // side * multiplier for side in sides]
    if image_size % 4 or not 4 <= image_size <= _OFFICIAL_SIDES[-1]:
        raise ValueError(
            f"the discriminator: image_size is {image_size}; accepted: multiples of 4, 4 to "
            f"{_OFFICIAL_SIDES[-1]}"
        )
    most, count = min(_WIDEST, 8 * image_size), len(sides_of(image_size))
    return [multiplier * min(most, _FIRST << i) for i in range(count)]


def sides_of(image_size: int) -> list[int]:
    """Pixels along one side: of the image, and after each halving, down to 4 to 7."""
    sides = [image_size]
    while sides[-1] >= 8:
        sides.append(-(-sides[-1] // 2))
    return sides


class Discriminator(nn.Module):
    """Images -> one logit each.

    Args:
      config: as official; read are `config.image_size`, `config.discriminator.channel_multiplier`,
        `.blur_resample`, and `.width_rule`, which official ones lack: see `widths`.

    Raises:
      ValueError: a size that the rule does not know.
    """

    def __init__(self, config: ml_collections.ConfigDict):
        super().__init__()
        settings = config.discriminator
        rule = settings.get("width_rule", OFFICIAL)
        filters = widths(config.image_size, settings.channel_multiplier, rule)
        last, side = filters[-1], sides_of(config.image_size)[-1]
        self.conv_in = Conv2d(3, filters[0], 3, padding=1)
        self.res_blocks = nn.ModuleList(
            ResBlock(before, after, settings.blur_resample)
            for before, after in itertools.pairwise(filters)
        )
        self.conv_out = Conv2d(last, last, 3, padding=1)
        self.dense0 = nn.Linear(last * side * side, last)
        self.dense1 = nn.Linear(last, 1)
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
        x = _leaky_relu(self.conv_out(x))  # [B, 512, 4, 4] with official widths
        x = x.permute(0, 2, 3, 1).flatten(1)  # [B, 4*4*512], channels last as in the official dense
        return self.dense1(_leaky_relu(self.dense0(x)))
