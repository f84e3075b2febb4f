"""A convolution that can be differentiated any number of times at the price of convolutions.

PyTorch's own second derivative of a convolution with respect to its weight is a convolution whose kernel is
a whole feature map, one for each group: the R1 penalty at 256 px then needs four thousand of them, with
kernels up to 256 wide. Here every derivative is one of the three kernels that training uses anyway.

The reason is that sum(conv(x, w) * g) is linear in each of x, w and g. Its three gradients are the
convolution, the input's gradient and the weight's gradient, and each of them has the other two as its own
derivatives.
"""

import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import grad as kernels


class _Geometry(NamedTuple):
    stride: tuple[int, int]
    padding: tuple[int, int]
    groups: int


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    groups: int = 1,
) -> Tensor:
    """`torch.nn.functional.conv2d` with cheap derivatives of second and higher order.

    Args:
      x: [B, C, H, W].
      weight: [C', C / groups, kh, kw]; where it needs no gradient, `x` is not kept for the backward pass.
      bias: [C'].
      stride, padding, groups: as in PyTorch.

    Returns:
      [B, C', H', W'], under autocast in its dtype.
    """
    kind = x.device.type
    autocast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    if autocast and x.dtype != torch.float64:
        # Autocast does not reach the derivatives: all of them see what the convolution sees.
        dtype = torch.get_autocast_dtype(kind)
        x, weight = x.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    return _Convolution.apply(x, weight, bias, _Geometry(stride, padding, groups))


class Conv2d(nn.Conv2d):
    """`torch.nn.Conv2d` (zero padding given as numbers, no dilation) by `conv2d`."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H', W']."""
        return conv2d(x, self.weight, self.bias, self.stride, self.padding, self.groups)


def _wanted(ctx: Any) -> list[bool]:
    """Which derivatives anybody will use; R1 asks for that in the images alone, not in the weights."""
    wanted = list(ctx.needs_input_grad)
    if torch.compiler.is_compiling():
        return wanted
    for number, (node, _) in enumerate(ctx.next_functions):
        if wanted[number] and node is not None:
            # PyTorch says it of a leaf in `backward()` alone: those of `autograd.grad` it refuses.
            with contextlib.suppress(RuntimeError):
                wanted[number] = torch._C._will_engine_execute_node(node)
    return wanted


class _Convolution(torch.autograd.Function):
    """conv(x, w) + b."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, how: _Geometry) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        ctx.how, ctx.input_shape, ctx.weight_shape = how, x.shape, weight.shape
        return F.conv2d(x, weight, bias, how.stride, how.padding, groups=how.groups)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight), how, needed = ctx.saved_tensors, ctx.how, _wanted(ctx)
        grad_x = grad_weight = grad_bias = None
        # Nobody differentiates again: one call for all.
        if not torch.is_grad_enabled() and needed[1]:
            return *_first_derivatives(grad, x, weight, how, needed[:3]), None
        if needed[0]:
            grad_x = _InputGradient.apply(grad, weight, ctx.input_shape, how)
        if needed[1]:
            grad_weight = _WeightGradient.apply(x, grad, ctx.weight_shape, how)
        if needed[2]:
            grad_bias = grad.sum((0, 2, 3))
        return grad_x, grad_weight, grad_bias, None


def _first_derivatives(
    grad: Tensor, x: Tensor, weight: Tensor, how: _Geometry, needed: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """What PyTorch itself does backwards."""
    biases = [weight.shape[0]] if needed[2] else None
    no_dilation, not_transposed, no_output_padding = [1, 1], False, [0, 0]
    return torch.ops.aten.convolution_backward(
        grad, x, weight, biases, how.stride, how.padding, no_dilation, not_transposed,
        no_output_padding, how.groups, list(needed),
    )  # fmt: skip


class _InputGradient(torch.autograd.Function):
    """The gradient of sum(conv(x, w) * g) in x, which is linear in w and g."""

    @staticmethod
    def forward(
        ctx: Any, grad: Tensor, weight: Tensor, shape: torch.Size, how: _Geometry
    ) -> Tensor:
        ctx.save_for_backward(grad if ctx.needs_input_grad[1] else None, weight)
        ctx.how, ctx.weight_shape = how, weight.shape
        return kernels.conv2d_input(shape, weight, grad, how.stride, how.padding, groups=how.groups)

    @staticmethod
    def backward(ctx: Any, x: Tensor) -> tuple[Tensor | None, ...]:
        (grad, weight), how, needed = ctx.saved_tensors, ctx.how, _wanted(ctx)
        in_grad = _Convolution.apply(x, weight, None, how) if needed[0] else None
        in_weight = None
        if needed[1]:
            in_weight = _WeightGradient.apply(x, grad, ctx.weight_shape, how)
        return in_grad, in_weight, None, None


class _WeightGradient(torch.autograd.Function):
    """The gradient of sum(conv(x, w) * g) in w, which is linear in x and g."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, grad: Tensor, shape: torch.Size, how: _Geometry) -> Tensor:
        ctx.save_for_backward(x, grad)
        ctx.how = how
        return kernels.conv2d_weight(x, shape, grad, how.stride, how.padding, groups=how.groups)

    @staticmethod
    def backward(ctx: Any, weight: Tensor) -> tuple[Tensor | None, ...]:
        (x, grad), how, needed = ctx.saved_tensors, ctx.how, _wanted(ctx)
        in_x = _InputGradient.apply(grad, weight, x.shape, how) if needed[0] else None
        in_grad = _Convolution.apply(x, weight, None, how) if needed[1] else None
        return in_x, in_grad, None, None
