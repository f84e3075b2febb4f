"""MAGE in training: the task against recorded vectors, and from tokens to its authors' file."""

import functools
import shutil

import mage_files
import numpy as np
import pytest
import torch
from mage_files import near, recorded
from training import curve, one_process, run_here

import convert
from maskgit_pt import MaskGIT
from maskgit_pt.nets.mage import UNUSED
from train import export, loop
from train.configs import mage_defaults
from train.data import masking
from train.data.tokens import ShardWriter, tokenizer_fingerprint
from train.run import checkpoints
from train.tasks import mage

N = 16


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A tokenizer, and the recorded images as its tokens."""
    folder = tmp_path_factory.mktemp("mage")
    tokenizer = mage_files.model().vqgan
    tokenizer.save_pretrained(folder / "tokenizer")
    writer = ShardWriter(
        folder / "tokens",
        grid=(4, 4),
        crops=1,
        codebook_size=32,
        class_names=["a", "b"],
        image_size=8,
        tokenizer=tokenizer_fingerprint(tokenizer),
    )
    codes = recorded("training")["vq_indices"]
    writer.write(0, codes.reshape(4, 1, N), np.array([0, 1, 1, 0]))
    writer.finish(1)
    return folder


def config_of(files, **changes):
    """Settings of the recorded network."""
    config = mage_defaults.get_config()
    config.update(
        batch_size=4,
        num_train_steps=6,
        image_size=8,
        tokenizer=str(files / "tokenizer"),
        precision="float32",
        compile=False,
        log_every_steps=1,
        checkpoint_every_steps=2,
        eval_every_steps=6,
        eval_show_num=3,
    )
    config.transformer.update(num_layers=2, num_embeds=48, intermediate_size=192, num_heads=3)
    config.decoder.update(num_layers=2, num_embeds=48, num_heads=4)
    config.optimizer.update(lr=1e-3, warmup_steps=2)
    config.data.update(tokens=str(files / "tokens"), num_workers=0)
    config.sampling.update(steps=4)
    config.update_from_flattened_dict(changes)
    return config


def recorded_task(files, dtype, **changes):
    """The task with the recorded weights."""
    with one_process() as processes:
        task = loop.make_task(
            config_of(files, **{"transformer.dropout_rate": 0.0}, **changes), processes
        )
    weights = mage_files.model().state_dict()
    weights = {name: value for name, value in weights.items() if not name.startswith(UNUSED)}
    left = task.model.load_state_dict(weights, strict=False)
    assert not left.unexpected_keys and all(name.startswith(UNUSED) for name in left.missing_keys)
    task.model.to(dtype)
    return task


def recorded_batch(case):
    vectors = recorded("training")
    masked, withheld = (
        torch.from_numpy(vectors[f"case{case}_{name}"][:, 1:]).bool() for name in ("mask", "drop")
    )
    labels = torch.zeros(4, dtype=torch.int64)
    return torch.from_numpy(vectors[f"case{case}_gt"]), masked, labels, withheld


@pytest.mark.parametrize("case", range(4))
@pytest.mark.parametrize("f64", [False, True])
def test_the_loss_is_the_recorded_one(files, case, f64):
    task = recorded_task(files, torch.float64 if f64 else torch.float32)
    loss, _ = task.backward(*recorded_batch(case))
    near(loss.mean(), recorded("training")[f"case{case}_loss" + "_f64" * f64], f64)


@pytest.mark.parametrize("case, parts", [(0, 1), (1, 1), (0, 2)])
def test_the_gradients_are_the_recorded_ones(files, case, parts):
    task = recorded_task(files, torch.float64, accumulation_steps=parts)
    task.backward(*recorded_batch(case))
    mage_files.assert_gradients(task.model, case)


def test_the_vectors_notice_what_is_not_withheld(files):
    task = recorded_task(files, torch.float64)
    codes, masked, labels, withheld = recorded_batch(0)
    loss, _ = task.backward(codes, masked, labels, withheld & False)
    assert abs(loss.mean() - recorded("training")["case0_loss_f64"]) > 1e-6


@pytest.mark.parametrize("case", range(4))
def test_masks_of_recorded_noise(case):
    vectors = recorded("training")
    noise, ratio = vectors[f"case{case}_noise"], vectors[f"case{case}_mu_ratio"][1]
    for share, name in ((ratio, "mask"), (0.5, "drop")):
        found = masking._least(noise, np.full(4, share, np.float32))
        np.testing.assert_array_equal(found, vectors[f"case{case}_{name}"][:, 1:])


def test_masks_of_a_step():
    settings = masking.settings(mage_defaults.get_config(), N)
    draw = functools.partial(masking.draw, 0, 3, **settings | {"samples_per_ratio": 6})
    whole = draw(range(24))
    assert len(np.unique(whole.ratio)) == 4 and (np.diff(whole.ratio.reshape(4, 6)) == 0).all()
    assert whole.withheld.sum(-1).tolist() == [N // 2] * 24
    assert not (whole.withheld & ~whole.masked).any()
    np.testing.assert_array_equal(whole.masked.sum(-1), np.ceil(whole.ratio * N))
    parts = [draw(range(0, 8)), draw(range(8, 20)), draw(range(20, 24))]
    for name in ("masked", "withheld", "ratio"):
        joined = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_array_equal(joined, getattr(whole, name))


def test_from_tokens_to_the_authors_file(files, tmp_path):
    """A run, the same run interrupted, its export, a file as the authors have it, and images of both."""
    whole = run_here(config_of(files), tmp_path / "whole")
    run_here(config_of(files), tmp_path / "run")
    for step in (4, 6):  # as if killed after step 2
        shutil.rmtree(checkpoints.folder_of(tmp_path / "run", step))
    state = run_here(config_of(files), tmp_path / "run")
    assert curve(tmp_path / "run") == curve(tmp_path / "whole")
    weights = state.models["transformer"].state_dict()
    for name, value in whole.models["transformer"].state_dict().items():
        assert torch.equal(weights[name], value), name
    for kind in ("samples", "filled_in"):
        assert (tmp_path / "run" / "pictures" / kind / "step_000000006.png").is_file()

    assert export.cli([str(tmp_path / "run"), f"--output={tmp_path / 'model'}"]) == 0
    model = MaskGIT.from_pretrained(tmp_path / "model")
    tokenizer = mage_files.model().vqgan.state_dict()
    for name, value in model.tokenizer.state_dict().items():
        assert torch.equal(value, tokenizer[name])  # frozen
    images = model.generate(sampler="mage", steps=4, seed=1).images
    assert images.shape == (1, 3, 8, 8) and images.isfinite().all()
    convert.convert(tmp_path / "model", tmp_path / "mage.pth", to="mage-vit")
    names = torch.load(tmp_path / "mage.pth", weights_only=True)["model"].keys()
    assert names == mage_files.published().keys()
    _, _, back = convert.load_checkpoint(tmp_path / "mage.pth", mage_files.HEADS)
    assert back.keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in back.items())


def test_what_is_trained(files):
    task = recorded_task(files, torch.float32)
    decays, others = task.optimizer.param_groups
    names = {id(p): name for name, p in task.model.named_parameters()}
    trained = [[names[id(p)] for p in group["params"]] for group in (decays, others)]
    frozen = set(names.values()) - {*trained[0], *trained[1]}
    assert all(name.startswith(("vqgan.", *UNUSED)) or "pos_embed" in name for name in frozen)
    assert len(trained[0]) + len(trained[1]) == 64  # the tensors with a gradient, as recorded
    assert "decoder_pos_embed_learned" in trained[0] and "mlm_layer.bias" in trained[1]
    assert "token_emb.word_embeddings.weight" in trained[0]
    assert "token_emb.LayerNorm.weight" in trained[1]


def test_classes_and_no_tokenizer(files, tmp_path):
    config = config_of(files, num_class=2, tokenizer="", num_train_steps=1, eval_every_steps=0)
    state = run_here(config, tmp_path / "run")
    assert state.models["transformer"].class_emb.weight.grad is None
    assert export.cli([str(tmp_path / "run"), f"--output={tmp_path / 'model'}"]) == 0
    model = MaskGIT.from_pretrained(tmp_path / "model", files / "tokenizer")
    assert model.num_classes == 2 and not hasattr(model.transformer, "vqgan")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"label_drop_rate": 0.1}, "config.label_drop_rate is 0.1; accepted with the task mage: 0"),
        ({"independent_masks": True}, "config.independent_masks is True"),
        ({"min_masking_rate": 0.0}, "config.min_masking_rate is 0.0"),
        ({"num_class": -1}, "config.num_class is -1"),
        ({"transformer.intermediate_size": 100}, "intermediate_size is 100; .* a multiple of num_embeds, 48"),
        ({"transformer.broadcast_dropout": True}, "transformer.broadcast_dropout is True"),
        ({"model": "maskgit_transformer"}, "config.model is 'maskgit_transformer'; accepted: mage"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit(files, changes, message):
    with pytest.raises(ValueError, match=message):
        mage.check(config_of(files, **changes))


def test_dry_run(files):
    with one_process() as processes:
        about, work = loop.task_class(config_of(files)).describe(config_of(files), processes)
    assert work > 0 and about["tokens an image"] == "16 of 32 codes"
