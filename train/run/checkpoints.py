"""Checkpoints of a run: written beside the training, whole or not at all, the last few kept.

`torch.distributed.checkpoint` does the reading and writing: every process writes its part, and any
number of processes reads it back.
"""

import concurrent.futures
import contextlib
import os
import re
import shutil
import time
import warnings
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import CheckpointException, FileSystemReader

from maskgit_pt.launch import Processes
from train.run.state import TrainState

_FOLDER = re.compile(r"step_(\d{9})")


def folder_of(run: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps lies."""
    return run / "checkpoints" / f"step_{step:09d}"


def steps(run: Path) -> list[int]:
    """Steps of the whole checkpoints of a run, ascending."""
    matches = [_FOLDER.fullmatch(path.name) for path in (run / "checkpoints").glob("step_*")]
    return sorted(int(match[1]) for match in matches if match)


class Checkpoints:
    """Saves and restores.

    Args:
      run: the folder of the run.
      keep: how many checkpoints to keep.
      processes: this process and its peers.
    """

    def __init__(self, run: Path, keep: int, processes: Processes):
        self.run, self.keep, self.processes = run, keep, processes
        self._group = processes.new_group()  # for the thread that writes
        self._pending: tuple[int, concurrent.futures.Future] | None = None
        if processes.is_main:
            (run / "checkpoints").mkdir(parents=True, exist_ok=True)
            for left_over in (run / "checkpoints").glob(".*"):
                shutil.rmtree(left_over, ignore_errors=True)
        processes.barrier()

    def restore(self, state: TrainState) -> bool:
        """Loads the newest checkpoint into `state`, if there is one; says whether.

        Raises:
          ValueError: it cannot be read or does not fit.
        """
        newest = self.processes.on_first(lambda: max(steps(self.run), default=None))
        if newest is None:
            return False
        path = folder_of(self.run, newest)
        if not self.processes.is_main:
            _wait_for(path / ".metadata")
        values = state.state_dict()
        try:
            sums = _sums_keys(path, self.processes)
            values |= {key: torch.zeros_like(state.sums, device="cpu") for key in sums}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                dcp.load(values, checkpoint_id=path, process_group=self.processes.control)
        except (Exception, CheckpointException) as error:  # pickle, sizes, missing files, ...
            raise ValueError(
                f"{path}: cannot be restored ({reason(error)}); remove this folder to go on from the "
                "checkpoint before it"
            ) from error
        state.load_state_dict(values)
        state.sums.zero_()
        for key in sums:
            state.sums += values[key].to(state.sums)
        self._agree(state.step, path)
        return True

    def _agree(self, step: int, path: Path) -> None:
        """ValueError unless all processes are at the same step: a checkpoint of mixed weights is lost."""
        found = self.processes.each(step)
        if len(set(found)) > 1:
            listed = ", ".join(f"process {rank} at {step}" for rank, step in enumerate(found))
            raise ValueError(
                f"{path}: processes disagree on the step ({listed}); nothing was written"
            )

    def save(self, state: TrainState, wait: bool = False) -> None:
        """Begins to write; the state may be changed as soon as this returns.

        Args:
          state: what to write.
          wait: return when it is written.

        Raises:
          OSError: this or the save before it failed, e.g. for want of space; checkpoints already there are
            untouched.
        """
        self.finish()
        self._agree(state.step, folder_of(self.run, state.step))
        if not self.processes.on_first(lambda: state.step in steps(self.run)):
            values = state.state_dict()
            values[_sums_key(self.processes.rank, self.processes.world_size)] = state.sums
            if self.processes.device.type == "cpu":
                values = _copy(values)  # on a GPU, copying to the host is the first thing done
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                future = dcp.async_save(
                    values,
                    checkpoint_id=self._temporary(state.step),
                    process_group=self._group,
                )
            self._pending = (state.step, future)
        if wait:
            self.finish()

    def poll(self) -> None:
        """Gives a finished checkpoint its name; called between steps by all processes."""
        if self._pending and not self.processes.any(not self._pending[1].done()):
            self.finish()

    def finish(self) -> None:
        """Waits for the write that is under way, gives it its name, and removes the oldest."""
        if self._pending is None:
            return
        step, future = self._pending
        self._pending = None
        error = future.exception()
        if self.processes.any(error is not None):
            if self.processes.is_main:
                shutil.rmtree(self._temporary(step), ignore_errors=True)
            last = max(steps(self.run), default=None)
            kept = (
                f"the last good one is {folder_of(self.run, last)}" if last else "there is none yet"
            )
            raise OSError(
                f"{folder_of(self.run, step)}: the checkpoint could not be written "
                f"({reason(error)}); {kept}; the same command goes on from there"
            )
        if self.processes.is_main:
            self._temporary(step).rename(folder_of(self.run, step))
            for old in steps(self.run)[: -self.keep]:
                hidden = folder_of(self.run, old).rename(self._temporary(old))
                shutil.rmtree(hidden)
        self.processes.barrier()

    def _temporary(self, step: int) -> Path:
        return self.run / "checkpoints" / f".step_{step:09d}"


def _wait_for(path: Path, seconds: float = 60.0) -> None:
    """Waits until a shared disk shows what another machine sees; whoever reads it then complains."""
    deadline = time.monotonic() + seconds
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
        with contextlib.suppress(OSError):
            os.listdir(path.parent)  # makes network file systems look again


def _copy(values: object) -> object:
    if isinstance(values, dict):
        return {name: _copy(value) for name, value in values.items()}
    return values.detach().clone() if isinstance(values, torch.Tensor) else values


def _sums_key(rank: int, world_size: int) -> str:
    return f"sums.{rank}.of.{world_size}"


def _sums_keys(path: Path, processes: Processes) -> list[str]:
    """Which stored sums this process takes over: its own, or all of them if their number changed."""
    stored = FileSystemReader(path).read_metadata().state_dict_metadata
    own = _sums_key(processes.rank, processes.world_size)
    if own in stored:
        return [own]
    return [key for key in stored if key.startswith("sums.")] if processes.is_main else []


def reason(error: BaseException | None) -> str:
    """The innermost cause of what `torch.distributed.checkpoint` raised, in a few words."""
    if error is None:
        return "in another process"
    # Of a CheckpointException: {rank: (error, traceback)}.
    failures = getattr(error, "failures", None)
    if failures:
        error = next(iter(failures.values()))[0]
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
