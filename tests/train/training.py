"""Small runs for the tests of training."""

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import ml_collections
import numpy as np
import processes

from maskgit_pt.launch import Processes
from train import loop
from train.configs import defaults
from train.data.tokens import ShardWriter
from train.run.metrics import read_metrics
from train.run.state import TrainState

ROOT = Path(__file__).parents[2]
# Metrics that no two runs share.
TIMES = ("images_per_second", "mfu", "matrix_share", "matrix_share_at_most", "memory_gib")
RECIPE = Path(__file__).with_name("tiny_recipe.py")


def make_shards(
    folder: Path,
    images: int = 90,
    crops: int = 2,
    side: int = 4,
    codes: int = 16,
    classes: int = 5,
    image_size: int = 16,
    names: list[str] | None = None,
    tokenizer: str = "none",
) -> Path:
    """Tokens in two shards; the class tells most of an image."""
    rng = np.random.default_rng(0)
    writer = ShardWriter(
        folder,
        grid=(side, side),
        crops=crops,
        codebook_size=codes,
        class_names=names or [f"class {i}" for i in range(classes)],
        image_size=image_size,
        tokenizer=tokenizer,
    )
    for number, count in enumerate((images // 2, images - images // 2)):
        labels = rng.integers(0, classes, count)
        tokens = 3 * labels[:, None, None] + np.arange(side * side)
        tokens = (tokens + rng.integers(0, 2, (count, crops, side * side))) % codes
        writer.write(number, tokens, labels)
    writer.finish(2)
    return folder


def tiny_config(tokens: Path, **changes: object) -> ml_collections.ConfigDict:
    """Settings of a run of a second."""
    config = defaults.get_config()
    config.update(
        batch_size=8,
        num_train_steps=12,
        num_class=5,
        image_size=16,
        precision="float32",
        compile=False,
        log_every_steps=1,
        checkpoint_every_steps=4,
        eval_every_steps=0,
    )
    config.transformer.update(num_layers=2, num_embeds=32, intermediate_size=64, num_heads=4)
    config.optimizer.update(lr=1e-3, warmup_steps=5)
    config.data.update(tokens=str(tokens), num_workers=0)
    config.update_from_flattened_dict(changes)
    return config


@contextlib.contextmanager
def one_process() -> Iterator[Processes]:
    """A process group of this process alone."""
    processes = Processes("cpu")
    try:
        yield processes
    finally:
        processes.close()


def run_here(config: ml_collections.ConfigDict, run: Path) -> TrainState:
    """Trains in this process."""
    with one_process() as processes:
        return loop.train(config, run, processes)


def arguments(run: Path, tokens: Path, *more: str) -> list[str]:
    """Arguments of the command line for a run of `tiny_recipe.py`."""
    return [f"--config={RECIPE}", f"--output={run}", "--device=cpu", "--threads=1",
            f"--config.data.tokens={tokens}", *more]  # fmt: skip


def torchrun(run: Path, tokens: Path, *more: str, processes: int = 2) -> list[str]:
    """A command line of torchrun on one machine."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    start += [f"--nproc_per_node={processes}", "-m", "train"]
    return [*start, *arguments(run, tokens, *more)]


def train_in(count: int, run: Path, tokens: Path, *more: str) -> processes.Group:
    """Trains to the end in processes of their own."""
    logs = run.with_name(f"{run.name}.logs")
    return processes.run(processes.train, arguments(run, tokens, *more), logs=logs, count=count)


def curve(run: Path) -> list[dict[str, float]]:
    """The metrics of a run without times."""
    return [{k: v for k, v in line.items() if k not in TIMES} for line in read_metrics(run)]


def text_of(path: Path) -> dict:
    """A JSON file."""
    return json.loads(path.read_text())
