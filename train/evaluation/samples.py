"""`evaluate`: samples against a reference."""

import os
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from train.evaluation import manifold
from train.evaluation.context import SPATIAL_STATISTICS, Context
from train.evaluation.extraction import Arrays
from train.evaluation.features import Extractor
from train.evaluation.frechet import frechet_distance
from train.evaluation.inception_score import inception_score
from train.evaluation.kernel_distance import SUBSET_SIZE, SUBSETS, kernel_distance
from train.evaluation.reference import Reference, load_reference
from train.evaluation.report import Evaluation, check_metrics, metric_name, versions
from train.evaluation.sources import ArraySource, Source, open_source

_BY_DEFAULT = ("fid", "inception_score", "recognised", *manifold.METRICS)
ON_REQUEST = ("sfid", "kid")
METRICS = (*_BY_DEFAULT, *ON_REQUEST)
_OF_FEATURES = (*manifold.METRICS, "kid")  # need the reference's features, not only statistics
Images = Source | np.ndarray | str | os.PathLike


def evaluate(
    samples: Images,
    reference: Images | Reference | None = None,
    *,
    metrics: Sequence[str] | None = None,
    neighbours: int = 3,
    splits: int = 10,
    shuffle: bool = True,
    image_size: int | None = None,
    reference_count: int | None = None,
    context: Context | None = None,
    **how: Any,
) -> Evaluation:
    """Compares samples with a reference.

    Within an initialised process group all processes call this together, with the same arguments; they
    share the images, and all return the same.

    Args:
      samples: a source, uint8 [N, H, W, 3], or a path (see `sources.open_source`).
      reference: likewise, or a path to statistics (see `reference.load_reference`); None: only the
        Inception Score.
      metrics: some of `METRICS`; default: all but `ON_REQUEST` for which samples and reference have what
        it takes.
      neighbours: which neighbour makes a radius.
      splits, shuffle: of the Inception Score.
      image_size: crop a reference folder to this; default: to the samples' size.
      reference_count: of the reference's images, use this many, spread evenly.
      context: how features are made; or, instead of it,
      **how: the arguments of `Context.make`: features, inception_weights, cache, device, ...

    Returns:
      Metrics (published names for Inception's features only, see `report.metric_name`) and protocol.

    Raises:
      ImportError: the extra 'eval' is not installed.
      OSError, ValueError: bad input; one line says what was found and what is accepted.
    """
    wanted = check_metrics(_BY_DEFAULT if metrics is None else metrics, METRICS)
    source = as_source(samples, "samples")
    context = context or Context.make(**how)
    plan = _Plan(context, wanted, metrics is not None, neighbours, splits, shuffle)
    plan.check(source, reference is not None)
    compared = None
    if reference is not None:
        compared = load_reference(
            reference, context, source, image_size=image_size, count=reference_count,
            with_features=plan.needs_features, with_spatial="sfid" in plan.metrics,
        )  # fmt: skip
    plan.drop_impossible(compared)
    logits = bool({"inception_score", "recognised"} & set(plan.metrics))
    spatial = "sfid" in plan.metrics
    found = context.features(source, "samples", logits, spatial)
    values = context.workers.on_first(lambda: plan.compute(source, found, compared))
    protocol = {"samples": source.protocol}
    if compared is not None:
        protocol["reference"] = compared.protocol
    protocol |= {"features": context.extractor.protocol} | plan.protocol()
    named = {metric_name(metric, context.extractor.name): v for metric, v in values.items()}
    return Evaluation(named, protocol | {"versions": versions()})


def _recognisable(source: Source, extractor: Extractor) -> str | None:
    """What is missing to ask a classifier for the classes of the images; None if nothing is."""
    names = getattr(extractor, "class_names", None)
    if names is None:
        return f"a classifier of these classes, which {extractor.name!r} is not"
    if source.labels is None:
        return f"labels, which {source.protocol['name']} does not have"
    if source.class_names not in (None, names):
        theirs, own = (", ".join(some[:3]) for some in (source.class_names, names))
        return f"a classifier of the same classes; the images have {theirs}, ..., it has {own}, ..."
    highest = int(source.labels.max())
    return (
        f"a classifier of {highest + 1} classes; it has {len(names)}"
        if highest >= len(names)
        else None
    )


def as_source(images: Images, name: str, image_size: int | None = None) -> Source:
    """Opens what is not a source yet."""
    if isinstance(images, np.ndarray):
        return ArraySource(images, name)
    return images if isinstance(images, Source) else open_source(images, image_size)


