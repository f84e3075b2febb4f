"""Fixtures for the tests of all packages."""

import json

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
