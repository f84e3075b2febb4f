"""Inception Score (Salimans et al. 2016)."""

import numpy as np
import torch

from train.evaluation.arrays import Features, as_features

_SHUFFLE_SEED = 2020  # torch-fidelity's


def inception_score(
    logits: Features, splits: int = 10, shuffle: bool = True
) -> tuple[float, float]:
    """exp of the mean KL divergence between the classes of an image and those of its split.

    Args:
      logits: float [N, C] of a classifier; for the published score, Inception's without the bias of the
        last layer, as in Google's graph (1008 classes).
      splits: parts to compute it on; the published one: 10.
      shuffle: put the images in a random order first, always the same one (torch-fidelity's default). The
        ADM evaluator takes them as they come, and so must they not be sorted by class.

    Returns:
      Mean and standard deviation (of the population) over the splits.

    Raises:
      ValueError: fewer images than splits, or wrong logits.
    """
    logits = as_features(logits, "logits")
    N = len(logits)
    if not 1 <= splits <= N:
        raise ValueError(f"the Inception Score of {splits} splits needs as many images; found {N}")
    order = np.random.RandomState(_SHUFFLE_SEED).permutation(N) if shuffle else np.arange(N)
    scores = []
    for i in range(splits):
        rows = order[i * N // splits : (i + 1) * N // splits]
        log_p = torch.from_numpy(logits[rows]).double().log_softmax(1)
        p = log_p.exp()
        log_q = p.mean(0).log()
        # A class that no image of the split has: 0 log 0 = 0, where p (log p - log q) gives NaN.
        divergence = torch.where(p > 0, p * (log_p - log_q), 0.0).sum(1)
        scores.append(divergence.mean().exp().item())
    return float(np.mean(scores)), float(np.std(scores))
