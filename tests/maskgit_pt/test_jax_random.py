"""JAX's random streams: recorded vectors, live JAX, an exhaustive logarithm, traces, and errors.

Everything in 32 bits must be equal to the last bit; float64 noise passes two logarithms of another
library and may differ by a few units in the last place.
"""

from pathlib import Path

import fresh_python
import numpy as np
import pytest
import torch

from maskgit_pt.libml import jax_random, xla_math
from maskgit_pt.libml.jax_random import Key, PRNGKey

GOLDEN = Path(__file__).parent.parent / "golden" / "official"
LAYOUTS = pytest.mark.parametrize("partitionable", [False, True])
SHAPES = [(), (0,), (3, 0, 2), (1,), (2,), (5,), (15, 1), (7, 3), (2, 17, 32), (3, 33333)]
SEEDS = [0, 1, 42, 2**31 + 5, 2**32 - 1]


@pytest.fixture
def jax():
    return pytest.importorskip("jax", reason="needs the extra 'jax'")


@pytest.fixture(params=[False, True])
def whole_tensors(request, monkeypatch):
    """Runs a test with chunks and with the expression on whole tensors that is meant for traces."""
    if request.param:
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    return request.param


def equal(ours: torch.Tensor, theirs, what: str = "") -> None:
    """Equal shapes and bits: the sign of a zero counts."""
    ours, theirs = ours.numpy(), np.asarray(theirs)
    if theirs.dtype == np.uint32:
        theirs = theirs.astype(np.int64)
    if theirs.dtype.kind == "f":
        ours, theirs = (array.view(f"i{array.itemsize}") for array in (ours, theirs))
    assert ours.shape == theirs.shape, what
    where = np.argwhere(ours != theirs)
    assert where.size == 0, f"{what}: {len(where)} differ, the first at {where[0].tolist()}"


@LAYOUTS
def test_recorded_vectors(partitionable, whole_tensors):
    with np.load(GOLDEN / f"random_threefry_partitionable_{partitionable}.npz") as golden:
        seen = 0
        for name, theirs in golden.items():
            kind, *size, seed = name.split("_")
            key = PRNGKey(int(seed), partitionable)
            if name.startswith("categorical_logits"):
                continue
            seen += 1
            if kind == "key":
                ours = key.data
            elif kind.startswith("split"):
                ours = jax_random.split(key, int(kind.removeprefix("split"))).data
            elif kind == "categorical":
                logits = torch.from_numpy(golden[f"categorical_logits_{seed}"])
                ours = jax_random.categorical(key, logits)
            else:
                draw = {"bits": "random_bits"}.get(kind, kind)
                ours = getattr(jax_random, draw)(key, [int(n) for n in size[0].split("x")])
            equal(ours, theirs, name)
    assert seen == 3 * (1 + 3 + 12 + 1)


@LAYOUTS
def test_draws_equal_jax(jax, partitionable, whole_tensors):
    with jax.threefry_partitionable(partitionable):
        for seed in SEEDS:
            key, theirs = PRNGKey(seed, partitionable), jax.random.PRNGKey(seed)
            equal(key.data, theirs, f"key {seed}")
            for shape in SHAPES:
                what = f"{seed}, {shape}"
                equal(jax_random.random_bits(key, shape), jax.random.bits(theirs, shape), what)
                equal(jax_random.uniform(key, shape), jax.random.uniform(theirs, shape), what)
                equal(jax_random.gumbel(key, shape), jax.random.gumbel(theirs, shape), what)


@LAYOUTS
def test_noise_of_small_sizes_equals_jax(jax, partitionable):
    sizes = [*range(1, 18), 31, 33, 47, 63, 65, 70]  # XLA's vectors and remainders

    @jax.jit  # one program: one for each size takes longer to compile
    def draw_all(keys):
        return [jax.random.gumbel(key, (size,)) for key, size in zip(keys, sizes, strict=True)]

    with jax.threefry_partitionable(partitionable):
        drawn = draw_all([jax.random.PRNGKey(size) for size in sizes])
        for size, theirs in zip(sizes, drawn, strict=True):
            equal(jax_random.gumbel(PRNGKey(size, partitionable), (size,)), theirs, f"{size}")


