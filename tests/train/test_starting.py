"""Starting from trained weights: other classes, another tokenizer, what is old learning slowly."""

import shutil

import jax
import numpy as np
import pytest
import torch
from training import curve, make_shards, one_process, run_here, tiny_config

import convert
from maskgit_pt import Transformer
from maskgit_pt.pretrained import load_any
from train import export, loop
from train.run import checkpoints, early_stop
from train.tasks import masked_tokens

OLD = [f"class {i}" for i in range(5)]
NAMES = ["class 4", "zebra", "class 1"]
K = 16


@pytest.fixture(scope="module", params=["maskgit_transformer", "besnier_transformer"])
def trained(request, tmp_path_factory):
    """An exported model of five classes, of either network."""
    folder = tmp_path_factory.mktemp("trained")
    config = tiny_config(make_shards(folder / "tokens"), model=request.param, num_train_steps=2)
    run_here(config, folder / "run")
    assert export.cli([str(folder / "run"), f"--output={folder / 'model'}"]) == 0
    return folder / "model"


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """The same of the official network alone, for what does not depend on it."""
    folder = tmp_path_factory.mktemp("official")
    run_here(tiny_config(make_shards(folder / "tokens"), num_train_steps=2), folder / "run")
    assert export.cli([str(folder / "run"), f"--output={folder / 'model'}"]) == 0
    return folder / "model"


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    """Tokens of three classes, two of which the model knows."""
    return make_shards(tmp_path_factory.mktemp("mine") / "tokens", names=NAMES, classes=3)


def config_of(model, tokens, **changes):
    start = {"init_from": str(model), "model": "init_from", "num_class": 0, "num_train_steps": 3}
    return tiny_config(tokens, **start | {"transformer.num_layers": 9} | changes)


def task_of(config):
    with one_process() as processes:
        return loop.make_task(config, processes)


def table(model):
    """Rows of codes, of classes, and of the mask or no class."""
    own = isinstance(model, Transformer)
    rows = (model.embed.word_embeddings if own else model.tok_emb).weight.detach()
    return rows[:K], rows[K if own else K + 1 : -1], rows[-1]


@pytest.mark.parametrize(
    "changes, classes, names, labels",
    [
        ({}, [4, -1, 1], NAMES, [0, 1, 2]),
        ({"keep_classes": True}, [0, 1, 2, 3, 4, -1], [*OLD, "zebra"], [4, 5, 1]),
        ({"init_classes": "new,class 2,0"}, [-1, 2, 0], NAMES, [0, 1, 2]),
        ({"num_class": 5}, [4, -1, 1, -1, -1], [*NAMES, "3", "4"], [0, 1, 2]),
    ],
)  # fmt: skip
def test_classes_are_copied_or_new(trained, tokens, changes, classes, names, labels, capsys):
    task = task_of(config_of(trained, tokens, **changes))
    old = load_any(trained, [type(task.model)])
    (codes, rows, last), (old_codes, old_rows, old_last) = table(task.model), table(old)
    assert torch.equal(codes, old_codes) and torch.equal(last, old_last)
    wanted = torch.stack([old_rows.mean(0) if c < 0 else old_rows[c] for c in classes])
    torch.testing.assert_close(rows, wanted, rtol=0, atol=1e-7)
    assert torch.equal(rows[[c >= 0 for c in classes]], wanted[[c >= 0 for c in classes]])
    for name, value in old.state_dict().items():
        if "emb" not in name and "bias" not in name:
            assert torch.equal(task.model.state_dict()[name], value), name
    assert task.model.class_names == names and task.config.num_class == len(classes)
    batch = task.batches[0]
    mapped = np.array(labels)[task.batches.shards.labels(batch["images"])]
    assert set(np.where(batch["labels"] < 0, mapped, batch["labels"]) - mapped) == {0}
    told = capsys.readouterr().err
    assert (
        f"{sum(c >= 0 for c in classes)} classes go on" in told
        and "zebra" in told
        or "new," in str(changes)
    )


def test_a_class_keeps_its_meaning(trained, tokens):
    """A class that is copied by name gives the same logits, under another number."""
    task = task_of(config_of(trained, tokens))
    old, new = load_any(trained, [type(task.model)]), task.model.eval()
    grid = torch.randint(-1, K, (2, 16))
    with torch.no_grad():
        for there, here in ((4, 0), (1, 2), (-1, -1)):
            logits = [
                m.code_logits(grid, torch.full((2,), c), K) for m, c in ((old, there), (new, here))
            ]
            assert torch.equal(*logits)


