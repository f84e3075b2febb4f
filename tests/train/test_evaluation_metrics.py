"""Metrics on features against independent code: torch-fidelity, prdc, SciPy, closed forms."""

import contextlib
import io

import numpy as np
import pytest
import scipy.linalg
import torch

from train.evaluation import manifold
from train.evaluation.frechet import Statistics, fit, frechet_distance
from train.evaluation.inception_score import inception_score
from train.evaluation.manifold import manifold_metrics
from train.evaluation.torchvision_import import import_torch_fidelity

import_torch_fidelity()
from torch_fidelity.metric_fid import (  # noqa: E402
    fid_features_to_statistics,
    fid_statistics_to_metric,
)
from torch_fidelity.metric_isc import isc_features_to_metric  # noqa: E402
from torch_fidelity.metric_prc import calculate_precision_recall_full  # noqa: E402


def feature_sets(seed: int, kind: str, dtype: str, D: int) -> tuple[np.ndarray, np.ndarray]:
    """Samples [330, D] and reference [270, D] that overlap in part."""
    rng = np.random.default_rng(seed)
    samples = rng.standard_normal((330, D)) * 1.1 + 0.1
    reference = rng.standard_normal((270, D))
    if kind == "duplicates":  # most points several times, many of them more than k
        samples = samples[rng.integers(0, 60, len(samples))]
        reference = reference[rng.integers(0, 60, len(reference))]
    if kind == "copies":  # samples that are reference points lie exactly on radii
        samples[:150] = reference[:150]
    if kind == "ties":  # a lattice: a few distances, each many times
        samples, reference = np.round(samples * 1.5), np.round(reference * 1.5)
    if kind == "both":  # the same points in both sets, more than k times
        samples[:60], reference[:60] = samples[0], samples[0]
    return samples.astype(dtype), reference.astype(dtype)


def independent(samples: np.ndarray, reference: np.ndarray, k: int) -> dict[str, float]:
    """Precision and recall of torch-fidelity, density and coverage of prdc."""
    import prdc  # with scikit-learn: a second

    with contextlib.redirect_stdout(io.StringIO()):
        found = prdc.compute_prdc(reference, samples, k)
    # In float64: torch's float32 distances are off by 1e-3 for the nearest of neighbours.
    tensors = torch.from_numpy(samples).double(), torch.from_numpy(reference).double()
    precision, recall = calculate_precision_recall_full(*tensors, k)
    return {"precision": precision, "recall": recall} | {
        n: found[n] for n in ("density", "coverage")
    }


def assert_same(found: dict[str, float], expected: dict[str, float]) -> None:
    # Counts divided by up to 330 * k: 1e-6 separates any two; torch-fidelity's mean is float32.
    for name in manifold.METRICS:
        assert found[name] == pytest.approx(expected[name], abs=1e-6), name


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["random", "duplicates", "copies", "ties", "both"])
@pytest.mark.parametrize("seed, D, k", [(0, 64, 3), (1, 16, 5), (2, 200, 1)])
def test_manifold_equals_torch_fidelity_and_prdc(dtype, kind, seed, D, k):
    D = 3 if kind == "ties" else D
    sets = feature_sets(seed, kind, dtype, D)
    expected = independent(*sets, k)
    assert_same(manifold_metrics(*sets, k), expected)
    tensors = [torch.from_numpy(features) for features in sets]
    assert manifold_metrics(*tensors, k) == manifold_metrics(*sets, k)


