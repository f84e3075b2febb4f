"""Finds the likely cause of a difference: tries every known mistake, and two at a time."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from maskgit_pt.libml.jax_random import Key
from parity.packs import arrays, decoding, mistakes, mistakes_tokenizer, networks, rounding
from parity.packs.compare import Judge
from parity.packs.decoding import MASK, Run
from parity.packs.mistakes import Mistake
from parity.packs.theirs import Theirs, run_of

Arrays = dict[str, np.ndarray]
_MOST_LAYERS = 4  # up to which single matrices are tried in every layer
_PAIRS_OF = 3  # how many of the best single causes are tried with a second
_UNEQUAL = 0.005  # share of integers that near ties may change ...
_LEFT = 0.05  # ... and share of the unequal ones that a cause may leave
_FEWEST = 3  # unequal integers: fewer are no ground to name a cause
_FEWEST_FOR_PAIRS = 10
_SHARE_OF_ROUNDING = 0.25
_SECONDS = 60.0  # how long one part is searched; small networks take a second


@dataclasses.dataclass(frozen=True)
class Cause:
    """What explains the difference of one part.

    Attributes:
      part: "transformer", "encoder", "decoder" or "decoding".
      mistakes: which; empty if unknown.
      share: of the difference that they explain, 0 to 1.
      explained: whether what is left lies within the bounds.
      remark: for the reader.
    """

    part: str
    mistakes: tuple[Mistake, ...]
    share: float
    explained: bool
    remark: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(mistake.name for mistake in self.mistakes)

    def __str__(self) -> str:
        if not self.mistakes:
            return f"{self.part}: unknown{'; ' if self.remark else ''}{self.remark}"
        what = " AND ".join(self.names)
        rest = "to within the bound" if self.explained else "statistically: rounding of this kind"
        line = f"{self.part}: {what} (explains {self.share:.2%} of the difference, {rest})"
        return f"{line}; {self.remark}" if self.remark else line


@dataclasses.dataclass(frozen=True)
class Fit:
    """How near a candidate comes to what was given.

    Attributes:
      strain: the largest float difference over its bound.
      unequal: the largest share of unequal integers of an array.
      count: how many integers are unequal.
      distance: root mean square of all differences in units of the bounds.
    """

    strain: float
    unequal: float
    count: int
    distance: float


class Diagnosis:
    """Searches for the mistakes of one part.

    Args:
      part: its name.
      judge: knows the bounds.
      given: their arrays of this part.
      run: computes the same arrays of our network with some mistakes in it.
      wider: the same with more arrays, to choose among mistakes that explain these equally well.
    """

    def __init__(
        self,
        part: str,
        judge: Judge,
        given: Arrays,
        run: Callable[[Sequence[Mistake]], Arrays],
        wider: "Callable[[], Diagnosis] | None" = None,
    ):
        self.wider, self.started = wider, time.monotonic()
        self.part, self.judge, self.given, self.run = part, judge, given, run
        self.floats = any(values.dtype.kind == "f" for values in given.values())
        self.sound = self._fit(())

    def search(self, candidates: Sequence[Mistake]) -> Cause:
        """The one or two of the candidates that explain the difference, or none."""
        if not self.floats and self.sound.count < _FEWEST:
            return self._unknown(f"{self.sound.count} differing integers are too few to tell")
        fits = [(m, self._fit((m,))) for m in candidates if self._has_time()]
        tried = len(fits)
        fits = [(mistake, fit) for mistake, fit in fits if np.isfinite(fit.distance)]
        fits.sort(key=lambda pair: pair[1].distance)
        exact = [(m, f) for m, f in fits if self._within(f) or self._rounds_as_much((m,), f)]
        if len(exact) > 1 and self.wider is not None:
            return self.wider().search([mistake for mistake, _ in exact])
        if exact:
            others = [m.name for m, _ in exact[1:4]]
            remark = f"what was given allows as well: {'; or '.join(others)}" if others else ""
            return self._cause((exact[0][0],), exact[0][1], True, remark)
        rounded = [(m, f) for m, f in fits if m.rounds and self._like_rounding(f)]
        if rounded:
            return self._cause((rounded[0][0],), rounded[0][1], False)
        if tried < len(candidates):
            return self._unknown(f"{tried} of {len(candidates)} known mistakes were tried in time")
        if not self.floats and self.sound.count < _FEWEST_FOR_PAIRS:
            return self._unknown("no known mistake explains it")
        return self._search_pairs(candidates, fits)

    def _has_time(self) -> bool:
        return time.monotonic() - self.started < _SECONDS

    def _search_pairs(
        self, candidates: Sequence[Mistake], fits: list[tuple[Mistake, Fit]]
    ) -> Cause:
        for first, fit in fits[:_PAIRS_OF]:
            if fit.distance >= self.sound.distance:
                break
            pairs = [(first, second) for second in candidates if second is not first]
            found = [(pair, self._fit(pair)) for pair in pairs if self._has_time()]
            if not found:
                break
            pair, best = min(found, key=lambda item: item[1].distance)
            if self._within(best) or self._rounds_as_much(pair, best):
                return self._cause(pair, best, True)
        best = fits[0][1] if fits else self.sound
        return self._unknown(
            f"none of {len(candidates)} known mistakes explains it"
            + (", nor do two of them" if self._has_time() else "; not all pairs were tried in time")
            + f"; the nearest leaves {min(1.0, best.distance / self.sound.distance):.0%} of it"
        )

    def _fit(self, chosen: Sequence[Mistake]) -> Fit:
        try:
            candidate = self.run(chosen)
        except (RuntimeError, ValueError, IndexError):  # the mistake does not fit these sizes
            return Fit(np.inf, 1.0, 0, np.inf)
        return self.fit(candidate)

    def fit(self, candidate: Arrays, bounds: dict[str, float] | None = None) -> Fit:
        """Compares a candidate with what was given."""
        strain, unequal, count, total = 0.0, 0.0, 0, 0.0
        for name, theirs in self.given.items():
            ours = candidate[name]
            if ours.shape != theirs.shape:
                ours = ours[..., : theirs.shape[-1]]
            entry = self.judge.pack.entries.get(name)
            if theirs.dtype.kind in "iu":
                share = float(np.mean(ours != theirs))
                unequal, count = max(unequal, share), count + int((ours != theirs).sum())
                total += (share / 1e-3) ** 2
                continue
            bound = (
                (bounds or {}).get(name) or (self.judge.bound(entry) if entry else None) or 1e-30
            )
            off = _off(ours, theirs) / bound
            strain = max(strain, float(off.max(initial=0.0)))
            total += float(np.square(off).mean())
        return Fit(strain, unequal, count, float(np.sqrt(total)))

    def _within(self, fit: Fit) -> bool:
        return fit.strain <= 1 and self._near_ties_alone(fit)

    def _near_ties_alone(self, fit: Fit) -> bool:
        return fit.unequal <= _UNEQUAL and fit.count <= _LEFT * self.sound.count

    def _rounds_as_much(self, chosen: Sequence[Mistake], fit: Fit) -> bool:
        """Whether what is left is the rounding of the mistaken network, which may exceed our bounds."""
        if fit.distance > 1e-3 * self.sound.distance or not self._near_ties_alone(fit):
            return False
        if self.part == "decoding" or any(mistake.rounds for mistake in chosen):
            return False
        single = self.run(chosen)
        double = self.run((*chosen, _IN_FLOAT64))
        bounds = {
            name: arrays.FACTOR * max(arrays.largest(single[name], double[name]), 1e-30)
            for name in self.given
            if single[name].dtype.kind == "f"
        }
        return self.fit(single, bounds).strain <= 1

    def _like_rounding(self, fit: Fit) -> bool:
        """Rounding alike: correlated with ours of that kind, and nowhere larger than bfloat16's."""
        if not self.floats or 1 - fit.distance / self.sound.distance < _SHARE_OF_ROUNDING:
            return False
        bounds = {name: self._half_bound(name) for name in self.given}
        return self.fit(self.run(()), bounds).strain <= 1.5

    def _half_bound(self, name: str) -> float | None:
        entry = self.judge.pack.entries.get(name)
        return entry.bounds.get("bfloat16") if entry else None

    def _cause(
        self, chosen: Sequence[Mistake], fit: Fit, explained: bool, remark: str = ""
    ) -> Cause:
        share = max(0.0, 1 - fit.distance / self.sound.distance) if self.sound.distance else 1.0
        return Cause(self.part, tuple(chosen), share, explained, remark)

    def _unknown(self, remark: str) -> Cause:
        return Cause(self.part, (), 0.0, False, remark)


