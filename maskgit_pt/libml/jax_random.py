"""JAX's random streams in PyTorch: the same keys give the same bits, uniforms and Gumbel noise.

Threefry (`threefry.py`) turns a key of two 32-bit words and a counter of two 32-bit words into two random
words. JAX counts in two ways, chosen by its switch `jax_threefry_partitionable`:

- original (False; the default while MaskGIT's code was written): n draws count 0..n-1, padded by
  one 0 if n is odd. The first half of the counts are the first words, the second half the second
  words; all first outputs come before all second outputs. A draw depends on n.
- partitionable (True; the default since JAX 0.5): element i counts with the high and the low word
  of the 64-bit number i; a 32-bit draw is the two outputs xor-ed. A draw does not depend on n.

What is equal to JAX (checked against jax 0.10.2 on a CPU with fused multiply-add):

- keys, splits, folds, bits, float32 uniforms: bit for bit, on every device.
- float32 Gumbel noise: bit for bit equal to JAX **on a CPU**, for each of the 2**23 values that a
  float32 uniform takes, because `xla_math` repeats the steps of XLA's CPU logarithm; `torch.log`
  gives another last bit for 23 % of them. Other devices take the same steps (tried on CPUs only),
  except Apple's MPS where multiply-add is not fused (then `torch.log`). JAX's own GPU and TPU
  backends have other logarithms and differ from its CPU backend in last bits.
- float64 Gumbel noise: up to the last bits of two logarithms.

On a CPU the work is done in chunks that stay in the cache. On other devices, and while
torch.compile or torch.export trace, it is one expression on whole tensors without control flow on
values, which Inductor fuses. Both give the same values. Operations on keys are many tiny ones: keep
keys on the CPU and let the draws move them (`device=`).
"""

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree

from maskgit_pt.libml import threefry, xla_math
from maskgit_pt.libml.threefry import WORD

Device = torch.device | str | None  # where a draw is made; None: where the key is

_FEW = 8  # keys that are split in plain integers
# Elements of a chunk on a CPU. Operations on at most 2**15 elements stay on the calling thread; the
# arrays at work then fit a second-level cache. Threads meet after every operation: four or more pay
# for that, two gain little and lose a hundredfold when another process holds one of the cores.
_SERIAL_CHUNK = 1 << 15
_CHUNK_PER_THREAD = 1 << 16


@dataclass(frozen=True, eq=False)
class Key:
    """One or more keys, like JAX's raw uint32 keys, and the way they count.

    Attributes:
      data: int64 [..., 2], each entry a word in [0, 2**32).
      partitionable: which of JAX's two layouts every draw from this key follows.

    Several keys (`data` of more than one axis) can be indexed and iterated, so that
    `rng, sample_rng = split(rng)` reads as in JAX. A key is a pytree whose leaf is `data`.
    """

    data: Tensor
    partitionable: bool = False

    @classmethod
    def from_words(cls, words: object, partitionable: bool = False) -> "Key":
        """The key of given words, e.g. `np.asarray(jax_key)` or `[hi, lo]`.

        Raises ValueError unless `words` are integers in [0, 2**32) whose last axis has size 2.
        """
        array = words.cpu().numpy() if isinstance(words, Tensor) else np.asarray(words)
        if array.shape[-1:] != (2,) or array.dtype.kind not in "iu":
            found = f"shape {array.shape}, dtype {array.dtype}"
            raise ValueError(f"key words: found {found}; need integers of shape [..., 2]")
        if array.size and (array.min() < 0 or array.max() > WORD):
            raise ValueError(f"key words {array.ravel().tolist()[:8]}: each must be in [0, 2**32)")
        return cls(torch.from_numpy(array.astype(np.int64)), partitionable)

    def to(self, device: torch.device | str) -> "Key":
        return Key(self.data.to(device), self.partitionable)

    def __getitem__(self, index) -> "Key":
        if self.data.ndim < 2:
            raise IndexError("a single key cannot be indexed; split it first")
        return Key(self.data[index], self.partitionable)

    def __len__(self) -> int:
        return self.data.shape[0] if self.data.ndim > 1 else 1

    def __iter__(self) -> Iterator["Key"]:
        if self.data.ndim < 2:
            raise TypeError("a single key cannot be iterated; split it first")
        return (Key(data, self.partitionable) for data in self.data.unbind())


