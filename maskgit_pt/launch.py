"""What command lines that run on several devices share: the device, the processes of torchrun."""

import contextlib
import ctypes
import datetime
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from maskgit_pt import PARENT_PROCESS


def pick_device(name: str | None, threads: int | None = None) -> torch.device:
    """The device that `--device` names, made current; under torchrun "cuda" is this process's own.

    Args:
      name: as torch writes devices; None or "": CUDA where there is any, else the CPU.
      threads: on a CPU, how many PyTorch uses; None: all cores, whatever torchrun says: sums are split
        by threads, and their last bits depend on it.

    Raises:
      ValueError: it cannot be used here.
    """
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device={name} cannot be used here: {reason}") from None
    if device.type == "cuda":
        torch.cuda.set_device(device)
    elif device.type == "cpu":
        torch.set_num_threads(threads or os.cpu_count() or 1)
    return device


def end_with_torchrun() -> None:
    """Lets this process die with the torchrun that started it, if one did, however that ends.

    Killed with SIGKILL, torchrun leaves its processes behind: they would go on beside those of the next run.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ and sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None, use_errno=True).prctl(set_parent_death_signal, signal.SIGKILL)
        if os.getppid() != PARENT_PROCESS:  # too late: it has gone already
            os._exit(1)


@contextlib.contextmanager
def processes() -> Iterator[tuple[int, int]]:
    """Joins the processes that torchrun started, if it did; gives this one's rank, and their number.

    They talk on the CPU alone, and wait for each other as long as it takes.
    """
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    end_with_torchrun()
    if world > 1:
        torch.distributed.init_process_group("gloo", timeout=datetime.timedelta(days=7))
    try:
        yield rank, world
    finally:
        if world > 1:
            torch.distributed.destroy_process_group()


class Workers:
    """The processes of an initialised process group, or this one alone.

    Args:
      alone: this one alone, whatever there is.

    Attributes:
      rank, count: of the processes.
    """

    def __init__(self, alone: bool = False):
        several = dist.is_available() and dist.is_initialized() and not alone
        several = several and dist.get_world_size() > 1
        self.rank, self.count, self.group = 0, 1, None
        if several:
            self.rank, self.count = dist.get_rank(), dist.get_world_size()
            # On the CPU, whatever the default group is; rank 0 may compute for long while others wait.
            self.group = dist.new_group(backend="gloo", timeout=datetime.timedelta(days=7))

    def on_first(self, function: Callable[[], Any]) -> Any:
        """Calls `function` on rank 0; all get its result (to be pickled), or its error."""
        if self.group is None:
            return function()
        outcome: list[Any] = [None, None]
        if self.rank == 0:
            try:
                outcome[0] = function()
            except Exception as error:
                outcome[1] = error
        dist.broadcast_object_list(outcome, src=0, group=self.group)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def on_each_after_first(self, function: Callable[[], Any]) -> Any:
        """Calls `function` on rank 0, then on the others: so that one process alone downloads."""
        made: list[Any] = []
        self.on_first(lambda: made.append(function()))
        return made[0] if self.rank == 0 else function()

    def batches(self, count: int, batch_size: int) -> list[tuple[int, int]]:
        """The part of all batches that is this process's: a run of whole batches, so that an image is
        computed in the same batch, and rounded alike, however many processes there are."""
        total = -(-count // batch_size)
        mine = range(self.rank * total // self.count, (self.rank + 1) * total // self.count)
        return [(i * batch_size, min(count, (i + 1) * batch_size)) for i in mine]

    def gather(self, rows: np.ndarray | None) -> np.ndarray | None:
        """Joins the rows of all processes on rank 0; None elsewhere.

        Args:
          rows: [n, ...] of this process; None if it had no batch.
        """
        if self.group is None:
            return rows
        shapes: list[Any] = [None] * self.count
        described = None if rows is None else (rows.shape, rows.dtype.str)
        dist.all_gather_object(shapes, described, group=self.group)
        if self.rank:
            if rows is not None:
                data = torch.from_numpy(np.ascontiguousarray(rows).view(np.uint8).reshape(-1))
                dist.send(data, 0, group=self.group)
            return None
        parts = [] if rows is None else [rows]
        for rank in range(1, self.count):
            if shapes[rank] is not None:
                shape, dtype = shapes[rank]
                part = np.empty(shape, dtype)
                dist.recv(torch.from_numpy(part.view(np.uint8).reshape(-1)), rank, group=self.group)
                parts.append(part)
        return np.concatenate(parts)


@contextlib.contextmanager
def out_of_memory(
    device: torch.device, setting: str, advice: str = "try a smaller one"
) -> Iterator[None]:
    """Turns a lack of device memory into a ValueError of one line.

    Args:
      device: that may run out of it.
      setting: what asked for so much, e.g. "--batch_size=64".
      advice: what may help.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{setting}: {device} is out of memory; {advice} ({reason})") from None
