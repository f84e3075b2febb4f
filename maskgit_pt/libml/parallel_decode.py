"""Parallel decoding (official `libml/parallel_decode.py`; Chang et al. 2022, section 3.2,
"iterative decoding").

Every step predicts all masked tokens at once, keeps the most confident and masks the others again.
The loop has static shapes and never waits for the device.

Axes: B batch, N tokens, K codes.
"""

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from maskgit_pt.libml import mask_schedule
from maskgit_pt.libml import rng as rng_lib
from maskgit_pt.libml.rng import Rng

_CONFIDENCE_OF_KNOWN_TOKENS = torch.inf


def mask_by_random_topk(
    rng: Rng, mask_len: Tensor, probs: Tensor, temperature: float | Tensor = 1.0
) -> Tensor:
    """Chooses the least confident tokens, with noise.

    Args:
      rng: a JAX key, a `torch.Generator` or None.
      mask_len: how many to mask, [B, 1], any numeric dtype.
      probs: confidences in (0, 1], [B, N]; inf for tokens that must stay.
      temperature: factor of the Gumbel noise on log(probs); 0 is deterministic.

    Returns:
      bool [B, N], True where masked. Fewer than `mask_len` on ties: all scores equal to the cut-off
      stay.
    """
    noise = rng_lib.gumbel(rng, probs.shape, probs.dtype, probs.device)
    return _lowest(mask_len, torch.log(probs) + temperature * noise)


def _lowest(mask_len: Tensor, confidence: Tensor) -> Tensor:
    """True [B, N] where `confidence` is below its value of rank `mask_len` [B, 1]."""
    sorted_confidence = confidence.sort(-1).values
    index = mask_len.long().clamp(max=confidence.shape[-1] - 1)
    return confidence < sorted_confidence.gather(-1, index)


@dataclasses.dataclass
class State:
    """The state of the decoding loop."""

    cur_index: int  # the step to do next
    cur_seqs: Tensor  # int64 [B, N], the mask id where still unknown
    rng: Rng  # at the start
    final_seqs: Tensor  # int64 [B, num_iter, N], the whole guess of each step


def state_init(init_indices: Tensor, rng: Rng, num_iter: int, start_iter: int = 0) -> State:
    """The state before the first step; `final_seqs` starts as copies of the input."""
    final_seqs = init_indices[:, None, :].repeat(1, num_iter, 1)
    return State(start_iter, init_indices, rng, final_seqs)


def decode(
    inputs: Tensor,
    rng: Rng,
    tokens_to_logits: Callable[[Tensor], Tensor],
    mask_token_id: int = -1,
    num_iter: int = 12,
    start_iter: int = 0,
    choice_temperature: float = 1.0,
    mask_scheduling_method: str = "cosine",
) -> Tensor:
    """Fills in the masked tokens in `num_iter - start_iter` parallel steps.

    Args:
      inputs: integers [B, N]; `mask_token_id` where unknown, everything else is kept.
      rng: `jax_random.PRNGKey(seed)` gives the tokens that JAX gives for this seed; a
        `torch.Generator` (or None, the global one) gives PyTorch's own noise, faster.
      tokens_to_logits: maps int64 [B, N] to float logits [B, N, K].
      mask_token_id: the id that marks unknown tokens.
      num_iter: T, the steps of the schedule.
      start_iter: first step; above 0 for editing, where part of the image is known.
      choice_temperature: factor of the Gumbel noise on the confidences, falling linearly to 0.
      mask_scheduling_method: see `mask_schedule.schedule`.

    Returns:
      int64 [B, num_iter, N]: the whole guess of each step (row `num_iter - 1` is the result); the
      input for steps before `start_iter`.

    Raises:
      ValueError: `inputs` is not 2-D, or the steps are not 0 <= start_iter < num_iter.
      TypeError: `rng` is no key or Generator.
    """
    noise = rng_lib.noise_of(rng)
    if inputs.ndim != 2:
        raise ValueError(f"inputs has shape {list(inputs.shape)}; accepted: [B, N]")
    if not 0 <= start_iter < num_iter:
        raise ValueError(f"start_iter {start_iter} is not in 0 ... num_iter - 1 = {num_iter - 1}")
    inputs = inputs.long()
    unknown_number_in_the_beginning = (inputs == mask_token_id).sum(-1)  # [B]
    mask_lens, temperatures = plan(
        unknown_number_in_the_beginning, num_iter, choice_temperature, mask_scheduling_method
    )
    state = state_init(inputs, rng, num_iter, start_iter)
    for step in range(start_iter, num_iter):
        logits = tokens_to_logits(state.cur_seqs)
        sampled_ids, cur_seqs = decide(
            state.cur_seqs,
            state.cur_seqs == mask_token_id,
            logits,
            mask_lens[step],
            temperatures[step],
            noise,
            mask_token_id,
        )
        state.final_seqs[:, step] = sampled_ids
        state = dataclasses.replace(state, cur_index=step + 1, cur_seqs=cur_seqs)
    return state.final_seqs


