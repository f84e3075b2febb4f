"""Checks an implementation against a pack: table of stages, first difference, likely causes."""

import dataclasses
import re
import time
from typing import Any

import numpy as np

from parity.compare import Record
from parity.packs import diagnose, models
from parity.packs.compare import Judge
from parity.packs.diagnose import Cause
from parity.packs.pack import Pack
from parity.packs.theirs import Theirs, run_of
from parity.stages import Result

_PARTS = {
    "transformer": r"transformer\.(?!loss|gradients)",
    "encoder": r"tokenizer\.(encoder|indices|quantized|nearest)",
    "decoder": r"tokenizer\.(decoder|images)",
    "decoding": r"decoding\.",
}
_NEEDS = {"transformer": "transformer", "encoder": "tokenizer", "decoder": "tokenizer",
          "decoding": "transformer"}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Report:
    """What a check found.

    Attributes:
      results: of the stages, in the order of computation.
      first: the first difference, if any.
      causes: one for every part that differs.
      unchecked: stages of which nothing was given, or only some arrays.
      notes: for the user.
    """

    results: tuple[Result, ...]
    first: Record | None
    causes: tuple[Cause, ...]
    unchecked: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return bool(self.results) and all(result.passed for result in self.results)

    @property
    def sentence(self) -> str:
        """The verdict in words."""
        failed = [result for result in self.results if not result.passed]
        compared = sum(len(result.records) for result in self.results)
        if not self.results:
            return "nothing was given that this pack could be compared with"
        if failed:
            return f"{len(failed)} of the {len(self.results)} stages given differ"
        return f"all {compared} comparisons in the {len(self.results)} stages given agree"


def check(pack: Pack, theirs: Theirs, dtype: str = "float32", files: dict | None = None) -> Report:
    """Compares what was given with a pack, and looks for the cause of what differs.

    Args:
      pack: what was recorded.
      theirs: what was given.
      dtype: in which theirs computes, "float32" or "bfloat16".
      files: weights by kind, for packs that do not hold them.

    Raises:
      ValueError, OSError: files hold other weights.
    """
    judge = Judge(pack, dtype)
    notes = list(theirs.notes)
    found: dict[tuple[str, str], list[Record]] = {}
    seconds: dict[tuple[str, str], float] = {}
    for name in pack.entries:
        if name not in theirs.arrays:
            continue
        if pack.entries[name].dtype == "float32" and judge.bound(pack.entries[name]) is None:
            notes.append(f"{name}: the pack has no bound for {dtype}; not compared")
            continue
        started, stage = time.perf_counter(), stage_of(name)
        found.setdefault(stage, []).append(judge.compare(name, theirs.arrays[name]))
        seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - started
    for row in pack.manifest["decoding"]:
        if row["name"] in theirs.guesses:
            run = run_of(row)
            stage = ("decoding", f"{run.name}, guesses of the whole run")
            found[stage] = judge.guesses(run, theirs.guesses[run.name])
    results = [
        Result(*stage, tuple(records), seconds.get(stage, 0.0)) for stage, records in found.items()
    ]
    for function, why in theirs.troubles.items():
        results.append(Result("code", function, (), 0.0, f"could not run: {why}"))
    failed = [record for result in results for record in result.records if not record.passed]
    first = min(failed, key=lambda record: _place(pack, record), default=None)
    causes = _causes(judge, theirs, failed, first, files or {})
    return Report(tuple(results), first, causes, _unchecked(pack, theirs), tuple(notes))


def stage_of(name: str) -> tuple[str, str]:
    """Section and title of the stage to which an array belongs."""
    section, _, rest = name.partition(".")
    parts = rest.split(".")
    if section == "decoding":
        return section, f"{parts[0]}.{parts[1]}, step by step"
    if parts[0] == "layers":
        return section, f"layer {parts[1]}"
    titles = {
        "embed": "embedding", "mlm_layer": "head", "logits": "logits", "loss": "loss",
        "gradients": "gradients", "encoder": "encoder", "indices": "quantizer",
        "nearest_codes": "quantizer", "nearest_distances": "quantizer", "quantized": "quantizer",
        "decoder": "decoder", "images": "images",
    }  # fmt: skip
    return section, titles.get(parts[0], parts[0])


