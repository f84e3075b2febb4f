"""The transformer against the vectors recorded from the official code, and its own promises."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from recorded import assert_close, golden
from torch.profiler import profile

from convert import rules
from maskgit_pt import Transformer
from maskgit_pt.configs import maskgit_class_cond_config
from maskgit_pt.libml import losses
from maskgit_pt.nets import maskgit_transformer
from maskgit_pt.nets.maskgit_transformer import dense_gelu, gelu


def inputs() -> torch.Tensor:
    return torch.from_numpy(golden("transformer")["input_ids"]).long()


def test_logits_float32(tiny_transformer):
    assert_close(tiny_transformer(inputs()), golden("transformer")["logits_float32"], 1e-6)


def test_logits_float64(tiny_transformer):
    # Recorded with float64 arithmetic up to the bias, which the official code adds in float32. So what
    # goes into the bias is rounded here as it was there; the logits are then the same bit for bit.
    recorded = golden("transformer")["logits_float64_compute"]
    bias = tiny_transformer.double().mlm_layer.mlm_bias
    bias.register_forward_pre_hook(lambda _, inputs: inputs[0].float() + bias.bias.float())
    bias.forward = lambda inputs: inputs
    np.testing.assert_array_equal(tiny_transformer(inputs()).detach(), recorded)


def test_num_logits_cuts_the_head(tiny_transformer):
    logits = tiny_transformer(inputs())
    assert_close(tiny_transformer(inputs(), num_logits=32), logits[..., :32].detach(), 1e-6)


def test_gradients_of_the_training_loss(tiny_transformer):
    recorded = golden("transformer_gradients")
    logits = tiny_transformer(inputs(), num_logits=32)
    loss = losses.weighted_sequence_cross_entropy_loss(
        labels=torch.from_numpy(recorded["labels"]).long(),
        logits=logits,
        weights=torch.from_numpy(recorded["weights"]),
        label_smoothing=0.1,
    )
    assert_close(loss, recorded["loss"], 1e-6)
    loss.backward()
    gradients = {name: p.grad for name, p in tiny_transformer.named_parameters()}
    official = rules.to_official(gradients, "maskgit_transformer", tiny_transformer.to_config())
    expected = {name[5:]: g for name, g in recorded.items() if name.startswith("grad:")}
    assert official.keys() == expected.keys()
    for name, gradient in expected.items():
        if name.endswith("key/bias"):  # adds the same to all logits of a row: zero but for rounding
            assert np.abs(official[name]).max() < 1e-8 and np.abs(gradient).max() < 1e-8
        else:
            assert_close(official[name], gradient, 1e-5, name)


def test_mask_id_is_the_last_row(tiny_transformer):
    ids = inputs()
    last = torch.where(ids < 0, tiny_transformer.to_config()["vocab_size"] - 1, ids)
    assert (ids < 0).any()
    torch.testing.assert_close(tiny_transformer(ids), tiny_transformer(last), rtol=0, atol=0)


@pytest.mark.parametrize("control", ["erf_gelu", "layernorm_1e-5", "head_order", "8_heads"])
def test_control_is_noticed(tiny_transformer, control, monkeypatch):
    """Each slip that ports are known to make moves float64 logits by far more than 1e-9."""
    right = tiny_transformer.double()(inputs())
    wrong_model = copy.deepcopy(tiny_transformer)
    for module in wrong_model.modules():
        if control == "layernorm_1e-5" and isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-5
        if isinstance(module, maskgit_transformer.SelfAttention):
            if control == "8_heads":
                module.num_heads = 8  # 4 is right; fused projections do not show it
            if control == "head_order":  # [head, size] read as [size, head]
                weight = module.out.weight.data
                module.out.weight.data = weight.view(64, 4, 16).mT.reshape(64, 64)
    if control == "erf_gelu":
        monkeypatch.setattr(maskgit_transformer, "gelu", F.gelu)
    assert (wrong_model(inputs()) - right).abs().max() > 1e-7


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtypes(tiny_transformer, dtype):
    logits = tiny_transformer.to(dtype)(inputs())
    assert logits.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    tolerance = {torch.float32: 1e-6, torch.float64: 1e-6, torch.bfloat16: 0.05}[dtype]
    assert_close(logits, golden("transformer")["logits_float32"], tolerance)


def test_export(tiny_transformer):
    program = torch.export.export(tiny_transformer, (inputs(),))
    torch.testing.assert_close(program.module()(inputs()), tiny_transformer(inputs()))


def test_compile(tiny_transformer):
    compiled = torch.compile(tiny_transformer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(inputs()), tiny_transformer(inputs()))


@pytest.mark.parametrize("broadcast_dropout", [True, False])
def test_dropout_only_in_training(broadcast_dropout):
    torch.manual_seed(0)
    model = Transformer(43, 64, 2, 4, 128, 0.5, 0.5, 17, broadcast_dropout=broadcast_dropout)
    assert not torch.equal(model(inputs()), model(inputs()))
    model.eval()
    assert torch.equal(model(inputs()), model(inputs()))


def test_broadcast_dropout_shares_one_mask():
    """As Flax: the same entries fall out in every head and sample."""
    torch.manual_seed(0)
    query = key = torch.zeros(3, 2, 5, 4)  # uniform attention, 1/5 each
    value = torch.eye(5).expand(3, 2, 5, 5)  # the output is then the attention itself
    attention = maskgit_transformer._attention_with_broadcast_dropout(query, key, value, 0.4)
    assert (attention == attention[:1, :1]).all()
    assert attention.unique().tolist() == pytest.approx([0.0, 1 / 5 / 0.6])


def test_initialisation():
    torch.manual_seed(0)
    model = Transformer(2025, 768, 1, 16, max_position_embeddings=257)
    for name, parameter in model.named_parameters():
        if name.endswith("_ln.weight"):
            assert (parameter == 1).all()
        elif name.endswith("bias"):
            assert (parameter == 0).all()
        else:  # a normal of deviation .02, cut at 2 sigma, has deviation .0176
            assert parameter.abs().max() <= 0.04
            assert float(parameter.detach().std()) == pytest.approx(0.02 * 0.8796, rel=0.02)


@pytest.mark.parametrize(("image_size", "parameters"), [(256, 172_457_193), (512, 173_047_017)])
def test_parameter_counts(image_size, parameters):
    t = maskgit_class_cond_config.get_config().transformer
    with torch.device("meta"):
        model = Transformer(
            2025,
            t.num_embeds,
            t.num_layers,
            t.num_heads,
            t.intermediate_size,
            max_position_embeddings=(image_size // t.patch_size) ** 2 + 1,
        )
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_errors(tiny_transformer):
    with pytest.raises(ValueError, match="18 positions; this model has 17"):
        tiny_transformer(torch.zeros(1, 18, dtype=torch.long))
    with pytest.raises(ValueError, match="not a multiple of num_heads 5"):
        Transformer(43, 64, 1, 5)


def test_dense_and_gelu_in_one_kernel():
    """Where nobody differentiates; the double-precision product and GELU are the judge of both."""
    torch.manual_seed(0)
    dense, x = torch.nn.Linear(48, 200), 3 * torch.randn(2, 17, 48)
    wanted = gelu(F.linear(x.double(), dense.weight.double(), dense.bias.double()))
    with torch.inference_mode(), profile() as recorded:
        fused = dense_gelu(dense, x)
    names = {event.key for event in recorded.key_averages()}
    assert "mkldnn::_linear_pointwise" in names and "aten::gelu" not in names
    plain = dense_gelu(dense, x)
    assert plain.requires_grad
    for found in (fused, plain):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=2e-6)
    with torch.inference_mode():
        assert dense_gelu(dense.double(), x.double()).dtype == torch.float64
