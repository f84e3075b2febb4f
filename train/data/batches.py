"""The global batch of every step, which depends on (seed, step) alone.

Sample j of step s is position p = s * batch_size + j of an endless sequence of epochs. Every epoch shows each
image once, in an order of its own, as one of its stored crops. A process takes its contiguous share of
each batch; a batch may span two epochs, so that nothing is left out. A loader's item is a whole batch:
reading it from shards is one vectorised call, and workers change nothing but the time.
"""

import contextlib
import dataclasses
import functools
import os
import select
import signal
import sys
import threading
import warnings
from collections.abc import Iterator

import ml_collections
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from train import randomness, settings
from train.data import images as images_lib
from train.data import masking
from train.data.tokens import TokenShards


@dataclasses.dataclass(frozen=True)
class Share:
    """Which part of each global batch a process takes.

    Attributes:
      batch_size: of the whole batch.
      rank, world_size: the process, and how many there are; the batch size is a multiple of them.
    """

    batch_size: int
    rank: int = 0
    world_size: int = 1

    def __post_init__(self):
        if self.batch_size % self.world_size:
            raise ValueError(
                f"config.batch_size is {self.batch_size}; accepted: a multiple of the "
                f"{self.world_size} processes"
            )

    @property
    def rows(self) -> range:
        """Row numbers of the global batch."""
        size = self.batch_size // self.world_size
        return range(self.rank * size, (self.rank + 1) * size)


class Order:
    """Which image stands at which position.

    Args:
      num_images: in the collection.
      crops: stored augmentations of each.
      seed: of the run.
    """

    def __init__(self, num_images: int, crops: int, seed: int):
        self.num_images, self.crops, self.seed = num_images, crops, seed
        # A batch spans at most two epochs, unless it is larger than the collection.
        self._epoch = functools.lru_cache(maxsize=2)(self._draw_epoch)

    def __getstate__(self) -> dict:
        return {"num_images": self.num_images, "crops": self.crops, "seed": self.seed}

    def __setstate__(self, state: dict) -> None:
        self.__init__(**state)

    def _draw_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        order = randomness.generator(self.seed, "order", epoch).permutation(
            np.arange(self.num_images, dtype=np.int32)
        )
        crops = randomness.generator(self.seed, "crops", epoch).integers(
            self.crops, size=self.num_images, dtype=np.uint8
        )
        return order, crops

    def at(self, step: int, share: Share) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A process's rows of a step: images, crops and epochs, each int64 [b]."""
        positions = step * share.batch_size + np.arange(share.rows.start, share.rows.stop)
        epochs, places = np.divmod(positions, self.num_images)
        images, crops = np.empty_like(places), np.empty_like(places)
        for epoch in np.unique(epochs):
            inside = epochs == epoch
            order, crop = self._epoch(int(epoch))
            images[inside] = order[places[inside]]
            crops[inside] = crop[places[inside]]
        return images, crops, epochs


class Batches(Dataset):
    """Item s is this process's share of step s, as a dict of tensors.

    `images` int64 [b] (their numbers) and `labels` int64 [b]; what else, the subclass says. After `hide`
    also what `masking.draw` gives: `masked` bool [b, n], `ratio` float32 [b], and labels of -1 where dropped.

    Args:
      num_images, crops: see `Order`.
      batch_size: over all processes.
      seed: of the run.
    """

    def __init__(self, num_images: int, crops: int, batch_size: int, seed: int):
        self.order = Order(num_images, crops, seed)
        self.share = Share(batch_size)
        self.seed = seed
        self._masking: dict | None = None

    def hide(self, config: ml_collections.ConfigDict, num_tokens: int) -> None:
        """Adds masks over `num_tokens` tokens to the items, as the settings want them."""
        self._masking = {
            "num_tokens": num_tokens,
            "method": config.mask_scheduling_method,
            "min_ratio": config.min_masking_rate,
            "independent": config.independent_masks,
            "label_drop_rate": config.label_drop_rate,
        }
        masking.draw(0, 0, range(1), **self._masking)  # complains about an unknown schedule

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        images, crops, epochs = self.order.at(step, self.share)
        item = self._read(images, crops, epochs)
        item["images"] = images
        if self._masking:
            masks = masking.draw(self.seed, step, self.share.rows, **self._masking)
            item["labels"] = np.where(masks.dropped, -1, item["labels"])
            item |= {"masked": masks.masked, "ratio": masks.ratio}
        return {name: torch.from_numpy(value) for name, value in item.items()}

    def _read(self, images: np.ndarray, crops: np.ndarray, epochs: np.ndarray) -> dict:
        raise NotImplementedError


