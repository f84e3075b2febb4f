"""What command lines that run on several devices share: the device, and the processes of torchrun."""

import contextlib
import copy
import ctypes
import datetime
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import numpy as np
import torch
import torch.distributed as dist

from maskgit_pt.command_line import PARENT_PROCESS
from maskgit_pt.settings import whole_number

# What gloo and NCCL say if a peer is gone, or silent for too long.
_LOST_PEER = re.compile(r"gloo|NCCL|Connection (closed|reset)|Timed out", re.IGNORECASE)
_MOST_THREADS = 1024  # many more end the process
PATIENCE = datetime.timedelta(days=7)  # while one process computes for long and the others wait


def pick_device(name: str | None, threads: int | None = None) -> torch.device:
    """The device that `--device` names, made current; under torchrun "cuda" is this process's own.

    Args:
      name: as torch writes devices; None or "": CUDA where there is any, else the CPU.
      threads: on a CPU, how many PyTorch uses. None: all cores, whatever torchrun says, because sums are
        split by threads and their last bits depend on it. 0: as many as torchrun or the user says.

    Raises:
      ValueError: it cannot be used here, or such a number of threads.
    """
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
        found = torch.cuda.device_count()
        if 0 < found <= int(name.removeprefix("cuda:")):
            raise ValueError(
                f"{name} is missing: a process of this machine has no GPU of its own; found {found}"
            )
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device={name} cannot be used here: {reason}") from None
    if device.type == "cuda":
        torch.cuda.set_device(device)
    elif device.type == "cpu" and threads != 0:
        if threads is not None:
            whole_number("threads", threads, 1, _MOST_THREADS)
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


