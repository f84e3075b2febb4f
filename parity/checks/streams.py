"""Random streams, mask schedules and mask counts."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from maskgit_pt.libml import jax_random, mask_schedule
from parity.compare import Record, compare, compare_exact
from parity.jax_code import JaxCode, jax_options, jit

SHAPES = ((1,), (7, 3), (2, 17, 33))
_COUNTS = (2, 3, 8)  # to split a key in
METHODS = ("uniform", "cosine", "pow2", "pow2.5", "pow0.5", "log", "exp")
LAYOUT_NAMES = {False: "original layout", True: "partitionable layout"}


def streams(partitionable: bool, seeds: tuple[int, ...] = (0, 42, 2**31 + 5)) -> Iterator[Record]:
    """Keys, splits, bits, uniform, Gumbel and categorical draws of one stream layout."""
    with jax_options(partitionable=partitionable):
        compiled = jit(_their_streams, quick=True)
        for seed in seeds:
            ours, theirs = jax_random.PRNGKey(seed, partitionable), jax.random.PRNGKey(seed)
            yield compare_exact(f"key {seed}", ours.data, theirs)
            expected = compiled(theirs)
            for count in _COUNTS:
                split = jax_random.split(ours, count).data
                yield compare_exact(f"split {seed} in {count}", split, expected["split", count])
            folded = jax_random.fold_in(ours, 7).data
            yield compare_exact(f"fold_in {seed}, 7", folded, expected["fold_in", 7])
            for shape in SHAPES:
                yield from _draws(seed, ours, shape, expected)


def _scores(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(len(shape)).normal(0, 3, (*shape, 32)).astype(np.float32)


def _their_streams(key: jax.Array) -> dict[tuple[str, Any], jax.Array]:
    """Everything drawn from one key, compiled as one program."""
    found = {("split", count): jax.random.split(key, count) for count in _COUNTS}
    found["fold_in", 7] = jax.random.fold_in(key, 7)
    for shape in SHAPES:
        found["bits", shape] = jax.random.bits(key, shape)
        found["uniform", shape] = jax.random.uniform(key, shape)
        found["gumbel", shape] = jax.random.gumbel(key, shape)
        found["categorical", shape] = jax.random.categorical(key, jnp.asarray(_scores(shape)))
    return found


def _draws(
    seed: int, key: jax_random.Key, shape: tuple[int, ...], expected: dict[tuple[str, Any], Any]
) -> Iterator[Record]:
    what = f"{shape} of key {seed}"
    bits, uniform = jax_random.random_bits(key, shape), jax_random.uniform(key, shape)
    yield compare_exact(f"bits {what}", bits, expected["bits", shape])
    yield compare_exact(f"uniform {what}", uniform, expected["uniform", shape])
    ours, theirs = jax_random.gumbel(key, shape), expected["gumbel", shape]
    # XLA and PyTorch each have their own logarithm: the last bit may differ.
    same = np.mean(ours.numpy() == np.asarray(theirs))
    yield compare(f"gumbel {what}", ours, theirs, rtol=5e-7, message=f"{same:.2%} bit-equal")
    tokens = jax_random.categorical(key, torch.from_numpy(_scores(shape)))
    yield compare_exact(f"categorical {what}", tokens, expected["categorical", shape])


def schedules(code: JaxCode) -> Iterator[Record]:
    """Mask rates of every method, and the mask counts of every step of 1 ... 64 steps."""
    ratios = np.linspace(0.01, 1.0, 100).astype(np.float32)
    for method in METHODS:
        for total in (256, 1024):
            ours = mask_schedule.schedule(torch.from_numpy(ratios), total, method)
            theirs = code.mask_schedule.schedule(jnp.asarray(ratios), total, method)
            yield compare(f"{method} rate, {total} tokens", ours, theirs, atol=1e-6)
    for method in METHODS:
        for total in (16, 256, 1024):  # grids of 4 x 4, 16 x 16, 32 x 32
            yield compare_exact(
                f"{method} counts, {total} tokens",
                our_counts(method, total),
                their_counts(code, method, total),
            )
    yield from cosine_counts_compiled(code)


def our_counts(method: str, total: int, dtype: torch.dtype = torch.float32) -> np.ndarray:
    """floor(total * rate) for every number of steps T <= 64 and step: [64, 64], 0 beyond T."""
    counts = np.zeros((64, 64), np.int64)
    for steps in range(1, 65):
        ratio = torch.arange(1, steps + 1, dtype=dtype) / steps
        rate = mask_schedule.schedule(ratio, torch.tensor(total), method)
        counts[steps - 1, :steps] = torch.floor(total * rate).long()
    return counts


def their_counts(code: JaxCode, method: str, total: int) -> np.ndarray:
    """The same in JAX, operation by operation.

    Not compiled as a whole: XLA then multiplies by 1 / T instead of dividing by T and fuses what
    follows, which lowers some counts of the uniform, pow and exp schedules by one where total * rate
    is an integer. `cosine_counts_compiled` shows that the schedule of official sampling has no such
    case.
    """
    steps, totals = jnp.arange(64), jnp.array([total])
    counts = []
    for count in range(1, 65):
        ratio = (steps + 1) / jnp.full(64, float(count))
        counts.append(jnp.floor(totals * code.mask_schedule.schedule(ratio, totals, method)))
    return np.tril(np.asarray(counts)).astype(np.int64)


def cosine_counts_compiled(code: JaxCode) -> Iterator[Record]:
    """The cosine counts of a compiled loop, as in official decoding, for every number of steps."""
    totals = np.array([16, 100, 143, 256, 1024], np.int32)

    def loop(steps: int, unknown: jax.Array) -> jax.Array:
        def body(step: jax.Array, counts: jax.Array) -> jax.Array:
            rate = code.mask_schedule.schedule(1.0 * (step + 1) / steps, unknown, "cosine")
            return counts.at[step].set(jnp.floor(unknown * rate))

        return jax.lax.fori_loop(0, steps, body, jnp.zeros((64, len(totals))))

    compiled = jax.jit(lambda unknown: [loop(steps, unknown) for steps in range(1, 65)])
    theirs = np.asarray(compiled(jnp.asarray(totals))).astype(np.int64)  # [T, step, total]
    for i, total in enumerate(totals):
        ours = our_counts("cosine", int(total))
        yield compare_exact(f"cosine counts, {total} tokens, compiled", ours, theirs[..., i])
