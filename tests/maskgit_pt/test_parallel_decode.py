"""Decoding: the official code's tokens at every step, and what must hold for any model."""

import pytest
import torch
from recorded import golden

from maskgit_pt.libml import jax_random, mask_schedule, parallel_decode
from maskgit_pt.libml.parallel_decode import decode

# How each recorded run was made: start, steps, first step, choice temperature, schedule.
RUNS = {
    "cosine8": ("start_tokens", 8, 0, 4.5, "cosine"),
    "cosine12": ("start_tokens", 12, 0, 4.5, "cosine"),
    "uniform5": ("start_tokens", 5, 0, 1.0, "uniform"),
    "pow2.5_6": ("start_tokens", 6, 0, 2.0, "pow2.5"),
    "exp6": ("start_tokens", 6, 0, 2.0, "exp"),
    "log6": ("start_tokens", 6, 0, 2.0, "log"),
    "edit": ("partial_tokens", 12, 2, 4.5, "cosine"),
}


def run(name: str, recorded: dict, rng, tokens_to_logits) -> torch.Tensor:
    start, num_iter, start_iter, temperature, method = RUNS[name]
    return decode(
        torch.from_numpy(recorded[start]),
        rng,
        tokens_to_logits,
        num_iter=num_iter,
        start_iter=start_iter,
        choice_temperature=temperature,
        mask_scheduling_method=method,
    )


@pytest.mark.parametrize("partitionable", [False, True])
@pytest.mark.parametrize("name", RUNS)
@torch.inference_mode()
def test_recorded_runs(tiny_transformer, name, partitionable):
    recorded = golden(f"parallel_decode_threefry_partitionable_{partitionable}")
    for seed in range(6):
        key = jax_random.PRNGKey(seed, partitionable=partitionable)
        tokens = run(name, recorded, key, lambda ids: tiny_transformer(ids, num_logits=32))
        assert torch.equal(tokens, torch.from_numpy(recorded[f"decode_{name}_{seed}"]).long())


@torch.inference_mode()
def test_control_other_layout_is_noticed(tiny_transformer):
    recorded = golden("parallel_decode_threefry_partitionable_False")
    key = jax_random.PRNGKey(0, partitionable=True)
    tokens = run("cosine8", recorded, key, lambda ids: tiny_transformer(ids, num_logits=32))
    assert (tokens.numpy() != recorded["decode_cosine8_0"]).any()


@pytest.mark.parametrize("partitionable", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 1.0, 4.5])
def test_recorded_choice(partitionable, temperature):
    recorded = golden(f"parallel_decode_threefry_partitionable_{partitionable}")
    masking = parallel_decode.mask_by_random_topk(
        jax_random.PRNGKey(7, partitionable=partitionable),
        torch.from_numpy(recorded["topk_mask_len"]),
        torch.from_numpy(recorded["topk_probs"]),
        temperature,
    )
    assert torch.equal(masking, torch.from_numpy(recorded[f"topk_masking_{temperature}"]))


def test_choice_spares_ties():
    probs = torch.tensor([[0.1, 0.2, 0.2, 0.9], [0.5, 0.5, 0.5, torch.inf]])
    masking = parallel_decode.mask_by_random_topk(None, torch.tensor([[2], [2]]), probs, 0.0)
    assert masking.tolist() == [[True, False, False, False], [False] * 4]


def random_logits(ids: torch.Tensor) -> torch.Tensor:
    """Logits that depend on the input, so that a wrong sequence shows."""
    generator = torch.Generator().manual_seed(int(ids.sum()) % 2**31)
    return torch.randn(*ids.shape, 32, generator=generator)


