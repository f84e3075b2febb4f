"""`maskgit-convert --verify`: whose weights these may be, and whether two files hold the same ones."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

import maskgit_pt
from convert import infer, inspection, rules
from convert.checkpoint import Checkpoint, Given, MissingWeights
from convert.files.tensors import one_thread
from convert.formats.recognise import recognise
from convert.rules import abbreviate
from convert.verification import ledger
from convert.verification.ledger import Entry, Ranges
from maskgit_pt.files import path_sha256
from maskgit_pt.nets.halton_transformer import RMSNorm
from maskgit_pt.pretrained import without_values

# Bytes in a wrong order, or read as another dtype, give numbers of 1e30 as easily as of 1. Trained weights of
# this family stay far within: of Google's 256-pixel transformer the largest known is 3.
LARGEST = 1000.0
# Gains of norms begin at 1. The smallest and largest known of Google's are .022 and 2.55.
LARGEST_GAIN = 100.0
_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm2d, RMSNorm)


@dataclass
class Verification:
    """What was found about a file.

    Attributes:
      rows: heading -> text, for a person.
      problems: what speaks against the file; empty if nothing does.
    """

    rows: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Agreement:
    """How two sets of weights of one type agree, tensor by tensor, under the official names.

    Attributes:
      equal: tensors that are equal bit for bit.
      rounded: tensors of different dtypes, equal once the more exact one is rounded as the other.
      differing: name -> largest difference of two numbers (NaN where one has a NaN).
      missing, extra: names of the first alone, and of the second alone.
      misshapen: name -> both shapes.
    """

    equal: tuple[str, ...]
    rounded: tuple[str, ...]
    differing: Mapping[str, float]
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    misshapen: Mapping[str, str]

    @property
    def agrees(self) -> bool:
        """Whether nothing differs but the rounding."""
        return not (self.differing or self.missing or self.extra or self.misshapen)

    def __str__(self) -> str:
        everything = (self.equal, self.rounded, self.differing, self.misshapen, self.missing)
        total = sum(map(len, everything)) + len(self.extra)
        parts = [f"{len(self.equal)} of {total} tensors are equal bit for bit"]
        if self.rounded:
            parts.append(f"{len(self.rounded)} are equal when rounded to the other's dtype")
        if self.differing:
            worst = max(self.differing, key=lambda name: _nan_last(self.differing[name]))
            parts.append(
                f"{len(self.differing)} differ, by at most {self.differing[worst]:.3g} in {worst}"
            )
        if self.misshapen:
            shapes = [f"{name} {shapes}" for name, shapes in self.misshapen.items()]
            parts.append(f"{len(shapes)} have other shapes: {abbreviate(shapes)}")
        for names, what in ((self.missing, "missing in the other"), (self.extra, "only there")):
            if names:
                parts.append(f"{len(names)} {what}: {abbreviate(list(names))}")
        return "; ".join(parts)


def _nan_last(value: float) -> float:
    return value if value == value else float("inf")


def verify(
    path: str | Path, against: str | Path | None = None, given: Given | None = None
) -> Verification:
    """Checks a file against the ledger, and against another copy of it.

    Args:
      path: file, folder or hub id, of any format.
      against: another one, of any format.
      given: what neither of them tells.

    Raises:
      ValueError, OSError: one line that begins with the path; or the two hold different types.
    """
    given = given or Given()
    found = recognise(path, given.weights)
    checkpoint = found.open(given)
    fingerprint, ranges, finite = inspection.look_through(checkpoint)
    sha256 = path_sha256(checkpoint.path, found.container.files)
    model = ledger.model_of(checkpoint.model_type, checkpoint.config)
    candidates = ledger.entries_of(model)
    result = Verification()
    result.rows["format"] = f"{found.format.NAME}, {found.layout}"
    result.rows["type"] = checkpoint.model_type
    result.rows["pixels"] = infer.resolution(checkpoint.model_type, checkpoint.config)
    result.rows["parameters"] = f"{checkpoint.parameters:,} in {len(checkpoint.tensors)} tensors"
    result.rows["shapes"] = _shapes(checkpoint, model, candidates, result.problems)
    result.rows["values"] = _values(checkpoint, ranges, finite, model, result.problems)
    result.rows["file sha256"] = sha256
    result.rows["fingerprint"] = fingerprint
    result.rows["ledger"] = _known(candidates, sha256, fingerprint, result.problems)
    if notes := [*checkpoint.notes, *checkpoint.unused()]:
        result.rows["notes"] = "; ".join(notes)
    if against is not None:
        other = _other(against, given)
        pair = _of_one_kind(checkpoint, other)
        if pair is None:
            raise ValueError(
                f"{against} holds a {other.model_type}, {path} a {checkpoint.model_type}: nothing to compare"
            )
        agreement = compare(*pair)
        result.rows["agreement"] = f"{agreement} ({against})"
        if not agreement.agrees:
            result.problems.append(f"it is not the same as {against}")
    result.rows["verdict"] = _verdict(candidates, fingerprint, result.problems)
    line = {
        "file": checkpoint.path.name,
        "could_be": [entry.name for entry in candidates],
        "sha256": sha256,
        "fingerprint": fingerprint,
        "format": found.format.NAME,
        "type": checkpoint.model_type,
        "parameters": checkpoint.parameters,
        "dtype": checkpoint.dtype,
        "problems": result.problems,
        "maskgit_pt": maskgit_pt.__version__,
    }
    result.rows["ledger line"] = json.dumps(line)
    return result


def _other(against: str | Path, given: Given) -> Checkpoint:
    """Opens the other copy; of `given.weights` only what it holds: weights alone may well be an average."""
    try:
        return recognise(against, given.weights).open(given)
    except MissingWeights:
        return recognise(against).open(given)


def _of_one_kind(first: Checkpoint, second: Checkpoint) -> tuple[Checkpoint, Checkpoint] | None:
    """Both as they are; or one with the model that the other holds frozen; None if neither fits."""
    for a, b in ((first, second), (first.frozen_part(), second), (first, second.frozen_part())):
        if a and b and a.model_type == b.model_type:
            return a, b
    return None


def _shapes(
    checkpoint: Checkpoint,
    model: ledger.Model | None,
    candidates: list[Entry],
    problems: list[str],
) -> str:
    """What the names and shapes of the tensors fit. That none is missing or extra was checked before."""
    named = [e for e in ledger.entries().values() if e.file == checkpoint.path.name]
    if model is None:
        problems.append("no published file has these shapes")
        return f"of no published file; {ledger.nearest(checkpoint.model_type, checkpoint.config)}"
    if named and not any(entry.model.name == model.name for entry in named):
        problems.append(
            f"it is named as {abbreviate([entry.name for entry in named])}, which has other shapes"
        )
    return f"as expected of {', '.join(entry.name for entry in candidates)}"


def norm_gains(model_type: str, config: dict) -> set[str]:
    """The official names of a model's tensors that norms multiply with."""
    rows = rules.model_rows(model_type, config)
    with without_values():
        model = rules.build(model_type, config)
    names = [f"{name}.weight" for name, part in model.named_modules() if isinstance(part, _NORMS)]
    return {official for name in names for official in rows[name].officials}


