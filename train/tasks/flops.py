"""How much work networks do: operations counted on tensors without data."""

from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


def count_operations(function: Callable[[], Any]) -> int:
    """Floating-point operations of the convolutions and matrix products that a function calls.

    A multiply-add counts as two; backward passes count. On the device "meta" nothing is computed.
    """
    with _Counter() as counter:
        function()
    return counter.total


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
