"""The demo's page: one HTML file that needs nothing beside it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from maskgit_pt.files import write_atomically
from maskgit_pt.progress import duration
from train import pages
from train.demos import scores

if TYPE_CHECKING:
    from train.demos.plan import Plan

_COLUMNS = 16  # generated images of a class
_NEIGHBOURS_OF = 2  # of them, of a class
_GAP = 2  # pixels
_ZOOMED = 84  # pixels of an image on the page, about

_SCORES = (
    ("frechet_distance", "Fréchet distance", "lower is better; the FID of these features"),
    ("precision", "precision", "generated images that are near real ones"),
    ("recall", "recall", "real images that are near generated ones"),
    ("density", "density", "real images around a generated one; may exceed 1"),
    ("coverage", "coverage", "real images with a generated one in their neighbourhood"),
    ("class_score", "class score", "the Inception Score's formula with this classifier"),
)  # fmt: skip


def write(plan: "Plan", report: dict[str, Any]) -> None:
    """Writes index.html.

    Raises:
      ImportError: jinja2 is missing.
    """
    folder = plan.folder
    images, labels = scores.samples(folder)
    page = pages.render(
        "demo.html",
        data=plan.data,
        report=report,
        class_names=plan.class_names,
        float32=plan.float32,
        zoom=max(1, _ZOOMED // images.shape[1]),
        rows=[side_by_side(images[labels == c][:_COLUMNS]) for c in range(len(plan.class_names))],
        strips=[url(path) for path in sorted((folder / "steps").glob("*_steps.png"))],
        neighbours=_neighbours(plan, images, labels),
        curves=[(name, url(folder / f"{name}_run" / "curves.png")) for name in ("tokenizer", "transformer")],
        scores=[(title, note, report[key], report[f"{key}_of_training_images"])
                for key, title, note in _SCORES],
        stages=[(name, duration(stage["seconds"]), stage["commands"])
                for name, stage in plan.stages.done.items()],
        total=duration(report["seconds"]),
    )  # fmt: skip
    write_atomically(folder / "index.html", page.encode())


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


def _neighbours(plan: "Plan", images: np.ndarray, labels: np.ndarray) -> list[dict[str, Any]]:
    """Of each class the first generated images, each before its nearest training images."""
    train = plan.load()["train"].images
    found = []
    for c, name in enumerate(plan.class_names):
        for image in images[labels == c][:_NEIGHBOURS_OF]:
            distances, places = scores.nearest(image.mean(-1)[None], train, scores.NEAREST)
            real = np.repeat(train[places[0]][..., None], 3, -1)
            row = {"name": name, "distance": float(distances[0])}
            found.append(row | {"generated": side_by_side(image[None]), "real": side_by_side(real)})
    return found
