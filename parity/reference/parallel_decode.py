"""Iterative decoding of all tokens at once (official libml/parallel_decode.py)."""

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from parity.reference import mask_schedule

_CONFIDENCE_OF_KNOWN_TOKENS = jnp.inf


def mask_by_random_topk(
    rng: jax.Array, mask_len: jax.Array, probs: jax.Array, temperature: float | jax.Array = 1.0
) -> jax.Array:
    """True where a position is masked again: bool [B, N].

    Score = log(probs) + temperature * Gumbel noise; positions whose score lies strictly below
    the sorted score at index mask_len [B, 1] are masked: the mask_len lowest, unless scores tie.
    """
    score = jnp.log(probs) + temperature * jax.random.gumbel(rng, probs.shape)
    ordered = jnp.sort(score, axis=-1)
    return score < jnp.take_along_axis(ordered, mask_len.astype(jnp.int32), axis=-1)


@flax.struct.dataclass
class State:
    """What one decoding step hands to the next."""

    cur_index: jax.Array  # int32 scalar: the step
    cur_seqs: jax.Array  # int32 [B, N]: running tokens, masked ones as the mask id
    rng: jax.Array  # uint32 [2]
    final_seqs: jax.Array  # int32 [B, num_iter, N]: the full guess of every step


def state_init(
    init_indices: jax.Array, rng: jax.Array, num_iter: int, start_iter: int = 0
) -> State:
    """The state before the first step; guesses of steps that are not run stay the input."""
    guesses = jnp.repeat(init_indices[:, None, :], num_iter, axis=1)
    return State(jnp.array(start_iter), init_indices, rng, guesses)


def decode(
    inputs: jax.Array,
    rng: jax.Array,
    tokens_to_logits: Callable[[jax.Array], jax.Array],
    mask_token_id: int = -1,
    num_iter: int = 12,
    start_iter: int = 0,
    choice_temperature: float = 1.0,
    mask_scheduling_method: str = "cosine",
) -> jax.Array:
    """Fills the masked tokens of `inputs` [B, N] in steps start_iter ... num_iter - 1.

    Returns int32 [B, num_iter, N]: at [:, s] the full guess of step s, of which the least confident
    part is masked again for step s + 1.
    """
    inputs = inputs.astype("int32")
    masked_at_start = jnp.sum(inputs == mask_token_id, axis=-1)

    def step(state: State) -> State:
        unknown = state.cur_seqs == mask_token_id
        logits = tokens_to_logits(state.cur_seqs)
        rng, sample_rng = jax.random.split(state.rng)
        # The noise covers known positions as well: the stream does not depend on what is masked.
        guess = jnp.where(unknown, jax.random.categorical(sample_rng, logits), state.cur_seqs)
        final_seqs = lax.dynamic_update_slice(
            state.final_seqs, guess[:, None, :], (0, state.cur_index, 0)
        )

        probs = jax.nn.softmax(logits, axis=-1)
        chosen = jnp.take_along_axis(probs, guess[..., None].astype(jnp.int32), -1)[..., 0]
        chosen = jnp.where(unknown, chosen, _CONFIDENCE_OF_KNOWN_TOKENS)

        ratio = 1.0 * (state.cur_index + 1) / num_iter
        rate = mask_schedule.schedule(ratio, masked_at_start, mask_scheduling_method)
        wanted = jnp.floor(masked_at_start * rate)[:, None]
        # At least one token is masked again, and at least one of the unknown ones is kept.
        most = jnp.sum(unknown, axis=-1, keepdims=True) - 1
        mask_len = jnp.maximum(1, jnp.minimum(most, wanted))

        rng, choice_rng = jax.random.split(rng)
        again = mask_by_random_topk(
            choice_rng, mask_len, chosen, choice_temperature * (1.0 - ratio)
        )
        running = jnp.where(again, mask_token_id, guess)
        return State(state.cur_index + 1, running, rng, final_seqs)

    state = state_init(inputs, rng, num_iter, start_iter)
    return lax.while_loop(lambda state: state.cur_index < num_iter, step, state).final_seqs
