"""Faults that every format's files are tried with, and how a file with one must be refused."""

import os
from pathlib import Path

import pytest

import convert

# Fault -> what the message must say; {name} stands for the tensor.
FAULTS = {
    "missing": "missing",
    "extra": "surplus.weight",
    "misshapen": "weight|shape",
    "integers": "is int32; accepted for weights",
}


def mutated(state: dict, name: str, fault: str) -> dict:
    """The tensors of a file with one of `FAULTS` in a tensor."""
    tensor = state[name]
    if fault == "missing":
        return {key: value for key, value in state.items() if key != name}
    if fault == "extra":
        return state | {"surplus.weight": tensor.new_zeros(3)}
    changed = {"misshapen": lambda: tensor[:, :-1].clone(), "integers": tensor.int}[fault]()
    return state | {name: changed}


def refused(path: Path, message: str, output: Path, **options: object) -> None:
    """Converting a file must fail in one line that names it, and leave nothing behind."""
    with pytest.raises(ValueError, match=message) as error:
        convert.convert(path, output, **options)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    assert not output.exists()


class Attack:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)
