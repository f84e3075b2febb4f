"""What is measured, against what, and with what: what `train.evaluate` and `train.sweep` ask alike."""

import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

import torch

from maskgit_pt.command_line import UsageError
from maskgit_pt.files import user_cache
from maskgit_pt.launch import Processes
from maskgit_pt.settings import setting
from train.evaluation.context import Context
from train.evaluation.features import check_name
from train.evaluation.reference import Reference, load_reference
from train.evaluation.report import Evaluation
from train.evaluation.samples import METRICS, ON_REQUEST, evaluate
from train.evaluation.sources import Source
from train.evaluation.tokenizers import TOKENIZER_METRICS


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
    """Each field is the value of the flag of its name."""

    reference: str | None = setting(
        None,
        "Images: a folder (cropped to the samples' size), an npz, or WebDataset tar files; an ADM reference "
        "batch (npz); or statistics (npz). With --images, default: those images.",
    )
    num_reference: int | None = setting(
        None, "Of the reference's images, use this many, evenly spread. Default: all.", least=1
    )
    metrics: str | None = setting(
        None,
        f"Default: all that can be had but {' and '.join(ON_REQUEST)}. Samples: {', '.join(METRICS)}; "
        f"tokenizers: {', '.join(TOKENIZER_METRICS)}.",
    )
    features: str = setting(
        "inception",
        "inception is what published numbers are made of. With the others metrics have other names: "
        "classifier:FOLDER, a network of your own or of maskgit-classifier; pixels and random need no "
        "weights.",
    )
    classifier_network: str | None = setting(
        None,
        "With --features=classifier:FOLDER, FILE.py:CLASS: the folder's weights belong to this network. The "
        "file is run.",
    )
    inception_weights: str | None = setting(
        None, "torch-fidelity's file. Default: downloaded once."
    )
    neighbours: int = setting(3, "Which nearest neighbour makes a radius.", least=1)
    splits: int = setting(10, "Of the Inception Score.", least=1)
    shuffle: bool = setting(
        True,
        "Put samples in a fixed random order before splitting; the ADM evaluator does not.",
    )
    cache: str | None = setting(
        None,
        "Folder that remembers features. Default: maskgit_pt/evaluation in the user's cache folder; an empty "
        "--cache= for none.",
    )
    batch_size: int = setting(50, "Images at a time, in each process.", least=1)

    def __post_init__(self):
        try:
            check_name(self.features)
        except ValueError as error:
            raise UsageError(f"--{error}") from None

    @property
    def metric_names(self) -> list[str] | None:
        """The metrics that were asked for; None for all."""
        if self.metrics is None:
            return None
        return [name.strip() for name in self.metrics.split(",") if name.strip()]

    def cache_folder(self) -> str | None:
        """Returns where features are remembered, made if missing; None for nowhere.

        Without `cache` it is a place in the user's cache folder; if that cannot be written, nothing is
        remembered, and standard error says so.

        Raises:
          OSError: the folder that was asked for cannot be made.
        """
        if self.cache is not None:
            if self.cache:
                Path(self.cache).mkdir(parents=True, exist_ok=True)
            return self.cache or None
        folder = user_cache("evaluation")
        try:
            if folder is None:
                raise OSError("this user has no home folder")
            folder.mkdir(parents=True, exist_ok=True)
            if os.access(folder, os.W_OK | os.X_OK):
                return str(folder)
            reason = f"{folder} cannot be written"
        except OSError as error:
            reason = " ".join(str(error).split())
        print(f"features are not remembered: {reason} (--cache=FOLDER)", file=sys.stderr)
        return None

    def how(self, device: torch.device, workers: Processes) -> dict[str, Any]:
        """Returns the arguments of `Context.make`."""
        return {
            "features": self.features,
            "inception_weights": self.inception_weights,
            "classifier_network": self.classifier_network,
            "cache": self.cache_folder() if workers.is_main else None,
            "device": device,
            "batch_size": self.batch_size,
            "progress": True,
            "workers": workers,
        }

    def load_reference(
        self, context: Context, samples: Source | None, image_size: int | None = None
    ) -> Reference:
        """Reads the reference; see `reference.load_reference`."""
        return load_reference(
            self.reference, context, samples, image_size=image_size, count=self.num_reference,
            with_spatial=self._with_spatial(context),
        )  # fmt: skip

    def _with_spatial(self, context: Context) -> bool:
        """Whether sFID is wanted and can be had; `samples.evaluate` complains if it cannot."""
        wanted = "sfid" in (self.metric_names or [])
        return wanted and getattr(context.extractor, "has_spatial", False)

    def evaluate(
        self,
        samples: Source,
        reference: Reference | str | None,
        context: Context,
        image_size: int | None = None,
    ) -> Evaluation:
        """Compares samples with a reference; see `samples.evaluate`."""
        return evaluate(
            samples,
            reference,
            metrics=self.metric_names,
            neighbours=self.neighbours,
            splits=self.splits,
            shuffle=self.shuffle,
            image_size=image_size,
            reference_count=self.num_reference,
            context=context,
        )
