"""Curves and pictures as TensorBoard reads them.

Written at once and in this thread: the thread of PyTorch's `SummaryWriter` leaves a traceback, and an error
that names no file, when the disk is full.
"""

import os
import socket
import time
from pathlib import Path

import numpy as np


class Board:
    """One event file of a run; a run that goes on adds another.

    Args:
      folder: for the files; made if missing.
      first_step: how many steps are done; TensorBoard forgets what earlier files say of later ones.

    Raises:
      ImportError: tensorboard is missing.
      OSError: the file cannot be written; so do the methods.
    """

    def __init__(self, folder: Path, first_step: int):
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter
        from torch.utils.tensorboard import summary

        self._event, self._records, self._summary = Event, RecordWriter, summary
        folder.mkdir(parents=True, exist_ok=True)
        now = time.time_ns()
        self.path = folder / f"events.out.tfevents.{now}.{socket.gethostname()}.{os.getpid()}"
        self._write(Event(file_version="brain.Event:2"))
        start = SessionLog(status=SessionLog.SessionStatus.START)
        self._write(Event(step=first_step + 1, session_log=start))

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Adds a point to the curve of each name."""
        event = self._event(step=step)
        for name, value in values.items():
            event.summary.MergeFrom(self._summary.scalar(name, value))
        self._write(event)

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        """Adds a picture: uint8 [H, W, 3]."""
        summary = self._summary.image(name, pixels, dataformats="HWC")
        self._write(self._event(step=step, summary=summary))

    def _write(self, event: object) -> None:
        event.wall_time = time.time()
        with self.path.open("ab") as file:
            self._records(file).write(event.SerializeToString())
