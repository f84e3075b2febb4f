"""Precision, recall, density and coverage: how two sets of features overlap.

The manifold of a set is the union of balls around its points, each reaching to the point's k-th nearest
neighbour in the set, not counting itself. With d the Euclidean distance, r the radius of a ball:

  precision  share of samples s with d(s, x) <= r(x) for any reference point x
  recall     share of reference points x with d(x, s) <= r(s) for any sample s
             (Kynkäänniemi et al. 2019; as torch-fidelity)
  density    1/k times the mean over samples s of the number of reference points x with d(s, x) < r(x)
  coverage   share of reference points x with d(s, x) < r(x) for any sample s
             (Naeem et al. 2020; as their package prdc)

Distances come from |x|^2 + |y|^2 - 2 x.y in float64, in blocks, so that memory stays small. Where a distance
and a radius are too close for this formula to tell which is larger (ties are common: a sample that copies a
reference point lies exactly on a radius), the coordinates are subtracted instead; points that are equal have
distance 0. So the result does not depend on the size of blocks, threads or device. Distances of float32
features are rounded to float32 before comparing, as scikit-learn does below prdc.
"""

import hashlib
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from train.evaluation.arrays import Features, as_features, blocks

METRICS = ("precision", "recall", "density", "coverage")
_BLOCK = 2048  # a block of distances in float64: 32 MiB
_SINGLE = 3e-7  # squares closer than this (relative) may have the same root in float32


def manifold_metrics(
    samples: Features,
    reference: Features,
    k: int = 3,
    *,
    device: str | torch.device = "cpu",
    progress: bool = False,
) -> dict[str, float]:
    """All four metrics, see above.

    Args:
      samples: [N, D], of generated images.
      reference: [M, D], of real images.
      k: which neighbour makes the radius. 3 for Kynkäänniemi et al. and ADM; 5 in Naeem et al.
      device: where distances are computed; the features stay where they are (a memory map will do).
      progress: show a bar.

    Returns:
      {"precision": ..., "recall": ..., "density": ..., "coverage": ...}; density may exceed 1.

    Raises:
      ValueError: fewer than k + 1 points in a set, other dimensions, infinite numbers, k below 1.
    """
    pair = _Pair(
        as_features(samples, "samples"), as_features(reference, "reference features"), device
    )
    for name, points in (("samples", pair.samples), ("reference images", pair.reference)):
        if not 1 <= k < len(points):
            raise ValueError(
                f"{k} nearest neighbours need more than {max(k, 1)} {name} and k of 1 or more; found "
                f"{len(points)} {name}"
            )
    bar = tqdm(total=pair.work(), unit=" blocks", desc="neighbours", disable=not progress or None)
    with bar, torch.inference_mode():
        return _metrics(pair, k, bar.update)


def _metrics(pair: "_Pair", k: int, advance: Callable[[], object]) -> dict[str, float]:
    samples, reference = pair.samples, pair.reference
    sample_radii = pair.radii(samples, k, advance)
    reference_radii = pair.radii(reference, k, advance)
    precise, inside = torch.zeros(2, len(samples), device=pair.device, dtype=torch.int64)
    recalled, covered = torch.zeros(2, len(reference), device=pair.device, dtype=torch.int64)
    for rows in samples.blocks():
        for columns in reference.blocks():
            distances = _Distances(pair, samples, rows, reference, columns)
            within, strictly = distances.compare(reference_radii[None, columns])
            precise[rows] += within.sum(1)
            inside[rows] += strictly.sum(1)
            covered[columns] += strictly.sum(0)
            within, _ = distances.compare(sample_radii[rows, None])
            recalled[columns] += within.sum(0)
            advance()
    return {
        "precision": (precise > 0).double().mean().item(),
        "recall": (recalled > 0).double().mean().item(),
        "density": inside.double().mean().item() / k,
        "coverage": (covered > 0).double().mean().item(),
    }


class _Points:
    """A set of features.

    Attributes:
      features: float [N, D].
      identity: int64 [N], equal for equal points.
    """

    def __init__(self, features: np.ndarray, identity: np.ndarray, device: torch.device):
        self.features = features
        self.identity = torch.from_numpy(identity).to(device)

    def __len__(self) -> int:
        return len(self.features)

    def blocks(self) -> list[slice]:
        return [slice(start, start + _BLOCK) for start in range(0, len(self), _BLOCK)]


