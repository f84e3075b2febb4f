"""The global batch of every step, which depends on (seed, step) alone.

Sample j of step s is position p = s * batch_size + j of an endless sequence of epochs. Every epoch shows each
image once, in an order of its own, as one of its stored crops. A process takes its contiguous share of
each batch; a batch may span two epochs, so that nothing is left out. An item of a data set is a whole batch:
reading it from shards is one vectorised call, and workers change nothing but the time.
"""

import dataclasses
import functools
import sys
from typing import Any, Self

import ml_collections
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from maskgit_pt.launch import Processes
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

    @classmethod
    def of(cls, config: ml_collections.ConfigDict, processes: Processes) -> Self:
        """The part of a process in a run."""
        return cls(config.batch_size, processes.rank, processes.world_size)

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
      chosen: int64 [num_images], which images of a larger collection these are; None: all of it.
    """

    def __init__(self, num_images: int, crops: int, seed: int, chosen: np.ndarray | None = None):
        self.num_images, self.crops, self.seed, self.chosen = num_images, crops, seed, chosen
        # A batch spans at most two epochs, unless it is larger than the collection.
        self._epoch = functools.lru_cache(maxsize=2)(self._draw_epoch)

    def __getstate__(self) -> dict:
        names = ("num_images", "crops", "seed", "chosen")
        return {name: getattr(self, name) for name in names}

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
        return (images if self.chosen is None else self.chosen[images]), crops, epochs


class Batches(Dataset):
    """Item s is this process's share of step s, as a dict of tensors.

    `images` int64 [b] (their numbers) and `labels` int64 [b]; what else, the subclass says. With masks also
    what `masking.draw` gives: `masked` bool [b, n], `ratio` float32 [b], `withheld` bool [b, n] for
    MAGE, and labels of -1 where dropped.

    Args:
      num_images, crops: see `Order`.
      seed: of the run.
      share: of this process.
      masks: `masking.settings`, or None for no masks.

    Attributes:
      classes: int64 [classes], the labels of these classes in the batches; None: as they are numbered.
    """

    classes: np.ndarray | None = None

    def __init__(
        self, num_images: int, crops: int, seed: int, share: Share, masks: dict | None = None
    ):
        self.order = Order(num_images, crops, seed)
        self.share = share
        self.seed = seed
        self.masks = masks

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        images, crops, epochs = self.order.at(step, self.share)
        item = self._read(images, crops, epochs)
        item["images"] = images
        if self.classes is not None:
            item["labels"] = self.classes[item["labels"]]
        if self.masks:
            masks = masking.draw(self.seed, step, self.share.rows, **self.masks)
            item["labels"] = np.where(masks.dropped, -1, item["labels"])
            item |= {"masked": masks.masked, "ratio": masks.ratio}
            if masks.withheld is not None:
                item["withheld"] = masks.withheld
        return {name: torch.from_numpy(value) for name, value in item.items()}

    def _read(self, images: np.ndarray, crops: np.ndarray, epochs: np.ndarray) -> dict:
        raise NotImplementedError


class TokenBatches(Batches):
    """Items with `codes` int64 [b, h*w], from token shards.

    Args:
      shards: the open shards.
      seed, share, masks: see `Batches`.
      chosen: int64 [n], which of their images; None: all.
    """

    def __init__(
        self,
        shards: TokenShards,
        seed: int,
        share: Share,
        masks: dict | None = None,
        chosen: np.ndarray | None = None,
    ):
        count = shards.num_images if chosen is None else len(chosen)
        super().__init__(count, shards.crops, seed, share, masks)
        self.order = Order(count, shards.crops, seed, chosen)
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
      seed, share, masks: see `Batches`.
    """

    def __init__(
        self,
        collection: images_lib.Images,
        image_size: int,
        crop: str,
        seed: int,
        share: Share,
        masks: dict | None = None,
    ):
        super().__init__(len(collection), 1, seed, share, masks)
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


