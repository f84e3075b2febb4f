"""How features are made: with what, where, by how many processes, and where they are remembered."""

import dataclasses
import os
from typing import Self

import numpy as np
import torch

from maskgit_pt.launch import Processes
from train.evaluation.extraction import Arrays, Cache, extract, remembered
from train.evaluation.features import Extractor, make_extractor
from train.evaluation.frechet import Statistics, fit
from train.evaluation.sources import Source

# What ADM's files call mean and covariance of the features, and of the spatial ones.
STATISTICS, SPATIAL_STATISTICS = ("mu", "sigma"), ("mu_s", "sigma_s")


@dataclasses.dataclass
class Context:
    """The same for samples and reference.

    Attributes:
      extractor: makes features; None where none are needed.
      workers: the processes.
      cache: remembers features.
      device: of networks and of distances.
      batch_size: images at a time.
      progress: whether to show bars on a terminal.
    """

    extractor: Extractor | None
    workers: Processes
    cache: Cache
    device: str | torch.device
    batch_size: int
    progress: bool

    @classmethod
    def make(
        cls,
        features: str | Extractor | None = "inception",
        inception_weights: str | os.PathLike | None = None,
        classifier_network: str | None = None,
        cache: str | os.PathLike | None = None,
        device: str | torch.device = "cpu",
        batch_size: int = 50,
        progress: bool = False,
        workers: Processes | None = None,
    ) -> Self:
        """All of it from plain values.

        Within an initialised process group all processes call this together, with the same arguments.

        Args:
          features: "inception", "pixels", "random", "classifier:FOLDER", or an extractor of your own
            (`features.Extractor`).
          inception_weights: torch-fidelity's file; default: downloaded.
          classifier_network: FILE.py:CLASS, see `classifiers.Classifier`.
          cache: a folder; None: nothing is remembered.
          device, batch_size, progress: as above.
          workers: default: the processes of the default group.

        Raises:
          ImportError: the extra 'eval' is not installed.
          FileNotFoundError, ValueError: no or wrong weights, or no such extractor.
        """
        workers = workers or Processes()
        if isinstance(features, str):
            name = features
            features = workers.on_each_after_first(
                lambda: make_extractor(name, inception_weights, device, classifier_network)
            )
        return cls(features, workers, Cache(cache), device, batch_size, progress)

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that computes metrics."""
        return self.workers.rank == 0

    def features(
        self, source: Source, description: str, logits: bool = False, spatial: bool = False
    ) -> Arrays:
        """What the extractor makes of all images: features, and what else is wanted; on rank 0."""
        names = ["features", *["logits"] * logits, *["spatial"] * spatial]

        def make() -> Arrays:
            return self.extract(source, self.extractor, names, description)

        return remembered(self.cache, lambda: self._parts(source), names, self.workers, make)

    def extract(self, source: Source, function, names: list[str], description: str) -> Arrays:
        """See `extraction.extract`."""
        return extract(
            source, function, names, self.workers, device=self.device, batch_size=self.batch_size,
            progress=self.progress, description=description,
        )  # fmt: skip

    def fit(
        self, source: Source, features: np.ndarray, names: tuple[str, str] = STATISTICS
    ) -> Statistics:
        """Statistics of all images, remembered under `names` as well; call on rank 0."""

        def make() -> Arrays:
            statistics = fit(features)
            return dict(zip(names, (statistics.mean, statistics.covariance), strict=True))

        alone = Processes(alone=True)
        found = remembered(self.cache, lambda: self._parts(source), list(names), alone, make)
        mean, covariance = (np.array(found[name]) for name in names)
        return Statistics(mean, covariance, len(features))

    def _parts(self, source: Source) -> list[str | None]:
        """What features depend on."""
        return [source.fingerprint, self.extractor.fingerprint]
