"""Compares what an implementation computed with what a pack recorded, name by name."""

import dataclasses
from typing import Any

import numpy as np

from parity.compare import Record
from parity.packs import arrays
from parity.packs.arrays import Entry
from parity.packs.decoding import MASK, Run
from parity.packs.pack import Pack

DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Judge:
    """Compares with the bounds of one dtype.

    Attributes:
      pack: what was recorded.
      dtype: in which the implementation computes, one of `DTYPES`.
    """

    pack: Pack
    dtype: str = "float32"

    def bound(self, entry: Entry) -> float | None:
        """How far an element may be off; None if the pack has no bound for this dtype."""
        return entry.bounds.get(self.dtype)

    def compare(self, name: str, theirs: Any) -> Record:
        """One array of theirs, in the pack's layout, with the recorded one."""
        entry = self.pack.entries[name]
        theirs = np.asarray(theirs)
        if entry.dtype == "float32":
            return self._floats(entry, theirs)
        return self._integers(entry, theirs)

    # Floats -----------------------------------------------------------------------------------

    def _floats(self, entry: Entry, theirs: np.ndarray) -> Record:
        bound = self.bound(entry)
        remark = ""
        if theirs.dtype.kind not in "fiu":
            return _problem(entry, f"dtype {theirs.dtype}; accepted: floats")
        codes = self.pack.manifest["model"].get("codes")
        cut = entry.axes.endswith("V") and theirs.shape == (*entry.shape[:-1], codes)
        if cut:
            remark = f"the first {codes} logits alone"
        elif theirs.shape != entry.shape:
            return _problem(entry, _shapes(theirs.shape, entry.shape))
        theirs = theirs.astype(np.float64)
        if np.isnan(theirs).any():
            where = _index(np.argwhere(np.isnan(theirs))[0])
            count = np.count_nonzero(np.isnan(theirs))
            return _problem(entry, f"{count} of {theirs.size} are NaN, first at {where}")
        if not entry.stride:
            ours = self.pack.part(entry, entry.name)
            ours = ours[..., :codes] if cut else ours
            return _difference(entry.name, theirs, ours, bound, remark)
        return self._strided(entry, theirs, bound)

    def _strided(self, entry: Entry, theirs: np.ndarray, bound: float) -> Record:
        """The strided values, then the sums, which also locate an error that the stride misses."""
        ours = self.pack.part(entry, entry.name + arrays.STRIDED)
        found = theirs.reshape(-1)[:: entry.stride]
        record = _difference(entry.name, found, ours, bound)
        if not record.passed:
            flat = record.where[0] * entry.stride if record.where else 0
            where = tuple(int(i) for i in np.unravel_index(flat, entry.shape))
            return dataclasses.replace(record, where=where)
        worst, places = 0.0, []
        for axis, sums in enumerate(arrays.sums_of(theirs)):
            recorded = self.pack.part(entry, f"{entry.name}{arrays.SUMS}{axis}")
            limit = entry.sum_bound(axis, bound)
            strain = np.abs(sums - recorded) / limit if limit else np.abs(sums - recorded)
            place = int(strain.argmax())
            places.append(place)
            worst = max(worst, float(strain[place]))
        if worst <= 1:
            return dataclasses.replace(record, strain=max(record.strain, worst))
        axes = ", ".join(f"{a} {p}" for a, p in zip(entry.axes.split(), places, strict=True))
        return dataclasses.replace(
            record,
            passed=False,
            where=tuple(places),
            strain=worst,
            message=f"a sum is off by {worst:.3g} times its bound; the error lies around {axes}",
        )

    # Integers ---------------------------------------------------------------------------------

    def _integers(self, entry: Entry, theirs: np.ndarray) -> Record:
        if theirs.dtype.kind not in "iub":
            whole = theirs.dtype.kind == "f" and np.array_equal(theirs, np.round(theirs))
            if not whole:
                return _problem(entry, f"dtype {theirs.dtype}; accepted: integers")
        if theirs.shape != entry.shape:
            return _problem(entry, _shapes(theirs.shape, entry.shape))
        if entry.stride:
            return self._exact_sums(entry, theirs)
        ours = self.pack.part(entry, entry.name)
        theirs = theirs.astype(np.int64)
        unequal = theirs != ours
        agreement = float(1 - unequal.mean()) if unequal.size else 1.0
        if not unequal.any():
            return Record(entry.name, True, tolerance="equal", agreement=1.0)
        close = unequal & self.near_ties(entry.name, theirs)
        if np.array_equal(close, unequal):
            count = np.count_nonzero(unequal)
            message = f"{count} near ties: scores within the bounds, decided the other way"
            return Record(entry.name, True, tolerance="equal", agreement=agreement, message=message)
        where = _index(np.argwhere(unequal & ~close)[0])
        return Record(
            entry.name,
            False,
            where=where,
            tolerance="equal",
            agreement=agreement,
            message=f"{np.count_nonzero(unequal)} of {unequal.size} differ: {theirs[where]}, "
            f"recorded {ours[where]}, first at {where}",
            strain=np.inf,
        )

    def _exact_sums(self, entry: Entry, theirs: np.ndarray) -> Record:
        ours = self.pack.part(entry, entry.name + arrays.STRIDED)
        unequal = theirs.reshape(-1)[:: entry.stride].astype(np.int64) != ours
        places = []
        for axis, sums in enumerate(arrays.sums_of(theirs)):
            wrong = np.flatnonzero(
                sums != self.pack.part(entry, f"{entry.name}{arrays.SUMS}{axis}")
            )
            places.append(int(wrong[0]) if len(wrong) else -1)
        if not unequal.any() and max(places) < 0:
            return Record(entry.name, True, tolerance="equal", agreement=1.0)
        where = tuple(max(0, place) for place in places)
        share = float(1 - unequal.mean())
        message = f"{1 - share:.2%} of the values kept differ, first at {where}"
        return Record(entry.name, False, where=where, tolerance="equal", agreement=share,
                      message=message, strain=np.inf)  # fmt: skip

    def near_ties(self, name: str, theirs: np.ndarray) -> np.ndarray:
        """Where `theirs` is a choice that the bounds allow: bool, shape of the array."""
        if name == "tokenizer.indices":
            codes = self.pack.whole("tokenizer.nearest_codes")
            distances = self.pack.whole("tokenizer.nearest_distances")
            margin = 2 * (self.bound(self.pack.entries["tokenizer.nearest_distances"]) or 0.0)
            return _among(theirs, codes, distances - distances[..., :1], margin)
        prefix, _, what = name.rpartition(".")
        if what == "sampled":
            return self._near_samples(prefix, theirs)
        if what == "next":
            return self._near_masks(prefix, theirs)
        return np.zeros(theirs.shape, bool)

    def _near_samples(self, prefix: str, theirs: np.ndarray) -> np.ndarray:
        tokens = self.pack.whole(f"{prefix}.best_tokens")
        scores = self.pack.whole(f"{prefix}.best_scores")
        margin = 2 * (self.bound(self.pack.entries[f"{prefix}.best_scores"]) or 0.0)
        close = _among(theirs, tokens, scores[..., :1] - scores, margin)
        return close & (self.pack.whole(f"{prefix}.state") == MASK)

    def _near_masks(self, prefix: str, theirs: np.ndarray) -> np.ndarray:
        """Masked or kept with a score about as large as the threshold, or a near tie of the tokens."""
        near = self.near_threshold(prefix)
        sampled = self.pack.whole(f"{prefix}.sampled")
        kept = theirs != MASK
        return (near & ((theirs == sampled) | ~kept)) | (kept & self._near_samples(prefix, theirs))

    def near_threshold(self, prefix: str) -> np.ndarray:
        """Where the score lies within the bounds of the threshold of masking: bool [S, B, N]."""
        scores = self.pack.whole(f"{prefix}.scores").astype(np.float64)
        count = self.pack.whole(f"{prefix}.mask_count")[..., None]
        threshold = np.take_along_axis(np.sort(scores, -1), count, -1)
        margin = 2 * (self.bound(self.pack.entries[f"{prefix}.scores"]) or 0.0)
        below = np.take_along_axis(np.sort(scores, -1), np.maximum(count - 1, 0), -1)
        with np.errstate(invalid="ignore"):  # known tokens have infinite scores
            return (np.abs(scores - threshold) <= margin) & (threshold - below <= margin)

    # Decoding ---------------------------------------------------------------------------------

    def guesses(self, run: Run, theirs: np.ndarray) -> list[Record]:
        """The guesses of a whole run, int [B, num_iter, N] or the last one [B, N], step by step.

        After a near tie that fell the other way nothing can be compared; a remark says so.
        """
        recorded = self.pack.whole(f"{run.prefix}sampled")  # [S, B, N]
        last = theirs.shape == recorded.shape[1:]
        expected = (recorded.shape[1], run.num_iter, recorded.shape[2])
        name = f"{run.prefix}sampled"
        if not last and theirs.shape != expected:
            return [_problem(self.pack.entries[name], _shapes(theirs.shape, expected))]
        theirs = theirs[None] if last else theirs.swapaxes(0, 1)[run.start_iter :]
        records = []
        for step, guess in enumerate(theirs, len(recorded) - 1 if last else 0):
            title = f"{name}, step {run.start_iter + step}"
            records.append(self._guess(run, title, step, guess, recorded[step]))
            if records[-1].message:
                break
        return records

    def _guess(
        self, run: Run, title: str, step: int, theirs: np.ndarray, recorded: np.ndarray
    ) -> Record:
        unequal = theirs != recorded
        if not unequal.any():
            return Record(title, True, tolerance="equal", agreement=1.0)
        whole = self.pack.whole(f"{run.prefix}sampled").copy()
        whole[step] = theirs
        close = self._near_samples(run.prefix[:-1], whole)[step]
        earlier = self.near_threshold(run.prefix[:-1])[:step].any()
        agreement = float(1 - unequal.mean())
        if (close | ~unequal).all() or earlier:
            message = "a near tie fell the other way here; later steps of this run are not compared"
            return Record(title, True, tolerance="equal", agreement=agreement, message=message)
        where = _index(np.argwhere(unequal & ~close)[0])
        message = (
            f"{np.count_nonzero(unequal)} of {unequal.size} differ: {theirs[where]}, recorded "
            f"{recorded[where]}, first at {where}"
        )
        again, kept = self._masked_otherwise(run, step, theirs)
        if (again | kept).any():
            where = _index(np.argwhere(again | kept)[0])
            title = f"{run.prefix}next, step {run.start_iter + step - 1}"
            what = "masked again" if again[where] else "kept"
            message = f"the token at {where} was {what}, unlike in the record; {message}"
        return Record(title, False, where=where, tolerance="equal", agreement=agreement,
                      message=message, strain=np.inf)  # fmt: skip

    def _masked_otherwise(
        self, run: Run, step: int, theirs: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Where a guess shows that the step before masked, or kept, what the record did not: [B, N]."""
        if step == 0:
            return np.zeros(theirs.shape, bool), np.zeros(theirs.shape, bool)
        known = self.pack.whole(f"{run.prefix}state")[step] != MASK
        recorded, before = self.pack.whole(f"{run.prefix}sampled")[step - 1 : step + 1][::-1]
        unequal = theirs != recorded
        return unequal & known, unequal & ~known & (theirs == before)


def _difference(
    name: str, theirs: np.ndarray, ours: np.ndarray, bound: float, remark: str = ""
) -> Record:
    ours = ours.astype(np.float64)
    tolerance = f"{bound:.2g}"
    if (np.isinf(ours) != np.isinf(theirs)).any():
        where = _index(np.argwhere(np.isinf(ours) != np.isinf(theirs))[0])
        message = f"{theirs[where]}, recorded {ours[where]}"
        return Record(name, False, where=where, tolerance=tolerance, message=message, strain=np.inf)
    finite = np.isfinite(ours)
    gap = np.abs(np.where(finite, theirs, 0) - np.where(finite, ours, 0))
    where = _index(np.unravel_index(int(gap.argmax()), gap.shape)) if gap.size else ()
    largest = float(gap.max(initial=0.0))
    magnitude = float(np.abs(ours[finite]).max(initial=0.0))
    return Record(
        name,
        passed=largest <= bound,
        max_abs=largest,
        max_rel=largest / magnitude if magnitude else 0.0,
        where=where,
        tolerance=tolerance,
        message=remark,
        strain=largest / bound if bound else (np.inf if largest else 0.0),
    )


def _among(
    theirs: np.ndarray, choices: np.ndarray, behind: np.ndarray, margin: float
) -> np.ndarray:
    """Whether a choice is among the best few and at most `margin` behind the best."""
    return ((choices == theirs[..., None]) & (behind <= margin)).any(-1)


def _problem(entry: Entry, message: str) -> Record:
    return Record(entry.name, False, message=message, strain=np.inf)


def _shapes(found: tuple[int, ...], expected: tuple[int, ...]) -> str:
    return f"shape {list(found)}; recorded {list(expected)}"


def _index(where: Any) -> tuple[int, ...]:
    return tuple(int(i) for i in where)