def _values(
    checkpoint: Checkpoint,
    ranges: Ranges,
    finite: bool,
    model: ledger.Model | None,
    problems: list[str],
) -> str:
    """Checks that the numbers can be weights at all, and against the ranges that are known."""
    gains = norm_gains(checkpoint.model_type, checkpoint.config)
    wrong = [] if finite else ["not all numbers are finite"]
    wild = [name for name, pair in ranges.items() if _size(pair) > LARGEST]
    if wild and finite:
        wrong.append(f"{len(wild)} tensors hold numbers beyond {LARGEST:.0f}: {abbreviate(wild)}")
    bad = [n for n in gains if n in ranges and not 0 < ranges[n][1] <= LARGEST_GAIN]
    if bad and finite and not wild:
        wrong.append(f"gains of norms outside 0 to {LARGEST_GAIN:.0f}: {abbreviate(sorted(bad))}")
    matrices = {n for n, t in checkpoint.tensors.items() if t.dim() > 1 and t.numel() > 1}
    same = sorted(n for n in matrices if n in ranges and ranges[n][0] == ranges[n][1])
    same = [name for name in same if not name.endswith("bias")]
    if same:
        wrong.append(f"{len(same)} matrices are one number throughout: {abbreviate(same)}")
    problems += wrong
    told = wrong or [_within(ranges, gains)]
    if model is not None and model.ranges:
        if differing := ledger.out_of_range(model, ranges, checkpoint.dtype):
            problems.append("its values are not in the published ranges")
            told.append(
                f"{len(differing)} not in their published range: {abbreviate(differing, 2)}"
            )
        else:
            told.append(f"{len(model.ranges)} tensors in their published ranges")
    return "; ".join(told)