class Processes:
    """This process and its peers: those that torchrun started, or of a process group that is there.

    Without either it is this process alone. As a context manager it ends the groups that it made.

    Args:
      device: what this process computes on, if the default group is to work there as well. A group is
        then made for a single process, too, so that training needs no special case.
      timeout: how long to wait for the others before they are given up. Default: days.
      alone: this process alone, whatever there is.

    Attributes:
      rank, world_size: as torchrun numbers them.
      device: as given; None if it does not matter.
      control: a group on the CPU for what processes tell each other, never used by two threads at once;
        None for a process alone.
    """

    def __init__(
        self,
        device: str | torch.device | None = None,
        *,
        timeout: datetime.timedelta = PATIENCE,
        alone: bool = False,
    ):
        self.device = None if device is None else torch.device(device)
        self.rank, self.world_size = 0, 1
        self.control = None
        self._made_group = not alone and self._join(timeout)
        if not alone and dist.is_available() and dist.is_initialized():
            self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
            if self.world_size > 1 or self.device is not None:
                self.control = self.new_group(timeout)

    def _join(self, timeout: datetime.timedelta) -> bool:
        """Makes the default group if one is needed and missing; says whether it did."""
        if dist.is_available() and dist.is_initialized():
            return False
        end_with_torchrun()
        several = int(os.environ.get("WORLD_SIZE", 1)) > 1
        if not several and self.device is None:
            return False
        on_gpu = self.device is not None and self.device.type == "cuda"
        backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
        if several or "RANK" in os.environ:
            dist.init_process_group(backend, timeout=timeout)
        else:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        return True

    @property
    def is_main(self) -> bool:
        """Whether this is the one that prints and writes."""
        return self.rank == 0

    def new_group(self, timeout: datetime.timedelta = PATIENCE) -> Any:
        """Another group of all processes on the CPU, e.g. for a thread; called by all processes."""
        return dist.new_group(backend="gloo", timeout=timeout)

    def patient(self) -> Self:
        """The same processes, who wait for each other for days; called by all processes."""
        result = copy.copy(self)
        if self.control is not None:
            result.control = self.new_group()
        result._made_group = False
        return result

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set in any process."""
        return bool(self.largest(float(flag))[0])

    def largest(self, *values: float) -> list[float]:
        """The largest of each of the values that the processes give, as float64."""
        if self.world_size == 1:
            return list(values)
        found = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(found, dist.ReduceOp.MAX, group=self.control)
        return found.tolist()

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over processes of a CPU tensor."""
        if self.world_size > 1:
            values = values.clone()
            dist.all_reduce(values, group=self.control)
        return values

    def each(self, value: Any) -> list[Any]:
        """What every process gave, by rank; anything that can be pickled."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def barrier(self) -> None:
        """Waits for the others."""
        if self.world_size > 1:
            dist.barrier(group=self.control)

    def on_first(self, function: Callable[[], Any]) -> Any:
        """Calls `function` on rank 0; all get its result (to be pickled), or its error."""
        if self.control is None:
            return function()
        outcome: list[Any] = [None, None]
        if self.rank == 0:
            try:
                outcome[0] = function()
            except Exception as error:
                outcome[1] = error
        dist.broadcast_object_list(outcome, src=0, group=self.control)
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
        mine = range(
            self.rank * total // self.world_size, (self.rank + 1) * total // self.world_size
        )
        return [(i * batch_size, min(count, (i + 1) * batch_size)) for i in mine]

    def gather(self, rows: np.ndarray | None) -> np.ndarray | None:
        """Joins the rows of all processes on rank 0; None elsewhere.

        Args:
          rows: [n, ...] of this process; None if it had no batch.
        """
        if self.control is None:
            return rows
        shapes: list[Any] = [None] * self.world_size
        described = None if rows is None else (rows.shape, rows.dtype.str)
        dist.all_gather_object(shapes, described, group=self.control)
        if self.rank:
            if rows is not None:
                data = torch.from_numpy(np.ascontiguousarray(rows).view(np.uint8).reshape(-1))
                dist.send(data, 0, group=self.control)
            return None
        parts = [] if rows is None else [rows]
        for rank in range(1, self.world_size):
            if shapes[rank] is not None:
                shape, dtype = shapes[rank]
                part = np.empty(shape, dtype)
                dist.recv(
                    torch.from_numpy(part.view(np.uint8).reshape(-1)), rank, group=self.control
                )
                parts.append(part)
        return np.concatenate(parts)

    def in_turn(
        self, items: Sequence[Any], size: int, function: Callable[[Sequence[Any]], np.ndarray]
    ) -> Iterator[np.ndarray]:
        """Calls `function` on `size` items at a time, a process after the other.

        Yields the results in order on rank 0, one at a time; nothing on the others, which all have to go
        through it as well.
        """
        for number, start in enumerate(range(0, len(items), size)):
            turn = number % self.world_size
            if turn == self.rank:
                rows = np.ascontiguousarray(function(items[start : start + size]))
                if self.rank == 0:
                    yield rows
                else:
                    self._send(rows)
            elif self.rank == 0:
                yield self._receive(turn)

    def _send(self, rows: np.ndarray) -> None:
        """To rank 0."""
        dist.send_object_list([(rows.shape, rows.dtype.str)], 0, group=self.control)
        dist.send(torch.from_numpy(rows.view(np.uint8).reshape(-1)), 0, group=self.control)

    def _receive(self, rank: int) -> np.ndarray:
        """What a process sends by `_send`."""
        described: list[Any] = [None]
        dist.recv_object_list(described, rank, group=self.control)
        shape, dtype = described[0]
        rows = np.empty(shape, dtype)
        dist.recv(torch.from_numpy(rows.view(np.uint8).reshape(-1)), rank, group=self.control)
        return rows

    def close(self) -> None:
        """Ends the groups, if this object made the default one."""
        if self._made_group:
            dist.destroy_process_group()
            self._made_group = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: object
    ) -> None:
        # After an error the others may be in the middle of a collective call, and leaving in order could
        # wait for them; torchrun ends them.
        if error is None or self.world_size == 1:
            self.close()
        elif isinstance(error, RuntimeError) and _LOST_PEER.search(str(error)):
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"process {self.rank}: another process has ended or does not answer ({reason})"
            ) from None


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
