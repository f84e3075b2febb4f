"""What the page draws: guesses with masked tokens covered, images side by side, tokens over a photo."""

import secrets

import numpy as np
from PIL import Image
from torch import Tensor

from maskgit_pt.editing import Crop
from maskgit_pt.utils import screen_factor, to_pil

LEAST, MOST = 160, 512  # pixels of an image on the page
_GAP = 4
_COVER, _SHARE = np.array([128, 128, 128]), 0.75  # of a masked token
_TOKEN = (214, 48, 49)


def shown_size(size: int) -> int:
    """The side in pixels at which an image of `size` pixels is shown: tiny ones are enlarged."""
    if size >= LEAST:
        return min(size, MOST)
    return size * screen_factor(size, LEAST)


def enlarge(image: Image.Image) -> Image.Image:
    """An image at the size at which it is shown; pixels of tiny ones stay squares."""
    size = shown_size(max(image.size))
    scale = size / max(image.size)
    shape = tuple(max(1, round(side * scale)) for side in image.size)
    nearest = Image.Resampling.NEAREST
    return image.resize(shape, nearest if scale > 1 else Image.Resampling.LANCZOS)


def to_send(picture: Image.Image) -> Image.Image:
    """A copy whose PNG file is like no other, for the browser.

    Gradio writes equal pictures to one file, in place. A browser that reads it at that moment shows nothing.
    """
    picture = picture.copy()
    picture.info["sent"] = secrets.token_hex(8)
    return picture


def guesses(masks: Tensor, images: Tensor | None, image_size: int) -> list[Image.Image]:
    """Guesses of one step as they are shown, what is still masked covered in grey.

    Args:
      masks: bool [B, h, w], True where still unknown.
      images: float [B, 3, H, W] in [0, 1]; None: tokens alone, decided ones white.
      image_size: pixels of an image.
    """
    size = shown_size(image_size)
    found = []
    for row, mask in enumerate(masks):
        if images is None:
            picture = Image.new("RGB", (size, size), "white")
        else:
            picture = enlarge(to_pil(images[row])).resize((size, size))
        cover = Image.fromarray(np.uint8(mask.numpy() * round(255 * _SHARE)))
        cover = cover.resize((size, size), Image.Resampling.NEAREST)
        found.append(Image.composite(Image.new("RGB", (size, size), tuple(_COVER)), picture, cover))
    return found


def side_by_side(images: list[Image.Image], total: int | None = None) -> Image.Image:
    """Images of one size in a grid that is about square; room is left for `total` of them."""
    total = max(total or 0, len(images))
    columns = min(total, max(1, round(total**0.5 + 0.25)))
    rows = -(-total // columns)
    width, height = images[0].size
    grid = Image.new(
        "RGB", (columns * (width + _GAP) - _GAP, rows * (height + _GAP) - _GAP), (244, 244, 245)
    )
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        grid.paste(image, (column * (width + _GAP), row * (height + _GAP)))
    return grid


def covered_tokens(
    photo: Image.Image, shape: tuple[int, int], crop: Crop, token_mask: Tensor
) -> Image.Image:
    """A photo with the tokens that will be regenerated in red, and the square that the model sees.

    Args:
      photo: at any size.
      shape: height and width of the photo at its full size, which `crop` is in.
      crop: the square.
      token_mask: bool [h, w].
    """
    scale = photo.width / shape[1]
    left, top, size = (round(value * scale) for value in (crop.left, crop.top, crop.size))
    alpha = np.uint8(token_mask.numpy() * 128)
    cover = Image.fromarray(alpha).resize((size, size), Image.Resampling.NEAREST)
    picture = photo.convert("RGB")
    # Outside the square the photo is paler.
    pale = Image.blend(picture, Image.new("RGB", picture.size, "white"), 0.5)
    square = picture.crop((left, top, left + size, top + size))
    square.paste(Image.new("RGB", (size, size), _TOKEN), (0, 0), cover)
    pale.paste(square, (left, top))
    return pale