def _place(pack: Pack, record: Record) -> tuple[int, ...]:
    """Sorts differences in the order of computation; in decoding the step counts first."""
    names = list(pack.entries)
    name, _, step = record.name.partition(", step ")
    place = names.index(name)
    if not name.startswith("decoding."):
        return (place, 0, 0)
    run = name.rpartition(".")[0]
    start = next(i for i, other in enumerate(names) if other.startswith(run))
    if step:
        row = next(r for r in pack.manifest["decoding"] if run == f"decoding.{r['name']}")
        return (start, int(step) - row["start_iter"], place)
    return (start, record.where[0] if record.where else 0, place)


def step_of(pack: Pack, record: Record) -> int | None:
    """The decoding step of a difference, counted as in the schedule; None elsewhere."""
    name, _, step = record.name.partition(", step ")
    if not name.startswith("decoding."):
        return None
    if step:
        return int(step)
    row = next(r for r in pack.manifest["decoding"] if name.startswith(f"decoding.{r['name']}."))
    return row["start_iter"] + (record.where[0] if record.where else 0)


def _causes(
    judge: Judge, theirs: Theirs, failed: list[Record], first: Record | None, files: dict
) -> tuple[Cause, ...]:
    causes, loaded = [], {}
    found = []
    for part, pattern in _PARTS.items():
        records = [record for record in failed if re.match(pattern, record.name)]
        if not records:
            continue
        kind = _NEEDS[part]
        if kind not in loaded:
            loaded[kind] = models.load(judge.pack, kind, files.get(kind))
        if part == "decoding":
            causes.append(diagnose.of_decoding(judge, theirs, loaded[kind], found))
            continue
        given = {
            name: values
            for name, values in theirs.arrays.items()
            if re.match(pattern, name) and _fits(judge.pack, name, values)
        }
        if loaded[kind] is None or not given:
            why = f"the weights are not at hand (--{kind})" if given else "no array has its shape"
            causes.append(Cause(part, (), 0.0, False, why))
            continue
        layer = re.match(r"transformer\.layers\.(\d+)\.", records[0].name)
        number = int(layer[1]) if layer else None
        causes.append(diagnose.of_network(part, judge, given, loaded[kind], number))
        if part == "transformer":
            found = list(causes[-1].mistakes)
    return tuple(causes)


def _fits(pack: Pack, name: str, values: np.ndarray) -> bool:
    entry = pack.entries[name]
    if name.startswith("tokenizer.nearest"):
        return False
    return values.shape == entry.shape or (name.endswith("logits") and values.ndim == 3)


def _unchecked(pack: Pack, theirs: Theirs) -> tuple[str, ...]:
    """Stages with arrays that were not given."""
    missing: dict[tuple[str, str], list[int]] = {}
    whole = {f"decoding.{name}." for name in theirs.guesses}
    for name, entry in pack.entries.items():
        if entry.given:
            continue
        counts = missing.setdefault(stage_of(name), [0, 0])
        counts[1] += 1
        counts[0] += name not in theirs.arrays
    lines = []
    for (section, title), (absent, total) in missing.items():
        covered = any(prefix.startswith(f"decoding.{title.split(',')[0]}.") for prefix in whole)
        if absent:
            of = "" if absent == total else f" ({absent} of {total} arrays)"
            lines.append(f"{section}: {title}{of}" + (", but for the guesses" if covered else ""))
    return tuple(lines)


def as_json(pack: Pack, report: Report) -> dict[str, Any]:
    """The findings for a program to read."""
    first = report.first
    return {
        "passed": report.passed,
        "sentence": report.sentence,
        "first_difference": first
        and {"name": first.name, "step": step_of(pack, first), "where": list(first.where)},
        "causes": [
            {
                "part": cause.part,
                "names": list(cause.names),
                "share": cause.share,
                "explained": cause.explained,
                "remark": cause.remark,
            }
            for cause in report.causes
        ],
        "stages": [
            {
                "section": result.section,
                "title": result.title,
                "passed": result.passed,
                "differs": [record.name for record in result.records if not record.passed],
                "trouble": result.trouble,
            }
            for result in report.results
        ],
        "not_checked": list(report.unchecked),
        "notes": list(report.notes),
    }