_IN_FLOAT64 = Mistake("float64", lambda model: rounding.in_dtype(model, torch.float64))


def _off(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """|difference|; equal infinities differ by nothing, unequal ones by a lot."""
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    finite = np.isfinite(ours) & np.isfinite(theirs)
    off = np.abs(np.where(finite, ours, 0) - np.where(finite, theirs, 0))
    return np.where(finite | (ours == theirs), off, 1e30)


# The parts ------------------------------------------------------------------------------------


def patched(model: nn.Module, chosen: Sequence[Mistake]) -> contextlib.ExitStack:
    """The network with all the chosen mistakes, until the stack is closed."""
    stack = contextlib.ExitStack()
    for mistake in chosen:
        stack.enter_context(mistake.patch(model))
    return stack


def of_network(
    part: str, judge: Judge, given: Arrays, model: nn.Module, layer: int | None
) -> Cause:
    """The cause of differences in "transformer", "encoder" or "decoder".

    Args:
      part: one of these.
      judge: knows pack and bounds.
      given: their arrays of this part.
      model: our network, sound.
      layer: of the first difference in the transformer, if the inner layers were given.
    """
    pack = judge.pack
    inputs, last = {"transformer": ("ids", "transformer.logits"),
                    "encoder": ("images", "tokenizer.indices"),
                    "decoder": ("tokenizer.indices", "tokenizer.images")}[part]  # fmt: skip
    compute = {"transformer": networks.transformer_arrays, "encoder": networks.encoder_arrays,
               "decoder": networks.decoder_arrays}[part]  # fmt: skip

    def run(chosen: Sequence[Mistake]) -> Arrays:
        values = pack.whole(inputs)
        for mistake in chosen:
            values = mistake.given(values)
        with patched(model, chosen):
            found = compute(model, values)
        for mistake in chosen:
            found[last] = mistake.returned(found[last])
        return found

    if part == "transformer":
        count = len(model.layers)
        layers = (
            [layer] if layer is not None else list(range(count if count <= _MOST_LAYERS else 0))
        )
        candidates = mistakes.of_transformer(model, pack.manifest["model"]["codes"], layers)
    else:
        candidates = mistakes_tokenizer.of_tokenizer(part)
    return Diagnosis(part, judge, given, run).search(candidates)


def of_decoding(
    judge: Judge, theirs: Theirs, model: nn.Module | None, found: Sequence[Mistake]
) -> Cause:
    """The cause of differences in decoding.

    Args:
      judge: knows pack and bounds.
      theirs: what was given.
      model: the sound transformer; without it whole runs are not explained.
      found: mistakes of the transformer that are known already.
    """
    runs = [run_of(row) for row in judge.pack.manifest["decoding"]]
    steps = {name: values for name, values in theirs.arrays.items() if name.startswith("decoding.")}

    def diagnosis(more_steps: int, wider: Callable[[], Diagnosis] | None = None) -> Diagnosis:
        given = steps | ({} if model is None else _until_they_part(judge, theirs, runs, more_steps))

        def compute(chosen: Sequence[Mistake]) -> Arrays:
            stack = patched(model, chosen) if model is not None else contextlib.nullcontext()
            values: Arrays = {}
            with stack, torch.inference_mode():
                for run in runs:
                    values |= _decode(judge, run, given, model, chosen)
            return values

        return Diagnosis("decoding", judge, given, compute, wider)

    first = diagnosis(2, lambda: diagnosis(max(run.num_iter for run in runs)))
    if not first.given:
        return Cause("decoding", (), 0.0, False, "the weights are not at hand (--transformer)")
    of_inputs = []
    if model is not None:
        codes = judge.pack.manifest["model"]["codes"]
        all_of = mistakes.of_transformer(model, codes, [])
        of_inputs = [m for m in all_of if m.rounds or "token" in m.name]
        if found:
            together = Mistake("the mistakes of the transformer, named above",
                               lambda m: patched(m, found), _chain(found))  # fmt: skip
            of_inputs.insert(0, together)
    return first.search([*of_inputs, *mistakes.OF_DECODING])


def _until_they_part(judge: Judge, theirs: Theirs, runs: list[Run], more_steps: int) -> Arrays:
    """The guesses of the first run that differs, [S, B, N], until some steps after the difference."""
    for run in runs:
        guesses = theirs.guesses.get(run.name)
        records = [] if guesses is None else judge.guesses(run, guesses)
        step = next((i for i, record in enumerate(records) if not record.passed), None)
        if step is None:
            continue
        if guesses.ndim == 3:
            guesses = guesses.swapaxes(0, 1)[
                run.start_iter : run.start_iter + step + 1 + more_steps
            ]
            return {f"{run.prefix}guesses": guesses}
    return {}


def _chain(found: Sequence[Mistake]) -> Callable[[np.ndarray], np.ndarray]:
    def given(values: np.ndarray) -> np.ndarray:
        for mistake in found:
            values = mistake.given(values)
        return values

    return given


def _decode(
    judge: Judge, run: Run, given: Arrays, model: nn.Module | None, chosen: Sequence[Mistake]
) -> Arrays:
    """What the run would have given with these mistakes, under the names that were given."""
    rules = next((m.rules for m in chosen if m.rules), decoding.GOOGLE)

    def network(tokens: torch.Tensor, step: int) -> torch.Tensor:
        return model(torch.from_numpy(_chain(chosen)(tokens.numpy())))

    values: Arrays = {}
    wanted = [name for name in given if name.startswith(run.prefix)]
    guesses = f"{run.prefix}guesses"
    if guesses in wanted:
        start = judge.pack.whole(f"{run.prefix}state")[0]
        sampled = decoding.replay(run, start, network, rules, len(given[guesses]))["sampled"]
        values[guesses] = sampled
    if set(wanted) - {guesses}:
        values |= _steps(judge, run, given, rules, network if model is not None else None)
    return values


def _steps(
    judge: Judge,
    run: Run,
    given: Arrays,
    rules: decoding.Rules,
    network: decoding.TokensToLogits | None,
) -> Arrays:
    """Every step from their state, if they gave it, else from the recorded one."""
    pack = judge.pack
    recorded = pack.whole(f"{run.prefix}state")
    states = given.get(f"{run.prefix}state", recorded)
    entry = pack.entries[f"{run.prefix}logits"]
    stored = None if entry.stride else pack.whole(entry.name)
    swapped = run.partitionable != rules.other_layout
    key = Key.from_words(list(run.key), swapped)
    masked_at_start = torch.from_numpy((recorded[0] == MASK).sum(-1))
    found = []
    for index, step in enumerate(range(run.start_iter, run.num_iter)):
        state = torch.tensor(states[index]).long()
        same = np.array_equal(states[index], recorded[index])
        if stored is not None and same and not rules.all_logits:
            logits = torch.from_numpy(stored[index])
        elif network is not None:
            logits = network(state, index)
        else:
            raise ValueError(f"{entry.name}: not at hand")
        step_found, key = decoding.one_step(run, rules, state, logits, key, step, masked_at_start)
        found.append(step_found)
    return {run.prefix + n: torch.stack([f[n] for f in found]).numpy() for n in found[0]}
