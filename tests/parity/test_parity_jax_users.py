"""The reference by itself, as docs/jax.md shows it."""

import re
from pathlib import Path

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="needs the extra 'jax'")

import torch  # noqa: E402

import convert  # noqa: E402
from maskgit_pt import VQVAE, Transformer  # noqa: E402
from maskgit_pt.libml import jax_random, parallel_decode  # noqa: E402
from parity import reference  # noqa: E402

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "official"


def test_the_ten_lines_of_the_page(tmp_path):
    page = (ROOT / "docs" / "jax.md").read_text()
    code = next(c for c in re.findall(r"```python\n(.*?)```", page, re.S) if "image =" in c)
    for kind, name in (("transformer", "maskgit"), ("tokenizer", "tokenizer")):
        file = f"{name}_imagenet256_checkpoint"
        assert file in code
        code = code.replace(file, str(GOLDEN / f"tiny_{kind}_checkpoint"))
    code = code.replace("codes + 207", "codes + 2")
    found = {}
    exec(code.replace('tiny_transformer_checkpoint"', 'tiny_transformer_checkpoint", 4, 32'), found)

    for kind in ("transformer", "tokenizer"):
        convert.convert(GOLDEN / f"tiny_{kind}_checkpoint", tmp_path / kind, num_heads=4)
    ours = Transformer.from_pretrained(tmp_path / "transformer")
    key = jax_random.PRNGKey(0, partitionable=jax.config.jax_threefry_partitionable)
    ids = torch.tensor(np.asarray(found["ids"])).long()
    with torch.inference_mode():
        tokens = parallel_decode.decode(
            ids, key, lambda ids: ours(ids)[..., :32], num_iter=8, choice_temperature=4.5
        )[:, -1, 1:]
        images = VQVAE.from_pretrained(tmp_path / "tokenizer").decode_from_indices(
            tokens.reshape(found["grid"].shape)
        )
    assert np.array_equal(tokens, found["tokens"])
    assert np.abs(images.movedim(1, -1).numpy() - found["image"]).max() < 1e-4


def test_a_folder_of_ours_loads_as_the_file_it_came_from(tmp_path):
    file = GOLDEN / "tiny_tokenizer_checkpoint"
    convert.convert(file, tmp_path / "folder")
    (module, one), (_, other) = reference.load(file), reference.load(tmp_path / "folder")
    assert isinstance(module, reference.VQVAE)
    assert jax.tree_util.tree_structure(one) == jax.tree_util.tree_structure(other)
    assert all(map(np.array_equal, *map(jax.tree_util.tree_leaves, (one, other))))


def test_other_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="tiny_config.json"):
        reference.load(GOLDEN / "tiny_config.json")
