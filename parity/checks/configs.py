"""The official configurations, field by field, against those of `maskgit_pt.configs`."""

import importlib
from collections.abc import Iterator
from types import ModuleType

from parity.compare import Record


def configurations(official: dict[str, ModuleType]) -> Iterator[Record]:
    """Compares the official config modules, by name, with ours."""
    for name, theirs in official.items():
        ours = importlib.import_module(f"maskgit_pt.configs.{name}").get_config().to_dict()
        expected = theirs.get_config().to_dict()
        fields = set(ours) | set(expected)
        different = sorted(key for key in fields if ours.get(key) != expected.get(key))
        message = f"fields that differ: {different}" if different else f"{len(fields)} fields"
        yield Record(name, not different, tolerance="equal", message=message)
