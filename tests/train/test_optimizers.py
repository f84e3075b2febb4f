import math

import pytest
import torch
from torch import nn
from training import tiny_config

from train.tasks import optimizers


def config(**changes):
    return tiny_config("x", **{f"optimizer.{k}": v for k, v in changes.items()}).optimizer


def test_schedules():
    warm = config(lr=1.0, warmup_steps=4)
    assert [optimizers.learning_rate(warm, s, 100) for s in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    cosine = config(lr=1.0, warmup_steps=0, lr_schedule="cosine", lr_min=0.1)
    assert optimizers.learning_rate(cosine, 0, 11) == 1.0
    assert math.isclose(optimizers.learning_rate(cosine, 5, 11), 0.55)
    assert math.isclose(optimizers.learning_rate(cosine, 10, 11), 0.1)
    linear = config(lr=1.0, warmup_steps=0, lr_schedule="linear")
    assert math.isclose(optimizers.learning_rate(linear, 3, 11), 0.7)


def test_what_decays():
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Embedding(5, 3))
    (group,) = optimizers.make_adamw(model, config(weight_decay=0.1)).param_groups
    assert len(group["params"]) == 5 and group["weight_decay"] == 0.1
    decays, others = optimizers.make_adamw(
        model, config(weight_decay=0.1, decay="matrices")
    ).param_groups
    assert decays["params"] == [model[0].weight] and decays["weight_decay"] == 0.1
    assert len(others["params"]) == 4 and others["weight_decay"] == 0


@pytest.mark.parametrize("max_norm, factor", [(1.0, 0.2), (10.0, 1.0), (0.0, 1.0)])
def test_clipping_is_exact(max_norm, factor):
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0]), torch.tensor([4.0])
    assert optimizers.clip_gradients(parameters, max_norm) == 5.0
    torch.testing.assert_close(parameters[1].grad, torch.tensor([4.0 * factor]))


def test_average():
    model, copy = nn.Linear(2, 2), nn.Linear(2, 2)
    average = optimizers.Average(copy, 0.9)
    start = copy.weight.clone()
    average.update(model, 0)  # decay 1/10
    torch.testing.assert_close(copy.weight, 0.1 * start + 0.9 * model.weight)
    before = copy.weight.clone()
    average.update(model, 10**6)
    torch.testing.assert_close(copy.weight, 0.9 * before + 0.1 * model.weight)
    assert not any(p.requires_grad for p in copy.parameters())
