"""The known mistakes of ports in the tokenizer; see `mistakes`."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from maskgit_pt import VQVAE
from maskgit_pt.nets import layers as net_layers
from maskgit_pt.nets.vqgan_tokenizer import ResBlock, VectorQuantizer
from parity.packs.mistakes import Context, Mistake, changed, epsilon, roundings


def of_tokenizer(part: str) -> list[Mistake]:
    """Everything known to go wrong in one half of the tokenizer, "encoder" or "decoder"."""
    found = [
        *(epsilon("GroupNorm", nn.GroupNorm, value, "1e-6") for value in (1e-5, 1e-3, 1e-12)),
        *(
            Mistake(f"shortcut of {name} instead of the processed one", _shortcut(function))
            for name, function in _SHORTCUTS.items()
        ),
        *(
            Mistake(f"{mode} padding of convolutions instead of zeros", _padding(mode))
            for mode in ("reflect", "replicate", "circular")
        ),
        Mistake("convolutions padded after the map only, not on both sides", _one_sided),
        Mistake("kernels flipped", changed(lambda m: _kernels(m, lambda w: w.flip(2, 3)))),
        Mistake("kernels' height and width exchanged",
                changed(lambda m: _kernels(m, lambda w: w.transpose(2, 3)))),
        Mistake("square kernels transposed (input and output exchanged)",
                changed(lambda m: _kernels(m, _swapped))),
    ]  # fmt: skip
    return found + (_of_encoder() if part == "encoder" else _of_decoder()) + roundings()


def _of_encoder() -> list[Mistake]:
    pools = {
        "maximum instead of average pooling": lambda x: F.max_pool2d(x, 2),
        "every second pixel instead of average pooling": lambda x: x[..., ::2, ::2],
        "average pooling of 3 x 3 pixels, padded": lambda x: F.avg_pool2d(x, 3, 2, 1),
        "average pooling of 3 x 3 pixels, padding not counted": lambda x: F.avg_pool2d(
            x, 3, 2, 1, count_include_pad=False
        ),
        "sum instead of average pooling": lambda x: 4 * F.avg_pool2d(x, 2),
    }
    return [
        *(Mistake(n, lambda _, f=f: mock.patch.object(net_layers, "dsample", f))
          for n, f in pools.items()),
        Mistake("pixels scaled to [-1, 1] instead of [0, 1]", given=lambda x: 2 * x - 1),
        Mistake("pixels in [0, 255] instead of [0, 1]", given=lambda x: 255 * x),
        Mistake("images in NHWC read as NCHW without moving the axes", given=_nhwc_read_as_nchw),
        Mistake("rows and columns of the images exchanged", given=lambda x: x.swapaxes(1, 2)),
        Mistake("channels in the order BGR", given=lambda x: x[..., ::-1].copy()),
        Mistake("features flattened to codes without moving the channels last (NHWC order)",
                lambda _: mock.patch.object(VectorQuantizer, "distances", _unmoved_distances)),
        Mistake("rows and columns of the indices exchanged", returned=lambda x: x.swapaxes(1, 2)),
    ]  # fmt: skip


def _of_decoder() -> list[Mistake]:
    def interpolate(**options: Any) -> Callable[..., Tensor]:
        return lambda x, factor=2: F.interpolate(x, scale_factor=factor, **options)

    ups = {
        "bilinear instead of nearest upsampling": interpolate(mode="bilinear"),
        "bilinear upsampling with aligned corners": interpolate(
            mode="bilinear", align_corners=True
        ),
        "bicubic instead of nearest upsampling": interpolate(mode="bicubic"),
    }
    return [
        *(Mistake(n, lambda _, f=f: mock.patch.object(net_layers, "upsample", f))
          for n, f in ups.items()),
        Mistake("images scaled from [-1, 1] to [0, 1] (pixel range)", returned=lambda x: (x + 1) / 2),
        Mistake("images scaled to [-1, 1] (pixel range)", returned=lambda x: 2 * x - 1),
        Mistake("images in [0, 255] (pixel range)", returned=lambda x: 255 * x),
        Mistake("images clipped to [0, 1]", returned=lambda x: x.clip(0, 1)),
        Mistake("images in NCHW read as NHWC without moving the axes", returned=_nchw_read_as_nhwc),
        Mistake("rows and columns of the images exchanged", returned=lambda x: x.swapaxes(1, 2)),
        Mistake("channels in the order BGR", returned=lambda x: x[..., ::-1]),
        Mistake("codes put into a map without moving the channels first (NHWC order)",
                lambda _: mock.patch.object(VectorQuantizer, "decode_ids", _unmoved_codes)),
        Mistake("rows and columns of the indices exchanged", given=lambda x: x.swapaxes(1, 2)),
    ]  # fmt: skip


def _cut_or_pad(x: Tensor, hidden: Tensor, out: Tensor) -> Tensor:
    missing = out.shape[1] - x.shape[1]
    return x[:, : out.shape[1]] if missing <= 0 else F.pad(x, (0, 0, 0, 0, 0, missing))


def _repeat(x: Tensor, hidden: Tensor, out: Tensor) -> Tensor:
    return x.repeat(1, -(-out.shape[1] // x.shape[1]), 1, 1)[:, : out.shape[1]]


# What the shortcut's convolution is given: (block's input, after the first convolution, at the end).
_SHORTCUTS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "the block's input, cut or padded with zeros,": _cut_or_pad,
    "the block's input, repeated,": _repeat,
    "what the first convolution gives": lambda x, hidden, out: hidden,
}


def _shortcut(source: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Context:
    def forward(block: ResBlock, x: Tensor) -> Tensor:
        hidden = block.conv0(block.activation_fn(block.norm0(x)))
        out = block.conv1(block.activation_fn(block.norm1(hidden)))
        if block.conv_shortcut is None:
            return out + x
        return out + block.conv_shortcut(source(x, hidden, out))

    return lambda model: mock.patch.object(ResBlock, "forward", forward)


def _padding(mode: str) -> Context:
    @contextlib.contextmanager
    def patch(model: nn.Module) -> Iterator[None]:
        wide = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size[0] > 1]
        for module in wide:
            module.padding_mode = mode
        try:
            yield
        finally:
            for module in wide:
                module.padding_mode = "zeros"

    return patch


@contextlib.contextmanager
def _one_sided(model: nn.Module) -> Iterator[None]:
    """Pads 3x3 convolutions by two cells at the bottom and at the right."""

    def forward(conv: nn.Conv2d, x: Tensor) -> Tensor:
        if conv.kernel_size[0] == 3:
            return F.conv2d(F.pad(x, (0, 2, 0, 2)), conv.weight, conv.bias)
        return F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding)

    with mock.patch.object(nn.Conv2d, "forward", forward):
        yield


def _kernels(model: VQVAE, change: Callable[[Tensor], Tensor]) -> list:
    return [(m.weight, change(m.weight.data)) for m in model.modules() if isinstance(m, nn.Conv2d)]


def _swapped(weight: Tensor) -> Tensor:
    return weight.transpose(0, 1) if weight.shape[0] == weight.shape[1] else weight


def _nhwc_read_as_nchw(images: np.ndarray) -> np.ndarray:
    B, H, W, C = images.shape
    return np.ascontiguousarray(images.reshape(B, C, H, W).transpose(0, 2, 3, 1))


def _nchw_read_as_nhwc(images: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(images.shape)


def _unmoved_distances(quantizer: VectorQuantizer, x: Tensor) -> Tensor:
    B, D, h, w = x.shape
    return _DISTANCES(quantizer, x.contiguous().view(B, h, w, D).movedim(-1, 1))


_DISTANCES = VectorQuantizer.distances


def _unmoved_codes(quantizer: VectorQuantizer, ids: Tensor) -> Tensor:
    B, h, w = ids.shape
    return F.embedding(ids, quantizer.codebook).view(B, -1, h, w)
