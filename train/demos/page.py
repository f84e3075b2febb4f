"""Pictures and rows of figures for the demo's page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from train import pages
from train.demos import scores

COLUMNS = 16  # generated images of a class
_NEIGHBOURS_OF = 2  # of them, of a class
_GAP = 2  # pixels
ZOOMED = 84  # pixels of an image on the page, about

SCORES = (
    ("frechet_distance", "Fréchet distance", "lower is better; the FID of these features"),
    ("precision", "precision", "generated images that are near real ones"),
    ("recall", "recall", "real images that are near generated ones"),
    ("density", "density", "real images around a generated one; may exceed 1"),
    ("coverage", "coverage", "real images with a generated one in their neighbourhood"),
    ("class_score", "class score", "the Inception Score's formula with this classifier"),
)  # fmt: skip


def url(path: Path) -> str:
    with Image.open(path) as image:
        return pages.image_url(image.convert("RGB"))


def side_by_side(images: np.ndarray) -> dict[str, Any]:
    """Images uint8 [n, H, W, 3] side by side, as `src` and sizes."""
    height, width = images.shape[1:3]
    picture = np.full((height, max(1, len(images)) * (width + _GAP) - _GAP, 3), 255, np.uint8)
    for i, image in enumerate(images):
        picture[:, i * (width + _GAP) : i * (width + _GAP) + width] = image
    return {"url": pages.image_url(picture), "width": picture.shape[1], "height": height}


def neighbours(
    images: np.ndarray, labels: np.ndarray, class_names: Sequence[str], real: np.ndarray
) -> list[dict[str, Any]]:
    """Of each class the first generated images, each before its nearest training images.

    Args:
      images: generated, uint8 [n, H, W, 3].
      labels: theirs, int64 [n].
      class_names: in the order of the labels.
      real: training images, uint8 [m, H, W].
    """
    found = []
    for c, name in enumerate(class_names):
        for image in images[labels == c][:_NEIGHBOURS_OF]:
            distances, places = scores.nearest(image.mean(-1)[None], real, scores.NEAREST)
            nearest = np.repeat(real[places[0]][..., None], 3, -1)
            row = {"name": name, "distance": float(distances[0])}
            row |= {"generated": side_by_side(image[None]), "real": side_by_side(nearest)}
            found.append(row)
    return found
