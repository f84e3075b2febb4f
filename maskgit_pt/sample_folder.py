"""A folder of samples that can be filled by several processes, interrupted, and filled further.

Each sample is one PNG that also holds its label and tokens; it appears whole or not at all. What depends on
all of them (`grid.png`, `samples.npz`, `tokens.npy`) is made from the PNGs when they are complete.
"""

import base64
import collections
import contextlib
import json
import os
import re
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, PngImagePlugin
from torch import Tensor

from maskgit_pt.classes import Classes
from maskgit_pt.files import atomic_file, refuse_others, replacing, write_atomically
from maskgit_pt.launch import Processes
from maskgit_pt.utils import to_pil, visualize_images, with_row_titles

SETTINGS_NAME, SAMPLES_NAME = "settings.json", "samples.npz"
_GRID_ROWS, _GRID_COLUMNS = 16, 8
_OURS = re.compile(
    r"(class\d+_\d+(_steps)?\.(png|gif)|grid\.png|samples\.npz|tokens\.npy)"
    r"|(?P<unfinished>\.(class\d+_\d+.*|grid\.png|samples\.npz|tokens\.npy)\.[0-9a-f]{8}\.tmp)"
)
_SAMPLE = re.compile(r"class\d{4,}_(?P<index>\d{6,})\.png")
_AT_ONCE = 64  # images decoded between two writes
_COMPRESSION = 1  # of PNG: three times as fast as the default, files a tenth larger


class Sample(NamedTuple):
    """Which sample: its index in the whole set, and its class."""

    index: int
    label: int


