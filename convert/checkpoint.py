"""What every format is read into: tensors under their official names, and what model they make."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from convert import rules
from convert.files import dtypes
from convert.files.tensors import Buffer, FileTensor, OpenFile


@dataclass
class Checkpoint:
    """An open file of weights. Use as a context manager, which closes it.

    Attributes:
      path: the file that holds the weights.
      file: the same, open.
      kind: a key of `rules.MODEL_CLASSES`.
      config: complete, for `rules.build`.
      tensors: official name -> tensor, in official order: as in Google's file it once came from if
        that is known, else as published.
      chunks: elements per chunk of the arrays that the official file cuts up.
      notes: what had to be assumed or was left out; for the user to see.
      origin: what else a foreign file said, for writing it again: "format", "wrapper" (the key that the
        weights stood under, or None), "values" (its plain numbers and words: steps, versions).
    """

    path: Path
    file: OpenFile
    kind: str
    config: dict
    tensors: dict[str, FileTensor]
    chunks: dict[str, tuple[int, ...]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    origin: dict = field(default_factory=dict)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    @property
    def parameters(self) -> int:
        """How many numbers there are, running statistics not counted."""
        return sum(
            torch.Size(tensor.shape).numel()
            for name, tensor in self.tensors.items()
            if not name.startswith("batch_stats/")
        )

    @property
    def step(self) -> int | None:
        """How long it was trained, in optimizer steps, if a file said so."""
        values = self.origin.get("values", {})
        found = [values.get(name) for name in ("iter", "global_step", "step")]
        return next((value for value in found if type(value) is int), None)

    def size(self, dtype: str | None = None) -> int:
        """Bytes of all tensors, as stored or in another dtype."""
        return sum(
            torch.Size(tensor.shape).numel() * dtypes.itemsize(dtype or tensor.dtype)
            for tensor in self.tensors.values()
        )

    @property
    def dtype(self) -> str:
        """The dtype of the weights, or all of them: "float32", "bfloat16, float32"."""
        return ", ".join(sorted({tensor.dtype for tensor in self.tensors.values()}))

    def state_dict(self) -> dict[str, Tensor]:
        """Reads all into a PyTorch state dict.

        Raises:
          ValueError: official tensors that become one have different dtypes.
        """
        shapes, pieces, _ = rules.target(self.kind, self.config)
        found = {name: tensor.dtype for name, tensor in self.tensors.items()}
        buffer = Buffer()
        return rules.fill(shapes, pieces, found, lambda name: self.tensors[name].read(buffer))


def check_dtypes(tensors: dict[str, str]) -> None:
    """Raises ValueError for a parameter (name -> dtype) that is no floating-point number."""
    for name, dtype in tensors.items():
        if dtype not in dtypes.FLOATS and not name.endswith("." + rules.TORCH_ONLY):
            accepted = ", ".join(dtypes.FLOATS)
            raise ValueError(f"tensor {name} is {dtype}; accepted for weights: {accepted}")
