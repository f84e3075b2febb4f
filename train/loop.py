"""The training loop: the same for every task, on any number of processes.

A task (`masked_tokens.MaskedTokens`) brings the networks, the batches and the step; the loop brings
resuming, checkpoints, reports and a clean end.
"""

import contextlib
import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import ml_collections
import torch
from PIL import Image
from torch import Tensor

from maskgit_pt.files import write_atomically
from maskgit_pt.launch import Processes
from train import export, randomness, settings
from train.run.checkpoints import Checkpoints
from train.run.lock import claim
from train.run.metrics import Metrics, Reporter, matrix_rate
from train.run.state import TrainState
from train.tasks.autoencoding import Autoencoding
from train.tasks.masked_tokens import MaskedTokens

TASKS = {"masked_tokens": MaskedTokens, "autoencoding": Autoencoding}


class Task(Protocol):
    """What the loop needs to know of a task."""

    metrics: Metrics
    work_per_image: float

    def describe(self) -> dict[str, object]: ...
    def start(self) -> TrainState: ...
    def load(self, first_step: int, last_step: int) -> Iterator[dict[str, Tensor]]: ...
    def step(self, batch: dict[str, Tensor], step: int) -> Tensor: ...
    def about_batch(self, step: int) -> dict[str, list[int]]: ...
    def learning_rate(self, step: int) -> float: ...
    def scores(self) -> dict[str, float]: ...
    def pictures(self) -> dict[str, Image.Image]: ...


def make_task(config: ml_collections.ConfigDict, processes: Processes) -> Task:
    """The task that `config.task` names; ValueError for an unknown one or settings that do not fit."""
    task = config.get("task")
    if task not in TASKS:
        raise ValueError(f"config.task is {task!r}; accepted: {', '.join(TASKS)}")
    return TASKS[task](config, processes)


def train(config: ml_collections.ConfigDict, run: Path, processes: Processes) -> TrainState:
    """Trains until `config.num_train_steps`, or goes on from the newest checkpoint in `run`.

    Args:
      config: the settings.
      run: the folder of the run: settings, checkpoints, metrics, pictures.
      processes: this process and its peers.

    Returns:
      The state at the end; earlier than num_train_steps after SIGTERM, which saves first. Ctrl-C saves, too;
      a second one does not.

    Raises:
      ValueError, OSError: settings, data or checkpoints that do not fit; a checkpoint that could not be
        written.
      FloatingPointError: a loss or gradient that is not finite; nothing of that step was saved.
    """
    task = make_task(config, processes)
    with claim(run) if processes.is_main else contextlib.nullcontext():
        return _train(task, config, run, processes)


def _train(
    task: Task, config: ml_collections.ConfigDict, run: Path, processes: Processes
) -> TrainState:
    if processes.is_main:
        settings.keep(config, run)
    state = task.start()
    if processes.is_main:
        export.note_networks(run, state.models)
    checkpoints = Checkpoints(run, config.keep_checkpoints, processes)
    resumed = checkpoints.restore(state)
    peak = _peak(config, task, processes)
    last = config.num_train_steps
    reporter = Reporter(
        run, processes, state.step, last, config.batch_size, task.work_per_image, peak
    )
    if resumed:
        reporter.write(f"going on from step {state.step}")
    guard = _FiniteGuard(processes.device)
    stop = _Stop()
    try:
        for batch in task.load(state.step, last):
            step = state.step
            torch.manual_seed(_dropout_seed(config.seed, step, processes.rank))
            guard.watch(task.step(batch, step), step)
            state.step = done = step + 1
            reporter.advance()
            stopping = processes.any(stop.asked) or done == last
            due = stopping or done % config.checkpoint_every_steps == 0
            if due or done % config.log_every_steps == 0:
                guard.check(task, run, processes)
            if done % config.log_every_steps == 0 or done == last:
                reporter.log(done, task.metrics.take(processes), task.learning_rate(step))
            if due:
                checkpoints.save(state, wait=stopping)
            else:
                checkpoints.poll()
            if _every(config.eval_every_steps, done, last):
                reporter.scores(done, task.scores())
                for name, image in task.pictures().items():
                    reporter.picture(run / "pictures" / name / f"step_{done:09d}.png", image, done)
                processes.barrier()
            if stopping and done < last:
                reporter.write(f"stopped at step {done}, saved; the same command goes on")
                if stop.interrupted:
                    raise KeyboardInterrupt
                break
        checkpoints.finish()
    except FloatingPointError:
        checkpoints.finish()  # one that is still being written is good, and may be the newest
        raise
    finally:
        stop.restore()
        reporter.close()
    return state


def _every(interval: int, done: int, last: int) -> bool:
    return interval > 0 and (done % interval == 0 or done == last)


def _dropout_seed(seed: int, step: int, rank: int) -> int:
    """Dropout depends on the step and the process, so that a resumed run repeats it."""
    return int(randomness.generator(seed, "dropout", step, rank).integers(2**63))


def _peak(config: ml_collections.ConfigDict, task: Task, processes: Processes) -> float:
    """The matrix rate that MFU is a share of; 0 where nobody will ask."""
    if not processes.is_main or not task.work_per_image:
        return 0.0
    dtype = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
    return matrix_rate(processes.device, dtype)


class _Stop:
    """Notes SIGTERM and the first Ctrl-C instead of dying of them, so that the loop can save."""

    def __init__(self):
        self.asked, self.interrupted = False, False
        self._previous = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._ask)

    def _ask(self, number: int, *_: object) -> None:
        if self.interrupted and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked, self.interrupted = True, number == signal.SIGINT

    def restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


class _FiniteGuard:
    """Finds the first step whose loss or gradient is not finite, without waiting for the device."""

    def __init__(self, device: torch.device):
        self._bad_step = torch.full((), -1, dtype=torch.int64, device=device)

    def watch(self, value: Tensor, step: int) -> None:
        bad = ~torch.isfinite(value) & (self._bad_step < 0)
        self._bad_step = torch.where(bad, step, self._bad_step)

    def check(self, task: Task, run: Path, processes: Processes) -> None:
        """Raises if a step since the last check was bad; called before anything is saved."""
        step = int(self._bad_step)
        if not processes.any(step >= 0):
            return
        where = "in another process"
        if step >= 0:
            path = run / f"bad_step_{step}.json"
            where = f"at step {step}; the images of its batch are listed in {path}"
            if processes.is_main:
                text = json.dumps({"step": step} | task.about_batch(step)) + "\n"
                write_atomically(path, text.encode())
        processes.barrier()  # torchrun ends all processes as soon as one fails
        raise FloatingPointError(
            f"the loss or its gradient is not finite {where}; nothing was saved since the last checkpoint, "
            "the same command goes on from there; if it fails again, settings or images are the cause"
        )
