"""Helpers of the official notebook (official `utils.py`), on Pillow alone."""

import dataclasses
import os
import re
import textwrap
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from maskgit_pt.images import read_rgb
from maskgit_pt.settings import whole_number


@dataclasses.dataclass(frozen=True)
class Bbox:
    """A box in pixels: what image editing regenerates."""

    top: int
    left: int
    height: int
    width: int

    def __post_init__(self):
        for name, least in (("top", 0), ("left", 0), ("height", 1), ("width", 1)):
            whole_number(f"{name} of the box", getattr(self, name), least)

    @classmethod
    def parse(cls, text: str) -> "Bbox":
        """Reads "top_left_height_width" as the official notebook, or the same with commas.

        Raises:
          ValueError: anything but four whole numbers in the range of a box.
        """
        return cls(*four_numbers(text.replace("_", ","), "box", "top,left,height,width"))


def four_numbers(text: str, what: str, names: str) -> tuple[int, int, int, int]:
    """Reads four whole numbers of pixels with commas between them.

    Raises:
      ValueError: anything else; the message says that `what` is it and that `names` are accepted.
    """
    parts = text.split(",")
    # Nine digits are plenty, and keep clear of Python's limit on the length of integers.
    if len(parts) != 4 or not all(re.fullmatch(r"\s*-?[0-9]{1,9}\s*", part) for part in parts):
        raise ValueError(f"{what} is {text!r}; accepted: {names} in pixels")
    top, *others = map(int, parts)
    return (top, *others)


def read_image(
    path: str | os.PathLike, height: int | None = None, width: int | None = None
) -> Tensor:
    """Reads a picture file; official `read_image_from_url`, without the network.

    Args:
      path: any format that Pillow reads; an orientation in its EXIF data is not applied, as official.
      height, width: resize to this (bicubic, as official) if both are given.

    Returns:
      float32 [3, H, W] in [0, 1].

    Raises:
      OSError: no such file.
      ValueError: no image, or a damaged one.
    """
    image = read_rgb(path, as_shown=False)
    if height is not None and width is not None:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.float32(image) / 255.0).permute(2, 0, 1)


def to_pil(image: Tensor, truncate: bool = False) -> Image.Image:
    """Clips [3, H, W] to [0, 1], rounds to 8 bits and returns a Pillow image.

    With `truncate` it rounds down, on a detour over [-1, 1], as the code of open-muse and UnlockMGM does.
    """
    image = image.detach().float()
    if truncate:
        array = (((2 * image - 1).clamp(-1, 1) + 1) / 2 * 255).byte()
    else:
        array = image.clamp(0, 1).mul(255).round().byte()
    return Image.fromarray(array.permute(1, 2, 0).cpu().numpy())


_TITLE_SIZE, _TITLE_LETTERS = 16, 28  # of a row: pixels; at most
SEEN = 96  # pixels along one side of an image that one can see well enough


def screen_factor(side: int, least: int = SEEN) -> int:
    """The whole factor by which an image of `side` pixels is to be enlarged so that it has `least`."""
    return -(-least // side) if side < least else 1


def for_screen(images: Tensor) -> Tensor:
    """Images [B, 3, H, W] as pictures show them: tiny ones enlarged by a whole factor, pixels as squares."""
    factor = screen_factor(min(images.shape[-2:]))
    return images.repeat_interleave(factor, -2).repeat_interleave(factor, -1)


def visualize_images(
    images: Tensor, columns: int | None = None, padding: int = 2, enlarge: bool = False
) -> Image.Image:
    """Lays images out as a grid.

    Args:
      images: [B, 3, H, W]; clipped to [0, 1].
      columns: images in a row; default: all of them, as official.
      padding: white pixels between images.
      enlarge: whether tiny images are enlarged; see `for_screen`.
    """
    images = for_screen(images) if enlarge else images
    B, _, H, W = images.shape
    columns = min(columns or B, B)
    rows = -(-B // columns)
    size = (columns * (W + padding) - padding, rows * (H + padding) - padding)
    grid = Image.new("RGB", size, "white")
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        grid.paste(to_pil(image), (column * (W + padding), row * (H + padding)))
    return grid


def with_row_titles(grid: Image.Image, titles: Sequence[str]) -> Image.Image:
    """A grid with text before each of its rows, which are of one height; without titles as it is."""
    if not titles:
        return grid
    font = ImageFont.load_default(_TITLE_SIZE)
    titles = [textwrap.shorten(title, _TITLE_LETTERS, placeholder="...") for title in titles]
    width = round(max(font.getlength(title) for title in titles)) + 2 * _TITLE_SIZE
    picture = Image.new("RGB", (width + grid.width, grid.height), "white")
    picture.paste(grid, (width, 0))
    pen = ImageDraw.Draw(picture)
    for row, title in enumerate(titles):
        middle = (row + 0.5) * grid.height / len(titles)
        pen.text((width - _TITLE_SIZE, middle), title, fill="black", font=font, anchor="rm")
    return picture


def draw_image_with_bbox(image: Tensor, bbox: Bbox) -> Image.Image:
    """The image [3, H, W] with the box outlined in red."""
    picture = to_pil(image)
    corners = (bbox.left, bbox.top, bbox.left + bbox.width - 1, bbox.top + bbox.height - 1)
    ImageDraw.Draw(picture).rectangle(corners, outline="red")
    return picture
