import copy
import importlib.util

import numpy as np
import processes
import pytest
import torch
from PIL import Image
from training import curve, one_process, run_here, text_of

from maskgit_pt import VQVAE
from train import export, loop
from train.configs import tokenizer_defaults
from train.data import batches as data
from train.evaluation.torchvision_import import import_torchvision
from train.run import checkpoints
from train.tasks import autoencoding, perceptual
from train.tasks.flops import count_operations


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Smooth random pictures of 16 px in two classes."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(24):
        path = folder / "ab"[number % 2] / f"{number:02d}.png"
        path.parent.mkdir(exist_ok=True)
        small = Image.fromarray(rng.integers(0, 255, (4, 4, 3), dtype=np.uint8))
        small.resize((16, 16)).save(path)
    return folder


def config_of(images, **changes):
    config = tokenizer_defaults.get_config()
    config.update(
        batch_size=4,
        num_train_steps=6,
        image_size=16,
        perceptual_weights="off",
        precision="float32",
        compile=False,
        log_every_steps=1,
        checkpoint_every_steps=2,
        eval_every_steps=6,
    )
    config.data.update(images=str(images), crop="random+flip", num_workers=0)
    config.vqvae.update(
        filters=32, num_res_blocks=1, channel_multipliers=(1, 1), embedding_dim=8, codebook_size=16
    )
    config.update_from_flattened_dict(changes)
    return config


class SmallDiscriminator(torch.nn.Module):
    """Stands in for the StyleGAN discriminator, whose 512 channels take their time."""

    def __init__(self, config):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 4, stride=4)
        self.dense = torch.nn.Linear(64, 1)

    def forward(self, x):
        return self.dense(torch.nn.functional.leaky_relu(self.conv(x), 0.2).flatten(1))


@pytest.fixture
def small_discriminator(monkeypatch):
    monkeypatch.setattr(autoencoding, "Discriminator", SmallDiscriminator)


@pytest.mark.parametrize("quantizer", ["vq", "gumbel"])
def test_a_run_with_a_discriminator_resumes_bit_identically(
    images, tmp_path, quantizer, small_discriminator
):
    config = config_of(images, **{"vqvae.quantizer": quantizer})
    whole = run_here(config, tmp_path / "whole")
    names = curve(tmp_path / "whole")[0].keys()
    assert {"reconstruction_loss", "perplexity", "codebook_usage", "discriminator_loss"} <= names
    assert (tmp_path / "whole/pictures/reconstructions/step_000000006.png").exists()
    half = config_of(images, **{"vqvae.quantizer": quantizer}, num_train_steps=4)
    run_here(half, tmp_path / "two")
    again = run_here(config, tmp_path / "two")
    assert curve(tmp_path / "two") == curve(tmp_path / "whole")
    for name, model in whole.models.items():
        for key, value in model.state_dict().items():
            assert torch.equal(value, again.models[name].state_dict()[key]), (name, key)


RECIPE = """
from train.configs import tokenizer_defaults
from train.data import batches as data

def get_config():
    config = tokenizer_defaults.get_config()
    config.update(
        batch_size=4, num_train_steps=2, image_size=16, perceptual_weights="off", precision="float32",
        compile=False, log_every_steps=1, eval_every_steps=0,
    )
    config.data.update(images={images!r}, crop="center", num_workers=0)
    config.vqvae.update(
        filters=32, num_res_blocks=1, channel_multipliers=(1, 1), embedding_dim=8, codebook_size=16,
        entropy_loss_ratio=0.5,
    )
    return config
"""


def train_small(argv):
    autoencoding.Discriminator = SmallDiscriminator
    return processes.train(argv)