class SampleFolder:
    """Where samples go.

    Args:
      folder: made if missing.
      settings: everything that the samples depend on, as JSON; a folder with samples of other settings is
        refused.
      overwrite: remove the samples that are there instead.
      processes: this process and its peers; the first one writes the settings, the others only look.
      classes: what the classes are called, in the grid and in the samples' metadata; None: not known.

    Raises:
      ValueError: the folder holds samples of other settings, files of the same names that are no samples of
        this program, a model or a training run.
      OSError: it cannot be written.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        settings: dict[str, Any],
        overwrite: bool,
        processes: Processes,
        classes: Classes | None = None,
    ):
        self.folder, self.processes = Path(folder), processes
        self.classes = classes if classes is not None and classes.names else None
        if not processes.is_main:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        refuse_others(self.folder, "samples")
        names = os.listdir(self.folder)
        if not overwrite:
            _check_same(self.folder, names, settings)
        for name in names:
            match = _OURS.fullmatch(name)
            if match and (overwrite or match["unfinished"]):  # by a run that was killed
                (self.folder / name).unlink()
        text = json.dumps(settings, indent=2) + "\n"
        write_atomically(self.folder / SETTINGS_NAME, text.encode())

    def count(self) -> int:
        """Returns one more than the highest index of the samples that are there."""
        found = map(_SAMPLE.fullmatch, os.listdir(self.folder))
        return max((int(match["index"]) + 1 for match in found if match), default=0)

    def path(self, sample: Sample, suffix: str = ".png") -> Path:
        """class<label>_<index><suffix>."""
        return self.folder / f"class{sample.label:04d}_{sample.index:06d}{suffix}"

    def holds(self, sample: Sample, with_steps: bool = False) -> bool:
        """Whether this sample is there, and pictures of its steps if they are wanted."""
        suffixes = [".png"] + with_steps * ["_steps.png", "_steps.gif"]
        return all(self.path(sample, suffix).exists() for suffix in suffixes)

    def save(self, sample: Sample, image: Tensor, tokens: Tensor) -> None:
        """Writes one sample.

        Args:
          sample: which.
          image: float [3, H, W] in [0, 1].
          tokens: int64 [h, w].
        """
        info = PngImagePlugin.PngInfo()
        info.add_text("label", str(sample.label))
        if self.classes is not None:
            info.add_itxt("class", self.classes.name(sample.label))
        info.add_text("tokens", base64.b64encode(tokens.numpy().astype("<u2").tobytes()).decode())
        info.add_text("grid", f"{tokens.shape[0]}x{tokens.shape[1]}")
        picture = to_pil(image)
        with replacing(self.path(sample)) as path:
            picture.save(path, "PNG", pnginfo=info, compress_level=_COMPRESSION)

    def load(self, sample: Sample) -> np.ndarray:
        """The image uint8 [H, W, 3] of a sample.

        Raises:
          ValueError: the file is damaged.
        """
        with self._open(sample) as file:
            return np.array(file.convert("RGB"))

    def header(self, sample: Sample) -> tuple[np.ndarray, tuple[int, int]]:
        """The tokens int64 [h, w] of a sample and its size in pixels, without decoding these.

        Raises:
          ValueError: the file is damaged.
        """
        with self._open(sample) as file:  # reads up to the pixels: the texts stand before them
            shape = tuple(map(int, file.info["grid"].split("x")))
            tokens = np.frombuffer(base64.b64decode(file.info["tokens"]), "<u2")
            return tokens.reshape(shape).astype(np.int64), file.size

    @contextlib.contextmanager
    def _open(self, sample: Sample) -> Iterator[Image.Image]:
        path = self.path(sample)
        try:
            with Image.open(path) as file:
                yield file
        except (OSError, KeyError, ValueError, SyntaxError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{path}: not a sample of this program, remove it: {reason}") from None

    def finish(self, samples: list[Sample], npz: bool = True) -> None:
        """Makes the grid, `tokens.npy` (int64 [N, h, w]) and `samples.npz` from the complete set.

        `samples.npz` has the layout of the ADM evaluator (openai/guided-diffusion, `evaluations`): arr_0
        uint8 [N, H, W, 3]; arr_1 int64 [N], the labels. Samples are in the order of their indices. Each is
        decoded once, by one of the processes, all of which call this; they are streamed, so that 50,000
        need no more memory than a few hundred.
        """
        main = self.processes.is_main
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
            if main:
                tokens = self._all_tokens(list(threads.map(self.header, samples)), samples)
                self._save_grid(samples)
                with atomic_file(self.folder / "tokens.npy") as file:
                    np.save(file, tokens)
            if not npz:
                return
            images = self.processes.in_turn(samples, _AT_ONCE, self._decoder(threads))
            if not main:
                collections.deque(images, 0)  # decodes and sends its part
                return
            with replacing(self.folder / SAMPLES_NAME) as path:
                self._save_npz(path, samples, images)

    def _all_tokens(self, found: list, samples: list[Sample]) -> np.ndarray:
        """int64 [N, h, w] of what `header` returned; ValueError if one is unlike the first."""
        first, size = found[0]
        for (tokens, its_size), sample in zip(found, samples, strict=True):
            if tokens.shape != first.shape or its_size != size:
                raise ValueError(
                    f"{self.path(sample)}: not of this set, remove it: {its_size[0]} x {its_size[1]} pixels, "
                    f"where {self.path(samples[0]).name} has {size[0]} x {size[1]}"
                )
        return np.stack([tokens for tokens, _ in found])

    def _decoder(self, threads: ThreadPoolExecutor) -> Callable[[list[Sample]], np.ndarray]:
        def decode(part: list[Sample]) -> np.ndarray:
            return np.stack(list(threads.map(self.load, part)))

        return decode

    def _save_grid(self, samples: list[Sample]) -> None:
        """A row a class, with its name before it; with one sample of each, row by row."""
        by_class: dict[int, list[Sample]] = {}
        for sample in samples:
            by_class.setdefault(sample.label, []).append(sample)
        rows = [row[:_GRID_COLUMNS] for row in by_class.values()]
        titles = [self.classes.name(label) for label in by_class] if self.classes else []
        if all(len(row) == 1 for row in rows):
            titles = []
            firsts = [row[0] for row in rows]
            rows = [firsts[i : i + _GRID_COLUMNS] for i in range(0, len(firsts), _GRID_COLUMNS)]
        rows = rows[:_GRID_ROWS]
        columns = max(map(len, rows))
        pictures = []
        for row in rows:
            images = [torch.from_numpy(self.load(s)).permute(2, 0, 1) / 255 for s in row]
            blank = [torch.ones_like(images[0])] * (columns - len(row))
            pictures += images + blank
        grid = visualize_images(torch.stack(pictures), columns=columns, enlarge=True)
        grid = with_row_titles(grid, titles[: len(rows)])
        with replacing(self.folder / "grid.png") as path:
            grid.save(path, "PNG")

    def _save_npz(self, path: Path, samples: list[Sample], images: Iterator[np.ndarray]) -> None:
        """Writes uint8 [n, H, W, 3] one after the other."""
        shape = self.load(samples[0]).shape
        header = {"descr": "|u1", "fortran_order": False, "shape": (len(samples), *shape)}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            # ZipInfo's fixed date: the same samples give the same bytes.
            with archive.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True) as file:
                np.lib.format.write_array_header_1_0(file, header)
                for part in images:
                    if part.shape[1:] != shape:
                        raise ValueError(f"{self.folder}: samples of different sizes")
                    file.write(part)
            with archive.open(zipfile.ZipInfo("arr_1.npy"), "w") as file:
                np.lib.format.write_array(file, np.array([s.label for s in samples], np.int64))


def read_settings(folder: str | os.PathLike) -> dict[str, Any]:
    """The settings of the samples in a folder; {} if it holds none.

    Raises:
      ValueError: they are damaged.
    """
    path = Path(folder) / SETTINGS_NAME
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return dict(found)
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path}: damaged ({error}); remove it or choose another --output"
        ) from None


def _check_same(folder: Path, names: list[str], settings: dict[str, Any]) -> None:
    """Raises ValueError if samples would join others that were made with other settings, or by others."""
    found, wanted = read_settings(folder), json.loads(json.dumps(settings))
    held = [name for name in names if (match := _OURS.fullmatch(name)) and not match["unfinished"]]
    foreign = held[:1] if not found else [] if wanted.keys() & found.keys() else [SETTINGS_NAME]
    if foreign:
        raise ValueError(
            f"{folder} holds {foreign[0]} and does not say that this program made it; choose another "
            "--output, or --overwrite"
        )
    # Without samples nothing is lost.
    for name in sorted(found.keys() | wanted.keys()) if held else ():
        if found.get(name) != wanted.get(name):
            raise ValueError(
                f"{folder} holds samples made with other settings: {name} is {found.get(name)!r} there and "
                f"{wanted.get(name)!r} now; choose another --output, or --overwrite"
            )
