"""Settings that belong to every sampler: top-k, top-p, what changes from step to step, strategy files."""

import math

import pytest
import torch
from recorded import load_tiny

from maskgit_pt import MaskGIT
from maskgit_pt.decoding import Decoding, read_strategy, resolve
from maskgit_pt.libml import jax_random
from maskgit_pt.libml.rng import TorchNoise, normal, sample_noise
from maskgit_pt.libml.truncation import TruncatedNoise
from maskgit_pt.samplers import MomentHaltonSampler, MomentSampler, create, halton_order

PROBS = torch.tensor([0.05, 0.4, 0.1, 0.25, 0.2])


def frequencies(noise, draws: int = 4000) -> torch.Tensor:
    probs = PROBS.expand(1, draws, 5)
    return torch.bincount(noise.categorical(probs.log(), probs).flatten(), minlength=5) / draws


@pytest.mark.parametrize(
    "top_k, top_p, kept",
    [(0, 1.0, [0, 1, 2, 3, 4]), (2, 1.0, [1, 3]), (1, 1.0, [1]), (0, 0.5, [1, 3]),
     (0, 0.41, [1, 3]), (0, 0.01, [1]), (3, 0.6, [1, 3]), (9, 0.9, [1, 2, 3, 4])],
)  # fmt: skip
@pytest.mark.parametrize("source", ["torch", "sample", "jax"])
def test_truncation(source, top_k, top_p, kept):
    noise = {
        "torch": TorchNoise(torch.Generator().manual_seed(0)),
        "sample": sample_noise(0, [0]),
        "jax": jax_random.PRNGKey(0),
    }[source]
    noise = Decoding.create("random", top_k=top_k, top_p=top_p).noise(noise)
    expected = torch.zeros(5)
    expected[kept] = PROBS[kept] / PROBS[kept].sum()
    assert (frequencies(noise) - expected).abs().max() < 4 * math.sqrt(0.25 / 4000)


def test_rank_takes_the_noise():
    """Column j of the noise belongs to the j-th likeliest code, as in Halton-MaskGIT's code."""

    class Recorded(TorchNoise):
        def categorical(self, logits, probs):
            assert torch.equal(probs, probs.sort(descending=True).values)
            assert torch.allclose(logits.softmax(-1), probs)
            return torch.tensor([1])

    assert TruncatedNoise(Recorded(), top_k=3).categorical(PROBS.log()[None], PROBS[None]) == 3


def test_truncated_official_sampler_still_covers_the_class_token():
    assert TruncatedNoise(Decoding.create().noise(jax_random.PRNGKey(0))).covers_class_token


def test_logit_scales():
    scales = Decoding.create(
        "halton", steps=5, logit_scale=0.5, logit_scale_last=1.5
    ).logit_scales()
    assert scales == [0.5, 0.75, 1.0, 1.25, 1.5]
    power = Decoding.create(
        "halton", steps=3, logit_scale=1.0, logit_scale_last=2.0, logit_scale_power=2.0,
        logit_scale_warmup=1,
    )  # fmt: skip
    assert power.logit_scales() == [0.5, 2.25, 4.0]
    assert Decoding.create("halton", steps=1, logit_scale_last=3.0).logit_scales() == [1.0]


@pytest.fixture(scope="module")
def model() -> MaskGIT:
    return MaskGIT(load_tiny("transformer"), load_tiny("tokenizer"))


def tokens_of(model, **settings) -> torch.Tensor:
    return model.generate([1, 2, 3], **settings).tokens


def test_what_changes_nothing(model):
    """A list of what a number would be gives the same tokens; so does what is switched off."""
    plain = tokens_of(model, steps=4, guidance=1.0, guidance_schedule="constant")
    lists = {"softmax_temperature": [1.0] * 4, "guidance": [1.0] * 4}
    assert torch.equal(tokens_of(model, **lists), plain)
    falling = [4.5 * (1 - (s + 1) / 4) for s in range(4)]
    ratios = [1 - (s + 1) / 4 for s in range(4)]
    uniform = tokens_of(model, steps=4, schedule="uniform")
    listed = tokens_of(model, schedule=ratios, choice_temperature=falling)
    assert torch.equal(listed, uniform)
    off = tokens_of(model, steps=4, schedule="uniform", top_k=0, top_p=1.0, logit_scale=1.0)
    assert torch.equal(off, uniform)


@pytest.mark.parametrize(
    "settings",
    [
        {"softmax_temperature": [0.1, 1.0, 1.0, 3.0]},
        {"guidance": [0.0, 1.0, 2.0, 3.0]},
        {"schedule": [0.5, 0.5, 0.25, 0.0]},
        {"choice_temperature": [9.0, 0.0, 0.0, 0.0]},
        {"logit_scale_last": 4.0},
        {"top_k": 1},
        {"top_p": 0.1},
    ],
)
@pytest.mark.parametrize("sampler", ["official", "confidence"])
def test_every_setting_reaches_the_tokens(model, sampler, settings):
    plain = tokens_of(model, sampler=sampler, steps=4)
    assert not torch.equal(tokens_of(model, sampler=sampler, steps=4, **settings), plain)


