"""What every sampler promises for any network, and what is known of each one's plan."""

import dataclasses

import pytest
import torch
from recorded import golden
from torch.utils._python_dispatch import TorchDispatchMode

from maskgit_pt.libml import jax_random, parallel_decode
from maskgit_pt.libml.rng import sample_noise
from maskgit_pt.samplers import SAMPLERS, RemdmSampler, create, halton_order
from maskgit_pt.samplers.base import State

K, TOKENS = 32, 16
CONFIGURATIONS = {
    "official": ("official", {}),
    "official exp": ("official", {"schedule": "exp"}),
    "official pow5": ("official", {"schedule": "pow5"}),
    "confidence": ("confidence", {}),
    "confidence root": ("confidence", {"schedule": "root", "choice": "random"}),
    "confidence warm-up": ("confidence", {"schedule": "cosine", "choice": "warm_up"}),
    "confidence without noise": ("confidence", {"schedule": "linear", "choice": "none"}),
    "confidence di4c": ("confidence", {"schedule": "di4c-arccos"}),
    "random": ("random", {}),
    "random exp": ("random", {"schedule": "exp"}),
    "halton": ("halton", {}),
    "halton shifted": ("halton", {"shift": True, "schedule": "cosine"}),
    "confidence-2025": ("confidence-2025", {}),
    "confidence-2025 warm-up": ("confidence-2025", {"schedule": "root", "choice": "warm_up"}),
    "moment": ("moment", {}),
    "moment arccos": ("moment", {"schedule": "arccos", "choice_temperature": 0.5}),
    "moment-halton": ("moment-halton", {"explore": 0.3}),
    # At a higher temperature known tokens can be masked again: see test_self_guidance.py.
    "self-guidance": ("self-guidance", {"choice_temperature": 4.5}),
    "self-guidance linear": ("self-guidance", {"schedule": "linear", "choice_temperature": 1.0}),
    "remdm": ("remdm", {}),
    "remdm cap": ("remdm", {"remasking": "cap", "eta": 0.3}),
    "remdm conf": ("remdm", {"remasking": "conf"}),
    "remdm loop": ("remdm", {"remasking": "loop"}),
    "remdm none": ("remdm", {"remasking": "none"}),
}
MASKED = {  # masked tokens of each of three samples
    "full": (16, 16, 16),
    "part": (7, 7, 7),
    "nothing": (0, 0, 0),
    "uneven": (16, 3, 0),
    "one": (1, 0, 1),
}
# By chance; of all known tokens, given ones included; of the whole image.
OTHER_COUNTS = ("remdm", "confidence-2025", "self-guidance")
LEAVES_ONE = ("official", "self-guidance")  # masked by the last step, whose guess is whole
ALL = pytest.mark.parametrize("configuration", CONFIGURATIONS)


def build(configuration: str, steps: int = 8):
    name, settings = CONFIGURATIONS[configuration]
    return create(name, steps=steps, **settings)


def start(masked: str) -> torch.Tensor:
    """Tokens [3, 16] with some masked, at scattered places."""
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(K, (3, TOKENS), generator=generator)
    for row, count in zip(tokens, MASKED[masked], strict=True):
        row[torch.randperm(TOKENS, generator=generator)[:count]] = -1
    return tokens


def random_logits(tokens: torch.Tensor, step: int) -> torch.Tensor:
    """Logits that depend on the whole sample, but not on the others of the batch."""
    rows = []
    for row in tokens:
        generator = torch.Generator().manual_seed(int((row * torch.arange(1, 17)).sum()) % 2**31)
        rows.append(2 * torch.randn(TOKENS, K, generator=generator))
    return torch.stack(rows)


def source(name: str):
    if name == "key":
        return jax_random.PRNGKey(3)
    return sample_noise(3, range(3)) if name == "sample" else torch.Generator().manual_seed(3)


