"""The questions for a GPU, at toy size on the CPU: so that they work when a GPU is there."""

import functools
import os
import pickle
import time

import gpu_official
import pytest
import torch
from gpu_parts import PARTS, run_part
from gpu_tools import FULL, TOY, Figures, Report, no_waiting
from gpu_worker import Worker

from maskgit_pt import samplers
from maskgit_pt.libml import xla_math

# Under torchrun the tests of the training loop start the same commands.
SLOW = pytest.param("torchrun", marks=pytest.mark.slow)


@pytest.mark.parametrize("name", [*(name for name in PARTS if name != "torchrun"), SLOW])
def test_part_on_the_cpu(name, monkeypatch):
    """Compiling stops at the traced graphs; `test_pipeline.py` and a slow test below make C++ of them."""
    traced = functools.partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr(torch, "compile", traced)
    report = run_part(name, "cpu", TOY)
    assert not report.wrong
    assert report.figures


@pytest.mark.slow
def test_compiled_sampling_on_the_cpu():
    report = run_part("compiled sampling", "cpu", TOY)
    assert not report.wrong


@pytest.mark.parametrize(
    "names",
    [("official", "moment-halton"), pytest.param(tuple(samplers.SAMPLERS), marks=pytest.mark.slow)],
)
def test_no_sampler_waits(names, monkeypatch):
    """On a device whose numbers nobody can read."""
    monkeypatch.setattr(xla_math, "_fuses", lambda _: False)  # tried once for each device
    chosen = {name: samplers.SAMPLERS[name] for name in names}
    monkeypatch.setattr(samplers, "SAMPLERS", chosen)
    report = run_part("loops without waiting", "meta", TOY)
    assert not report.wrong
    assert len(report.figures) == 2 * len(names)


@pytest.mark.parametrize(
    "wait",
    [lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: x.cpu(), lambda x: torch.ones(3).to(x.device)],
)  # fmt: skip
def test_waits_are_noticed(wait):
    with pytest.raises((RuntimeError, NotImplementedError)), no_waiting(torch.device("meta")):
        wait(torch.zeros(3, device="meta"))


@pytest.mark.parametrize("installed, sentence", [(False, "no JAX"), (True, gpu_official.CHECKOUT)])
def test_official_code_that_is_not_there(monkeypatch, installed, sentence):
    monkeypatch.delenv(gpu_official.CHECKOUT, raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: installed or None)
    report = run_part("official JAX", "cpu", TOY)
    assert not report.wrong and sentence in report.figures["official JAX"]


@pytest.mark.slow
def test_ours_beside_jax():
    """The Flax reference in place of the official code, on the CPU."""
    pytest.importorskip("jax", reason="needs the extra 'jax'")
    from parity.jax_code import load_reference

    report = Report()
    gpu_official.compare_with(report, load_reference(), torch.device("cpu"), TOY)
    assert not report.wrong
    assert report.figures["images whose tokens are JAX's on the CPU"] == "2 of 2"
    assert report.figures["batch 1, ours float32: of JAX's time"] > 0


def tell_and_die(notes):
    Figures.file = notes
    report = Report()
    report.figures["first"] = 1.5
    report.figures |= {"second": "two"}
    os._exit(3)


def test_a_part_that_dies_has_told_what_it_found(tmp_path):
    worker = Worker()
    try:
        with pytest.raises(RuntimeError, match="exit code 3"):
            worker.call(tell_and_die, tmp_path / "notes", seconds=120)
    finally:
        worker.stop()
    assert Figures.noted(tmp_path / "notes") == {"first": 1.5, "second": "two"}


def test_the_size_arrives_whole():
    """Parts at full size compile, in another process too."""
    assert pickle.loads(pickle.dumps(FULL)).is_full and not TOY.is_full


def test_wrong_answers_are_noticed():
    report = Report()
    report.check(False, "the sum is 3, not 2")
    report.check(True, "never said")
    assert report.wrong == ["the sum is 3, not 2"]


def test_a_worker_outlives_hangs_and_crashes():
    worker = Worker()
    try:
        assert worker.call(divmod, 7, 2, seconds=60) == (3, 1)
        with pytest.raises(RuntimeError, match="ZeroDivisionError"):
            worker.call(divmod, 7, 0, seconds=60)
        with pytest.raises(TimeoutError, match="more than 0 s"):
            worker.call(time.sleep, 60, seconds=0.2)
        with pytest.raises(RuntimeError, match="exit code 3"):
            worker.call(os._exit, 3, seconds=60)
        assert worker.call(divmod, 9, 4, seconds=60) == (2, 1)
        worker._process.kill()
        worker._process.join()
        assert worker.call(divmod, 9, 2, seconds=60) == (4, 1)
    finally:
        worker.stop()
