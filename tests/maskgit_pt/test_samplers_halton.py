"""Samplers against sampling runs recorded from the code of Halton-MaskGIT.

The recorded noise is put in, so that every token of every step must be the same.
"""

import functools
import json
import math

import numpy as np
import pytest
import torch
from halton_files import FOLDER, MASK, recorded, tokenizer, transformer
from recorded import assert_close

from maskgit_pt import MaskGIT
from maskgit_pt.decoding import Decoding
from maskgit_pt.samplers import Confidence2025Sampler, HaltonSampler, base, halton_order

RUNS = json.loads((FOLDER / "runs.json").read_text())
HALTON, CONFIDENCE = RUNS["halton"], RUNS["confidence"]
load = functools.cache(recorded)
model = functools.cache(lambda network: MaskGIT(transformer(network), tokenizer()))


class RecordedNoise:
    """The noise of a recorded run; a code is argmax(p / e)."""

    def __init__(self, run: dict[str, np.ndarray], exponentials, uniforms=()):
        self.exponentials = iter(exponentials)
        self.uniforms = iter(uniforms)
        self.gumbels = iter(run.get("gumbel", ()))

    def uniform(self, shape, device):
        return torch.from_numpy(np.asarray(next(self.uniforms))).reshape(shape)

    def gumbel(self, shape, dtype, device):
        return torch.from_numpy(next(self.gumbels)).to(dtype)

    def categorical(self, logits, probs):
        noise = torch.from_numpy(next(self.exponentials))[..., : probs.shape[-1]]
        return (probs / noise).argmax(-1)


class Listening:
    """A source of noise that keeps the codes that it draws."""

    def __init__(self, noise):
        self.noise, self.drawn = noise, []

    def __getattr__(self, name):
        return getattr(self.noise, name)

    def categorical(self, logits, probs):
        self.drawn.append(self.noise.categorical(logits, probs))
        return self.drawn[-1]


def arrays(kind: str, name: str) -> dict[str, np.ndarray]:
    prefix = f"{name}."
    found = load(f"{kind}_runs")
    return {key[len(prefix) :]: value for key, value in found.items() if key.startswith(prefix)}


def start_of(run, network) -> torch.Tensor | None:
    if "init_code" not in run:
        return None
    codes = torch.from_numpy(run["init_code"]).long().flatten(1)
    return torch.where(codes == MASK, -1, codes)


def in_their_terms(tokens: torch.Tensor) -> np.ndarray:
    return torch.where(tokens < 0, MASK, tokens).numpy()


class Recorder:
    """Runs a model's sampling and keeps the tokens after every step."""

    def __init__(self, network: str, options: Decoding, run, noise, start):
        self.states = []
        pipeline = model(network)
        sampler_run = options.sampler.run

        def keep(tokens, predict, noise, *others):
            listening = Listening(noise)
            self.drawn = listening.drawn
            for state in sampler_run(tokens, predict, listening, *others):
                self.states.append(state)
                yield state

        options.sampler.run = keep
        labels = torch.from_numpy(run["labels"]).long()
        self.result = pipeline.sample(labels, noise, options, tokens=start)


def halton_options(settings: dict, **changes) -> Decoding:
    return Decoding.create(
        "halton",
        **{
            "steps": settings["step"],
            "shift": settings["randomize"],
            "keep_known": False,
            "guidance": settings["w"],
            "guidance_schedule": "constant",
            "logit_scale": settings["sm_temp_min"],
            "logit_scale_last": settings["sm_temp_max"],
            "logit_scale_power": settings["temp_pow"],
            "logit_scale_warmup": settings.get("temp_warmup", 0),
            "top_k": max(settings["top_k"], 0),
        }
        | changes,
    )


def halton_exponentials(run, settings):
    if "noise_all" in run:
        return list(run["noise_all"])
    # Only the noise that filled a cell matters.
    return [run["noise_at_fill"]] * settings["step"]


def replay_halton(name: str, **changes) -> list[str]:
    settings, run = HALTON[name], arrays("halton", name)
    uniforms = []
    cells = run["tokens"][0][0].size
    if settings["randomize"]:
        uniforms = [(run["roll"].astype(np.float32)[:, None] + 0.5) / cells]
    noise = RecordedNoise(run, halton_exponentials(run, settings), uniforms)
    options = halton_options(settings, **changes)
    played = Recorder(settings["model"], options, run, noise, start_of(run, settings["model"]))
    return differences(played, run)


