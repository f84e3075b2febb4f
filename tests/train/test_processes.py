"""Training by several processes: killed, stopped, resumed by another number of them, on several machines."""

import functools
import itertools
import os
import random
import shutil
import signal
import subprocess
import time

import processes
import pytest
import slow_batches
import torch
from training import (
    ROOT,
    arguments,
    curve,
    make_shards,
    run_here,
    tiny_config,
    torchrun,
    train_in,
)

from maskgit_pt import launch
from train import loop
from train.run import checkpoints
from train.run.metrics import read_metrics

NO_DROPOUT = "--config.transformer.dropout_rate=0.0"
ENDLESS = ("--config.num_train_steps=100000", "--config.checkpoint_every_steps=100000")


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("shards") / "tokens")


def losses(run):
    return torch.tensor([line["loss"] for line in curve(run)], dtype=torch.float64)


def wait_for_steps(run, alive, seconds=120):
    """Waits for the first metrics after those that are there."""
    before = len(read_metrics(run))
    end = time.monotonic() + seconds
    while alive() and len(read_metrics(run)) <= before:
        assert time.monotonic() < end
        time.sleep(0.02)


def start(run, tokens, *more, count=1):
    logs = run.with_name(f"{run.name}.logs")
    return processes.start(processes.train, arguments(run, tokens, *more), logs=logs, count=count)


def resume_in_turn(tokens, run, counts):
    """Four steps by each number of processes; returns the curve."""
    for turn, count in enumerate(counts, 1):
        train_in(count, run, tokens, NO_DROPOUT, f"--config.num_train_steps={4 * turn}")
    return losses(run)


@pytest.fixture(scope="module")
def alone(tokens, tmp_path_factory):
    """The losses of one process from beginning to end."""
    run = tmp_path_factory.mktemp("alone") / "run"
    run_here(tiny_config(tokens, **{"transformer.dropout_rate": 0.0}), run)
    return losses(run)


