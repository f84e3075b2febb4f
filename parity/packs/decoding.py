"""Decoding step by step in PyTorch with all that a step computes in between, right or with a mistake.

`maskgit_pt.libml.parallel_decode` is the same without the in-between. Axes: B samples, N tokens, K codes,
S steps that are run.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskgit_pt.libml import jax_random, mask_schedule
from maskgit_pt.libml.jax_random import Key

MASK = -1
BEST = 4  # how many of the best tokens a pack names


@dataclasses.dataclass(frozen=True)
class Rules:
    """How a step is done; the defaults are Google's, everything else is a mistake.

    Attributes:
      other_layout: draw from the other of JAX's two stream layouts.
      count_dtype: in which the number of tokens to mask is computed.
      rounding: of that number: "floor", "ceil" or "round".
      first_ratio: 1 if step s has the ratio (s + 1) / T, 0 if it has s / T.
      inclusive: mask the scores up to the threshold (<=) instead of those below (<).
      all_logits: sample from the whole vocabulary instead of the codes.
      known: confidence of known tokens: "infinite", or "own", their probability, so that noise can mask
        them; or "resampled": they are drawn anew as well.
      noise: draw it for "all" positions, or for the "unknown" alone, one after the other.
    """

    other_layout: bool = False
    count_dtype: torch.dtype = torch.float32
    rounding: str = "floor"
    first_ratio: int = 1
    inclusive: bool = False
    all_logits: bool = False
    known: str = "infinite"
    noise: str = "all"


GOOGLE = Rules()


@dataclasses.dataclass(frozen=True)
class Run:
    """One decoding run of a pack, as the manifest describes it.

    Attributes:
      name: "generation.original", ...
      partitionable: the layout of its streams.
      key: the two words of its first key.
      num_iter, start_iter: steps of the schedule, and the first that is run.
      temperature: of the choice.
      codes: K.
    """

    name: str
    partitionable: bool
    key: tuple[int, int]
    num_iter: int
    start_iter: int
    temperature: float
    codes: int

    @property
    def prefix(self) -> str:
        """Opens the names of its arrays."""
        return f"decoding.{self.name}."


TokensToLogits = Callable[[Tensor, int], Tensor]


def replay(
    run: Run,
    tokens: np.ndarray,
    tokens_to_logits: TokensToLogits,
    rules: Rules = GOOGLE,
    steps: int | None = None,
) -> dict[str, np.ndarray]:
    """Decodes int [B, N] and returns what every step computed, stacked: name -> [S, ...].

    Args:
      run: the settings.
      tokens: the first state.
      tokens_to_logits: (int64 [B, N], number of the step among those run) -> [B, N, V or K].
      rules: right or mistaken.
      steps: stop after as many; None: run all.
    """
    key = Key.from_words(list(run.key), run.partitionable != rules.other_layout)
    state = torch.from_numpy(tokens).long()
    masked_at_start = (state == MASK).sum(-1)
    found: list[dict[str, Any]] = []
    for index, step in enumerate(range(run.start_iter, run.num_iter)):
        if steps is not None and index >= steps:
            break
        logits = tokens_to_logits(state, index)
        arrays, key = one_step(run, rules, state, logits, key, step, masked_at_start)
        found.append(arrays)
        state = arrays["next"]
    return {name: _stack([arrays[name] for arrays in found]) for name in found[0]}


def one_step(
    run: Run,
    rules: Rules,
    state: Tensor,
    logits: Tensor,
    key: Key,
    step: int,
    masked_at_start: Tensor,
) -> tuple[dict[str, Tensor], Key]:
    """One step from a given state.

    Args:
      run, rules: as in `replay`.
      state: int64 [B, N].
      logits: [B, N, V or K].
      key: at the start of the step.
      step: its number in the schedule, of run.num_iter.
      masked_at_start: int [B], masked tokens before the first step.

    Returns:
      What it computed, by the names of a pack, and the next key.
    """
    unknown = state == MASK
    logits = logits.float()
    logits = logits if rules.all_logits else logits[..., : run.codes]
    next_key, sample_key = jax_random.split(key)
    gumbel = _noise(sample_key, logits.shape, unknown, rules)
    scored = logits + gumbel
    drawn = scored.argmax(-1)
    sampled = drawn if rules.known == "resampled" else torch.where(unknown, drawn, state)
    if rules.known == "resampled":
        sampled[:, 0] = state[:, 0]
    index = sampled.clamp(0, logits.shape[-1] - 1)[..., None]
    confidence = logits.softmax(-1).gather(-1, index)[..., 0]
    if rules.known == "infinite":
        confidence = confidence.masked_fill(~unknown, torch.inf)
    count = _mask_count(run, rules, unknown, step, masked_at_start)
    next_key, choice_key = jax_random.split(next_key)
    choice = _noise(choice_key, confidence.shape, unknown, rules)
    ratio = torch.tensor(step + rules.first_ratio, dtype=torch.float32) / run.num_iter
    scores = confidence.log() + run.temperature * (1.0 - ratio) * choice
    threshold = scores.sort(-1).values.gather(-1, count.clamp(max=scores.shape[-1] - 1))
    again = scores <= threshold if rules.inclusive else scores < threshold
    best = scored.topk(min(BEST, scored.shape[-1]), -1)
    return {
        "state": state,
        "logits": logits,
        "key": key.data,
        "gumbel": gumbel,
        "best_tokens": best.indices,
        "best_scores": best.values,
        "sampled": sampled,
        "confidence": confidence,
        "mask_count": count[:, 0],
        "choice_gumbel": choice,
        "scores": scores,
        "next": sampled.masked_fill(again, MASK),
        "sample_key": sample_key.data,
        "choice_key": choice_key.data,
    }, next_key


def _noise(key: Key, shape: torch.Size, unknown: Tensor, rules: Rules) -> Tensor:
    if rules.noise == "all":
        return jax_random.gumbel(key, shape)
    drawn = jax_random.gumbel(key, (int(unknown.sum()), *shape[2:]))
    noise = torch.zeros(shape)
    noise[unknown] = drawn
    return noise


def _mask_count(
    run: Run, rules: Rules, unknown: Tensor, step: int, masked_at_start: Tensor
) -> Tensor:
    """[B, 1]: how many tokens are masked again, as the schedule and the bounds of one say."""
    dtype = rules.count_dtype
    ratio = torch.tensor(step + rules.first_ratio, dtype=dtype) / run.num_iter
    wanted = masked_at_start.to(dtype) * mask_schedule.schedule(ratio, masked_at_start)
    wanted = getattr(torch, rules.rounding)(wanted).long()[:, None]
    most = unknown.sum(-1, keepdim=True) - 1
    return torch.minimum(most, wanted).clamp(min=1)


def _stack(tensors: list[Tensor]) -> np.ndarray:
    values = torch.stack(tensors).numpy()
    return values