def states_of(sampler, tokens: torch.Tensor, rng, start_step: int = 0) -> list[State]:
    """The state at the start and after every step; checks that the network sees the tokens."""
    seen = []

    def predict(ids, step):
        assert step == start_step + len(seen)
        seen.append(ids.clone())
        return random_logits(ids, step)

    states = [sampler.begin(tokens)]
    for state in sampler.run(tokens, predict, rng, start_step):
        assert torch.equal(seen[-1], states[-1].tokens)
        states.append(dataclasses.replace(state))
    return states


def assert_whole(states: list[State], tokens: torch.Tensor) -> None:
    guess = states[-1].guess
    assert guess.shape == tokens.shape and guess.dtype == torch.int64
    assert ((guess >= 0) & (guess < K)).all()
    assert torch.equal(guess[tokens >= 0], tokens[tokens >= 0])


@pytest.mark.parametrize("rng", ["key", "generator", "sample"])
@pytest.mark.parametrize("masked", MASKED)
@ALL
def test_invariants(configuration, masked, rng):
    sampler, tokens = build(configuration), start(masked)
    given = tokens >= 0
    states = states_of(sampler, tokens.clone(), source(rng))
    assert_whole(states, tokens)
    remasks = isinstance(sampler, RemdmSampler) and sampler.remasking != "none"
    for before, after in zip(states, states[1:], strict=False):
        assert torch.equal(after.tokens[given], tokens[given])
        assert not after.unknown[given].any()
        assert torch.equal(after.unknown, after.tokens == -1)
        assert ((after.guess >= 0) & (after.guess < K)).all()  # whole at every step
        assert torch.equal(after.guess[~before.unknown], before.tokens[~before.unknown])
        decided = ~after.unknown & before.unknown
        assert torch.equal(after.tokens[decided], after.guess[decided])
        if not remasks:  # what is decided stays
            assert torch.equal(after.tokens[~before.unknown], before.tokens[~before.unknown])


@pytest.mark.parametrize("masked", MASKED)
@pytest.mark.parametrize("steps", [1, 2, 8, 16, 32])
@pytest.mark.parametrize(
    "configuration", [c for c in CONFIGURATIONS if c.split()[0] not in OTHER_COUNTS]
)
def test_counts_are_as_planned(configuration, steps, masked):
    sampler, tokens = build(configuration, steps), start(masked)
    states = states_of(sampler, tokens, source("generator"))
    unknown = torch.stack([state.unknown.sum(-1) for state in states])  # [1 + steps done, B]
    for row, count in enumerate(MASKED[masked]):
        if sampler.name == "confidence":  # its counts are those of a whole image
            decided = torch.tensor(sampler.counts(TOKENS)).cumsum(0)
            expected = (count - decided).clamp(min=0).tolist()
        else:
            expected = sampler.masked_after(count)
        expected = expected[: len(states) - 1]
        if sampler.name == "official" and expected:
            expected[-1] = min(count, 1)  # left masked by the last step, whose guess is whole
        assert unknown[1:, row].tolist() == expected
        if sampler.name != "official":
            assert unknown[-1, row] == 0
    if masked == "full":
        planned = sampler.masked_after(TOKENS)
        assert len(planned) == steps and planned[-1] == 0
        if sampler.name != "official":
            assert unknown[1:, 0].tolist() == planned[: len(states) - 1]


def test_counts_are_independent_of_the_plan():
    """The official counts by hand: cosine over 4 steps leaves 14, 11, 6 and 0 of 16."""
    assert create("official", steps=4).masked_after(16) == [14, 11, 6, 0]
    assert create("random", steps=4, schedule="uniform").masked_after(16) == [12, 8, 4, 0]
    # Where the schedule stands still, at least one token is decided, and one is left to the last step.
    assert create("official", steps=4, schedule="pow50").masked_after(3) == [2, 1, 1, 0]
    assert create("official", steps=8).masked_after(2) == [1, 1, 1, 1, 1, 1, 1, 0]
    assert create("official").masked_after(0) == [0] * 16


