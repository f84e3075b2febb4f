"""What a run tells while it goes on: metrics, progress line, curves."""

import contextlib
import dataclasses
import json
import os
import resource
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from maskgit_pt.files import replacing, write_atomically
from maskgit_pt.launch import Processes

METRICS_NAME = "metrics.jsonl"


class Metrics:
    """Weighted means since the last log line, summed on the device without waiting for it.

    Args:
      names: of the metrics.
      device: of the sums.

    Attributes:
      sums: float64 [2, metrics]: weighted sums and weights.
    """

    def __init__(self, names: Sequence[str], device: torch.device):
        self.names = list(names)
        self.sums = torch.zeros(2, len(names), dtype=torch.float64, device=device)

    def add(self, values: Tensor, weights: Tensor) -> None:
        """Adds weighted sums [metrics] and their weights [metrics]."""
        self.sums += torch.stack([values, weights])

    def take(self, processes: Processes) -> dict[str, float]:
        """The means over all processes; starts anew. Metrics without any weight are left out."""
        values, weights = processes.sum(self.sums.cpu()).tolist()
        self.sums.zero_()
        both = zip(self.names, values, weights, strict=True)
        return {name: value / weight for name, value, weight in both if weight}


@dataclasses.dataclass
class Rates:
    """How fast a device multiplies matrices, in operations a second; 0 where it is not known.

    Attributes:
      measured: in plain products: the best that was seen.
      published: the peak on the card's data sheet.
      measure: measures anew. It is called where a step was faster than what was measured: other programs
        disturbed that.
      at_most: whether steps were faster still. Then the best step counts as the rate, and shares of it are
        upper bounds.
    """

    measured: float = 0.0
    published: float = 0.0
    measure: Callable[[], float] = lambda: 0.0
    at_most: bool = False

    def shares(self, reached: float) -> dict[str, float]:
        """What is logged of a rate; no share is above one.

        Returns:
          "mfu", of the published peak; "matrix_share" of the measured rate, or "matrix_share_at_most".
          A peak that was surpassed is not that of this card: there is no "mfu" then.
        """
        if reached > self.published:
            self.published = 0.0
        shares = {"mfu": reached / self.published} if self.published else {}
        if not self.measured:
            return shares
        if reached > self.measured:
            again = self.measure()
            self.at_most = reached > again
            self.measured = max(reached, again)
        name = "matrix_share_at_most" if self.at_most else "matrix_share"
        return shares | {name: reached / self.measured}


