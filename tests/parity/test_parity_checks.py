"""The checks themselves, live against the Flax reference, at small sizes."""

import dataclasses
import functools
from pathlib import Path

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="needs the extra 'jax'")

import ml_collections  # noqa: E402
import torch  # noqa: E402

from convert import rules  # noqa: E402
from maskgit_pt import VQVAE  # noqa: E402
from parity import jax_code, plan, subjects, weights  # noqa: E402
from parity.bounds import FLOAT32  # noqa: E402
from parity.checks import decoding, tokenizer  # noqa: E402
from parity.checks.near_ties import History, NearTies, Settings  # noqa: E402
from parity.layers import nhwc  # noqa: E402
from parity.pairs import TokenizerPair  # noqa: E402
from parity.stages import describe, run_stages  # noqa: E402

GOLDEN = Path(__file__).parents[1] / "golden" / "official"


@pytest.fixture(scope="module")
def code():
    return jax_code.load_reference()


@pytest.fixture(scope="module")
def given(code, tmp_path_factory):
    """Google-format files given by a user."""
    files = {kind: GOLDEN / f"tiny_{kind}_checkpoint" for kind in ("transformer", "tokenizer")}
    folder = tmp_path_factory.mktemp("given")
    return subjects.from_files(code, files, folder)


@pytest.fixture(scope="module")
def seeded(code, tmp_path_factory):
    return subjects.seeded(code, "tiny", tmp_path_factory.mktemp("seeded"))


def run(stages):
    results = list(run_stages(stages))
    assert results
    for result in results:
        assert result.passed, f"{result.title}: {describe(result)}"
    return results


def test_functions(code):
    run(plan.code_stages(code)[:4])


def test_given_files(given):
    assert given.transformer.codes == 32 and given.config.image_size == 16
    picture, _ = subjects.load_picture(None, given.config.image_size)
    results = run(plan.subject_stages(given, picture, plan.Options(seeds=(0, 2**31 + 5))))
    controls = [record for result in results for record in result.records if record.control]
    assert {record.name for record in controls} == {
        "GELU in its erf form",
        "one matrix transposed (attention output, layer 0)",
        "2 heads instead of 4",
    }
    # The picture, and one image for each decoding run and seed.
    assert sum(len(result.pictures) for result in results) == 1 + 4 * 2


def test_float64_and_the_faults_it_shows(seeded):
    picture, _ = subjects.load_picture(None, seeded.config.image_size)
    stages = [
        stage
        for stage in plan.subject_stages(seeded, picture, plan.Options(seeds=(0,)))
        if stage.title.startswith(("transformer in float64", "faults that", "faults in decoding"))
    ]
    assert len(stages) == 3
    results = run(stages)
    controls = [record.name for result in results for record in result.records if record.control]
    assert len(controls) == 5
    logits = [r for result in results for r in result.records if r.name == "logits"]
    assert logits and all(record.max_abs < 1e-9 for record in logits)


def test_seeded_weights_are_of_trained_magnitude(seeded):
    flat = weights.flatten(seeded.transformer.variables)
    gains = np.concatenate([value for name, value in flat.items() if name.endswith("/scale")])
    assert 0.5 <= gains.min() < 0.6 and 1.8 < gains.max() <= 1.9
    assert all(np.any(value) for name, value in flat.items() if name.endswith("/bias"))
    with torch.inference_mode():
        logits = seeded.transformer.ours(torch.full((1, seeded.transformer.length), -1))
    assert 8 < logits.std() < 12


@pytest.mark.parametrize(
    "options",
    [
        {"norm_type": "LN", "activation_fn": "relu", "conv_downsample": True},
        {"norm_type": "BN", "quantizer": "gumbel"},
    ],
    ids=["LN, relu, strided convolutions", "BN, gumbel"],
)
def test_other_tokenizers(code, options):
    config = subjects.config_of("tiny")
    config.vqvae.update({"channel_multipliers": [1, 2], **options})
    config = ml_collections.ConfigDict({"vqvae": config.vqvae.to_dict()})
    variables = weights.tokenizer_variables(code, config)
    if options["norm_type"] == "BN":
        variables["batch_stats"] = _running_statistics(code, config)
    ours = VQVAE(config)
    state = rules.to_torch(weights.flatten(variables), "maskgit_vqvae", ours.to_config())
    ours.load_state_dict(state)
    pair = TokenizerPair(ours.eval(), code, variables)
    images = np.random.default_rng(0).random((2, 3, 12, 12)).astype(np.float32)
    records = list(tokenizer.activations(pair, images, rtol=2e-5))
    bounds = dataclasses.replace(FLOAT32, blocks=2e-5, images=2e-5)
    records += tokenizer.results(pair, images, bounds)
    assert all(record.passed for record in records), [r for r in records if not r.passed]


def _running_statistics(code, config):
    """Means and variances as after training, in the tree that Flax makes."""
    module = code.tokenizer(config)
    images = np.zeros((1, 8, 8, 3), np.float32)

    def everything(module, images):
        return module.decode(module.encode({"image": images})[0])

    init = functools.partial(module.init, method=everything)
    tree = jax.eval_shape(init, jax.random.PRNGKey(0), images)["batch_stats"]
    rng = np.random.default_rng(1)
    return jax.tree_util.tree_map(
        lambda leaf: rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32), dict(tree)
    )


def test_a_difference_in_decoding_is_traced_to_its_scores(given):
    pair, settings = given.transformer, Settings(num_iter=4)
    tokens = decoding.make_tokens(pair, 2, edit=False)
    ours = decoding.decode_ours(pair, tokens, 7, settings)
    theirs = decoding.TheirDecoder(pair)(tokens, 7, settings)
    explain = NearTies(pair, 7, settings).explain
    assert explain(ours, theirs) == ""

    guesses = ours.guesses.copy()
    sample, position = np.argwhere(theirs.running[2] == -1)[0]
    guesses[sample, 2, position] = (guesses[sample, 2, position] + 1) % pair.codes
    found = explain(History(guesses, ours.running), theirs)
    assert found.startswith(f"step 2, sample {sample}, position {position}: token ")
    # The token that was put in has the lower score on either side.
    gaps = [float(part.split()[0]) for part in found.partition("apart by ")[2].split(", ")]
    assert len(gaps) == 2 and max(gaps) < 0 and abs(gaps[0] - gaps[1]) < 1e-3

    running = ours.running.copy()
    running[2, sample, position] = guesses[sample, 1, position]
    found = explain(History(ours.guesses, running), theirs)
    assert found.startswith(f"step 1, sample {sample}, position {position}: masked again on one")
    records = list(
        decoding.compare_histories(
            "seed 7", pair, History(ours.guesses, running), theirs, 7, settings
        )
    )
    assert [record.passed for record in records] == [True, False]
    assert "masked again on one side only" in records[1].message


def test_pictures_are_cut_to_a_square(tmp_path):
    from PIL import Image

    path = tmp_path / "wide.png"
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 255
    Image.fromarray(wide).save(path)
    picture, name = subjects.load_picture(path, 32)
    assert picture.shape == (1, 3, 32, 32) and picture.dtype == np.float32
    assert picture.min() == 1.0 and name == "wide.png"
    assert nhwc(picture).shape == (1, 32, 32, 3)
