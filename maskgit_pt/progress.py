"""How far the generation of images has come, and how long it will take."""

import sys
import time
from collections.abc import Callable

from tqdm import tqdm

from maskgit_pt.samplers import State

_DECODING = 2  # the tokenizer's decoder takes about as long as so many steps of the transformer
_LONG = 30.0  # seconds that are worth a word before they have passed


class Progress:
    """A bar of images that moves with every step.

    After the first step, one line on standard error says how long everything will take, if that is long.

    Args:
      total: images in all.
      steps: of each image.
      by_step: whether steps are seen when they are done: not on a GPU, where they are only queued.
      shown: False for no bar and no line; None for the line, and the bar only on a terminal.
    """

    def __init__(self, total: int, steps: int, *, by_step: bool, shown: bool | None = None):
        self._work = steps + _DECODING  # of an image
        self._total, self._done = total, 0
        self._by_step, self._tell = by_step, by_step and shown is not False
        self._bar = tqdm(
            total=total,
            disable=None if shown is None else not shown,
            bar_format="{percentage:3.0f}%|{bar}| {n:.1f}/{total} img [{elapsed}<{remaining}]",
        )
        self._begin = time.perf_counter()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    @property
    def on_step(self) -> Callable[[State], None] | None:
        """What to call after a step; None where steps are not seen, so that they can be one piece of work."""
        return self.step if self._by_step else None

    def step(self, state: State) -> None:
        """One step of a batch is done."""
        images = len(state.guess)
        if self._tell:
            self._tell = False
            seconds = (time.perf_counter() - self._begin) / images * self._work * self._total
            if seconds > _LONG:
                self._bar.write(
                    f"expected time: about {duration(seconds)} for {self._total} images of "
                    f"{self._work - _DECODING} steps",
                    file=sys.stderr,
                )
        # Never beyond the images of this batch, however many steps its sampler does.
        self._move(min(self._bar.n + images / self._work, self._done + images))

    def finish(self, images: int) -> None:
        """So many images more are done."""
        self._done += images
        self._move(self._done)

    def _move(self, images: float) -> None:
        self._bar.update(images - self._bar.n)


def duration(seconds: float) -> str:
    """Returns a time in words: "45 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