@LAYOUTS
@pytest.mark.parametrize("limits", [(-1.3, 2.7), (0.1, 0.7), (1e-3, 1.0), (-5, 3)])
def test_uniform_ranges_equal_jax(jax, partitionable, limits, whole_tensors):
    with jax.threefry_partitionable(partitionable):
        for shape in ((7,), (3, 1001)):
            ours = jax_random.uniform(PRNGKey(8, partitionable), shape, torch.float32, *limits)
            theirs = jax.random.uniform(jax.random.PRNGKey(8), shape, np.float32, *limits)
            equal(ours, theirs, f"{limits}, {shape}")


@LAYOUTS
def test_key_operations_equal_jax(jax, partitionable):
    with jax.threefry_partitionable(partitionable):
        for seed in SEEDS:
            key, theirs = PRNGKey(seed, partitionable), jax.random.PRNGKey(seed)
            for num in (0, 1, 2, 3, 7, 16, 1001):
                equal(jax_random.split(key, num).data, jax.random.split(theirs, num), f"{num}")
            for data in (0, 1, 12345, 2**31, 2**32 - 1):
                ours = jax_random.fold_in(key, data)
                equal(ours.data, jax.random.fold_in(theirs, data), f"{seed}, {data}")
                assert ours.partitionable == partitionable
        key, ours = jax_random.split(key)  # reads as in JAX, and goes on
        theirs, second = jax.random.split(theirs)
        equal(jax_random.split(key, 3)[1:].data, jax.random.split(theirs, 3)[1:])
        equal(jax_random.gumbel(ours, (9,)), jax.random.gumbel(second, (9,)))


@LAYOUTS
def test_categorical_equals_jax(jax, partitionable):
    with jax.threefry_partitionable(partitionable):
        for seed, shape in enumerate([(1,), (5,), (4, 0, 3), (8, 257), (3, 65, 129)]):
            logits = np.random.default_rng(seed).normal(size=shape).astype(np.float32) * 3
            logits.flat[::7] = -np.inf
            logits[..., 0] = 1.0
            ours = jax_random.categorical(PRNGKey(seed, partitionable), torch.from_numpy(logits))
            equal(ours.int(), jax.random.categorical(jax.random.PRNGKey(seed), logits))


@LAYOUTS
def test_float64_against_jax(jax, partitionable):
    with jax.enable_x64(True), jax.threefry_partitionable(partitionable):
        for shape in ((), (0,), (5,), (3, 1001)):
            key, theirs = PRNGKey(3, partitionable), jax.random.PRNGKey(3)
            bits = np.asarray(jax.random.bits(theirs, shape, np.uint64)).view(np.int64)
            equal(jax_random.random_bits(key, shape, 64), bits)
            double = torch.float64
            equal(jax_random.uniform(key, shape, double), jax.random.uniform(theirs, shape))
            noise = jax_random.gumbel(key, shape, double).numpy()
            # An ulp of the inner logarithm is relative to it, so absolute in the noise.
            np.testing.assert_allclose(
                noise, np.asarray(jax.random.gumbel(theirs, shape)), rtol=4e-16, atol=4e-16
            )


def test_seeds_of_both_jax_modes(jax):
    for seed in (0, 7, -1, -5, -(2**31), 2**31, 2**32 - 1, np.int32(-1), np.uint32(9)):
        equal(PRNGKey(seed).data, jax.random.PRNGKey(seed), f"{seed}")
    with jax.enable_x64(True):
        for seed in (0, 7, 2**32, 2**40 + 123, -(2**31) - 1, 2**63 - 1, -(2**63)):
            equal(PRNGKey(seed).data, jax.random.PRNGKey(seed), f"{seed}")
        # The documented difference: negative 32-bit seeds follow the mode without 64 bits.
        assert np.asarray(jax.random.PRNGKey(-1)).tolist() == [0xFFFFFFFF, 0xFFFFFFFF]
        assert PRNGKey(-1).data.tolist() == [0, 0xFFFFFFFF]
    assert PRNGKey(2**40 + 123).data.tolist() == [256, 123]  # JAX without 64 bits: [0, 123]


def all_uniforms(step: int) -> torch.Tensor:
    """Every `step`-th of the 2**23 float32 numbers that gumbel takes a logarithm of."""
    words = torch.arange(0, 1 << 23, step, dtype=torch.int32) << 9
    return jax_random._unit32(words).clamp_min_(torch.finfo(torch.float32).tiny)