@pytest.mark.parametrize("method", ["uniform", "cosine", "pow2", "pow3", "log", "exp"])
@pytest.mark.parametrize("rng", ["key", "generator"])
def test_invariants(method, rng):
    """Known tokens stay, decided ones are never touched again, counts follow the schedule."""
    steps, B, N = 8, 3, 50
    inputs = torch.randint(32, (B, N))
    inputs[:, 0] = 40  # a class
    inputs[0, 1:], inputs[1, 5:30] = -1, -1  # all, some, none masked
    inputs[2] = inputs[2].clamp(min=0)
    seen = []

    def tokens_to_logits(ids):
        seen.append(ids.clone())
        return random_logits(ids)

    source = jax_random.PRNGKey(3) if rng == "key" else torch.Generator().manual_seed(3)
    out = decode(inputs, source, tokens_to_logits, num_iter=steps, mask_scheduling_method=method)
    assert out.shape == (B, steps, N) and out.dtype == torch.long
    assert ((out >= 0) & (out < 41)).all()
    known = inputs != -1
    unknown = (~known).sum(-1)
    expected = torch.floor(unknown * mask_schedule.decoding_schedule(steps, unknown, method))
    for step, ids in enumerate(seen):
        assert torch.equal(out[:, step][known], inputs[known])
        decided = ids != -1
        assert torch.equal(out[:, step][decided], ids[decided])
        if step:
            before = (seen[step - 1] == -1).sum(-1)
            most = torch.minimum(expected[step - 1].long(), before - 1).clamp(min=1)
            assert torch.equal((ids == -1).sum(-1), torch.minimum(most, unknown))


def test_generator_repeats_and_differs():
    inputs = torch.full((2, 17), -1)
    a, b, c = (
        decode(inputs, torch.Generator().manual_seed(seed), random_logits) for seed in (1, 1, 2)
    )
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_both_sources_draw_the_same_distribution():
    """First-step samples of 20,000 positions follow softmax(logits) with either kind of noise."""
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    inputs = torch.full((20, 1001), -1)
    for rng in (jax_random.PRNGKey(0), torch.Generator().manual_seed(0)):
        out = decode(inputs, rng, lambda ids: logits.expand(*ids.shape, 4), num_iter=1)
        frequencies = torch.bincount(out.flatten(), minlength=4) / out.numel()
        torch.testing.assert_close(frequencies, logits.softmax(-1), atol=0.015, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtypes(dtype):
    inputs = torch.full((2, 17), -1)
    out = decode(inputs, jax_random.PRNGKey(0), lambda ids: random_logits(ids).to(dtype))
    assert (out >= 0).all()


def test_export(tiny_transformer):
    """The whole loop with its JAX noise is one exportable graph."""

    class Sampler(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.transformer = tiny_transformer

        def forward(self, ids, key_words):
            key = jax_random.Key(key_words, False)
            return decode(ids, key, lambda ids: self.transformer(ids, 32), num_iter=2)

    ids = torch.full((2, 17), -1)
    ids[:, 0] = 35
    key = jax_random.PRNGKey(1)
    program = torch.export.export(Sampler().eval(), (ids, key.data))
    with torch.inference_mode():
        expected = decode(ids, key, lambda ids: tiny_transformer(ids, 32), num_iter=2)
    assert torch.equal(program.module()(ids, key.data), expected)


def test_compile(tiny_transformer):
    def sample(ids, key):
        return decode(ids, key, lambda ids: tiny_transformer(ids, 32), num_iter=2)

    ids, key = torch.full((2, 17), -1), jax_random.PRNGKey(1)
    with torch.inference_mode():
        compiled = torch.compile(sample, backend="eager", fullgraph=True)
        assert torch.equal(compiled(ids, key), sample(ids, key))


def test_errors():
    ids = torch.full((2, 17), -1)
    with pytest.raises(ValueError, match=r"\[17\].*\[B, N\]"):
        decode(ids[0], None, random_logits)
    with pytest.raises(ValueError, match="start_iter 12"):
        decode(ids, None, random_logits, start_iter=12)
    with pytest.raises(TypeError, match="int.*PRNGKey"):
        decode(ids, 42, random_logits)
    with pytest.raises(ValueError, match="linear.*cosine"):
        decode(ids, None, random_logits, mask_scheduling_method="linear")
