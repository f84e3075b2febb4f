"""Sources of noise: every sample's own stream, and the distributions of all of them."""

import numpy as np
import pytest
import torch

from maskgit_pt.libml import jax_random, rng
from maskgit_pt.libml.rng import JaxNoise, SampleNoise, TorchNoise, noise_of, sample_noise

CPU = torch.device("cpu")
SOURCES = {
    "jax": lambda: JaxNoise(jax_random.PRNGKey(4)),
    "torch": lambda: TorchNoise(torch.Generator().manual_seed(4)),
    "sample": lambda: sample_noise(4, range(20)),
}
ALL = pytest.mark.parametrize("source", SOURCES)


def joined(noise: SampleNoise, sizes: list[int], samples: int) -> torch.Tensor:
    return torch.cat([noise.uniform((samples, size), CPU) for size in sizes], 1)


@pytest.mark.parametrize(
    "sizes", [[300], [1] * 300, [7, 16, 200, 1, 76], [16, 240, 44], [0, 299, 0, 1]]
)
@pytest.mark.parametrize("ahead", [1, 2, 16])
def test_stream_does_not_depend_on_the_calls(monkeypatch, sizes, ahead):
    monkeypatch.setattr(SampleNoise, "_DRAWS_AHEAD", ahead)
    indices = [0, 3, 77]
    noise = joined(sample_noise(5, indices), sizes, 3)
    for row, index in zip(noise, indices, strict=True):
        key = jax_random.fold_in(jax_random.PRNGKey(5, partitionable=True), index)
        assert torch.equal(row, jax_random.uniform(key, (300,)))


def test_rows_do_not_depend_on_the_batch():
    def draws(indices) -> list[torch.Tensor]:
        noise, logits = sample_noise(1, indices), torch.zeros(len(indices), 6, 9)
        shape = (len(indices), 6)
        return [
            noise.uniform(shape, CPU),
            noise.categorical(logits, logits.softmax(-1)),
            noise.gumbel(shape, torch.float32, CPU),
            noise.uniform((len(indices), 4, 5), CPU),
        ]

    for together, alone in zip(draws([8, 2, 5]), draws([2]), strict=True):
        assert torch.equal(together[1], alone[0])
        assert not torch.equal(together[1], together[0])  # and are not all the same
    first, other = (
        sample_noise(1, [2]).uniform((1, 9), CPU),
        sample_noise(2, [2]).uniform((1, 9), CPU),
    )
    assert not torch.equal(first, other)


def test_shape_is_filled_row_by_row():
    shaped = sample_noise(0, range(2)).uniform((2, 3, 5), CPU)
    assert torch.equal(shaped.flatten(1), sample_noise(0, range(2)).uniform((2, 15), CPU))


def test_equals_jax():
    jax = pytest.importorskip("jax", reason="needs the extra 'jax'")
    indices = np.array([0, 1, 9, 2**31 + 3, 2**32 - 1], np.uint32)
    with jax.threefry_partitionable(True):
        key = jax.random.PRNGKey(6)
        keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)
        theirs = jax.vmap(lambda key: jax.random.uniform(key, (1000,)))(keys)
        ours = sample_noise(6, indices.tolist())
        assert torch.equal(ours.keys.data, torch.from_numpy(np.asarray(keys).astype(np.int64)))
        assert np.array_equal(joined(ours, [10, 400, 590], 5).numpy(), np.asarray(theirs))
    with jax.threefry_partitionable(False):  # the comparison can fail
        others = jax.vmap(lambda key: jax.random.uniform(key, (1000,)))(keys)
        assert not np.array_equal(np.asarray(others), np.asarray(theirs))


def test_uniform_stream():
    keys = jax_random.split(jax_random.PRNGKey(2), 4)
    whole = jax_random.uniform_stream(keys, 0, 50)
    assert whole.shape == (4, 50) and whole.dtype == torch.float32
    assert torch.equal(jax_random.uniform_stream(keys, 13, 31), whole[:, 13:31])
    assert jax_random.uniform_stream(keys, 7, 7).shape == (4, 0)
    # Beyond 32 bits the counter's high word moves.
    far = jax_random.uniform_stream(keys, 2**32 - 1, 2**32 + 1)
    assert torch.equal(far[:, 0], jax_random.uniform_stream(keys, 2**32 - 1, 2**32)[:, 0])
    assert not torch.equal(far[:, 1], whole[:, 0])