def test_torch_fidelity_in_float32():
    for seed in range(3):
        sets = feature_sets(seed, "random", "float32", 64)
        expected = calculate_precision_recall_full(*map(torch.from_numpy, sets), 3)
        found = manifold_metrics(*sets)
        assert (found["precision"], found["recall"]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", ["random", "duplicates", "copies", "ties"])
def test_blocks_do_not_change_the_result(kind, monkeypatch):
    sets = feature_sets(3, kind, "float64", 5)
    whole = manifold_metrics(*sets)
    for size in (50, 256):
        monkeypatch.setattr(manifold, "_BLOCK", size)
        assert manifold_metrics(*sets) == whole


def test_far_from_the_origin():
    # |x|^2 is 1e8 times the squared distances: without care, nothing is left of them.
    samples, reference = feature_sets(4, "random", "float64", 8)
    samples, reference = samples.round(6), reference.round(6)
    near = manifold_metrics(samples, reference)
    assert_same(manifold_metrics(samples + 2**14, reference + 2**14), near)


def test_collapsed_sets():
    one, (_, many) = np.ones((40, 6)), feature_sets(5, "random", "float64", 6)
    assert manifold_metrics(one, one) == {
        "precision": 1.0, "recall": 1.0, "density": 0.0, "coverage": 0.0,
    }  # fmt: skip
    assert manifold_metrics(one, many)["recall"] == 0.0


@pytest.mark.parametrize("kind", ["random", "copies", "ties"])
def test_negative_controls(kind):
    """The comparison notices a neighbour too many or too few, and swapped sets."""
    sets = feature_sets(6, kind, "float64", 4)
    expected = independent(*sets, 3)
    for wrong in (
        manifold_metrics(*sets, k=2),
        manifold_metrics(*sets, k=4),
        manifold_metrics(sets[1], sets[0]),
    ):
        with pytest.raises(AssertionError):
            assert_same(wrong, expected)


def test_fewest_points():
    samples, reference = feature_sets(7, "random", "float64", 4)
    assert manifold_metrics(samples[:4], reference[:4])["recall"] in (0, 0.25, 0.5, 0.75, 1)
    for sets in ((samples[:3], reference), (samples, reference[:3])):
        with pytest.raises(ValueError, match="3 nearest neighbours need more than 3 .*found 3 "):
            manifold_metrics(*sets)
    with pytest.raises(ValueError, match="k of 1 or more"):
        manifold_metrics(samples, reference, k=0)


@pytest.mark.parametrize(
    "samples, message",
    [
        (np.zeros((9, 3)), "3 features, the reference 4"),
        (np.full((9, 4), np.nan), "samples hold infinite numbers or NaN"),
        (np.zeros(9), r"shape \[9\]"),
        (np.zeros((9, 4), dtype=object), "dtype object"),
        (np.zeros((0, 4)), r"shape \[0, 4\]"),
    ],
)
def test_wrong_features(samples, message):
    with pytest.raises(ValueError, match=message):
        manifold_metrics(samples, np.zeros((9, 4)))


def test_half_precision_features():
    samples, reference = (torch.from_numpy(f) for f in feature_sets(8, "random", "float32", 6))
    for dtype in (torch.bfloat16, torch.float16):
        rounded = manifold_metrics(samples.to(dtype).float(), reference.to(dtype).float())
        assert manifold_metrics(samples.to(dtype), reference.to(dtype)) == rounded


def test_whole_numbers():
    """Squares beyond float32's 24 bits stay apart."""
    rng = np.random.default_rng(9)
    samples, reference = (rng.integers(0, 5000, (n, 16)) for n in (300, 250))
    found = manifold_metrics(samples, reference)
    assert_same(found, independent(samples, reference, 3))
    tensors = torch.from_numpy(samples).int(), torch.from_numpy(reference)
    assert manifold_metrics(*tensors) == found


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("D", [1, 8, 200])
def test_frechet_of_gaussians(seed, D):
    """Covariances with common eigenvectors have a closed form: sum of (sqrt a - sqrt b)^2."""
    rng = np.random.default_rng(seed)
    vectors, _ = np.linalg.qr(rng.standard_normal((D, D)))
    a, b = rng.uniform(0.01, 4, (2, D))
    means = rng.standard_normal((2, D))
    gaussians = [
        Statistics(m, (vectors * v) @ vectors.T) for m, v in zip(means, (a, b), strict=True)
    ]
    expected = np.square(means[0] - means[1]).sum() + np.square(np.sqrt(a) - np.sqrt(b)).sum()
    assert frechet_distance(*gaussians) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(*gaussians[::-1]) == pytest.approx(expected, rel=1e-9)
    a[: D // 2] = 0  # singular
    gaussians[0] = Statistics(means[0], (vectors * a) @ vectors.T)
    expected = np.square(means[0] - means[1]).sum() + np.square(np.sqrt(a) - np.sqrt(b)).sum()
    assert frechet_distance(*gaussians) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("seed, D", [(0, 8), (1, 64), (2, 150)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_frechet_equals_scipy_and_torch_fidelity(seed, D, dtype):
    samples, reference = feature_sets(seed, "random", dtype, D)
    mixing = np.random.default_rng(seed).standard_normal((D, D)) / D**0.5
    samples, reference = samples @ mixing.astype(dtype), reference @ mixing.T.astype(dtype)
    a, b = fit(samples), fit(torch.from_numpy(reference))
    np.testing.assert_allclose(a.mean, samples.mean(0, dtype=np.float64), rtol=0, atol=1e-12)
    np.testing.assert_allclose(a.covariance, np.cov(samples, rowvar=False), rtol=1e-9, atol=1e-12)
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance).real
    squared = np.square(a.mean - b.mean).sum()
    expected = squared + np.trace(a.covariance + b.covariance - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    theirs = [fid_features_to_statistics(torch.from_numpy(f)) for f in (samples, reference)]
    theirs = fid_statistics_to_metric(*theirs, verbose=False)["frechet_inception_distance"]
    # Their means are summed in the dtype of the features.
    rel = 1e-6 if dtype == "float32" else 1e-9
    assert frechet_distance(a, b) == pytest.approx(theirs, rel=rel)


@pytest.mark.parametrize("counts", [(2, 2), (20, 30), (20, 300), (300, 20)])
def test_frechet_of_few_samples(counts):
    """Singular covariances: tr (A B)^(1/2) is the nuclear norm of X Y^T, X and Y the centred features."""
    rng = np.random.default_rng(9)
    samples, reference = (rng.standard_normal((count, 100)) + i for i, count in enumerate(counts))
    a, b = fit(samples), fit(reference)
    product = (samples - a.mean) @ (reference - b.mean).T
    trace = np.linalg.norm(product, "nuc") / np.sqrt((counts[0] - 1) * (counts[1] - 1))
    total = np.trace(a.covariance) + np.trace(b.covariance)
    expected = np.square(a.mean - b.mean).sum() + total - 2 * trace
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-10)


def test_frechet_notices():
    """What tells it from plausible mistakes: dividing by N, and another set."""
    samples, reference = feature_sets(0, "random", "float64", 8)
    a, b = fit(samples[:30]), fit(reference[:40])
    biased = Statistics(a.mean, a.covariance * 29 / 30, a.count)
    assert frechet_distance(biased, b) != pytest.approx(frechet_distance(a, b), rel=1e-3)


def test_frechet_errors():
    with pytest.raises(ValueError, match="needs 2 samples or more; found 1"):
        fit(np.zeros((1, 3)))
    with pytest.raises(ValueError, match="of 3 and of 4 numbers"):
        frechet_distance(fit(np.eye(3)), fit(np.eye(4)))
    with pytest.raises(ValueError, match=r"mean \[3\] and a covariance \[3, 4\]"):
        Statistics(np.zeros(3), np.zeros((3, 4)))
    with pytest.raises(ValueError, match="NaN"):
        Statistics(np.full(3, np.nan), np.eye(3))


@pytest.mark.parametrize("seed, N, splits", [(0, 100, 10), (1, 1003, 10), (2, 57, 3)])
@pytest.mark.parametrize("shuffle", [True, False])
def test_inception_score_equals_torch_fidelity(seed, N, splits, shuffle):
    logits = np.random.default_rng(seed).standard_normal((N, 40)).astype(np.float32) * 3
    expected = isc_features_to_metric(torch.from_numpy(logits), splits, shuffle)
    found = inception_score(logits, splits, shuffle)
    assert found[0] == pytest.approx(expected["inception_score_mean"], rel=1e-12)
    assert found[1] == pytest.approx(expected["inception_score_std"], rel=1e-9)


def test_inception_score_extremes():
    sure = 1e4 * np.eye(10)[np.arange(1000) % 10]  # probabilities of exactly 0 and 1
    assert inception_score(sure)[0] == pytest.approx(10, rel=0.05)
    by_class = sure[np.argsort(np.arange(1000) % 10)]
    assert inception_score(by_class)[0] == pytest.approx(10, rel=0.05)
    assert inception_score(by_class, shuffle=False)[0] == pytest.approx(1)
    assert inception_score(np.zeros((50, 10))) == (pytest.approx(1), pytest.approx(0))
    with pytest.raises(ValueError, match="10 splits needs as many images; found 9"):
        inception_score(np.zeros((9, 10)))
