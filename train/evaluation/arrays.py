"""Feature matrices: what is accepted, and how they are walked through."""

from collections.abc import Iterator

import numpy as np
from torch import Tensor

Features = np.ndarray | Tensor
_ROWS = 4096


def as_features(features: Features, name: str) -> np.ndarray:
    """Checks features and gives them as a NumPy array, without a copy where possible.

    Args:
      features: [N, D]; float64 and float32 stay, float16 and bfloat16 become float32, whole numbers float64.
      name: for errors.

    Raises:
      ValueError: not a matrix with at least one row and column, not numbers, or not finite.
    """
    if isinstance(features, Tensor):
        features = features.detach().cpu()
        half = features.dtype.is_floating_point and features.dtype.itemsize < 4
        features = (features.float() if half else features).numpy()  # NumPy has no bfloat16
    features = np.asarray(features)
    if features.ndim != 2 or 0 in features.shape or features.dtype.kind not in "fiu":
        raise ValueError(
            f"{name} have shape {list(features.shape)} and dtype {features.dtype}; accepted: numbers [N, D]"
        )
    if features.dtype not in (np.float32, np.float64):
        features = features.astype(np.float32 if features.dtype.kind == "f" else np.float64)
    for rows in _slices(len(features)):
        if not np.isfinite(features[rows]).all():
            raise ValueError(f"{name} hold infinite numbers or NaN; accepted: finite numbers")
    return features


def blocks(features: np.ndarray) -> Iterator[np.ndarray]:
    """Copies of blocks of rows, in float64."""
    for rows in _slices(len(features)):
        yield features[rows].astype(np.float64)


def _slices(count: int) -> list[slice]:
    return [slice(start, start + _ROWS) for start in range(0, count, _ROWS)]
