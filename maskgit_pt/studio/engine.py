"""Runs one job at a time in a thread of its own, and yields what can be seen of it after every step."""

import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Iterator

from PIL import Image

from maskgit_pt import launch, sample
from maskgit_pt.pipeline import MaskGIT
from maskgit_pt.samplers import State
from maskgit_pt.studio import pictures


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
    """

    def __init__(self, model: MaskGIT, time_limit: float = 600.0):
        self.model = model
        self.time_limit = time_limit
        self._processes = launch.Processes(alone=True)
        self._busy = threading.Lock()
        self._cancel = threading.Event()

    def cancel(self) -> None:
        """Stops the job that runs, if one does, before its next step."""
        self._cancel.set()

    def run(self, job: sample.Job, show_guesses: bool = True) -> Iterator[Update]:
        """Runs a job, as `maskgit-sample` would, into its output folder.

        Whoever stops reading does not stop the job: it goes on in its thread, and its samples are kept.

        Args:
          job: with `num_samples`; its `output` is made.
          show_guesses: decode the guess of every step; False: show masks alone, which costs nothing.

        Raises:
          Cancelled: `cancel` was called, or the time is up.
          ValueError, OSError: see `sample.fill`.
        """
        updates: queue.Queue[Update | BaseException | None] = queue.Queue()
        watch = _Watch(self, show_guesses, updates)
        threading.Thread(target=self._work, args=(job, watch, updates), daemon=True).start()
        while (update := updates.get()) is not None:
            if isinstance(update, BaseException):
                raise update
            yield update

    def _work(self, job: sample.Job, watch: "_Watch", updates: queue.Queue) -> None:
        try:
            with self._busy:
                self._cancel.clear()
                watch.begin()
                job.models.pick_device()  # which sets the number of threads, of each thread alone
                sample.fill(job, self.model, self._processes, watch.expect)
        except BaseException as error:  # handed on to whoever reads the updates
            updates.put(error)
        else:
            updates.put(None)


class _Watch:
    """Told of every step by `sample.fill`, as `progress.Progress` is."""

    def __init__(self, engine: Engine, show_guesses: bool, updates: queue.Queue):
        self._engine, self._updates = engine, updates
        self._show_guesses = show_guesses
        self._total = self._steps = self._step = self._finished = 0
        self._known: list[Image.Image] = []  # of the images before this batch
        self._current: list[Image.Image] = []

    def begin(self) -> None:
        self._start = time.monotonic()

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
        model = self._engine.model
        side = model.side
        masks = state.unknown.unflatten(1, (side, side)).cpu()
        images = None
        if self._show_guesses:
            guess = state.guess.clamp(0, model.num_codes - 1).unflatten(1, (side, side))
            images = model.tokens_to_images(guess)
        self._current = pictures.guesses(masks, images, model.image_size)
        self._tell()
        if self._engine._cancel.is_set():
            raise Cancelled("cancelled")
        if self.seconds > self._engine.time_limit:
            raise Cancelled(f"stopped after {self.seconds:.0f} s, the limit for one job")

    def finish(self, images: int) -> None:
        """After so many images more are whole."""
        self._finished += images
        self._known += self._current[:images]
        self._current = []

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start

    def _tell(self) -> None:
        picture = pictures.side_by_side(self._known + self._current, self._total)
        steps = self._steps * self._total
        self._updates.put(Update(self._step, steps, self._finished, picture, self.seconds))

    def __enter__(self) -> "_Watch":
        return self

    def __exit__(self, *_: object) -> None:
        pass
