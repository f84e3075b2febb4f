"""The vectors in `tests/golden/unlockmgm`, recorded from JiwanHur/UnlockMGM, and their tiny networks."""

import functools
import json
import zipfile
from pathlib import Path

import numpy as np
import torch
from recorded import GOLDEN

from maskgit_pt.nets.self_guidance import SelfGuidedTransformer

FOLDER = GOLDEN / "unlockmgm"
NETWORKS = ("tiny", "codes1024")


@functools.cache
def recorded(name: str) -> dict[str, np.ndarray]:
    """Loads `tests/golden/unlockmgm/NAME.npz`."""
    with np.load(FOLDER / f"{name}.npz") as file:
        return dict(file)


@functools.cache
def text(name: str) -> dict:
    """Loads `tests/golden/unlockmgm/NAME.json`."""
    return json.loads((FOLDER / f"{name}.json").read_text())


def published(network: str = "tiny") -> dict[str, torch.Tensor]:
    """The tensors of a file as its authors save it."""
    return torch.load(FOLDER / network / "pytorch_model.bin", weights_only=True)


def model(
    dtype: torch.dtype = torch.float32, gelu: str = "erf", network: str = "tiny"
) -> SelfGuidedTransformer:
    """A tiny network, in evaluation mode."""
    import convert

    _, config, state = convert.load_checkpoint(FOLDER / network)
    net = SelfGuidedTransformer(**config | {"gelu": gelu})
    net.load_state_dict(state)
    return net.to(dtype).eval()


def zipped(path: Path, folder: Path, names: tuple[str, ...], method: int) -> Path:
    """Writes an archive with the files of a folder under each of some names of folders."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name in names:
            for file in sorted(folder.iterdir(), reverse=True):  # the weights first
                archive.write(file, f"{name}/{file.name}")
    return path