def plan(
    unknown: Tensor, num_iter: int, choice_temperature: float, method: str = "cosine"
) -> tuple[Tensor, Tensor]:
    """What `decode` knows of every step beforehand.

    Args:
      unknown: int [B], masked tokens at the start.
      num_iter, choice_temperature, method: as in `decode`.

    Returns:
      How many tokens the schedule leaves masked after each step, float32 [T, 1 or B], and the temperature
      of the choice, float32 [T, 1]; both on the device of `unknown`.
    """
    # float32, since the counts hang on the last bit: at T = 12 and 256 tokens step 8 masks 127, but
    # 128 in float64.
    mask_ratios = mask_schedule.decoding_schedule(num_iter, unknown, method).to(unknown.device)
    mask_lens = torch.floor(unknown * mask_ratios).nan_to_num(0.0)  # "exp" of nothing unknown
    temperatures = choice_temperature * mask_schedule.one_minus_ratios(num_iter)
    return mask_lens, temperatures.to(unknown.device)


def decide(
    cur_seqs: Tensor,
    unknown_map: Tensor,
    logits: Tensor,
    mask_len: Tensor,
    temperature: Tensor,
    noise: rng_lib.Noise,
    mask_token_id: int = -1,
) -> tuple[Tensor, Tensor]:
    """One step: sample everywhere, keep what is known, mask the least confident again.

    Args:
      cur_seqs: int64 [B, N].
      unknown_map: bool [B, N], where `cur_seqs` is masked.
      logits: [B, N, K]; half precision is sampled in float32.
      mask_len: float [B], how many tokens the schedule leaves masked after this step.
      temperature: of the choice, a scalar.
      noise: where the draws come from.
      mask_token_id: as in `decode`.

    Returns:
      The whole guess, int64 [B, N], and the same with the least confident tokens masked.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    probs = logits.softmax(-1)

    # The noise covers the class position and known tokens too; their draws are thrown away.
    sampled_ids = noise.categorical(logits, probs)  # [B, N]
    sampled_ids = torch.where(unknown_map, sampled_ids, cur_seqs)

    # Class tokens lie beyond the codes; their probability is not used.
    index = sampled_ids.clamp(0, logits.shape[-1] - 1)[..., None]
    selected_probs = probs.gather(-1, index)[..., 0]  # [B, N]
    selected_probs = selected_probs.masked_fill(~unknown_map, _CONFIDENCE_OF_KNOWN_TOKENS)

    # At least one token is decided in this step and at least one left to the next.
    # OFFICIAL QUIRK: that holds for the last step too; its returned guess is whole all the same.
    most = unknown_map.sum(-1, keepdim=True) - 1  # [B, 1]
    mask_len = torch.minimum(most, mask_len[:, None]).clamp(min=1)
    gumbel = noise.gumbel(selected_probs.shape, selected_probs.dtype, selected_probs.device)
    masking = _lowest(mask_len, torch.log(selected_probs) + temperature * gumbel)
    return sampled_ids, sampled_ids.masked_fill(masking, mask_token_id)
