"""The tables: every tensor of every model has a rule; names and shapes are Google's."""

import json
import zlib
from pathlib import Path

import ml_collections
import numpy as np
import pytest
import torch
from convert_samples import MINIATURE, OFFICIAL, seeded_flat

from convert import infer, rules, tables
from convert.files import dtypes
from maskgit_pt.configs import vqgan_config

MANIFEST = json.loads(Path(__file__).with_name("google_manifest.json").read_text())
FILES = {
    "maskgit_transformer": "maskgit_imagenet256_checkpoint",
    "maskgit_vqvae": "tokenizer_imagenet256_checkpoint",
}


def tokenizer_config(**changes) -> dict:
    small = {"filters": 32, "channel_multipliers": [1, 2, 2], "num_res_blocks": 1}
    small |= {"codebook_size": 8, "embedding_dim": 4}
    return {"vqvae": vqgan_config.get_config().vqvae.to_dict() | small | changes}


TOKENIZERS = {
    "published": tokenizer_config(),
    "conv_downsample": tokenizer_config(conv_downsample=True),
    "two_blocks": tokenizer_config(num_res_blocks=2, channel_multipliers=[2, 1]),
    "one_level": tokenizer_config(channel_multipliers=[1]),
    "LN": tokenizer_config(norm_type="LN"),
    "BN": tokenizer_config(norm_type="BN"),
}
DISCRIMINATORS = {
    "small": {"image_size": 16, "discriminator": {"channel_multiplier": 1, "blur_resample": True}},
    "wide": {"image_size": 128, "discriminator": {"channel_multiplier": 2, "blur_resample": True}},
}
MODELS = {
    "maskgit_transformer": ("maskgit_transformer", MINIATURE),
    **{f"tokenizer_{name}": ("maskgit_vqvae", config) for name, config in TOKENIZERS.items()},
    **{f"discriminator_{name}": ("maskgit_discriminator", c) for name, c in DISCRIMINATORS.items()},
}


def pieces_of(model_type, shapes, heads=1):
    return rules.pieces_of(rules.table_rows(model_type, shapes), shapes, heads)


@pytest.fixture(params=MODELS)
def model(request) -> tuple[str, dict]:
    return MODELS[request.param]


def test_names_shapes_and_order_are_google_s(model_type):
    manifest = {name: tuple(shape) for name, shape in MANIFEST[FILES[model_type]].items()}
    found_type, config = infer.infer_config(manifest)
    assert found_type == model_type
    pieces = rules.target(model_type, config)[1]
    assert {piece.official: piece.official_shape for piece in pieces} == manifest
    assert rules.published_order(manifest) == list(manifest)
    tensors, parameters = {
        "maskgit_transformer": (393, 172_457_193),
        "maskgit_vqvae": (168, 54_515_587),
    }[model_type]
    assert len(pieces) == tensors
    assert sum(int(np.prod(shape)) for shape in manifest.values()) == parameters


def test_inferred_configuration_is_google_s():
    manifest = MANIFEST[FILES["maskgit_transformer"]]
    config = infer.infer_config(manifest)[1]
    assert config["num_attention_heads"] == 16 and config["num_hidden_layers"] == 24
    assert infer.resolution("maskgit_transformer", config) == "256 x 256"
    name = "params/Embed_0/position_embeddings/embedding"
    config_512 = infer.infer_config(manifest | {name: (1025, 768)})[1]
    assert infer.resolution("maskgit_transformer", config_512) == "512 x 512"
    config = infer.infer_config(MANIFEST[FILES["maskgit_vqvae"]])[1]
    assert config == {"vqvae": vqgan_config.get_config().vqvae.to_dict()}
    assert infer.resolution("maskgit_vqvae", config) == "any multiple of 16"


def test_configuration_is_inferred(model):
    model_type, config = model
    found_type, found = infer.infer_config(seeded_flat(model_type, config))
    assert found_type == model_type
    assert found == rules.target(model_type, config)[2]


