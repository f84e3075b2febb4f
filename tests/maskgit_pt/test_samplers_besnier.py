"""The confidence sampler against sampling runs recorded from Besnier & Chen's code.

The recorded noise is put in, so that every code, mask and input of the network must be the same.
"""

import dataclasses
import json

import numpy as np
import pytest
import torch
from recorded import GOLDEN

from maskgit_pt.libml.guidance import guide, weights
from maskgit_pt.nets.besnier_transformer import BesnierTransformer
from maskgit_pt.samplers import ConfidenceSampler

FOLDER = GOLDEN / "besnier"
RUNS = json.loads((FOLDER / "manifest.json").read_text())["runs"]
MASK, TOKENS = 32, 16


class RecordedNoise:
    """The noise of a recorded run; every kind in its own order."""

    def __init__(self, recorded: dict[str, np.ndarray]):
        self.codes = iter(recorded["uniform"])
        self.choices = iter(recorded.get("gumbel", ()))
        self.confidences = iter(recorded.get("rand_confidence", ()))
        self.drawn: list[torch.Tensor] = []

    def uniform(self, shape, device):
        return torch.from_numpy(next(self.confidences))

    def gumbel(self, shape, dtype, device):
        return torch.from_numpy(next(self.choices)).to(dtype)

    def categorical(self, logits, probs):
        """How many of the cumulated probabilities are not above the number."""
        cumulated = probs.double().cumsum(-1)
        u = torch.from_numpy(next(self.codes))[..., None]
        self.drawn.append((cumulated / cumulated[..., -1:] <= u).sum(-1))
        return self.drawn[-1]


class CustomSchedule(ConfidenceSampler):
    """Counts given as a list."""

    def counts(self, tokens: int) -> list[int]:
        return RUNS["custom_schedule"]["sched_mode"]


@pytest.fixture(scope="module")
def model():
    model = BesnierTransformer(
        num_codes=32,
        num_classes=10,
        num_tokens=TOKENS,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
    )
    file = torch.load(FOLDER / "tiny_maskgit.pth", weights_only=True)
    model.load_state_dict(file["model_state_dict"])
    return model.eval()


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"sample_{name}.npz") as file:
        return dict(file)


def sampler_of(name: str) -> ConfidenceSampler:
    run = RUNS[name]
    choice = "none" if run["randomize"] == "no" else run["randomize"]
    if name == "custom_schedule":
        steps = len(run["sched_mode"])
        return CustomSchedule(steps, choice=choice, choice_temperature=run["r_temp"])
    return ConfidenceSampler(run["steps"], run["sched_mode"], run["r_temp"], choice)


def predict_of(name: str, model, recorded):
    """The network with guidance and temperature: tokens [B, n], step -> logits [B, n, K + 1]."""
    run, sampler = RUNS[name], sampler_of(name)
    labels = torch.from_numpy(recorded["labels"])
    guidance = weights("linear", run["w"], sampler.masked_after(TOKENS), TOKENS)
    assert guidance[: run["steps_run"]] == pytest.approx(recorded["cfg_weight"].tolist())

    def predict(tokens, step):
        conditional = model.code_logits(tokens, labels)
        unconditional = model.code_logits(tokens, torch.full_like(labels, -1))
        return run["sm_temp"] * guide(conditional, unconditional, guidance[step])

    return predict


