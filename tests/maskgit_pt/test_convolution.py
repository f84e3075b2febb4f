"""The convolution with cheap higher derivatives, and what R1 costs with it."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from maskgit_pt.configs import vqgan_config
from maskgit_pt.libml import losses
from maskgit_pt.nets import convolution, discriminator
from maskgit_pt.nets.convolution import conv2d
from maskgit_pt.nets.discriminator import Discriminator

CASES = {  # channels in, channels out, kernel, stride, padding, groups
    "plain": (2, 3, (3, 3), (1, 1), (1, 1), 1),
    "blur": (3, 3, (4, 4), (2, 2), (1, 1), 3),
    "odd": (2, 4, (2, 3), (2, 1), (0, 1), 2),
}


def _inputs(case, dtype=torch.float64):
    channels, filters, kernel, stride, padding, groups = CASES[case]
    torch.manual_seed(0)
    x = torch.randn(2, channels, 6, 5, dtype=dtype, requires_grad=True)
    weight = torch.randn(filters, channels // groups, *kernel, dtype=dtype, requires_grad=True)
    bias = torch.randn(filters, dtype=dtype, requires_grad=True)
    return (x, weight, bias), {"stride": stride, "padding": padding, "groups": groups}


@pytest.mark.parametrize("case", CASES)
def test_derivatives(case):
    inputs, how = _inputs(case)
    assert gradcheck(lambda *values: conv2d(*values, **how), inputs)
    assert gradgradcheck(lambda *values: conv2d(*values, **how), inputs)


@pytest.mark.parametrize("case", CASES)
def test_equals_pytorch_to_the_third_derivative(case):
    found = []
    for function in (conv2d, F.conv2d):
        inputs, how = _inputs(case)
        value = (function(*inputs, **how) ** 3).sum()
        for _ in range(3):
            gradients = torch.autograd.grad(value, inputs, create_graph=True)
            value = sum((gradient**2).sum() for gradient in gradients) * 1e-3
        found.append([value, *gradients])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)


def test_autocast_reaches_every_derivative():
    (x, weight, bias), how = _inputs("plain", torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = conv2d(x, weight, bias, **how)
        (gradient,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    gradient.square().sum().backward()
    assert out.dtype == torch.bfloat16
    assert gradient.dtype == weight.grad.dtype == torch.float32
    wanted = torch.autograd.grad(conv2d(x, weight, bias, **how).sum(), x)[0]
    torch.testing.assert_close(gradient, wanted, rtol=0.05, atol=0.1)


def test_can_be_compiled():
    inputs, how = _inputs("plain", torch.float32)
    compiled = torch.compile(lambda *x: conv2d(*x, **how), backend="aot_eager", fullgraph=True)
    found = torch.autograd.grad(compiled(*inputs).square().sum(), inputs)
    wanted = torch.autograd.grad(conv2d(*inputs, **how).square().sum(), inputs)
    torch.testing.assert_close(found, wanted)


class _Convolutions(TorchDispatchMode):
    """Counts calls of convolution kernels, and notes the widest kernel."""

    def __init__(self):
        super().__init__()
        self.calls, self.widest = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.convolution.default:
            self.widest = max(self.widest, *args[1].shape[2:])
        self.calls += "convolution" in function.name()
        return function(*args, **(kwargs or {}))


def _r1_step(size):
    """Loss and penalty of a discriminator step, and its gradients, counted on tensors without data."""
    config = vqgan_config.get_config()
    config.image_size = size
    with torch.device("meta"):
        net, images = Discriminator(config), torch.empty(1, 3, size, size)
    with _Convolutions() as counted:
        logits, penalty = losses.r1_gradient_penalty(net, images)
        (logits.sum() + net(images).sum() + penalty).backward()
    assert all(p.grad is not None for p in net.parameters())
    return counted


def test_convolutions_of_a_discriminator_step_with_r1():
    counted = _r1_step(256)
    assert counted.calls == 212
    assert counted.widest == 4


def test_without_the_function_r1_costs_thousands(monkeypatch):
    """The control: PyTorch's own derivatives."""
    _use_pytorchs(monkeypatch)
    counted = _r1_step(64)
    assert counted.calls > 3000
    assert counted.widest == 64


def test_r1_has_the_gradients_of_pytorch(monkeypatch):
    config = vqgan_config.get_config()
    config.image_size = 8
    torch.manual_seed(0)
    net = Discriminator(config).double()
    images = torch.rand(1, 3, 8, 8, dtype=torch.float64)

    def gradients():
        net.zero_grad()
        logits, penalty = losses.r1_gradient_penalty(net, images, 10.0)
        (logits.sum() + penalty).backward()
        return {name: p.grad.clone() for name, p in net.named_parameters()}

    ours = gradients()
    _use_pytorchs(monkeypatch)
    for name, wanted in gradients().items():
        scale = wanted.abs().max()
        torch.testing.assert_close(ours[name] / scale, wanted / scale, rtol=0, atol=1e-13)


def _use_pytorchs(monkeypatch):
    def plain(x, weight, bias=None, stride=(1, 1), padding=(0, 0), groups=1):
        return F.conv2d(x, weight, bias, stride, padding, groups=groups)

    for module in (convolution, discriminator):
        monkeypatch.setattr(module, "conv2d", plain)
