"""One training at a time in the folder of a run, which all its machines share."""

import contextlib
import os
import secrets
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from maskgit_pt import files
from maskgit_pt.launch import Processes

LOCK_NAME = ".lock"


@contextlib.contextmanager
def claim(run: Path, processes: Processes, seconds: float = 10.0) -> Iterator[None]:
    """Holds the folder of a run; the system lets go of it when the process ends, however it ends.

    All processes call it together. The first one holds the folder and leaves a mark in it; the others
    look for the mark, since a folder of the same name on another machine would get half of every
    checkpoint.

    Args:
      run: the folder; made if missing.
      processes: this process and its peers.
      seconds: how long to wait for another training, which may be about to end, and for the mark, since
        shared disks show files late.

    Raises:
      ValueError: another training keeps the folder, or not all processes see the same one.
      OSError: it cannot be made.
    """
    with contextlib.ExitStack() as stack:
        mark = processes.on_first(lambda: stack.enter_context(_hold(run, seconds)))
        places = processes.each((socket.gethostname(), _sees(run / LOCK_NAME, mark, seconds)))
        blind = sorted({host for host, sees in places if not sees})
        if blind:
            raise ValueError(
                f"{run.absolute()}: what process 0 on {places[0][0]} wrote there is not seen on "
                f"{', '.join(blind)}; accepted: an --output on a disk that all machines share"
            )
        yield


@contextlib.contextmanager
def _hold(run: Path, seconds: float) -> Iterator[str]:
    """Locks the folder and gives the mark that is in it now: who holds it."""
    if run.exists() and not run.is_dir():
        raise NotADirectoryError(f"{run} is a file; accepted: a folder for the run")
    run.mkdir(parents=True, exist_ok=True)
    with (run / LOCK_NAME).open("a+") as file:
        if not files.lock(file.fileno(), seconds):
            file.seek(0)
            holder = file.read().partition(",")[0] or "another process"
            raise ValueError(
                f"{run}: {holder} is training there; wait for its end, or name another --output"
            )
        mark = f"process {os.getpid()} on {socket.gethostname()}, {secrets.token_hex(8)}"
        try:
            file.truncate(0)
            file.write(mark)
            file.flush()
            os.fsync(file.fileno())
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(run / LOCK_NAME)) from None
        yield mark


def _sees(path: Path, mark: str, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError):
            if path.read_text() == mark:
                return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
