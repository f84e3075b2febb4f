"""One training at a time in the folder of a run."""

import contextlib
import fcntl
import time
from collections.abc import Iterator
from pathlib import Path

LOCK_NAME = ".lock"


@contextlib.contextmanager
def claim(run: Path, seconds: float = 10.0) -> Iterator[None]:
    """Holds the folder of a run; the system lets go of it when the process ends, however it ends.

    Args:
      run: the folder; made if missing.
      seconds: how long to wait for another process, which may be about to end.

    Raises:
      ValueError: another process keeps it.
      OSError: it cannot be made.
    """
    if run.exists() and not run.is_dir():
        raise NotADirectoryError(f"{run} is a file; accepted: a folder for the run")
    run.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + seconds
    with (run / LOCK_NAME).open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ValueError(
                        f"{run}: another process is training there; wait for its end, or name another "
                        "--output"
                    ) from None
                time.sleep(0.1)
                continue
            except OSError:  # a file system without locks
                pass
            break
        yield
