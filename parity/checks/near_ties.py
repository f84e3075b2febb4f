"""Decoding runs, and where two of them part: the first difference and how close its scores were."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from parity.jax_code import jax_options
from parity.pairs import TransformerPair

GUMBEL_TEMPERATURE = 4.5


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to decode: official generation is (8, 0), official editing (12, 2)."""

    num_iter: int = 8
    start_iter: int = 0
    partitionable: bool = False
    temperature: float = GUMBEL_TEMPERATURE
    method: str = "cosine"

    def keywords(self) -> dict[str, Any]:
        """The keyword arguments of `decode` on either side."""
        return {
            "num_iter": self.num_iter,
            "start_iter": self.start_iter,
            "choice_temperature": self.temperature,
            "mask_scheduling_method": self.method,
        }


@dataclasses.dataclass(frozen=True)
class History:
    """What a decoding run did.

    Attributes:
      guesses: int [B, T, N], as `decode` returns them.
      running: int [S, B, N], what the network was asked in each of the S steps; -1 where masked.
    """

    guesses: np.ndarray
    running: np.ndarray


@dataclasses.dataclass(frozen=True)
class NearTies:
    """Explains why two histories of the same seed and settings differ."""

    pair: TransformerPair
    seed: int
    settings: Settings

    def explain(self, ours: History, theirs: History) -> str:
        """The first difference: step, sample, position and gap between the scores; "" if none."""
        if ours.guesses.shape != theirs.guesses.shape or ours.running.shape != theirs.running.shape:
            return ""
        for index, step in enumerate(range(self.settings.start_iter, self.settings.num_iter)):
            masked = np.argwhere(ours.running[index] != theirs.running[index])
            if len(masked):
                where = (int(masked[0][0]), int(masked[0][1]))
                gap = self._confidence_gap(theirs, index - 1, where)
                return f"{_place(step - 1, where)}: masked again on one side only; {gap}"
            guessed = np.argwhere(ours.guesses[:, step] != theirs.guesses[:, step])
            if len(guessed):
                where = (int(guessed[0][0]), int(guessed[0][1]))
                tokens = [int(h.guesses[where[0], step, where[1]]) for h in (ours, theirs)]
                gap = self._score_gap(theirs.running[index], index, where, tokens)
                return f"{_place(step, where)}: {gap}"
        return ""

    def _noise(self, index: int, shape: tuple[int, ...], choice: bool) -> np.ndarray:
        """Gumbel noise of the step run as number `index`: of its sampling, or of its choice."""
        with jax_options(partitionable=self.settings.partitionable):
            rng = jax.random.PRNGKey(self.seed)
            for _ in range(index + 1):
                rng, sample_key = jax.random.split(rng)
                rng, choice_key = jax.random.split(rng)
            return np.asarray(jax.random.gumbel(choice_key if choice else sample_key, shape))

    def _both_logits(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        pair = self.pair
        with torch.inference_mode():
            ours = pair.ours(torch.from_numpy(ids).long(), num_logits=pair.codes).numpy()
        theirs = np.asarray(pair.apply(pair.variables, jnp.asarray(ids)))
        return ours, theirs[..., : pair.codes]

    def _score_gap(
        self, ids: np.ndarray, index: int, where: tuple[int, int], tokens: list[int]
    ) -> str:
        """How far apart logit + noise of the two sampled tokens are, on either side."""
        noise = self._noise(index, (*ids.shape, self.pair.codes), choice=False)
        gaps = []
        for values in self._both_logits(ids):
            first, second = (values + noise)[where][tokens]
            gaps.append(f"{first - second:.3g}")
        sampled = f"token {tokens[0]} here, {tokens[1]} in JAX"
        return f"{sampled}; scores apart by {gaps[0]} here, {gaps[1]} in JAX"

    def _confidence_gap(self, history: History, index: int, where: tuple[int, int]) -> str:
        """How far the noisy confidence is from the nearest other one, on either side."""
        if index < 0:
            return "the first input differs"
        sample, position = where
        ids, step = history.running[index], self.settings.start_iter + index
        noise = self._noise(index, ids.shape, choice=True)[sample]
        temperature = self.settings.temperature * (1 - (step + 1) / self.settings.num_iter)
        unknown = ids[sample] == -1
        guess = np.where(ids == -1, history.guesses[:, step], 0)
        gaps = []
        for values in self._both_logits(ids):
            log_probs = np.asarray(jax.nn.log_softmax(values, axis=-1))
            chosen = np.take_along_axis(log_probs, guess[..., None], -1)[sample, :, 0]
            scores = np.where(unknown, chosen + temperature * noise, np.inf)
            gaps.append(f"{np.abs(np.delete(scores, position) - scores[position]).min():.3g}")
        return f"distance to the nearest other score {gaps[0]} here, {gaps[1]} in JAX"


def _place(step: int, where: tuple[int, int]) -> str:
    return f"step {step}, sample {where[0]}, position {where[1]}"
