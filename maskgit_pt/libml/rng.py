"""Where the noise comes from: JAX's streams, PyTorch's generators, or one stream a sample.

- `JaxNoise` makes the draws of the official code, whose noise depends on the shape of the batch;
- `TorchNoise` makes PyTorch's own;
- `SampleNoise` gives every sample a stream of its own, so that a sample does not depend on the others
  in its batch.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from maskgit_pt.libml import jax_random
from maskgit_pt.libml.jax_random import Key

Shape = tuple[int, ...]


class Noise(Protocol):
    """A source of noise, which moves on with every draw."""

    def uniform(self, shape: Shape, device: torch.device) -> Tensor:
        """float32 in [0, 1)."""

    def gumbel(self, shape: Shape, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Standard Gumbel noise."""

    def categorical(self, logits: Tensor, probs: Tensor) -> Tensor:
        """Draws int64 [...] from `probs` = softmax(`logits`), [..., K]."""


class JaxNoise:
    """JAX's draws: every draw uses the second half of `split(key)`, the first half is the next key.

    Args:
      key: the key.
      compiled: let `torch.compile` make one kernel of each draw, which otherwise is a hundred small ones.
    """

    covers_class_token = True  # the official code draws for the class position as well

    def __init__(self, key: Key, compiled: bool = False):
        self.key, self.compiled = key, compiled

    def _next(self) -> Key:
        self.key, key = jax_random.split(self.key)
        return key

    def ahead(self, draws: int) -> Key:
        """The keys of so many draws, data [draws, 2]; the noise itself stays where it is."""
        later = JaxNoise(self.key)
        data = [later._next().data for _ in range(draws)]
        return Key(torch.stack(data), self.key.partitionable)

    def uniform(self, shape: Shape, device: torch.device) -> Tensor:
        draw = _maybe_compiled(jax_random.uniform, self.compiled)
        return draw(self._next(), shape, device=device)

    def gumbel(self, shape: Shape, dtype: torch.dtype, device: torch.device) -> Tensor:
        draw = _maybe_compiled(jax_random.gumbel, self.compiled)
        return draw(self._next(), shape, dtype, device)

    def categorical(self, logits: Tensor, probs: Tensor) -> Tensor:
        draw = _maybe_compiled(jax_random.categorical, self.compiled)
        return draw(self._next(), logits)


class PreparedJaxNoise(JaxNoise):
    """`JaxNoise` with the keys of all draws made beforehand, e.g. on a GPU.

    Args:
      keys: of `JaxNoise.ahead`.
      compiled: as in `JaxNoise`.
    """

    def __init__(self, keys: Key, compiled: bool = False):
        super().__init__(keys, compiled)
        self._used = 0

    def _next(self) -> Key:
        if self._used == len(self.key):
            raise IndexError(f"keys of {self._used} draws were prepared, and one more is wanted")
        self._used += 1
        return self.key[self._used - 1]


@functools.cache
def _compile(function: Callable) -> Callable:
    return torch.compile(function, dynamic=False)


def _maybe_compiled(function: Callable, compiled: bool) -> Callable:
    return _compile(function) if compiled else function


class TorchNoise:
    """PyTorch's draws, from a generator or (None) the global one."""

    def __init__(self, generator: torch.Generator | None = None):
        self.generator = generator

    def uniform(self, shape: Shape, device: torch.device) -> Tensor:
        return torch.rand(shape, generator=self.generator, device=device)

    def gumbel(self, shape: Shape, dtype: torch.dtype, device: torch.device) -> Tensor:
        noise = torch.empty(shape, dtype=dtype, device=device)
        return -noise.exponential_(generator=self.generator).log_()

    def categorical(self, logits: Tensor, probs: Tensor) -> Tensor:
        """argmax(probs / exponential): the same distribution without logarithms."""
        return (probs / torch.empty_like(probs).exponential_(generator=self.generator)).argmax(-1)


