"""Fréchet distance between Gaussians fitted to features; FID if the features are Inception's."""

import dataclasses

import numpy as np

from train.evaluation.arrays import Features, as_features, blocks


@dataclasses.dataclass(frozen=True)
class Statistics:
    """A Gaussian fitted to features.

    Attributes:
      mean: float64 [D].
      covariance: float64 [D, D], unbiased (divided by count - 1).
      count: how many features it was fitted to; None if unknown (statistics of others).
    """

    mean: np.ndarray
    covariance: np.ndarray
    count: int | None = None

    def __post_init__(self):
        D = len(self.mean)
        if self.mean.shape != (D,) or self.covariance.shape != (D, D):
            raise ValueError(
                f"statistics have a mean {list(self.mean.shape)} and a covariance "
                f"{list(self.covariance.shape)}; accepted: [D] and [D, D]"
            )
        if not (np.isfinite(self.mean).all() and np.isfinite(self.covariance).all()):
            raise ValueError("statistics hold infinite numbers or NaN; accepted: finite numbers")


def fit(features: Features) -> Statistics:
    """Mean and covariance in float64, a block of rows at a time.

    Args:
      features: [N, D], any float dtype; NumPy array or tensor.

    Raises:
      ValueError: fewer than 2 rows, infinite numbers, or not a matrix.
    """
    features = as_features(features, "features")
    N, D = features.shape
    if N < 2:
        raise ValueError(f"a covariance needs 2 samples or more; found {N}")
    mean = sum(block.sum(0) for block in blocks(features)) / N
    covariance = np.zeros((D, D))
    for block in blocks(features):
        block -= mean
        covariance += block.T @ block
    return Statistics(mean, covariance / (N - 1), N)


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """Returns the Fréchet distance of two Gaussians (Dowson & Landau 1982).

    That is ``|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2))``, A and B being the covariances.

    The eigenvalues of A B are the squared singular values of A^(1/2) B^(1/2), so that the last trace is the
    sum of these singular values. Unlike the square root of the product, which may not exist or be complex
    by rounding, this is accurate for singular covariances as well.

    Raises:
      ValueError: they have different dimensions.
    """
    if len(a.mean) != len(b.mean):
        raise ValueError(
            f"features of {len(a.mean)} and of {len(b.mean)} numbers cannot be compared; were they made by "
            "the same network?"
        )
    product = _root(a).T @ _root(b)
    trace = np.linalg.svd(product, compute_uv=False).sum()
    difference = a.mean - b.mean
    total = np.trace(a.covariance) + np.trace(b.covariance)
    return max(0.0, float(difference @ difference + total - 2 * trace))


def _root(statistics: Statistics) -> np.ndarray:
    """R [D, rank] with R R^T the covariance."""
    values, vectors = np.linalg.eigh(statistics.covariance)
    # What lies beyond the rank that `count` samples can have is rounding, of either sign.
    rank = len(values) if statistics.count is None else min(len(values), statistics.count - 1)
    values, vectors = values[-rank:], vectors[:, -rank:]
    return vectors * np.sqrt(np.maximum(values, 0))
