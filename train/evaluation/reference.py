"""What samples are compared with: images, ADM's reference batches, statistics on file."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from maskgit_pt.files import atomic_file
from train.evaluation.context import SPATIAL_STATISTICS, STATISTICS, Context
from train.evaluation.features import (
    INCEPTION_FEATURES,
    INCEPTION_SPATIAL_FEATURES,
    Extractor,
)
from train.evaluation.frechet import Statistics
from train.evaluation.npz import Npz
from train.evaluation.sources import (
    ArraySource,
    FirstImages,
    NpzSource,
    Source,
    check_same_size,
    open_source,
)

_MOST_FEATURES = 100_000  # stored beside the statistics
_ACCEPTED = (
    "accepted: an ADM reference batch (arr_0, and mu and sigma), statistics written by --save_statistics, "
    "or mu and sigma alone"
)


@dataclasses.dataclass
class Reference:
    """The other side of a comparison.

    Attributes:
      protocol: what it is, for the report.
      statistics: for FID; on rank 0.
      features: [M, D] for precision, recall, density and coverage; on rank 0, None where there are none.
      spatial: statistics of the spatial features, for sFID; on rank 0, None where there are none.
    """

    protocol: dict[str, Any]
    statistics: Statistics | None = None
    features: np.ndarray | None = None
    spatial: Statistics | None = None


def load_reference(
    reference: "Source | Reference | np.ndarray | str | os.PathLike",
    context: Context,
    samples: Source | None,
    *,
    image_size: int | None = None,
    count: int | None = None,
    with_features: bool = True,
    with_spatial: bool = False,
) -> Reference:
    """Opens a reference and computes what is not on file.

    Args:
      reference: images, or the path of a folder (cropped to the samples' size), of tar files or of an npz.
      context: how features are made.
      samples: what will be compared with it; sizes must agree.
      image_size: crop the images of a folder to this; default: the samples' size.
      count: of its images, use this many, spread evenly; default: all.
      with_features: whether features are needed, or statistics alone.
      with_spatial: whether statistics of the spatial features are needed.

    Raises:
      FileNotFoundError, ValueError: nothing there, or it does not fit the samples or the extractor.
    """
    if isinstance(reference, Reference):
        return reference
    if isinstance(reference, np.ndarray):
        reference = ArraySource(reference, "reference array")
    if not isinstance(reference, Source):
        path = Path(reference)
        if path.suffix == ".npz":
            return _from_npz(Npz(path), context, samples, count, with_features, with_spatial)
        if image_size is None and samples is not None and samples.size[0] == samples.size[1]:
            image_size = samples.size[0]
        reference = open_source(path, image_size)
    return _from_images(reference, context, samples, count, with_spatial=with_spatial)


def _from_images(
    source: Source,
    context: Context,
    samples: Source | None,
    count: int | None,
    statistics: Statistics | None = None,
    with_spatial: bool = False,
) -> Reference:
    if samples is not None:
        check_same_size(samples, source)
    source = source if count is None else FirstImages(source, count, spread=True)
    found = context.features(source, "reference", spatial=with_spatial)
    result = Reference(dict(source.protocol), statistics, found.get("features"))
    if context.is_first and statistics is None:
        result.statistics = context.fit(source, result.features)
    if context.is_first and with_spatial:
        result.spatial = context.fit(source, found["spatial"], SPATIAL_STATISTICS)
    return result


def _from_npz(
    npz: Npz,
    context: Context,
    samples: Source | None,
    count: int | None,
    with_features: bool,
    with_spatial: bool,
) -> Reference:
    names = set(npz.names)
    if "protocol" in names:
        return _from_own_file(npz, context, samples)
    statistics = spatial = None
    if context.extractor.name == "inception":
        statistics = _inception_statistics(npz, STATISTICS, INCEPTION_FEATURES)
        if with_spatial:
            spatial = _inception_statistics(npz, SPATIAL_STATISTICS, INCEPTION_SPATIAL_FEATURES)
    if "arr_0" not in names and statistics is None:
        more = " (mu and sigma go with --features=inception)" if "mu" in names else ""
        raise ValueError(
            f"{npz.path}: found {', '.join(npz.names) or 'nothing'}; {_ACCEPTED}{more}"
        )
    no_spatial = with_spatial and spatial is None
    if "arr_0" in names and (with_features or statistics is None or no_spatial):
        images = NpzSource(npz.path)
        result = _from_images(images, context, samples, count, statistics, no_spatial)
    else:
        result = Reference({"name": npz.path.name}, statistics)
    result.spatial = spatial or result.spatial
    read = [*STATISTICS] if statistics else []
    read += SPATIAL_STATISTICS if spatial else []
    if read:
        result.protocol["statistics"] = f"{', '.join(read[:-1])} and {read[-1]} of the file"
        result.protocol["fingerprint"] = npz.fingerprint(*read)
    return result


def _inception_statistics(npz: Npz, names: tuple[str, str], length: int) -> Statistics | None:
    """None if they are not in the file."""
    if not set(names) <= set(npz.names):
        return None
    statistics = _read_statistics(npz, names=names)
    if len(statistics.mean) != length:
        raise ValueError(
            f"{npz.path}: {names[0]} has {len(statistics.mean)} numbers; accepted: Inception's {length}"
        )
    return statistics


def _read_statistics(
    npz: Npz, count: int | None = None, names: tuple[str, str] = STATISTICS
) -> Statistics:
    arrays = [npz.array(name) for name in names]
    if any(array.dtype.kind != "f" or array.ndim > 2 for array in arrays):
        raise ValueError(f"{npz.path}: {' and '.join(names)} are not float [D] and [D, D]")
    try:
        mean, covariance = (np.asarray(array, np.float64) for array in arrays)
        return Statistics(np.atleast_1d(mean), covariance, count)
    except ValueError as error:
        raise ValueError(f"{npz.path}: {error}") from None


def _from_own_file(npz: Npz, context: Context, samples: Source | None) -> Reference:
    try:
        stored = json.loads(str(npz.array("protocol", 2**20)))
        protocol, fingerprint = dict(stored["reference"]), str(stored["extractor"])
        count = protocol["count"]
        if not isinstance(count, int) or count < 2:
            raise ValueError(count)
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{npz.path}: its protocol is damaged; {_ACCEPTED}") from None
    if fingerprint != context.extractor.fingerprint:
        raise ValueError(
            f"{npz.path}: made with features {fingerprint[:16]!r}, the samples' would be "
            f"{context.extractor.fingerprint[:16]!r}; use the same --features and weights"
        )
    if samples is not None and protocol.get("size") != samples.protocol["size"]:
        raise ValueError(
            f"{npz.path}: of images of {protocol.get('size')}, the samples are {samples.protocol['size']}"
        )
    statistics = _read_statistics(npz, count)
    features = npz.array("features") if "features" in npz.names else None
    spatial = None
    if set(SPATIAL_STATISTICS) <= set(npz.names):
        spatial = _read_statistics(npz, count, SPATIAL_STATISTICS)
    return Reference(protocol, statistics, features, spatial)


def is_statistics(path: Path) -> bool:
    """Whether a file was written by `save_reference`."""
    try:
        return "protocol" in Npz(path).names
    except (OSError, ValueError):
        return False


def save_reference(reference: Reference, extractor: Extractor, path: str | os.PathLike) -> None:
    """Writes statistics, features (of 100,000 images at most) and protocol as an npz file."""
    text = json.dumps({"reference": reference.protocol, "extractor": extractor.fingerprint})
    arrays = {
        "mu": reference.statistics.mean,
        "sigma": reference.statistics.covariance,
        "protocol": np.array(text),
    }
    if reference.features is not None and len(reference.features) <= _MOST_FEATURES:
        arrays["features"] = reference.features
    if reference.spatial is not None:
        spatial = (reference.spatial.mean, reference.spatial.covariance)
        arrays |= dict(zip(SPATIAL_STATISTICS, spatial, strict=True))
    with atomic_file(Path(path)) as file:
        np.savez(file, **arrays)
