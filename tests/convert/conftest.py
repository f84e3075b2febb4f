"""Fixtures: the recorded official checkpoints and a miniature one."""

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from convert_samples import MINIATURE, OFFICIAL, ROLES, seeded_flat, write_flax

from convert import flax_msgpack, rules, tables


@pytest.fixture(params=ROLES)
def model_type(request) -> str:
    return request.param


@pytest.fixture
def google_file(model_type) -> Path:
    """Google's format, as recorded: `tiny_{transformer,tokenizer}_checkpoint`."""
    return OFFICIAL / f"tiny_{ROLES[model_type]}_checkpoint"


@pytest.fixture
def flat(google_file) -> dict[str, np.ndarray]:
    return dict(flax_msgpack.flatten(flax_msgpack.loads(google_file.read_bytes())))


@pytest.fixture
def miniature_flat() -> dict[str, np.ndarray]:
    return seeded_flat("maskgit_transformer", MINIATURE)


@pytest.fixture
def miniature(tmp_path, miniature_flat) -> Path:
    """A Google-format file of a few kilobytes."""
    return write_flax(tmp_path / "miniature_checkpoint", miniature_flat)


@pytest.fixture
def change_row(monkeypatch):
    """Puts a mistake into the transformer's table, for the length of a test."""

    def change(module: str, stacked: str | None = None, leaves: dict | None = None) -> None:
        rows = list(tables.TABLES["maskgit_transformer"])
        (index,) = [i for i, row in enumerate(rows) if row[0].endswith(module)]
        torch_module, official, right = rows[index]
        if stacked:
            official = official.replace("query,key,value", stacked)
        rows[index] = (torch_module, official, right | (leaves or {}))
        monkeypatch.setitem(tables.TABLES, "maskgit_transformer", rows)
        _forget_tables()

    yield change
    monkeypatch.undo()
    _forget_tables()


def _forget_tables() -> None:
    for cached in (rules._target, rules._patterns, rules._find_row):
        cached.cache_clear()


@pytest.fixture
def run_command(monkeypatch, capsys):
    """Runs a command, given as its module, in this process; it must succeed."""

    def run(command: ModuleType, *arguments: str) -> None:
        monkeypatch.setattr("sys.argv", ["program", *arguments])
        try:
            assert command.cli() == 0, capsys.readouterr()
        finally:
            command.FLAGS.unparse_flags()

    return run
