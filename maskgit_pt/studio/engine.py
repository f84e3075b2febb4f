"""Runs jobs one after the other in a thread of its own, and yields what can be seen after every step."""

import dataclasses
import functools
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from PIL import Image

from maskgit_pt import launch, sample
from maskgit_pt.pipeline import MaskGIT
from maskgit_pt.samplers import State
from maskgit_pt.studio import pictures

Kept = TypeVar("Kept")
MAX_JOBS = 32  # that run and wait


class Cancelled(Exception):
    """Somebody asked for the job to stop, or its time is up."""


@dataclasses.dataclass(frozen=True)
class Update:
    """What can be seen of a job.

    Attributes:
      step: steps done, of all images.
      steps: in all.
      images: how many are finished.
      picture: the images so far side by side, masked tokens covered; None if nothing new is to be drawn.
      seconds: since the beginning.
    """

    step: int
    steps: int
    images: int
    picture: Image.Image | None
    seconds: float


class Engine:
    """Runs jobs on one model, one after the other.

    Args:
      model: both networks.
      time_limit: seconds that one job may take.

    Attributes:
      busy: whether a job runs.
    """

    def __init__(self, model: MaskGIT, time_limit: float = 600.0):
        self.model = model
        self.time_limit = time_limit
        self.busy = False
        self._processes = launch.Processes(alone=True)
        self._jobs: dict[str, _Watch] = {}  # that run or wait, by output
        self._line: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        threading.Thread(target=self._serve, daemon=True).start()

    def cancel(self, output: str) -> None:
        """Ends the job that writes into this folder: before its next step, or at once if it waits."""
        if (watch := self._jobs.get(output)) is not None:
            watch.cancel()

    def run(
        self,
        job: sample.Job,
        keep: Callable[[list[Image.Image]], Kept],
        discard: Callable[[], object],
        show_guesses: bool = True,
    ) -> Iterator[Update | Kept]:
        """Runs a job, as `maskgit-sample` would, into its output folder.

        Whoever stops reading does not stop the job: it goes on in its thread, and is kept.

        Args:
          job: with `num_samples`; its `output` is made.
          keep: called with the pictures of all steps when the samples are whole.
          discard: called when they will not be.
          show_guesses: decode the guess of every step; False: show masks alone, which costs nothing.

        Yields:
          An `Update` after every step, and at the end what `keep` returns.

        Raises:
          Cancelled: `cancel` was called, or the time is up.
          ValueError: `MAX_JOBS` wait already; see `sample.fill`; from `keep`.
          OSError: see `sample.fill`; from `keep`.
        """
        if len(self._jobs) >= MAX_JOBS:
            discard()
            raise ValueError(f"{len(self._jobs)} jobs wait; accepted: at most {MAX_JOBS}")
        updates: queue.Queue[Update | BaseException | None] = queue.Queue()
        watch = self._jobs[job.asked.output] = _Watch(self, show_guesses, updates)
        self._line.put(functools.partial(self._work, job, watch, keep, discard, updates))
        while (update := updates.get()) is not None:
            if isinstance(update, BaseException):
                raise update
            yield update

    def _serve(self) -> None:
        while True:
            work = self._line.get()
            self.busy = True
            work()
            self.busy = False

    def _work(self, job: sample.Job, watch: "_Watch", keep, discard, updates: queue.Queue) -> None:
        try:
            try:
                watch.begin()
                job.models.pick_device()  # which sets the number of threads, of each thread alone
                sample.fill(job, self.model, self._processes, watch.expect)
            finally:
                del self._jobs[job.asked.output]
            updates.put(keep(watch.frames))
        except BaseException as error:  # handed on to whoever reads the updates
            discard()
            updates.put(error)
        updates.put(None)


class _Watch:
    """Told of every step by `sample.fill`, as `progress.Progress` is."""

    def __init__(self, engine: Engine, show_guesses: bool, updates: queue.Queue):
        self._engine, self._updates = engine, updates
        self._show_guesses = show_guesses
        self._start: float | None = None
        self._cancelled = False
        self._total = self._steps = self._step = self._of_batch = self._finished = 0
        self._known: list[Image.Image] = []  # of the images before this batch
        self._current: list[Image.Image] = []
        self.frames: list[Image.Image] = []  # what was seen after each step

    def cancel(self) -> None:
        """Lets the next step be the last; if there was none yet, nobody is kept waiting."""
        self._cancelled = True
        if self._start is None:
            self._updates.put(Cancelled("cancelled"))

    def begin(self) -> None:
        self._start = time.monotonic()
        self._check()

    def expect(self, images: int, steps: int) -> "_Watch":
        """So many images of so many steps each are to come."""
        self._total, self._steps = images, steps
        return self

    @property
    def on_step(self) -> Callable[[State], None]:
        """What `sample.fill` calls after every step."""
        return self.step

    def step(self, state: State) -> None:
        """After every step; raises `Cancelled` where it is to be the last."""
        self._step += len(state.guess)
        # The next batch begins; on a GPU before the last one is written.
        if self._of_batch == self._steps:
            self._known += self._current
            self._of_batch = 0
        self._of_batch += 1
        model = self._engine.model
        side = model.side
        masks = state.unknown.unflatten(1, (side, side)).cpu()
        if self._of_batch == self._steps:  # what is masked even then is decided all the same
            masks = torch.zeros_like(masks)
        images = None
        if self._show_guesses:
            guess = state.guess.clamp(0, model.num_codes - 1).unflatten(1, (side, side))
            images = model.tokens_to_images(guess)
        self._current = pictures.guesses(masks, images, model.image_size)
        picture = pictures.side_by_side(self._known + self._current, self._total)
        steps = self._steps * self._total
        self.frames.append(picture)
        self._updates.put(Update(self._step, steps, self._finished, picture, self.seconds))
        self._check()

    def _check(self) -> None:
        if self._cancelled:
            raise Cancelled("cancelled")
        if self.seconds > self._engine.time_limit:
            raise Cancelled(f"stopped after {self.seconds:.0f} s, the limit for one job")

    def finish(self, images: int) -> None:
        """After so many images more are whole."""
        self._finished += images

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start

    def __enter__(self) -> "_Watch":
        return self

    def __exit__(self, *_: object) -> None:
        pass
