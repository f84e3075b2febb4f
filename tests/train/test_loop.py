import json
import resource
import signal

import processes
import pytest
import torch
from training import arguments, curve, make_shards, run_here, text_of, tiny_config, train_in

from train import __main__ as program
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
    assert {"loss", "accuracy", "grad_norm", "learning_rate", "matrix_share"} <= read_metrics(run)[
        0
    ].keys()
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


def train_on_a_full_disk(argv):
    """Files may not grow beyond a limit: writing a checkpoint fails as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    return processes.train(argv)


def test_a_full_disk(tokens, tmp_path):
    run = tmp_path / "run"
    train_in(1, run, tokens, "--config.num_train_steps=4")
    argv = arguments(run, tokens)
    group = processes.start(train_on_a_full_disk, argv, logs=tmp_path / "logs")
    assert group.wait() == [1]
    last = group.text().strip().splitlines()[-1]
    assert "could not be written" in last and "step_000000004" in last and "File too large" in last
    assert checkpoints.steps(run) == [4]
    train_in(1, run, tokens)
    assert curve(run)[-1]["step"] == 12


def test_a_corrupted_shard(tokens, tmp_path):
    folder = make_shards(tmp_path / "tokens")
    path = sorted(folder.glob("*tokens.npy"))[0]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=path.name):
        run_here(tiny_config(folder, **{"data.num_workers": 1}), tmp_path / "run")


def test_dry_run(tokens, tmp_path, capsys):
    assert program.cli(arguments(tmp_path / "run", tokens, "--dry_run")) == 0
    assert not (tmp_path / "run").exists()
    told = capsys.readouterr().out
    for what in ("optimizer.lr = 0.001", "images: 90 x 2 crops", "A100-hours"):
        assert what in told


def test_metrics_survive_a_line_cut_off_by_a_kill(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        json.dumps({"step": 1, "loss": 2.0}) + '\n{"step": 2, "lo'
    )
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 2.0}]
