"""When processes ask each other whether to stop."""

import os
import signal

import pytest

from train.run import stopping


class TwoProcesses:
    """This process and one that answers alike; counts what they ask."""

    world_size = 2
    asked = 0

    def largest(self, *values):
        self.asked += 1
        return list(values)


class Clock:
    """Seconds that pass only in steps."""

    now = 0.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(stopping, "time", Clock())
    return stopping.time


@pytest.fixture
def make(request):
    """Makes a `Stop`, which gives the signals back after the test."""

    def make(processes):
        stop = stopping.Stop(processes)
        request.addfinalizer(stop.restore)
        return stop

    return make


def run(stop, clock, seconds, steps, batches=None):
    """How many steps are done before it says stop."""
    batches = iter(range(steps)) if batches is None else batches
    for step in range(steps):
        if stop.next(batches) is None:
            return step
        clock.now += seconds
    return steps


@pytest.mark.parametrize("seconds, questions", [(0.001, 10), (0.3, 34), (2.0, 100)])
def test_a_question_every_few_steps(make, clock, seconds, questions):
    """100 steps: 1, 2, 4, 8 and then 16 a question where they are short; one where they are long."""
    two = TwoProcesses()
    assert run(make(two), clock, seconds, 100) == 100
    assert abs(two.asked - questions) <= 1


def ask_while_reading(at, steps=100):
    for number in range(steps):
        if number == at:
            os.kill(os.getpid(), signal.SIGTERM)
            raise AssertionError("the wait goes on")
        yield number


@pytest.mark.parametrize("at, done", [(0, 0), (1, 1), (5, 3), (20, 15)])
def test_a_wait_for_data_ends_at_once(make, clock, at, done):
    """Groups begin at steps 0, 1, 3, 7, 15; none begins without all of its batches."""
    assert run(make(TwoProcesses()), clock, 0.001, 100, ask_while_reading(at)) == done


def test_a_group_that_has_begun_is_finished(make, clock):
    stop, batches = make(TwoProcesses()), iter(range(100))
    assert run(stop, clock, 0.001, 5, batches) == 5  # the group of 3, 4, 5, 6 has begun
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.next(batches) == 5 and stop.next(batches) == 6 and stop.next(batches) is None


def test_a_process_alone_stops_before_the_next_step(make):
    alone = TwoProcesses()
    alone.world_size = 1
    stop, batches = make(alone), iter(range(100))
    assert [stop.next(batches) for _ in range(5)] == [0, 1, 2, 3, 4]
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.next(batches) is None and not alone.asked


def test_the_second_ctrl_c_interrupts(make):
    stop = make(TwoProcesses())
    os.kill(os.getpid(), signal.SIGINT)
    assert stop.asked and stop.interrupted
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(100):
            pass