@pytest.mark.parametrize("name", [name for name in MODELS if name != "discriminator_wide"])
def test_round_trip(name):
    model_type, config = MODELS[name]
    flat = seeded_flat(model_type, config)
    state = rules.to_torch(flat, model_type, config)
    module = rules.build(model_type, config)
    assert list(state) == list(module.state_dict())
    module.load_state_dict(state, strict=True)
    again = rules.to_official(module.state_dict(), model_type, config)
    assert list(again) == list(flat) == rules.published_order(flat)
    for name, array in flat.items():
        np.testing.assert_array_equal(again[name], array)
    used = torch.cat([t.flatten() for n, t in state.items() if rules.TORCH_ONLY not in n])
    everything = np.concatenate([array.ravel() for array in flat.values()])
    np.testing.assert_array_equal(np.sort(used.numpy()), np.sort(everything))


def test_transforms_by_hand():
    flat = seeded_flat("maskgit_transformer", MINIATURE)
    state = rules.to_torch(flat, "maskgit_transformer", MINIATURE)
    attention = "params/TransformerLayer_0/Attention_0/self_attention"
    for part, name in enumerate(("query", "key", "value")):
        kernel, bias = flat[f"{attention}/{name}/kernel"], flat[f"{attention}/{name}/bias"]
        for head in range(2):
            for unit in range(2):
                row = part * 4 + head * 2 + unit
                weight = state["layers.0.attention.self_attention.qkv.weight"]
                np.testing.assert_array_equal(weight[row], kernel[:, head, unit])
                stacked = state["layers.0.attention.self_attention.qkv.bias"]
                assert stacked[row] == bias[head, unit]
    out = state["layers.0.attention.self_attention.out.weight"]
    assert out[3, 1 * 2 + 0] == flat[f"{attention}/out/kernel"][1, 0, 3]
    dense = state["layers.0.mlp.intermediate_output.weight"]
    assert dense[2, 1] == flat["params/TransformerLayer_0/Mlp_0/intermediate_output/kernel"][1, 2]
    flat = seeded_flat("maskgit_vqvae", TOKENIZERS["published"])
    conv = rules.to_torch(flat, "maskgit_vqvae", TOKENIZERS["published"])["decoder.conv_in.weight"]
    assert conv[5, 3, 0, 2] == flat["params/decoder/Conv_0/kernel"][0, 2, 3, 5]


def logits_error(flat: dict) -> float:
    """Largest error against the recorded logits of the official code."""
    model_type, config = infer.infer_config(flat)
    module = rules.build(model_type, config).eval()
    module.load_state_dict(rules.to_torch(flat, model_type, config))
    with np.load(OFFICIAL / "transformer.npz") as recorded:
        ids, logits = torch.from_numpy(recorded["input_ids"]).long(), recorded["logits_float32"]
    with torch.no_grad():
        return float(np.abs(module(ids).numpy() - logits).max())


class TestLogits:
    """The recorded logits notice what a round trip cannot: an error made the same way both ways."""

    @pytest.fixture
    def model_type(self):
        return "maskgit_transformer"

    def test_right(self, flat):
        assert logits_error(flat) < 1e-4

    def test_swapped_query_and_key(self, flat, change_row):
        change_row("qkv", stacked="key,query,value")
        assert logits_error(flat) > 1e-2

    def test_forgotten_transpose(self, flat, change_row):
        change_row("mlm_dense", leaves={"weight": ("params", "kernel", tables.IDENTITY)})
        assert logits_error(flat) > 1e-2

    def test_head_as_the_faster_index(self, flat, change_row):
        wrong = tables.Transform(
            "wrong",
            lambda x: x.mT.flatten(1).mT,
            lambda x, heads: x.mT.unflatten(1, (-1, heads)).mT,
        )
        change_row("qkv", leaves={"weight": ("params", "kernel", wrong)})
        assert logits_error(flat) > 1e-2


