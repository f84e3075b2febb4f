"""Self-guidance against vectors recorded from the authors' code (tests/golden/unlockmgm)."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from maskgit_pt.nets.self_guidance import SelfGuidedTransformer
from maskgit_pt.samplers.self_guidance import SelfGuidanceSampler

GOLDEN = Path(__file__).parents[1] / "golden" / "unlockmgm"
RUNS = json.loads((GOLDEN / "sampling.json").read_text())
BOUNDS = {"f64": 1e-12, "f32": 2e-5}
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
         "max_position_embeddings")  # fmt: skip


def our_name(name):
    name = re.sub(r"^transformer_layers", "layers", name)
    for theirs, ours in {
        "attn_layer_norm": "attention.attention_output_ln",
        "ffn.layer_norm": "mlp.layer_output_ln",
        "ffn": "mlp",
        "attention.out": "attention.self_attention.out",
        "mlm_layer.to_logits.weight": "head.weight",
        "mlm_layer.to_logits.bias": "mlm_layer.mlm_bias.bias",
    }.items():
        name = name.replace(theirs, ours)
    module = ("top_down_transform", "cls_anchor_gen", "decoders")
    return "guidance." + name if name.startswith(module) else name


def load(dtype, gelu="erf"):
    config = json.loads((GOLDEN / "tiny" / "config.json").read_text())
    sizes = {name: config[name] for name in SIZES}
    model = SelfGuidedTransformer(
        config["vocab_size"], config["num_classes"], config["tg_factor"], gelu, **sizes
    )
    stored = torch.load(GOLDEN / "tiny" / "pytorch_model.bin", weights_only=True)
    state, fused = {}, {}
    for name, tensor in stored.items():
        if match := re.fullmatch(r"transformer_(.*attention)\.(query|key|value)\.(\w+)", name):
            fused.setdefault(f"{match[1]}.self_attention.qkv.{match[3]}", []).append(tensor)
        else:
            state[our_name(name)] = tensor
    state |= {name: torch.cat(parts) for name, parts in fused.items()}
    model.load_state_dict(state)
    return model.to(dtype).eval()


@torch.no_grad()
def activations(model, ids):
    labels = ids[:, 0] - model.num_codes
    hidden, module = model.hidden(ids), model.guidance
    base, second = model(ids), model.second_pass(hidden, labels)
    found = {
        "base.hidden": hidden,
        "base.logits": base,
        "sg.anchor_sum": module.cls_anchor_gen.factor_sum(labels),
        "sg.anchor": module.cls_anchor_gen(labels),
        "sg.gate": module.gate(hidden, labels),
        "sg.logits": second,
    }
    found |= {f"sg.topdown{i}": f for i, f in enumerate(module(hidden, labels))}
    codes = model.num_codes
    for scale in ("0.5", "1", "2"):
        guided = second + (1 + float(scale)) * (base - second)
        found[f"guided_{scale}"] = guided[..., :codes]
    return found


def errors(dtype, gelu="erf"):
    recorded = np.load(GOLDEN / "activations.npz")
    ids = torch.from_numpy(recorded["input_ids"]).long()
    model = load(dtype, gelu)
    kind = "f64" if dtype == torch.float64 else "f32"
    result = {}
    for name, value in activations(model, ids.masked_fill(ids == 42, -1)).items():
        if f"{kind}/{name}" in recorded:
            expected = recorded[f"{kind}/{name}"]
            value = value[1:3] if len(expected) == 2 else value
            result[name] = float(np.abs(value.numpy() - expected).max())
    return kind, result


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_every_layer_is_as_recorded(dtype):
    kind, found = errors(dtype)
    assert len(found) >= 8
    assert max(found.values()) < BOUNDS[kind], found


def test_the_tanh_gelu_is_another_function():
    assert errors(torch.float64, "tanh")[1]["base.logits"] > 1e-3


class Recorded:
    """The noise of a run."""

    def __init__(self, exponential, uniform):
        self.exponentials, self.uniforms = iter(exponential), iter(uniform)

    def categorical(self, logits, probs):
        return (probs / torch.from_numpy(next(self.exponentials))).argmax(-1)

    def uniform(self, shape, device):
        return torch.from_numpy(next(self.uniforms))

    def gumbel(self, shape, dtype, device):
        raise AssertionError("their Gumbel noise is made of uniform noise")


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run["name"])
def test_sampling_gives_the_recorded_tokens(run):
    recorded, name, bank = np.load(GOLDEN / "sampling.npz"), run["name"], run["noise_bank"]
    model, labels = load(torch.float32), torch.tensor(run["classes"])
    sampler = SelfGuidanceSampler(
        run["steps"], run["schedule"], run["temperature"], run["temperature2"],
        run["guidance_scale"],
    )  # fmt: skip
    noise = Recorded(recorded[f"bank{bank}/exponential"], recorded[f"bank{bank}/uniform"])

    @torch.no_grad()
    def predict(tokens, step):
        return model.code_logits(tokens, labels, 32, sampler.self_guidance)

    steps = list(sampler.run(torch.full((2, 16), -1), predict, noise))
    assert len(steps) == run["steps"]
    for step, state in enumerate(steps):
        assert np.array_equal(state.guess, recorded[f"{name}/guess"][step])
        assert np.array_equal(state.unknown, recorded[f"{name}/remask"][step])
    assert np.allclose(sampler.temperatures(), recorded[f"{name}/temperature"])


def test_training_is_as_recorded():
    recorded = {name: torch.from_numpy(v) for name, v in np.load(GOLDEN / "training.npz").items()}
    model = load(torch.float64)
    masked, noise = recorded["masked_input"].long(), recorded["exponential"].double()
    sequence, targets = model.substitute(masked, noise, recorded["uniform"])
    assert torch.equal(sequence, recorded["second_input"].long())
    assert torch.equal(targets, recorded["labels"].long())
    _, loss, reconstruction = model.training_losses(sequence, targets)
    torch.testing.assert_close(loss, recorded["f64/loss"], atol=1e-12, rtol=0)
    torch.testing.assert_close(reconstruction, recorded["f64/loss_variational"], atol=1e-12, rtol=0)
    (loss + reconstruction).backward()
    norms = {n: p.grad.norm() for n, p in model.guidance.named_parameters()}
    for name, value in norms.items():
        torch.testing.assert_close(value, recorded[f"f64/gradnorm/{name}"], atol=1e-9, rtol=0)


def test_the_published_size():
    sizes = {"hidden_size": 768, "num_hidden_layers": 24, "num_attention_heads": 16}
    sizes |= {"intermediate_size": 3072}
    for positions, parameters in {257: 215_806_201, 1025: 216_396_025}.items():
        with torch.device("meta"):
            model = SelfGuidedTransformer(2025, max_position_embeddings=positions, **sizes)
        assert sum(p.numel() for p in model.parameters()) == parameters
        assert len(list(model.guidance.parameters())) == 56
        # One tensor here is three in the published files: query, key and value.
        assert len(model.state_dict()) + 2 * 2 * 24 == 450
