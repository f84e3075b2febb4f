"""How many steps fit into the time that is wanted, from a rate measured with the commands themselves."""

import dataclasses
import os
import shutil
from pathlib import Path

import numpy as np
import torch

from train import settings
from train.data.tokens import ShardWriter
from train.run.metrics import read_metrics

MEASURED_STEPS = 20  # after as many that are not counted
FEWEST_STEPS = 50
_COMMAND_SECONDS = 12.0  # a command's start, and its end
_COMMANDS = 13  # from here to the page
_SHARE = 0.95  # of the time that is left: rates vary


@dataclasses.dataclass(frozen=True)
class Rates:
    """Images a second in training, of all processes together.

    Attributes:
      tokenizer, transformer: of the two stages.
    """

    tokenizer: float
    transformer: float


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What the rest of the demo costs besides training.

    Attributes:
      train_images: to be tokenized.
      test_images: to be reconstructed.
      num_samples: to be generated.
      passes: of the transformer for each of them.
    """

    train_images: int
    test_images: int
    num_samples: int
    passes: int

    def seconds(self, rates: Rates) -> float:
        """An estimate: a training step is three passes, encoding a fifth of the tokenizer's.

        Generating on a CPU is an image at a time, and takes twice as long as in batches.
        """
        encoding = (self.train_images + 2 * self.test_images) / (5 * rates.tokenizer)
        sample = self.passes / (3 * rates.transformer) + 1 / (3 * rates.tokenizer)
        return encoding + 2 * self.num_samples * sample + _COMMANDS * _COMMAND_SECONDS


def bfloat16_units() -> bool:
    """Whether this CPU has units for bfloat16, without which it is slower than float32."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def processes_for(batch_sizes: tuple[int, ...], most: int = 4) -> int:
    """How many processes, with a thread each, train on this machine: as many as cores, if batches divide."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    counts = range(1, min(cores, most) + 1)
    return max(n for n in counts if all(size % n == 0 for size in batch_sizes))


def recipe(name: str):
    """The settings of a recipe of the project."""
    return settings.load_file(str(settings.RECIPES / f"{name}.py"))


def write_random_tokens(
    folder: Path, side: int, codes: int, class_names: tuple[str, ...], size: int
) -> None:
    """Token shards of noise, to measure the transformer's rate before there is a tokenizer."""
    shutil.rmtree(folder, ignore_errors=True)
    rng = np.random.default_rng(0)
    writer = ShardWriter(
        folder, grid=(side, side), crops=1, codebook_size=codes, class_names=list(class_names),
        image_size=size, tokenizer="none",
    )  # fmt: skip
    tokens = rng.integers(codes, size=(512, 1, side * side))
    writer.write(0, tokens, rng.integers(len(class_names), size=512))
    writer.finish(1)


def rate_of(run: Path) -> float:
    """Images a second of the last steps of a run.

    Raises:
      ValueError: it has none.
    """
    rates = [line["images_per_second"] for line in read_metrics(run) if "images_per_second" in line]
    if not rates or not rates[-1] > 0:
        raise ValueError(f"{run}: no rate was measured")
    return rates[-1]


def stretch(seconds: float, work: dict[str, float]) -> float:
    """By how much all numbers of steps are multiplied, so that they take `seconds`.

    Args:
      seconds: that are left for training.
      work: of each stage, the seconds of its recipe.
    """
    return max(0.0, seconds * _SHARE) / sum(work.values())


def shortened(config, steps: int) -> list[str]:
    """Flags for a recipe with another number of steps: warm-up and intervals follow."""
    flags = [f"--config.num_train_steps={steps}"]
    warmup = min(config.optimizer.warmup_steps, steps // 10)
    if warmup != config.optimizer.warmup_steps:
        flags.append(f"--config.optimizer.warmup_steps={warmup}")
    every = max(1, steps // 2)
    return [*flags, f"--config.eval_every_steps={every}"]