def test_names_are_those_of_the_flax_reference(model):
    jax = pytest.importorskip("jax", reason="needs the extra 'jax'")
    from parity.reference import discriminator, maskgit_transformer, vqgan_tokenizer

    model_type, config = model
    if model_type == "maskgit_transformer":
        module, inputs = maskgit_transformer.Transformer(**config), np.zeros((1, 3), np.int32)
    elif model_type == "maskgit_vqvae":
        module = vqgan_tokenizer.VQVAE(ml_collections.ConfigDict(config), train=False)
        inputs = {"image": np.zeros((1, 16, 16, 3), np.float32)}
    else:
        module = discriminator.Discriminator(ml_collections.ConfigDict(config), train=False)
        inputs = np.zeros((1, config["image_size"], config["image_size"], 3), np.float32)

    def initialise(key):
        if model_type != "maskgit_vqvae":
            return module.init(key, inputs)

        def both_halves(module, inputs):
            return module.decode(module.encode(inputs)[0])

        return module.init(key, inputs, method=both_halves)

    variables = jax.eval_shape(initialise, jax.random.PRNGKey(0))
    leaves = jax.tree_util.tree_flatten_with_path(variables)[0]
    theirs = {"/".join(step.key for step in path): leaf.shape for path, leaf in leaves}
    ours = {p.official: p.official_shape for p in rules.target(model_type, config)[1]}
    assert ours == theirs


@pytest.mark.parametrize("blur", [True, False])
def test_recorded_discriminator(blur):
    shapes = json.loads((OFFICIAL / f"discriminator_params_blur_{blur}.json").read_text())
    flat = {
        name: np.random.default_rng(zlib.crc32(name.encode()))
        .normal(0, 0.05, shape)
        .astype(np.float32)
        for name, shape in shapes.items()
    }
    model_type, config = infer.infer_config(flat)
    assert model_type == "maskgit_discriminator"
    config["discriminator"]["blur_resample"] = blur
    module = rules.build(model_type, config)
    module.load_state_dict(rules.to_torch(flat, model_type, config))


def test_optional_projection_has_a_rule():
    shapes = {"embed.embedding_hidden_mapping.weight": (4, 3)}
    (piece,) = pieces_of("maskgit_transformer", shapes)
    assert piece.official == "params/Embed_0/embedding_hidden_mapping/kernel"
    assert piece.official_shape == (3, 4)


def test_bfloat16_and_float64(miniature_flat):
    for name in ("bfloat16", "float64", "float16"):
        flat = {
            key: dtypes.to_numpy(torch.from_numpy(array).to(dtypes.torch_dtype(name)))
            for key, array in miniature_flat.items()
        }
        state = rules.to_torch(flat, "maskgit_transformer", MINIATURE)
        assert {tensor.dtype for tensor in state.values()} == {dtypes.torch_dtype(name)}
        again = rules.to_official(state, "maskgit_transformer", MINIATURE)
        assert all(np.array_equal(again[key], flat[key]) for key in flat)


def test_books_are_closed(miniature_flat):
    names = list(miniature_flat)
    flat = dict(miniature_flat)
    moved = flat.pop(names[0])
    flat["params/Embed_0/embeddings_ln/offset"] = moved
    flat[names[1]] = flat[names[1]][:2]
    with pytest.raises(ValueError) as caught:
        rules.to_torch(flat, "maskgit_transformer", MINIATURE)
    assert str(caught.value) == (
        "tensors do not fit this maskgit_transformer: "
        "1 missing: params/Embed_0/embeddings_ln/bias [4]; "
        "1 not known: params/Embed_0/embeddings_ln/offset [4]; "
        "1 of a wrong shape: params/Embed_0/embeddings_ln/scale is [2] instead of [4]"
    )
    with pytest.raises(ValueError, match="25 missing: .* and 21 more"):
        rules.to_torch({}, "maskgit_transformer", MINIATURE)
    state = rules.to_torch(miniature_flat, "maskgit_transformer", MINIATURE)
    del state["mlm_layer.mlm_bias.bias"]
    with pytest.raises(ValueError, match=r"1 missing: mlm_layer.mlm_bias.bias \[5\]"):
        rules.to_official(state, "maskgit_transformer", MINIATURE)


def test_a_tensor_without_a_rule_fails():
    with pytest.raises(ValueError, match=r"layers.0.novelty.weight \[3\] .*no rule"):
        pieces_of("maskgit_transformer", {"layers.0.novelty.weight": (3,)})
    with pytest.raises(ValueError, match="does not fit conv"):
        pieces_of("maskgit_vqvae", {"encoder.conv_in.weight": (3, 3)})
    with pytest.raises(ValueError, match="5 heads"):
        shapes = {"layers.0.attention.self_attention.qkv.weight": (12, 4)}
        pieces_of("maskgit_transformer", shapes, heads=5)
