"""Mask schedules and counts against the official code's."""

import math

import numpy as np
import pytest
import torch
from recorded import assert_close, golden

from maskgit_pt.libml import mask_schedule

METHODS = ["uniform", "cosine", "pow2", "pow2.5", "pow0.5", "log", "exp"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("total", [256, 1024])
def test_recorded_ratios(method, total):
    recorded = golden("mask_schedule")
    ours = mask_schedule.schedule(torch.from_numpy(recorded["ratio"]), total, method)
    assert_close(ours, recorded[f"{method}_{total}"], 1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("total", [16, 100, 143, 256, 1024])
def test_recorded_counts(method, total):
    recorded = golden("mask_counts")[f"{method}_{total}"]  # [T, step], -1 where there is no step
    for T in np.flatnonzero((recorded >= 0).any(1)):
        ratio = torch.arange(1, T + 1, dtype=torch.float32) / float(T)
        steps = min(T, recorded.shape[1])
        counts = torch.floor(total * mask_schedule.schedule(ratio, torch.tensor(total), method))
        np.testing.assert_array_equal(counts[:steps], recorded[T, :steps])


def test_control_float64_counts_are_noticed():
    count = math.floor(256 * math.cos(math.pi / 2 * 8 / 12))
    assert count == 128  # what Python's floats give
    assert math.floor(256 * mask_schedule.schedule(8 / 12, 256)) == 127
    assert golden("mask_counts")["cosine_256"][12, 7] == 127


def test_decoding_schedule_rounds_as_the_compiled_loop():
    """Where a whole number of tokens is due, the last bit decides; see `decoding_schedule`."""
    ratios = torch.arange(1, 13, dtype=torch.float32) / 12.0
    plain = torch.floor(256 * mask_schedule.schedule(ratios, 256, "uniform"))
    loop = torch.floor(256 * mask_schedule.decoding_schedule(12, torch.tensor(256), "uniform"))
    assert plain.tolist() == [234, 213, 192, 170, 149, 128, 106, 85, 64, 42, 21, 0]
    # Counted in the official loop, jax 0.10.2.
    assert loop[:, 0].tolist() == [234, 213, 192, 170, 149, 128, 106, 85, 63, 42, 21, 0]


def test_scalars_count_as_float32():
    assert mask_schedule.schedule(0.5, 256).dtype == torch.float32
    assert float(mask_schedule.schedule(1.0, 256, "uniform")) == pytest.approx(1e-6)


@pytest.mark.parametrize("method", ["linear", "pow", "powx", "", "2pow"])
def test_unknown_method(method):
    with pytest.raises(ValueError, match="known: uniform, pow<exponent>"):
        mask_schedule.schedule(0.5, 256, method)