@pytest.mark.parametrize(
    "configuration",
    [c for c in CONFIGURATIONS if c.split()[0] not in (*LEAVES_ONE, "remdm")],
)
def test_every_position_is_decided_once(configuration):
    tokens = start("uneven")
    states = states_of(build(configuration), tokens, source("generator"))
    times = torch.zeros_like(tokens)
    for before, after in zip(states, states[1:], strict=False):
        times += (before.tokens == -1) & (after.tokens >= 0)
    assert torch.equal(times, (tokens == -1).long())


@ALL
def test_samples_do_not_depend_on_their_batch(configuration):
    sampler, tokens = build(configuration), start("uneven")
    together = states_of(sampler, tokens, sample_noise(9, [4, 5, 6]))[-1].guess
    for row in range(3):
        alone = states_of(sampler, tokens[row : row + 1], sample_noise(9, [4 + row]))[-1].guess
        assert torch.equal(alone[0], together[row])


@ALL
def test_seeds_matter(configuration):
    sampler, tokens = build(configuration), start("full")
    a, b, c = (
        states_of(sampler, tokens, torch.Generator().manual_seed(seed))[-1].guess
        for seed in (1, 1, 2)
    )
    assert torch.equal(a, b) and not torch.equal(a, c)


@pytest.mark.parametrize("steps, start_step", [(8, 2), (8, 7), (32, 5), (32, 20), (32, 31)])
@pytest.mark.parametrize("masked", ["full", "part", "uneven", "one"])
@ALL
def test_later_start(configuration, masked, steps, start_step):
    tokens = start(masked)
    states = states_of(build(configuration, steps), tokens, source("key"), start_step)
    assert_whole(states, tokens)


@ALL
def test_half_precision_logits(configuration):
    tokens = start("part")
    for dtype in (torch.bfloat16, torch.float64):
        states = build(configuration).run(
            tokens, lambda ids, step, dtype=dtype: random_logits(ids, step).to(dtype), source("key")
        )
        assert_whole(list(states), tokens)