def our_noise(u: torch.Tensor) -> torch.Tensor:
    return xla_math.log_(xla_math.log_(u.clone()).neg_()).neg_()


@pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("fused", [True, False])
def test_logarithm_equals_xla(jax, monkeypatch, step, fused):
    """Over the values a uniform takes; also without fused operations in torch (emulated then)."""
    if not fused:
        monkeypatch.setattr(xla_math, "_fuses", lambda device: False)
    u = all_uniforms(step)
    theirs = jax.jit(lambda u: -jax.numpy.log(-jax.numpy.log(u)))(u.numpy())
    equal(our_noise(u), theirs)


def test_logarithm_of_torch_is_another():
    """Negative control: with `torch.log` the comparison above fails at a fifth of the values."""
    u = all_uniforms(5)
    differ = (our_noise(u) != -torch.log(-torch.log(u))).double().mean()
    assert 0.1 < differ < 0.4
    assert (our_noise(u) + torch.log(-torch.log(u))).abs().max() < 2e-6


def test_fused_and_emulated_arithmetic_agree(monkeypatch):
    """For every length of vector and remainder, and for strided operands."""
    assert xla_math._fuses(torch.device("cpu")) in (True, False)
    u = all_uniforms(1009)
    expected = our_noise(u)
    for size in range(1, 200):
        equal(our_noise(u[size : 2 * size]), expected[size : 2 * size].numpy(), f"{size}")
    equal(our_noise(u[::3]), expected[::3].numpy())
    monkeypatch.setattr(xla_math, "_fuses", lambda device: False)
    equal(our_noise(u), expected.numpy())


@LAYOUTS
@pytest.mark.parametrize("threads", [1, 4])
def test_chunks_equal_whole_tensors(monkeypatch, partitionable, threads):
    """Sizes around several chunks, with the chunks of one and of many threads."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(jax_random, "_SERIAL_CHUNK", 64)
    monkeypatch.setattr(jax_random, "_CHUNK_PER_THREAD", 16)
    key = PRNGKey(11, partitionable)
    for size in (1, 63, 64, 65, 127, 128, 129, 130, 255, 256, 257, 1000, 1001):
        chunked = jax_random.gumbel(key, (size,))
        with monkeypatch.context() as patch:
            patch.setattr(torch.compiler, "is_compiling", lambda: True)
            equal(chunked, jax_random.gumbel(key, (size,)).numpy(), f"{size}")


def test_default_dtype_does_not_matter():
    expected = jax_random.gumbel(PRNGKey(3), (1001,))
    torch.set_default_dtype(torch.float64)
    xla_math._fuses.cache_clear()
    try:
        equal(jax_random.gumbel(PRNGKey(3), (1001,)), expected.numpy())
    finally:
        torch.set_default_dtype(torch.float32)


def test_layouts_differ():
    """Negative control: no draw of one layout is mistaken for the other's; fold_in is shared."""
    old, new = PRNGKey(1, False), PRNGKey(1, True)
    assert (jax_random.gumbel(old, (64,)) != jax_random.gumbel(new, (64,))).all()
    assert (jax_random.split(old).data != jax_random.split(new).data).all()
    assert torch.equal(jax_random.fold_in(old, 3).data, jax_random.fold_in(new, 3).data)


def test_counters_beyond_32_bits():
    """Element 2**32 + 5 of the partitionable layout counts with (1, 5)."""
    first, second = jax_random._counters(PRNGKey(0, True), 2**32 - 1, 2**32 + 6, 2**33)
    assert first.tolist() == [0, 1, 1, 1, 1, 1, 1]
    assert second.tolist() == [-1, 0, 1, 2, 3, 4, 5]
    first, second = jax_random._counters(PRNGKey(0), 2**31 - 2, 2**31 - 1, 2**32 - 3)
    assert (first.tolist(), second.tolist()) == ([2**31 - 2], [0])  # the last pair is padded
    first, second = jax_random._counters(PRNGKey(0), 5, 6, 2**32 - 2)
    assert (first.tolist(), second.tolist()) == ([5], [2**31 + 4 - 2**32])


class Draws(torch.nn.Module):
    def forward(self, key: Key, logits: torch.Tensor):
        noise = jax_random.gumbel(key, logits.shape)
        return jax_random.categorical(key, logits), noise, jax_random.split(key, 3)


