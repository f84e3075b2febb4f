import math

import numpy as np
import pytest
import torch

from train.configs import defaults
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


def test_beta_is_of_the_masked_share():
    """The distribution function of Beta(12, 3), an order statistic of 14 uniform numbers, and its mean."""
    uniform = (np.arange(4000) + 0.5) / 4000
    ratios = masking.mask_ratios(uniform, N, "beta:12:3").astype(np.float64)
    at = np.array([0.5, 0.7, 0.8, 0.9])
    wanted = [sum(math.comb(14, j) * x**j * (1 - x) ** (14 - j) for j in range(12, 15)) for x in at]
    found = np.interp(at, ratios, uniform)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert abs(ratios.mean() - 12 / 15) < 1e-5  # masked, not kept
    np.testing.assert_array_equal(
        ratios, masking.mask_ratios(uniform, N, "beta").astype(np.float64)
    )
    for a in (1.0, 2.5):
        found = masking.mask_ratios(uniform, N, f"beta:{a}:1")
        np.testing.assert_allclose(found, uniform ** (1 / a), atol=1e-5)


def test_normal_ratios():
    ratios = masking.mask_ratios(np.array([0.0, 0.5, 1.0]), N, "truncnorm:0.75")
    np.testing.assert_allclose(ratios, [0.5, 0.75, 1.0], atol=1e-6)
    other = masking.mask_ratios(np.array([0.5]), N, "truncnorm")
    np.testing.assert_array_equal(other, masking.mask_ratios(np.array([0.5]), N, "truncnorm:0.55"))


@pytest.mark.parametrize(
    "method, message",
    [
        ("beta:12", "numbers as in 'beta:12:3', each from 1 to 1000"),
        ("beta:12:x", "numbers as in 'beta:12:3'"),
        ("beta:0.5:3", "numbers as in 'beta:12:3', each from 1"),
        ("beta:nan:3", "numbers as in 'beta:12:3'"),
        ("truncnorm:2", "numbers as in 'truncnorm:0.55', each from 0 to 1"),
    ],
)
def test_numbers_of_a_distribution(method, message):
    with pytest.raises(ValueError, match=message):
        masking.mask_ratios(np.zeros(1), N, method)


def halton_masks(order, rows=range(64), **options):
    return masking.draw(0, 3, rows, 64, order=order, **options)


def test_halton_masks_leave_what_the_sampler_decides_first():
    from maskgit_pt.samplers.ordered import halton_order

    masks = halton_masks("halton")
    order = halton_order(8).numpy()
    for masked, ratio in zip(masks.masked, masks.ratio, strict=True):
        count = int(np.ceil(ratio * 64))
        assert set(np.flatnonzero(masked)) == set(order[64 - count :])
    random = halton_masks("random")
    np.testing.assert_array_equal(masks.ratio, random.ratio)  # only the places differ
    np.testing.assert_array_equal(masks.dropped, random.dropped)
    assert (masks.masked != random.masked).any()


def test_shifted_halton_masks():
    from maskgit_pt.samplers.ordered import halton_place

    masks = halton_masks("halton+shift")
    place = halton_place(64, torch.device("cpu")).numpy()
    counts = np.ceil(masks.ratio * 64)
    np.testing.assert_array_equal(masks.masked.sum(-1), counts)
    starts = set()
    for masked in masks.masked:  # known tokens follow each other in the order, which goes round
        known = np.zeros(64, bool)
        known[place[~masked]] = True
        turns = np.flatnonzero(known & ~np.roll(known, 1))
        assert len(turns) <= 1
        starts |= set(turns.tolist())
    assert len(starts) > 20
    share = halton_masks("halton+shift", range(4000)).masked.mean(0)
    assert np.abs(share - 2 / np.pi).max() < 0.05  # every place is alike
    parts = [halton_masks("halton+shift", rows).masked for rows in (range(5), range(5, 64))]
    np.testing.assert_array_equal(np.concatenate(parts), masks.masked)


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"mask_order": "hilbert"},
            "mask_order is 'hilbert'; accepted: random, halton, halton.shift",
        ),
        ({"mask_order": "halton", "independent_masks": True}, "with config.independent_masks"),
    ],
)
def test_orders_that_do_not_fit(changes, message):
    config = defaults.get_config()
    config.update(changes)
    with pytest.raises(ValueError, match=message):
        masking.settings(config, 64)
    config.update(mask_order="halton", independent_masks=False)
    with pytest.raises(ValueError, match="60 tokens are not one"):
        masking.settings(config, 60)


def test_unknown_schedule():
    with pytest.raises(ValueError, match="mask_scheduling_method is 'cosin'; accepted: linear"):
        masking.mask_ratios(np.zeros(1), N, "cosin")