def test_two_processes_give_the_curves_of_one(images, tmp_path):
    """With discriminator, R1 and the entropy over the whole batch: gradients are averaged, codes counted."""
    recipe = tmp_path / "recipe.py"
    recipe.write_text(RECIPE.format(images=str(images)))
    for count in (1, 2):
        argv = [f"--config={recipe}", f"--output={tmp_path / str(count)}", "--device=cpu"]
        processes.run(train_small, argv, logs=tmp_path / "logs", count=count)
    one, two = curve(tmp_path / "1"), curve(tmp_path / "2")
    assert len(one) == 2 and one[0]["codebook_usage"] > 0
    for line, other in zip(one, two, strict=True):
        assert other == pytest.approx(line, rel=1e-5)


def test_reconstruction_gets_better(images, tmp_path):
    config = config_of(images, num_train_steps=60, **{"vqgan.g_adversarial_loss_weight": 0.0})
    config.update(checkpoint_every_steps=60, eval_every_steps=0)
    config.optimizer.update(g_lr=3e-3, beta1=0.9)
    run_here(config, tmp_path)
    losses = [line["reconstruction_loss"] for line in curve(tmp_path)]
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:5])
    assert "discriminator_loss" not in curve(tmp_path)[0]


def test_scores_on_images_that_are_not_trained_on(images, tmp_path, small_discriminator):
    config = config_of(images, eval_images=str(images), eval_features="pixels", eval_every_steps=3)
    run_here(config, tmp_path)
    scored = [line for line in curve(tmp_path) if "eval_psnr" in line]
    assert [line["step"] for line in scored] == [3, 6]
    assert 0 < scored[-1]["eval_psnr"] < 60 and 0 < scored[-1]["eval_codebook_usage"] <= 1
    assert "eval_pixels_reconstruction_frechet_distance" in scored[-1]


def test_what_scores_need_is_missed_before_training(images, tmp_path, small_discriminator):
    config = config_of(images, eval_images=str(tmp_path / "nowhere"))
    with one_process() as here:
        with pytest.raises(FileNotFoundError, match="nowhere"):
            loop.make_task(config, here)
        config.update(eval_images=str(images), inception_weights=str(tmp_path / "no.pth"))
        with pytest.raises(FileNotFoundError, match="no.pth: no such file"):
            loop.make_task(config, here)


def test_export(images, tmp_path, small_discriminator):
    state = run_here(config_of(images), tmp_path / "run")
    assert list(text_of(tmp_path / "run" / "networks.json")) == ["tokenizer"]
    assert export.cli([str(tmp_path / "run"), f"--output={tmp_path / 'folder'}"]) == 0
    model = VQVAE.from_pretrained(tmp_path / "folder")
    for name, value in state.averages["tokenizer"].state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
    assert checkpoints.steps(tmp_path / "run") == [2, 4, 6]


def test_the_quantizer_computes_in_float32_under_autocast(images):
    torch.manual_seed(0)
    tokenizer = VQVAE(config_of(images)).train()
    seen = []
    tokenizer.quantizer.register_forward_hook(
        lambda _, inputs, output: seen.append((inputs, output))
    )
    with torch.autocast("cpu", torch.bfloat16):
        autoencoding.Reconstruction(tokenizer)(torch.rand(2, 3, 16, 16), 1.0, None)
    ((features,), (_, result)) = seen[0]
    assert features.dtype == torch.float32
    exact = torch.cdist(features.double().flatten(2).mT, tokenizer.quantizer.codebook.double())
    assert torch.equal(result["encoding_indices"].flatten(1), exact.argmin(-1))


def test_temperature():
    config = tokenizer_defaults.get_config().tau_anneal
    taus = [autoencoding.temperature(config, step) for step in (0, 50_000, 100_000, 200_000)]
    np.testing.assert_allclose(taus, [1.0, 0.8, 0.6, 0.6])


@pytest.fixture(scope="module")
def resnet_file(tmp_path_factory):
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("needs the extra 'eval'")
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("resnet") / "resnet50.pth"
    torch.save(import_torchvision().models.resnet50(weights=None).state_dict(), path)
    return path


