"""Images that a model generates while they are evaluated."""

import functools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from train.evaluation.sources import Source, describe_images, list_classes, to_bytes


class ModelSource(Source):
    """Images that a model generates when they are read; nothing is written.

    They are the 8-bit images that `maskgit_pt.sample` writes as PNG for the same settings.

    Args:
      model: a `maskgit_pt.MaskGIT`.
      count: how many images.
      labels: class ids that take turns (`turns`); default: all classes.
      seed: of the noise; image i depends on it and i alone.
      settings: of `MaskGIT.decoding`.
      weights: fingerprint of the weights; without it nothing is cached.
      name: for the report.
    """

    prefetch = False

    def __init__(
        self,
        model: Any,
        count: int,
        labels: Sequence[int] | None = None,
        seed: int = 42,
        settings: dict[str, Any] | None = None,
        weights: str | None = None,
        name: str = "model",
    ):
        self.model, self.count, self.seed, self.weights = model, count, seed, weights
        classes = max(model.num_classes, 1)  # a model without classes takes 0 for every image
        self.turns = list(range(classes) if labels is None else labels)
        wrong = [label for label in self.turns if not 0 <= label < classes]
        if wrong or not self.turns:
            raise ValueError(f"labels are {wrong}; accepted: 0 to {classes - 1}")
        self.labels = np.resize(np.array(self.turns, np.int64), count)
        self.options = model.decoding(**(settings or {}))
        self.size = (model.image_size, model.image_size)
        whole = self.turns == list(range(classes))
        settings = self.options.describe()
        self.protocol = describe_images(name, self, "8-bit arrays") | {
            "labels": f"{list_classes(self.turns)} in turn{' (all)' if whole else ''}",
            "seed": seed,
            "sampler": settings.pop("sampler"),
            "settings": dict(sorted(settings.items())),
            "dtype": str(model.tokenizer.get_codebook_funct().dtype).removeprefix("torch."),
            "weights": weights,
        }

    def __len__(self) -> int:
        return self.count

    def read(self, start: int, stop: int) -> np.ndarray:
        indices = range(start, min(stop, self.count))
        labels = torch.from_numpy(self.labels[start : indices.stop])
        size = stop - start
        result = self.model.sample_indices(labels, indices, self.seed, self.options, size)
        return to_bytes(result.wait().images)

    @functools.cached_property
    def fingerprint(self) -> str | None:
        if self.weights is None:
            return None
        described = {name: value for name, value in self.protocol.items() if name != "name"}
        device = self.model.device.type
        return json.dumps([self.weights, described, self.turns, device], sort_keys=True)
