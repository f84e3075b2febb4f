"""Editing pictures of any size: which part the model sees, which tokens are masked, how it is pasted back.

Boxes and compositing are the official ones (official `inference.py`); pixel masks, crops and extension are
ours.
"""

import dataclasses
import math
import os
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor

from maskgit_pt import images
from maskgit_pt.decoding import Settings, complete
from maskgit_pt.network_pair import NetworkPair
from maskgit_pt.samplers.base import MASK
from maskgit_pt.settings import whole_number
from maskgit_pt.utils import Bbox

_KNOWN = 1 / 8  # of what the model sees, when a picture is extended


@dataclasses.dataclass(frozen=True)
class Crop:
    """The square of a picture, in pixels, that the model sees."""

    top: int
    left: int
    size: int

    def of(self, array: np.ndarray) -> np.ndarray:
        """This part of [H, W, ...]."""
        return array[self.top : self.top + self.size, self.left : self.left + self.size]


@dataclasses.dataclass
class Edit:
    """A picture made ready for regenerating part of it.

    Attributes:
      picture: uint8 [H, W, 3].
      crop: what of it the model sees.
      token_mask: bool [h, w], what is regenerated.
      tokens: int64 [h*w], -1 where masked.
      weights: float32 [S, S], how much of the new image counts.
    """

    picture: np.ndarray
    crop: Crop
    token_mask: Tensor
    tokens: Tensor
    weights: Tensor

    def finish(self, generated: Tensor) -> Tensor:
        """The picture with a generated image [3, S, S], unclipped, blended in: float32 [3, H, W]."""
        return paste(self.picture, self.crop, generated, self.weights)


def with_defaults(decoding: Settings) -> Settings:
    """12 steps from step 2 on, as official, where nothing else is asked for."""
    given = complete(decoding)
    if given.get("sampler", "official") == "official":
        steps = whole_number("steps", given.get("steps", 12), 1)
        return {"start_step": min(2, steps - 1), "steps": steps} | given
    return given


def prepare(
    model: NetworkPair, image: Any, *, box: Any = None, mask: Any = None, extend: Any = None
) -> Edit:
    """What `MaskGIT.edit`, whose arguments these are, works out before anything is generated."""
    picture = as_picture(image)
    if sum(given is not None for given in (box, mask, extend)) != 1:
        raise ValueError("what to regenerate is not clear; accepted: one of box, mask, extend")
    shape = picture.shape[:2]
    if extend is not None:
        margins = tuple(extend)
        if len(margins) != 4 or not any(margins):
            raise ValueError(
                f"extend is {margins}; accepted: top, right, bottom, left, 0 or more, not all 0"
            )
        check_extension(shape, margins, model.side)
        picture, pixels = add_margins(picture, margins)
    elif box is not None:
        if not isinstance(box, Bbox):
            if len(box) != 4:
                raise ValueError(
                    f"box is {tuple(box)}; accepted: top, left, height, width in pixels"
                )
            box = Bbox(*box)
        pixels = box_mask(box, shape)
    else:
        pixels = as_mask(mask, shape, image)
    crop = choose_crop(picture.shape[:2], pixels)
    if box is not None:
        patch = model.tokenizer.downsampling
        masked = box_token_mask(box, crop, model.image_size, patch)
    else:
        masked = pixel_token_mask(pixels, crop, model.side)
    tokens = model.encode(to_model(picture, crop, model.image_size)[None])[0].cpu()
    tokens = tokens.masked_fill(masked, MASK).flatten()
    return Edit(picture, crop, masked, tokens, composite_mask(masked, model.image_size))


