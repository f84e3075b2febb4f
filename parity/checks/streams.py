"""Random streams, mask schedules and mask counts."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import torch

from maskgit_pt.libml import jax_random, mask_schedule
from parity.compare import Record, compare, compare_exact
from parity.jax_code import JaxCode, jax_options

SHAPES = ((1,), (7, 3), (2, 17, 33))
METHODS = ("uniform", "cosine", "pow2", "pow2.5", "pow0.5", "log", "exp")
LAYOUT_NAMES = {False: "original layout", True: "partitionable layout"}


def streams(partitionable: bool, seeds: tuple[int, ...] = (0, 42, 2**31 + 5)) -> Iterator[Record]:
    """Keys, splits, bits, uniform, Gumbel and categorical draws of one stream layout."""
    with jax_options(partitionable=partitionable):
        for seed in seeds:
            ours = jax_random.PRNGKey(seed, partitionable=partitionable)
            theirs = jax.random.PRNGKey(seed)
            yield compare_exact(f"key {seed}", ours.data, theirs)
            for count in (2, 3, 8):
                yield compare_exact(
                    f"split {seed} in {count}",
                    jax_random.split(ours, count).data,
                    jax.random.split(theirs, count),
                )
            yield compare_exact(
                f"fold_in {seed}, 7",
                jax_random.fold_in(ours, 7).data,
                jax.random.fold_in(theirs, 7),
            )
            for shape in SHAPES:
                yield from _draws(f"{shape} of key {seed}", ours, theirs, shape)


def _draws(
    what: str, ours: jax_random.Key, theirs: jax.Array, shape: tuple[int, ...]
) -> Iterator[Record]:
    yield compare_exact(
        f"bits {what}", jax_random.random_bits(ours, shape), jax.random.bits(theirs, shape)
    )
    yield compare_exact(
        f"uniform {what}", jax_random.uniform(ours, shape), jax.random.uniform(theirs, shape)
    )
    our_noise, noise = jax_random.gumbel(ours, shape), jax.random.gumbel(theirs, shape)
    # XLA and PyTorch each have their own logarithm: the last bit may differ.
    same = np.mean(our_noise.numpy() == np.asarray(noise))
    yield compare(f"gumbel {what}", our_noise, noise, rtol=5e-7, message=f"{same:.2%} bit-equal")
    scores = np.random.default_rng(len(what)).normal(0, 3, (*shape, 32)).astype(np.float32)
    yield compare_exact(
        f"categorical {what}",
        jax_random.categorical(ours, torch.from_numpy(scores)),
        jax.random.categorical(theirs, jnp.asarray(scores)),
    )


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
