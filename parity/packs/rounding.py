"""Arithmetic of fewer bits, put into a network while a context lasts."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_DROPPED_BITS = 13  # of float32's 23; TF32 keeps 10


@contextlib.contextmanager
def in_dtype(model: nn.Module, dtype: torch.dtype) -> Iterator[nn.Module]:
    """The model in another dtype; its weights come back bit by bit."""
    before = {name: p.data for name, p in model.named_parameters()}
    try:
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
        yield model
    finally:
        for name, parameter in model.named_parameters():
            parameter.data = before[name]


def in_bfloat16(model: nn.Module) -> contextlib.AbstractContextManager:
    """Weights and activations in bfloat16."""
    return in_dtype(model, torch.bfloat16)


def in_float16(model: nn.Module) -> contextlib.AbstractContextManager:
    """Weights and activations in float16."""
    return in_dtype(model, torch.float16)


def autocast(model: nn.Module) -> contextlib.AbstractContextManager:
    """Products in bfloat16, as PyTorch's autocast does."""
    return torch.autocast("cpu", torch.bfloat16)


def rounded_weights(dtype: torch.dtype) -> Callable[[nn.Module], Any]:
    """float32 arithmetic with weights that went through another dtype."""

    @contextlib.contextmanager
    def patch(model: nn.Module) -> Iterator[None]:
        before = {name: p.data for name, p in model.named_parameters()}
        try:
            for parameter in model.parameters():
                parameter.data = parameter.data.to(dtype).to(parameter.dtype)
            yield
        finally:
            for name, parameter in model.named_parameters():
                parameter.data = before[name]

    return patch


def tf32(attention: bool, truncate: bool) -> Callable[[nn.Module], Any]:
    """Products of numbers cut to TF32's 10 bits, added up in float32.

    Args:
      attention: in attention too, not in linear layers and convolutions alone.
      truncate: drop the other bits instead of rounding.
    """
    return lambda model: _Tf32(attention, truncate)


class _Tf32(TorchFunctionMode):
    def __init__(self, attention: bool, truncate: bool):
        super().__init__()
        self.attention, self.truncate = attention, truncate

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention and self.attention:
            query, key, value = map(self._cut, args[:3])
            with torch._C.DisableTorchFunction():
                probs = (query @ key.mT * query.shape[-1] ** -0.5).softmax(-1)
                return self._cut(probs) @ value
        if function in (F.linear, F.conv2d, torch.conv2d):
            args = (*map(self._cut, args[:2]), *args[2:])
        return function(*args, **kwargs)

    def _cut(self, values: Tensor) -> Tensor:
        """Halves away from zero, as the hardware rounds."""
        if values.dtype != torch.float32:
            return values
        with torch._C.DisableTorchFunction():
            bits = values.contiguous().view(torch.int32)
            bits = bits if self.truncate else bits + (1 << (_DROPPED_BITS - 1))
            return (bits & -(1 << _DROPPED_BITS)).view(torch.float32)
