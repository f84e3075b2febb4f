"""Di[M]O and Di4C, distilled from the network of Besnier & Chen, against runs of their authors' code."""

import json

import numpy as np
import pytest
import torch
from recorded import GOLDEN, assert_close, load_tiny

from maskgit_pt import MaskGIT
from maskgit_pt.decoding import Decoding
from maskgit_pt.nets.besnier_transformer import BesnierTransformer

FOLDER = GOLDEN / "besnier"
RUNS = json.loads((FOLDER / "descendants.json").read_text())
DIMO = [name for name in RUNS if not name.startswith("di4c_")]
DI4C = [name.removeprefix("di4c_") for name in RUNS if name.startswith("di4c_")]
MASK, TOKENS = 32, 16


def network(latent_features: int = 0) -> BesnierTransformer:
    model = BesnierTransformer(
        num_codes=32, num_classes=10, num_tokens=TOKENS, hidden_size=64, num_hidden_layers=2,
        num_attention_heads=4, intermediate_size=128, latent_features=latent_features,
    )  # fmt: skip
    state = torch.load(FOLDER / "tiny_maskgit.pth", weights_only=True)["model_state_dict"]
    if latent_features:
        with np.load(FOLDER / "di4c_projection.npz") as file:
            state |= {name: torch.from_numpy(file[name]).float() / 64 for name in file}
    model.load_state_dict(state)
    return model.eval()


def arrays(file: str, prefix: str = "") -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"{file}.npz") as found:
        return {key[len(prefix) :]: found[key] for key in found if key.startswith(prefix)}


class RecordedNoise:
    """The noise of a recorded run; a code is argmax(p / e)."""

    def __init__(self, uniforms, exponentials, gumbels=()):
        self.uniforms, self.exponentials = iter(uniforms), iter(exponentials)
        self.gumbels = iter(gumbels)
        self.drawn = []

    def uniform(self, shape, device):
        return torch.from_numpy(np.asarray(next(self.uniforms))).reshape(shape)

    def gumbel(self, shape, dtype, device):
        return torch.from_numpy(next(self.gumbels)).to(dtype)

    def categorical(self, logits, probs):
        noise = torch.from_numpy(next(self.exponentials))[..., : probs.shape[-1]]
        self.drawn.append((probs / noise).argmax(-1))
        return self.drawn[-1]


def dimo_noise(run: dict, temperature: float, truncated: bool) -> RecordedNoise:
    uniforms = [(run["start_codes"] + 0.5) / 32, run["place_uniform"]]
    if "normal" in run:
        normal = torch.from_numpy(run["normal"]).double()
        uniforms.append(((torch.erf(normal / 2**0.5) + 1) / 2 - 2.0**-25).numpy())
    exponential = run["exponential"]
    if truncated:  # theirs belong to codes, ours to ranks
        order = torch.from_numpy(run["logits"] / temperature).softmax(-1).topk(33).indices
        exponential = np.take_along_axis(exponential, order.numpy(), -1)
    return RecordedNoise(uniforms, [exponential])


def play_dimo(name: str, **changes):
    """The result of the sampler, and the logits behind it."""
    settings, run = RUNS[name], arrays("dimo_runs", f"{name}.")
    options = {
        "mask_ratio": settings["fixed_ratio"],
        "embedding_noise": settings["noise_emb_perturb"],
        "softmax_temperature": settings["gen_temp"],
        "top_k": settings.get("top_k", 0),
        "top_p": settings.get("top_p", 1.0),
    } | changes
    decoding = Decoding.create("dimo", **options)
    truncated = decoding.top_k > 0 or decoding.top_p < 1
    model, logits = MaskGIT(network(), load_tiny("tokenizer")), []
    plain = model._code_logits
    model._code_logits = lambda *args, **more: logits.append(plain(*args, **more)) or logits[-1]
    noise = dimo_noise(run, settings["gen_temp"], truncated)
    result = model.sample(torch.from_numpy(run["labels"]).long(), noise, decoding)
    return result.tokens.flatten(1).numpy(), torch.cat(logits), run