@pytest.mark.parametrize("scale", [0.0, 0.1])
def test_what_is_old_learns_slowly(trained, tokens, tmp_path, scale):
    changes = {"optimizer.init_lr_scale": scale, "optimizer.warmup_steps": 0, "polyak_decay": 0.0}
    config = config_of(trained, tokens, **changes, checkpoint_every_steps=1)
    first = {n: v.clone() for n, v in task_of(config).model.state_dict().items()}
    state = run_here(config, tmp_path / "run")
    model = state.models["transformer"]
    moved = {n: (v - first[n]).abs() for n, v in model.state_dict().items()}
    name = "embed.word_embeddings.weight" if isinstance(model, Transformer) else "tok_emb.weight"
    zebra = K + 1 + (not isinstance(model, Transformer))
    rows = moved.pop(name).amax(1)
    assert rows[zebra] > 2e-3  # of three steps at a rate of 1e-3
    others = max(rows[torch.arange(len(rows)) != zebra].max(), *(v.max() for v in moved.values()))
    assert others == 0 if scale == 0 else 1e-4 < others < 4e-4

    if scale == 0:
        return
    for step in (2, 3):  # killed after step 1
        shutil.rmtree(checkpoints.folder_of(tmp_path / "run", step))
    lines = curve(tmp_path / "run")
    again = run_here(config, tmp_path / "run").models["transformer"].state_dict()
    assert curve(tmp_path / "run") == lines
    assert all(torch.equal(value, again[n]) for n, value in model.state_dict().items())


def test_the_export_runs_in_jax(official, tokens, tmp_path):
    """Fine-tuned for other classes, exported, converted to Google's format: the same logits in Flax."""
    from parity.reference import load

    run_here(config_of(official, tokens, keep_classes=True), tmp_path / "run")
    assert export.cli([str(tmp_path / "run"), f"--output={tmp_path / 'model'}"]) == 0
    convert.convert(tmp_path / "model", tmp_path / "google", to="flax")
    ours = Transformer.from_pretrained(tmp_path / "model")
    theirs, weights = load(tmp_path / "google", num_heads=4)
    assert ours.to_config()["vocab_size"] == K + 6 + 1  # codes, classes, mask
    ids = np.random.default_rng(0).integers(-1, K, (3, 17))
    ids[:, 0] = K + np.array([0, 4, 5])  # the last is new
    with torch.no_grad():
        logits = ours(torch.from_numpy(ids)).numpy()
    expected = np.asarray(jax.jit(theirs.apply)(weights, ids))
    np.testing.assert_allclose(logits, expected, atol=2e-5)


def test_another_tokenizer_must_be_told(official, tmp_path):
    other = make_shards(tmp_path / "tokens", tokenizer="other")
    more = make_shards(tmp_path / "more", codes=20)
    for tokens, found in ((other, "the codes of another tokenizer"), (more, "16 codes")):
        with pytest.raises(ValueError, match=f"was trained on {found}.*init_other_tokenizer"):
            task_of(config_of(official, tokens))
        task = task_of(config_of(official, tokens, init_other_tokenizer=True))
        rows, old = task.model.state_dict(), Transformer.from_pretrained(official).state_dict()
        words, dense = "embed.word_embeddings.weight", "layers.0.mlp.layer_output.weight"
        assert not torch.equal(rows[words][:K], old[words][:K])
        assert torch.equal(rows[words][-6:], old[words][-6:])  # classes and mask
        assert torch.equal(rows[dense], old[dense])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"init_classes": "0,1"}, "config.init_classes is '0,1'; accepted: 3 entries"),
        ({"init_classes": "0,lion,new"}, "config.init_classes: .*lion.*; or 'new'"),
        ({"init_classes": "0-1,2,new"}, "accepted: 3 entries"),
        ({"num_class": 2}, "tokens has 3 classes, labels 0 to 2; config.num_class is 2"),
        (
            {"num_class": 5, "keep_classes": True},
            "config.num_class is 5; the run has 6 classes",
        ),
        ({"init_from": ""}, "config.model is 'init_from', and config.init_from is not set"),
        (
            {"optimizer.init_lr_scale": 0.1, "parallel": "fsdp"},
            "init_lr_scale is 0.1 with .* 'fsdp'",
        ),
    ],
)
def test_settings_that_do_not_fit(official, tokens, changes, message):
    with pytest.raises(ValueError, match=message):
        task_of(config_of(official, tokens, **changes))


def test_a_run_ends_when_it_no_longer_gets_better(official, tokens, tmp_path, capsys):
    """Nothing learns at a rate of 0: the first evaluation stays the best, and two more end the run."""
    changes = {
        "optimizer.lr": 0.0,
        "data.eval_share": 0.2,
        "early_stop_evals": 2,
        "num_train_steps": 40,
    }
    changes |= {"eval_every_steps": 4, "keep_checkpoints": 3}
    config = config_of(official, tokens, **changes)
    state = run_here(config, tmp_path / "run")
    assert state.step == 12 and checkpoints.steps(tmp_path / "run") == [4, 8, 12]
    assert "least at step 4, and the run ends here: maskgit-export" in capsys.readouterr().err
    assert run_here(config, tmp_path / "run").step == 12  # the same command has nothing to do
    assert early_stop.best_step(tmp_path / "run", config) == 4
    config.early_stop_evals = 3
    assert early_stop.best_step(tmp_path / "run", config) is None
    for wrong, message in (
        ({"data.eval_share": 0.0}, "early_stop_evals is 2; accepted: 0, or with"),
        ({"keep_checkpoints": 2}, "would be lost; accepted: .*keep_checkpoints 3 or more"),
        ({"checkpoint_every_steps": 3}, "would be lost; accepted: config.checkpoint_every_steps 4"),
    ):
        with pytest.raises(ValueError, match=message):
            masked_tokens.check(config_of(official, tokens, **changes | wrong))