class _Plan:
    """Which metrics to compute, and how.

    Args:
      asked: whether somebody named the metrics; otherwise those that cannot be had are left out.
    """

    def __init__(
        self,
        context: Context,
        metrics: list[str],
        asked: bool,
        neighbours: int,
        splits: int,
        shuffle: bool,
    ):
        self.context, self.metrics, self.asked = context, metrics, asked
        self.neighbours, self.splits, self.shuffle = neighbours, splits, shuffle

    @property
    def needs_neighbours(self) -> bool:
        return any(name in self.metrics for name in manifold.METRICS)

    @property
    def needs_features(self) -> bool:
        return any(name in self.metrics for name in _OF_FEATURES)

    def check(self, source: Source, has_reference: bool) -> None:
        """Complains about what cannot work, before hours are spent on it."""
        extractor, count = self.context.extractor, len(source)
        if not has_reference:
            alone = ("inception_score", "recognised")
            self._leave_out([m for m in self.metrics if m not in alone], "a reference")
        if not extractor.has_logits:
            missing = f"classes, which {extractor.name!r} does not give"
            self._leave_out(["inception_score"], missing)
        if not getattr(extractor, "has_spatial", False):
            self._leave_out(["sfid"], f"spatial features, which {extractor.name!r} does not give")
        problem = _recognisable(source, extractor)
        if problem:
            self._leave_out(["recognised"], problem)
        if not self.metrics:
            raise ValueError("nothing to compute: no reference, and features without classes")
        if "inception_score" in self.metrics and not 1 <= self.splits <= count:
            raise ValueError(
                f"the Inception Score of {self.splits} splits needs as many images; found {count}"
            )
        if self.needs_neighbours:
            self._check_neighbours(count, "samples")
        if {"fid", "sfid"} & set(self.metrics) and count < 2:
            raise ValueError(f"a covariance needs 2 samples or more; found {count}")

    def drop_impossible(self, compared: Reference | None) -> None:
        """The same once the reference is known."""
        features = compared is not None and compared.features is not None
        count = self.context.workers.on_first(lambda: len(compared.features) if features else None)
        if count is not None and self.needs_neighbours:
            self._check_neighbours(count, "reference images")
        elif count is None and compared is not None:
            missing = (
                f"the reference's features; {compared.protocol.get('name')} holds statistics alone"
            )
            self._leave_out(_OF_FEATURES, missing)
        if "sfid" in self.metrics and not self.context.workers.on_first(
            lambda: compared.spatial is not None
        ):
            missing = f"{' and '.join(SPATIAL_STATISTICS)}, or images"
            self._leave_out(["sfid"], f"the reference's {missing}; found neither")

    def _check_neighbours(self, count: int, what: str) -> None:
        if not 1 <= self.neighbours < count:
            raise ValueError(
                f"{self.neighbours} nearest neighbours need more {what} than that; found {count}"
            )

    def _leave_out(self, names: Sequence[str], missing: str) -> None:
        left = [name for name in names if name in self.metrics]
        if left and self.asked:
            raise ValueError(f"{left[0]} needs {missing}")
        self.metrics = [name for name in self.metrics if name not in left]

    def compute(
        self, source: Source, found: Arrays, compared: Reference | None
    ) -> dict[str, float]:
        """The values, on rank 0."""
        values = {}
        if "fid" in self.metrics:
            count, width = found["features"].shape
            if count < width:
                warnings.warn(
                    f"the Fréchet distance of {count} samples, fewer than their {width} features, is too "
                    "large: compare it with that of as many samples alone",
                    stacklevel=2,
                )
            fitted = self.context.fit(source, found["features"])
            values["fid"] = frechet_distance(fitted, compared.statistics)
        if "sfid" in self.metrics:
            fitted = self.context.fit(source, found["spatial"], SPATIAL_STATISTICS)
            values["sfid"] = frechet_distance(fitted, compared.spatial)
        if "kid" in self.metrics:
            mean, deviation = kernel_distance(found["features"], compared.features)
            values |= {"kid": mean, "kid_std": deviation}
        if "inception_score" in self.metrics:
            mean, deviation = inception_score(found["logits"], self.splits, self.shuffle)
            values |= {"inception_score": mean, "inception_score_std": deviation}
        if "recognised" in self.metrics:
            guesses = np.asarray(found["logits"]).argmax(1)
            values["recognised"] = float((guesses == source.labels).mean())
        if self.needs_neighbours:
            four = manifold.manifold_metrics(
                found["features"], compared.features, self.neighbours, device=self.context.device,
                progress=self.context.progress,
            )  # fmt: skip
            values |= {name: four[name] for name in manifold.METRICS if name in self.metrics}
        return values

    def protocol(self) -> dict[str, Any]:
        """The settings of these metrics."""
        settings: dict[str, Any] = {}
        if self.needs_neighbours:
            settings["neighbours"] = self.neighbours
        if "inception_score" in self.metrics:
            order = "shuffled" if self.shuffle else "in the given order"
            settings["splits"] = f"{self.splits}, {order}"
        if "kid" in self.metrics:
            settings["kid"] = f"{SUBSETS} subsets of {SUBSET_SIZE}, or of all if there are fewer"
        return settings
