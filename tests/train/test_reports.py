import numpy as np
import pytest
import torch
from PIL import Image
from training import one_process

from train.run import metrics as reports
from train.run.metrics import Board
from train.tasks.flops import matrix_rate
from train.tasks.peaks import published_peak

accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def read_board(folder):
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    return events


def test_tensorboard_reads_what_a_run_and_its_continuation_wrote(tmp_path):
    first, picture = Board(tmp_path, 0), np.zeros((3, 4, 3), np.uint8)
    for step in (1, 2, 3):
        first.scalars({"loss": step, "rate": 10.0 * step}, step)
    second = Board(tmp_path, 2)  # killed after its checkpoint of step 2
    second.scalars({"loss": 7.0}, 3)
    second.image("samples", picture, 3)
    assert first.path != second.path
    events = read_board(tmp_path)
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 1), (2, 2), (3, 7)]
    assert [(e.step, e.value) for e in events.Scalars("rate")] == [(1, 10), (2, 20)]
    (image,) = events.Images("samples")
    assert (image.step, image.width, image.height) == (3, 4, 3)


def make_reporter(run, processes):
    return reports.Reporter(run, processes, 0, 10, 4, 1e9, reports.Rates(1e15, 2e15))


def test_a_line_of_metrics(tmp_path, capsys):
    with one_process() as processes:
        reporter = make_reporter(tmp_path, processes)
        reporter.log(5, {"loss": 2.0, "accuracy": 0.5}, 1e-3)
        reporter.picture(tmp_path / "pictures/samples/a.png", Image.new("RGB", (4, 4)), 5)
        reporter.close()
    (line,) = reports.read_metrics(tmp_path)
    assert line["step"] == 5 and line["loss"] == 2.0 and line["mfu"] > 0
    assert line["matrix_share"] == pytest.approx(2 * line["mfu"])
    assert 0.01 < line["memory_gib"] < 100
    assert "loss 2, accuracy 0.5, " in capsys.readouterr().err
    assert read_board(tmp_path / "tensorboard").Images("samples")


def test_no_share_is_above_one():
    """A rate measured while other programs ran is replaced by what training itself reaches."""
    rates = reports.Rates(measured=100.0)
    assert rates.shares(50.0) == {"matrix_share": 0.5}
    assert rates.shares(110.0) == {"matrix_share_at_most": 1.0}
    assert rates.shares(55.0) == {"matrix_share_at_most": 0.5}
    again = iter([150.0, 120.0])  # a quiet moment, and one that is not
    rates = reports.Rates(measured=100.0, published=140.0, measure=lambda: next(again))
    assert rates.shares(120.0) == {"mfu": 120 / 140, "matrix_share": 0.8}
    assert rates.shares(160.0) == {"matrix_share_at_most": 1.0}  # nor is 140 this card's peak
    assert rates.shares(80.0) == {"matrix_share_at_most": 0.5}
    assert reports.Rates().shares(1.0) == {}


@pytest.mark.parametrize(
    ("card", "bfloat16"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA L40S", 362e12),
        ("Some other card", None),
    ],
)
def test_published_peaks(card, bfloat16):
    assert published_peak(card, torch.bfloat16) == bfloat16
    if bfloat16:
        assert published_peak(card, torch.float32) < published_peak(card, torch.float32, tf32=True)


@pytest.mark.parametrize("full", ["metrics.jsonl", "tensorboard"])
def test_a_full_disk_is_told_with_the_file(tmp_path, monkeypatch, full):
    def fail(self, *args, open=reports.Path.open, **kwargs):
        if full in str(self):
            raise OSError(28, "No space left on device")
        return open(self, *args, **kwargs)

    with one_process() as processes:
        reporter = make_reporter(tmp_path, processes)
        monkeypatch.setattr(reports.Path, "open", fail)
        with pytest.raises(OSError, match=f"{full}.* cannot be written: No space left on device; "):
            reporter.log(5, {"loss": 2.0}, 1e-3)
        monkeypatch.undo()
        reporter.close()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_matrix_rate(dtype):
    assert 1e7 < matrix_rate(torch.device("cpu"), dtype, 0.01) < 1e14
