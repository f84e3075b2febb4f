"""Orbax checkpoints, JAX's usual folders, of `{"params": {...}}` under the official names.

Only here is JAX imported, by orbax-checkpoint (the extra "jax"), and only when such a folder is read or
written.
"""

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from convert import flax_msgpack
from convert.checkpoint import Checkpoint
from convert.files import dtypes
from convert.formats.container import Container
from convert.formats.flax import Flax
from convert.formats.state_dicts import flax_contents
from convert.rows import Outgoing

_ROOM = 2**20  # for what Orbax writes beside the numbers


class Orbax(Flax):
    NAME = "orbax"
    DESCRIPTION = "Orbax checkpoint (JAX's folders; needs the extra 'jax')"
    IS_FOLDER = True
    PACKINGS = ("Orbax",)
    KEEPS_ORDER = False
    WHOLE_FOLDER = True

    def pack(self, source: Checkpoint, path: Path, tensors: Outgoing, packing: str) -> None:
        import ml_dtypes

        def array(name: str) -> np.ndarray:
            values = dtypes.to_numpy(tensors.tensor(name))
            return values.view(ml_dtypes.bfloat16) if values.dtype == dtypes.BFLOAT16 else values

        arrays = {name: array(name) for name in tensors.rows}
        size = sum(values.nbytes for values in arrays.values())
        _save(_orbax(), path.absolute(), flax_msgpack.nest(arrays), size)


def _save(orbax: Any, path: Path, tree: dict[str, Any], size: int) -> None:
    """Writes a folder. What Orbax writes first has a name beside the final one: both are within `path`.

    Raises:
      OSError: it cannot be written.
    """
    # Asked before: on a full disk Orbax' threads print tracebacks that nobody can catch.
    if size + _ROOM > shutil.disk_usage(path.parent).free:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    path.mkdir()
    inner = path / "checkpoint"
    try:
        with orbax.StandardCheckpointer() as checkpointer:
            checkpointer.save(inner, tree)
    except Exception as error:  # of many types
        text = " ".join(str(error).split())[:200]
        raise OSError(errno.EIO, f"Orbax: {type(error).__name__} {text}") from None
    for entry in inner.iterdir():
        entry.rename(path / entry.name)
    inner.rmdir()


def open_orbax(path: Path) -> Container:
    """Raises ValueError: it cannot be read."""
    orbax = _orbax()
    import jax

    checkpointer = orbax.PyTreeCheckpointer()
    try:
        metadata = checkpointer.metadata(path.absolute())
        metadata = getattr(metadata, "item_metadata", metadata)
        to_numpy = orbax.RestoreArgs(restore_type=np.ndarray)
        arguments = jax.tree.map(lambda _: to_numpy, getattr(metadata, "tree", metadata))
        tree = checkpointer.restore(path.absolute(), restore_args=arguments)
    except Exception as error:  # Orbax raises many model_types
        text = " ".join(str(error).split())[:200]
        raise ValueError(f"Orbax cannot read it: {type(error).__name__} {text}") from None
    if not isinstance(tree, dict):
        raise ValueError(f"holds a {type(tree).__name__}, not a tree of tensors")
    layout, found = flax_contents(flax_msgpack.map_leaves(tree, _tensor))
    layout = f"Orbax ({layout})"
    return Container(
        path, "Orbax", layout, found.candidates, found.values, found.left_out, compressed=True
    )


def _tensor(leaf: Any) -> Any:
    return dtypes.to_tensor(np.asarray(leaf)) if hasattr(leaf, "dtype") else leaf


def _orbax() -> Any:
    try:
        import orbax.checkpoint
    except ModuleNotFoundError as error:
        raise ValueError(
            f"Orbax checkpoints need orbax-checkpoint ({error}): pip install maskgit_pt[jax]"
        ) from None
    return orbax.checkpoint


FORMAT = Orbax()