def open_tokens(config: ml_collections.ConfigDict, processes: Processes) -> TokenBatches:
    """Opens the token shards `config.data.tokens`, for masked modelling.

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
    if len(set(processes.each(shards.checksum))) > 1:
        raise ValueError(
            f"{config.data.tokens} holds other tokens on another machine; accepted: the same everywhere"
        )
    masks = masking.settings(config, shards.num_tokens)
    chosen = None
    if config.data.eval_share:
        chosen = np.flatnonzero(~_held_out(shards, config.data.eval_share))
    return TokenBatches(shards, config.seed, Share.of(config, processes), masks, chosen)


def open_held_out(
    config: ml_collections.ConfigDict, processes: Processes, training: Batches, like: dict[str, Any]
) -> TokenBatches | None:
    """Opens the tokens that a run is not trained on: `config.data.eval_tokens` or a share of its own.

    Args:
      config: of the run.
      processes: this process and its peers.
      training: the batches of the run.
      like: attributes of `TokenShards` that they must have, as what is trained on.

    Returns:
      Their batches, with the same masks in every run and no dropped labels; None: nothing is held out.

    Raises:
      FileNotFoundError, ValueError: they are not there, do not fit, or are what the run is trained on.
    """
    path, share = config.data.eval_tokens, config.data.eval_share
    if not path and not share:
        return None
    if path and share:
        raise ValueError(
            f"config.data: eval_tokens is {path!r} and eval_share {share}; accepted: one"
        )
    own = getattr(training, "shards", None)
    if share and own is None:
        raise ValueError("config.data.eval_share is of data.tokens; with images name eval_tokens")
    shards, chosen = own, None
    if path:
        shards = TokenShards.open(path)
        shards.require(image_size=config.image_size, **like)
        if own is not None and own.checksum == shards.checksum:
            raise ValueError(f"config.data.eval_tokens: {path} is what the run is trained on")
    else:
        chosen = np.flatnonzero(_held_out(shards, share))
    masks = masking.settings(config, shards.num_tokens) | {"label_drop_rate": 0.0}
    return TokenBatches(shards, 0, Share.of(config, processes), masks, chosen)


def _held_out(shards: TokenShards, share: float) -> np.ndarray:
    """bool [images]: a share of each class, at least one of its images and not all; always the same.

    Raises:
      ValueError: no class has two images.
    """
    labels = shards.labels(np.arange(shards.num_images))
    order = randomness.generator(0, "held out").permutation(len(labels))
    held = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        of_class = order[labels[order] == label]
        if len(of_class) > 1:
            count = min(max(1, round(share * len(of_class))), len(of_class) - 1)
            held[of_class[:count]] = True
    if not held.any():
        raise ValueError(
            f"config.data.eval_share is {share}; {shards.folder} has no class with two images"
        )
    return held


def open_images(
    config: ml_collections.ConfigDict, processes: Processes, num_tokens: int | None = None
) -> ImageBatches:
    """Opens the images `config.data.images`.

    Args:
      config: of the run.
      processes: this process and its peers.
      num_tokens: of an image, for masked modelling; None: no masks.

    Raises:
      FileNotFoundError, ValueError: they are not there, or do not fit the settings.
    """
    data = config.data
    settings.check_choice(config, "data.crop", images_lib.CROPS)
    if not data.images:
        raise ValueError(
            "config.data.images is not set; accepted: a folder with one subfolder for each class, ImageNet "
            "as Kaggle has it (with config.data.split), or WebDataset tar files"
        )
    # Once, and the same for all: the order of the images must not differ between machines.
    collection = processes.on_first(lambda: images_lib.open_images(data.images, data.split or None))
    if processes.is_main and collection.left_out:
        print(f"{data.images}: {collection.left_out}", file=sys.stderr)
    if processes.is_main:
        images_lib.warn_of_enlarging(collection, config.image_size, data.images)
    _check_labels(config, len(collection.class_names), data.images)
    masks = masking.settings(config, num_tokens) if num_tokens else None
    share = Share.of(config, processes)
    return ImageBatches(collection, config.image_size, data.crop, config.seed, share, masks)


def _check_labels(config: ml_collections.ConfigDict, found: int, where: str) -> None:
    if config.get("num_class") and found > config.num_class:
        raise ValueError(
            f"{where} has {found} classes, labels 0 to {found - 1}; config.num_class is "
            f"{config.num_class}"
        )
