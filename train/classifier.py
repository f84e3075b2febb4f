"""Command line: `maskgit-classifier`, a small network whose features make metrics."""

import dataclasses
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from absl import flags
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from maskgit_pt import command_line, launch
from maskgit_pt.command_line import UsageError
from maskgit_pt.files import check_destination, check_folder
from maskgit_pt.progress import duration
from maskgit_pt.settings import define_flags, from_flags, setting
from train.data.images import Images, check_apart, crop, open_images
from train.evaluation.classifiers import (
    MODEL_TYPE,
    ClassifierConfig,
    Layers,
    build_layers,
    normalize,
    save_classifier,
)
from train.randomness import generator

PROGRAM = "maskgit-classifier"
USAGE = """\
Trains a small convolutional network to tell the classes of images apart, in about two minutes on a CPU core.
Its features make FID, precision, recall and the others for images that Inception was not made for. They have
a variance of one, on average over the features and the training images:

  maskgit-classifier --images=images/train.tar --test=images/test.tar --output=classifier
  maskgit-evaluate --samples=samples/samples.npz --reference=images/test.tar --features=classifier:classifier

Images are a folder that has one subfolder for each class, or tar files in WebDataset's layout. Writes
config.json and model.safetensors into --output. All images are held in memory, at --image_size."""


@dataclasses.dataclass(frozen=True)
class ClassifierSettings:
    """Each field is the value of the flag of its name."""

    images: str | None = setting(None, "Images by class: a folder, or tar files.")
    split: str | None = setting(None, "A part of them: train, val, ...")
    test: str | None = setting(None, "Images that are not trained on. Default: no test.")
    output: str = setting("classifier", "Folder for the network.")
    overwrite: bool = setting(False, "Replace a classifier in --output.")
    image_size: int | None = setting(
        None, "Pixels of a side. Default: the first image's shorter side, at most 64.", least=8
    )
    num_train_steps: int = setting(3000, "Steps.", least=2)
    batch_size: int = setting(128, "Images a step.", least=2)
    lr: float = setting(3e-3, "Highest learning rate; it rises to it and falls to 0.", least=0)
    flip: bool = setting(False, "Mirror half of the images: not for digits.")
    seed: int = setting(0, "Of weights and batches.", least=0)
    device: str | None = setting(None, "cpu, cuda, cuda:1, ... Default: cuda if there is one.")
    threads: int | None = setting(None, "On a CPU. Default: all cores.", least=1)


FLAGS = flags.FlagValues()
define_flags(ClassifierSettings, FLAGS)
_FEATURES = 128
_READ_AT_ONCE = 1024
_EVALUATED_AT_ONCE = 500
_MEASURED = 5000  # images, for the scale of the features


def main() -> int:
    """Trains and writes what the flags name."""
    settings = from_flags(ClassifierSettings, FLAGS)
    if not settings.images:
        raise UsageError("--images is missing")
    check_apart(settings.output, settings.images)  # complains before the work
    check_destination(settings.output, MODEL_TYPE)
    if any(check_folder(settings.output).iterdir()) and not settings.overwrite:
        raise FileExistsError(
            f"{settings.output} exists already; --overwrite replaces the classifier in it"
        )
    device = launch.pick_device(settings.device, settings.threads)
    images = open_images(settings.images, settings.split)
    if len(images.class_names) < 2:
        raise ValueError(f"{settings.images}: {len(images.class_names)} class; accepted: 2 or more")
    size = settings.image_size or min(64, *images.read(0).size)
    pixels, labels = read_all(images, size)
    tested = None
    if settings.test:
        test = open_images(settings.test, num_classes=len(images.class_names))
        if test.class_names != images.class_names:
            raise ValueError(f"{settings.test}: its classes are not those of {settings.images}")
        tested = read_all(test, size)
    network, config = train(pixels, labels, images.class_names, settings, device)
    about: dict[str, Any] = {"images": len(labels), "num_train_steps": settings.num_train_steps}
    about |= {"seed": settings.seed, "flip": settings.flip}
    if tested is not None:
        about |= {
            "test_images": len(tested[1]),
            "test_accuracy": accuracy(network, config, *tested),
        }
        print(f"{about['test_accuracy']:.2%} of {len(tested[1])} test images are recognised")
    save_classifier(settings.output, network, dataclasses.replace(config, about=about))
    print(f"{settings.output}: a classifier of {len(images.class_names)} classes at {size} px")
    return 0


def read_all(images: Images, size: int) -> tuple[Tensor, Tensor]:
    """All images, the middle of each: uint8 [N, 3, size, size], and labels int64 [N]."""
    pixels = torch.empty(len(images), 3, size, size, dtype=torch.uint8)

    def read(index: int) -> np.ndarray:
        return crop(images.read(index), size, "center", None)

    bar = tqdm(total=len(images), unit="img", desc="reading", disable=None)
    with bar, ThreadPoolExecutor(4) as threads:
        for start in range(0, len(images), _READ_AT_ONCE):
            part = range(start, min(start + _READ_AT_ONCE, len(images)))
            read_ones = np.stack(list(threads.map(read, part)))
            pixels[part.start : part.stop] = torch.from_numpy(read_ones).movedim(-1, 1)
            bar.update(len(part))
    return pixels, torch.from_numpy(images.labels)


