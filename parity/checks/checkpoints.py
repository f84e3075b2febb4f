"""The conversion there and back."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

import convert
from parity.compare import Record, compare_exact


def round_trip(checkpoints: dict[str, Path], folders: dict[str, Path]) -> Iterator[Record]:
    """A Google-format file, converted and exported again, has the same bytes.

    Args:
      checkpoints: the files, by kind.
      folders: what `convert` made of them, by kind.
    """
    for kind, file in checkpoints.items():
        back = folders[kind].with_suffix(".exported")
        convert.convert(folders[kind], back, to="flax")
        ours, theirs = (np.fromfile(path, np.uint8) for path in (back, file))
        yield compare_exact(f"{kind}: bytes of the file exported again", ours, theirs)
        back.unlink()
