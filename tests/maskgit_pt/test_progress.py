"""The bar moves with every step, and a long wait is announced."""

import pytest
import torch

from maskgit_pt import progress
from maskgit_pt.progress import Progress, duration
from maskgit_pt.samplers import State


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    return now


def after(images):
    """A sampler's state of so many images."""
    tokens = torch.zeros(images, 1, dtype=torch.int64)
    return State(tokens, tokens < 0, tokens)


def test_the_bar_moves_with_every_step():
    with Progress(4, 6, by_step=True, shown=True) as bar:
        seen = []
        for _ in range(2):
            for _ in range(6):
                bar.step(after(2))
                seen.append(bar._bar.n)
            bar.finish(2)
            seen.append(bar._bar.n)
    assert seen == sorted(seen) and len(set(seen)) == len(seen)
    assert seen[6] == 2 and seen[-1] == 4


def test_samplers_that_stop_early_or_do_more():
    with Progress(2, 2, by_step=True, shown=True) as bar:
        for _ in range(9):
            bar.step(after(1))
        assert bar._bar.n <= 1
        bar.finish(1)
        bar.finish(1)
        assert bar._bar.n == 2


@pytest.mark.parametrize(
    ("seconds", "by_step", "shown", "told"),
    [(10, True, None, True), (0.1, True, None, False), (10, False, None, False),
     (10, True, False, False)],
)  # fmt: skip
def test_a_long_wait_is_announced(clock, capsys, seconds, by_step, shown, told):
    with Progress(8, 14, by_step=by_step, shown=shown) as bar:
        for _ in range(3):
            clock[0] += seconds
            bar.step(after(1))
    error = capsys.readouterr().err
    assert error.count("expected time") == told
    assert "about 21 min for 8 images of 14 steps" in error or not told  # 10 s x 16 x 8


def test_durations():
    assert [duration(s) for s in (45, 720, 12600)] == ["45 s", "12 min", "3.5 h"]