def as_picture(image: Any) -> np.ndarray:
    """uint8 [H, W, 3] of an image, its path, an array or a tensor.

    Args:
      image: a path or a Pillow image of any mode, taken as viewers show it: turned as its EXIF data say,
        transparent parts white, the first frame of an animation; an array uint8 [H, W, 3]; or a tensor
        [3, H, W], floating-point in [0, 1] or uint8.

    Raises:
      ValueError: another shape, dtype or range, or a damaged file.
      OSError: the file cannot be read.
    """
    if isinstance(image, str | os.PathLike):
        image = images.read_rgb(image)
    if isinstance(image, Image.Image):
        image = images.to_rgb(image, as_shown=True)
    if isinstance(image, Tensor):
        if image.ndim != 3 or image.shape[0] != 3:
            raise ValueError(
                f"image has shape {list(image.shape)}; accepted: [3, H, W] of a tensor"
            )
        image = images.as_unit_range(image, "image").detach().float().cpu().clamp(0, 1)
        image = image.mul(255).round().byte().permute(1, 2, 0).numpy()
    picture = np.asarray(image)
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8 or not picture.size:
        raise ValueError(
            f"image has shape {list(picture.shape)} and dtype {picture.dtype}; accepted: uint8 [H, W, 3]"
        )
    return picture


def as_mask(mask: Any, shape: tuple[int, int], photo: Any = None) -> np.ndarray:
    """bool [H, W] of a mask, its path, an array or a tensor; True is regenerated.

    A file or Pillow image: white where to regenerate, or white paint on a transparent ground; values 0 and 1
    count as black and white. It is turned as its own EXIF data say, or, where it has the size of a photo as
    stored, as the photo's say.

    Args:
      mask: a path or a Pillow image; an array or tensor [H, W], bool, 0 and 1, 0 to 255 (128 and more is
        True), or floating-point in [0, 1] (0.5 and more is True).
      shape: H, W of the picture.
      photo: the path or Pillow image that `shape` belongs to; None for others.

    Raises:
      ValueError: another size, dtype or range; or transparency that can be understood in two ways.
      OSError: the file cannot be read.
    """
    if isinstance(mask, str | os.PathLike):
        mask = images.read(mask)
    if isinstance(mask, Image.Image):
        array = _turned_like(_mask_pixels(ImageOps.exif_transpose(mask)), shape, photo)
    else:
        array = _mask_values(mask)
    if array.shape != shape:
        found = " x ".join(map(str, array.shape))
        raise ValueError(
            f"mask has {found} pixels (height x width); accepted: those of the picture, "
            f"{shape[0]} x {shape[1]}"
        )
    return array


def _mask_pixels(mask: Image.Image) -> np.ndarray:
    """bool [H, W] of a Pillow image."""
    if mask.has_transparency_data:
        grey, alpha = mask.convert("RGBA").convert("LA").split()
        visible = np.asarray(alpha) >= 128
        if not visible.all():
            if not visible.any() or not (np.asarray(grey)[visible] >= 128).all():
                raise ValueError(
                    "the mask is transparent in part, and what that means is not clear; accepted: white "
                    "where to regenerate, on black or on a transparent ground"
                )
            return visible
    return _mask_values(np.asarray(images.to_rgb(mask, name="mask").convert("L")))


def _mask_values(mask: Any) -> np.ndarray:
    """bool [H, W] of an array or tensor."""
    array = np.asarray(mask.detach().cpu() if isinstance(mask, Tensor) else mask)
    array = array[0] if array.ndim == 3 and array.shape[0] == 1 else array
    array = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    if array.dtype == bool:
        return array
    low, high = (array.min(), array.max()) if array.dtype.kind in "uif" and array.size else (-1, -1)
    if array.dtype.kind == "f" and 0 <= low and high <= 1:
        return array >= 0.5
    if array.dtype.kind in "ui" and 0 <= low and high <= 255:
        return array >= (1 if high <= 1 else 128)
    found = f"values from {low} to {high}" if array.dtype.kind in "uif" else "no numbers"
    raise ValueError(
        f"mask of dtype {array.dtype} has {found}; accepted: bool, 0 and 1, 0 to 255, or "
        "floating-point in [0, 1]"
    )


def _turned_like(array: np.ndarray, shape: tuple[int, int], photo: Any) -> np.ndarray:
    """[H, W] turned as the EXIF data of a photo say, if it has the size of the photo as stored."""
    if array.shape == shape or photo is None:
        return array
    if isinstance(photo, str | os.PathLike):
        photo = images.read(photo)
    if not isinstance(photo, Image.Image) or array.shape != photo.size[::-1]:
        return array
    turned = Image.fromarray(np.uint8(array))
    turned.getexif().update(photo.getexif())
    return np.asarray(ImageOps.exif_transpose(turned)) > 0


