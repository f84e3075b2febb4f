"""Decoding by one recording: the images of decoding step by step, whatever is recorded."""

import copy

import pytest
import torch

from maskgit_pt import samplers
from maskgit_pt.libml import rng as rng_lib
from maskgit_pt.libml.jax_random import PRNGKey
from maskgit_pt.libml.rng import JaxNoise, PreparedJaxNoise, sample_noise
from maskgit_pt.pipeline import MaskGIT
from maskgit_pt.whole_decoding import WholeDecoding


@pytest.fixture
def model(tiny_transformer, tiny_tokenizer):
    return MaskGIT(tiny_transformer, tiny_tokenizer)


@pytest.fixture
def recording(model):
    """The same model, which records; on the CPU the recorded buffers are read by plain calls."""
    result = copy.copy(model)
    result._whole = WholeDecoding(model)
    return result


def _same(a, b):
    assert torch.equal(a.tokens, b.tokens) and torch.equal(a.images, b.images)


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_images_of_the_steps(name, model, recording):
    settings = {"sampler": name, "steps": 4, "guidance": 1.0, "batch_size": 2}
    if name == "dimo":
        settings |= {"steps": 1, "embedding_noise": 0.0}
    elif name == "self-guidance":  # without it, as this network has no module
        settings |= {"self_guidance": 0.0}
    for labels, seed in (([1, 2, 3], 5), ([4, 0, 2], 6)):  # the second replays
        _same(
            model.generate(labels, seed=seed, **settings),
            recording.generate(labels, seed=seed, **settings),
        )
    kinds = 0 if samplers.SAMPLERS[name].draws_at_start else 2  # two images and one
    assert len(recording._whole._recorder._recordings) == kinds
    for partitionable in (False, True):
        for seed in (1, 2):
            key = {"rng": PRNGKey(seed, partitionable)}
            _same(
                model.generate([1, 2], **settings, **key),
                recording.generate([1, 2], **settings, **key),
            )


def test_editing(model, recording):
    options = model.decoding(steps=6, start_step=2)
    tokens = torch.randint(0, model.num_codes, (2, model.num_tokens))
    for known in (3, 9):
        tokens[:, known:] = -1
        found = [
            m.sample(
                torch.tensor([1, 2]), sample_noise(0, [0, 1]), options, tokens=tokens, clip=False
            )
            for m in (model, recording)
        ]
        _same(*found)


def test_noise_goes_on_where_a_recording_ended(model, recording):
    options, labels = model.decoding(steps=3), torch.tensor([1, 2])
    found = []
    for m in (model, recording):
        noise = sample_noise(7, [0, 1])
        m.sample(labels, noise, options)
        found.append(
            (noise.position, noise.uniform((2, 40), "cpu"), m.sample(labels, noise, options).tokens)
        )
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1]) and torch.equal(found[0][2], found[1][2])


def test_a_generator_is_decoded_step_by_step(model, recording):
    found = [
        m.generate(1, rng=torch.Generator().manual_seed(3), steps=2) for m in (model, recording)
    ]
    _same(*found)
    assert not recording._whole._recorder._recordings


def test_the_slower_way_is_left(model, monkeypatch):
    """Where decoding step by step is faster, or recording fails, it stays with the steps."""
    expected = model.generate([1, 2], steps=3)
    for fails in (False, True):
        other = copy.copy(model)
        other._whole = WholeDecoding(model, stepwise=model)
        if fails:

            def broken(*_):
                raise RuntimeError("operation not permitted when stream is capturing")

            monkeypatch.setattr(other._whole, "_recorded", broken)
            with pytest.warns(
                UserWarning, match="step by step, as it cannot be recorded: operation"
            ):
                _same(other.generate([1, 2], steps=3), expected)
            assert list(other._whole._faster.values()) == [False]
        for _ in range(2):
            _same(other.generate([1, 2], steps=3), expected)


def test_recordings_do_not_pile_up(recording):
    for steps in range(1, 7):
        recording.generate(1, steps=steps)
    assert len(recording._whole._recorder._recordings) == 4


def test_keys_ahead():
    noise, shape = JaxNoise(PRNGKey(4)), (2, 5)
    prepared = PreparedJaxNoise(noise.ahead(3))
    for _ in range(3):
        args = (shape, torch.float32, torch.device("cpu"))
        assert torch.equal(noise.gumbel(*args), prepared.gumbel(*args))
    with pytest.raises(IndexError, match="keys of 3 draws"):
        prepared.uniform(shape, "cpu")


@pytest.mark.parametrize("kind", ["key", "samples"])
def test_compiled_noise(kind, monkeypatch):
    """One graph for all draws of a shape, without breaks, and the same numbers."""
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(
        rng_lib,
        "_compile",
        lambda f: torch.compile(f, backend=backend, dynamic=False, fullgraph=True),
    )
    torch._dynamo.reset()
    plain, compiled = (
        JaxNoise(PRNGKey(3), c)
        if kind == "key"
        else rng_lib.SampleNoise(sample_noise(3, [0, 1]).keys, c)
        for c in (False, True)
    )
    logits = torch.randn(2, 5, 7)
    for _ in range(20):
        draws = [noise.categorical(logits, logits.softmax(-1)) for noise in (plain, compiled)]
        assert torch.equal(*draws)
    assert len(graphs) == 1