class Reporter:
    """Writes `metrics.jsonl` and TensorBoard files, and shows one line of progress.

    Only the main process writes. Lines of steps after `first_step`, left by a run that was killed after its
    last checkpoint, are removed first: they will come again.

    Args:
      run: the folder of the run.
      processes: this process and its peers.
      first_step: how many steps are done.
      num_steps: of the run.
      batch_size: images a step.
      work_per_image: floating-point operations; see `networks.work_per_image`.
      rates: of matrix products on one device.

    Raises:
      OSError: a file cannot be written; so do the methods.
    """

    def __init__(
        self,
        run: Path,
        processes: Processes,
        first_step: int,
        num_steps: int,
        batch_size: int,
        work_per_image: float,
        rates: Rates,
    ):
        self.processes = processes
        self.batch_size = batch_size
        self.work = work_per_image / processes.world_size  # of an image, on each device
        self.rates = rates
        self._last = (first_step, time.perf_counter())
        self._board = None
        self._bar = tqdm(
            total=num_steps,
            initial=first_step,
            unit="step",
            disable=not processes.is_main,
            mininterval=0.5 if sys.stderr.isatty() else 30.0,
            dynamic_ncols=True,
        )
        if processes.is_main:
            self._path = run / METRICS_NAME
            lines = [line for line in read_metrics(run) if line["step"] <= first_step]
            text = "".join(json.dumps(line) + "\n" for line in lines)
            with _writing(self._path):
                write_atomically(self._path, text.encode())
            self._board = _open_board(run, first_step)

    def advance(self) -> None:
        """One step is done."""
        self._bar.update()

    def log(self, step: int, metrics: dict[str, float], learning_rate: float) -> None:
        """Writes one line.

        Args:
          step: how many steps are done.
          metrics: means since the last line.
          learning_rate: of the last step.
        """
        if not self.processes.is_main:
            return
        last, since = self._last
        now = time.perf_counter()
        self._last = (step, now)
        rate = (step - last) * self.batch_size / max(now - since, 1e-9)
        line = (
            {"step": step} | metrics | {"learning_rate": learning_rate, "images_per_second": rate}
        )
        line |= self.rates.shares(rate * self.work)
        line["memory_gib"] = _peak_memory(self.processes.device) / 2**30
        self._write_line(line)
        self._bar.set_postfix_str(_short(line), refresh=False)

    def scores(self, step: int, scores: dict[str, float]) -> None:
        """Writes a line of its own with scores of this step; nothing if there are none."""
        if self.processes.is_main and scores:
            self._write_line({"step": step} | scores)
            told = ", ".join(f"{name} {value:.4g}" for name, value in scores.items())
            self.write(f"step {step}: {told}")

    def _write_line(self, line: dict[str, float]) -> None:
        with _writing(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self._board is not None:
            with _writing(self._board.path):
                values = {name: value for name, value in line.items() if name != "step"}
                self._board.scalars(values, line["step"])

    def write(self, message: str) -> None:
        """Prints a line without disturbing the bar."""
        if self.processes.is_main:
            tqdm.write(message, file=sys.stderr)

    def picture(self, path: Path, image: Image.Image, step: int) -> None:
        """Saves a picture, enlarged if it is tiny, and shows it in TensorBoard."""
        zoom = max(1, 640 // max(image.size))
        image = image.resize((zoom * image.width, zoom * image.height), Image.Resampling.NEAREST)
        with _writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary:
                image.save(temporary, format="png")
        if self._board is not None:
            with _writing(self._board.path):
                self._board.image(path.parent.name, np.asarray(image), step)

    def close(self) -> None:
        """Ends the bar."""
        self._bar.close()


class Board:
    """Curves and pictures as TensorBoard reads them: one event file of a run; going on adds another.

    Written at once and in this thread: the thread of PyTorch's `SummaryWriter` leaves a traceback, and an
    error that names no file, when the disk is full.

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


def _short(line: dict[str, float]) -> str:
    parts = [f"{name} {line[name]:.4g}" for name in ("loss", "accuracy") if name in line]
    parts.append(f"{line['images_per_second']:.4g} img/s")
    if "mfu" in line:
        parts.append(f"MFU {line['mfu']:.0%}")
    elif "matrix_share" in line:
        parts.append(f"{line['matrix_share']:.0%} of the matrix rate")
    elif "matrix_share_at_most" in line:
        parts.append(f"at most {line['matrix_share_at_most']:.0%} of the matrix rate")
    parts.append(f"{line['memory_gib']:.1f} GiB")
    return ", ".join(parts)


def _open_board(run: Path, first_step: int) -> Board | None:
    """TensorBoard's file, or None with a word about it where the package is missing."""
    folder = run / "tensorboard"
    try:
        with _writing(folder):
            return Board(folder, first_step)
    except ImportError:
        print("tensorboard is not installed: curves go to metrics.jsonl alone", file=sys.stderr)
        return None


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Says which file could not be written, and that no checkpoint is lost."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"{path} cannot be written: {error.strerror or error}; checkpoints are kept, and the same "
            "command goes on from the newest"
        ) from None


def _peak_memory(device: torch.device) -> int:
    """Bytes that this process has held at most: on its GPU, or in memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kilobytes on Linux


def read_metrics(run: Path) -> list[dict[str, float]]:
    """The lines of a run's metrics.jsonl; a last line cut off by a kill is left out."""
    path = run / METRICS_NAME
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and "step" in line:
            lines.append(line)
    return lines
