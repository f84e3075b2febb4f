"""Records decoding: runs the code's own `decode`, and what each of its steps computed in between.

The states, logits and guesses are those of the compiled loop. Random bits, noise, confidences and counts are
computed again from them, operation by operation; they must lead to the same guesses and states, or
recording fails.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from parity.checks import decoding as checks_decoding
from parity.checks.near_ties import GUMBEL_TEMPERATURE
from parity.jax_code import jax_options, jit
from parity.packs import decoding
from parity.packs.decoding import BEST, Run
from parity.pairs import TransformerPair
from parity.stages import progress

LAYOUTS = {"original": False, "partitionable": True}
# Axes and meaning of what a step computes; the leading axis counts the steps.
ABOUT = {
    "state": ("S B N", "tokens before the step, -1 where masked"),
    "key": ("S k", "key at the start of the step"),
    "logits": ("S B N K", "logits of the codes"),
    "bits": ("S B N K", "random bits of the draw of tokens"),
    "gumbel": ("S B N K", "Gumbel noise made of them"),
    "best_tokens": ("S B N T", "the tokens of largest logit + noise"),
    "best_scores": ("S B N T", "their logit + noise"),
    "sampled": ("S B N", "the guess of the step: the best tokens, or what was known"),
    "confidence": ("S B N", "probability of the sampled token; infinite where known"),
    "mask_count": ("S B", "how many tokens are masked again"),
    "choice_bits": ("S B N", "random bits of the choice of what to mask"),
    "choice_gumbel": ("S B N", "Gumbel noise made of them"),
    "scores": ("S B N", "log(confidence) + temperature * (1 - (s + 1) / num_iter) * noise"),
    "next": ("S B N", "tokens after the step: masked where the score lies below the sorted score at "
             "index mask_count"),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Options:
    """What a user can choose.

    Attributes:
      batch_size: samples.
      num_iter: steps of the schedule, in generation and in editing.
      start_iter: first step of editing.
      seed: of inputs and keys.
    """

    batch_size: int = 2
    num_iter: int = 12
    start_iter: int = 2
    seed: int = 0


def record(
    recorder: Any,
    pair: TransformerPair,
    bounds: dict[str, float],
    options: Options,
) -> Iterator[dict[str, Any]]:
    """Generation and editing in both stream layouts; yields a row of the manifest for each run.

    Args:
      recorder: takes the arrays.
      pair: the transformer.
      bounds: of its logits, by dtype.
      options: steps, batch, seed.
    """
    for kind, start in (("generation", 0), ("editing", options.start_iter)):
        tokens = checks_decoding.make_tokens(
            pair, options.batch_size, edit=kind == "editing", seed=options.seed
        )
        for layout, partitionable in LAYOUTS.items():
            run = Run(
                f"{kind}.{layout}", partitionable, (0, options.seed), options.num_iter, start,
                GUMBEL_TEMPERATURE, pair.codes,
            )  # fmt: skip
            progress(f"decoding: {run.name}, {run.num_iter - start} steps")
            with jax_options(partitionable=partitionable):
                found, guesses = _trace(pair, run, tokens)
            _check(run, found, guesses)
            _keep(recorder, run, found, bounds)
            yield dataclasses.asdict(run) | {"schedule": "cosine", "mask_token_id": decoding.MASK}


def _trace(
    pair: TransformerPair, run: Run, tokens: np.ndarray
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """What every step computed, by name, stacked; and the guesses that `decode` returned."""
    reported: list[tuple[np.ndarray, np.ndarray]] = []

    def report(ids: Any, logits: Any) -> None:
        reported.append((np.array(ids), np.array(logits)))

    def decode(variables: Any, tokens: jax.Array, rng: jax.Array) -> jax.Array:
        def tokens_to_logits(ids: jax.Array) -> jax.Array:
            logits = pair.theirs.apply(variables, ids, deterministic=True)[..., : pair.codes]
            jax.debug.callback(report, ids, logits, ordered=True)
            return logits

        return pair.code.parallel_decode.decode(
            tokens, rng, tokens_to_logits, mask_token_id=decoding.MASK, num_iter=run.num_iter,
            start_iter=run.start_iter, choice_temperature=run.temperature,
        )  # fmt: skip

    rng = jnp.asarray(run.key, jnp.uint32)
    guesses = np.asarray(jit(decode)(pair.variables, jnp.asarray(tokens), rng))
    jax.effects_barrier()  # until every step has reported
    masked_at_start = (tokens == decoding.MASK).sum(-1)
    steps = []
    for step, (ids, logits) in enumerate(reported, run.start_iter):
        found, rng = _step(pair, run, ids, logits, rng, step, masked_at_start)
        steps.append(found)
    return {name: np.stack([found[name] for found in steps]) for name in ABOUT}, guesses


def _step(
    pair: TransformerPair,
    run: Run,
    ids: np.ndarray,
    logits: np.ndarray,
    rng: jax.Array,
    step: int,
    masked_at_start: np.ndarray,
) -> tuple[dict[str, np.ndarray], jax.Array]:
    """One step, operation by operation, from the state and the logits of the compiled loop."""
    key, unknown = rng, ids == decoding.MASK
    rng, sample_key = jax.random.split(rng)
    gumbel = jax.random.gumbel(sample_key, logits.shape)
    sampled = np.where(unknown, jax.random.categorical(sample_key, logits), ids)
    scored = np.asarray(logits + gumbel)
    order = np.argsort(-scored, -1, kind="stable")[..., :BEST]
    index = np.clip(sampled, 0, logits.shape[-1] - 1)[..., None]
    probs = np.asarray(jax.nn.softmax(logits, axis=-1))
    confidence = np.where(unknown, np.take_along_axis(probs, index, -1)[..., 0], np.inf)
    ratio = jnp.float32(step + 1) / run.num_iter
    rate = pair.code.mask_schedule.schedule(ratio, masked_at_start, "cosine")
    wanted = np.asarray(jnp.floor(masked_at_start * rate))
    count = np.maximum(1, np.minimum(unknown.sum(-1) - 1, wanted)).astype(np.int32)
    rng, choice_key = jax.random.split(rng)
    choice = jax.random.gumbel(choice_key, ids.shape)
    scores = np.asarray(jnp.log(confidence) + run.temperature * (1.0 - ratio) * choice)
    threshold = np.take_along_axis(np.sort(scores, -1), count[:, None], -1)
    values = {
        "state": ids,
        "key": key,
        "logits": logits,
        "bits": jax.random.bits(sample_key, logits.shape),
        "gumbel": gumbel,
        "best_tokens": order,
        "best_scores": np.take_along_axis(scored, order, -1),
        "sampled": sampled,
        "confidence": confidence,
        "mask_count": count,
        "choice_bits": jax.random.bits(choice_key, ids.shape),
        "choice_gumbel": choice,
        "scores": scores,
        "next": np.where(scores < threshold, decoding.MASK, sampled),
    }
    return {name: np.asarray(value) for name, value in values.items()}, rng


def _check(run: Run, found: dict[str, np.ndarray], guesses: np.ndarray) -> None:
    """The steps computed again must give what the compiled loop gave.

    Raises:
      ValueError: they do not.
    """
    sampled = guesses[:, run.start_iter :].swapaxes(0, 1)
    agree = np.array_equal(found["sampled"], sampled)
    if not agree or not np.array_equal(found["next"][:-1], found["state"][1:]):
        raise ValueError(
            f"{run.name}: the loop compiled by XLA and the same operations one by one part at a near "
            "tie; another --seed avoids it"
        )


def _keep(recorder: Any, run: Run, found: dict[str, np.ndarray], bounds: dict[str, float]) -> None:
    """Hands the arrays over; what depends on logits is bounded by theirs.

    Logits of these states may be off by twice what was measured on others. Logit + noise is then off by
    as much, a logarithm of a softmax by twice, a probability by half of that.
    """
    of_logits = {dtype: 2 * bound for dtype, bound in bounds.items()}
    factors = {"logits": 1.0, "best_scores": 1.1, "confidence": 0.5, "scores": 2.2}
    for name, (axes, about) in ABOUT.items():
        value, full = found[name], run.prefix + name
        if value.dtype.kind in "iu":
            recorder.exact(full, axes, value, about, whole=name != "bits")
        elif name in factors:
            scaled = {dtype: factors[name] * bound for dtype, bound in of_logits.items()}
            recorder.floats(full, axes, value, about, bounds=scaled, whole=True)
        else:
            scale = float(np.abs(value).max())
            tight = {dtype: 2e-6 * scale for dtype in bounds}
            recorder.floats(full, axes, value, about, bounds=tight, whole=name != "gumbel")
