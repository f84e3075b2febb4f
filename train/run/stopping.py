"""SIGTERM and Ctrl-C: noticed at once, and followed by all processes at the same step."""

import signal
import threading
import time
from collections import deque
from collections.abc import Iterator

from torch import Tensor

from maskgit_pt.launch import Processes

_SECONDS = 1.0  # of steps between two questions, about
_STEPS = 16  # between two questions, at most

Batch = dict[str, Tensor]


class _Asked(BaseException):
    """Ends the wait for a batch."""


class Stop:
    """Hands out batches until somebody asks to stop; notes signals instead of dying of them.

    A process alone stops before the step that comes next. Several must stop at the same step, and none may
    be left in the middle of one, waiting for the others. Asking all of them before every step would hold
    each step up until the slowest process is there. So they ask before a group of steps, about a second
    of them, and each asks with the batches of the whole group in hand. A wait for data then ends at once
    in every process, and steps that have begun need no more data.

    Args:
      processes: this process and its peers.

    Attributes:
      asked: whether this process was signalled.
      interrupted: whether by Ctrl-C. The second one raises KeyboardInterrupt.
    """

    def __init__(self, processes: Processes):
        self.asked, self.interrupted = False, False
        self._processes = processes
        self._group: deque[Batch] = deque()
        self._size = 1  # of the next group
        self._steps, self._since = 0, time.monotonic()  # steps of the group, and when it began
        self._waiting = False
        self._previous = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._ask)

    def next(self, batches: Iterator[Batch]) -> Batch | None:
        """Returns the batch of the next step; None if no process is to take it, however late the batch is."""
        if not self._group:
            self._read(batches)
            if self._agree():
                return None
        return self._group.popleft()

    def _read(self, batches: Iterator[Batch]) -> None:
        """Fills the group, as far as there are batches; less as soon as a stop is asked for."""
        try:
            while not self.asked and len(self._group) < self._size:
                self._waiting = True
                batch = next(batches, None)
                self._waiting = False
                if batch is None:
                    break
                self._group.append(batch)
        except _Asked:
            pass

    def _agree(self) -> bool:
        """Whether any process is to stop; all of them call it at the same step."""
        if self._processes.world_size == 1:
            return self.asked
        now = time.monotonic()
        a_step = (now - self._since) / max(1, self._steps)
        asked, a_step = self._processes.largest(float(self.asked), a_step)
        self._steps, self._since = len(self._group), now
        # Every process computes the same size, and it grows slowly: nobody knows how long a step will take.
        self._size = max(1, min(2 * self._size, _STEPS, int(_SECONDS / max(a_step, 1e-9))))
        return bool(asked)

    def _ask(self, number: int, *_: object) -> None:
        if self.interrupted and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.interrupted = number == signal.SIGINT
        if not self.asked:
            self.asked = True
            if self._waiting:
                self._waiting = False
                raise _Asked

    def restore(self) -> None:
        """Gives the signals back to who had them before."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
