"""Loading the official code: what is supplied, what is left behind, and errors."""

import os
import sys

import pytest

jax = pytest.importorskip("jax", reason="needs the extra 'jax'")

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from parity import jax_code, official, plan, subjects, weights  # noqa: E402
from parity.stages import describe, run_stages  # noqa: E402

CHECKOUT = os.environ.get("MASKGIT_OFFICIAL_CHECKOUT")
needs_checkout = pytest.mark.skipif(
    CHECKOUT is None,
    reason="set MASKGIT_OFFICIAL_CHECKOUT to a checkout of google-research/maskgit",
)

# What the official files do that needs help, without being them.
FILES = {
    "libml/losses": "SIZE = 3\n",
    "libml/mask_schedule": "",
    "libml/parallel_decode": (
        "import jax.numpy as jnp\nfrom maskgit.libml import losses\n"
        "class State:\n  rng: jnp.DeviceArray\n  size = losses.SIZE\n"
    ),
    "nets/layers": "",
    "nets/maskgit_transformer": "",
    "nets/vqgan_tokenizer": "from maskgit.nets import layers\n",
    "nets/discriminator": "class Discriminator:\n  value = 5\n\n\n  def squared_euclidean_distance\n",
    "configs/base_config": "",
    "configs/vqgan_config": "",
    "configs/maskgit_class_cond_config": "",
    "utils": (
        "import matplotlib.pyplot as plt\nimport requests\nimport tensorflow.compat.v1 as tf\n"
        "def restore_from_path(path):\n  pass\n"
    ),
    "inference": "from maskgit.utils import restore_from_path\n",
}


@pytest.fixture
def checkout(tmp_path):
    for name, source in FILES.items():
        file = tmp_path / "maskgit" / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source)
    return tmp_path


def test_supplies_what_is_missing_and_leaves_nothing_behind(checkout):
    before = set(sys.modules)
    code = official.load(checkout)
    assert code.official and code.parallel_decode.State.size == 3
    assert code.parallel_decode.State.__annotations__["rng"] is jax.Array
    assert code.discriminator.Discriminator.value == 5
    assert code.losses.__file__ == str(checkout / "maskgit" / "libml" / "losses.py")
    assert any("stray last line" in note for note in code.notes)
    assert not hasattr(jnp, "DeviceArray")
    left = {name for name in set(sys.modules) - before if name.partition(".")[0] == "maskgit"}
    assert not left
    # On disk nothing has changed.
    file = checkout / "maskgit" / "nets" / "discriminator.py"
    assert file.read_text() == FILES["nets/discriminator"]


def test_another_maskgit_package_survives(checkout, monkeypatch):
    other = type(sys)("maskgit")
    monkeypatch.setitem(sys.modules, "maskgit", other)
    official.load(checkout)
    assert sys.modules["maskgit"] is other


def test_an_error_while_loading_cleans_up_too(checkout):
    (checkout / "maskgit" / "utils.py").write_text("1 / 0\n")
    with pytest.raises(ZeroDivisionError):
        official.load(checkout)
    assert "maskgit" not in sys.modules and not hasattr(jnp, "DeviceArray")


def test_a_folder_that_is_no_checkout(tmp_path):
    with pytest.raises(ValueError, match="no checkout of google-research/maskgit"):
        official.load(tmp_path)
    with pytest.raises(ValueError, match="libml/losses.py is missing"):
        official.load(tmp_path / "nowhere")


@needs_checkout
def test_the_reference_equals_the_official_code_bit_by_bit():
    theirs, ours = official.load(CHECKOUT), jax_code.load_reference()
    config = subjects.config_of("tiny")
    arguments = subjects.transformer_arguments(config)
    variables = weights.transformer_variables(ours, arguments)
    ids = np.resize(np.arange(-1, 70, dtype=np.int32), (2, arguments["max_position_embeddings"]))
    logits = [code.transformer(arguments).apply(variables, ids) for code in (ours, theirs)]
    assert np.array_equal(*logits)
    variables = weights.tokenizer_variables(ours, config)
    images = np.random.default_rng(0).random((1, 32, 32, 3)).astype(np.float32)

    def run(code):
        module = code.tokenizer(config)
        indices = module.apply(variables, images, method=module.encode_to_indices)
        return indices, module.apply(variables, indices, method=module.decode_from_indices)

    for one, other in zip(run(ours), run(theirs), strict=True):
        assert np.array_equal(one, other)


@needs_checkout
def test_configurations_agree():
    (result,) = run_stages(plan.code_stages(official.load(CHECKOUT))[:1])
    assert result.title == "configurations"
    assert result.passed, describe(result)
