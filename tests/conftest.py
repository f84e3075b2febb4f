"""Fixtures for the tests of all packages."""

import json
import os
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported: a core a worker
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.cpu_count = lambda: 1  # what commands take for their threads

import format_files
import ml_collections
import pytest
from recorded import OFFICIAL, load_tiny


@pytest.fixture
def tiny_config() -> ml_collections.ConfigDict:
    """The configuration behind `tests/golden/official`."""
    return ml_collections.ConfigDict(json.loads((OFFICIAL / "tiny_config.json").read_text()))


@pytest.fixture
def tiny_transformer():
    """The transformer of `tests/golden/official`, in evaluation mode."""
    return load_tiny("transformer")


@pytest.fixture
def tiny_tokenizer():
    """The tokenizer of `tests/golden/official`, in evaluation mode."""
    return load_tiny("tokenizer")


@pytest.fixture(scope="session")
def foreign_files(tmp_path_factory) -> Path:
    """A folder with `formats/*` and `besnier/vqgan/*`: files as other projects write them."""
    return format_files.unpack(tmp_path_factory.mktemp("foreign"))


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Workers of the default tests; none for full-size or GPU checks, a debugger, or `-s`.

    Three keep two cores busy: a fifth of the time a test waits, for a process or for a browser.
    """
    selected = config.option.markexpr
    alone = selected and "not slow" not in selected
    return 0 if alone or config.option.usepdb or config.option.capture == "no" else 3