def box_tokens(start: int, length: int, patch: int, side: int) -> slice:
    """The tokens that a stretch of pixels masks, with a margin of one token, as official."""
    # OFFICIAL QUIRK: the end counts whole tokens of start and of length apart, so the margin after a box
    # that is not aligned may be missing, and up to 14 of its pixels with it.
    stop = length // patch + start // patch + 1
    return slice(max(0, start // patch - 1), min(side, stop))


def box_token_mask(box: Bbox, crop: Crop, image_size: int, patch: int) -> Tensor:
    """The tokens bool [h, w] that a box in pixels of the picture masks, with a margin of one token.

    Those of the official code where the crop has the model's size; at other sizes all that the box touches.
    """
    side = image_size // patch

    def stretch(start: int, length: int) -> slice:
        if crop.size == image_size:
            return box_tokens(start, length, patch, side)
        first = start * image_size // (crop.size * patch)
        last = -(-(start + length) * image_size // (crop.size * patch))  # rounded up
        return slice(max(0, first - 1), min(side, last + 1))

    mask = torch.zeros(side, side, dtype=torch.bool)
    mask[stretch(box.top - crop.top, box.height), stretch(box.left - crop.left, box.width)] = True
    return mask


def pixel_token_mask(mask: np.ndarray, crop: Crop, side: int) -> Tensor:
    """The tokens bool [side, side] that hold a masked pixel of `mask` [H, W], and their neighbours.

    The margin of one token is that of the official boxes: compositing blends over it.
    """
    rows, columns = np.nonzero(crop.of(mask))
    tokens = torch.zeros(side, side)
    tokens[rows * side // crop.size, columns * side // crop.size] = 1
    return F.max_pool2d(tokens[None, None], 3, stride=1, padding=1)[0, 0] > 0


def choose_crop(shape: tuple[int, int], mask: np.ndarray, minimum: int = 1) -> Crop:
    """The largest square of a picture [H, W] that holds all masked pixels, as central to them as can be.

    Raises:
      ValueError: nothing is masked, or no square inside the picture holds all of it.
    """
    H, W = shape
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        raise ValueError("the mask selects nothing; white (128 to 255) is what is regenerated")
    size = min(H, W)
    height, width = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
    if max(height, width) > size:
        raise ValueError(
            f"what is to be regenerated spans {height} x {width} pixels (height x width); accepted: at most "
            f"{size} x {size}, the largest square in a picture of {H} x {W}; do it in parts"
        )
    top = (rows[0] + rows[-1] + 1 - size) // 2
    left = (columns[0] + columns[-1] + 1 - size) // 2
    return Crop(int(np.clip(top, 0, H - size)), int(np.clip(left, 0, W - size)), size)


def box_mask(box: Bbox, shape: tuple[int, int]) -> np.ndarray:
    """The box as pixels, bool [H, W].

    Raises:
      ValueError: it reaches beyond the picture.
    """
    H, W = shape
    if box.top + box.height > H or box.left + box.width > W:
        raise ValueError(
            f"box top {box.top}, left {box.left}, height {box.height}, width {box.width} reaches outside "
            f"the picture of {H} x {W} pixels (height x width)"
        )
    mask = np.zeros(shape, bool)
    mask[box.top : box.top + box.height, box.left : box.left + box.width] = True
    return mask


def add_margins(
    picture: np.ndarray, margins: tuple[int, int, int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Adds margins to [H, W, 3] for outpainting.

    Args:
      picture: uint8.
      margins: pixels to add at the top, right, bottom and left.

    Returns:
      The larger picture, its edges repeated outwards, and what is new, bool [H', W'].

    Raises:
      ValueError: a margin below 0, or more pixels than a picture that is read may have.
    """
    top, right, bottom, left = (whole_number("a margin", margin, 0) for margin in margins)
    height, width = picture.shape[0] + top + bottom, picture.shape[1] + left + right
    most = 2 * (Image.MAX_IMAGE_PIXELS or math.inf)  # as of a picture that is read
    if height * width > most:
        found = f"with its margins the picture has {height} x {width} pixels (height x width)"
        raise ValueError(f"{found}; accepted: at most {most:,} pixels")
    pads = ((top, bottom), (left, right))
    new = np.pad(np.zeros(picture.shape[:2], bool), pads, constant_values=True)
    return np.pad(picture, (*pads, (0, 0)), mode="edge"), new


def check_extension(shape: tuple[int, int], margins: tuple[int, int, int, int], side: int) -> None:
    """Checks that the model sees enough of a picture to go on with it.

    Args:
      shape: H, W of the picture.
      margins: as in `add_margins`.
      side: of the model's token grid.

    Raises:
      ValueError: of the square that the model sees, less than an eighth would be known; or no square holds
        all that is new; or as `add_margins`.
    """

    def known(margins: tuple[int, ...]) -> float:
        new = add_margins(np.zeros((*shape, 3), np.uint8), margins)[1]
        try:
            crop = choose_crop(new.shape, new)
        except ValueError:
            return 0.0
        return 1 - float(pixel_token_mask(new, crop, side).float().mean())

    if known(margins) >= _KNOWN:
        return
    smaller = [tuple(m * part // 16 for m in margins) for part in range(15, 0, -1)]
    possible = next((m for m in smaller if max(m) > 0 and known(m) >= _KNOWN), None)
    advice = (
        f"{','.join(map(str, possible))}, in several passes" if possible else "fewer sides at once"
    )
    raise ValueError(
        f"extend is {','.join(map(str, margins))}: of what the model sees at once, less than an eighth would "
        f"be the picture of {shape[0]} x {shape[1]} pixels (height x width); accepted: for example {advice}"
    )


def to_model(picture: np.ndarray, crop: Crop, image_size: int) -> Tensor:
    """The crop of uint8 [H, W, 3] at the model's size: float32 [3, image_size, image_size] in [0, 1]."""
    part = Image.fromarray(np.ascontiguousarray(crop.of(picture)))
    if crop.size != image_size:
        part = part.resize((image_size, image_size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.float32(part) / 255.0).permute(2, 0, 1)


def composite_mask(latent_mask: Tensor, image_size: int) -> Tensor:
    """Token mask [h, w] (0 or 1) -> official blending weights float32 [image_size, image_size] in [0, 1]."""
    mask = Image.fromarray(np.uint8(latent_mask.cpu().numpy() * 255.0))
    mask = mask.resize((image_size, image_size))  # Pillow's default for 8-bit grey: bicubic
    mask = mask.filter(ImageFilter.GaussianBlur(radius=image_size // 16 - 1))
    return torch.from_numpy(np.float32(mask) / 255.0)


def paste(picture: np.ndarray, crop: Crop, generated: Tensor, weights: Tensor) -> Tensor:
    """Blends a generated image into the picture, then clips, as official.

    Args:
      picture: uint8 [H, W, 3].
      crop: where the image belongs.
      generated: [3, S, S], the model's size; not clipped.
      weights: [S, S] in [0, 1], from `composite_mask`.

    Returns:
      float32 [3, H, W] in [0, 1]; exactly `picture / 255` where the weight is 0.
    """
    result = torch.from_numpy(np.float32(picture) / 255.0).permute(2, 0, 1).clone()
    generated, weights = generated.detach().float().cpu(), weights.cpu()
    if crop.size != generated.shape[-1]:
        generated = _resized(generated, crop.size)
        weights = _resized(weights[None], crop.size)[0].clamp(0, 1)
    part = result[:, crop.top : crop.top + crop.size, crop.left : crop.left + crop.size]
    part.copy_((generated * weights + (1 - weights) * part).clamp(0, 1))
    return result


def _resized(images: Tensor, size: int) -> Tensor:
    """float32 [C, S, S] -> [C, size, size], bicubic, unrounded."""
    channels = [
        np.array(Image.fromarray(channel).resize((size, size), Image.Resampling.BICUBIC))
        for channel in images.numpy()
    ]
    return torch.from_numpy(np.stack(channels))