@pytest.mark.parametrize("name", DIMO)
def test_dimo(name):
    tokens, logits, run = play_dimo(name)
    assert_close(logits, run["logits"], 2e-5)
    assert np.array_equal(tokens, run["codes"].clip(max=31))


def test_control_of_dimo():
    for change in ({"embedding_noise": 0.2}, {"mask_ratio": 0.5}):
        _, logits, run = play_dimo("published", **change)
        assert np.abs(logits.numpy() - run["logits"]).max() > 1e-2
    tokens, _, run = play_dimo("topp", top_p=0.3)
    assert not np.array_equal(tokens, run["codes"])


def test_dimo_as_a_command_has_it():
    model = MaskGIT(network(), load_tiny("tokenizer"))
    result = model.generate([1, 2, 3], sampler="dimo", batch_size=2, return_steps=True)
    alone = model.generate([3], sampler="dimo", first_index=2)
    assert torch.equal(alone.tokens[0], result.tokens[2])
    assert result.masks.shape == (3, 1, 4, 4)
    with pytest.raises(ValueError, match="the sampler 'dimo' cannot keep known tokens"):
        model.edit(torch.rand(3, 16, 16), [1], box=(4, 4, 4, 4), sampler="dimo")
    google = MaskGIT(load_tiny("transformer"), load_tiny("tokenizer"))
    with pytest.raises(ValueError, match="embedding_noise is 0.1; accepted with a Transformer: 0"):
        google.generate([1], sampler="dimo")
    assert google.generate([1], sampler="dimo", embedding_noise=0.0).tokens.shape == (1, 4, 4)


@torch.no_grad()
def test_di4c_logits():
    recorded, student = arrays("di4c_runs"), network(latent_features=128)
    tokens, labels = (torch.from_numpy(recorded[name]).long() for name in "xy")
    drop, latent = torch.from_numpy(recorded["drop"]), torch.from_numpy(recorded["z"])
    assert_close(student(tokens, labels, drop, latent=latent), recorded["logits"], 2e-5)
    assert_close(student(tokens, labels, drop), recorded["logits_without"], 2e-5)
    assert np.abs(recorded["logits"] - recorded["logits_without"]).max() > 0.1


def play_di4c(name: str, **changes) -> list[str]:
    """What differs from the recorded run."""
    settings, run = RUNS[f"di4c_{name}"], arrays("di4c_runs", f"run.{name}.")
    options = {
        "steps": settings["steps"],
        "schedule": f"di4c-{settings['mode']}",
        "choice_temperature": settings["r_temp"],
        "guidance": settings["w"],
        "guidance_schedule": "linear",
        "logit_scale": settings["sm_temp"],
    } | changes
    noise = RecordedNoise(run["z"], run["exponential"], run["gumbel"])
    model = MaskGIT(network(latent_features=128), load_tiny("tokenizer"))
    labels = torch.from_numpy(run["labels"]).long()
    decoding = Decoding.create("confidence", **options)
    result = model.sample(labels, noise, decoding, return_steps=True)
    wrong = []
    for step, predicted in enumerate(run["pred"]):
        if not np.array_equal(noise.drawn[step].numpy(), predicted):
            wrong.append(f"codes {step}")
        if not np.array_equal(result.masks[:, step].flatten(1).numpy(), run["mask"][step]):
            wrong.append(f"masks {step}")
    if not np.array_equal(result.tokens.flatten(1).numpy(), run["final"].clip(max=31)):
        wrong.append("result")
    return wrong


@pytest.mark.parametrize("name", DI4C)
def test_di4c(name):
    assert play_di4c(name) == []


def test_control_of_di4c():
    assert "masks 0" in play_di4c("four_steps", schedule="arccos")
    assert play_di4c("four_steps", guidance_schedule="constant")
    assert play_di4c("four_steps", choice_temperature=1.0)


def test_all_runs_are_there():
    assert len(DIMO) == 5 and len(DI4C) == 3
    assert all(settings["min_margin"] > 1e-3 for settings in RUNS.values())


def test_folder_of_a_student(tmp_path):
    student = network(latent_features=128)
    student.save_pretrained(tmp_path)
    assert BesnierTransformer.from_pretrained(tmp_path).to_config()["latent_features"] == 128
    assert "latent_features" not in network().to_config()