class _Pair:
    """Both sets, and how their distances are computed.

    Attributes:
      single: whether distances are rounded to float32.
    """

    def __init__(self, samples: np.ndarray, reference: np.ndarray, device: str | torch.device):
        if samples.shape[1] != reference.shape[1]:
            raise ValueError(
                f"samples have {samples.shape[1]} features, the reference {reference.shape[1]}; were they "
                "made by the same network?"
            )
        self.device = torch.device(device)
        self.single = samples.dtype == reference.dtype == np.float32
        # Norms about the mean are small, and with them the error of the formula.
        mean = sum(block.sum(0) for block in blocks(reference)) / len(reference)
        self.mean = torch.from_numpy(mean).to(self.device)
        numbers: dict[bytes, int] = {}
        self.samples = _Points(samples, _identities(samples, numbers), self.device)
        self.reference = _Points(reference, _identities(reference, numbers), self.device)
        # The usual bound of the error of a dot product, for the three of the formula.
        self.tolerance = (2 * samples.shape[1] + 8) * np.finfo(np.float64).eps

    def work(self) -> int:
        """Blocks of distances in all."""
        m, n = len(self.samples.blocks()), len(self.reference.blocks())
        return m * (m + 1) // 2 + n * (n + 1) // 2 + m * n

    def load(self, points: _Points, rows: slice) -> Tensor:
        """float64 [R, D], centred."""
        block = torch.tensor(points.features[rows], device=self.device)
        return block.double().sub_(self.mean)

    def radii(self, points: _Points, k: int, advance: Callable[[], object]) -> Tensor:
        """The squared distance of each point to its k-th neighbour, float64 [N], exact."""
        shape = len(points), k + 1  # the point itself counts among them, at distance 0
        nearest = torch.full(shape, torch.inf, dtype=torch.float64, device=self.device)
        index = torch.zeros(shape, dtype=torch.int64, device=self.device)

        def merge(rows: slice, squares: Tensor, start: int) -> None:
            found, place = squares.topk(min(k + 1, squares.shape[1]), largest=False)
            found, place = (
                torch.cat([nearest[rows], found], 1),
                torch.cat([index[rows], place + start], 1),
            )
            nearest[rows], best = found.topk(k + 1, largest=False)
            index[rows] = place.gather(1, best)

        for rows in points.blocks():
            for columns in points.blocks():
                if columns.start < rows.start:
                    continue  # the same block, mirrored
                squares = _Distances(self, points, rows, points, columns).squares_with_equals()
                merge(rows, squares, columns.start)
                if columns.start > rows.start:
                    merge(columns, squares.T, rows.start)
                advance()
        exact = self.exact(points, np.arange(len(points)), points, index[:, k].cpu().numpy())
        return torch.from_numpy(exact).to(self.device)

    def exact(self, a: _Points, i: np.ndarray, b: _Points, j: np.ndarray) -> np.ndarray:
        """Squared distances of pairs, float64 [P].

        The same two points give the same bits, whichever comes first and whatever else is asked for.
        """
        squares = np.empty(len(i))
        for part in range(0, len(i), _BLOCK):
            part = slice(part, part + _BLOCK)
            difference = a.features[i[part]].astype(np.float64) - b.features[j[part]]
            squares[part] = (difference * difference).sum(1)
        return squares

    def rounded(self, squares: np.ndarray) -> np.ndarray:
        """What is compared in place of squared distances."""
        return np.sqrt(squares.astype(np.float32)) if self.single else squares


class _Distances:
    """One block of distances.

    Attributes:
      squares: float64 [R, C], squared distances; infinite between equal points.
      equal: bool [R, C], or None if no two points are.
    """

    def __init__(self, pair: _Pair, a: _Points, rows: slice, b: _Points, columns: slice):
        self.pair, self.a, self.rows, self.b, self.columns = pair, a, rows, b, columns
        x, y = pair.load(a, rows), pair.load(b, columns)
        x_norm, y_norm = x.square().sum(1), y.square().sum(1)
        self.bound = pair.tolerance * (x_norm.max() + y_norm.max()).item()
        self.squares = (x_norm[:, None] + y_norm[None]).addmm_(x, y.T, alpha=-2)
        self.equal = None
        x_identity, y_identity = a.identity[rows], b.identity[columns]
        if torch.isin(x_identity, y_identity).any():
            self.equal = x_identity[:, None] == y_identity[None]
            self.squares.masked_fill_(self.equal, torch.inf)

    def squares_with_equals(self) -> Tensor:
        """[R, C]: 0 between equal points, and between no others."""
        squares = self.squares.clamp_(min=torch.finfo(torch.float64).tiny)
        return squares if self.equal is None else squares.masked_fill_(self.equal, 0)

    def compare(self, radii: Tensor) -> tuple[Tensor, Tensor]:
        """Whether distances are at most the radii, and whether they are less: bool [R, C] each.

        Args:
          radii: squared, [R, 1] or [1, C].
        """
        slack = self.bound + (_SINGLE * radii if self.pair.single else 0)
        within, strictly = self.squares <= radii + slack, self.squares < radii - slack
        i, j = (within ^ strictly).nonzero(as_tuple=True)
        if len(i):
            i_all, j_all = (
                (i + self.rows.start).cpu().numpy(),
                (j + self.columns.start).cpu().numpy(),
            )
            distance = self.pair.rounded(self.pair.exact(self.a, i_all, self.b, j_all))
            radius = self.pair.rounded(radii.expand_as(self.squares)[i, j].cpu().numpy())
            within[i, j] = torch.from_numpy(distance <= radius).to(within.device)
            strictly[i, j] = torch.from_numpy(distance < radius).to(within.device)
        if self.equal is not None:
            within |= self.equal
            strictly |= self.equal & (radii > 0)
        return within, strictly


def _identities(features: np.ndarray, numbers: dict[bytes, int]) -> np.ndarray:
    """int64 [N], equal for equal rows; `numbers` remembers those of the rows seen."""
    return np.fromiter((numbers.setdefault(d, len(numbers)) for d in _digests(features)), np.int64)


def _digests(features: np.ndarray) -> Iterator[bytes]:
    for block in blocks(features):
        block += 0.0  # -0 becomes 0
        for row in block:
            yield hashlib.blake2b(row, digest_size=16).digest()
