"""A batch's whole decoding as one recording: noise, all steps, guidance, the tokenizer."""

import dataclasses
import functools
import statistics
import time
import warnings
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from maskgit_pt.decoding import Decoding
from maskgit_pt.graphs import Recorder, to_device
from maskgit_pt.libml.jax_random import Key
from maskgit_pt.libml.rng import (
    JaxNoise,
    Noise,
    PreparedJaxNoise,
    Rng,
    SampleNoise,
    TorchNoise,
    noise_of,
)
from maskgit_pt.network_pair import NetworkPair
from maskgit_pt.samplers.base import State

_DRAWS_A_STEP = 4  # at most, of any sampler
_TIMED_CALLS = 3


class WholeDecoding:
    """Decodes batches by one CUDA graph each, or step by step where that is faster.

    Args:
      model: whose work is recorded; compiled without CUDA graphs of its own.
      stepwise: the same networks for decoding step by step; None: always record.
    """

    def __init__(self, model: NetworkPair, stepwise: NetworkPair | None = None):
        self.model, self.stepwise = model, stepwise
        self._recorder = Recorder(model.device)
        self._faster: dict[Hashable, bool] = {}  # whether the recording is the faster way
        self._drawn: dict[Hashable, int] = {}  # how far a decoding goes in the samples' streams

    @staticmethod
    def takes(rng: Rng, options: Decoding) -> bool:
        """Whether this can be recorded: noise of a JAX key, or the samples' own streams from their start."""
        if options.sampler.draws_at_start:
            return False
        return isinstance(rng, Key) or (type(rng) is SampleNoise and rng.position == 0)

    def decode(
        self, labels: Tensor, tokens: Tensor, rng: Rng, options: Decoding, clip: bool
    ) -> tuple[Tensor, Tensor]:
        """Decodes one batch.

        Args:
          labels: int64 [B].
          tokens: int64 [B, n], -1 where unknown.
          rng: noise that `takes` accepts.
          options: of the sampling.
          clip: images to [0, 1].

        Returns:
          codes int64 [B, h, w] and images float32 [B, 3, H, W], on the device.
        """
        codes = self.model.num_codes
        state, last = options.sampler.prepare(tokens, options.start_step, TorchNoise(), codes)
        batch = _Batch(labels, state, options, last, clip)
        kind = (repr(options), last, clip, type(rng), getattr(rng, "partitionable", None))
        case = (kind, tokens.shape)
        if case not in self._faster:
            self._faster[case] = self._is_recording_faster(kind, batch, rng)
        if not self._faster[case]:
            return batch.decode(self.stepwise, noise_of(rng))
        decoded = self._recorded(kind, batch, rng)
        if isinstance(rng, SampleNoise):
            rng.skip_to(self._drawn[kind])
        return decoded

    def _is_recording_faster(self, kind: Hashable, batch: "_Batch", rng: Rng) -> bool:
        if self.stepwise is None:
            return True
        device = self.model.device
        try:
            recorded = _seconds(lambda: self._recorded(kind, batch, rng), device)
        except RuntimeError as error:  # a sampler or a driver that cannot be recorded
            reason = str(error).splitlines()[0]
            warnings.warn(
                f"decoding goes step by step, as it cannot be recorded: {reason}", stacklevel=4
            )
            return False

        def step_by_step() -> object:
            noise = JaxNoise(rng) if isinstance(rng, Key) else SampleNoise(rng.keys)
            return batch.decode(self.stepwise, noise)

        return recorded <= _seconds(step_by_step, device)

    def _recorded(self, kind: Hashable, batch: "_Batch", rng: Rng) -> tuple[Tensor, Tensor]:
        compiled = self.model.device.type == "cuda"
        draws = _DRAWS_A_STEP * (batch.last + 2 - batch.options.start_step)
        keys = JaxNoise(rng).ahead(draws) if isinstance(rng, Key) else rng.keys
        source = PreparedJaxNoise if isinstance(rng, Key) else SampleNoise

        def run(arguments: tuple) -> tuple[Tensor, Tensor]:
            labels, fields, words = arguments
            noise = source(Key(words, keys.partitionable), compiled)
            same = dataclasses.replace(batch, labels=labels, state=State(*fields))
            decoded = same.decode(self.model, noise)
            self._drawn[kind] = getattr(noise, "position", 0)
            return decoded

        state = batch.state
        fields = (state.tokens, state.unknown, state.guess, state.plan)
        return self._recorder(run, kind, (batch.labels, fields, keys.data))


@dataclasses.dataclass(frozen=True)
class _Batch:
    """What is decoded: labels, the state before the first step, settings, the last step."""

    labels: Tensor
    state: State
    options: Decoding
    last: int
    clip: bool

    def decode(self, model: NetworkPair, noise: Noise) -> tuple[Tensor, Tensor]:
        """Decodes step by step; this is also what is recorded."""
        state = self.state.to(model.device)
        noise = self.options.noise(noise)
        labels = to_device(self.labels, model.device).clone()
        predict = functools.partial(model._predict, labels, self.options, noise)
        steps = self.options.sampler.decide(
            state, predict, noise, self.options.start_step, self.last
        )
        for state in steps:  # noqa: B007
            pass
        return model.finish(state.guess, self.clip)


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    """The median of a few calls after two to warm up."""
    times = []
    for number in range(-2, _TIMED_CALLS):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if number >= 0:
            times.append(time.perf_counter() - start)
    return statistics.median(times)
