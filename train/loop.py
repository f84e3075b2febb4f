"""The training loop: the same for every task, on any number of processes.

A task (`train.tasks.base.Task`) brings the networks, the batches and the step; the loop brings
resuming, checkpoints, reports and a clean end.
"""

import functools
import json
from pathlib import Path

import ml_collections
import torch
from torch import Tensor

from maskgit_pt.files import refuse_others, write_atomically
from maskgit_pt.launch import Processes
from train import export, randomness, settings
from train.data.images import check_apart
from train.run import early_stop
from train.run.checkpoints import Checkpoints
from train.run.lock import claim
from train.run.metrics import Rates, Reporter
from train.run.profiles import Profile
from train.run.state import TrainState
from train.run.stopping import Stop
from train.tasks.autoencoding import Autoencoding
from train.tasks.base import Task
from train.tasks.flops import matrix_rate
from train.tasks.mage import MageTokens
from train.tasks.masked_tokens import MaskedTokens
from train.tasks.peaks import peak_of

TASKS: dict[str, type[Task]] = {
    "masked_tokens": MaskedTokens,
    "mage": MageTokens,
    "autoencoding": Autoencoding,
}


def task_class(config: ml_collections.ConfigDict) -> type[Task]:
    """The task that `config.task` names; ValueError for an unknown one."""
    task = config.get("task")
    if task not in TASKS:
        raise ValueError(f"config.task is {task!r}; accepted: {', '.join(TASKS)}")
    return TASKS[task]


def make_task(config: ml_collections.ConfigDict, processes: Processes) -> Task:
    """The task of a run; errors as `Task`."""
    return task_class(config)(config, processes)


def train(config: ml_collections.ConfigDict, run: Path, processes: Processes) -> TrainState:
    """Trains until `config.num_train_steps`, or goes on from the newest checkpoint in `run`.

    Args:
      config: the settings.
      run: the folder of the run: settings, checkpoints, metrics, pictures.
      processes: this process and its peers.

    Returns:
      The state at the end; earlier than num_train_steps after an early stop, and after SIGTERM, which saves
      first. Ctrl-C saves, too; a second one does not.

    Raises:
      ValueError, OSError: settings, data or checkpoints that do not fit; a checkpoint that could not be
        written.
      FloatingPointError: a loss or gradient that is not finite; nothing of that step was saved.
    """
    processes.on_first(lambda: _check_folder(config, run))
    with claim(run, processes):
        task = make_task(config, processes)
        processes.on_first(lambda: _note(task, config, run))
        return _train(task, config, run, processes)


def _check_folder(config: ml_collections.ConfigDict, run: Path) -> None:
    settings.compare(config, run)
    refuse_others(run, "a training run")
    check_apart(run, config.data.images)


def _note(task: Task, config: ml_collections.ConfigDict, run: Path) -> None:
    export.note_networks(run, task.state.models)
    settings.keep(config, run)


def _train(
    task: Task, config: ml_collections.ConfigDict, run: Path, processes: Processes
) -> TrainState:
    state = task.state
    checkpoints = Checkpoints(run, config.keep_checkpoints, processes)
    resumed = checkpoints.restore(state)
    rates = _rates(config, task, processes)
    last = config.num_train_steps
    reporter = Reporter(
        run, processes, state.step, last, config.batch_size, task.work_per_image, rates
    )
    if resumed:
        reporter.write(f"going on from step {state.step}")
    guard = _FiniteGuard(processes.device)
    stop = Stop(processes)
    profile = Profile(config, run, processes)
    batches = task.load(state.step, last)
    ended = early_stop.is_over(run, config, processes)
    try:
        while state.step < last and not ended:
            batch = stop.next(batches)
            if batch is None:
                guard.check(task, run, processes)
                checkpoints.save(state, wait=True)
                reporter.write(f"stopped at step {state.step}, saved; the same command goes on")
                if stop.interrupted:
                    raise KeyboardInterrupt
                break
            step = state.step
            torch.manual_seed(_dropout_seed(config.seed, step, processes.rank))
            profile.before(step)
            guard.watch(task.step(batch, step), step)
            profile.after(step)
            state.step = done = step + 1
            reporter.advance()
            log = _every(config.log_every_steps, done, last)
            save = _every(config.checkpoint_every_steps, done, last)
            if log or save:
                guard.check(task, run, processes)
            if log:
                reporter.log(done, task.metrics.take(processes), task.learning_rate(step))
            if save:
                checkpoints.save(state, wait=done == last)
            else:
                checkpoints.poll()
            if _every(config.eval_every_steps, done, last):
                reporter.scores(done, task.scores())
                for name, image in task.pictures().items():
                    reporter.picture(run / "pictures" / name / f"step_{done:09d}.png", image, done)
                processes.barrier()
                ended = early_stop.is_over(run, config, processes)
        if ended:
            best = early_stop.best_step(run, config)
            reporter.write(
                f"the held-out loss was least at step {best}, and the run ends here: maskgit-export {run} "
                f"--step={best} --output=FOLDER"
            )
        checkpoints.finish()
    except FloatingPointError:
        checkpoints.finish()  # one that is still being written is good, and may be the newest
        raise
    finally:
        batches.close()
        stop.restore()
        profile.close()
        reporter.close()
    return state


def _every(interval: int, done: int, last: int) -> bool:
    return interval > 0 and (done % interval == 0 or done == last)


def _dropout_seed(seed: int, step: int, rank: int) -> int:
    """Dropout depends on the step and the process, so that a resumed run repeats it."""
    return int(randomness.generator(seed, "dropout", step, rank).integers(2**63))


def _rates(config: ml_collections.ConfigDict, task: Task, processes: Processes) -> Rates:
    """What shares of the matrix rate are shares of; none where nobody will ask."""
    if not processes.is_main or not task.work_per_image:
        return Rates()
    dtype = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
    device = processes.device
    measure = functools.partial(matrix_rate, device, dtype)
    return Rates(measure(), peak_of(device, dtype) or 0.0, measure)


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
