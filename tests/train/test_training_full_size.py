"""A training step of the published networks; and a data set as large as ImageNet."""

import math
import resource
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from training import ROOT, one_process

from train import settings
from train.data.tokens import ShardWriter
from train.tasks.masked_tokens import MaskedTokens

pytestmark = pytest.mark.slow


def make_shards(folder, side, images=64, crops=1):
    rng = np.random.default_rng(0)
    writer = ShardWriter(
        folder,
        grid=(side, side),
        crops=crops,
        codebook_size=1024,
        class_names=[str(i) for i in range(1000)],
        image_size=16 * side,
        tokenizer="none",
    )
    tokens = rng.integers(0, 1024, (min(images, 20_000), crops, side * side), dtype=np.uint16)
    for number, start in enumerate(range(0, images, 20_000)):
        count = min(20_000, images - start)
        writer.write(number, tokens[:count], rng.integers(0, 1000, count))
    writer.finish(-(-images // 20_000))
    return folder


@pytest.mark.parametrize("recipe", ["official256", "official512", "besnier256"])
def test_a_step_of_the_published_network(tmp_path, recipe):
    config = settings.load_file(str(ROOT / "train" / "configs" / f"{recipe}.py"))
    config.update(batch_size=2, compile=False, precision="float32")
    config.data.update(tokens=str(make_shards(tmp_path, config.image_size // 16)), num_workers=0)
    config.optimizer.warmup_steps = 0
    with one_process() as processes:
        task = MaskedTokens(config, processes)
        state = task.state
        parameters = sum(p.numel() for p in state.models["transformer"].parameters())
        assert parameters > 170e6
        losses = []
        for step in range(2):
            value = task.step(task.batches[0], step)
            assert torch.isfinite(value)
            losses.append(task.metrics.take(processes)["loss"])
    # Untrained: near chance over the codes. One step on the same batch helps.
    assert abs(losses[0] - math.log(1024)) < 0.7
    assert losses[1] < losses[0]
    print(recipe, losses, f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB")


PROBE = """
import resource, sys, time
start = time.perf_counter()
from maskgit_pt.launch import Processes
from train import settings
from train.data import batches as data
config = settings.load_file("train/configs/best256.py")
config.batch_size = 512
config.data.tokens = sys.argv[1]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
batches = data.open_tokens(config, Processes(alone=True))
batches[0]
print("start", time.perf_counter() - start)
begin, count = time.perf_counter(), 0
for step in range(1, 400):
    count += len(batches[step]["codes"])
print("rate", count / (time.perf_counter() - begin))
print("memory", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20)
"""


def test_a_set_as_large_as_imagenet(tmp_path):
    """1.28M images x 2 crops: starts at once, in constant memory, and feeds faster than any GPU takes."""
    folder = make_shards(tmp_path, 16, images=1_280_000, crops=2)
    start = time.perf_counter()
    result = subprocess.run(
        [sys.executable, "-c", PROBE, str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    print(result.stdout, f"{time.perf_counter() - start:.1f} s in all")
    found = dict(line.split() for line in result.stdout.splitlines())
    assert float(found["memory"]) < 0.5  # GiB
