"""Threefry-2x32 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).

A block turns a key of two 32-bit words and a counter of two 32-bit words into two random words.
"""

from torch import Tensor

WORD = 0xFFFFFFFF  # the largest 32-bit word
_PARITY = 0x1BD11BDA  # the constant of the key schedule
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def blocks(key_words: tuple[Tensor, Tensor], x0: Tensor, x1: Tensor) -> tuple[Tensor, Tensor]:
    """20 rounds of Threefry-2x32 on int32 words that wrap; every tensor is int32, keys are 0-d.

    A left rotation is x * 2**r + (x >>> 32 - r): torch has no unsigned shift (hence the mask), and
    one multiply-add is cheaper than a shift and an or.
    """
    k0, k1 = key_words
    schedule = (k0, k1, k0 ^ k1 ^ _PARITY)
    x0 = x0 + k0
    x1 = x1 + k1
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            x0 += x1
            wrapped = (x1 >> (32 - rotation)).bitwise_and_((1 << rotation) - 1)
            x1 = wrapped.add_(x1, alpha=1 << rotation).bitwise_xor_(x0)
        x0 += schedule[(group + 1) % 3]
        x1 += schedule[(group + 2) % 3] + (group + 1)
    return x0, x1


def block_of_integers(k0: int, k1: int, x0: int, x1: int) -> tuple[int, int]:
    """One block in plain integers."""
    schedule = (k0, k1, k0 ^ k1 ^ _PARITY)
    x0, x1 = x0 + k0 & WORD, x1 + k1 & WORD
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            x0 = x0 + x1 & WORD
            x1 = (x1 << rotation & WORD | x1 >> 32 - rotation) ^ x0
        x0 = x0 + schedule[(group + 1) % 3] & WORD
        x1 = x1 + schedule[(group + 2) % 3] + group + 1 & WORD
    return x0, x1
