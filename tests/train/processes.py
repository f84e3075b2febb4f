"""Small groups of training processes for tests, forked from a server that has imported everything once.

Starting Python and importing PyTorch takes seconds a process; a test of training takes a fraction of one.
"""

import dataclasses
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from train import loop
from train.tasks import flops

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["train.__main__", "torch.utils.tensorboard.summary", "torch.distributed.fsdp",
     "tensorboard.summary.writer.record_writer", "torch.distributed.device_mesh", "torch._dynamo",
     "torch.distributed.checkpoint._fsspec_filesystem", "processes"]
)  # fmt: skip


@dataclasses.dataclass
class Group:
    """Processes that were started together, each the leader of a session of its own, as under torchrun."""

    processes: list
    logs: list[Path]

    def wait(self, seconds: float = 120.0) -> list[int]:
        """The exit codes; -9 after SIGKILL."""
        end = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.0, end - time.monotonic()))
        if any(process.exitcode is None for process in self.processes):
            self.signal(signal.SIGKILL)
            raise TimeoutError(self.text())
        return [process.exitcode for process in self.processes]

    def signal(self, number: int) -> None:
        """Signals every process and its children, as torchrun does."""
        for process in self.processes:
            if process.is_alive():
                os.killpg(process.pid, number)

    @property
    def alive(self) -> bool:
        return any(process.is_alive() for process in self.processes)

    def text(self) -> str:
        """What all of them printed."""
        return "".join(log.read_text() for log in self.logs if log.exists())


def start(
    target: Callable[..., int], *args: object, logs: Path, count: int = 1,
    folders: Sequence[Path] | None = None,
) -> Group:  # fmt: skip
    """Calls `target(*args)` in `count` processes that find each other as those of torchrun do.

    Args:
      target: a function of a module; its result is the exit code.
      logs: a folder for what they print.
      folders: working folder of each; default: this one's.
    """
    logs.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    paths = [logs / f"{port}.{rank}.log" for rank in range(count)]
    processes = []
    for rank, log in enumerate(paths):
        folder = str(folders[rank]) if folders else os.getcwd()
        job = (rank, count, port, str(log), folder, target, args)
        processes.append(_CONTEXT.Process(target=_run, args=job))
        processes[-1].start()
    for process, log in zip(processes, paths, strict=True):
        while process.is_alive() and not log.exists():  # it leads its session from then on
            time.sleep(0.01)
    return Group(processes, paths)


def run(target: Callable[..., int], *args: object, **options: object) -> Group:
    """`start`, and waits for an end without errors."""
    group = start(target, *args, **options)
    codes = group.wait()
    assert not any(codes), (codes, group.text())
    return group


def brief_matrix_rate(*where: object) -> float:
    """`flops.matrix_rate`, measured for a moment."""
    return flops.matrix_rate(*where, seconds=0.01)


def _run(
    rank: int, count: int, port: int, log: str, folder: str, target: Callable, args: tuple
) -> None:
    import torch

    os.setsid()
    # The server may have been started deaf to SIGTERM, by the loader of batches.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.chdir(folder)
    torch.set_num_threads(1)
    loop.matrix_rate = brief_matrix_rate
    os.environ["OMP_NUM_THREADS"] = "1"
    if count > 1:
        where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port}
        os.environ |= {name: str(value) for name, value in where.items()}
        os.environ["MASTER_ADDR"] = "127.0.0.1"
    code = target(*args)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def train(argv: list[str]) -> int:
    """The command line of training, in this process."""
    from train import __main__ as program

    return program.cli(argv)