def start_of(recorded) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and what is unknown, [B, n]."""
    B = len(recorded["labels"])
    if "random_start" in recorded:
        tokens = torch.from_numpy(recorded["random_start"]).long().flatten(1)
        return tokens, torch.ones_like(tokens, dtype=torch.bool)
    tokens = torch.full((B, TOKENS), -1)
    if "init_code" in recorded:
        codes = torch.from_numpy(recorded["init_code"]).long().flatten(1)
        tokens = torch.where(codes == MASK, -1, codes)
    return tokens, tokens == -1


def same(ours: torch.Tensor, theirs: np.ndarray) -> bool:
    """Whether codes [B, n] or masks are those recorded as [B, h, w]; -1 is the mask."""
    ours = torch.where(ours < 0, MASK, ours.long())
    return np.array_equal(ours.numpy(), theirs.reshape(ours.shape))


def replay(name: str, model, recorded, sampler=None) -> list[str]:
    """What differs from the recorded run, step by step."""
    sampler, noise = sampler or sampler_of(name), RecordedNoise(recorded)
    predict, (tokens, unknown) = predict_of(name, model, recorded), start_of(recorded)
    state, wrong = sampler.begin(tokens, unknown), []
    last = sampler.last_step(state)
    if last + 1 != RUNS[name]["steps_run"]:
        return [f"{last + 1} steps"]
    for step in range(last + 1):
        if not same(state.tokens, recorded["code_before_step"][step]):
            wrong.append(f"input {step}")
        before, logits = state, predict(state.tokens, step)
        state = sampler.step(state, logits, step, noise)
        predicted = recorded["pred_code"][step].reshape(tokens.shape)
        if not same(noise.drawn[step], predicted):
            wrong.append(f"codes {step}")
        if not np.array_equal(state.guess[before.unknown], predicted[before.unknown]):
            wrong.append(f"guess {step}")
        mask = torch.from_numpy(recorded["mask_after_step"][step]).bool().flatten(1)
        if name == "random_with_ties":  # which of the tied ones leave the mask is up to PyTorch
            if not torch.equal(state.unknown.sum(-1), mask.sum(-1)):
                wrong.append(f"count {step}")
            state = dataclasses.replace(state, unknown=mask)
        if not torch.equal(state.unknown, mask):
            wrong.append(f"mask {step}")
    if not same(state.tokens, recorded["final_code"]):
        wrong.append("result")
    return wrong


@pytest.mark.parametrize("name", RUNS)
@torch.inference_mode()
def test_recorded_runs(model, name):
    assert replay(name, model, load(name)) == []


def test_all_runs_are_there():
    assert len(RUNS) == 18
    assert {f"sample_{name}.npz" for name in RUNS} == {p.name for p in FOLDER.glob("sample_*.npz")}


@pytest.mark.parametrize("name", sorted(RUNS.keys() - {"random_start", "random_with_ties"}))
@torch.inference_mode()
def test_recorded_runs_by_the_loop(model, name):
    recorded = load(name)
    tokens, _ = start_of(recorded)
    states = list(
        sampler_of(name).run(tokens, predict_of(name, model, recorded), RecordedNoise(recorded))
    )
    assert len(states) == RUNS[name]["steps_run"]
    assert same(states[-1].tokens, recorded["final_code"])
    assert torch.equal(states[-1].guess, states[-1].tokens)


@torch.inference_mode()
def test_logits_and_guidance(model):
    for name in RUNS:
        recorded = load(name)
        tokens, labels = start_of(recorded)[0], torch.from_numpy(recorded["labels"])
        expected = recorded["logits_first_step"]
        logits = model.code_logits(tokens, labels).numpy()
        assert np.abs(logits - expected[: len(labels)]).max() < 1e-4
        last = RUNS[name]["steps_run"] - 1
        before = torch.from_numpy(recorded["code_before_step"][last]).long().flatten(1)
        probs = predict_of(name, model, recorded)(before, last).softmax(-1)
        assert np.abs(probs.numpy() - recorded["probs_last_step"]).max() < 1e-4


# The comparison can fail ---------------------------------------------------------------------------


class LaterThreshold(ConfidenceSampler):
    """Decides one token more in the first step."""

    def counts(self, tokens: int) -> list[int]:
        first, *rest, last = super().counts(tokens)
        return [first + 1, *rest, last - 1]


@torch.inference_mode()
def test_control_mistakes_are_noticed(model):
    name = "w3_arccos_linear"
    recorded = load(name)
    assert "mask 0" in replay(name, model, recorded, LaterThreshold(8))
    assert replay(name, model, recorded, ConfidenceSampler(8, choice_temperature=1.0))
    assert replay(name, model, recorded, ConfidenceSampler(8, "linear"))
    swapped = recorded | {"gumbel": recorded["gumbel"][::-1].copy()}
    assert replay(name, model, swapped)
    moved = recorded | {"uniform": np.roll(recorded["uniform"], 1, axis=-1)}
    assert "codes 0" in replay(name, model, moved)


# Schedules -----------------------------------------------------------------------------------------


def schedules() -> list[tuple[str, int, int, list[int]]]:
    file = json.loads((FOLDER / "schedules.json").read_text())
    return [
        (schedule, int(side.split()[1]), int(steps.split()[1]), counts)
        for schedule, sides in file.items()
        for side, by_steps in sides.items()
        for steps, counts in by_steps.items()
    ]


def test_schedules():
    entries = schedules()
    assert len(entries) == 5 * 3 * 4
    for schedule, side, steps, counts in entries:
        assert ConfidenceSampler(steps, schedule).counts(side * side) == counts, (
            schedule,
            side,
            steps,
        )
