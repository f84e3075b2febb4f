"""Reads batches ahead, in processes that outlive signals but not the training process."""

import contextlib
import functools
import multiprocessing
import os
import select
import signal
import threading
import warnings
from collections.abc import Iterator
from multiprocessing import forkserver, resource_tracker
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Dataset


def load(
    batches: Dataset, first_step: int, last_step: int, num_workers: int, pin_memory: bool = False
) -> Iterator[dict[str, Tensor]]:
    """The batches of steps first_step ... last_step - 1, read ahead by `num_workers` processes."""
    loader = DataLoader(
        batches,
        batch_size=None,  # an item is a batch
        sampler=range(first_step, last_step),
        num_workers=num_workers,
        pin_memory=pin_memory,
        prefetch_factor=4 if num_workers else None,
        worker_init_fn=functools.partial(_prepare_worker, os.getpid()),
        # Workers start from a clean process: the training process has threads and a GPU context.
        multiprocessing_context="forkserver" if num_workers else None,
    )
    before = set(multiprocessing.active_children())
    workers: set[Any] = set()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This DataLoader will create")
            if num_workers:
                _start_server()
            batches = iter(loader)
            workers = set(multiprocessing.active_children()) - before
            yield from batches
    finally:
        for worker in workers:
            worker.kill()  # deaf to SIGTERM, and perhaps in the middle of a slow read


def _start_server() -> None:
    """Starts the process that forks workers, deaf to SIGTERM, and so are the workers.

    torchrun and Slurm signal every process of a job: the training process saves, and needs to find its
    workers alive. A blocked signal stays blocked in child processes.
    """
    resource_tracker.ensure_running()  # changes which signals are blocked
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])


def _prepare_worker(training_process: int, worker: int) -> None:
    """Signals reach every process of a terminal or job; the training process decides what they mean.

    If that one is killed, nothing else ends the workers: the server that forked them lives while they do.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(os, "pidfd_open"):  # Linux
        threading.Thread(target=_end_with, args=(training_process,), daemon=True).start()


def _end_with(process: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        select.select([os.pidfd_open(process)], [], [])
    os._exit(1)
