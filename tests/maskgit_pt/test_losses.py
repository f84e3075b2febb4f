"""Every loss against the value recorded from the official code."""

import pytest
import torch
from recorded import assert_close, golden

from maskgit_pt.libml import losses

RECORDED = golden("losses")


def array(name: str) -> torch.Tensor:
    return torch.from_numpy(RECORDED[name])


def test_squared_euclidean_distance():
    a, b = array("a"), array("b")
    expected = RECORDED["squared_euclidean_distance"]
    assert_close(losses.squared_euclidean_distance(a, b), expected)
    assert_close(losses.squared_euclidean_distance(a, b, (b**2).sum(1)[None]), expected)


def test_sequence_losses():
    arrays = {"labels": array("labels"), "logits": array("logits")}
    ours = losses.sequence_cross_entropy_loss(**arrays)
    assert_close(ours, RECORDED["sequence_cross_entropy_loss"])
    for smoothing, name in ((0.0, "0"), (0.1, "01")):
        ours = losses.weighted_sequence_cross_entropy_loss(
            **arrays, weights=array("weights"), label_smoothing=smoothing
        )
        assert_close(ours, RECORDED[f"weighted_sequence_cross_entropy_loss_{name}"])


def test_weighted_loss_is_a_mean_of_means():
    """The plain mean over all weighted positions is another number (a negative control)."""
    labels, logits, weights = array("labels"), array("logits"), array("weights")
    plain = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), reduction="none"
    )
    plain = (plain * weights.flatten()).sum() / weights.sum()
    assert abs(float(plain) - RECORDED["weighted_sequence_cross_entropy_loss_0"]) > 1e-3


def test_weighted_loss_ignores_class_tokens():
    labels, logits, weights = array("labels").clone(), array("logits"), array("weights").clone()
    weights[:, 0] = 0
    before = losses.weighted_sequence_cross_entropy_loss(
        labels=labels, logits=logits, weights=weights
    )
    labels[:, 0] = 1114  # a class id: no code, weight 0
    after = losses.weighted_sequence_cross_entropy_loss(
        labels=labels, logits=logits, weights=weights
    )
    assert torch.equal(before, after)


def test_label_smoothing_reaches_every_class():
    smoothed = losses.apply_label_smoothing(torch.tensor([[0.0, 1.0, 0.0, 0.0]]), 0.2)
    torch.testing.assert_close(smoothed, torch.tensor([[0.05, 0.85, 0.05, 0.05]]))


def test_l1_l2():
    a, b = array("a"), array("a").flip(0)  # what was recorded
    assert_close(losses.l1_loss(a, b), RECORDED["l1_loss"])
    assert_close(losses.l2_loss(a, b), RECORDED["l2_loss"])


@pytest.mark.parametrize("loss_type", ["hinge", "non-saturating"])
def test_gan_losses(loss_type):
    real, fake = array("real_logit"), array("fake_logit")
    ours = losses.discriminator_loss(real_logit=real, fake_logit=fake, loss_type=loss_type)
    assert_close(ours, RECORDED[f"discriminator_loss_{loss_type}"])
    ours = losses.generator_loss(fake_logit=fake, loss_type=loss_type)
    assert_close(ours, RECORDED[f"generator_loss_{loss_type}"])


@pytest.mark.parametrize("loss_type", ["softmax", "argmax"])
def test_entropy_loss(loss_type):
    ours = losses.entropy_loss(array("affinity"), loss_type, temperature=0.5)
    expected = RECORDED[f"entropy_loss_{loss_type}"]
    assert_close(ours, expected)


def test_perplexity_counts_used_codes():
    encodings = torch.nn.functional.one_hot(torch.tensor([[0, 1], [2, 3]]), 8).float()
    together, alone = losses.get_perplexity(encodings)
    assert float(together) == float(alone) == pytest.approx(4, rel=1e-3)


def test_unknown_types():
    one = torch.ones(1, 1)
    with pytest.raises(ValueError, match="wasserstein"):
        losses.discriminator_loss(real_logit=one, fake_logit=one, loss_type="wasserstein")
    with pytest.raises(ValueError, match="wasserstein"):
        losses.generator_loss(fake_logit=one, loss_type="wasserstein")
    with pytest.raises(ValueError, match="top1"):
        losses.entropy_loss(one, "top1")