def differences(played: Recorder, run) -> list[str]:
    wrong = []
    for step, state in enumerate(played.states):
        expected = run["tokens"][step + 1].reshape(len(state.tokens), -1)
        if not np.array_equal(in_their_terms(state.tokens), expected):
            wrong.append(f"tokens {step}")
        if "pred_all" in run:
            predicted = run["pred_all"][step].reshape(expected.shape)
            if not np.array_equal(played.drawn[step].numpy(), predicted):
                wrong.append(f"draws {step}")
        if "still_masked" in run:
            masked = run["still_masked"][step].reshape(expected.shape)
            if not np.array_equal(state.unknown.numpy(), masked):
                wrong.append(f"masked {step}")
    if len(played.states) != len(run["tokens"]) - 1:
        wrong.append(f"{len(played.states)} steps")
    if not np.array_equal(played.result.tokens.numpy(), run["final_codes"]):
        wrong.append("result")
    image = (torch.from_numpy(run["image0"]) + 1) / 2
    if (played.result.images[0] - image).abs().max() > 2e-5:
        wrong.append("image")
    return wrong


@pytest.mark.parametrize("name", HALTON)
def test_halton_runs(name):
    assert replay_halton(name) == []


def confidence_options(settings: dict, **changes) -> Decoding:
    choice = "none" if settings["randomize"] == "no" else settings["randomize"]
    return Decoding.create(
        "confidence-2025",
        **{
            "steps": settings["step"],
            "schedule": settings["sched_mode"],
            "choice": choice,
            "choice_temperature": settings["r_temp"],
            "keep_known": False,
            "guidance": settings["w"],
            "guidance_schedule": "linear",
            "logit_scale": settings["sm_temp"],
        }
        | changes,
    )


def replay_confidence(name: str, **changes) -> list[str]:
    settings, run = CONFIDENCE[name], arrays("confidence", name)
    noise = RecordedNoise(run, run["noise_all"], run.get("rand_like", ()))
    options = confidence_options(settings, **changes)
    played = Recorder(settings["model"], options, run, noise, start_of(run, settings["model"]))
    return differences(played, run)


@pytest.mark.parametrize("name", CONFIDENCE)
def test_confidence_runs(name):
    assert replay_confidence(name) == []


def test_all_runs_are_there():
    assert len(HALTON) == 8 and len(CONFIDENCE) == 6
    for kind, runs in RUNS.items():
        assert {name.split(".")[0] for name in load(f"{kind}_runs")} == set(runs)


def test_logits_of_a_step():
    """Two labelled rows, then two dropped ones, of the second step of `topk`."""
    run = arrays("halton", "topk")
    tokens = torch.from_numpy(run["tokens"][1]).long().flatten(1)
    labels = torch.from_numpy(run["labels"]).long()
    with torch.no_grad():
        ours = [
            transformer("A").code_logits(tokens, classes) for classes in (labels, 0 * labels - 1)
        ]
    assert_close(torch.cat(ours), run["raw_logits_step1"], 2e-5)


# The comparison can fail ---------------------------------------------------------------------------


def test_control_mistakes_are_noticed():
    assert replay_halton("small", guidance_schedule="linear")
    assert replay_halton("small", logit_scale_last=None)
    assert replay_halton("small", shift=False)
    assert "draws 0" in replay_halton("topk", logit_scale_warmup=0)
    assert "draws 0" in replay_halton("topk", top_k=4)
    assert replay_halton("topk", logit_scale_power=1.0)
    assert replay_halton("init", keep_known=True)
    assert replay_confidence("launch", guidance_schedule="constant")
    assert replay_confidence("launch", keep_known=True)
    assert replay_confidence("launch", choice_temperature=1.0)
    assert replay_confidence("random", schedule="square")


def test_control_of_the_counts():
    """In float64 the middle step of 576 tokens would have 192."""
    assert HaltonSampler(32).masked_after(576)[15] == 576 - 191


# Counts and orders -----------------------------------------------------------------------------------


