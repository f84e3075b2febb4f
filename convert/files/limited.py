"""Runs a function in a process of little memory and time, to see whether it comes to an end.

A hostile file can ask for any memory and any time in a few bytes. Where the system cannot fork (Windows),
the function runs here, without limits.
"""

import gc
import json
import os
import select
import signal
import time
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

_MEMORY = 3 * 2**27  # 384 MiB above what the process has and the file takes
_CPU_SECONDS = 4
_BYTES_PER_SECOND = 2**26  # of the file, and slow
_WALL_SECONDS = 300  # a machine may be busy


class LimitReached(ValueError):
    """It takes more memory or time than reading weights does, or ended the process."""


def run(function: Callable[[], Any], size: int) -> Any:
    """Returns what `function` gives: something that JSON can hold.

    Args:
      function: touches no thread and no GPU of this process.
      size: bytes of the file that it reads.

    Raises:
      LimitReached: one line.
      RuntimeError: `function` raised something.
    """
    if not hasattr(os, "fork"):
        return function()
    ours, theirs = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python and JAX warn of forking beside threads
        child = os.fork()
    if child == 0:
        _work(function, size, theirs)
    os.close(theirs)
    try:
        answer = _read_all(ours)
    finally:
        os.close(ours)
        os.kill(child, signal.SIGKILL)  # it has ended already, or it must
        status = os.waitpid(child, 0)[1]
    if answer:
        outcome = json.loads(answer)
        if "value" in outcome:
            return outcome["value"]
        if "mistake" in outcome:
            raise RuntimeError(outcome["mistake"])
        raise LimitReached("reading it takes more memory than weights need")
    ended_by = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if ended_by in (signal.SIGXCPU, signal.SIGKILL):
        raise LimitReached("reading it takes more time than weights need")
    raise LimitReached(f"reading it ended a process (signal {ended_by})")


def _read_all(pipe: int) -> bytes:
    """What comes out of a pipe until it is closed; nothing if that takes too long."""
    data, end = b"", time.monotonic() + _WALL_SECONDS
    while select.select([pipe], [], [], max(0, end - time.monotonic()))[0]:
        piece = os.read(pipe, 2**16)
        if not piece:
            return data
        data += piece
    return b""


def _work(function: Callable[[], Any], size: int, pipe: int) -> NoReturn:
    """The forked process, which ends here whatever happens."""
    try:
        gc.disable()  # it would touch, and so copy, all memory of the parent
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _set_limits(size)
        try:
            outcome = {"value": function()}
        except (MemoryError, RecursionError):
            outcome = {"limit": "memory"}
        except Exception as error:
            outcome = {"mistake": repr(error)}
        os.write(pipe, json.dumps(outcome).encode())
    finally:
        os._exit(0)


def _set_limits(size: int) -> None:
    import resource

    seconds = _CPU_SECONDS + size // _BYTES_PER_SECOND
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if os.path.exists("/proc/self/statm"):  # elsewhere nobody says how much there is already
        with open("/proc/self/statm") as statm:
            used = int(statm.read().split()[0]) * resource.getpagesize()
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        most = used + size + _MEMORY
        if soft == resource.RLIM_INFINITY or most < soft:
            resource.setrlimit(resource.RLIMIT_AS, (most, hard))
