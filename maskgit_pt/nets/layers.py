"""Norms, down- and upsampling of the convolutional nets (official `nets/layers.py`).

Everything here takes and returns NCHW; the official code is NHWC.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskgit_pt.images import has_values

GROUPNORM_GROUPS = 32  # Flax's default
NORM_EPSILON = 1e-6  # Flax's default for GroupNorm and LayerNorm; torch's is 1e-5
BATCHNORM_EPSILON = 1e-5


def check_ids(name: str, ids: Any, axes: str, least: int, most: int) -> None:
    """Checks what a network is given as ids.

    Args:
      name: for errors.
      ids: an integer tensor, int64 or int32.
      axes: what its axes are, "B, N" for example.
      least, most: of the ids. Values are not looked at on a GPU, which would have to be waited for, nor in
        code that is compiled, traced or captured.

    Raises:
      TypeError: no tensor, or another dtype.
      ValueError: another number of axes, an empty image, or an id out of range.
    """
    if not isinstance(ids, Tensor) or ids.dtype not in (torch.int64, torch.int32):
        found = ids.dtype if isinstance(ids, Tensor) else type(ids).__name__
        raise TypeError(f"{name} is of type {found}; accepted: a tensor, int64 or int32")
    if ids.ndim != len(axes.split(",")):
        raise ValueError(f"{name} has shape {list(ids.shape)}; accepted: [{axes}]")
    if ids.is_cuda or not has_values(ids) or not ids.numel():
        return
    low, high = torch.stack(ids.aminmax()).tolist()
    if low < least or high > most:
        wrong = low if low < least else high
        raise ValueError(f"{name} holds {wrong}; accepted: {least} to {most}")


def l2_normalize(x: Tensor, axis: int | None = None, eps: float = 1e-12) -> Tensor:
    """Divides by the L2 norm along `axis` (None: of the whole tensor); official `_l2_normalize`."""
    square_sum = (x * x).sum() if axis is None else (x * x).sum(axis, keepdim=True)
    return x * torch.rsqrt(square_sum + eps)


class ChannelLayerNorm(nn.LayerNorm):
    """Flax's `nn.LayerNorm` on an image: over the channels of each pixel, epsilon 1e-6."""

    def __init__(self, channels: int):
        super().__init__(channels, eps=NORM_EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)  # [B, C, H, W]


class BatchNorm(nn.BatchNorm2d):
    """Flax's `nn.BatchNorm(momentum=0.9)`: the running variance takes the biased batch variance."""

    def __init__(self, channels: int):
        super().__init__(channels, eps=BATCHNORM_EPSILON, momentum=0.1)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        var, mean = torch.var_mean(x.detach(), (0, 2, 3), correction=0)  # [C], [C]
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var, self.momentum)
            self.num_batches_tracked.add_(1)
        return F.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=self.eps)


def group_count(filters: int) -> int:
    """The groups of norms over multiples of so many filters: 32, or the most below that divide them."""
    return max(groups for groups in range(1, GROUPNORM_GROUPS + 1) if filters % groups == 0)


class GroupNorm(nn.GroupNorm):
    """Flax's `nn.GroupNorm`: 32 groups, epsilon 1e-6."""

    def __init__(self, channels: int, groups: int = GROUPNORM_GROUPS):
        if channels % groups:
            raise ValueError(
                f"GroupNorm of {channels} channels cannot have {groups} groups; accepted: filters (channels) "
                f"that are a multiple of {groups}"
            )
        super().__init__(groups, channels, eps=NORM_EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        if x.device.type == "cpu" and x.dtype == torch.float32:
            # PyTorch's CPU kernel for channels-last maps adds up a group's pixels one after the
            # other: on large maps that is off by 1e-4, which changes tokens. The one for plain maps
            # adds in pairs.
            x = x.contiguous()
        return super().forward(x)


def in_fast_order(x: Tensor) -> Tensor:
    """[B, C, H, W] in the memory order that a chain of convolutions is fastest in.

    Channels last for half precision (twice as fast on a CPU with bfloat16 units); plain otherwise,
    which costs nothing and is what `GroupNorm` needs.
    """
    half = x.dtype in (torch.bfloat16, torch.float16)
    return x.contiguous(memory_format=torch.channels_last if half else torch.contiguous_format)


def norm_and_activate(norm: nn.Module, activation_fn: Callable[..., Tensor], x: Tensor) -> Tensor:
    """`activation_fn(norm(x))`; without gradients nobody else needs norm(x), and it is overwritten.

    On the CPU, where memory is the limit, that is worth several percent of the whole tokenizer.
    """
    return activation_fn(norm(x), inplace=not torch.is_grad_enabled())


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "BN": BatchNorm,
    "LN": ChannelLayerNorm,
    "GN": GroupNorm,
}


def get_norm_layer(norm_type: str = "BN") -> Callable[[int], nn.Module]:
    """Returns the norm's class, to be called with the number of channels.

    Raises:
      ValueError: `norm_type` is not one of BN, LN, GN.
    """
    if norm_type not in NORMS:
        raise ValueError(f"norm_type is {norm_type!r}; known: {', '.join(NORMS)}")
    return NORMS[norm_type]


def same_padding(size: int, window: int, stride: int) -> tuple[int, int]:
    """Cells that XLA's SAME padding adds before and after an axis; the odd one goes after."""
    total = max((math.ceil(size / stride) - 1) * stride + window - size, 0)
    return total // 2, total - total // 2


def pad_same(x: Tensor, window: int, stride: int) -> Tensor:
    """Pads the two image axes of [B, C, H, W] with zeros for a SAME convolution."""
    top, bottom = same_padding(x.shape[-2], window, stride)
    left, right = same_padding(x.shape[-1], window, stride)
    return F.pad(x, (left, right, top, bottom))


def tensorflow_style_avg_pooling(
    x: Tensor, window_shape: tuple[int, int], strides: tuple[int, int], padding: str
) -> Tensor:
    """Average pooling that leaves the padding cells out of the average.

    Args:
      x: [B, C, H, W].
      window_shape, strides: of the two image axes.
      padding: "SAME" or "VALID", in any case.

    Returns:
      [B, C, H', W'] with H' = ceil(H / stride) for SAME.

    Raises:
      ValueError: `padding` is neither.
    """
    if padding.upper() == "VALID":
        return F.avg_pool2d(x, window_shape, strides)
    if padding.upper() != "SAME":
        raise ValueError(f"padding is {padding!r}; known: SAME, VALID")
    top, bottom = same_padding(x.shape[-2], window_shape[0], strides[0])
    left, right = same_padding(x.shape[-1], window_shape[1], strides[1])
    if not (top or bottom or left or right):
        return F.avg_pool2d(x, window_shape, strides)
    pad = (left, right, top, bottom)
    cells = F.pad(x.new_ones(1, 1, *x.shape[-2:]), pad)
    mean = F.avg_pool2d(F.pad(x, pad), window_shape, strides)
    return mean / F.avg_pool2d(cells, window_shape, strides)


def upsample(x: Tensor, factor: int = 2) -> Tensor:
    """Nearest-neighbour upsampling: [B, C, H, W] -> [B, C, factor*H, factor*W]."""
    return F.interpolate(x, scale_factor=factor, mode="nearest")


def dsample(x: Tensor) -> Tensor:
    """2x2 average pooling, SAME: [B, C, H, W] -> [B, C, ceil(H/2), ceil(W/2)]."""
    return tensorflow_style_avg_pooling(x, (2, 2), strides=(2, 2), padding="SAME")
