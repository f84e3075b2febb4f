"""Clipping, AdamW and the average in one compiled pass: the numbers of one after the other."""

import copy
import logging

import pytest
import torch
from torch import nn
from training import curve, make_shards, run_here, tiny_config

from train.tasks import one_pass, optimizers

STEPS = (0, 1, 2, 10**6)


def weights_after(update, **changes):
    """What some steps change: parameters, averages and moments; and the norms of the gradients."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.LayerNorm(32), nn.Linear(32, 8))
    average = optimizers.Average(copy.deepcopy(model), 0.999)
    config = tiny_config("x", **{f"optimizer.{k}": v for k, v in changes.items()}).optimizer
    optimizer, norms = optimizers.make_adamw(model, config), []
    for number, step in enumerate(STEPS):
        torch.manual_seed(number)
        model(torch.randn(4, 8)).square().sum().backward()
        optimizers.set_learning_rate(optimizer, 1e-3 * (number + 1))
        norms.append(update(model, optimizer, average, config.clip_norm, step))
        optimizer.zero_grad()
    moments = [value for state in optimizer.state.values() for _, value in sorted(state.items())]
    return [*model.parameters(), *average.model.parameters(), *moments], norms


def one_after_the_other(model, optimizer, average, max_norm, step):
    norm = optimizers.clip_gradients(model.parameters(), max_norm)
    optimizer.step()
    average.update(model, step)
    return norm


@pytest.fixture
def backend(monkeypatch):
    """Sets what the pass is compiled with; the default tests only trace it."""

    def set_backend(name):
        monkeypatch.setitem(one_pass.COMPILE, "backend", name)
        one_pass._compiled.cache_clear()
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()

    yield set_backend
    one_pass._compiled.cache_clear()


@pytest.mark.parametrize(
    "changes",
    [{"decay": "matrices", "clip_norm": 1.0}, {"clip_norm": 0.0, "beta2": 0.9999}],
)
def test_the_numbers_of_one_after_the_other(backend, changes):
    backend("aot_eager")
    found, norms = weights_after(one_pass.update, **changes)
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]
    wanted, their_norms = weights_after(one_after_the_other, **changes)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(norms, their_norms, rtol=1e-6, atol=0)
    assert min(norms) > 1  # so that clipping counts


def test_without_an_average(backend):
    backend("eager")

    def without(model, optimizer, average, *rest):
        return one_pass.update(model, optimizer, None, *rest)

    found, _ = weights_after(without)
    torch.manual_seed(0)
    assert torch.equal(found[6], nn.Linear(8, 32).weight)  # the average has not moved
    wanted, _ = weights_after(one_after_the_other)
    torch.testing.assert_close(found[:6], wanted[:6], rtol=0, atol=1e-6)


def test_a_run_goes_on_bit_identically(backend, monkeypatch, tmp_path):
    backend("eager")
    monkeypatch.setattr(one_pass, "suits", lambda config, device: True)
    config = tiny_config(make_shards(tmp_path / "tokens"), num_train_steps=6)
    states = []
    for name, ends in (("whole", [6]), ("twice", [4, 6])):
        for config.num_train_steps in ends:
            state = run_here(config, tmp_path / name)
        states.append(state.averages["transformer"].state_dict())
    torch.testing.assert_close(*states, rtol=0, atol=0)
    assert curve(tmp_path / "twice") == curve(tmp_path / "whole")


@pytest.mark.slow
def test_every_number_is_moved_once(backend):
    """Counted by the compiler: five numbers a parameter are read and four written."""
    backend("inductor")
    log = logging.getLogger("torch._inductor.compile_fx.__inductor_metrics")
    level = log.level
    log.setLevel(logging.INFO)  # only then are bytes counted
    torch._inductor.metrics.reset()
    try:
        with torch._inductor.config.patch(fx_graph_cache=False):
            found, _ = weights_after(one_pass.update)
    finally:
        log.setLevel(level)
    numbers = sum(part.numel() for part in found[:6])
    moved = torch._inductor.metrics.num_bytes_accessed / 4
    assert 9 * numbers <= moved < 9.5 * numbers, moved / numbers
    wanted, _ = weights_after(one_after_the_other)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
