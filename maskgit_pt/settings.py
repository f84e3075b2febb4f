"""Settings as dataclasses: default, range and help of each stand once, at its field, and make its flag."""

import dataclasses
import types
import typing
from collections.abc import Collection
from typing import Any, TypeVar

from absl import flags

T = TypeVar("T")


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


def from_flags(of: type[T], flag_values: flags.FlagValues, **others: Any) -> T:
    """Returns the dataclass `of` with the values of its flags; `others` are given instead of flags."""
    own = {name: flag_values[name].value for name in fields(of) if name not in others}
    return of(**own | others)
