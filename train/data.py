"""The global batch of every step, which depends on (seed, step) alone.

Sample j of step s is position p = s * batch_size + j of an endless sequence of epochs. Every epoch shows each
image once, in an order of its own, as one of its stored crops. A process takes its contiguous share of
each batch; a batch may span two epochs, so that nothing is left out. A loader's item is a whole batch:
reading it from shards is one vectorised call, and workers change nothing but the time.
"""

import dataclasses
import functools
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import ml_collections
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from train import images as images_lib
from train import masking, randomness
from train.tokens import TokenShards


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


class MaskedBatches(Dataset):
    """Batches for the transformer; item s is this process's share of step s.

    An item is a dict: `images` int64 [b] (their numbers), `labels` int64 [b], -1 where dropped,
    `masked` bool [b, n], `ratio` float32 [b]; and either `codes` int64 [b, n], or, to be tokenized,
    `pixels` uint8 [b, 3, H, W].
    """

    def __init__(self, config: ml_collections.ConfigDict, num_images: int, crops: int, n: int):
        self.order = Order(num_images, crops, config.seed)
        self.share = Share(config.batch_size)
        self.num_tokens = n
        self.seed = config.seed
        self._masking = {
            "method": config.mask_scheduling_method,
            "min_ratio": config.min_masking_rate,
            "independent": config.independent_masks,
            "label_drop_rate": config.label_drop_rate,
        }
        masking.draw(0, 0, range(1), n, **self._masking)  # complains about an unknown schedule

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        images, crops, epochs = self.order.at(step, self.share)
        masks = masking.draw(self.seed, step, self.share.rows, self.num_tokens, **self._masking)
        item = self._read(images, crops, epochs)
        item["labels"] = np.where(masks.dropped, -1, item["labels"])
        item |= {"images": images, "masked": masks.masked, "ratio": masks.ratio}
        return {name: torch.from_numpy(value) for name, value in item.items()}

    def _read(self, images: np.ndarray, crops: np.ndarray, epochs: np.ndarray) -> dict:
        raise NotImplementedError


class TokenBatches(MaskedBatches):
    """From token shards.

    Args:
      config: of the run.
      shards: the open shards.
    """

    def __init__(self, config: ml_collections.ConfigDict, shards: TokenShards):
        super().__init__(config, shards.num_images, shards.crops, int(np.prod(shards.grid)))
        self.shards = shards

    def _read(self, images: np.ndarray, crops: np.ndarray, epochs: np.ndarray) -> dict:
        codes = self.shards.tokens(images, crops).astype(np.int64)
        return {"codes": codes, "labels": self.shards.labels(images)}


class ImageBatches(MaskedBatches):
    """From images, to be tokenized by the training process.

    A damaged image is named on standard error and replaced by the next one of the collection.

    Args:
      config: of the run.
      collection: the images.
      num_tokens: of an image of config.image_size.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        collection: images_lib.Images,
        num_tokens: int,
    ):
        super().__init__(config, len(collection), 1, num_tokens)
        self.collection = collection
        self.image_size, self.crop = config.image_size, config.data.crop

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


def open_batches(
    config: ml_collections.ConfigDict, num_codes: int = 0, num_tokens: int = 0
) -> MaskedBatches:
    """Opens what `config.data` names.

    Args:
      config: of the run.
      num_codes, num_tokens: of the tokenizer, for images.

    Raises:
      FileNotFoundError, ValueError: nothing named, or it does not fit the settings.
    """
    if bool(config.data.tokens) == bool(config.data.images):
        raise ValueError(
            "config.data: name either tokens (a folder of python -m train.tokenize) or images; found "
            f"tokens={config.data.tokens!r}, images={config.data.images!r}"
        )
    if config.data.images:
        collection = images_lib.open_images(Path(config.data.images), config.data.split)
        _check_labels(config, len(collection.class_names), config.data.images)
        return ImageBatches(config, collection, num_tokens)
    shards = TokenShards.open(config.data.tokens)
    if shards.image_size != config.image_size:
        raise ValueError(
            f"{config.data.tokens} holds tokens of {shards.image_size} px; config.image_size is "
            f"{config.image_size}"
        )
    _check_labels(config, shards.num_classes, config.data.tokens)
    return TokenBatches(config, shards)


def _check_labels(config: ml_collections.ConfigDict, found: int, where: str) -> None:
    if found > config.num_class:
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
        # Workers start from a clean process: the training process has threads and a GPU context.
        multiprocessing_context="forkserver" if num_workers else None,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")
        yield from loader
