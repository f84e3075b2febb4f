"""Training of both stages against JAX and optax, and the curves of the report."""

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="needs the extra 'jax'")

from parity import jax_code, report, subjects  # noqa: E402
from parity.bounds import RUN64, TOKENIZER_RUN32  # noqa: E402
from parity.compare import Record  # noqa: E402
from parity.stages import Curve, Result, describe, run_stages  # noqa: E402
from parity.training import optax_side, plan  # noqa: E402
from parity.training.compare_runs import compare_runs  # noqa: E402
from parity.training.run import Run  # noqa: E402
from parity.training.transformer import STEPS  # noqa: E402
from train.tasks import optimizers  # noqa: E402


@pytest.fixture(scope="module")
def code():
    return jax_code.load_reference()


@pytest.fixture(scope="module")
def transformer(code, tmp_path_factory):
    folder = tmp_path_factory.mktemp("transformer")
    pair = subjects.seeded(code, "tiny", folder).transformer
    return plan.TransformerTraining("tiny", pair, folder / "shards")


@pytest.fixture(scope="module")
def tokenizer(code, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    return plan.TokenizerTraining(code, folder / "images")


def check(records):
    records = [one for one in records if isinstance(one, Record)]
    assert records and all(r.passed for r in records), [r for r in records if not r.passed]
    return {record.name: record for record in records}


def run_stage(transformer, number):
    (result,) = run_stages(transformer.stages()[number : number + 1])
    assert result.passed, f"{result.title}: {describe(result)}"
    return result


def test_twenty_steps_of_the_transformer(transformer):
    result = run_stage(transformer, 0)
    assert next(r for r in result.records if r.name == "loss, every step").max_abs <= 1e-4
    (curve,) = result.curves
    assert len(curve.ours) == STEPS
    # The run trains: else equal weights would say little.
    assert curve.ours[-1] < curve.ours[0] / 2


@pytest.mark.parametrize("stage", [1, 2], ids=["as published", "other settings"])
def test_twenty_steps_in_float64(transformer, stage):
    result = run_stage(transformer, stage)
    weights = [r for r in result.records if r.name.startswith("transformer: weights, ")]
    assert len(weights) == len(list(transformer.pair.ours.parameters()))
    assert all(record.max_abs <= 1e-8 for record in weights)
    assert [len(curve.ours) for curve in result.curves] == [STEPS] * (stage == 1)


def test_faults_in_training_the_transformer(transformer):
    records = run_stage(transformer, 3).records
    assert len(records) == 8 and all(record.control for record in records)


def test_masks_and_dropped_labels_differ_between_steps(transformer):
    batches = transformer._ours64.batches()
    assert any((batch["labels"] == -1).any() for batch in batches)
    assert len({batch["masked"].tobytes() for batch in batches}) == len(batches)


def test_five_steps_of_tokenizer_and_discriminator(tokenizer):
    records = check(tokenizer.float32())
    gradients = [r for name, r in records.items() if ": gradient of " in name]
    assert len(gradients) > 50 and all(record.max_abs <= 1e-5 for record in gradients)
    assert sum(name.startswith("indices, step") for name in records) == 5


def test_faults_in_training_tokenizer_and_discriminator(tokenizer):
    faults = list(tokenizer.faults())
    assert len(faults) == 3 and all(record.passed and record.control for record in faults)


def test_five_steps_with_gumbel_and_hinge_in_float64(tokenizer):
    records = check(tokenizer.other64())
    weights = [r for name, r in records.items() if ": weights, " in name]
    assert len(weights) > 50 and all(record.max_abs <= 1e-8 for record in weights)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["float64", "other32"])
def test_five_steps_otherwise(tokenizer, name):
    check(getattr(tokenizer, name)())


@pytest.mark.parametrize("name", optimizers.SCHEDULES)
def test_schedules_agree(name):
    from train.configs import defaults

    config = defaults.get_config().optimizer
    config.update(lr=3e-4, warmup_steps=4, lr_schedule=name, lr_min=2e-5)
    theirs = optax_side.schedule(config, 12)
    for step in range(12):
        expected = float(theirs(step))
        assert optimizers.learning_rate(config, step, 12) == pytest.approx(expected, rel=1e-6)


def test_a_flipped_index_is_named():
    curves = {"loss": np.zeros(2)}
    theirs = Run(curves, {}, {}, {}, {}, np.zeros((2, 1, 2, 2), np.int64))
    ours = Run(curves, {}, {}, {}, {}, theirs.indices.copy(), gap=1e-9)
    ours.indices[1, 0, 1, 0] = 3
    records = list(compare_runs(ours, theirs, RUN64))
    assert [r.name for r in records if not r.passed] == ["indices, step 1"]
    assert "1 of 4 differ" in records[1].message and "1.0e-09" in records[1].message


def test_strays_are_left_out_in_float32_alone_and_counted():
    weights = np.random.default_rng(0).normal(size=250_000)
    moved = weights.copy()
    moved[[7, 9]] += 2e-4

    def records(ours, bounds):
        theirs = Run({}, {}, {"net": {"w": 0 * weights}}, {"net": {"w": weights}}, {})
        mine = Run({}, {}, {}, {"net": {"w": ours}}, {})
        return list(compare_runs(mine, theirs, bounds))

    (record,) = records(moved, TOKENIZER_RUN32)
    assert record.passed and "left out 3 of 250000, which differ by up to 2.0e-04" in record.message
    moved[[1, 2]] += 2e-4
    assert not records(moved, TOKENIZER_RUN32)[0].passed
    assert not records(moved, RUN64)[0].passed


def test_curves_as_a_picture(tmp_path):
    def draw(*curves):
        context = report.Context("", (), "", (), (), ())
        report.write(tmp_path, [Result("s", "t", (), 1.0, curves=curves)], context)
        page = (tmp_path / "index.html").read_text()
        assert ("<h2>Training</h2>" in page) == bool(curves)
        return page.partition("<h2>Training</h2>")[2]

    theirs = np.linspace(5, 1, 20)
    page = draw(Curve("a <loss>", theirs + 2e-6, theirs))
    assert "a &lt;loss&gt;: largest difference 2.0e-06" in page and "a <loss>" not in page
    assert page.count("<circle") == 21 and page.count("<rect") == 20  # one more in the legend
    assert draw() == ""
    constant = draw(Curve("x", np.zeros(3), np.zeros(3)))
    assert "nan" not in constant and constant.count("<circle") == 4
    broken = np.array([1.0, np.nan, np.inf])
    page = draw(Curve("x", broken, broken[::-1]))
    assert "nan" not in page and "inf" not in page and page.count("<circle") == 2