class TokenBatches(Batches):
    """Items with `codes` int64 [b, h*w], from token shards.

    Args:
      shards: the open shards.
      batch_size, seed: see `Batches`.
    """

    def __init__(self, shards: TokenShards, batch_size: int, seed: int):
        super().__init__(shards.num_images, shards.crops, batch_size, seed)
        self.shards = shards

    def _read(self, images: np.ndarray, crops: np.ndarray, epochs: np.ndarray) -> dict:
        codes = self.shards.tokens(images, crops).astype(np.int64)
        return {"codes": codes, "labels": self.shards.labels(images)}


class ImageBatches(Batches):
    """Items with `pixels` uint8 [b, 3, H, W], from images.

    A damaged image is named on standard error and replaced by the next one of the collection.

    Args:
      collection: the images.
      image_size, crop: see `images.crop`.
      batch_size, seed: see `Batches`.
    """

    def __init__(
        self, collection: images_lib.Images, image_size: int, crop: str, batch_size: int, seed: int
    ):
        super().__init__(len(collection), 1, batch_size, seed)
        self.collection, self.image_size, self.crop = collection, image_size, crop

    def _read(self, images: np.ndarray, crops: np.ndarray, epochs: np.ndarray) -> dict:
        pixels, labels = [], []
        for image, epoch in zip(images, epochs, strict=True):
            picture, label = self._picture(int(image))
            rng = randomness.generator(self.seed, "augmentation", int(epoch), int(image))
            pixels.append(images_lib.crop(picture, self.image_size, self.crop, rng))
            labels.append(label)
        return {
            "pixels": np.stack(pixels).transpose(0, 3, 1, 2),
            "labels": np.array(labels, np.int64),
        }

    def _picture(self, image: int) -> tuple[object, int]:
        for offset in range(len(self.collection)):
            number = (image + offset) % len(self.collection)
            try:
                return self.collection.read(number), int(self.collection.labels[number])
            except images_lib.DamagedImage as error:
                print(f"damaged image, the next one is taken: {error}", file=sys.stderr)
        raise ValueError("no image of the collection can be read")


def open_tokens(config: ml_collections.ConfigDict) -> TokenBatches:
    """Opens the token shards `config.data.tokens`.

    Raises:
      FileNotFoundError, ValueError: they are not there, or do not fit the settings.
    """
    shards = TokenShards.open(config.data.tokens)
    if shards.image_size != config.image_size:
        raise ValueError(
            f"{config.data.tokens} holds tokens of {shards.image_size} px; config.image_size is "
            f"{config.image_size}"
        )
    _check_labels(config, shards.num_classes, config.data.tokens)
    return TokenBatches(shards, config.batch_size, config.seed)


def open_images(config: ml_collections.ConfigDict) -> ImageBatches:
    """Opens the images `config.data.images`.

    Raises:
      FileNotFoundError, ValueError: they are not there, or do not fit the settings.
    """
    data = config.data
    settings.check_choice(config, "data.crop", images_lib.CROPS)
    if not data.images:
        raise ValueError(
            "config.data.images is not set; accepted: a folder with a folder a class, ImageNet as Kaggle "
            "has it (with config.data.split), or WebDataset tar files"
        )
    collection = images_lib.open_images(data.images, data.split or None)
    _check_labels(config, len(collection.class_names), data.images)
    return ImageBatches(collection, config.image_size, data.crop, config.batch_size, config.seed)


def _check_labels(config: ml_collections.ConfigDict, found: int, where: str) -> None:
    if "num_class" in config and found > config.num_class:
        raise ValueError(
            f"{where} has {found} classes, labels 0 to {found - 1}; config.num_class is "
            f"{config.num_class}"
        )


def load(
    batches: Dataset, first_step: int, last_step: int, num_workers: int, pin_memory: bool = False
) -> Iterator[dict[str, Tensor]]:
    """The batches of steps first_step ... last_step - 1, read ahead by `num_workers` processes."""
    loader = DataLoader(
        batches,
        batch_size=None,  # an item is a batch
        sampler=range(first_step, last_step),
        num_workers=num_workers,
        pin_memory=pin_memory,
        prefetch_factor=4 if num_workers else None,
        worker_init_fn=functools.partial(_prepare_worker, os.getpid()),
        # Workers start from a clean process: the training process has threads and a GPU context.
        multiprocessing_context="forkserver" if num_workers else None,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")
        yield from loader


def _prepare_worker(training_process: int, worker: int) -> None:
    """Ctrl-C reaches every process of a terminal; the training process decides what it means.

    If that one is killed, nothing else ends the workers: the server that forked them lives while they do.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "pidfd_open"):  # Linux
        threading.Thread(target=_end_with, args=(training_process,), daemon=True).start()


def _end_with(process: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        select.select([os.pidfd_open(process)], [], [])
    os._exit(1)