def _within(ranges: Ranges, gains: set[str]) -> str:
    inner = [ranges[name] for name in gains if name in ranges]
    outer = max((_size(ranges[name]) for name in ranges.keys() - gains), default=0.0)
    text = f"finite, none beyond {outer:.3g}, no matrix constant"
    if inner:
        least, most = min(low for low, _ in inner), max(high for _, high in inner)
        text += f", gains of norms {least:.3g} to {most:.3g}"
    return text


def _size(pair: tuple[float, float]) -> float:
    return max(abs(pair[0]), abs(pair[1]))


def _known(candidates: list[Entry], sha256: str, fingerprint: str, problems: list[str]) -> str:
    """What the ledger says about the fingerprint of these files."""
    measured = [entry for entry in candidates if entry.fingerprint]
    for entry in measured:
        if entry.fingerprint == fingerprint:
            file = "the file, byte for byte" if entry.sha256 == sha256 else "the weights"
            return f"{file} of {entry.name}, measured by {entry.measured_by}"
    if not candidates:
        return "has no file like this"
    if len(measured) == len(candidates):
        problems.append("its fingerprint is none of those that are known")
        return f"knows others for {abbreviate([entry.name for entry in measured])}"
    open_ones = [entry.name for entry in candidates if not entry.fingerprint]
    others = f"; none of {len(measured)} that are known" if measured else ""
    return f"nobody has measured {abbreviate(open_ones)} yet{others}"


def _verdict(candidates: list[Entry], fingerprint: str, problems: list[str]) -> str:
    if problems:
        return f"PROBLEMS: {'; '.join(problems)}"
    for entry in candidates:
        if entry.fingerprint == fingerprint:
            return f"these are the weights of {entry.name}"
    names = abbreviate([entry.name for entry in candidates])
    return f"nothing speaks against {names}; the weights themselves are not known yet"


def compare(first: Checkpoint, second: Checkpoint) -> Agreement:
    """Compares two sets of weights of one type, whatever their formats."""
    equal, rounded, differing, misshapen = [], [], {}, {}
    with one_thread():
        for name in sorted(first.tensors.keys() & second.tensors.keys()):
            a, b = first.tensors[name], second.tensors[name]
            if a.shape != b.shape:
                misshapen[name] = f"{list(a.shape)} and {list(b.shape)}"
            elif a.dtype == b.dtype and _same_bits(a, b):
                equal.append(name)
            elif a.dtype != b.dtype and _same_bits(*_both_rounded(a, b)):
                rounded.append(name)
            else:
                differing[name] = float((a.double() - b.double()).abs().max())
            first.release()
            second.release()
    return Agreement(
        tuple(equal),
        tuple(rounded),
        differing,
        tuple(sorted(first.tensors.keys() - second.tensors.keys())),
        tuple(sorted(second.tensors.keys() - first.tensors.keys())),
        misshapen,
    )


def _both_rounded(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    coarse = min((a, b), key=lambda tensor: tensor.itemsize)
    return a.to(coarse.dtype), b.to(coarse.dtype)


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal as whole numbers: a NaN equals itself, and 0 is not -0."""
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.itemsize]
    return bool(torch.equal(a.contiguous().view(whole), b.contiguous().view(whole)))
