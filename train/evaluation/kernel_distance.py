"""The Kernel Inception Distance (Binkowski et al., "Demystifying MMD GANs", ICLR 2018), by torch-fidelity."""

import numpy as np
import torch

from train.evaluation.arrays import Features, as_features
from train.evaluation.torchvision_import import import_torch_fidelity

SUBSETS, SUBSET_SIZE = 100, 1000  # of the paper, and torch-fidelity's defaults
_SEED = 2020  # torch-fidelity's


def kernel_distance(samples: Features, reference: Features) -> tuple[float, float]:
    """The unbiased squared MMD with the kernel (x y / D + 1)**3, over random subsets.

    Args:
      samples, reference: features [N, D] and [M, D].

    Returns:
      Mean and standard deviation over the subsets.

    Raises:
      ImportError: the extra 'eval' is not installed.
      ValueError: fewer than two samples or reference images, or not features of one kind.
    """
    import_torch_fidelity()
    from torch_fidelity import metric_kid

    both = [
        np.asarray(as_features(features, name), np.float64)
        for features, name in ((samples, "samples"), (reference, "reference"))
    ]
    size = min(SUBSET_SIZE, *map(len, both))
    if size < 2 or both[0].shape[1] != both[1].shape[1]:
        raise ValueError(
            f"KID of features {list(both[0].shape)} and {list(both[1].shape)}; accepted: two rows or more, "
            "of one length"
        )
    found = metric_kid.kid_features_to_metric(
        *map(torch.from_numpy, both),
        kid_subsets=SUBSETS,
        kid_subset_size=size,
        rng_seed=_SEED,
        verbose=False,
    )
    return (
        float(found[metric_kid.KEY_METRIC_KID_MEAN]),
        float(found[metric_kid.KEY_METRIC_KID_STD]),
    )