_DATA = _pytree.GetAttrKey("data")
_pytree.register_pytree_node(
    Key,
    lambda key: ([key.data], key.partitionable),
    lambda leaves, partitionable: Key(*leaves, partitionable),
    serialized_type_name="maskgit_pt.libml.jax_random.Key",
    flatten_with_keys_fn=lambda key: ([(_DATA, key.data)], key.partitionable),
)


def PRNGKey(seed: int, partitionable: bool = False) -> Key:  # noqa: N802 (JAX's name)
    """The key of an integer seed: `[seed >> 32, seed & 0xffffffff]`.

    Seeds of 32 bits, in [-2**31, 2**32), give the key of JAX's default 32-bit mode: the high word
    is 0, also for negative ones (-1 is [0, 0xffffffff]). Longer seeds give the key of JAX's 64-bit
    mode, the two's complement: 2**40 + 123 is [256, 123], where the 32-bit mode drops the high
    word, [0, 123]. The 64-bit mode's key of a negative 32-bit seed is
    `Key.from_words([0xffffffff, seed & 0xffffffff])`.

    Raises TypeError if `seed` is no integer, ValueError if it is outside [-2**63, 2**63).
    """
    if isinstance(seed, bool) or not hasattr(seed, "__index__"):
        raise TypeError(f"seed {seed!r}: need an integer")
    seed = operator.index(seed)
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"seed {seed}: need an integer in [-2**63, 2**63)")
    high = 0 if -(2**31) <= seed < 2**32 else seed >> 32 & WORD
    return Key(torch.tensor([high, seed & WORD]), partitionable)


def split(key: Key, num: int = 2) -> Key:
    """`num` new keys: data [num, 2]."""
    num = _size(key, (num,), words=2)
    if 0 < num <= _FEW and key.data.device.type == "cpu" and not torch.compiler.is_compiling():
        return Key(torch.tensor(_split_on_host(key, num)), key.partitionable)
    first, second = threefry.blocks(_words_of(key), *_counters(key, 0, num, 2 * num))
    if key.partitionable:
        pairs = torch.stack([first, second], dim=-1)
    else:
        pairs = torch.cat([first, second]).reshape(num, 2)
    return Key(pairs.to(torch.int64) & WORD, key.partitionable)


def _split_on_host(key: Key, num: int) -> list[list[int]]:
    """`split` in plain integers: for a few keys, a hundred tensor operations take longer."""
    if key.data.shape != (2,):
        raise ValueError(f"key data of shape {list(key.data.shape)}: need one key, shape [2]")
    k0, k1 = key.data.tolist()
    if key.partitionable:
        return [list(threefry.block_of_integers(k0, k1, 0, i)) for i in range(num)]
    pairs = [threefry.block_of_integers(k0, k1, i, i + num) for i in range(num)]
    words = [first for first, _ in pairs] + [second for _, second in pairs]
    return [words[i : i + 2] for i in range(0, 2 * num, 2)]


def fold_in(key: Key, data: int) -> Key:
    """A new key from `key` and a number in [0, 2**32), the same for both layouts.

    Raises ValueError for a number outside that range (JAX: OverflowError).
    """
    if not 0 <= data <= WORD:
        raise ValueError(f"fold_in of {data}: need an integer in [0, 2**32)")
    count = torch.full((1,), data, dtype=torch.int64, device=key.data.device).to(torch.int32)
    words = torch.cat(threefry.blocks(_words_of(key), torch.zeros_like(count), count))
    return Key(words.to(torch.int64) & WORD, key.partitionable)


def fold_in_each(key: Key, data: Sequence[int]) -> Key:
    """`fold_in(key, number)` for each of several numbers at once: data [len(data), 2]."""
    wrong = [number for number in data if not 0 <= number <= WORD]
    if wrong:
        raise ValueError(f"fold_in of {wrong[0]}: need an integer in [0, 2**32)")
    count = torch.tensor(list(data), dtype=torch.int64, device=key.data.device).to(torch.int32)
    words = torch.stack(threefry.blocks(_words_of(key), torch.zeros_like(count), count), -1)
    return Key(words.to(torch.int64) & WORD, key.partitionable)


