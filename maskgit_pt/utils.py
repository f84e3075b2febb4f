"""Helpers of the official notebook (official `utils.py`), on Pillow alone."""

import dataclasses
import os

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from maskgit_pt.images import read_rgb


@dataclasses.dataclass(frozen=True)
class Bbox:
    """A box in pixels: what image editing regenerates."""

    top: int
    left: int
    height: int
    width: int

    def __post_init__(self):
        if min(self.top, self.left) < 0 or min(self.height, self.width) < 1:
            raise ValueError(
                f"{self}: top and left must be at least 0, height and width at least 1"
            )

    @classmethod
    def parse(cls, text: str) -> "Bbox":
        """Reads "top_left_height_width" as the official notebook, or the same with commas.

        Raises:
          ValueError: anything but four whole numbers in the range of a box.
        """
        parts = text.replace("_", ",").split(",")
        if len(parts) != 4 or not all(part.strip().lstrip("-").isdigit() for part in parts):
            raise ValueError(f"box is {text!r}; accepted: top,left,height,width in pixels")
        return cls(*map(int, parts))


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


def to_pil(image: Tensor) -> Image.Image:
    """Clips [3, H, W] to [0, 1], rounds to 8 bits and returns a Pillow image."""
    array = image.detach().float().clamp(0, 1).mul(255).round().byte()
    return Image.fromarray(array.permute(1, 2, 0).cpu().numpy())


def visualize_images(images: Tensor, columns: int | None = None, padding: int = 2) -> Image.Image:
    """Lays images out as a grid.

    Args:
      images: [B, 3, H, W]; clipped to [0, 1].
      columns: images in a row; default: all of them, as official.
      padding: white pixels between images.
    """
    B, _, H, W = images.shape
    columns = min(columns or B, B)
    rows = -(-B // columns)
    size = (columns * (W + padding) - padding, rows * (H + padding) - padding)
    grid = Image.new("RGB", size, "white")
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        grid.paste(to_pil(image), (column * (W + padding), row * (H + padding)))
    return grid


def draw_image_with_bbox(image: Tensor, bbox: Bbox) -> Image.Image:
    """The image [3, H, W] with the box outlined in red."""
    picture = to_pil(image)
    corners = (bbox.left, bbox.top, bbox.left + bbox.width - 1, bbox.top + bbox.height - 1)
    ImageDraw.Draw(picture).rectangle(corners, outline="red")
    return picture
