"""The transformer of Halton-MaskGIT against numbers recorded from its authors' code."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from halton_files import FOLDER, MASK, recorded, transformer
from recorded import assert_close
from torch import nn

from maskgit_pt.nets import halton_transformer
from maskgit_pt.nets.halton_transformer import PUBLISHED_HEADS, HaltonTransformer
from maskgit_pt.pretrained import without_values
from maskgit_pt.samplers.confidence_2025 import SCHEDULES

FLOAT32, FLOAT64 = 2e-5, 1e-12  # relative to the largest logit, about 10
MANIFEST = json.loads((FOLDER / "manifest_transformer.json").read_text())
PARAMETERS = {
    "ImageNet_256_tiny.pth": 23_031_425,
    "ImageNet_256_small.pth": 69_344_769,
    "ImageNet_256_base.pth": 142_224_641,
    "ImageNet_384_small.pth": 69_508_609,
    "ImageNet_384_base.pth": 142_470_401,
    "ImageNet_384_large.pth": 479_984_641,
    "xlarge_384 (no published file)": 692_487_041,
}


@pytest.fixture(scope="module")
def vectors():
    return recorded("transformer")


def inputs(vectors, network) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x, y, drop = (torch.from_numpy(vectors[f"{network}.{name}"]) for name in ("x", "y", "drop"))
    return x.long().flatten(1), y.long(), drop


@pytest.mark.parametrize("network", "AB")
@torch.no_grad()
def test_logits(vectors, network):
    model = transformer(network)
    tokens, labels, drop = inputs(vectors, network)
    assert_close(model(tokens, labels, drop), vectors[f"{network}.logits_f32"], FLOAT32)
    ours = model.code_logits(
        torch.where(tokens == MASK, -1, tokens), torch.where(drop, -1, labels), 32
    )
    assert torch.equal(ours, model(tokens, labels, drop))
    model.double()
    exact = vectors[f"{network}.logits_f64"]
    assert_close(model(tokens, labels, drop), exact, FLOAT64)
    rows = [0, 2] if network == "A" else [0, 1, 2]
    flipped = model(tokens, labels, ~drop)
    assert_close(flipped[rows], vectors[f"{network}.logits_flipdrop_f64"], FLOAT64)
    assert np.abs(flipped.numpy() - exact).max() > 0.1


@pytest.mark.parametrize("network", "AB")
@torch.no_grad()
def test_activations(vectors, network):
    """What is inside, of sample 2: the first layer that differs is the one at fault."""
    model, seen = transformer(network).double(), {}
    layers = model.transformer["layers"]

    def keep(module, name, of_input=False):
        def hook(_, args, output):
            seen[name] = args[0] if of_input else output

        module.register_forward_hook(hook)

    keep(layers[0].mlp, "mod0")
    keep(layers[0], "seq_in", of_input=True)
    keep(layers[0].attn, "attn0_in", of_input=True)
    keep(layers[0].attn, "attn0_out")
    keep(layers[0].attn.wq, "q")
    keep(layers[0].attn.wk, "k")
    keep(layers[0].ff, "ff0_out")
    for number, layer in enumerate(layers):
        keep(layer, f"block{number}_out")
    keep(model.last_norm, "last_norm_in", of_input=True)
    keep(model.last_norm, "last_norm_out")
    model(*inputs(vectors, network))
    query_key = [halton_transformer.rms_normalize(seen.pop(name)) for name in "qk"]
    seen["qk0"] = torch.stack(query_key, 1)
    names = {name.split(".act.")[1] for name in vectors if name.startswith(f"{network}.act.")}
    assert names == seen.keys()
    for name in sorted(names):
        ours = seen[name] if name == "mod0" else seen[name][2]
        if name != "mod0" and network == "A":
            ours = ours[..., ::4, :]
        assert_close(ours, vectors[f"{network}.act.{name}"], 1e-12, name)


MISTAKES = {
    "shift and scale exchanged": lambda m: _permute_modulation(m, [1, 0, 2, 4, 3, 5]),
    "gate first": lambda m: _permute_modulation(m, [2, 0, 1, 5, 3, 4]),
    "w1 and w3 exchanged": lambda m: _exchange_gates(m),
    "no register": lambda m: setattr(m, "reg_tokens", None),
}


def _permute_modulation(model, order):
    for block in model.transformer["layers"]:
        for parameter in block.mlp[1].parameters():
            parameter.data = torch.cat([parameter.data.chunk(6)[i] for i in order])


def _exchange_gates(model):
    for block in model.transformer["layers"]:
        block.ff.w1, block.ff.w3 = block.ff.w3, block.ff.w1


@pytest.mark.parametrize("mistake", MISTAKES)
@torch.no_grad()
def test_the_recorded_logits_show_a_mistake(vectors, mistake):
    model = transformer("B")
    MISTAKES[mistake](model)
    difference = model(*inputs(vectors, "B")).numpy() - vectors["B.logits_f32"]
    assert np.abs(difference).max() > 1e-2


@pytest.mark.parametrize("file", MANIFEST)
def test_full_size(file):
    shapes = dict(MANIFEST[file])
    width, tokens = shapes["tok_emb.weight"][1], shapes["pos_emb.weight"][0]
    layers = 1 + max(int(name.split(".")[2]) for name in shapes if ".layers." in name)
    with without_values():
        model = HaltonTransformer(
            num_tokens=tokens,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=PUBLISHED_HEADS[width],
        )
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[file]
    # The embedding's second name is the format's affair.
    assert shapes.pop("head.weight") == shapes["tok_emb.weight"]
    ours = {name: list(value.shape) for name, value in model.state_dict().items()}
    assert list(ours.items()) == list(shapes.items())  # in the order of the file


def test_masks_of_training():
    """What the uniform numbers lead to; the shares are one minus those that sampling decides."""
    vectors = recorded("training")
    for mode, share in SCHEDULES.items():
        masked = 1 - share(torch.from_numpy(vectors["mask_modes_r"]))
        ours = torch.from_numpy(vectors["mask_modes_u"]) < masked[:, None, None]
        assert np.array_equal(ours.numpy(), vectors[f"mask_{mode}"]), mode
    masked = 1 - SCHEDULES["arccos"](torch.from_numpy(vectors["r"]))
    ours = vectors["u_mask"] < masked[:, None, None].numpy()
    assert np.array_equal(np.where(ours, MASK, vectors["code"]), vectors["masked_code"])


def test_training_step():
    vectors = recorded("training")
    code, labels, masked, drop = (
        torch.from_numpy(vectors[name]) for name in ("code", "y", "masked_code", "drop_label")
    )
    code, masked = code.long().flatten(1), masked.long().flatten(1)
    assert torch.equal(drop, torch.from_numpy(vectors["u_drop"]) < 0.3)
    for dtype, tolerance, total in ((torch.float32, 1e-5, "f32"), (torch.float64, 1e-12, "f64")):
        model = transformer("A").to(dtype).train()
        logits = model(masked, labels.long(), drop)
        loss = F.cross_entropy(logits.flatten(0, 1), code.flatten())
        loss.backward()
        assert_close(loss, vectors[f"loss_{total}"], tolerance)
        names = list(vectors["param_names"])
        parameters = dict(model.named_parameters())
        assert names == list(parameters)
        norms = torch.stack([parameters[name].grad.norm() for name in names])
        assert_close(norms, vectors[f"grad_norm_{total}"], 10 * tolerance, "norms")
        assert_close(norms.norm(), vectors[f"grad_total_norm_{total}"], 10 * tolerance)
    hits = (logits.argmax(-1) == code)[masked == MASK]
    assert_close(hits.double().mean(), vectors["acc_masked"], 1e-6)
    for name in names:
        gradient = parameters[name].grad
        assert_close(_places(gradient), vectors[f"grad.{name}"], 1e-9, name)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=float(vectors["lr"]), betas=(0.9, 0.999), weight_decay=0.03
    )
    optimizer.step()
    for name in names:
        assert_close(_places(parameters[name]), vectors[f"after_step.{name}"], 1e-9, name)


def _places(value: torch.Tensor) -> torch.Tensor:
    """The places of a tensor that are recorded."""
    flat = value.detach().flatten()
    return flat[:: max(1, flat.numel() // 12)][:12]


def test_initial_values():
    torch.manual_seed(0)
    model = HaltonTransformer(31, 9, 16, 48, 2, 4)
    state = model.state_dict()
    for name, value in state.items():
        if ".layers." in name and ".mlp." in name or name.endswith("bias"):
            assert not value.any(), name
        elif value.dim() == 1:
            assert (value == 1).all(), name
        elif "emb" in name or "reg" in name:
            assert 0.015 < value.std() < 0.025, name
        else:
            bound = (6 / sum(value.shape)) ** 0.5
            assert 0.95 * bound < value.abs().max() <= bound, name


@torch.no_grad()
def test_dropout_only_in_training(vectors):
    tokens, labels, drop = inputs(vectors, "B")
    config = transformer("B").to_config() | {"dropout": 0.2}
    model = HaltonTransformer.from_config(config)
    model.load_state_dict(transformer("B").state_dict())
    assert not torch.equal(model(tokens, labels, drop), model(tokens, labels, drop))
    assert_close(model.eval()(tokens, labels, drop), vectors["B.logits_f32"], FLOAT32)


def test_round_trip(vectors, tmp_path):
    model = transformer("B")
    model.save_pretrained(tmp_path)
    loaded = HaltonTransformer.from_pretrained(tmp_path)
    assert not loaded.training and loaded.to_config() == model.to_config()
    assert loaded.to_config()["intermediate_size"] == 256
    tokens, labels, drop = inputs(vectors, "B")
    assert torch.equal(loaded(tokens, labels, drop), model(tokens, labels, drop))
    half = HaltonTransformer.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.code_logits(tokens, labels).dtype == torch.float32


def test_misfits_are_named(vectors):
    tokens, labels, _ = inputs(vectors, "B")
    model = transformer("B")
    with pytest.raises(ValueError, match=r"tokens has shape \[3, 15\]; this model takes \[B, 16\]"):
        model(tokens[:, :15], labels)
    with pytest.raises(ValueError, match=r"labels has shape \[2\]; accepted: \[3\]"):
        model(tokens, labels[:2])
    with pytest.raises(ValueError, match="num_codes is 31; this model has 32"):
        model.code_logits(tokens, labels, num_codes=31)
    with pytest.raises(ValueError, match="num_attention_heads is 49; accepted: 1 to"):
        HaltonTransformer(hidden_size=48, num_attention_heads=49)
