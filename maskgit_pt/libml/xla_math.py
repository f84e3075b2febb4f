"""float32 arithmetic in PyTorch, rounded as XLA rounds it on a CPU: multiply-add and logarithm."""

import functools

import numpy as np
import torch
from torch import Tensor


def float32(value: float) -> float:
    """The float32 number nearest to a Python number."""
    return float(np.float32(value))


# Natural logarithm of the Cephes library (logf; Moshier): coefficients of the polynomial in
# t = mantissa - 1, and log(2) in two parts, of which the high one has few bits.
_LOG_T8_TO_T6 = tuple(map(float32, (7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1)))
_LOG_T5_TO_T3 = tuple(map(float32, (-1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1)))
_LOG_T2_TO_T0 = tuple(map(float32, (2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1)))
_LOG2_LOW = float32(-2.12194440e-4)
_LOG2_HIGH = 0.693359375
_SQRT_HALF_BITS = 0x3F3504F3  # float32 0.70710678
_MANTISSA_BITS = 23


def log_(x: Tensor) -> Tensor:
    """log(x), x positive normal float32 and overwritten, rounded as XLA's CPU backend does.

    x = 2**e * (1 + t) with 1 + t in [sqrt(1/2), sqrt(2)). XLA evaluates Cephes' polynomial as three
    quadratic ones in t joined by powers of t**3, all with fused multiply-add. (Products with 1/2
    and with the high part of log(2) are exact, so that it does not matter whether they are fused.)
    """
    if x.device.type == "mps" and (torch.compiler.is_compiling() or not _fuses(x.device)):
        return torch.log(x)  # no float64 there to emulate the fused operation with
    bits = x.view(torch.int32)
    exponent = (bits - _SQRT_HALF_BITS).bitwise_right_shift_(_MANTISSA_BITS)
    bits.sub_(exponent, alpha=1 << _MANTISSA_BITS)
    t = x.sub_(1)  # x is now its own mantissa
    e = exponent.to(torch.float32)
    t2 = t * t
    t3 = t2 * t
    y = _quadratic(t, *_LOG_T8_TO_T6)
    y = fma(y, t3, _quadratic(t, *_LOG_T5_TO_T3))
    y = fma(y, t3, _quadratic(t, *_LOG_T2_TO_T0))
    y = fma(y, t3, e * _LOG2_LOW)
    return t.sub_(t2, alpha=0.5).add_(y).add_(e, alpha=_LOG2_HIGH)


def _quadratic(t: Tensor, a: float, b: float, c: float) -> Tensor:
    return fma(fma(t, a, b), t, c)


def fma(a: Tensor, b: Tensor | float, c: Tensor | float) -> Tensor:
    """a * b + c in float32, rounded once; floats must be float32 numbers. May overwrite a.

    Where torch's own operations do not fuse, and in traces (whose compiler decides), float64 does
    it: the product is exact there and the sum nearly so. For all that `jax_random.gumbel` meets it is equal.
    """
    if torch.compiler.is_compiling() or not _fuses(a.device):
        b, c = (v.to(torch.float64) if isinstance(v, Tensor) else v for v in (b, c))
        return (a.to(torch.float64) * b + c).to(torch.float32)
    return _fused(a, b, c)


def _fused(a: Tensor, b: Tensor | float, c: Tensor | float) -> Tensor:
    """Overwrites a if b is a tensor: in the cache, memory counts more than arithmetic."""
    if not isinstance(c, Tensor):
        c = torch.full((), c, dtype=torch.float32, device=a.device)
    if isinstance(b, Tensor):
        return torch.addcmul(c, a, b, out=a)
    return torch.add(c, a, alpha=b)  # two 0-d operands of addcmul would leave its vector loop


@functools.cache
def _fuses(device: torch.device) -> bool:
    """Whether `_fused` rounds once on this device, tried in vector loops and their remainders."""
    a = 1 + 2.0**-12
    c = -(1 + 2.0**-11)  # a * a = 1 + 2**-11 + 2**-24, whose last bit a rounded product loses
    full = functools.partial(torch.full, (211,), dtype=torch.float32, device=device)
    tries = [_fused(full(a), b, z) for b in (a, full(a)) for z in (c, full(c))]
    return all(bool((y == 2.0**-24).all()) for y in tries)