def test_lists_for_other_samplers():
    ratios = [0.75, 0.5, 0.0]
    for name in ("official", "confidence", "random", "halton", "moment", "moment-halton"):
        assert create(name, steps=3, schedule=ratios).masked_after(16) == [12, 8, 0]
    assert create("confidence-2025", steps=3, schedule=ratios).known_after(16) == [4, 8, 16]
    with pytest.raises(ValueError, match="'remdm' has no schedule"):
        create("remdm", steps=3, schedule=ratios)


STRATEGY = """\
sampler: confidence
mask_ratio: [0.9, 0.6, 0.3, 0.0]
gumbel: [3.0, 2.0, 1.0, 0.0]
softmax_temperature: [1.0, 0.9, 0.8, 0.7]
guidance: [0, 0.5, 1, 2]
top_k: 8
"""


def test_strategy(model, tmp_path):
    file = tmp_path / "strategy.yaml"
    file.write_text(STRATEGY)
    settings = read_strategy(file)
    assert settings["steps"] == 4 and settings["schedule"] == [0.9, 0.6, 0.3, 0.0]
    options = Decoding.create(strategy=file)
    assert options.sampler.name == "confidence" and options.top_k == 8
    assert options.guidance_weights(16) == [0, 0.5, 1, 2]
    assert torch.equal(tokens_of(model, strategy=file), tokens_of(model, **settings))
    assert "guidance_schedule" not in resolve(settings)  # a list is as it is
    assert resolve(settings) == resolve(settings | {"guidance": [0.0, 0.5, 1.0, 2.0]})
    with_sampler = tmp_path / "with_sampler.yaml"
    with_sampler.write_text("sampler: halton\nsteps: 3\n")
    assert Decoding.create(strategy=with_sampler).sampler == create("halton", steps=3)
    assert Decoding.create("random", strategy=with_sampler).sampler == create("random", steps=3)
    overruled = Decoding.create(strategy=file, top_k=3)
    assert overruled.top_k == 3


def test_strategy_of_autonat(tmp_path):
    file = tmp_path / "strategy.yaml"
    file.write_text(
        "manual_ratios: [0.9, 0.4]\nmanual_temp: [2.4, 1.1]\n"
        "manual_samp_temp: [2.9, 1.8, 0.7]\nmanual_cfg: [0.0001, 1.2, 1.5]\n"
    )
    options = Decoding.create(strategy=file)
    assert options.sampler == create(
        "official", steps=3, schedule=[0.9, 0.4, 0.0], choice_temperature=[2.4, 1.1, 0.0]
    )
    assert options.softmax_temperatures() == [2.9, 1.8, 0.7]
    assert options.guidance_weights(256) == [0.0001, 1.2, 1.5]