def random_bits(
    key: Key, shape: Sequence[int], bit_width: int = 32, device: Device = None
) -> Tensor:
    """Uniform bits as int64: values in [0, 2**32), or for `bit_width` 64 the bit pattern itself."""
    if bit_width == 64:
        return _bits64(key, shape, device)
    if bit_width != 32:
        raise ValueError(f"bit_width {bit_width}: need 32 or 64")
    return _draw(key, shape, torch.int64, lambda words: words.to(torch.int64) & WORD, device)


def uniform(
    key: Key,
    shape: Sequence[int],
    dtype: torch.dtype = torch.float32,
    minval: float = 0.0,
    maxval: float = 1.0,
    device: Device = None,
) -> Tensor:
    """Uniform numbers in [minval, maxval), float32 or float64 (else ValueError).

    The top mantissa bits u of a draw, scaled: `max(minval, u * (maxval - minval) + minval)`, where
    XLA's CPU backend fuses multiply and add, as is done here in float32. In float64 the last bit
    can differ from JAX, except for the range [0, 1).
    """
    _check_float(dtype)
    if dtype == torch.float64:
        unit = _unit64(_bits64(key, shape, device))
        return (unit * (maxval - minval) + minval).clamp_min_(minval)
    low = xla_math.float32(minval)
    width = xla_math.float32(xla_math.float32(maxval) - low)

    def scaled(words: Tensor) -> Tensor:
        return xla_math.fma(_unit32(words), width, low).clamp_min_(low)

    return _draw(key, shape, dtype, _unit32 if (low, width) == (0, 1) else scaled, device)


def gumbel(
    key: Key, shape: Sequence[int], dtype: torch.dtype = torch.float32, device: Device = None
) -> Tensor:
    """Standard Gumbel noise -log(-log(u)) of uniforms in [tiny, 1), float32 or float64.

    This is JAX's default mode ("low"): one draw a number. See the module's text on exactness.
    """
    _check_float(dtype)
    if dtype == torch.float64:
        u = _unit64(_bits64(key, shape, device)).clamp_min_(torch.finfo(dtype).tiny)
        return torch.log(torch.log(u).neg_()).neg_()
    return _draw(key, shape, dtype, _gumbel_of_words, device)


def uniform_stream(keys: Key, start: int, stop: int, device: Device = None) -> Tensor:
    """The uniform numbers `start` to `stop` of each key's endless stream.

    Args:
      keys: several keys, data [B, 2].
      start, stop: where in the stream, 0 <= start <= stop.
      device: where the numbers are made.

    Returns: float32 [B, stop - start] in [0, 1). Row b is `uniform(key_b, (stop,))[start:]` in the
    partitionable layout, whatever layout the keys are marked with: there a draw does not depend on how
    many are made.
    """
    data = keys.data.to(device=device, dtype=torch.int32, non_blocking=True)
    index = torch.arange(start, stop, device=data.device)
    return stream_at(data, index)


def stream_at(data: Tensor, index: Tensor) -> Tensor:
    """`uniform_stream` of key words int32 [B, 2] at positions int64 [n]: float32 [B, n]."""
    counters = (index >> 32).to(torch.int32), index.to(torch.int32)
    first, second = threefry.blocks((data[:, :1], data[:, 1:]), *counters)
    return _unit32(first ^ second)


def categorical(key: Key, logits: Tensor) -> Tensor:
    """Draws an index along the last axis of unnormalized log probabilities.

    Args:
      key: one key; moved to the device of `logits`.
      logits: [..., V], V > 0, float32 or float64 (else ValueError).

    Returns: int64 [...], argmax(logits + Gumbel noise); the first one on ties, as in JAX.
    """
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise ValueError(f"logits of shape {list(logits.shape)}: need [..., V] with V > 0")
    noise = gumbel(key, logits.shape, logits.dtype, logits.device)
    return torch.argmax(noise + logits, dim=-1)


# Words --------------------------------------------------------------------------------------------


