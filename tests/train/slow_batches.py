"""Batches that take their time, in reading workers too: also a recipe of a run with such batches."""

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from train.data import batches  # noqa: E402

_open_tokens = batches.open_tokens


class SlowBatches(batches.TokenBatches):
    """SLOW_SECONDS="0.1,60": so long until step SLOW_STEP, and from there on."""

    def __getitem__(self, step):
        first, later = map(float, os.environ["SLOW_SECONDS"].split(","))
        time.sleep(first if step < int(os.environ["SLOW_STEP"]) else later)
        return super().__getitem__(step)


def patch():
    """Makes this process open slow batches."""

    def open_slow(config, processes):
        opened = _open_tokens(config, processes)
        opened.__class__ = sys.modules["slow_batches"].SlowBatches
        return opened

    batches.open_tokens = open_slow


def train(argv, seconds, step):
    """The command line of training, with slow batches."""
    from train import __main__ as program

    os.environ |= {"SLOW_SECONDS": seconds, "SLOW_STEP": str(step)}
    patch()
    return program.cli(argv)


def get_config():
    """Returns the settings of `tiny_recipe.py`."""
    import slow_batches
    from tiny_recipe import get_config

    slow_batches.patch()
    return get_config()
