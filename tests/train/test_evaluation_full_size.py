"""50,000 x 50,000 points of 2048 numbers: time and memory. Minutes; run with -m slow -s."""

import json
import subprocess
import sys

import pytest

_CODE = """
import json, resource, time
import numpy as np, torch
from train.evaluation.frechet import fit, frechet_distance
from train.evaluation.manifold import manifold_metrics

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

def features(seed, shift):
    mixing = np.random.default_rng(0).standard_normal((16, D), dtype=np.float32)
    rng = np.random.default_rng(seed)
    rows = np.empty((N, D), np.float32)
    for start in range(0, N, 5000):  # positive numbers in a few directions, as Inception's
        x = rng.standard_normal((5000, 16), dtype=np.float32) @ mixing + shift
        rows[start : start + 5000] = np.maximum(x, 0) / 8
    return rows

N, D = 50_000, 2048
samples, reference = features(1, 0.1), features(2, 0)
samples[:100] = reference[:100]
before, start = peak(), time.time()
neighbours = manifold_metrics(samples, reference, progress=True)
middle, after = time.time(), peak()
distance = frechet_distance(fit(samples), fit(reference))
print(json.dumps({
    "seconds": middle - start, "gib_above_features": after - before, "threads": torch.get_num_threads(),
    "frechet_seconds": time.time() - middle, "gib_above_features_frechet": peak() - before,
    **neighbours, "frechet": distance,
}))
"""


@pytest.mark.slow
def test_time_and_memory():
    command = [sys.executable, "-c", _CODE]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout)
    print(found)
    assert found["gib_above_features"] < 2
    assert found["gib_above_features_frechet"] < 2
    assert found["precision"] > 0 and found["density"] > 0
