"""What a decoding looked like step by step: a strip and an animation (Besnier & Chen 2023, Figure 4)."""

import os

import numpy as np
from PIL import Image
from torch import Tensor

from maskgit_pt.utils import for_screen, to_pil

_GAP = 2  # pixels between panels
_KNOWN, _UNKNOWN = (20, 105, 30), (235, 235, 235)
_FRAME_MILLISECONDS, _LAST_FRAME_MILLISECONDS = 250, 1500


def mask_picture(mask: Tensor, size: int) -> Image.Image:
    """bool [h, w] -> a picture of size x size: light where still unknown, green where decided."""
    colours = np.where(mask.cpu().numpy()[..., None], _UNKNOWN, _KNOWN).astype(np.uint8)
    picture = Image.fromarray(colours).resize((size, size), Image.Resampling.NEAREST)
    cell = size // mask.shape[0]
    if cell > 2:  # room for lines between tokens
        pixels = np.array(picture)
        pixels[::cell] = pixels[:, ::cell] = 160
        picture = Image.fromarray(pixels)
    return picture


def strip(masks: Tensor, images: Tensor) -> Image.Image:
    """Two rows, a column a step: what was still unknown after it, and its whole guess.

    Args:
      masks: bool [S, h, w].
      images: the decoded guesses [S, 3, H, H] in [0, 1]; tiny ones are enlarged, see `utils.for_screen`.
    """
    images = for_screen(images)
    S, size = len(images), images.shape[-1]
    picture = Image.new("RGB", (S * (size + _GAP) - _GAP, 2 * size + _GAP), "white")
    for step in range(S):
        left = step * (size + _GAP)
        picture.paste(mask_picture(masks[step], size), (left, 0))
        picture.paste(to_pil(images[step]), (left, size + _GAP))
    return picture


def animation(masks: Tensor, images: Tensor) -> list[Image.Image]:
    """The columns of `strip`, mask and guess side by side, as frames."""
    images = for_screen(images)
    size = images.shape[-1]
    frames = []
    for mask, image in zip(masks, images, strict=True):
        frame = Image.new("RGB", (2 * size + _GAP, size), "white")
        frame.paste(mask_picture(mask, size), (0, 0))
        frame.paste(to_pil(image), (size + _GAP, 0))
        frames.append(frame)
    return frames


def save_gif(frames: list[Image.Image], path: str | os.PathLike) -> None:
    """Writes an endless animation; the last frame stays longer."""
    durations = [_FRAME_MILLISECONDS] * (len(frames) - 1) + [_LAST_FRAME_MILLISECONDS]
    frames[0].save(
        path, format="GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0
    )
