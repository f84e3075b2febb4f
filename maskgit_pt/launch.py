"""What command lines that run on several devices share: the device, the processes of torchrun."""

import contextlib
import ctypes
import datetime
import os
import signal
import sys
from collections.abc import Iterator

import torch

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
