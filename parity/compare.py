"""The one comparison helper: two arrays and a bound in, one `Record` out."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Record:
    """What one comparison found.

    Attributes:
      name: what was compared.
      passed: whether it stayed within its bound.
      max_abs: largest absolute difference (exact mode: None).
      max_rel: the same over the largest magnitude in `theirs` (exact mode: None).
      where: index of the largest difference, or of the first unequal element; () if none.
      tolerance: the bound, for a reader.
      agreement: share of equal elements (exact mode: of all; otherwise None).
      message: why it failed, or a remark.
      strain: difference over bound; orders records by how close to failing they are.
      control: True for a negative control, where `passed` means that the fault was noticed.
    """

    name: str
    passed: bool
    max_abs: float | None = None
    max_rel: float | None = None
    where: tuple[int, ...] = ()
    tolerance: str = ""
    agreement: float | None = None
    message: str = ""
    strain: float = 0.0
    control: bool = False


def compare(
    name: str, ours: Any, theirs: Any, atol: float = 0.0, rtol: float = 0.0, message: str = ""
) -> Record:
    """Compares floats: the largest difference must not exceed atol + rtol * max|theirs|.

    `rtol` is relative to the array's scale, not to each element: what an element loses by
    cancellation depends on the terms it was summed from, which are of the array's magnitude.

    Args:
      name: what is compared.
      ours, theirs: arrays, tensors or numbers of one shape and one floating dtype.
      atol, rtol: the bound.
      message: a remark to carry along when it passes.
    """
    ours, theirs = to_numpy(ours), to_numpy(theirs)
    tolerance = _describe_tolerance(atol, rtol)
    problem = _shape_or_dtype_problem(ours, theirs)
    if problem is None and ours.dtype != theirs.dtype:
        problem = f"dtype {ours.dtype} here, {theirs.dtype} in JAX"
    if problem is None:
        problem = _not_a_number(ours, theirs)
    if problem is not None:
        return Record(name, False, tolerance=tolerance, message=problem, strain=np.inf)
    if ours.size == 0:
        return Record(name, False, tolerance=tolerance, message="nothing to compare: no elements")

    finite = np.isfinite(theirs)
    magnitude = float(np.abs(theirs, where=finite, out=np.zeros_like(theirs)).max())
    # Equal infinities differ by nothing; unequal ones by infinity.
    difference = np.abs(np.subtract(ours, theirs, where=ours != theirs, out=np.zeros_like(theirs)))
    where = np.unravel_index(int(difference.argmax()), difference.shape)
    largest = float(difference[where])
    bound = atol + rtol * magnitude
    return Record(
        name,
        passed=largest <= bound,
        max_abs=largest,
        max_rel=largest / magnitude if magnitude else (0.0 if largest == 0 else np.inf),
        where=tuple(int(i) for i in where),
        tolerance=tolerance,
        message=message,
        strain=largest / bound if bound else (0.0 if largest == 0 else np.inf),
    )


def compare_exact(name: str, ours: Any, theirs: Any, message: str = "") -> Record:
    """Compares element by element for equality (tokens, indices, bits; floats bit by bit).

    Integers of different width may be compared; integers with floats may not.
    """
    ours, theirs = to_numpy(ours), to_numpy(theirs)
    problem = _shape_or_dtype_problem(ours, theirs)
    if problem is not None:
        return Record(name, False, tolerance="equal", message=problem, strain=np.inf)
    if ours.size == 0:
        return Record(name, False, tolerance="equal", message="nothing to compare: no elements")
    equal = ours == theirs
    if ours.dtype.kind == "f":
        equal = equal | (np.isnan(ours) & np.isnan(theirs))
    agreement = float(equal.mean())
    if equal.all():
        return Record(name, True, tolerance="equal", agreement=1.0, message=message)
    where = tuple(int(i) for i in np.argwhere(~equal)[0]) if equal.ndim else ()
    found = f"{ours[where]} here, {theirs[where]} in JAX, first at {where}"
    return Record(
        name,
        False,
        where=where,
        tolerance="equal",
        agreement=agreement,
        message=f"{np.count_nonzero(~equal)} of {equal.size} differ: {found}. {message}".strip(),
        strain=np.inf,
    )


def compare_trees(
    name: str, ours: dict[str, Any], theirs: dict[str, Any], atol: float = 0.0, rtol: float = 0.0
) -> Iterable[Record]:
    """Compares two dictionaries of floats; the names must be the same.

    `atol` is times the largest magnitude of the whole tree: an entry that is zero in exact
    arithmetic (the gradient of a key's bias) is nothing but rounding, of the others' scale.
    """
    missing, extra = sorted(set(theirs) - set(ours)), sorted(set(ours) - set(theirs))
    if missing or extra:
        message = f"only in JAX: {missing[:3]}; only here: {extra[:3]}"
        yield Record(name, False, message=message, strain=np.inf)
        return
    scale = max(float(np.abs(to_numpy(value)).max()) for value in theirs.values())
    for key, value in theirs.items():
        yield compare(f"{name} {key}", ours[key], value, atol=atol * scale, rtol=rtol)


def control(record: Record, fault: str) -> Record:
    """Turns the comparison of a deliberately broken port into a negative control.

    Passes if the comparison failed: then it can be trusted to notice the fault.
    """
    noticed = not record.passed
    return dataclasses.replace(
        record,
        name=fault,
        passed=noticed,
        control=True,
        message=f"{record.name}: {'control noticed' if noticed else 'CONTROL NOT NOTICED'}",
        strain=0.0 if noticed else np.inf,
    )


def to_numpy(value: Any) -> np.ndarray:
    """A torch tensor, JAX array, numpy array or number as numpy, NaN and dtype kept."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().contiguous()
        return value.float().numpy() if str(value.dtype) == "torch.bfloat16" else value.numpy()
    return np.asarray(value)


def _shape_or_dtype_problem(ours: np.ndarray, theirs: np.ndarray) -> str | None:
    if ours.shape != theirs.shape:
        return f"shape {list(ours.shape)} here, {list(theirs.shape)} in JAX"
    integer = {"i": "integer", "u": "integer"}
    kinds = {integer.get(array.dtype.kind, array.dtype.kind) for array in (ours, theirs)}
    if len(kinds) > 1:
        return f"dtype {ours.dtype} here, {theirs.dtype} in JAX"
    return None


def _not_a_number(ours: np.ndarray, theirs: np.ndarray) -> str | None:
    for values, side in ((ours, "here"), (theirs, "in JAX")):
        bad = np.isnan(values)
        if bad.any():
            where = tuple(int(i) for i in np.argwhere(bad)[0])
            return f"NaN {side}: {np.count_nonzero(bad)} of {bad.size}, first at {where}"
    return None


def _describe_tolerance(atol: float, rtol: float) -> str:
    parts = [f"{atol:.2g}"] if atol else []
    if rtol:
        parts.append(f"{rtol:.2g} x scale")
    return " + ".join(parts) or "equal"
