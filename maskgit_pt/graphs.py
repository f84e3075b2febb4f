"""Recording the GPU work of a function once and replaying it: CUDA graphs over whole decodings."""

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

_KEPT = 4  # recordings
_WARM_UP_CALLS = 3  # compiling, choosing kernels, taking memory: all before anything is recorded


class Recorder:
    """Records functions of tensors, each once for every kind of arguments, and replays them from then on.

    A function must do the same work whatever the values are, and must not wait for the device. What it
    returns is copied, since a replay overwrites it. On a CPU there is nothing to record: the function is
    called on the same buffers that a replay would read.

    Args:
      device: where they work.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self._recordings: dict[Hashable, _Recording] = {}

    def __call__(
        self, function: Callable[[Any], tuple[Tensor, ...]], kind: Hashable, arguments: Any
    ) -> tuple[Tensor, ...]:
        """Does what `function(arguments)` does, with the arguments on the device.

        Args:
          function: returns a tuple of tensors; not called where its work is recorded already.
          kind: whatever the work depends on beside the arguments.
          arguments: a tree (tuples, lists, dicts) of tensors on any device and of other values.
        """
        leaves, structure = pytree.tree_flatten(arguments)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        described = tuple(
            (leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else leaf for leaf in leaves
        )
        key = (kind, described, repr(structure))
        if key not in self._recordings:
            if len(self._recordings) == _KEPT:  # each holds the memory of its work
                self._recordings.pop(next(iter(self._recordings)))
            self._recordings[key] = _Recording(function, leaves, structure, self.device)
        return self._recordings[key].replay(tensors)


class _Recording:
    """One graph, the buffers that it reads and those that it writes."""

    def __init__(
        self,
        function: Callable[[Any], tuple[Tensor, ...]],
        leaves: list[Any],
        structure: pytree.TreeSpec,
        device: torch.device,
    ):
        own = [leaf.to(device, copy=True) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self.inputs = [leaf for leaf in own if isinstance(leaf, Tensor)]
        self._call = lambda: function(pytree.tree_unflatten(own, structure))
        self._graph = None
        if device.type == "cuda":
            self._record(device)

    def _record(self, device: torch.device) -> None:
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP_CALLS):
                self._call()
        torch.cuda.current_stream(device).wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self.outputs = self._call()

    def replay(self, tensors: list[Tensor]) -> tuple[Tensor, ...]:
        for own, given in zip(self.inputs, tensors, strict=True):
            own.copy_(to_device(given, own.device))
        if self._graph is None:
            self.outputs = self._call()
        else:
            self._graph.replay()
        return tuple(output.clone() for output in self.outputs)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device; the host does not wait for its copy.

    Only from pinned memory does a copy to a GPU run beside what is under way there.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
