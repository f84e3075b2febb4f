"""What a run tells while it goes on: metrics, progress line, curves."""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from maskgit_pt.pretrained import write_atomically
from train.distributed import Processes

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
      peak: the machine's measured matrix rate, in operations a second and device; 0 if not known.
    """

    def __init__(
        self,
        run: Path,
        processes: Processes,
        first_step: int,
        num_steps: int,
        batch_size: int,
        work_per_image: float,
        peak: float,
    ):
        self.processes = processes
        self.batch_size = batch_size
        self.work = work_per_image / peak / processes.world_size if peak else 0.0
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
            path = run / METRICS_NAME
            lines = [line for line in read_metrics(run) if line["step"] <= first_step]
            text = "".join(json.dumps(line) + "\n" for line in lines)
            write_atomically(path, text.encode())
            self._file = path.open("a", encoding="utf-8")
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
        if self.work:
            line["mfu"] = rate * self.work
        if self.processes.device.type == "cuda":
            line["memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        self._write_line(line)
        self._bar.set_postfix_str(_short(line), refresh=False)

    def scores(self, step: int, scores: dict[str, float]) -> None:
        """Writes a line of its own with scores of this step; nothing if there are none."""
        if self.processes.is_main and scores:
            self._write_line({"step": step} | scores)
            told = ", ".join(f"{name} {value:.4g}" for name, value in scores.items())
            self.write(f"step {step}: {told}")

    def _write_line(self, line: dict[str, float]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in line.items():
                if name != "step":
                    self._board.add_scalar(name, value, line["step"])

    def write(self, message: str) -> None:
        """Prints a line without disturbing the bar."""
        if self.processes.is_main:
            tqdm.write(message, file=sys.stderr)

    def picture(self, path: Path, image: Image.Image, step: int) -> None:
        """Saves a picture, enlarged if it is tiny, and shows it in TensorBoard."""
        zoom = max(1, 640 // max(image.size))
        image = image.resize((zoom * image.width, zoom * image.height), Image.Resampling.NEAREST)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}")
        image.save(temporary, format="png")
        temporary.replace(path)
        if self._board is not None:
            self._board.add_image(path.parent.name, np.asarray(image), step, dataformats="HWC")

    def close(self) -> None:
        """Ends bar and files."""
        self._bar.close()
        if self.processes.is_main:
            self._file.close()
            if self._board is not None:
                self._board.close()


def _short(line: dict[str, float]) -> str:
    parts = [f"{name} {line[name]:.4g}" for name in ("loss", "accuracy") if name in line]
    parts.append(f"{line['images_per_second']:.4g} img/s")
    if "mfu" in line:
        parts.append(f"MFU {line['mfu']:.0%}")
    if "memory_gib" in line:
        parts.append(f"{line['memory_gib']:.1f} GiB")
    return ", ".join(parts)


def _open_board(run: Path, first_step: int):
    """TensorBoard's writer, or None with a word about it where the package is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        print("tensorboard is not installed: curves go to metrics.jsonl alone", file=sys.stderr)
        return None
    return SummaryWriter(run / "tensorboard", purge_step=first_step + 1)


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


def matrix_rate(device: torch.device, dtype: torch.dtype, seconds: float = 0.3) -> float:
    """Operations a second of a plain matrix product here: what MFU is a share of.

    Args:
      device, dtype: of the matrices.
      seconds: how long to measure, after a warm-up.
    """
    size = 8192 if device.type == "cuda" else 1024
    a = torch.randn(size, size, device=device, dtype=dtype)
    out = torch.empty_like(a)

    def run(until: float) -> float:
        start, calls = time.perf_counter(), 0
        while time.perf_counter() - start < until:
            for _ in range(4):
                torch.mm(a, a, out=out)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            calls += 4
        return calls / (time.perf_counter() - start)

    run(seconds / 3)
    return 2 * size**3 * run(seconds)
