"""Besnier & Chen's transformer against numbers recorded from their code, and its own promises."""

import json

import numpy as np
import pytest
import torch
from recorded import GOLDEN
from torch import nn

from maskgit_pt.nets.besnier_transformer import BesnierTransformer
from maskgit_pt.pretrained import without_values

FOLDER = GOLDEN / "besnier"
TINY = {
    "num_codes": 32,
    "num_classes": 10,
    "num_tokens": 16,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
}
RELATIVE = 2e-5
MASK = 32


def published_state() -> dict[str, torch.Tensor]:
    file = torch.load(FOLDER / "tiny_maskgit.pth", weights_only=True)
    return file["model_state_dict"]


@pytest.fixture
def model():
    model = BesnierTransformer(**TINY)
    model.load_state_dict(published_state(), strict=True)
    return model.eval()


@pytest.fixture(scope="module")
def recorded():
    with np.load(FOLDER / "transformer_logits.npz") as file:
        return dict(file)


def inputs(recorded) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    tokens, labels, drop = (
        torch.from_numpy(recorded[name]) for name in ("img_token", "labels", "drop_label")
    )
    return tokens.flatten(1), labels, drop


def distance(logits: torch.Tensor, expected: np.ndarray) -> float:
    """The largest difference, relative to the largest logit."""
    assert logits.shape == expected.shape
    return np.abs(logits.detach().numpy() - expected).max() / np.abs(expected).max()


@torch.no_grad()
def test_logits(model, recorded):
    tokens, labels, drop = inputs(recorded)
    assert 0 < drop.sum() < len(drop)
    none, all_ = torch.zeros_like(drop), torch.ones_like(drop)
    assert distance(model(tokens, labels, drop), recorded["logits"]) < RELATIVE
    assert distance(model(tokens, labels, none), recorded["logits_none_dropped"]) < RELATIVE
    assert distance(model(tokens, labels, all_), recorded["logits_all_dropped"]) < RELATIVE
    assert distance(model(tokens, labels), recorded["logits_all_dropped"]) < RELATIVE
    assert distance(model(tokens, labels, none), recorded["logits_all_dropped"]) > 100 * RELATIVE


@torch.no_grad()
def test_logits_float64(model, recorded):
    logits = model.double()(*inputs(recorded))
    assert logits.dtype == torch.float64
    assert distance(logits, recorded["logits_float64_compute"]) < 1e-12


def use_tanh_gelu(model):
    for module in model.modules():
        if isinstance(module, nn.GELU):
            module.approximate = "tanh"


def set_epsilon(module, old, new):
    norms = [m for m in module.modules() if isinstance(m, nn.LayerNorm)]
    assert norms and all(norm.eps == old for norm in norms)
    for norm in norms:
        norm.eps = new


MISTAKES = {
    "tanh GELU": use_tanh_gelu,
    "epsilon of the first layer": lambda m: set_epsilon(m.first_layer, 1e-12, 1e-5),
    "epsilon of the last layer": lambda m: set_epsilon(m.last_layer, 1e-12, 1e-5),
    "epsilon of the blocks": lambda m: set_epsilon(m.transformer, 1e-5, 1e-12),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@torch.no_grad()
def test_the_recorded_logits_show_a_mistake(model, recorded, mistake):
    MISTAKES[mistake](model)
    assert distance(model(*inputs(recorded)), recorded["logits"]) > 2 * RELATIVE


@torch.no_grad()
def test_code_logits(model, recorded):
    tokens, labels, drop = inputs(recorded)
    masked = torch.where(tokens == MASK, -1, tokens)
    dropped = torch.where(drop, -1, labels)
    logits = model.code_logits(masked, dropped)
    assert distance(logits, recorded["logits"]) < RELATIVE
    # A token that drew the mask id is what a masked one is to the model.
    assert torch.equal(model.code_logits(tokens, dropped, num_codes=32), logits)
    assert (masked == -1).any() and (dropped == -1).any()  # the arguments are left as they were
    assert model.bfloat16().code_logits(masked, dropped).dtype == torch.float32


@pytest.mark.parametrize("num_tokens, key", [(256, "vit_base_256"), (1024, "vit_base_512")])
def test_full_size(num_tokens, key):
    full_size = json.loads((FOLDER / "full_size.json").read_text())
    shapes = dict(full_size["state_dict"]["vit_base_256"])
    if key == "vit_base_512":
        shapes |= full_size["state_dict"]["vit_base_512: shapes that differ from vit_base_256"]
    with without_values():
        model = BesnierTransformer(num_tokens=num_tokens)
    assert {name: list(value.shape) for name, value in model.state_dict().items()} == shapes
    count = sum(parameter.numel() for parameter in model.parameters())
    expected = {"vit_base_256": 174_160_874, "vit_base_512": 176_306_666}[key]
    assert count == expected == full_size["counts"][key]["parameters"]


def test_tensors_are_in_the_published_order(model):
    # The optimizer's state in a published file is numbered, not named.
    assert sorted(published_state()) == sorted(model.state_dict())
    assert [name for name, _ in model.named_parameters()] == list(published_state())


def test_round_trip(model, recorded, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = BesnierTransformer.from_pretrained(tmp_path)
    assert not loaded.training
    assert loaded.to_config() == model.to_config() == TINY | {"dropout": 0.1}
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.pop("model_type") == "besnier_transformer"
    assert config == model.to_config()
    assert torch.equal(loaded(*inputs(recorded)), model(*inputs(recorded)))


def test_initial_values():
    torch.manual_seed(0)
    for name, value in BesnierTransformer(**TINY).state_dict().items():
        if name.endswith("bias"):
            assert not value.any(), name
        elif value.dim() == 1:  # the gains of the LayerNorms
            assert (value == 1).all(), name
        else:
            assert value.abs().max() <= 0.04 and 0.01 < value.std() < 0.02, name


def test_dropout_only_in_training(model, recorded):
    tokens, labels, drop = inputs(recorded)
    assert torch.equal(model(tokens, labels, drop), model(tokens, labels, drop))
    model.train()
    assert not torch.equal(model(tokens, labels, drop), model(tokens, labels, drop))
    without = BesnierTransformer(**TINY, dropout=0.0).train()
    assert torch.equal(without(tokens, labels, drop), without(tokens, labels, drop))


def test_misfits_are_named(model, recorded):
    tokens, labels, _ = inputs(recorded)
    with pytest.raises(ValueError, match=r"tokens has shape \[6, 15\]; this model takes \[B, 16\]"):
        model(tokens[:, :15], labels)
    with pytest.raises(ValueError, match=r"labels has shape \[5\]; accepted: \[6\]"):
        model(tokens, labels[:5])
    with pytest.raises(ValueError, match="num_codes is 31; this model has 32"):
        model.code_logits(tokens, labels, num_codes=31)
    with pytest.raises(ValueError, match="hidden_size 64 is not a multiple"):
        BesnierTransformer(**TINY | {"num_attention_heads": 5})
