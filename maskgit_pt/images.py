"""Images from outside: files of every kind that Pillow reads, and tensors of every dtype and range.

All commands read image files through `read_rgb` and `decode_rgb`, and all public doors of the networks look
at tensors through `as_unit_range`.
"""

import io
import math
import os
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor, nn

from maskgit_pt.files import printable

_SIXTEEN_BIT_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I")
_SLACK = 1e-3  # beyond [0, 1], for rounding


class DamagedImage(ValueError):
    """A file that is no image, or only part of one; the message names it and says why.

    Args:
      name: of the image.
      reason: what is wrong.
    """

    def __init__(self, name: str, reason: str):
        super().__init__(name, reason)  # both, so that it can be pickled
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return printable(f"{self.name}: {self.reason}")


def read_rgb(path: str | os.PathLike, as_shown: bool = True) -> Image.Image:
    """Reads an image file; see `decode_rgb`.

    Raises:
      DamagedImage: it cannot be decoded.
      OSError: it cannot be read at all.
    """
    return to_rgb(read(path), as_shown, os.fspath(path))


def read(path: str | os.PathLike) -> Image.Image:
    """Reads an image file in the mode in which it is stored; errors as `read_rgb`."""
    with open(path, "rb") as file:
        return decode(file.read(), os.fspath(path))


def decode_rgb(data: bytes, name: str, as_shown: bool = False) -> Image.Image:
    """Decodes the bytes of an image file.

    Args:
      data: the whole file.
      name: for errors.
      as_shown: as viewers show it, see `to_rgb`.

    Returns:
      An RGB image; see `to_rgb`. Of an animation it is the first frame.

    Raises:
      DamagedImage: it cannot be decoded.
    """
    return to_rgb(decode(data, name), as_shown, name)


def decode(data: bytes, name: str) -> Image.Image:
    """Decodes the bytes of an image file in the mode in which it is stored; errors as `decode_rgb`."""
    if not data:
        raise DamagedImage(name, "empty file")
    try:
        with Image.open(io.BytesIO(data)) as file:
            file.load()
            return file.copy() if getattr(file, "n_frames", 1) > 1 else file
    except UnidentifiedImageError:
        raise DamagedImage(name, "not an image") from None
    except Image.DecompressionBombError:
        raise DamagedImage(
            name, f"too large; accepted: at most {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels"
        ) from None
    except Exception as error:  # Pillow's decoders raise almost anything on damaged data
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DamagedImage(name, reason) from None


def to_rgb(image: Image.Image, as_shown: bool = False, name: str = "image") -> Image.Image:
    """Converts an image of any mode to RGB.

    16-bit greys are scaled to 8 bits.

    Args:
      image: of any mode.
      as_shown: as viewers show it: turned as its EXIF data say, transparent parts white. Otherwise as
        torchvision reads it: as stored, and transparency dropped, so that the hidden colours count.
      name: for errors.

    Raises:
      DamagedImage: pixels whose range is not known, or a mode that Pillow cannot convert.
    """
    try:
        if as_shown:
            image = ImageOps.exif_transpose(image)
        if image.mode in _SIXTEEN_BIT_MODES:  # Pillow's conversion would clip at 255
            values = np.asarray(image).astype(np.int64).clip(0, 65535)
            image = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
        elif image.mode == "F":
            raise ValueError("floating-point pixels, whose range is not known")
        elif image.has_transparency_data:
            image = image.convert("RGBA")  # directly to RGB warns for some palettes
            if as_shown:
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DamagedImage(name, reason) from None


def as_unit_range(images: Any, name: str = "images") -> Tensor:
    """Checks what a network is given as images.

    Args:
      images: a tensor, floating-point in [0, 1] or uint8.
      name: for errors.

    Returns:
      The tensor itself, or uint8 / 255 as float32.

    Raises:
      ValueError: no tensor, another dtype, NaN, or values outside [0, 1]. Values are not looked at in code
        that is compiled, traced or captured: there they are not known.
    """
    if not isinstance(images, Tensor):
        raise ValueError(
            f"{name} is of type {type(images).__name__}; accepted: a tensor, floating-point in [0, 1] or "
            "uint8"
        )
    if images.dtype == torch.uint8:
        return images.float() / 255
    if not images.is_floating_point():
        raise ValueError(
            f"{name} has dtype {str(images.dtype).removeprefix('torch.')}; accepted: floating-point in "
            "[0, 1], or uint8"
        )
    if images.numel() and has_values(images):
        _check_range(images, name)
    return images


def as_image_batch(images: Any, multiple: int) -> Tensor:
    """Checks what a tokenizer is given: `as_unit_range`, and the shape.

    Args:
      images: [B, 3, H, W].
      multiple: of which H and W have to be: the pixels of a token. Sides are not looked at in code that is
        compiled or exported, which may leave them open.

    Raises:
      ValueError: as `as_unit_range`, or another shape.
    """
    images = as_unit_range(images)
    if torch.compiler.is_compiling():
        return images
    sides = images.shape[2:]
    if images.ndim != 4 or images.shape[1] != 3 or any(s < 1 or s % multiple for s in sides):
        raise ValueError(
            f"images have shape {list(images.shape)}; accepted: [B, 3, H, W], H and W multiples of {multiple}"
        )
    return images


def has_values(images: Tensor) -> bool:
    """Whether values can be looked at: not in code that is compiled, traced or captured in a graph."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or images.is_meta:
        return False
    if type(images) not in (Tensor, nn.Parameter):  # fake tensors, for example
        return False
    if torch._C._functorch.is_functorch_wrapped_tensor(images):  # under vmap
        return False
    return not (images.is_cuda and torch.cuda.is_current_stream_capturing())


def _check_range(images: Tensor, name: str) -> None:
    low, high = torch.stack(images.detach().aminmax()).tolist()  # NaN if one is
    if -_SLACK <= low and high <= 1 + _SLACK:
        return
    hint = ""
    if not math.isfinite(low) or not math.isfinite(high):
        found = "NaN or infinite values"
    else:
        found = f"values from {low:.4g} to {high:.4g}"
        if -1 - _SLACK <= low < -0.3 and high <= 1 + _SLACK:
            hint = "; [-1, 1] becomes that by (images + 1) / 2"
        elif low >= 0 and 2 < high <= 255:
            hint = "; 0 to 255 becomes that by images / 255"
    raise ValueError(f"{name} has {found}; accepted: values in [0, 1]{hint}")
