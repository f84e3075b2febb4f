"""Fixtures for the tests of training."""

import processes
import pytest


@pytest.fixture(autouse=True)
def short_measurements(monkeypatch):
    """Runs measure the matrix rate for a moment, instead of a third of a second at each start."""
    monkeypatch.setattr("train.loop.matrix_rate", processes.brief_matrix_rate)
