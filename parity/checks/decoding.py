"""Decoding step by step: the guess of every step, and what was masked again before it."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from maskgit_pt.libml import jax_random, parallel_decode
from parity.checks.near_ties import History, NearTies, Settings
from parity.compare import Record, compare_exact
from parity.jax_code import jax_options, jit
from parity.pairs import TransformerPair


def decode_ours(
    pair: TransformerPair, tokens: np.ndarray, seed: int, settings: Settings
) -> History:
    """Decodes int [B, N] with the PyTorch port and a JAX-compatible key."""
    running = []

    def tokens_to_logits(ids: torch.Tensor) -> torch.Tensor:
        running.append(ids.numpy().copy())
        return pair.ours(ids, num_logits=pair.codes)

    key = jax_random.PRNGKey(seed, partitionable=settings.partitionable)
    with torch.inference_mode():
        guesses = parallel_decode.decode(
            torch.from_numpy(tokens).long(), key, tokens_to_logits, **settings.keywords()
        )
    return History(guesses.numpy(), np.stack(running))


class TheirDecoder:
    """The JAX `decode`, compiled once for each setting, whatever the seed."""

    def __init__(self, pair: TransformerPair):
        self._pair = pair
        self._running: list[np.ndarray] = []
        self._compiled: dict[Settings, Callable[..., jax.Array]] = {}

    def __call__(self, tokens: np.ndarray, seed: int, settings: Settings) -> History:
        """Decodes int [B, N]."""
        self._running.clear()
        with jax_options(partitionable=settings.partitionable):
            decode = self._compiled.setdefault(settings, self._compile(settings))
            rng = jax.random.PRNGKey(seed)
            guesses = np.asarray(decode(self._pair.variables, jnp.asarray(tokens), rng))
            jax.effects_barrier()  # until every step has reported
        return History(guesses, np.stack(self._running))

    def _compile(self, settings: Settings) -> Callable[..., jax.Array]:
        pair = self._pair

        def run(variables: dict[str, Any], tokens: jax.Array, rng: jax.Array) -> jax.Array:
            def tokens_to_logits(ids: jax.Array) -> jax.Array:
                jax.debug.callback(self._report, ids, ordered=True)
                return pair.theirs.apply(variables, ids, deterministic=True)[..., : pair.codes]

            return pair.code.parallel_decode.decode(
                tokens, rng, tokens_to_logits, **settings.keywords()
            )

        return jit(run)

    def _report(self, ids: Any) -> None:
        self._running.append(np.asarray(ids).copy())


def make_tokens(pair: TransformerPair, batch: int, edit: bool, seed: int = 0) -> np.ndarray:
    """Class and masks, int32 [B, N]; for editing only a box in the grid is masked."""
    rng = np.random.default_rng([seed, 3])
    tokens = np.full((batch, pair.length), -1, np.int32)
    tokens[:, 0] = pair.codes + rng.integers(0, pair.classes, batch)
    if edit:
        side = int(round((pair.length - 1) ** 0.5))
        known = rng.integers(0, pair.codes, (batch, side, side))
        known[:, side // 4 : -(side // 4), side // 8 : side // 2] = -1
        tokens[:, 1:] = known.reshape(batch, -1)
    return tokens


def compare_histories(
    name: str, pair: TransformerPair, ours: History, theirs: History, seed: int, settings: Settings
) -> Iterator[Record]:
    """Tokens of every step, and the masks between steps; a difference is traced to its scores."""
    reason = NearTies(pair, seed, settings).explain(ours, theirs)
    yield compare_exact(f"{name}: tokens of every step", ours.guesses, theirs.guesses, reason)
    yield compare_exact(f"{name}: masked again, every step", ours.running, theirs.running, reason)