def check_traced(traced, partitionable: bool, shapes: list[tuple[int, ...]]) -> None:
    for shape in shapes:
        key, logits = PRNGKey(5, partitionable), torch.randn(shape)
        for ours, expected in zip(traced(key, logits), Draws()(key, logits), strict=True):
            if isinstance(ours, Key):
                assert ours.partitionable == partitionable
                ours, expected = ours.data, expected.data
            equal(ours, expected.numpy())


@LAYOUTS
def test_export(partitionable):
    example = (PRNGKey(1, partitionable), torch.randn(4, 6, 32))
    batch = torch.export.Dim("batch", min=2, max=64)
    shapes = {"key": [None], "logits": {0: batch}}
    program = torch.export.export(Draws(), example, dynamic_shapes=shapes)
    check_traced(program.module(), partitionable, [(4, 6, 32), (7, 6, 32)])


@LAYOUTS
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compile(partitionable, backend):
    torch._dynamo.reset()
    compiled = torch.compile(Draws(), backend=backend, fullgraph=True, dynamic=False)
    check_traced(compiled, partitionable, [(3, 5, 7)])


def test_key_is_a_pytree():
    keys = jax_random.split(PRNGKey(1, True), 4)
    leaves, spec = torch.utils._pytree.tree_flatten({"rng": keys})
    assert len(leaves) == 1 and leaves[0] is keys.data
    back = torch.utils._pytree.tree_unflatten(leaves, spec)["rng"]
    assert back.partitionable and len(back) == 4
    assert [key.data.shape for key in back] == [(2,)] * 4
    assert torch.equal(keys[-1].data, keys.data[3])
    assert keys.to("cpu").partitionable


def test_from_words():
    words = np.asarray([[1, 2], [3, 0xFFFFFFFF]], np.uint32)
    for given in (words, words.tolist(), torch.from_numpy(words.astype(np.int64))):
        key = Key.from_words(given, partitionable=True)
        assert key.partitionable and key.data.dtype == torch.int64
        assert key.data.tolist() == words.tolist()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: PRNGKey(1.5), TypeError, "seed 1.5: need an integer"),
        (lambda: PRNGKey("1"), TypeError, "seed '1'"),
        (lambda: PRNGKey(True), TypeError, "seed True"),
        (lambda: PRNGKey(2**63), ValueError, "seed 9223372036854775808"),
        (lambda: PRNGKey(-(2**63) - 1), ValueError, "need an integer in"),
        (lambda: Key.from_words([1, 2, 3]), ValueError, "shape"),
        (lambda: Key.from_words([1.0, 2.0]), ValueError, "need integers"),
        (lambda: Key.from_words([-1, 2]), ValueError, "each must be in"),
        (lambda: Key.from_words([0, 2**32]), ValueError, "each must be in"),
        (lambda: jax_random.fold_in(PRNGKey(0), -1), ValueError, "fold_in of -1"),
        (lambda: jax_random.fold_in(PRNGKey(0), 2**32), ValueError, "fold_in"),
        (lambda: jax_random.split(PRNGKey(0), -1), ValueError, "lengths"),
        (lambda: jax_random.gumbel(PRNGKey(0), (2, -1)), ValueError, "lengths"),
        (lambda: jax_random.gumbel(PRNGKey(0), (2,), torch.bfloat16), ValueError, "bfloat16"),
        (lambda: jax_random.uniform(PRNGKey(0), (2,), torch.int32), ValueError, "float32 or"),
        (lambda: jax_random.random_bits(PRNGKey(0), (2,), 16), ValueError, "need 32 or 64"),
        (lambda: jax_random.random_bits(PRNGKey(0), (2**32,)), ValueError, "less than 2"),
        (lambda: jax_random.gumbel(jax_random.split(PRNGKey(0)), (2,)), ValueError, "one key"),
        (lambda: jax_random.categorical(PRNGKey(0), torch.zeros(2, 0)), ValueError, "V > 0"),
        (lambda: jax_random.categorical(PRNGKey(0), torch.zeros(())), ValueError, "V > 0"),
        (lambda: PRNGKey(0)[0], IndexError, "split it first"),
        (lambda: list(PRNGKey(0)), TypeError, "split it first"),
    ],
)
def test_errors_are_one_line(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_needs_no_jax():
    code = "import sys, maskgit_pt.libml.jax_random; sys.exit('jax' in sys.modules)"
    assert fresh_python.run(code).returncode == 0
