"""Settings as dataclasses: default, range and help of each stand once, at its field, and make its flag."""

import dataclasses
import math
import numbers
import types
import typing
from collections.abc import Collection
from typing import Any, TypeVar

from absl import flags

T = TypeVar("T")

_LARGEST = {int: 2**20, float: 3e38}  # float32 holds no more
_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list of numbers, one a step",
}


def setting(
    default: Any, help: str, *, choices: Collection[str] | None = None, least: float | None = None
) -> Any:
    """Returns a dataclass field that `define_flags` can turn into a flag.

    Args:
      default: of the field and of the flag.
      help: of the flag.
      choices: the accepted texts.
      least: the smallest accepted number.
    """
    metadata = {"help": help, "choices": choices, "least": least}
    return dataclasses.field(default=default, metadata=metadata)


def fields(of: type) -> dict[str, dataclasses.Field]:
    """Returns the fields of a dataclass that were made by `setting`, by name."""
    return {field.name: field for field in dataclasses.fields(of) if "help" in field.metadata}


def define_flags(of: type, flag_values: flags.FlagValues, without: Collection[str] = ()) -> None:
    """Defines a flag for each setting of a dataclass, but for those named in `without`."""
    for name, field in fields(of).items():
        if name not in without:
            define_flag(name, plain_type(of, name), field.default, flag_values, **field.metadata)


def define_flag(
    name: str,
    kind: type,
    default: Any,
    flag_values: flags.FlagValues,
    help: str,
    choices: Collection[str] | None = None,
    least: float | None = None,
) -> None:
    """Defines one flag; `kind` is int, float, bool, str or list (of texts)."""
    if choices is not None:
        flags.DEFINE_enum(name, default, list(choices), help, flag_values)
    elif kind in (int, float):
        define = flags.DEFINE_integer if kind is int else flags.DEFINE_float
        define(name, default, help, least, flag_values=flag_values)
    else:
        define = {bool: flags.DEFINE_bool, str: flags.DEFINE_string, list: flags.DEFINE_list}[kind]
        define(name, default, help, flag_values)


def plain_type(of: type, name: str) -> type:
    """Returns the type of a field without its "| None" and its brackets.

    Of "float | list[float]" that is float: a list with a value a step has no flag.
    """
    kind = typing.get_type_hints(of)[name]
    if isinstance(kind, types.UnionType):
        parts = [part for part in typing.get_args(kind) if part is not type(None)]
        kind = next((part for part in parts if typing.get_origin(part) is not list), parts[0])
    return typing.get_origin(kind) or kind


def check(of: Any) -> None:
    """Checks the settings of a dataclass that was made by `setting` fields.

    Raises:
      ValueError: a value of another type than its field, or a number below its least value, that is not
        finite, or that float32 cannot hold (of whole numbers: above 2**20).
    """
    for name, field in fields(type(of)).items():
        check_value(type(of), name, getattr(of, name), field.metadata["least"])


def check_value(of: type, name: str, value: Any, least: float | None = None) -> None:
    """Checks a value for the setting `name` of the dataclass `of`; errors as `check`."""
    kind = typing.get_type_hints(of)[name]
    kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    kinds = [typing.get_origin(kind) or kind for kind in kinds]
    found = next((kind for kind in kinds if _is_of(value, kind)), None)
    if found is None:
        accepted = " or ".join(_WORDS[kind] for kind in kinds if kind is not types.NoneType)
        raise ValueError(f"{name} is {value!r}; accepted: {accepted}")
    if found not in (int, float, list):
        return
    largest = _LARGEST[int if found is int else float]
    for number in value if found is list else [value]:
        if number > largest:
            raise ValueError(f"{name} is {number}; accepted: at most {largest}")
        if not (-largest if least is None else least) <= number:  # NaN, too
            accepted = "a finite number" if least is None else f"{least} or more"
            raise ValueError(f"{name} is {number}; accepted: {accepted}")


def whole_number(name: str, value: Any, least: int, most: int | None = None) -> int:
    """Returns a whole number that was given as the argument `name`; ValueError if it is none in the range."""
    if not _is_of(value, int) or value < least or (most is not None and value > most):
        limits = f"{least} or more" if most is None else f"{least} to {most}"
        raise ValueError(f"{name} is {value!r}; accepted: a whole number, {limits}")
    return int(value)


def _is_of(value: Any, kind: type) -> bool:
    """Whether a value is of a type, where numbers are those of NumPy as well and no truth values."""
    if kind is list:
        return isinstance(value, list) and all(_is_of(number, float) for number in value)
    if kind in (int, float):
        wider = numbers.Integral if kind is int else numbers.Real
        return isinstance(value, wider) and not isinstance(value, bool)
    return isinstance(value, kind)


def from_flags(of: type[T], flag_values: flags.FlagValues, **others: Any) -> T:
    """Returns the dataclass `of` with the values of its flags; `others` are given instead of flags.

    Raises:
      ValueError: a number that is not finite; NaN passes the least value of a flag.
    """
    own = {name: flag_values[name].value for name in fields(of) if name not in others}
    for name, value in own.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"--{name} is {value}; accepted: a finite number")
    return of(**own | others)