def test_any_number_of_processes_goes_on(tokens, tmp_path, alone):
    """The global batches are the same, and so are the losses of another number of processes."""
    found = resume_in_turn(tokens, tmp_path / "run", (4, 1, 2))
    torch.testing.assert_close(found, alone, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("counts", list(itertools.permutations((1, 2, 4))))
def test_every_order_of_process_counts(tokens, tmp_path, alone, counts):
    found = resume_in_turn(tokens, tmp_path / "run", counts)
    torch.testing.assert_close(found, alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("precision, tolerance", [("float32", 1e-5), ("bfloat16", 1e-4)])
def test_fsdp_is_the_same_training(tokens, tmp_path, precision, tolerance):
    """In bfloat16, too: both keep parameters in float32. And back to one process without sharding."""
    changes = (NO_DROPOUT, f"--config.precision={precision}", "--config.num_train_steps=6")
    train_in(2, tmp_path / "ddp", tokens, *changes)
    train_in(2, tmp_path / "fsdp", tokens, *changes, "--config.parallel=fsdp")
    found = losses(tmp_path / "fsdp")
    torch.testing.assert_close(found, losses(tmp_path / "ddp"), rtol=0, atol=tolerance)
    if precision == "float32":
        train_in(1, tmp_path / "fsdp", tokens, NO_DROPOUT)
        assert curve(tmp_path / "fsdp")[-1]["step"] == 12


# Machines: working folders of their own, and a run folder that is or is not the same.


def machines(tmp_path):
    folders = [tmp_path / "machine0", tmp_path / "machine1"]
    for folder in folders:
        folder.mkdir()
    return folders


def hasty_train(argv):
    """Waits a second, not ten, for what a shared disk may show late."""
    loop.claim = functools.partial(loop.claim, seconds=1.0)
    return processes.train(argv)


def test_machines_without_a_common_disk_are_refused(tokens, tmp_path):
    folders, run = machines(tmp_path), "run"
    argv = [*arguments(run, tokens)]
    group = processes.start(hasty_train, argv, logs=tmp_path / "logs", count=2, folders=folders)
    assert group.wait() == [1, 1]
    assert group.text().count("accepted: an --output on a disk that all machines share") == 2
    assert not (folders[0] / "run" / "config.json").exists()


def test_two_machines_with_a_common_disk(tokens, tmp_path, alone):
    run = tmp_path / "disk" / "run"
    argv = arguments(run, tokens, NO_DROPOUT)
    folders = machines(tmp_path)
    processes.run(processes.train, argv, logs=tmp_path / "logs", count=2, folders=folders)
    torch.testing.assert_close(losses(run), alone, rtol=0, atol=1e-6)


def lagging_train(argv):
    """As if this process's view of a shared disk were older than that of the first."""
    if os.environ["RANK"] == "1":
        original = checkpoints.steps
        checkpoints.steps = lambda run: original(run)[:-1]
    return processes.train(argv)


def test_the_first_process_decides_where_to_go_on(tokens, tmp_path, alone):
    run = tmp_path / "run"
    train_in(1, run, tokens, NO_DROPOUT, "--config.num_train_steps=8")
    assert checkpoints.steps(run) == [4, 8]
    processes.run(lagging_train, arguments(run, tokens, NO_DROPOUT), logs=tmp_path / "l", count=2)
    torch.testing.assert_close(losses(run), alone, rtol=0, atol=1e-6)


def disagreeing_train(argv):
    """Process 1 restores another checkpoint than it is told."""
    if os.environ["RANK"] == "1":
        original = checkpoints.folder_of
        checkpoints.folder_of = lambda run, step: original(run, 4 if step == 8 else step)
    return processes.train(argv)


def test_processes_at_different_steps_write_nothing(tokens, tmp_path):
    run = tmp_path / "run"
    train_in(1, run, tokens, "--config.num_train_steps=8")
    argv = arguments(run, tokens)
    group = processes.start(disagreeing_train, argv, logs=tmp_path / "logs", count=2)
    assert group.wait() == [1, 1]
    assert checkpoints.steps(run) == [4, 8]
    assert "processes disagree on the step" in group.text() or "cannot be restored" in group.text()


# Stopped.


def stop_and_rerun(tokens, folder, times, count, seed, step=6):
    """SIGTERM to all at random moments, while data are slow; returns its curve and that of a whole run."""
    changes = ("--config.checkpoint_every_steps=5", "--config.num_train_steps=12")
    argv = arguments(folder / "run", tokens, *changes)
    train_in(count, folder / "whole", tokens, *changes)
    moments = random.Random(seed)
    for _ in range(times):
        job = ("0.01,0.2", step)
        group = processes.start(slow_batches.train, argv, *job, logs=folder / "logs", count=count)
        wait_for_steps(folder / "run", lambda: group.alive)  # noqa: B023
        time.sleep(moments.uniform(0, 0.5))
        group.signal(signal.SIGTERM)
        codes = group.wait()
        step = checkpoints.steps(folder / "run")[-1]
        if step == 12:  # it came to its end, saved, and may have been stopped while it left
            assert set(codes) <= {0, 143, -signal.SIGTERM}, group.text()
            shutil.rmtree(folder / "run")
            step = 6
        else:
            assert codes == [143] * count, group.text()
    train_in(count, folder / "run", tokens, *changes)
    return curve(folder / "run"), curve(folder / "whole")


def test_stopped_runs_go_on_bit_identically(tokens, tmp_path):
    stopped, whole = stop_and_rerun(tokens, tmp_path, 2, count=2, seed=0)
    assert stopped == whole


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_stopped_twenty_times(tokens, tmp_path, count):
    stopped, whole = stop_and_rerun(tokens, tmp_path, 20, count, seed=count)
    assert stopped == whole


def test_sigterm_under_torchrun_while_waiting_for_data(tokens, tmp_path):
    """torchrun signals workers and their server as well; the batch would take ten minutes."""
    run = tmp_path / "run"
    command = torchrun(run, tokens, "--config.data.num_workers=1", *ENDLESS)
    recipe = ROOT / "tests" / "train" / "slow_batches.py"
    command = [f"--config={recipe}" if "--config=" in part else part for part in command]
    environment = os.environ | {"SLOW_SECONDS": "0.01,600", "SLOW_STEP": "3"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        end = time.monotonic() + 120
        while process.poll() is None and not read_metrics(run):
            assert time.monotonic() < end
            time.sleep(0.05)
        time.sleep(1)  # for the steps whose batches are there
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
    (step,) = checkpoints.steps(run)
    assert f"stopped at step {step}, saved" in error and "exited unexpectedly" not in error, error
    assert step == len(read_metrics(run)) <= 3


def test_one_that_is_signalled_stops_all_at_one_step(tokens, tmp_path):
    run = tmp_path / "run"
    group = start(run, tokens, *ENDLESS, count=2)
    wait_for_steps(run, lambda: group.alive)
    os.killpg(group.processes[1].pid, signal.SIGTERM)
    assert group.wait() == [143, 143]
    (step,) = checkpoints.steps(run)  # which is not written by processes at different steps
    assert f"stopped at step {step}, saved" in group.text()


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_save(tokens, tmp_path, number, code):
    run = tmp_path / "run"
    group = start(run, tokens, *ENDLESS)
    wait_for_steps(run, lambda: group.alive)
    group.signal(number)
    assert group.wait() == [code]
    (step,) = checkpoints.steps(run)
    assert f"stopped at step {step}, saved" in group.text()


# Killed.


def kill_and_rerun(tokens, folder, kills, count, seed, steps):
    """Kills a run `kills` times at random moments; returns its curve and that of one left in peace."""
    long = (f"--config.num_train_steps={steps}", "--config.checkpoint_every_steps=2",
            "--config.log_every_steps=3")  # fmt: skip
    train_in(count, folder / "whole", tokens, *long)
    moments, killed = random.Random(seed), 0
    while killed < kills:
        group = start(folder / "killed", tokens, *long, count=count)
        wait_for_steps(folder / "killed", lambda: group.alive)  # noqa: B023
        time.sleep(moments.uniform(0, 0.3))
        if group.alive:
            group.signal(signal.SIGKILL)
            group.wait()
            killed += 1
        else:  # it came to its end: begin anew
            assert not any(group.wait()), group.text()
            shutil.rmtree(folder / "killed")
    train_in(count, folder / "killed", tokens, *long)
    return curve(folder / "killed"), curve(folder / "whole")


@pytest.mark.parametrize("count, kills", [(1, 2), (2, 1)])
def test_killed_runs_go_on_bit_identically(tokens, tmp_path, count, kills):
    killed, whole = kill_and_rerun(tokens, tmp_path, kills, count, seed=count, steps=30)
    assert killed == whole


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_killed_twenty_times(tokens, tmp_path, count):
    killed, whole = kill_and_rerun(tokens, tmp_path, 20, count, seed=100 + count, steps=120)
    assert killed == whole


def test_a_killed_run_leaves_no_process(tokens, tmp_path):
    run = tmp_path / "run"
    group = start(run, tokens, "--config.data.num_workers=1", *ENDLESS)
    wait_for_steps(run, lambda: group.alive)
    leader = group.processes[0].pid
    group.processes[
        0
    ].kill()  # not its group: workers and the server that forked them are to notice
    assert group.wait() == [-signal.SIGKILL]
    wait_for_end(leader)


def wait_for_end(session, seconds=60):
    end = time.monotonic() + seconds
    while True:
        try:
            os.killpg(session, 0)
        except ProcessLookupError:
            return
        assert time.monotonic() < end
        time.sleep(0.05)


def outlive(file):
    """A stand-in for torchrun that starts a process and waits."""
    os.environ["TORCHELASTIC_RUN_ID"] = "x"
    parent, child = os.getpid(), os.fork()
    if child == 0:
        launch.PARENT_PROCESS = parent
        launch.end_with_torchrun()
        file.write_text(str(os.getpid()))
        time.sleep(600)
    time.sleep(600)
    return 0


def test_processes_end_with_a_torchrun_that_is_killed(tmp_path):
    group = processes.start(outlive, tmp_path / "child", logs=tmp_path / "logs")
    while not (tmp_path / "child").exists():
        assert group.alive
        time.sleep(0.02)
    session = group.processes[0].pid
    group.processes[0].kill()
    group.wait()
    wait_for_end(session)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_is_gone_or_silent_is_given_up(tokens, tmp_path, number):
    run = tmp_path / "run"
    group = start(run, tokens, "--config.timeout_minutes=0.05", *ENDLESS, count=2)
    wait_for_steps(run, lambda: group.alive)
    os.killpg(group.processes[1].pid, number)
    group.processes[0].join(60)
    assert group.processes[0].exitcode == 1
    last = group.logs[0].read_text().strip().splitlines()[-1]
    assert "error: process 0: another process has ended or does not answer (" in last
    group.signal(signal.SIGKILL)


@pytest.mark.slow
def test_torchrun_killed_alone(tokens, tmp_path):
    run = tmp_path / "run"
    process = subprocess.Popen(torchrun(run, tokens, *ENDLESS), cwd=ROOT, stderr=subprocess.DEVNULL)
    wait_for_steps(run, lambda: process.poll() is None)
    process.kill()
    process.wait()
    train_in(2, run, tokens, "--config.num_train_steps=8")  # the lock is free
    assert curve(run)[-1]["step"] == 8
