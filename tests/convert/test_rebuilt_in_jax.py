"""Files of other projects, back in Google's format, in JAX: the images that Google's own file gives.

With the Flax reference; with Google's code where MASKGIT_OFFICIAL_CHECKOUT names a checkout of it.
"""

import json
import math
import os

import ml_collections
import numpy as np
import pytest
from convert_samples import OFFICIAL

import convert
from convert import flax_msgpack

jax = pytest.importorskip("jax", reason="needs the extra 'jax'")

from parity import jax_code, official  # noqa: E402
from parity.weights import read_checkpoint  # noqa: E402

CHECKOUT = os.environ.get("MASKGIT_OFFICIAL_CHECKOUT")
PAIR = ("formats/hmorimitsu_maskgit.ckpt", "formats/open_muse")


@pytest.fixture(scope="module", params=["reference", "official"])
def code(request):
    if request.param == "reference":
        return jax_code.load_reference()
    if CHECKOUT is None:
        pytest.skip("set MASKGIT_OFFICIAL_CHECKOUT to a checkout of google-research/maskgit")
    return official.load(CHECKOUT)


def generator(code):
    """(transformer's, tokenizer's variables) -> logits of the first step, tokens, images; compiled."""
    config = ml_collections.ConfigDict(json.loads((OFFICIAL / "tiny_config.json").read_text()))
    _, sizes, _ = convert.load_checkpoint(OFFICIAL / "tiny_transformer_checkpoint")
    transformer = code.transformer(sizes)
    tokenizer = code.tokenizer(config)
    num_codes, length = config.vqvae.codebook_size, sizes["max_position_embeddings"]
    inputs = np.full((2, length), -1, np.int32)
    inputs[:, 0] = num_codes + np.array([3, 7])

    def generate(transformer_variables, tokenizer_variables):
        def tokens_to_logits(ids):
            logits = transformer.apply(transformer_variables, ids, deterministic=True)
            return logits[..., :num_codes]

        steps = code.parallel_decode.decode(
            inputs, jax.random.PRNGKey(42), tokens_to_logits, num_iter=4, mask_token_id=-1
        )
        tokens = steps[:, -1, 1:].reshape(2, math.isqrt(length - 1), -1)
        images = tokenizer.apply(
            tokenizer_variables, {"encoding_indices": tokens}, method=tokenizer.decode_from_indices
        )
        return tokens_to_logits(inputs), tokens, images

    compiled = jax_code.jit(generate)

    def of_files(*files):
        return [np.asarray(x) for x in compiled(*(read_checkpoint(file) for file in files))]

    return of_files


def test_same_images(code, foreign_files, tmp_path):
    for name, path, heads in zip(("transformer", "tokenizer"), PAIR, (4, None), strict=True):
        convert.convert(foreign_files / path, tmp_path / name, to="flax", num_heads=heads)
    generate = generator(code)
    google = [OFFICIAL / f"tiny_{kind}_checkpoint" for kind in ("transformer", "tokenizer")]
    expected = generate(*google)
    found = generate(tmp_path / "transformer", tmp_path / "tokenizer")
    assert len(np.unique(expected[1])) > 3
    assert all(np.array_equal(*both) for both in zip(found, expected, strict=True))
    # The control: query and key exchanged in one layer.
    wrong = convert.read_flat(tmp_path / "transformer")
    name = "params/TransformerLayer_1/Attention_0/self_attention/{}/kernel"
    wrong[name.format("query")], wrong[name.format("key")] = (
        wrong[name.format("key")],
        wrong[name.format("query")],
    )
    (tmp_path / "wrong").write_bytes(flax_msgpack.dumps(flax_msgpack.nest(wrong)))
    logits = generate(tmp_path / "wrong", tmp_path / "tokenizer")[0]
    assert np.abs(logits - expected[0]).max() > 1e-2
