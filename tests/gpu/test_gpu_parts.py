"""The questions for a GPU, at toy size on the CPU: so that they work when a GPU is there."""

import os
import time

import pytest
from gpu_parts import PARTS, run_part
from gpu_tools import TOY, Report
from gpu_worker import Worker

# Under torchrun the tests of the training loop start the same commands.
SLOW = pytest.param("torchrun", marks=pytest.mark.slow)


@pytest.mark.parametrize("name", [*(name for name in PARTS if name != "torchrun"), SLOW])
def test_part_on_the_cpu(name):
    report = run_part(name, "cpu", TOY)
    assert not report.wrong
    assert report.figures


def test_wrong_answers_are_noticed():
    report = Report()
    report.check(False, "the sum is 3, not 2")
    report.check(True, "never said")
    assert report.wrong == ["the sum is 3, not 2"]


def test_a_worker_outlives_hangs_and_crashes():
    worker = Worker()
    try:
        assert worker.call(divmod, 7, 2, seconds=60) == (3, 1)
        with pytest.raises(RuntimeError, match="ZeroDivisionError"):
            worker.call(divmod, 7, 0, seconds=60)
        with pytest.raises(TimeoutError, match="more than 0 s"):
            worker.call(time.sleep, 60, seconds=0.2)
        with pytest.raises(RuntimeError, match="exit code 3"):
            worker.call(os._exit, 3, seconds=60)
        assert worker.call(divmod, 9, 4, seconds=60) == (2, 1)
    finally:
        worker.stop()