class NoWaiting(TorchDispatchMode):
    """Fails where a GPU would have to finish its work first: values that Python or a shape depends on."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert not name.startswith(self.WAITING), name
        if name == "index":
            assert all(i is None or i.dtype not in (torch.bool, torch.uint8) for i in args[1]), name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("rng", ["key", "generator", "sample"])
@ALL
def test_no_step_waits_for_the_device(configuration, rng):
    tokens, waiting = start("uneven"), NoWaiting()
    jax_random.gumbel(jax_random.PRNGKey(0), (1,))  # tries the device once a process

    def predict(ids, step):
        if step == 0:  # what comes before the first step may wait
            waiting.__enter__()
        return torch.zeros(*ids.shape, K)

    states = build(configuration, 4).run(tokens, predict, source(rng))
    try:
        steps = sum(1 for _ in states)
    finally:
        waiting.__exit__(None, None, None)
    assert steps == 4
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NoWaiting():
        tokens.sum().item()


# Errors --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, settings, message",
    [
        ("greedy", {}, "sampler is 'greedy'; known: official, confidence, confidence-2025"),
        ("official", {"eta": 0.1}, "'official' has no eta; it takes steps, schedule, choice_temp"),
        ("official", {"steps": 0}, "steps is 0; accepted: 1 or more"),
        ("halton", {"steps": -1}, "steps is -1"),
        ("official", {"schedule": "arccos"}, "'arccos'; known: uniform"),
        ("official", {"schedule": "powder"}, "'powder'; known: uniform"),
        ("random", {"schedule": "root"}, "'root'; known: uniform"),
        ("confidence", {"schedule": "uniform"}, "'uniform'; known: root, linear"),
        (
            "confidence",
            {"choice": "best"},
            "choice is 'best'; known: linear, warm_up, random, none",
        ),
        ("remdm", {"remasking": "all"}, "remasking is 'all'; known: rescale, cap"),
        ("remdm", {"eta": 1.1}, "eta is 1.1; accepted: 0 to 1 with rescale"),
        ("remdm", {"eta": -0.1}, "eta is -0.1"),
        ("remdm", {"eta": 0.2, "remasking": "loop"}, "eta is 0.2; accepted: 0 to 0.1111 with loop"),
        ("remdm", {"eta": 1.5, "remasking": "loop", "alpha_on": 0.2}, "0 to 1 with loop"),
        ("remdm", {"t_on": 0.05}, "0 < t_off < t_on < 1"),
        ("remdm", {"alpha_on": 0.0, "remasking": "loop"}, "alpha_on is 0.0; accepted: between"),
        ("remdm", {"alpha_on": 1.0}, "alpha_on is 1.0"),
        ("confidence-2025", {"schedule": "exp"}, "'exp'; known: root, linear"),
        ("moment", {"choice_temperature": 0.0}, "0.0; accepted by the sampler 'moment': above 0"),
        ("moment-halton", {"explore": 1.2}, "explore is 1.2; accepted: 0 to 1"),
        ("self-guidance", {"schedule": "root"}, "'root'; known: cosine, linear, sqrt"),
        ("self-guidance", {"self_guidance": -1.0}, "self_guidance is -1.0; accepted: 0 or more"),
        (
            "self-guidance",
            {"steps": 2, "self_guidance": [1.0]},
            "has 1 values; accepted: one a step",
        ),
        ("dimo", {"steps": 2}, "steps is 2; accepted by the sampler 'dimo': 1"),
        ("dimo", {"mask_ratio": 1.5}, "mask_ratio is 1.5; accepted: 0 to 1"),
        (
            "official",
            {"steps": 2, "schedule": [0.5]},
            "schedule has 1 values; accepted: one a step, 2",
        ),
        ("random", {"steps": 2, "schedule": [0.5, 0.7]}, "none above the one before"),
        ("official", {"steps": 2, "choice_temperature": [1.0, -1.0]}, "choice_temperature is -1.0"),
    ],
)
def test_errors(name, settings, message):
    with pytest.raises(ValueError, match=message) as error:
        create(name, **settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", SAMPLERS)
def test_run_errors(name):
    steps = 1 if name == "dimo" else 4
    sampler = create(name, steps=steps)
    with pytest.raises(ValueError, match=r"\[16\]; accepted: \[B, h\*w\]"):
        next(sampler.run(start("full")[0], random_logits, None))
    for step in (-1, steps):
        accepted = f"accepted: 0 to .* {steps - 1}"
        with pytest.raises(ValueError, match=f"start_step is {step}; {accepted}"):
            next(sampler.run(start("full"), random_logits, None, start_step=step))
    with pytest.raises(TypeError, match="rng is a int"):
        next(sampler.run(start("full"), random_logits, 42))


def test_settings_of_none_keep_the_default():
    assert create("remdm", eta=None, steps=None) == RemdmSampler()


def test_halton_needs_a_square():
    with pytest.raises(ValueError, match="15 tokens"):
        tokens = torch.full((1, 15), -1)
        next(create("halton").run(tokens, lambda ids, step: torch.zeros(1, 15, K), None))


# Orders --------------------------------------------------------------------------------------------


def test_halton_order_starts_as_published():
    rows_columns = [divmod(int(position), 16) for position in halton_order(16)[:8]]
    assert rows_columns == [(8, 5), (4, 10), (12, 1), (2, 7), (10, 12), (6, 3), (14, 8), (1, 14)]


@pytest.mark.parametrize("side", [4, 16, 24, 32])
def test_halton_order_is_a_permutation(side):
    assert halton_order(side).sort().values.tolist() == list(range(side * side))


def test_halton_decides_in_its_order():
    order = halton_order(4).tolist()
    masked = {2, 3, 5, 7, 11, 13}
    tokens = torch.tensor([[-1 if position in masked else 9 for position in range(16)]])
    states = states_of(create("halton", steps=16, schedule="uniform"), tokens, source("key"))
    decided = [
        int((before.unknown & ~after.unknown)[0].nonzero())
        for before, after in zip(states[:6], states[1:7], strict=True)
    ]
    assert decided == [position for position in order if position in masked]


def test_halton_shift_goes_round():
    order = halton_order(4).tolist()
    sampler = create("halton", steps=16, schedule="uniform", shift=True)
    tokens = torch.full((5, 16), -1)
    states = list(
        sampler.run(tokens, lambda ids, step: torch.zeros(5, 16, K), sample_noise(0, range(5)))
    )
    starts = set()
    for row in range(5):
        unknown = torch.stack([tokens[row] == -1, *(state.unknown[row] for state in states)])
        decided = (unknown[:-1] & ~unknown[1:]).long().argmax(-1).tolist()
        first = order.index(decided[0])
        assert decided == order[first:] + order[:first]
        starts.add(first)
    assert len(starts) > 1


@pytest.mark.parametrize("name", ["halton", "random"])
def test_arccos_counts(name):
    masked = create(name, steps=8).masked_after(256)
    counts = [a - b for a, b in zip([256, *masked], masked, strict=False)]
    assert counts == [20, 21, 21, 23, 25, 28, 35, 83]
    # A third of 576 in real numbers; float32 ends just below.
    assert 576 - create(name, steps=32).masked_after(576)[15] == 191


def test_random_orders_differ_between_samples():
    sampler, tokens = create("random", steps=4), torch.full((3, TOKENS), -1)
    unknown = states_of(sampler, tokens, source("generator"))[3].unknown
    assert not torch.equal(unknown[0], unknown[1]) and not torch.equal(unknown[1], unknown[2])


# The official sampler ------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["cosine", "uniform", "exp"])
@pytest.mark.parametrize("start_step, name", [(0, "start"), (2, "partial"), (0, "partial")])
@pytest.mark.parametrize("partitionable", [False, True])
@torch.inference_mode()
def test_official_equals_decode(tiny_transformer, partitionable, start_step, name, schedule):
    recorded = golden(f"parallel_decode_threefry_partitionable_{partitionable}")
    ids = torch.from_numpy(recorded[f"{name}_tokens"]).long()
    labels, tokens = ids[:, 0] - K, ids[:, 1:]
    assert (tokens == -1).any()
    sampler = create("official", steps=8, schedule=schedule)
    key = jax_random.PRNGKey(11, partitionable=partitionable)

    def guesses(rng) -> torch.Tensor:
        def predict(tokens, step):
            return tiny_transformer.code_logits(tokens, labels, K)

        return torch.stack([s.guess for s in sampler.run(tokens, predict, rng, start_step)], 1)

    expected = parallel_decode.decode(
        ids,
        key,
        lambda ids: tiny_transformer(ids, num_logits=K),
        num_iter=8,
        start_iter=start_step,
        choice_temperature=4.5,
        mask_scheduling_method=schedule,
    )[:, start_step:, 1:]
    assert torch.equal(guesses(key), expected)
    # The comparison can fail: the other layout of the same seed.
    assert not torch.equal(guesses(jax_random.PRNGKey(11, not partitionable)), expected)


@torch.inference_mode()
def test_transformer_code_logits(tiny_transformer):
    tokens, labels = start("uneven"), torch.tensor([3, -1, 0])
    ids = torch.cat([torch.tensor([[K + 3], [-1], [K]]), tokens], 1)
    logits = tiny_transformer.code_logits(tokens, labels, K)
    assert logits.shape == (3, TOKENS, K)
    torch.testing.assert_close(logits, tiny_transformer(ids)[:, 1:, :K])
    assert labels.tolist() == [3, -1, 0]
