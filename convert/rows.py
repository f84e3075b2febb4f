"""What the tensors of a format are, and the one way from official tensors to them."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from convert.files import dtypes
from convert.files.tensors import Buffer, Shape
from convert.tables import CONV, DENSE, IDENTITY, Transform

Observe = Callable[[str, Tensor], object]


@dataclass(frozen=True)
class Row:
    """What a tensor of some format is.

    Attributes:
      officials: the official tensors in it, in the order in which they are stacked; none for a
        BatchNorm's count of batches.
      transform: between each of them and its part of the tensor.
      optional: whether a model of these sizes may do without it (shortcuts).
    """

    officials: tuple[str, ...]
    transform: Transform = IDENTITY
    optional: bool = False

    def parts(self, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        """The parts of the tensor, out of the official tensors, as views."""
        return [self.transform.to_torch(tensors[name]) for name in self.officials]

    def shape(self, officials: Mapping[str, Shape]) -> Shape:
        """The shape of the tensor, out of the shapes of the official tensors."""
        if not self.officials:
            return ()
        meta = {name: torch.empty(officials[name], device="meta") for name in self.officials}
        parts = self.parts(meta)
        return (sum(len(p) for p in parts), *parts[0].shape[1:]) if parts[0].dim() else ()


Rows = dict[str, Row]


def norm(foreign: str, official: str, optional: bool = False) -> Rows:
    """The rows of a norm."""
    return {
        f"{foreign}.weight": Row((f"params/{official}/scale",), IDENTITY, optional),
        f"{foreign}.bias": Row((f"params/{official}/bias",), IDENTITY, optional),
    }


def dense(foreign: str, official: str) -> Rows:
    """The rows of a dense layer."""
    return {
        f"{foreign}.weight": Row((f"params/{official}/kernel",), DENSE),
        f"{foreign}.bias": Row((f"params/{official}/bias",)),
    }


def conv(foreign: str, official: str, bias: bool = True, optional: bool = False) -> Rows:
    """The rows of a convolution."""
    rows = {f"{foreign}.weight": Row((f"params/{official}/kernel",), CONV, optional)}
    if bias:
        rows[f"{foreign}.bias"] = Row((f"params/{official}/bias",), IDENTITY, optional)
    return rows


class Outgoing:
    """The tensors that `rows` make of official ones: the one way out, for files and for models.

    Args:
      tensors: official name -> tensor.
      rows: name -> what it is.
      dtype: convert to this; None: as stored.
      observe: called with the official name and the converted tensor, for each.
      release: called before each tensor, when none is in use.

    Attributes:
      layout: name -> (dtype, shape).

    Raises:
      ValueError: official tensors that become one have different dtypes.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        rows: Rows,
        dtype: str | None = None,
        observe: Observe = lambda name, tensor: None,
        release: Callable[[], object] = lambda: None,
    ):
        self.tensors, self.rows, self.observe, self.release = tensors, rows, observe, release
        self.buffer = Buffer()
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        self.layout = {
            name: (self._dtype(name, row, dtype), row.shape(shapes)) for name, row in rows.items()
        }

    def _dtype(self, name: str, row: Row, dtype: str | None) -> str:
        found = [dtype or dtypes.name_of_torch(self.tensors[o].dtype) for o in row.officials]
        for official, other in zip(row.officials, found, strict=True):
            if other != found[0]:
                raise ValueError(
                    f"tensor {official} is {other}, but what goes into {name} with it is "
                    f"{found[0]}; --dtype makes them equal"
                )
        return found[0] if found else "int64"

    def parts(self, name: str) -> Iterator[Tensor]:
        """The parts of one tensor: contiguous, each valid until the next is asked for."""
        row, (dtype, shape) = self.rows[name], self.layout[name]
        if not row.officials:
            yield torch.zeros(shape, dtype=dtypes.torch_dtype(dtype))
        for official, part in zip(row.officials, row.parts(self.tensors), strict=True):
            self.release()  # what was used before
            part = self.buffer.copy(part, dtype)
            self.observe(official, part)
            yield part

    def tensor(self, name: str) -> Tensor:
        """One tensor, in memory of its own."""
        dtype, shape = self.layout[name]
        result = torch.empty(shape, dtype=dtypes.torch_dtype(dtype))
        count = len(self.rows[name].officials)
        targets = result.tensor_split(count) if count > 1 else [result]
        for target, part in zip(targets, self.parts(name), strict=True):
            target.copy_(part)
        return result

    def tensor_in_official_order(self, name: str) -> Tensor:
        """One tensor as a view of numbers that lie in memory as the official tensor's do.

        What is stacked lies in its own order.
        """
        row, dtype = self.rows[name], dtypes.torch_dtype(self.layout[name][0])
        if len(row.officials) != 1:
            return self.tensor(name)
        (official,) = row.officials
        self.release()
        part = self.tensors[official].contiguous().to(dtype, copy=True)
        self.observe(official, part)
        return row.transform.to_torch(part)

    def state_dict(self) -> dict[str, Tensor]:
        """All of them."""
        return {name: self.tensor(name) for name in self.rows}
