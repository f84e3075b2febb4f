"""Decoding step by step: the guess of every step, and what was masked again before it."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from maskgit_pt.libml import jax_random, parallel_decode
from parity.bounds import FLOAT32
from parity.checks.near_ties import History, NearTies, Settings
from parity.compare import Record, compare, compare_exact
from parity.jax_code import jax_options, jit
from parity.layers import nhwc
from parity.pairs import TokenizerPair, TransformerPair
from parity.stages import Finding, Picture


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

        return jit(run, quick=pair.is_small)

    def _report(self, ids: Any) -> None:
        self._running.append(np.asarray(ids).copy())


class Runs:
    """Decoding runs of one transformer on both sides, whose last tokens are kept for `images`.

    Args:
      pair: the transformer.
      seeds: one run for each.
      batch: samples a run.
    """

    def __init__(self, pair: TransformerPair, seeds: tuple[int, ...], batch: int):
        self.pair, self.seeds, self.batch = pair, seeds, batch
        self.theirs = TheirDecoder(pair)
        self._decoded: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # ours, theirs: [N - 1]

    def compare(self, title: str, settings: Settings) -> Iterator[Record]:
        """Every step of the runs with these settings; `title` names them in `images`."""
        for seed in self.seeds:
            edit = settings.start_iter > 0
            tokens = make_tokens(self.pair, self.batch, edit=edit, seed=seed)
            ours = decode_ours(self.pair, tokens, seed, settings)
            theirs = self.theirs(tokens, seed, settings)
            first = [history.guesses[0, -1, 1:] for history in (ours, theirs)]
            self._decoded[f"{title}, seed {seed}"] = first[0], first[1]
            yield from compare_histories(f"seed {seed}", self.pair, ours, theirs, seed, settings)

    def images(self, tokenizer: TokenizerPair, section: str) -> Iterator[Finding]:
        """Each side's last tokens of a run through its own decoder, one image for each run."""
        grid = (1, self.pair.side, self.pair.side)
        for name, (our_ids, their_ids) in self._decoded.items():
            with torch.inference_mode():
                ours = tokenizer.ours.decode_from_indices(torch.from_numpy(our_ids.reshape(grid)))
            their_ids = their_ids.reshape(grid).astype(np.int32)
            theirs = np.asarray(tokenizer.decode(tokenizer.variables, their_ids)[0])
            yield compare(name, nhwc(ours), theirs, atol=FLOAT32.images)
            yield Picture(f"{section}: {name}", nhwc(ours)[0], theirs[0])


def make_tokens(pair: TransformerPair, batch: int, edit: bool, seed: int = 0) -> np.ndarray:
    """Class and masks, int32 [B, N]; for editing only a box in the grid is masked."""
    rng = np.random.default_rng([seed, 3])
    tokens = np.full((batch, pair.length), -1, np.int32)
    tokens[:, 0] = pair.codes + rng.integers(0, pair.classes, batch)
    if edit:
        side = pair.side
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