def small_network(size: int, classes: int) -> Layers:
    """Layers for images of `size`: convolutions down to 7 pixels or fewer, then 128 features, then logits."""
    side, width, layers = size, 3, []

    def convolution(out: int, kernel: int, stride: int) -> None:
        nonlocal side, width
        arguments = {"in_channels": width, "out_channels": out, "kernel_size": kernel}
        arguments |= {"stride": stride, "padding": kernel // 2, "bias": False}
        layers.extend([["Conv2d", arguments], ["BatchNorm2d", {"num_features": out}], ["ReLU", {}]])
        side, width = -(-side // stride), out

    convolution(32, 5, 2 if size >= 16 else 1)
    while side > 7:
        convolution(64, 3, 2)
    convolution(64, 3, 1)
    layers += [
        ["Flatten", {}],
        ["Linear", {"in_features": width * side**2, "out_features": _FEATURES}],
        ["ReLU", {}],
        ["Linear", {"in_features": _FEATURES, "out_features": classes}],
    ]
    return layers


def train(
    pixels: Tensor,
    labels: Tensor,
    class_names: list[str],
    settings: ClassifierSettings,
    device: torch.device,
) -> tuple[nn.Module, ClassifierConfig]:
    """Trains `small_network` with AdamW, one cycle of the learning rate, and shifts by a few pixels.

    Its features, the last but one layer's output, then get a variance of 1 on average over the images.

    Args:
      pixels: uint8 [N, 3, S, S].
      labels: int64 [N].
      class_names: of the labels.
      settings: steps, batch size, learning rate, seed, flips.
      device: where.

    Returns:
      The network in evaluation mode, and how it is stored.
    """
    size, steps = pixels.shape[-1], settings.num_train_steps
    layers = small_network(size, len(class_names))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = build_layers(layers)
    sample = pixels[:: max(1, len(pixels) // 1000)].float() / 255
    mean, std = sample.mean(dim=(0, 2, 3)), sample.std(dim=(0, 2, 3)).clamp(min=1e-3)
    config = ClassifierConfig(
        layers, str(len(layers) - 2), size, class_names, mean=mean.tolist(), std=std.tolist()
    )
    network.to(device, memory_format=torch.channels_last)
    scale = _on_device(network, config)
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.lr, weight_decay=0.05)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.lr, total_steps=steps)
    begin = time.perf_counter()
    with tqdm(range(steps), unit="step", desc="training", disable=None) as bar:
        for step in bar:
            images, rows = _batch(pixels, settings, step)
            images = normalize(images.to(device), size, *scale)
            logits = network(images.contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(logits, labels[rows].to(device), label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
            if (step + 1) % max(1, steps // 6) == 0:
                left = (time.perf_counter() - begin) / (step + 1) * (steps - step - 1)
                bar.write(
                    f"step {step + 1} of {steps}: loss {loss.item():.3f}; {duration(left)} left"
                )
    network.eval()
    _scale_features(network, pixels[:: max(1, len(pixels) // _MEASURED)], config)
    return network, config


@torch.inference_mode()
def _scale_features(network: nn.Sequential, pixels: Tensor, config: ClassifierConfig) -> None:
    """Gives the features of `pixels`, uint8 [N, 3, S, S], a variance of 1 on average; logits stay.

    A distance grows with the square of the features, whose scale training leaves to chance: without this, the
    distances of two classifiers could not be compared.
    """
    *first, features, rectifier, last = network
    scale = _on_device(network, config)
    found = torch.cat([
        nn.Sequential(*first, features, rectifier)(
            normalize(part.to(features.weight.device), config.image_size, *scale)
        )
        for part in pixels.split(_EVALUATED_AT_ONCE)
    ])  # fmt: skip
    deviation = found.var(0).mean().sqrt().clamp(min=1e-12)
    for values in (features.weight, features.bias):
        values /= deviation  # passes through ReLU
    last.weight *= deviation


def _on_device(network: nn.Module, config: ClassifierConfig) -> list[Tensor]:
    """The mean and the deviation of images, float32 [3, 1, 1], where the network is."""
    device = next(network.parameters()).device
    return [torch.tensor(v, device=device)[:, None, None] for v in (config.mean, config.std)]


def _batch(pixels: Tensor, settings: ClassifierSettings, step: int) -> tuple[Tensor, Tensor]:
    """A random batch, uint8 [B, 3, S, S], shifted as a whole and mirrored one by one; and its rows."""
    rng = generator(settings.seed, "classifier", step)
    rows = torch.from_numpy(rng.integers(len(pixels), size=settings.batch_size))
    images, size = pixels[rows], pixels.shape[-1]
    reach = max(1, size // 16)
    down, right = rng.integers(2 * reach + 1, size=2)
    images = F.pad(images, (reach,) * 4)[:, :, down : down + size, right : right + size]
    if settings.flip:
        mirrored = torch.from_numpy(rng.random(len(rows)) < 0.5)
        images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    return images, rows


@torch.inference_mode()
def accuracy(network: nn.Module, config: ClassifierConfig, pixels: Tensor, labels: Tensor) -> float:
    """The share of images, uint8 [N, 3, S, S], whose class the network finds."""
    scale = _on_device(network, config)
    right = 0
    for start in range(0, len(pixels), _EVALUATED_AT_ONCE):
        part = slice(start, start + _EVALUATED_AT_ONCE)
        images = pixels[part].to(scale[0].device)
        logits = network(normalize(images, config.image_size, *scale))
        right += int((logits.argmax(1).cpu() == labels[part]).sum())
    return right / len(pixels)


def cli(argv: Sequence[str] | None = None) -> int:
    """Entry point of `maskgit-classifier`; returns the exit code."""
    return command_line.run(main, FLAGS, PROGRAM, USAGE, argv)


if __name__ == "__main__":
    sys.exit(cli())
