"""The comparison helper and the running of stages; neither needs JAX."""

import numpy as np
import pytest
import torch

from parity.compare import compare, compare_exact, compare_trees, control
from parity.stages import Stage, describe, run_stages, summary_line


def test_reports_the_largest_difference_and_where():
    theirs = np.zeros((2, 3), np.float32)
    theirs[0, 0] = -10
    ours = theirs.copy()
    ours[1, 2] = 0.5
    record = compare("x", ours, theirs, atol=0.1, rtol=0.05)
    assert record.passed and record.where == (1, 2)
    assert record.max_abs == 0.5 and record.max_rel == pytest.approx(0.05)
    assert record.strain == pytest.approx(0.5 / 0.6)
    assert not compare("x", ours, theirs, atol=0.4).passed


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        (np.zeros(3, np.float32), np.zeros(4, np.float32), "shape [3] here, [4] in JAX"),
        (np.zeros(3, np.float32), np.zeros(3, np.float64), "dtype float32 here, float64 in JAX"),
        (np.zeros(3, np.int64), np.zeros(3, np.float32), "dtype int64 here, float32 in JAX"),
        (np.float32([0, np.nan]), np.zeros(2, np.float32), "NaN here: 1 of 2, first at (1,)"),
        (np.zeros(2, np.float32), np.float32([np.nan, 0]), "NaN in JAX: 1 of 2, first at (0,)"),
        (np.zeros(0, np.float32), np.zeros(0, np.float32), "nothing to compare: no elements"),
    ],
)
def test_what_cannot_be_compared_fails_and_says_why(ours, theirs, message):
    record = compare("x", ours, theirs, atol=1e9)
    assert not record.passed and record.message == message


def test_equal_infinities_agree_and_unequal_ones_do_not():
    theirs = np.float32([np.inf, -np.inf, 1])
    assert compare("x", theirs.copy(), theirs).passed
    assert not compare("x", np.float32([np.inf, np.inf, 1]), theirs, atol=1e9).passed
    assert not compare("x", np.float32([np.inf, -np.inf, np.inf]), theirs, atol=1e9).passed


def test_exact_mode_counts_and_names_the_first_difference():
    ours, theirs = torch.tensor([[1, 2], [3, 4]]), np.int32([[1, 2], [0, 0]])
    record = compare_exact("tokens", ours, theirs)
    assert not record.passed and record.agreement == 0.5 and record.where == (1, 0)
    assert record.message.startswith("2 of 4 differ: 3 here, 0 in JAX, first at (1, 0)")
    assert compare_exact("tokens", theirs, theirs.astype(np.int64)).passed
    assert not compare_exact("tokens", theirs, theirs.astype(np.float32)).passed
    assert not compare_exact("tokens", np.zeros(0, int), np.zeros(0, int)).passed


def test_zero_bound_means_equal():
    assert compare("x", np.float32([1]), np.float32([1])).passed
    assert not compare("x", np.float32([1.0000001]), np.float32([1])).passed


def test_trees_must_have_the_same_names():
    one = np.ones(2, np.float32)
    (record,) = compare_trees("g", {"a": one}, {"b": one})
    assert not record.passed and "only in JAX: ['b']" in record.message
    # A tiny entry is measured against the scale of all.
    records = compare_trees(
        "g", {"a": one, "b": one * 1e-8}, {"a": one, "b": one * 2e-8}, atol=1e-7, rtol=1e-7
    )
    assert all(record.passed for record in records)


def test_controls_pass_when_the_comparison_fails():
    zeros, ones = np.zeros(2, np.float32), np.ones(2, np.float32)
    assert control(compare("x", ones, zeros, atol=0.1), "fault").passed
    missed = control(compare("x", zeros, zeros, atol=0.1), "fault")
    assert not missed.passed and "NOT NOTICED" in missed.message


def test_stages_that_break_off_or_compare_nothing_have_not_passed(capsys):
    def breaks_off():
        yield compare_exact("x", np.ones(1), np.ones(1))
        raise RuntimeError("no such thing\nat all")

    good = Stage("s", "good", lambda: [compare_exact("x", np.ones(1), np.ones(1))])
    stages = [good, Stage("s", "bad", breaks_off), Stage("s", "empty", lambda: [])]
    results = list(run_stages(stages))
    assert [result.passed for result in results] == [True, False, False]
    assert describe(results[1]) == "could not run: RuntimeError: no such thing at all"
    assert describe(results[2]) == "compared nothing"
    assert summary_line(results[1]).startswith("FAIL")
    assert "RuntimeError" in capsys.readouterr().err