class SampleNoise:
    """One stream of uniform numbers a sample, `jax_random.uniform_stream` of its key.

    The first axis of every shape is that of the samples. A code is drawn by inverting the cumulated
    probabilities: one number a position instead of one a code.

    Args:
      keys: one a sample, data [B, 2]; see `sample_noise`.
      compiled: as in `JaxNoise`.
    """

    _DRAWS_AHEAD = 16  # threefry is many small operations: ask for many numbers at a time

    def __init__(self, keys: Key, compiled: bool = False):
        self.keys, self.compiled = keys, compiled
        self._position = 0  # in the streams, behind what is drawn ahead
        self._ahead: Tensor | None = None  # [B, numbers], not yet used

    @property
    def position(self) -> int:
        """The number of the next number in the streams."""
        return self._position - (0 if self._ahead is None else self._ahead.shape[1])

    def skip_to(self, position: int) -> None:
        """Goes on from there."""
        self._position, self._ahead = position, None

    def uniform(self, shape: Shape, device: torch.device) -> Tensor:
        count = torch.Size(shape[1:]).numel()
        if self._ahead is None or self._ahead.shape[1] < count:
            start = self.position
            stop = start + self._DRAWS_AHEAD * count
            self._ahead = self._draw(start, stop, device)
            self._position = stop
        numbers, self._ahead = self._ahead[:, :count], self._ahead[:, count:]
        return numbers.reshape(shape)

    def _draw(self, start: int, stop: int, device: torch.device) -> Tensor:
        if not self.compiled:
            return jax_random.uniform_stream(self.keys, start, stop, device)
        # Where in the stream is a tensor here, so that one compilation serves everywhere.
        data = self.keys.data.to(device=device, dtype=torch.int32, non_blocking=True)
        return _compile(jax_random.stream_at)(data, torch.arange(start, stop, device=device))

    def gumbel(self, shape: Shape, dtype: torch.dtype, device: torch.device) -> Tensor:
        u = self.uniform(shape, device).to(dtype).clamp_min(torch.finfo(torch.float32).tiny)
        return -torch.log(-torch.log(u))

    def categorical(self, logits: Tensor, probs: Tensor) -> Tensor:
        cumulated = probs.cumsum(-1)  # [B, ..., K]
        total = cumulated[..., -1:]
        u = self.uniform(probs.shape[:-1], probs.device)[..., None]
        # Below the total, so that the code found has a probability.
        threshold = torch.minimum(u * total, total.nextafter(torch.zeros_like(total)))
        return torch.searchsorted(cumulated, threshold, right=True)[..., 0]


def sample_noise(seed: int, indices: Sequence[int]) -> SampleNoise:
    """The noise of the samples with these indices: keys `fold_in(PRNGKey(seed), index)`."""
    return SampleNoise(jax_random.fold_in_each(jax_random.PRNGKey(seed), indices))


Rng = Key | torch.Generator | Noise | None


def noise_of(rng: Rng) -> Noise:
    """The source of noise behind a JAX key, a `torch.Generator` or None (PyTorch's global one).

    Raises:
      TypeError: `rng` is no source of noise.
    """
    if isinstance(rng, Key):
        return JaxNoise(rng)
    if rng is None or isinstance(rng, torch.Generator):
        return TorchNoise(rng)
    if all(hasattr(rng, name) for name in ("uniform", "gumbel", "categorical")):
        return rng
    raise TypeError(
        f"rng is a {type(rng).__name__}; accepted: maskgit_pt.libml.jax_random.PRNGKey(seed), "
        "a torch.Generator, None, a maskgit_pt.libml.rng.Noise"
    )


def normal(noise: Noise, shape: Shape, device: torch.device) -> Tensor:
    """Standard normal noise, float32, from uniform numbers."""
    u = noise.uniform(shape, device).double()  # in [0, 1), multiples of 2**-24 at most
    return (math.sqrt(2.0) * torch.erfinv(2 * (u + 2.0**-25) - 1)).float()


def gumbel(rng: Rng, shape: Shape, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Standard Gumbel noise of `shape`; a key is used as it is, without splitting it."""
    if isinstance(rng, Key):
        return jax_random.gumbel(rng, shape, dtype, device)
    return noise_of(rng).gumbel(shape, dtype, device)
