"""Bands of a recipe's metrics over seeds, and runs compared with them."""

import json

import numpy as np
import pytest
from training import tiny_config

from train import expected_curves, plot, settings
from train.expected_curves import FOLDER, Band, Expected


def make_run(folder, seed: int, offset: float = 0.0, **changes):
    """A run without weights: its settings and a log whose loss falls with noise."""
    folder.mkdir()
    config = tiny_config("tokens", seed=seed, num_train_steps=2000, log_every_steps=50, **changes)
    settings.keep(config, folder)
    rng = np.random.default_rng(seed)
    lines = []
    for step in range(50, 2001, 50):
        loss = 2 + 3 * np.exp(-step / 400) + 0.02 * rng.standard_normal() + offset
        lines.append({"step": step, "loss": loss, "images_per_second": 10.0})
        if step % 500 == 0:
            lines.append({"step": step, "eval_loss": loss + 0.1})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)
    return folder


@pytest.fixture
def runs(tmp_path):
    return [make_run(tmp_path / f"run_{seed}", seed) for seed in range(3)]


def test_a_run_of_another_seed_lies_inside_and_a_bad_one_does_not(runs, tmp_path):
    expected = Expected.record(runs, "tiny")
    assert list(expected.bands) == ["loss", "eval_loss"] and expected.seeds == [0, 1, 2]
    shares = []
    for seed in range(10, 20):
        curve = plot.read_metrics(make_run(tmp_path / f"run_{seed}", seed))
        points = [(line["step"], line["loss"]) for line in curve if "loss" in line]
        shares.append(expected.bands["loss"].share_inside(*zip(*points, strict=True)))
    assert 0.9 < np.mean(shares) < 0.99
    bad = plot.read_metrics(make_run(tmp_path / "bad", 5, offset=0.2))
    assert expected.describe(bad).startswith("loss 0%")


@pytest.mark.parametrize("freedom", [3, 5, 10, 40])
def test_the_width_is_students(freedom):
    from scipy.stats import t

    wanted = t.ppf(0.975, freedom)
    assert expected_curves._student(freedom) == pytest.approx(wanted, rel=0.01)


def test_the_band_of_known_numbers():
    # A variance of 2 at either step, four degrees in all.
    values = np.array([[1.0, 1.0], [3.0, 3.0]])
    band = Band.of([10, 20], values)
    half = 4.3027 * np.sqrt(2) * np.sqrt(1.5)  # Student's 97.5 % quantile with two degrees
    assert band.mean == [2.0, 2.0] and band.high[0] == pytest.approx(2 + half, rel=0.03)
    assert band.share_inside([5, 30], [2.0, 2.0]) is None
    assert band.share_inside([10, 15, 20], [2.0, 99.0, -99.0]) == pytest.approx(1 / 3)


def test_commands(runs, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="needs the extra 'train'")
    record = tmp_path / "tiny.json"
    assert plot.cli([*map(str, runs), f"--record={record}"]) == 0
    assert Expected.load(record) == Expected.record(runs, "tiny")
    capsys.readouterr()
    run = make_run(tmp_path / "new", 9)
    assert plot.cli([str(run), f"--expected={record}"]) == 0
    output = capsys.readouterr().out
    assert (
        "expected curves of tiny, seeds [0, 1, 2]" in output and "in their bands: loss " in output
    )
    drawn = (run / "curves.png").read_bytes()
    assert plot.cli([str(run), "--expected="]) == 0
    assert (run / "curves.png").read_bytes() != drawn
    assert "expected" not in capsys.readouterr().out
    assert plot.cli([str(run)]) == 0  # with the project's own
    assert "no expected curves" in capsys.readouterr().out
    other = make_run(tmp_path / "other", 9, **{"optimizer.lr": 1e-2})
    assert plot.cli([str(other), f"--expected={record}"]) == 1
    assert "optimizer.lr is 0.01 here and 0.001 there" in capsys.readouterr().err
    record.write_text('{"format": "maskgit_pt expected curves, version 1", "bands": {"loss": 3}}')
    assert plot.cli([str(run), f"--expected={record}"]) == 1
    assert f"{record}: no expected curves (" in capsys.readouterr().err


def test_what_cannot_be_recorded(runs, tmp_path):
    other = make_run(tmp_path / "other", 9, batch_size=16)
    for found, message in (
        (runs[:1], "two runs or more; found 1"),
        ([runs[0], runs[0]], r"the seeds \[0, 0\]; accepted: each once"),
        ([*runs, other], "batch_size is 16 here and 8 there"),
    ):
        with pytest.raises(ValueError, match=message):
            Expected.record(found, "tiny")


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_the_recorded_curves_of_the_project(path):
    expected = Expected.load(path)
    config = settings.load_file(str(settings.RECIPES / f"{expected.recipe.split('_')[0]}.py"))
    here = settings.deciding(config) | {"num_train_steps": expected.decides["num_train_steps"]}
    assert expected.decides == json.loads(json.dumps(here))
    assert {"loss", "accuracy", "grad_norm", "loss_at_ratio_1.0"} <= set(expected.bands)
    assert len(expected.seeds) >= 2 and path.stat().st_size < 30_000
