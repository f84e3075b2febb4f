import numpy as np
import pytest

from train.data import masking

N = 30


def draw(rows, seed=0, step=3, **options):
    return masking.draw(seed, step, rows, N, label_drop_rate=0.3, **options)


@pytest.mark.parametrize("independent", [False, True])
@pytest.mark.parametrize("cut", [1, 4, 11])
def test_masks_do_not_depend_on_the_division_of_the_batch(cut, independent):
    whole = draw(range(16), independent=independent)
    parts = [draw(rows, independent=independent) for rows in (range(cut), range(cut, 16))]
    for name in ("masked", "ratio", "dropped"):
        joined = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_array_equal(joined, getattr(whole, name))


def test_masks_differ_between_samples_steps_and_seeds():
    masks = draw(range(16)).masked
    assert len(np.unique(masks, axis=0)) >= 14  # two may be masked wholly
    assert (masks != draw(range(16), step=4).masked).any()
    assert (masks != draw(range(16), seed=1).masked).any()


def test_counts_are_exact_and_every_place_is_alike():
    masks = draw(range(4000))
    counts = np.ceil(masks.ratio * N).clip(1, N)
    np.testing.assert_array_equal(masks.masked.sum(-1), counts)
    share = masks.masked.mean(0)
    # Cosine masking hides 2/pi on average; five standard deviations of a mean of 4000.
    assert np.abs(share - 2 / np.pi).max() < 0.04
    assert abs(masks.dropped.mean() - 0.3) < 0.04


def test_a_sample_always_has_something_to_learn():
    for independent in (False, True):
        masks = masking.draw(0, 0, range(2000), 4, method="pow8", independent=independent)
        assert masks.masked.any(-1).all()


def test_small_ratios_are_raised():
    masks = draw(range(500), min_ratio=0.5)
    assert masks.ratio.min() == 0.5 and masks.masked.sum(-1).min() == N // 2


@pytest.mark.parametrize(
    "method, expected",
    [
        ("linear", [0.0, 0.25, 0.5]),
        ("square", [0.0, 0.0625, 0.25]),
        ("root", [0.0, 0.5, 0.70710678]),
        ("arccos", [1.0, 0.8391386, 0.6666667]),
        ("cosine", [1.0, 0.9238795, 0.70710678]),
        ("uniform", [1.0, 0.75, 0.5]),
    ],
)
def test_schedules(method, expected):
    ratios = masking.mask_ratios(np.array([0.0, 0.25, 0.5]), N, method)
    np.testing.assert_allclose(ratios, expected, atol=2e-6)


def test_unknown_schedule():
    with pytest.raises(ValueError, match="mask_scheduling_method is 'cosin'; accepted: linear"):
        masking.mask_ratios(np.zeros(1), N, "cosin")