def test_halton_orders():
    vectors = load("schedules")
    sides = [int(name.split("_")[2]) for name in vectors if name.startswith("halton_order_")]
    assert sorted(sides) == [4, 8, 12, 16, 24, 32, 64]
    for side in sides:
        expected = vectors[f"halton_order_{side}"].astype(np.int64)
        ours = halton_order(side).numpy()[: len(expected)]
        assert np.array_equal(np.stack([ours // side, ours % side], 1), expected), side


def test_counts():
    vectors, checked = load("schedules"), 0
    for name, expected in vectors.items():
        kind, quantity, *rest = name.split("_")
        if quantity != "cum":
            continue
        steps, side = int(rest[-1][1:]), int(rest[-2][1:])
        if kind == "halton":
            # Theirs go on counting when everything is filled.
            ours = base.decided_after("arccos", steps, torch.tensor([side * side]))[:, 0].tolist()
            expected = expected.clip(max=side * side)
        else:
            ours = Confidence2025Sampler(steps, rest[0]).known_after(side * side)
        assert ours == expected.tolist(), name
        checked += 1
    assert checked > 100


def test_float32_counts_by_scalars():
    """The authors compute every count by itself; whole vectors of them give the same."""
    for side in (4, 8, 16, 24, 32):
        for steps in (*range(1, 20), 45, 90, 128):
            ours = base.decided_after("arccos", steps, torch.tensor([side * side]))[:, 0].tolist()
            theirs = []
            for step in range(steps):
                share = 1 - torch.arccos(torch.tensor((step + 1) / steps)) / (math.pi * 0.5)
                theirs.append(min(side * side, max(step + 1, int(share * side * side))))
            assert ours[:-1] == theirs[:-1] and ours[-1] == side * side


# What is ours: known tokens stay -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["halton", "confidence-2025"])
def test_known_tokens_stay_unless_asked_otherwise(name):
    start = torch.full((2, 16), -1)
    start[:, ::3] = torch.arange(6)
    for keep_known in (True, False):
        options = Decoding.create(name, steps=4, keep_known=keep_known)
        generator = torch.Generator().manual_seed(1)
        result = model("B").sample(torch.tensor([1, 2]), generator, options, tokens=start)
        kept = torch.equal(result.tokens.flatten(1)[:, ::3], start[:, ::3])
        assert kept == keep_known
        assert result.tokens.min() >= 0 and result.tokens.max() < MASK


def test_decided_tokens_stay_unless_asked_otherwise():
    """And a token that drew the mask is drawn again."""

    def changed(keep_known):
        sampler = Confidence2025Sampler(6, keep_known=keep_known)
        logits = torch.zeros(3, 16, 33)
        noise = torch.Generator().manual_seed(0)
        states = list(sampler.run(torch.full((3, 16), -1), lambda *_: logits, noise, num_codes=32))
        return sum(
            int(((a.tokens != b.tokens) & ~a.unknown).sum())
            for a, b in zip(states, states[1:], strict=False)
        )

    assert changed(True) == 0 and changed(False) > 20


def test_one_step_and_few_tokens():
    for settings in ({"steps": 1}, {"steps": 16}):
        for name in ("confidence-2025", "halton"):
            options = Decoding.create(name, guidance=1.0, **settings)
            result = model("B").sample(torch.tensor([3]), torch.Generator(), options)
            assert result.tokens.shape == (1, 4, 4)
    assert Confidence2025Sampler(1).known_after(16) == [16]
    assert Confidence2025Sampler(20).known_after(16)[-5:] == [16] * 5


def test_more_steps_than_tokens():
    options = model("B").decoding("halton", steps=20)
    labels, noise = torch.tensor([1]), torch.Generator().manual_seed(0)
    result = model("B").sample(labels, noise, options, return_steps=True)
    assert result.masks.flatten(2)[0].sum(-1).tolist() == [*range(15, -1, -1), 0, 0, 0, 0]


def test_images_are_in_unit_range():
    result = model("B").generate([1, 2], sampler="halton", steps=4)
    assert result.images.shape == (2, 3, 16, 16)
    assert result.images.min() >= 0 and result.images.max() <= 1
    again = model("B").tokens_to_images(result.tokens)
    assert_close(result.images, again.numpy(), 1e-5)
