"""How much work networks do, counted on tensors without data, and how much a machine could do."""

import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


def count_operations(function: Callable[[], Any]) -> int:
    """Floating-point operations of the convolutions and matrix products that a function calls.

    A multiply-add counts as two; backward passes count. On the device "meta" nothing is computed.
    """
    with _Counter() as counter:
        function()
    return counter.total


def count_saved_bytes(function: Callable[[], Any], constants: Iterable[Tensor] = ()) -> int:
    """Bytes that the calls of a function keep for the backward pass, each storage once.

    Args:
      function: called once.
      constants: tensors that are there anyway: parameters.
    """
    known = {tensor.untyped_storage()._cdata for tensor in constants}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            kept[storage._cdata] = storage  # held, so that its address is not used again
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        function()
    return sum(storage.nbytes() for storage in kept.values())


class _Counter(TorchDispatchMode):
    """PyTorch's own formulas. (Its `FlopCounterMode` cannot follow a gradient of a gradient.)"""

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        formula = flop_registry.get(function._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


def matrix_rate(device: torch.device, dtype: torch.dtype, seconds: float = 0.3) -> float:
    """Operations a second of a plain matrix product here: what MFU is a share of.

    Args:
      device, dtype: of the matrices.
      seconds: how long to measure, after a warm-up.
    """
    size, calls = (8192, 4) if device.type == "cuda" else (1024, 1)
    if device.type == "cpu":
        _rate(device, dtype, 256, 1, 0.0)  # the first call prepares
        if _rate(device, dtype, 256, 1, 0.0) * seconds < 2 * size**3:
            size = 256  # a processor without instructions for this dtype
    _rate(device, dtype, size, calls, seconds / 3)
    return _rate(device, dtype, size, calls, seconds)


def _rate(device: torch.device, dtype: torch.dtype, size: int, calls: int, seconds: float) -> float:
    """Operations a second, over so many calls at a time for so many seconds.

    On average; on a CPU, which other programs use as well, at best.
    """
    a = torch.randn(size, size, device=device, dtype=dtype)
    out = torch.empty_like(a)
    times, start = [], time.perf_counter()
    while not times or sum(times) < seconds:
        for _ in range(calls):
            torch.mm(a, a, out=out)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        now = time.perf_counter()
        times.append(now - start)
        start = now
    typical = min(times) if device.type == "cpu" else sum(times) / len(times)
    return 2 * size**3 * calls / typical