def test_perceptual_loss_from_a_file(images, resnet_file, tmp_path):
    config = config_of(images, perceptual_weights=str(resnet_file))
    loss = perceptual.load(config, torch.device("cpu"))
    assert sum(p.requires_grad for p in loss.parameters()) == 0 and not loss.training
    real = torch.rand(2, 3, 16, 16)
    fake = torch.rand(2, 3, 16, 16, requires_grad=True)
    assert loss(real, real) == 0
    value = loss(real, fake)
    value.backward()
    assert value > 0 and fake.grad.abs().sum() > 0
    assert loss.features(real).shape == (2, 2048)
    config.perceptual_loss_on_logit = True
    assert perceptual.load(config, torch.device("cpu")).features(real).shape == (2, 1000)
    state = torch.load(resnet_file, weights_only=True)
    early = {name: v for name, v in state.items() if "num_batches_tracked" not in name}
    torch.save(early, tmp_path / "early.pth")  # as the first files of torchvision
    config.update(perceptual_loss_on_logit=False, perceptual_weights=str(tmp_path / "early.pth"))
    assert perceptual.load(config, torch.device("cpu"))(real, fake) == value


def test_perceptual_weights_that_are_missing_or_wrong(images, tmp_path):
    def load(path):
        return perceptual.load(config_of(images, perceptual_weights=str(path)), torch.device("cpu"))

    assert load("off") is None
    with pytest.raises(ValueError, match="not set; accepted: .*download.pytorch.org.*'off'"):
        load("")
    with pytest.raises(FileNotFoundError, match="no file nowhere.pth; accepted: .*'off'"):
        load("nowhere.pth")
    (tmp_path / "bad.pth").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="bad.pth is not a PyTorch state file"):
        load(tmp_path / "bad.pth")
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("needs the extra 'eval'")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="other.pth does not hold a ResNet-50"):
        load(tmp_path / "other.pth")


def test_work_of_the_published_configuration(images, resnet_file):
    """945.2 GFLOP: three times the 315.1 of encoder and decoder, and the distances to the codes."""
    config = tokenizer_defaults.get_config()
    config.data.images, config.perceptual_weights = str(images), str(resnet_file)
    with one_process() as here:
        _, work = autoencoding.Autoencoding.describe(config, here)
        assert round(work / 1e9) == 1311
        config.perceptual_weights, config.vqgan.g_adversarial_loss_weight = "off", 0.0
        _, work = autoencoding.Autoencoding.describe(config, here)
        assert round(work / 1e9, 1) == 945.2


def test_operations_are_counted_like_by_hand():
    B, n, m = 5, 7, 11
    x, weight = torch.rand(B, n, requires_grad=True), torch.rand(n, m, requires_grad=True)
    assert count_operations(lambda: x @ weight) == 2 * B * n * m
    assert count_operations(lambda: (x @ weight).sum().backward()) == 3 * 2 * B * n * m
    image, kernel = torch.rand(1, 3, 8, 8), torch.rand(4, 3, 3, 3)
    found = count_operations(lambda: torch.nn.functional.conv2d(image, kernel, padding=1))
    assert found == 2 * 4 * 3 * 9 * 64


def test_bad_settings(images):
    with one_process() as here:
        for changes, message in (
            ({"vqvae.quantizer": "lfq"}, "config.vqvae.quantizer is 'lfq'"),
            ({"vqgan.loss_type": "wgan"}, "config.vqgan.loss_type is 'wgan'"),
            ({"vqvae.norm_type": "BN"}, "norm_type is 'BN'"),
            ({"data.crop": "middle"}, "config.data.crop is 'middle'; accepted: center"),
            ({"data.images": ""}, "config.data.images is not set; accepted: a folder"),
        ):
            with pytest.raises(ValueError, match=message):
                loop.make_task(config_of(images, **changes), here)


def test_the_batch_of_every_process_is_its_part(images):
    with one_process() as here:
        batches = [data.open_images(config_of(images), here)]
        for rank in range(2):
            part = copy.copy(batches[0])
            part.share = data.Share(4, rank, 2)
            batches.append(part)
    whole, *parts = [each[3]["pixels"] for each in batches]
    assert torch.equal(torch.cat(parts), whole) and whole.dtype == torch.uint8