@pytest.mark.parametrize(
    "text, message",
    [
        ("- 1\n- 2\n", "accepted: a YAML mapping of names of settings"),
        (
            "temperature: 3",
            "no setting is called 'temperature'; known: mask_ratio, gumbel, sampler",
        ),
        (
            "guidance: [1, 2]\ngumbel: [1]",
            "lists of several lengths .guidance 2, choice_temperature 1",
        ),
        ("guidance: [1, 2]\nsteps: 3", "guidance 2. and steps is 3; accepted: one value a step"),
        ("guidance: [1, two]", "guidance is .*; accepted: a number or a list of numbers"),
        ('guidance: "2"', "guidance is '2'; accepted: a number or a list of numbers"),
        ("steps: 2.5", "steps is 2.5; accepted: a whole number"),
        ("schedule: 3", "schedule is 3; accepted: text or a list"),
        ("top_k: " + "9" * 5000, "cannot be read"),
        ("guidance: [1,", "cannot be read"),
        ("guidance: !!python/object:os.system [1]", "cannot be read"),
    ],
)
def test_wrong_strategies(tmp_path, text, message):
    file = tmp_path / "strategy.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read_strategy(file)
    assert str(file) in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        read_strategy(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"top_k": -1}, "top_k is -1; accepted: 0"),
        ({"top_p": 0.0}, "top_p is 0.0; accepted: above 0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"logit_scale": 0.0}, "logit_scale, logit_scale_last are 0.0, None"),
        (
            {"softmax_temperature": [1.0, 0.0], "steps": 2},
            "softmax_temperature is 0.0; accepted: above 0",
        ),
        ({"guidance": [1.0], "steps": 2}, "guidance has 1 values; accepted: one a step, 2"),
        ({"guidance": [1.0, -1.0], "steps": 2}, "guidance is -1.0; accepted: 0 or more"),
        ({"guidance": "2"}, "guidance is '2'; accepted: a number or a list of numbers, one a step"),
        ({"guidance": (1.0, 1.0)}, r"guidance is \(1.0, 1.0\); accepted: a number or a list"),
        ({"guidance": 1e308}, "guidance is 1e\\+308; accepted: at most 3e\\+38"),
        ({"logit_scale_last": 1e308}, "logit_scale_last is 1e\\+308; accepted: at most"),
        ({"logit_scale_power": float("nan")}, "logit_scale_power is nan; accepted: a finite"),
        ({"logit_scale_warmup": -1}, "logit_scale_warmup is -1; accepted: 0 or more"),
        ({"top_k": 1.5}, "top_k is 1.5; accepted: a whole number"),
        ({"steps": 2.0}, "steps is 2.0; accepted: a whole number"),
        ({"steps": True}, "steps is True; accepted: a whole number"),
        ({"steps": 10**12}, "steps is 1000000000000; accepted: at most"),
        ({"schedule": 3}, "schedule is 3; accepted: text or a list of numbers"),
        ({"sampler": "halton", "shift": "no"}, "shift is 'no'; accepted: true or false"),
        ({"sampler": "remdm", "eta": "x"}, "eta is 'x'; accepted: a number"),
        ({"sampler": 5}, "sampler is 5; accepted: official, "),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        Decoding.create(**settings)


def test_command_line(model, tmp_path, monkeypatch):
    from maskgit_pt import sample

    model.save_pretrained(tmp_path / "model")
    file = tmp_path / "strategy.yaml"
    file.write_text(STRATEGY)
    arguments = [f"--model={tmp_path / 'model'}", "--labels=1", "--num_samples=1", "--threads=1"]
    output = [f"--strategy={file}", "--top_p=0.9", f"--output={tmp_path / 'samples'}"]
    monkeypatch.setattr("sys.argv", ["sample", *arguments, *output])
    threads = torch.get_num_threads()
    try:
        assert sample.cli() == 0
    finally:
        torch.set_num_threads(threads)
        sample.FLAGS.unparse_flags()
    assert (tmp_path / "samples" / "tokens.npy").is_file()


# The moment sampler ----------------------------------------------------------------------------------


def test_moment_sampler_is_maskgits_in_the_limit():
    """Of two of many positions MaskGIT's sampler keeps one and its token as p**(1 + 1/a) says."""
    generator = torch.Generator().manual_seed(0)
    draws, alpha = 20000, 1.5
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.3, 0.0, 0.2]])
    sampler = MomentSampler(steps=2, choice_temperature=2 * alpha, schedule=[0.5, 0.0])
    tokens = torch.full((draws, 2), -1)
    state = next(sampler.run(tokens, lambda ids, step: logits.expand(draws, 2, 3), generator))
    probs = logits.softmax(-1)
    powers = probs ** (1 + 1 / alpha)
    expected = powers / powers.sum()  # of position and token together
    counts = torch.zeros(2, 3)
    for position in range(2):
        chosen = state.tokens[:, position]
        counts[position] = torch.bincount(chosen[chosen >= 0], minlength=3) / draws
    assert (counts - expected).abs().max() < 0.02
    # What MaskGIT's sampler does where it has many alike positions to choose one from.
    copies = 100
    drawn = torch.multinomial(probs.repeat(copies, 1), 2000, True, generator=generator).T
    confidence = probs.repeat(copies, 1).gather(1, drawn.T).T.log()
    gumbel = TorchNoise(generator).gumbel(confidence.shape, torch.float32, "cpu")
    best = (confidence + alpha * gumbel).argmax(1)
    token = drawn[torch.arange(2000), best]
    joint = torch.bincount(best % 2 * 3 + token, minlength=6).view(2, 3) / 2000
    assert (joint - expected).abs().max() < 0.05


def test_last_step_draws_from_the_plain_probabilities():
    sampler, draws = MomentSampler(steps=1), 20000
    logits = torch.tensor([1.0, 0.0, -1.0]).expand(1, draws, 3)
    state = next(sampler.run(torch.full((1, draws), -1), lambda *_: logits, torch.Generator()))
    counts = torch.bincount(state.tokens[0], minlength=3) / draws
    assert (counts - logits[0, 0].softmax(-1)).abs().max() < 0.02


def test_halton_part_of_the_hybrid():
    logits = torch.zeros(2, 16, 4)
    for explore, count in ((1.0, 8), (0.5, 4)):
        sampler = MomentHaltonSampler(steps=2, schedule=[0.5, 0.0], explore=explore)
        state = next(sampler.run(torch.full((2, 16), -1), lambda *_: logits, torch.Generator()))
        decided = state.tokens >= 0
        assert decided.sum(-1).tolist() == [8, 8]
        assert decided[:, halton_order(4)[:count]].all()


def test_normal_noise():
    numbers = normal(sample_noise(0, range(20)), (20, 2000), torch.device("cpu"))
    assert abs(float(numbers.mean())) < 0.02 and abs(float(numbers.std()) - 1) < 0.02
    assert numbers.isfinite().all() and numbers.abs().max() > 3.5
