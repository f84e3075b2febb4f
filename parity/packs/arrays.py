"""How a pack stores an array: whole, or, if it is large, as strided values with sums along every axis.

The sums tell where an error sits: the sum along axis a, at index i, adds up everything whose a-th index is i.
An element that is off shows in one sum of every axis.
"""

import dataclasses
import math
from typing import Any

import numpy as np

STRIDED = ".strided"  # endings of the names in the safetensors files
SUMS = ".sums."
# Rounding of a correct implementation that adds in another order is a few times what was measured.
FACTOR = 8.0
FACTOR_BFLOAT16 = 4.0
_EPSILON = 2.0**-23


@dataclasses.dataclass(frozen=True)
class Entry:
    """What the manifest says about one array.

    Attributes:
      name: unique, e.g. "transformer.layers.0.mlp".
      axes: letters of the manifest's legend, one an axis: "B N D".
      shape: lengths of the axes.
      dtype: "float32", "int32" or "uint32".
      about: what it is, with units or range.
      file: the safetensors file of the pack that holds it.
      stride: 0 if the array is stored whole; else every stride-th element of the flattened array is.
      rounding: largest difference between float32 and float64, of the code that was recorded; None for
        integers, which must be equal.
      bounds: by dtype of the implementation, how far an element may be off.
      given: whether it is an input, which is not compared.
    """

    name: str
    axes: str
    shape: tuple[int, ...]
    dtype: str
    about: str
    file: str
    stride: int = 0
    rounding: float | None = None
    bounds: dict[str, float] = dataclasses.field(default_factory=dict)
    given: bool = False

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def stored_shapes(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Name in the safetensors file -> shape and dtype there."""
        if not self.stride:
            return {self.name: (self.shape, self.dtype)}
        count = -(-self.size // self.stride)
        parts = {self.name + STRIDED: ((count,), self.dtype)}
        for axis, length in enumerate(self.shape):
            parts[f"{self.name}{SUMS}{axis}"] = ((length,), "float64")
        return parts

    def sum_bound(self, axis: int, bound: float) -> float:
        """How far a sum may be off if elements may by `bound`.

        In deep layers the errors of n added numbers do not cancel: tokens are off in the same direction.
        They are then off by n times the measured rounding, an eighth of the bound; twice that is allowed.
        """
        count = max(1, self.size // max(1, self.shape[axis]))
        return bound * max(math.sqrt(count), 2 * count / FACTOR)


def stride_of(shape: tuple[int, ...], limit: int) -> int:
    """0 if an array of this shape is stored whole, else a stride that meets every axis evenly.

    Args:
      shape: of the array.
      limit: elements of the largest array to store whole; of others about a quarter is kept.
    """
    size = math.prod(shape)
    if size <= limit:
        return 0
    stride = max(2, size // max(1, limit // 4))
    while any(math.gcd(stride, length) > 1 for length in shape):
        stride += 1
    return stride


def parts_of(entry: Entry, values: np.ndarray) -> dict[str, np.ndarray]:
    """What a pack keeps of `values`: name in the safetensors file -> array."""
    if not entry.stride:
        return {entry.name: np.array(values, order="C")}  # ascontiguousarray makes scalars 1-d
    parts = {entry.name + STRIDED: np.ascontiguousarray(values.reshape(-1)[:: entry.stride])}
    for axis, sums in enumerate(sums_of(values)):
        parts[f"{entry.name}{SUMS}{axis}"] = sums
    return parts


def sums_of(values: np.ndarray) -> list[np.ndarray]:
    """For every axis the sums over all others, float64."""
    axes = range(values.ndim)
    return [values.sum(tuple(a for a in axes if a != axis), dtype=np.float64) for axis in axes]


def bounds_of(
    values: np.ndarray, exact: np.ndarray, half: np.ndarray | None
) -> tuple[float, dict[str, float]]:
    """The measured rounding of an array, and the bounds that follow from it.

    Args:
      values: as recorded, float32; infinities count as equal.
      exact: the same computed in float64.
      half: the same computed in bfloat16, as float32; None if it was not.
    """
    finite = np.isfinite(values) & np.isfinite(exact)
    scale = float(np.abs(values, where=finite, out=np.zeros_like(values)).max(initial=0.0))
    rounding = largest(values, exact)
    bounds = {"float32": FACTOR * max(rounding, _EPSILON * scale)}
    if half is not None:
        bounds["bfloat16"] = max(FACTOR_BFLOAT16 * largest(half, exact), bounds["float32"])
    return rounding, bounds


def largest(ours: Any, theirs: Any) -> float:
    """The largest difference of two float arrays where both are finite; 0 if there is none."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    both = np.isfinite(ours) & np.isfinite(theirs)
    return float(np.abs(ours[both] - theirs[both]).max(initial=0.0))
