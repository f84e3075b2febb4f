import importlib
import json
import subprocess
import sys

import numpy as np
import processes
import pytest
from PIL import Image
from training import ROOT

pytest.importorskip("sklearn", reason="needs the extra 'train'")

from train import digits  # noqa: E402


def run(folder, *arguments, timeout):
    result = subprocess.run(
        [sys.executable, "-m", "train.digits", f"--output={folder}", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return json.loads((folder / "report.json").read_text())


def run_module(command):
    """`python -m MODULE ...` in this process."""
    name = command[1] if command[1] != "train" else "train.__main__"
    sys.argv = command[1:]
    return importlib.import_module(name).cli()


def test_all_steps_in_short(tmp_path, monkeypatch):
    """A few steps of everything: the commands fit together; nothing is learned."""
    short = "num_train_steps=3,batch_size=8,eval_every_steps=3,eval_show_num=2,data.num_workers=0"
    write, load = digits.write_images, digits.load_digits

    def write_few(folder, seed):
        with monkeypatch.context() as patch:
            patch.setattr(digits, "load_digits", lambda seed: [part[::8] for part in load(seed)])
            write(folder, seed)

    monkeypatch.setattr(digits, "write_images", write_few)
    flags = (f"--tokenizer_config={short}", f"--config={short}", "--num_samples=20")

    def run_forked(command):
        group = processes.start(run_module, command, logs=tmp_path / "logs")
        (code,) = group.wait(300)
        assert code == 0, group.text()
        return code

    monkeypatch.setattr(digits, "run", run_forked)
    assert digits.cli([f"--output={tmp_path}", *flags]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["classifier_accuracy_on_held_out_digits"] >= 0.97
    assert report["generated_digits"] == 20
    assert report["recognised_as_asked"] < 0.9  # the score can tell
    assert Image.open(tmp_path / "digits.png").size[0] > 300
    assert (tmp_path / "transformer_run" / "curves.png").exists()


@pytest.mark.slow
def test_digits_are_learned(tmp_path):
    report = run(tmp_path, timeout=1800)
    assert report["classifier_accuracy_on_held_out_digits"] >= 0.97
    assert report["generated_digits"] == 1000
    assert report["recognised_as_asked"] >= 0.95
    assert report["tokenizer_psnr_on_held_out_digits"] >= 22
    assert report["codebook_usage"] >= 0.5
    median = report["nearest_training_digit_median_distance"]
    assert median > 0.5 * report["same_for_held_out_digits_median"]
    assert report["different_generated_digits"] > 900


def test_split_and_shifts():
    train, train_labels, test, test_labels = digits.load_digits(0)
    assert len(train) == 1437 and len(test) == 360
    assert set(np.unique(train_labels)) == set(np.unique(test_labels)) == set(range(10))
    moved = digits.shift(train[:1], 1, 0)
    np.testing.assert_array_equal(moved[0, 1:], train[0, :-1])
    assert (moved[0, 0] == 0).all()
    moved = digits.shift(train[:1], 0, -1)
    np.testing.assert_array_equal(moved[0, :, :-1], train[0, :, 1:])


def test_copies_would_be_noticed():
    train, _, test, _ = digits.load_digits(0)
    assert digits._to_nearest(train[:50], train).max() == 0
    assert digits._to_nearest(test, train).min() > 0
