"""Fixtures for the tests of all packages."""

import json
from pathlib import Path

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