def _words_of(key: Key, device: Device = None) -> tuple[Tensor, Tensor]:
    """The two words of a single key as 0-d int32 tensors."""
    if key.data.shape != (2,):
        raise ValueError(f"key data of shape {list(key.data.shape)}: need one key, shape [2]")
    # Not blocking: two words leave for a GPU without waiting for the work under way there.
    words = key.data.to(device=device, dtype=torch.int32, non_blocking=True)
    return words[0], words[1]


def _counters(
    key: Key, start: int, stop: int, draws: int, device: Device = None
) -> tuple[Tensor, Tensor]:
    """Counter words, int32 [stop - start] each, of the blocks (pairs of outputs) from `start` on.

    `draws` is the number of 32-bit draws; it matters only to the original layout.
    """
    device = key.data.device if device is None else device
    index = torch.arange(start, stop, device=device)
    if key.partitionable:
        return (index >> 32).to(torch.int32), index.to(torch.int32)
    second = index + (draws + 1) // 2
    if draws % 2:
        second = second * (second < draws)  # the padding: the last count is 0
    return index.to(torch.int32), second.to(torch.int32)


def _draw(
    key: Key,
    shape: Sequence[int],
    dtype: torch.dtype,
    function: Callable[[Tensor], Tensor],
    device: Device,
) -> Tensor:
    """`function` (elementwise, to `dtype`) of 32-bit draws, given to it as int32 words."""
    size = _size(key, shape)
    device = torch.device(key.data.device if device is None else device)
    words = _words_of(key, device)
    blocks = size if key.partitionable else (size + 1) // 2
    if torch.compiler.is_compiling() or device.type != "cpu":
        first, second = threefry.blocks(words, *_counters(key, 0, blocks, size, device))
        draws = first ^ second if key.partitionable else torch.cat([first, second])[:size]
        return function(draws).reshape(shape)
    out = torch.empty(size, dtype=dtype, device=device)
    threads = torch.get_num_threads()
    chunk = _CHUNK_PER_THREAD * threads if threads >= 4 else _SERIAL_CHUNK
    for start in range(0, blocks, chunk):
        stop = min(start + chunk, blocks)
        first, second = threefry.blocks(words, *_counters(key, start, stop, size))
        if key.partitionable:
            out[start:stop] = function(first ^ second)
        else:
            out[start:stop] = function(first)
            rest = out[blocks + start : blocks + stop]  # without the padding, if any
            rest.copy_(function(second)[: rest.numel()])
    return out.reshape(shape)


def _bits64(key: Key, shape: Sequence[int], device: Device) -> Tensor:
    """64-bit draws as int64 bit patterns: the two outputs of a block are the high and low word."""
    size = _size(key, shape, words=2)
    device = key.data.device if device is None else device
    counters = _counters(key, 0, size, 2 * size, device)
    high, low = threefry.blocks(_words_of(key, device), *counters)
    bits = high.to(torch.int64) << 32 | low.to(torch.int64) & WORD
    return bits.reshape(shape)


def _size(key: Key, shape: Sequence[int], words: int = 1) -> int:
    """The number of elements, of `words` 32-bit draws each."""
    if any(length < 0 for length in shape):
        raise ValueError(f"shape {tuple(shape)}: lengths must be at least 0")
    size = math.prod(shape)
    if not key.partitionable and words * size >= WORD:  # JAX goes on with further keys from here
        raise ValueError(f"shape {tuple(shape)}: the original layout has less than 2**32 - 1 draws")
    return size


# Floating point -----------------------------------------------------------------------------------


def _check_float(dtype: torch.dtype) -> None:
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"dtype {dtype}: random numbers are float32 or float64")


def _unit32(words: Tensor) -> Tensor:
    """int32 words to float32 in [0, 1): the top 23 bits, as the mantissa of [1, 2), minus 1."""
    return (words >> 9).bitwise_and_((1 << 23) - 1).to(torch.float32).mul_(2.0**-23)


def _unit64(bits: Tensor) -> Tensor:
    """int64 bit patterns to float64 in [0, 1): the top 52 bits."""
    return (bits >> 12).bitwise_and_((1 << 52) - 1).to(torch.float64).mul_(2.0**-52)


def _gumbel_of_words(words: Tensor) -> Tensor:
    u = _unit32(words).clamp_min_(torch.finfo(torch.float32).tiny)
    return xla_math.log_(xla_math.log_(u).neg_()).neg_()
