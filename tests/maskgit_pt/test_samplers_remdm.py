"""Remasking: rates, shares and counts of the ReMDM sampler. More about it is in `test_samplers.py`."""

import pytest
import torch
from test_samplers import random_logits, source, start, states_of

from maskgit_pt.libml.rng import TorchNoise
from maskgit_pt.samplers import RemdmSampler

REMASKINGS = {"rescale": 0.3, "cap": 0.1, "conf": 0.0, "loop": 0.1, "none": 0.0}


@pytest.mark.parametrize("remasking", REMASKINGS)
@pytest.mark.parametrize("steps", [2, 7, 64])
def test_remdm_rates(remasking, steps):
    sampler = RemdmSampler(steps, remasking, REMASKINGS[remasking])
    assert sampler.rates(steps - 1) == (1.0, 0.0)
    for step in range(steps):
        decide, sigma = sampler.rates(step)
        assert 0 <= decide <= 1 and 0 <= sigma <= 1
        # Equation 6 keeps the share: what stays decided and what is decided anew make alpha_s.
        alpha_t = sampler.alpha(1 - step / steps)
        alpha_s = sampler.alpha(1 - (step + 1) / steps)
        if remasking != "conf":
            assert (1 - sigma) * alpha_t + decide * (1 - alpha_t) == pytest.approx(alpha_s)


def test_remdm_strengths():
    """At t = 1/2 of 8 steps, sigma_max = (1 - 5/8) / (1/2) = 3/4."""
    expected = {("rescale", 0.2): 0.15, ("cap", 0.2): 0.2, ("cap", 0.9): 0.75, ("none", 0.2): 0.0}
    for (remasking, eta), sigma in expected.items():
        assert RemdmSampler(8, remasking, eta).rates(4)[1] == pytest.approx(sigma)
    decide, sigma = RemdmSampler(8, "conf").rates(4)
    assert (decide, sigma) == (pytest.approx(1 / 4), pytest.approx(3 / 4))


def test_remdm_one_step():
    tokens = start("uneven")
    states = states_of(RemdmSampler(steps=1), tokens, source("key"))
    assert len(states) == 2 and not states[-1].unknown.any()


def test_remdm_without_remasking_is_mdlm():
    sampler = RemdmSampler(8, "none")
    assert [sampler.rates(step) for step in range(8)] == [
        (pytest.approx(1 / (8 - step)), 0.0) for step in range(8)
    ]
    tokens = start("uneven")
    results = [
        states_of(RemdmSampler(8, remasking, eta), tokens, source("key"))[-1].guess
        for remasking, eta in [("none", 0.5), ("rescale", 0.0), ("cap", 0.0), ("cap", 0.5)]
    ]
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
    assert not torch.equal(results[0], results[3])


@pytest.mark.parametrize("remasking", REMASKINGS)
def test_remdm_share_follows_alpha(remasking):
    """Over 40,000 tokens, of which every fourth is given; the bound is about 4 standard deviations."""
    sampler = RemdmSampler(20, remasking, REMASKINGS[remasking])
    tokens = torch.full((2, 20_000), -1)
    tokens[:, ::4] = 1
    masked = tokens == -1
    logits = torch.tensor([0.0, 1.0, -1.0]).expand(*tokens.shape, 3)
    remasked, before = 0, masked
    states = sampler.run(tokens, lambda ids, step: logits, torch.Generator().manual_seed(0))
    for state, planned in zip(states, sampler.masked_after(1), strict=True):
        share = state.unknown[masked].float().mean().item()
        assert share == pytest.approx(planned, abs=0.012)
        remasked += int((state.unknown & ~before).sum())
        before = state.unknown
    assert planned == 0 and not state.unknown.any()
    assert torch.equal(state.guess, state.tokens)
    if remasking in ("rescale", "cap", "loop"):
        assert remasked > 10_000
    if remasking == "none":
        assert remasked == 0


def test_remdm_shares():
    decided = torch.tensor([[True, True, False, True], [False, True, False, False], [False] * 4])
    confidence = torch.tensor([[0.9, 0.1, 0.5, 0.1], [0.2] * 4, [0.3] * 4])
    shares = RemdmSampler._shares(decided, confidence)
    torch.testing.assert_close(shares.sum(-1), torch.tensor([1.0, 1.0, 0.0]))
    assert not shares[~decided].any()
    assert shares[0, 1] == shares[0, 3] > shares[0, 0]  # doubtful ones are masked sooner
    ratio = torch.tensor(0.8).exp()
    torch.testing.assert_close(shares[0, 1] / shares[0, 0], ratio)


def test_remdm_conf_remembers_the_probability_when_decided():
    """`conf` masks again one token a step on average, among the decided ones that were not given."""
    sampler = RemdmSampler(4, "conf")
    tokens = start("uneven")
    state = sampler.step(sampler.begin(tokens), random_logits(tokens, 0), 0, TorchNoise())
    given, confidence = state.plan
    decided = ~state.unknown & ~given
    probs = random_logits(tokens, 0).softmax(-1)
    expected = probs.gather(-1, state.tokens.clamp(min=0)[..., None])[..., 0]
    assert torch.equal(confidence[decided], expected[decided])
    assert torch.equal(given, tokens >= 0)


def test_remdm_loop_holds_alpha():
    sampler = RemdmSampler(20, "loop", 0.1, t_on=0.55, t_off=0.05, alpha_on=0.9)
    shares = [sampler.alpha(1 - step / 20) for step in range(21)]
    assert shares[0] == 0 and shares[20] == 1
    assert shares[9:20] == [pytest.approx(0.9)] * 11  # t = 0.55 to 0.05
    assert all(a < b for a, b in zip(shares[:9], shares[1:10], strict=True))
    sigmas = [sampler.rates(step)[1] for step in range(20)]
    assert sigmas == [0.0] * 9 + [0.1] * 10 + [0.0]
