"""Figures of a demo: what the evaluations say, by class, and how near samples come to training images."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from train.evaluation.classifiers import Classifier

_BLOCK = 256
METRICS = ("fid", "inception_score")  # beside those of `manifold`
_FREE = ("frechet_distance", "precision", "recall", "density", "coverage", "class_score")
NEAREST = 3


def evaluation(folder: Path, name: str) -> dict[str, float]:
    """The metrics of one evaluation, without the name of the features."""
    text = (folder / "scores" / name / "evaluation.json").read_text("utf-8")
    metrics = json.loads(text)["metrics"]
    return {key.removeprefix("classifier_"): value for key, value in metrics.items()}


def samples(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """The generated images uint8 [N, H, W, 3], and the classes that were asked for."""
    with np.load(folder / "samples" / "samples.npz", allow_pickle=False) as file:
        return file["arr_0"], file["arr_1"]


def collect(folder: Path, classes: int) -> dict[str, Any]:
    """Scores of the samples, their floor, and the tokenizer's."""
    tokenizer = evaluation(folder, "tokenizer")
    generated, floor = (
        evaluation(folder, name) | evaluation(folder, f"{name}_overlap")
        for name in ("generated", "floor")
    )
    images, labels = samples(folder)
    classifier = Classifier(folder / "classifier")
    pixels = torch.from_numpy(images).movedim(-1, 1)
    logits = torch.cat([classifier(part)["logits"] for part in pixels.split(_BLOCK)])
    right = logits.argmax(1).numpy() == labels
    flat = images.reshape(len(images), -1)
    found: dict[str, Any] = {
        "classifier_accuracy_on_test_images": classifier.config.about["test_accuracy"],
        "tokenizer_psnr_on_test_images": tokenizer["psnr"],
        "codebook_usage": tokenizer["codebook_usage"],
        "tokenizer_frechet_distance": tokenizer["reconstruction_frechet_distance"],
        "generated_images": len(images),
        "different_generated_images": len(np.unique(flat, axis=0)),
        "recognised_as_asked": float(right.mean()),
        "recognised_by_class": [float(right[labels == c].mean()) for c in range(classes)],
    }
    for name in _FREE:
        found[name] = generated[name]
        found[f"{name}_of_training_images"] = floor[name]
    return found


def neighbours(folder: Path, train: np.ndarray, test: np.ndarray) -> dict[str, Any]:
    """Distances to the nearest training image in pixels: of the samples, and of test images.

    Args:
      folder: of the demo.
      train, test: uint8 [n, H, W], gray.

    Returns:
      Medians and 5% quantiles of Euclidean distances, pixels in 0 ... 1.
    """
    gray = samples(folder)[0].mean(-1)
    ours, _ = nearest(gray, train)
    real, _ = nearest(test[: len(gray)], train)
    return {
        "nearest_training_image_median": float(np.median(ours)),
        "nearest_training_image_5_percent": float(np.quantile(ours, 0.05)),
        "same_for_test_images_median": float(np.median(real)),
        "same_for_test_images_5_percent": float(np.quantile(real, 0.05)),
    }


def nearest(images: np.ndarray, others: np.ndarray, k: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """The nearest of `others` to each image.

    Args:
      images, others: [n, H, W] and [m, H, W], of 0 ... 255.
      k: how many.

    Returns:
      Euclidean distances to the nearest, pixels in 0 ... 1, float64 [n]; and the places of the k nearest,
      int64 [n, k].
    """
    a, b = _flat(images), _flat(others)
    norms = b.square().sum(1)
    distances, places = [], []
    for part in a.split(_BLOCK):
        found = torch.addmm(norms, part, b.T, alpha=-2).topk(min(k, len(b)), largest=False).indices
        # The formula rounds: a copy must have distance 0.
        distances.append((part - b[found[:, 0]]).double().square().sum(1).sqrt())
        places.append(found)
    return torch.cat(distances).numpy(), torch.cat(places).numpy()


def _flat(images: np.ndarray) -> torch.Tensor:
    """float32 [n, H*W] in 0 ... 1."""
    return torch.from_numpy(images.reshape(len(images), -1).astype(np.float32)) / 255
