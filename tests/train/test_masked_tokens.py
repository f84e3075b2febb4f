import numpy as np
import pytest
import torch
from PIL import Image
from training import curve, make_shards, one_process, run_here, tiny_config

from maskgit_pt.libml import losses
from train import loop
from train.data.tokens import ShardWriter, tokenizer_fingerprint
from train.tasks import masked_tokens


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("shards") / "tokens")


@pytest.fixture
def tokenizer(tiny_tokenizer, tmp_path):
    tiny_tokenizer.save_pretrained(tmp_path / "tokenizer")
    return tiny_tokenizer


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(12):
        path = tmp_path / "images" / "ab"[number % 2] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40, 44, 3), dtype=np.uint8)).save(path)
    return tmp_path / "images"


def config_for_images(images, tmp_path, **changes):
    config = tiny_config("", num_train_steps=3, checkpoint_every_steps=3, batch_size=4, **changes)
    config.data.update(tokens="", images=str(images), crop="random+flip")
    config.update(tokenizer=str(tmp_path / "tokenizer"), image_size=32)
    config.sampling.steps = 2
    config.sampling.unlock()
    return config


def test_the_loss_is_the_official_one(tokens):
    config = tiny_config(tokens, batch_size=16)
    with one_process() as processes:
        task = masked_tokens.MaskedTokens(config, processes)
    item = task.batches[0]
    task._loss.eval()
    loss, correct = task._loss(item["codes"], item["masked"], item["labels"])
    logits = task.model.code_logits(item["codes"].where(~item["masked"], -1), item["labels"], 16)
    wanted = losses.weighted_sequence_cross_entropy_loss(
        labels=item["codes"], logits=logits, weights=item["masked"].float(), label_smoothing=0.1
    )
    torch.testing.assert_close(loss.mean(), wanted)
    right = ((logits.argmax(-1) == item["codes"]) & item["masked"]).sum(-1)
    assert torch.equal(correct, right)
    # The mean over all masked positions is another number: samples count alike, not tokens.
    plain = torch.nn.functional.cross_entropy(
        logits[item["masked"]], item["codes"][item["masked"]], label_smoothing=0.1
    )
    assert abs(plain - wanted) > 1e-5


@pytest.mark.parametrize("parts, pieces", [(1, 1), (3, 3), (5, 4), (20, 8)])
def test_the_last_part_of_a_batch_reduces_gradients(tokens, monkeypatch, parts, pieces):
    """Also where the batch does not divide: else processes would drift apart."""
    seen = []

    def spy(module, last, original=masked_tokens.distributed.without_gradient_sync):
        seen.append(last)
        return original(module, last)

    monkeypatch.setattr(masked_tokens.distributed, "without_gradient_sync", spy)
    gradients = []
    for accumulation_steps in (1, parts):
        changes = {"accumulation_steps": accumulation_steps, "transformer.dropout_rate": 0.0}
        with one_process() as processes:
            task = masked_tokens.MaskedTokens(tiny_config(tokens, **changes), processes)
        item = task.batches[0]
        seen.clear()
        task.backward(item["codes"], item["masked"], item["labels"])
        gradients.append([p.grad for p in task.model.parameters()])
    assert seen == [False] * (pieces - 1) + [True]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_dropped_labels_are_the_mask_token(tokens):
    with one_process() as processes:
        task = masked_tokens.MaskedTokens(tiny_config(tokens), processes)
        model = task.state.models["transformer"].eval()
    codes = torch.zeros(1, 16, dtype=torch.int64)
    dropped = model.code_logits(codes, torch.tensor([-1]), 16)
    ids = torch.cat([torch.tensor([[-1]]), codes], 1)
    assert torch.equal(dropped, model(ids, 16)[:, 1:])


def test_tokenizing_while_training(images, tokenizer, tmp_path):
    config = config_for_images(images, tmp_path, eval_every_steps=3, eval_show_num=4)
    with one_process() as processes:
        task = loop.make_task(config, processes)
        item = task.batches[0]
        codes = task._tokenize(item["pixels"])
        wanted = tokenizer.encode_to_indices(item["pixels"].float() / 255).flatten(1)
        assert torch.equal(codes, wanted) and item["masked"].shape == codes.shape
    run_here(config, tmp_path / "run")
    assert [line["step"] for line in curve(tmp_path / "run")] == [1, 2, 3]
    for kind in ("samples", "filled_in"):
        with Image.open(tmp_path / "run" / "pictures" / kind / "step_000000003.png") as picture:
            assert picture.width > 60


def test_a_damaged_image_is_named_and_replaced(images, tokenizer, tmp_path, capfd):
    (images / "a" / "00.png").write_bytes(b"no picture")
    run_here(config_for_images(images, tmp_path), tmp_path / "run")
    assert "damaged image, the next one is taken: a/00.png" in capfd.readouterr().err


def test_data_must_be_named_once(tokens, images, tokenizer, tmp_path):
    both = config_for_images(images, tmp_path)
    both.data.tokens = str(tokens)
    lonely = config_for_images(images, tmp_path)
    lonely.tokenizer = ""
    with one_process() as processes:
        for config, message in (
            (both, "name either tokens"),
            (tiny_config(""), "name either tokens"),
            (lonely, "config.data.images needs config.tokenizer"),
        ):
            with pytest.raises(ValueError, match=message):
                loop.make_task(config, processes)


def test_tokens_of_another_tokenizer_are_refused(tokenizer, tmp_path):
    def shards(name, fingerprint):
        writer = ShardWriter(
            tmp_path / name,
            grid=(2, 2),
            crops=1,
            codebook_size=len(tokenizer.get_codebook_funct()),
            class_names=["a"],
            image_size=32,
            tokenizer=fingerprint,
        )
        writer.write(0, np.zeros((8, 1, 4), np.int64), np.zeros(8, np.int64))
        writer.finish(1)
        config = tiny_config(tmp_path / name, tokenizer=str(tmp_path / "tokenizer"))
        config.image_size, config.sampling.steps = 32, 2
        return config

    with one_process() as processes:
        loop.make_task(shards("same", tokenizer_fingerprint(tokenizer)), processes)
        with pytest.raises(ValueError, match="holds tokens with tokenizer 'other'"):
            loop.make_task(shards("other", "other"), processes)


def test_sampling_settings_are_tried_at_the_start(images, tokenizer, tmp_path):
    for name, value in (("sampler", "best"), ("steps", 5000), ("temprature", 1.0)):
        config = config_for_images(images, tmp_path)
        config.sampling[name] = value
        with one_process() as processes:
            task = loop.task_class(config)
            for method in (task, task.describe):
                with pytest.raises(ValueError, match="config.sampling.*"):
                    method(config, processes)


def test_unknown_task(tokens):
    with one_process() as processes, pytest.raises(ValueError, match="config.task is 'dance'"):
        loop.make_task(tiny_config(tokens, task="dance"), processes)
