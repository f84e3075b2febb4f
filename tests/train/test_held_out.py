"""The loss on tokens that are not trained on."""

import json

import numpy as np
import pytest
import torch
from training import make_shards, one_process, run_here, tiny_config

from maskgit_pt.launch import Processes
from train import loop, plot
from train.data import batches as data
from train.data import masking
from train.data.tokens import TokenShards
from train.run.metrics import read_metrics
from train.tasks import masked_tokens

SHARE = {"data.eval_share": 0.2}


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("shards") / "tokens")


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """Tokens of the same kind; 21 images, so that the last batch of 8 is not full."""
    return make_shards(tmp_path_factory.mktemp("shards") / "others", images=21)


def make_task(config):
    with one_process() as processes:
        return loop.make_task(config, processes)


def test_a_share_of_each_class_is_left_out_of_training(tokens):
    task = make_task(tiny_config(tokens, **SHARE))
    held = set(task.held_out.batches.order.chosen.tolist())
    kept = set(task.batches.order.chosen.tolist())
    assert held | kept == set(range(90)) and not held & kept
    labels = TokenShards.open(tokens).labels(np.arange(90))
    for label in range(5):
        of_class = np.flatnonzero(labels == label)
        assert len(held & set(of_class)) == round(0.2 * len(of_class))
    seen = {int(image) for step in range(20) for image in task.batches[step]["images"]}
    assert seen == kept
    again = make_task(tiny_config(tokens, seed=7, **SHARE))
    assert set(again.held_out.batches.order.chosen.tolist()) == held


def test_scores_are_the_loss_of_the_averaged_weights(tokens, others):
    config = tiny_config(tokens, **{"data.eval_tokens": str(others)})
    task = make_task(config)
    with torch.no_grad():  # the raw weights are others than the average
        for parameter in task.model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    scores = task.scores()
    assert task.scores() == scores and task.model.training
    shards, step = TokenShards.open(others), 0
    order = data.Order(21, shards.crops, 0)
    masks = masking.settings(config, 16) | {"label_drop_rate": 0.0}
    loss = masked_tokens.MaskedLoss(task.average.model, 16, config.label_smoothing, False).eval()
    raw = masked_tokens.MaskedLoss(task.model, 16, config.label_smoothing, False).eval()
    found, unaveraged, correct, masked = [], [], 0, 0
    for step in range(3):
        images, crops, _ = order.at(step, data.Share(8))
        drawn = masking.draw(0, step, range(8), **masks)
        rows = 8 if step < 2 else 5
        codes = torch.from_numpy(shards.tokens(images, crops).astype(np.int64))[:rows]
        mask = torch.from_numpy(drawn.masked)[:rows]
        labels = torch.from_numpy(shards.labels(images))[:rows]
        with torch.no_grad():
            values, right = loss(codes, mask, labels)
            unaveraged += raw.eval()(codes, mask, labels)[0].tolist()
        found += values.tolist()
        correct, masked = correct + int(right.sum()), masked + int(mask.sum())
    assert scores["eval_loss"] == pytest.approx(np.mean(found), rel=1e-5)
    assert scores["eval_accuracy"] == pytest.approx(correct / masked)
    assert abs(np.mean(unaveraged) - np.mean(found)) > 1e-3
    assert {name for name in scores if "ratio" in name} <= {
        f"eval_loss_at_ratio_{r}" for r in ("0.2", "0.4", "0.6", "0.8", "1.0")
    }


@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_share_the_work(tokens, others, world_size):
    """The last batch has 5 images: with four processes, the last has none of them."""

    def sums(rank, world_size):
        processes = Processes("cpu", alone=True)
        processes.rank, processes.world_size, seen = rank, world_size, []
        processes.sum = lambda values: seen.append(values.clone()) or values
        config = tiny_config(tokens, batch_size=8, **{"data.eval_tokens": str(others)})
        held_out = data.open_held_out(config, processes, None, {})
        torch.manual_seed(0)
        model = masked_tokens.networks.make_model(config, 16, 16)
        loss = masked_tokens.MaskedLoss(model, 16, 0.1, False).eval()
        masked_tokens.token_metrics.HeldOut(held_out, processes).scores(
            loss, ("masked", "labels"), torch.no_grad
        )
        return seen[0]

    parts = sum(sums(rank, world_size) for rank in range(world_size))
    torch.testing.assert_close(parts, sums(0, 1))
    assert parts[1, 0] == 21


def test_what_is_refused(tokens, others, tmp_path):
    other_classes = make_shards(tmp_path / "classes", classes=4)
    for changes, message in (
        ({"data.eval_tokens": str(tokens)}, "is what the run is trained on"),
        ({"data.eval_tokens": str(others), **SHARE}, "eval_share 0.2; accepted: one"),
        ({"data.eval_tokens": str(other_classes)}, "holds tokens with class_names"),
        ({"data.eval_tokens": str(tmp_path / "none")}, "no such folder"),
        ({"data.eval_share": 1.5}, "config.data.eval_share is 1.5; accepted: 0 to 1"),
    ):
        with pytest.raises((ValueError, FileNotFoundError)) as error:
            make_task(tiny_config(tokens, **changes))
        assert message in str(error.value)


def test_it_is_logged_and_drawn(tokens, tmp_path):
    pytest.importorskip("matplotlib", reason="needs the extra 'train'")
    run = tmp_path / "run"
    run_here(tiny_config(tokens, eval_every_steps=6, **SHARE), run)
    lines = [line for line in read_metrics(run) if "eval_loss" in line]
    assert [line["step"] for line in lines] == [6, 12]
    assert lines[1]["eval_loss"] < lines[0]["eval_loss"]
    panels = plot._panels({"run": read_metrics(run)})
    assert panels["loss"] == ["eval_loss", "loss"]
    assert panels["accuracy"] == ["accuracy", "eval_accuracy"]
    assert len(panels["loss_at_ratio"]) > 5 and "eval_loss" not in panels
    assert plot.cli([str(run)]) == 0 and (run / "curves.png").stat().st_size > 10_000
    old = json.loads((run / "config.json").read_text())
    del old["data"]["eval_tokens"]  # as runs of earlier versions
    (run / "config.json").write_text(json.dumps(old))
    run_here(tiny_config(tokens, eval_every_steps=6, num_train_steps=13, **SHARE), run)
    assert read_metrics(run)[-1]["step"] == 13
