"""Runs parts one after the other in a process of its own, which may hang or die without ending the rest."""

import contextlib
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable
from typing import Any


class Worker:
    """A process that calls functions on request; started anew after a hang, a crash or a CUDA error.

    (After an illegal access every later call of a CUDA process fails: other parts would look broken.)
    """

    def __init__(self):
        self._process = None

    def call(self, function: Callable[..., Any], *arguments: Any, seconds: float) -> Any:
        """Calls `function` over there.

        Args:
          function, arguments: can be pickled.
          seconds: how long it may take.

        Raises:
          TimeoutError: it took longer.
          RuntimeError: it raised, with its traceback; or its process died.
        """
        if self._process is not None and not self._process.is_alive():
            self.stop()  # it died after its last answer
        if self._process is None:
            context = multiprocessing.get_context("spawn")
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(target=_serve, args=(theirs,), daemon=False)
            self._process.start()
            theirs.close()
        self._pipe.send((function, arguments))
        end = time.monotonic() + seconds
        while not self._pipe.poll(min(1.0, max(0.0, end - time.monotonic()))):
            if time.monotonic() > end:
                self.stop()
                raise TimeoutError(f"took more than {seconds:.0f} s")
        try:
            kind, value = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(10)
            code = self._process.exitcode
            self.stop()
            raise RuntimeError(f"its process died with exit code {code}") from None
        if kind == "done":
            return value
        if kind == "broken":
            self.stop()
        raise RuntimeError(value)

    def stop(self) -> None:
        """Ends the process, and those that it started."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):  # it leads its session once it serves
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.kill()
            self._process.join()
            self._pipe.close()
            self._process = None


def _serve(pipe: Any) -> None:
    os.setsid()
    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:
            return
        try:
            answer = "done", function(*arguments)
        except BaseException as error:
            broken = "CUDA" in str(error) and not isinstance(error, AssertionError)
            answer = "broken" if broken else "failed", traceback.format_exc()
        pipe.send(answer)
