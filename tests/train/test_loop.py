import json
import os
import random
import resource
import shutil
import signal
import subprocess
import time

import pytest
import torch
from training import ROOT, command, curve, make_shards, run_command, run_here, text_of, tiny_config

from train.run import checkpoints
from train.run.metrics import read_metrics
from train.tasks import masked_tokens


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("shards") / "tokens")


@pytest.fixture(scope="module")
def whole(tokens, tmp_path_factory):
    """A run without interruption, with dropout, logged every 3 steps: windows span checkpoints."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    state = run_here(settings_of_whole(tokens), run)
    return run, state


def settings_of_whole(tokens, **changes):
    return tiny_config(tokens, log_every_steps=3, **{"transformer.dropout_rate": 0.1}, **changes)


def weights(state):
    return {
        f"{group}.{name}": value
        for group in ("models", "averages")
        for name, value in getattr(state, group)["transformer"].state_dict().items()
    }


def assert_same_weights(a, b):
    a, b = weights(a), weights(b)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_what_a_run_leaves(whole):
    run, state = whole
    assert state.step == 12
    assert checkpoints.steps(run) == [4, 8, 12]
    assert [line["step"] for line in read_metrics(run)] == [3, 6, 9, 12]
    assert {"loss", "accuracy", "grad_norm", "learning_rate", "mfu"} <= read_metrics(run)[0].keys()
    assert text_of(run / "config.json")["batch_size"] == 8
    assert list((run / "tensorboard").iterdir())


def test_the_loss_falls(tokens, tmp_path):
    config = tiny_config(tokens, num_train_steps=60, checkpoint_every_steps=60)
    run_here(config, tmp_path)
    losses = [line["loss"] for line in curve(tmp_path)]
    assert sum(losses[-10:]) < sum(losses[:10]) - 0.5


def test_resuming_in_the_middle_of_a_window_is_bit_identical(tokens, whole, tmp_path):
    run_here(settings_of_whole(tokens), tmp_path)
    for step in (8, 12):  # as if killed after step 4
        for path in checkpoints.folder_of(tmp_path, step).iterdir():
            path.unlink()
        checkpoints.folder_of(tmp_path, step).rmdir()
    state = run_here(settings_of_whole(tokens), tmp_path)
    assert curve(tmp_path) == curve(whole[0])
    assert_same_weights(state, whole[1])


def test_other_seeds_give_other_curves(tokens, whole, tmp_path):
    run_here(settings_of_whole(tokens, seed=1), tmp_path)
    assert curve(tmp_path) != curve(whole[0])


def test_accumulation_is_the_same_step(tokens, tmp_path):
    losses = []
    for parts in (1, 4):
        config = tiny_config(tokens, accumulation_steps=parts, **{"transformer.dropout_rate": 0.0})
        run_here(config, tmp_path / str(parts))
        losses.append([line["loss"] for line in curve(tmp_path / str(parts))])
    torch.testing.assert_close(*map(torch.tensor, losses), rtol=1e-5, atol=1e-6)


def test_keeps_the_last_checkpoints(tokens, tmp_path):
    run_here(tiny_config(tokens, checkpoint_every_steps=2, keep_checkpoints=2), tmp_path)
    assert checkpoints.steps(tmp_path) == [10, 12]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


def test_a_damaged_checkpoint_is_named(tokens, tmp_path):
    run_here(tiny_config(tokens), tmp_path)
    (data,) = checkpoints.folder_of(tmp_path, 12).glob("*.distcp")
    data.write_bytes(data.read_bytes()[:100])
    with pytest.raises(
        ValueError, match="step_000000012: cannot be restored .* remove this folder"
    ):
        run_here(tiny_config(tokens, num_train_steps=20), tmp_path)


def test_two_processes_then_one(tokens, tmp_path):
    """Same global batches: without dropout the losses are those of one process."""
    no_dropout = "--config.transformer.dropout_rate=0.0"
    one, two = tmp_path / "one", tmp_path / "two"
    assert run_command(one, tokens, no_dropout).returncode == 0
    half = ("--config.num_train_steps=8", no_dropout)
    result = run_command(two, tokens, *half, processes=2)
    assert result.returncode == 0, result.stderr
    assert run_command(two, tokens, no_dropout).returncode == 0
    losses = [torch.tensor([line["loss"] for line in curve(run)]) for run in (one, two)]
    torch.testing.assert_close(*losses, rtol=0, atol=1e-5)


def test_fsdp_is_the_same_training(tokens, tmp_path):
    arguments = ("--config.transformer.dropout_rate=0.0", "--config.num_train_steps=6")
    assert run_command(tmp_path / "one", tokens, *arguments).returncode == 0
    result = run_command(
        tmp_path / "fsdp", tokens, *arguments, "--config.parallel=fsdp", processes=2
    )
    assert result.returncode == 0, result.stderr
    losses = [[line["loss"] for line in curve(tmp_path / run)] for run in ("one", "fsdp")]
    torch.testing.assert_close(*map(torch.tensor, losses), rtol=0, atol=1e-5)
    # And back to a single process without sharding.
    assert run_command(tmp_path / "fsdp", tokens, arguments[0]).returncode == 0
    assert curve(tmp_path / "fsdp")[-1]["step"] == 12


def start(run, tokens, *arguments, processes=1):
    return subprocess.Popen(
        command(run, tokens, *arguments, processes=processes),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_steps(run, process, seconds=120):
    """Waits for the first metrics of this process."""
    before = len(read_metrics(run))
    end = time.monotonic() + seconds
    while process.poll() is None and len(read_metrics(run)) <= before:
        assert time.monotonic() < end
        time.sleep(0.02)


def kill_and_rerun(tokens, folder, kills, processes, seed):
    """Kills a run `kills` times at random moments; returns its curve and that of one left in peace."""
    long = ("--config.num_train_steps=120", "--config.checkpoint_every_steps=2",
            "--config.log_every_steps=3")  # fmt: skip
    assert run_command(folder / "whole", tokens, *long, processes=processes).returncode == 0
    moments, killed = random.Random(seed), 0
    while killed < kills:
        process = start(folder / "killed", tokens, *long, processes=processes)
        wait_for_steps(folder / "killed", process)
        time.sleep(moments.uniform(0, 0.3))
        if process.poll() is None:
            if processes > 1 and killed % 2 == 0:
                process.kill()  # torchrun alone: its processes must not live on
            else:
                os.killpg(process.pid, signal.SIGKILL)
            killed += 1
        else:  # it came to its end: begin anew
            assert process.returncode == 0
            shutil.rmtree(folder / "killed")
        process.communicate()
    result = run_command(folder / "killed", tokens, *long, processes=processes)
    assert result.returncode == 0, result.stderr
    return curve(folder / "killed"), curve(folder / "whole")


def test_a_killed_run_leaves_no_process(tokens, tmp_path):
    process = start(
        tmp_path, tokens, "--config.num_train_steps=100000", "--config.data.num_workers=1"
    )
    wait_for_steps(tmp_path, process)
    group = os.getpgid(process.pid)
    process.kill()  # not its group: workers and the server that forked them are to notice
    process.communicate(timeout=60)
    end = time.monotonic() + 60
    while _exists(group):
        assert time.monotonic() < end
        time.sleep(0.05)


def _exists(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("processes, kills", [(1, 2), (2, 1)])
def test_killed_runs_go_on_bit_identically(tokens, tmp_path, processes, kills):
    killed, whole = kill_and_rerun(tokens, tmp_path, kills, processes, seed=processes)
    assert killed == whole


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_twenty_times(tokens, tmp_path, processes):
    killed, whole = kill_and_rerun(tokens, tmp_path, 20, processes, seed=100 + processes)
    assert killed == whole


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_save(tokens, tmp_path, number, code):
    arguments = ("--config.num_train_steps=100000", "--config.checkpoint_every_steps=100000")
    process = start(tmp_path, tokens, *arguments)
    wait_for_steps(tmp_path, process)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == code
    (step,) = checkpoints.steps(tmp_path)
    assert f"stopped at step {step}, saved" in error


def test_a_loss_that_is_not_finite(tokens, tmp_path, monkeypatch):
    config = tiny_config(tokens)
    forward = masked_tokens.MaskedLoss.forward
    calls = []

    def broken(self, *arguments):
        loss, correct = forward(self, *arguments)
        calls.append(1)
        return (loss * float("nan") if len(calls) == 7 else loss), correct

    monkeypatch.setattr(masked_tokens.MaskedLoss, "forward", broken)
    with pytest.raises(FloatingPointError, match="at step 6; the images of its batch .*bad_step_6"):
        run_here(config, tmp_path)
    assert checkpoints.steps(tmp_path) == [4]
    assert len(text_of(tmp_path / "bad_step_6.json")["images"]) == 8
    monkeypatch.undo()
    assert run_here(config, tmp_path).step == 12


def test_a_full_disk(tokens, tmp_path):
    """Files may not grow beyond a limit: writing a checkpoint fails as on a full disk."""
    assert run_command(tmp_path, tokens, "--config.num_train_steps=4").returncode == 0
    result = subprocess.run(
        command(tmp_path, tokens),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert "could not be written" in last and "step_000000004" in last and "File too large" in last
    assert checkpoints.steps(tmp_path) == [4]
    assert run_command(tmp_path, tokens).returncode == 0
    assert curve(tmp_path)[-1]["step"] == 12


def test_a_corrupted_shard(tokens, tmp_path):
    folder = make_shards(tmp_path / "tokens")
    path = sorted(folder.glob("*tokens.npy"))[0]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=path.name):
        run_here(tiny_config(folder, **{"data.num_workers": 1}), tmp_path / "run")


def test_dry_run(tokens, tmp_path):
    result = run_command(tmp_path / "run", tokens, "--dry_run")
    assert result.returncode == 0 and not (tmp_path / "run").exists()
    for what in ("optimizer.lr = 0.001", "images: 90 x 2 crops", "A100-hours"):
        assert what in result.stdout


def test_metrics_survive_a_line_cut_off_by_a_kill(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        json.dumps({"step": 1, "loss": 2.0}) + '\n{"step": 2, "lo'
    )
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 2.0}]
