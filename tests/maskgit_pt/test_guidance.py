"""Guidance: the weights of the steps, and the formula."""

import math

import pytest
import torch

from maskgit_pt.libml.guidance import guide, weights

MASKED_AFTER = [12.0, 8.0, 4.0, 1.0, 0.0]  # of 16
SCHEDULES = ("constant", "linear", "linear-r", "power-cosine", "power-cosine1", "power-cosine2.5")


def test_weights():
    assert weights("constant", 3.0, MASKED_AFTER, 16) == [3.0] * 5
    assert weights("linear", 3.0, MASKED_AFTER, 16) == [0.0, 0.75, 1.5, 2.25, 3.0]
    assert weights("linear-r", 3.2, MASKED_AFTER, 16) == pytest.approx([0.8, 1.6, 2.4, 3.0, 3.2])
    raised = [3 * (1 - math.cos(math.pi * (s / 4) ** 2)) / 2 for s in range(5)]
    assert weights("power-cosine2", 3.0, MASKED_AFTER, 16) == pytest.approx(raised)
    assert weights("power-cosine1", 2.0, MASKED_AFTER, 16)[2] == pytest.approx(1.0)
    default, four = (
        weights(name, 3.0, MASKED_AFTER, 16) for name in ("power-cosine", "power-cosine4")
    )
    assert default == four


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_ends(schedule):
    values = weights(schedule, 3.0, MASKED_AFTER, 16)
    assert len(values) == 5
    assert values[-1] == pytest.approx(3.0)
    assert values == sorted(values)
    if schedule not in ("constant", "linear-r"):
        assert values[0] == 0.0
    assert weights(schedule, 0.0, MASKED_AFTER, 16) == [0.0] * 5


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_one_step_has_full_guidance(schedule):
    assert weights(schedule, 3.0, [0.0], 16) == [pytest.approx(3.0)]


@pytest.mark.parametrize(
    "schedule",
    [
        "",
        "cosine",
        "Linear",
        "linear-s",
        "power-cosinex",
        "power-cosine0",
        "power-cosineinf",
        "power-cosine-1",
        "4power-cosine",
    ],
)
def test_unknown_schedule(schedule):
    with pytest.raises(
        ValueError, match=f"schedule is '{schedule}'; known: constant, linear"
    ) as error:
        weights(schedule, 3.0, MASKED_AFTER, 16)
    assert "\n" not in str(error.value)


def test_guide():
    conditional, unconditional = torch.randn(2, 3, 4, 5).unbind()
    assert torch.equal(guide(conditional, unconditional, 0.0), conditional)
    expected = unconditional + 4 * (conditional - unconditional)  # g = 1 + w = 4
    torch.testing.assert_close(guide(conditional, unconditional, 3.0), expected)
    per_sample = torch.tensor([0.0, 1.0, 3.0])[:, None, None]
    mixed = guide(conditional, unconditional, per_sample)
    torch.testing.assert_close(mixed[2], expected[2])
    torch.testing.assert_close(mixed[1], 2 * conditional[1] - unconditional[1])
