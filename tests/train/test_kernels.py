"""Settings that change how training computes: the same training, faster or smaller."""

import gzip

import processes
import pytest
import torch
from training import arguments, curve, make_shards, one_process, run_here, tiny_config

from train.configs import defaults
from train.run import profiles
from train.tasks import kernels, networks, one_pass
from train.tasks.masked_tokens import MaskedTokens


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("shards") / "tokens")


def step_of(tokens, **changes):
    """Loss and gradients of one step with dropout."""
    config = tiny_config(tokens, **{"transformer.dropout_rate": 0.1}, **changes)
    with one_process() as alone:
        task = MaskedTokens(config, alone)
        batch = task.batches[0]
        torch.manual_seed(1)
        loss, _ = task.backward(batch["codes"], batch["masked"], batch["labels"])
        return loss, {name: p.grad for name, p in task.model.named_parameters()}


@pytest.fixture(scope="module")
def plain(tokens):
    return step_of(tokens)


def test_recomputing_is_bit_identical(tokens, plain):
    loss, gradients = step_of(tokens, recompute=True)
    assert torch.equal(loss, plain[0])
    assert all(torch.equal(gradients[name], wanted) for name, wanted in plain[1].items())


def test_a_residual_stream_in_bfloat16(tokens):
    half = step_of(tokens, precision="bfloat16", residual="bfloat16")
    single = step_of(tokens, precision="bfloat16")
    assert not torch.equal(half[0], single[0])
    torch.testing.assert_close(half[0], single[0], rtol=0.02, atol=0.02)
    assert all(gradient.dtype == torch.float32 for gradient in half[1].values())


def test_everything_compiled(tokens, monkeypatch):
    """Layers, embedding, head and loss: the numbers of eager calls, one graph each, without breaks."""
    from torch._dynamo.backends.debugging import aot_eager

    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return aot_eager(graph, inputs)

    monkeypatch.setattr(
        kernels, "compile_options", lambda _: {"backend": backend, "dynamic": False}
    )
    no_dropout = {"transformer.dropout_rate": 0.0}
    config = tiny_config(tokens, compile=True, recompute=True, **no_dropout)
    with one_process() as alone:
        found = []
        for compiled in (False, True):
            config.compile = compiled
            torch._dynamo.reset()
            torch._dynamo.utils.counters.clear()
            task = MaskedTokens(config, alone)
            for step in range(2):  # the second compiles nothing
                batch = task.batches[step]
                task.model.zero_grad()
                loss, _ = task.backward(batch["codes"], batch["masked"], batch["labels"])
            found.append([loss, *(p.grad for p in task.model.parameters())])
        counters = torch._dynamo.utils.counters
        assert not counters["graph_break"]
        assert len(graphs) == 4, [str(graph.graph)[:300] for graph in graphs]  # one for all layers
    for eager, compiled in zip(*found, strict=True):
        torch.testing.assert_close(eager, compiled, rtol=1e-5, atol=1e-6)


def train_traced(argv):
    """The command line of training; compiled code is traced but not made into kernels, which takes long."""
    kernels.compile_options = lambda _: {"backend": "aot_eager", "dynamic": False}
    one_pass.COMPILE["backend"] = "aot_eager"
    one_pass.suits = lambda config, device: True
    return processes.train(argv)


@pytest.mark.slow
def test_ddp_and_fsdp_with_everything_switched_on(tokens, tmp_path):
    settings = ("--config.compile=True", "--config.recompute=True", "--config.residual=float32",
                "--config.transformer.dropout_rate=0.0", "--config.num_train_steps=6")  # fmt: skip
    losses = {}
    for name, kind, count in (("one", "ddp", 1), ("ddp", "ddp", 2), ("fsdp", "fsdp", 2)):
        run = tmp_path / name
        argv = arguments(run, tokens, *settings, f"--config.parallel={kind}")
        processes.run(train_traced, argv, logs=tmp_path / f"{name}.logs", count=count)
        losses[name] = torch.tensor([line["loss"] for line in curve(run)])
        assert len(losses[name]) == 6
    for name in ("ddp", "fsdp"):
        torch.testing.assert_close(losses[name], losses["one"], rtol=0, atol=1e-6)


def test_a_trace_of_some_steps(tokens, tmp_path):
    run_here(tiny_config(tokens, num_train_steps=4, profile_steps="1-2"), tmp_path)
    (path,) = (tmp_path / "profile").iterdir()
    assert path.name == "rank0_steps1-2.json.gz"
    assert b"aten::" in gzip.decompress(path.read_bytes())


@pytest.mark.parametrize("text", ["5", "6-5", "a-b", "1-"])
def test_no_window_of_steps(text):
    config = defaults.get_config()
    config.profile_steps = text
    with pytest.raises(ValueError, match="profile_steps is .* accepted: FIRST-LAST"):
        profiles.check(config)


def test_settings_that_are_not_known():
    config = defaults.get_config()
    kernels.check(config)
    config.attention = "fast"
    with pytest.raises(ValueError, match="attention is 'fast'; accepted: auto, flash"):
        kernels.check(config)
    config.update(attention="auto", precision="float32", residual="bfloat16")
    with pytest.raises(ValueError, match="residual"):
        kernels.check(config)


@pytest.mark.parametrize("side, gigabytes", [(16, 0.19), (32, 0.77)])
def test_memory_of_the_published_network(side, gigabytes):
    """The docs' figures: 38 bytes a token, layer and channel, and the head."""
    config = defaults.get_config()
    memory = networks.memory_of_training(config, 1024, side**2)
    assert memory.an_image / 1e9 == pytest.approx(gigabytes, abs=0.01)
    assert memory.fixed / 1e9 == pytest.approx(3.8, abs=0.02)
