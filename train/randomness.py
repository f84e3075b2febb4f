"""Random numbers that depend on what they are for, never on who draws them, or when."""

import hashlib

import numpy as np


def generator(seed: int, stream: str, *numbers: int) -> np.random.Generator:
    """A generator of its own for every combination of arguments.

    Two calls with the same arguments give the same numbers, in any process and on any machine; any other
    arguments give independent ones. So a crop can depend on (seed, image) and a mask on (seed, step,
    sample) alone, whatever the number of processes and workers.

    Args:
      seed: of the run.
      stream: what the numbers are for, e.g. "crop".
      *numbers: for which of them, e.g. the image and the crop; as many as wanted, any integers.

    Returns:
      A generator over Philox, a counter-based cipher, whose 128-bit key is a hash of the arguments.
      Making one takes a few microseconds.
    """
    name = repr((int(seed), str(stream), *map(int, numbers)))
    digest = hashlib.blake2b(name.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