@pytest.mark.parametrize("partitionable", [False, True])
def test_fold_in_each(partitionable):
    key, numbers = jax_random.PRNGKey(7, partitionable), [0, 5, 5, 2**31, 2**32 - 1]
    keys = jax_random.fold_in_each(key, numbers)
    assert keys.partitionable == partitionable and keys.data.shape == (5, 2)
    for one, number in zip(keys, numbers, strict=True):
        assert torch.equal(one.data, jax_random.fold_in(key, number).data)
    assert jax_random.fold_in_each(key, []).data.shape == (0, 2)
    for wrong in (-1, 2**32):
        with pytest.raises(ValueError, match=f"fold_in of {wrong}"):
            jax_random.fold_in_each(key, [0, wrong])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@ALL
def test_categorical_follows_the_distribution(source, dtype):
    """Pearson's statistic over 5 possible codes: 4 degrees of freedom, 23.5 has probability 1e-4."""
    logits = torch.tensor(
        [-torch.inf, 0.0, 1.0, -torch.inf, -2.0, 2.0, 0.5, -torch.inf], dtype=dtype
    )
    draws = 20_000
    shaped = logits.expand(20, draws // 20, 8)
    codes = SOURCES[source]().categorical(shaped, shaped.softmax(-1))
    assert codes.shape == (20, draws // 20) and codes.dtype == torch.int64
    counts, expected = torch.bincount(codes.flatten(), minlength=8), draws * logits.softmax(-1)
    possible = expected > 0
    assert not counts[~possible].any()
    statistic = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
    assert statistic < 23.5


@pytest.mark.parametrize("u", [0.0, 2.0**-23, 0.5, 1 - 2.0**-23, 1 - 2.0**-24])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_improbable_codes_are_never_drawn(monkeypatch, u, dtype):
    def uniform(self, shape, device):
        return torch.full(shape, u)

    monkeypatch.setattr(SampleNoise, "uniform", uniform)
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, 500, 33, generator=generator, dtype=dtype)
    logits[torch.rand(logits.shape, generator=generator) < 0.5] = -torch.inf
    logits[..., 0], logits[..., -1] = -torch.inf, -torch.inf  # where rounding would end
    logits[..., 16] = 0.0  # always possible
    probs = logits.softmax(-1)
    codes = sample_noise(0, [0, 1]).categorical(logits, probs)
    assert ((codes >= 0) & (codes < 33)).all()
    assert (probs.gather(-1, codes[..., None]) > 0).all()


@pytest.mark.parametrize("u", [0.0, 2.0**-23, 1 - 2.0**-23])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gumbel_is_finite_at_the_ends(monkeypatch, u, dtype):
    monkeypatch.setattr(SampleNoise, "uniform", lambda self, shape, device: torch.full(shape, u))
    noise = sample_noise(0, [0]).gumbel((1, 3), dtype, CPU)
    assert noise.dtype == dtype and noise.isfinite().all() and (noise.abs() < 20).all()


@ALL
def test_gumbel_follows_the_distribution(source):
    """exp(-exp(-g)) is uniform: the largest gap to it stays below Kolmogorov's bound at 1e-4."""
    noise = SOURCES[source]().gumbel((20, 1000), torch.float32, CPU)
    assert noise.isfinite().all()
    u = torch.exp(-torch.exp(-noise.double())).flatten().sort().values
    gap = (u - torch.linspace(0, 1, len(u), dtype=torch.float64)).abs().max()
    assert gap < 2.23 / len(u) ** 0.5


@ALL
def test_uniform_range(source):
    u = SOURCES[source]().uniform((20, 1000), CPU)
    assert u.dtype == torch.float32 and u.shape == (20, 1000)
    assert (u >= 0).all() and (u < 1).all()
    assert abs(u.mean() - 0.5) < 0.01 and abs(u.var() - 1 / 12) < 0.005


@ALL
def test_noise_moves_on(source):
    noise = SOURCES[source]()
    assert not torch.equal(noise.uniform((20, 8), CPU), noise.uniform((20, 8), CPU))


def test_jax_noise_splits():
    noise, key = JaxNoise(jax_random.PRNGKey(3)), jax_random.PRNGKey(3)
    for _ in range(2):
        key, draw = jax_random.split(key)
        assert torch.equal(noise.uniform((5,), CPU), jax_random.uniform(draw, (5,)))


def test_noise_of():
    noise = sample_noise(0, [0])
    assert noise_of(noise) is noise
    assert isinstance(noise_of(jax_random.PRNGKey(0)), JaxNoise)
    assert isinstance(noise_of(None), TorchNoise)
    generator = torch.Generator()
    assert noise_of(generator).generator is generator
    for wrong in (42, "key", np.random.default_rng()):
        with pytest.raises(TypeError, match="rng is a .*PRNGKey"):
            noise_of(wrong)


def test_gumbel_of_a_key_does_not_split():
    key = jax_random.PRNGKey(1)
    ours = rng.gumbel(key, (4,), torch.float32, CPU)
    assert torch.equal(ours, jax_random.gumbel(key, (4,)))
