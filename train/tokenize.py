"""Command line: `maskgit-tokenize`, images into token shards."""

import collections
import functools
import io
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from absl import flags
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from maskgit_pt import command_line, launch
from maskgit_pt.command_line import UsageError
from maskgit_pt.files import printable, refuse_others
from maskgit_pt.launch import Processes
from maskgit_pt.networks import TOKENIZERS, size_for
from maskgit_pt.pretrained import load_any
from maskgit_pt.utils import visualize_images
from train.data import images as images_lib
from train.data.encoding import Encoder, cpu_rows
from train.data.shard_files import write_file
from train.data.tokens import ShardWriter, TokenShards, tokenizer_fingerprint
from train.randomness import generator

PROGRAM = "maskgit-tokenize"
USAGE = """\
Turns labelled images into token shards, which training reads.

  maskgit-tokenize --images=imagenet/train --tokenizer=tokenizer256 --output=tokens256
  maskgit-tokenize --images=KAGGLE_DOWNLOAD --split=train --tokenizer=tokenizer256 \\
      --crops=10 --crop=random+flip --dtype=bfloat16 --output=tokens256
  maskgit-tokenize --images='shards/imagenet-train-{0000..1023}.tar' \\
      --tokenizer=tokenizer_imagenet256_checkpoint --output=tokens256
  maskgit-tokenize --verify=tokens256

Images are a folder that has one subfolder for each class (ImageFolder), the Kaggle download of ImageNet, or
uncompressed tar files in WebDataset's layout (key.jpg beside key.cls or key.json). Writes into --output the
tokens and labels as NumPy files, manifest.json, and preview.png: crops, each beside what the tokenizer makes
of it.

Interrupted at any moment, the same command goes on from the finished shards; other settings, another
tokenizer or other images are refused. A damaged image is named on standard error and in the manifest, and
left out. Under torchrun (--no-python maskgit-tokenize ...) the processes share the shards. Crop c
of image i depends on --seed, i and c alone; on a CPU the files are the same bytes for any number of
processes, workers and threads and any batch size."""

FLAGS = flags.FlagValues()
string = functools.partial(flags.DEFINE_string, flag_values=FLAGS)
integer = functools.partial(flags.DEFINE_integer, flag_values=FLAGS)
enum = functools.partial(flags.DEFINE_enum, flag_values=FLAGS)

string("images", None, "A folder, a tar file, or a pattern of tar files.")
string("split", None, "A part of it: train, val, ...")
integer("num_classes", None, "Classes there must be. Tar files do not tell; default there: the highest "
        "label and one.", lower_bound=1)  # fmt: skip
string(
    "tokenizer",
    None,
    "A folder, a file of any format in 'maskgit-convert --list', or a Hugging Face hub id.",
)
string("output", None, "Folder for the shards.")
integer(
    "image_size",
    None,
    "Pixels along one side. Default: as the tokenizer was trained.",
    lower_bound=1,
)
integer("crops", 2, "Crops of each image to store.", lower_bound=1)
enum(
    "crop",
    "random+flip",
    images_lib.CROPS,
    f"Which part of an image: {', '.join(images_lib.CROPS)}.",
)
integer("seed", 0, "Of the crops.", lower_bound=0)
integer("shard_size", 10_000, "Images in a shard: what an interruption can lose.", lower_bound=1)
integer("batch_size", None, "Crops encoded at a time, in each process. Default: 64; on a CPU 8 of 256 px, "
        "more of smaller ones.", lower_bound=1)  # fmt: skip
string("device", None, "cpu, cuda, cuda:1, ... Default: cuda if there is one.")
enum("dtype", "float32", ["float32", "tfloat32", "bfloat16"],
     "Precision of the tokenizer. The two others are faster on a GPU, and change a few tokens.")  # fmt: skip
integer("workers", None, "Processes that read images, for each process that encodes; 0: that one itself. "
        "Default: a core each, at most 16; on a CPU 1.", lower_bound=0)  # fmt: skip
integer("threads", None, "On a CPU: images encoded at a time. Default: all cores.", lower_bound=1)
integer("preview", 16, "Images in preview.png; 0 for none.", lower_bound=0)
string("verify", None, "Only check a folder of shards, every byte of it.")

PREVIEW_NAME = "preview.png"


def main() -> int:
    """Tokenizes or verifies, as the flags ask for."""
    if FLAGS.verify is not None:
        return _verify()
    _check_usage()
    device = _device()
    with Processes() as processes:
        with launch.out_of_memory(device, f"--batch_size={_batch_size(device)}"):
            return _tokenize(processes, device)


def _verify() -> int:
    shards = TokenShards.open(FLAGS.verify)
    shards.verify()
    print(f"{FLAGS.verify}: {_summary(shards)}; every checksum is right")
    return 0


def _check_usage() -> None:
    for name in ("images", "tokenizer", "output"):
        if not FLAGS[name].value:
            raise UsageError(f"--{name} is missing")
    if FLAGS.crop == "center" and FLAGS.crops > 1:
        raise UsageError(
            f"--crops={FLAGS.crops} center crops would be the same; accepted: --crops=1"
        )


def _device() -> torch.device:
    device = launch.pick_device(FLAGS.device)
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = FLAGS.dtype == "tfloat32"
        torch.backends.cuda.matmul.allow_tf32 = FLAGS.dtype == "tfloat32"
    elif FLAGS.dtype == "tfloat32":
        raise ValueError(f"--dtype=tfloat32 is for GPUs; accepted on {device}: float32, bfloat16")
    return device


def _tokenize(processes: Processes, device: torch.device) -> int:
    started = time.monotonic()
    images = processes.on_first(_open_images)  # once, and the same for all
    tokenizer = load_any(FLAGS.tokenizer, TOKENIZERS)
    settings = _settings(images, tokenizer)
    if processes.is_main:
        images_lib.warn_of_enlarging(images, settings["image_size"], FLAGS.images)
        if images.left_out:
            _say(f"{FLAGS.images}: {images.left_out}")
    writer, missing = _take_up(settings, -(-len(images) // FLAGS.shard_size), processes)
    dtype = torch.bfloat16 if FLAGS.dtype == "bfloat16" else torch.float32
    tokenizer = tokenizer.to(device, dtype)
    encoder = Encoder(tokenizer, _batch_size(device), FLAGS.threads or _cores())
    _make_shards(images, writer, encoder, missing, processes)
    processes.barrier()
    if processes.is_main:
        writer.finish(-(-len(images) // FLAGS.shard_size))
        shards = TokenShards.open(FLAGS.output)
        _save_preview(images, shards, encoder)
        seconds = time.monotonic() - started
        print(f"{FLAGS.output}: {_summary(shards)}; {len(missing)} shards made in {seconds:.1f} s")
    return 0


def _open_images() -> images_lib.Images:
    images_lib.check_apart(FLAGS.output, FLAGS.images)
    refuse_others(Path(FLAGS.output), "token shards")
    return images_lib.open_images(FLAGS.images, FLAGS.split, FLAGS.num_classes)


def _settings(images: images_lib.Images, tokenizer: nn.Module) -> dict[str, Any]:
    """All that the shards depend on: the arguments of `ShardWriter`."""
    patch = tokenizer.downsampling
    size = size_for(tokenizer, FLAGS.tokenizer, FLAGS.image_size)
    if size % patch:
        raise ValueError(
            f"--image_size={size}; accepted: multiples of {patch}, the tokenizer's patch"
        )
    preprocessing = images_lib.describe_crop(FLAGS.crop)
    preprocessing |= {"seed": FLAGS.seed, "dtype": FLAGS.dtype}
    return {
        "grid": (size // patch, size // patch),
        "crops": FLAGS.crops,
        "codebook_size": len(tokenizer.get_codebook_funct()),
        "class_names": images.class_names,
        "image_size": size,
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "preprocessing": preprocessing,
        "source": {
            "images": len(images),
            "images_per_shard": FLAGS.shard_size,
            "names_and_labels": images.fingerprint(),
        },
    }


def _take_up(
    settings: dict[str, Any], count: int, processes: Processes
) -> tuple[ShardWriter, list[int]]:
    """The folder, and which of its shards are still to be made."""
    writers = []

    def look() -> list[int]:
        writers.append(ShardWriter(FLAGS.output, **settings))
        missing = writers[0].missing(count)
        if len(missing) < count:
            kept = count - len(missing)
            _say(f"{FLAGS.output}: {kept} of {count} shards are there already, and whole")
        return missing

    missing = processes.on_first(look)
    if not processes.is_main:
        writers.append(ShardWriter(FLAGS.output, **settings, leader=False))
    return writers[0], missing


def _make_shards(
    images: images_lib.Images, writer: ShardWriter, encoder: Encoder, missing: list[int],
    processes: Processes,
) -> None:  # fmt: skip
    """Reads, encodes and writes this process's shards; reading is ahead of encoding, that of writing."""
    rank, world = processes.rank, processes.world_size
    numbers = missing[rank::world]
    size = writer.settings["image_size"]
    per_batch = max(1, _batch_size(encoder.device, size) // FLAGS.crops)
    batches = _Batches(images, numbers, per_batch, size)
    workers = _workers(encoder.device) if len(batches) else 0
    loader = DataLoader(batches, batch_size=None, num_workers=workers)
    total = sum(stop - start for _, start, stop, _ in batches.spans)
    title = f"process 0 of {world}" if world > 1 else None
    shard = _Shard(images)
    started: collections.deque = collections.deque()
    pause = 0.1 if sys.stderr.isatty() else 60  # seconds between lines of a log
    with tqdm(total=total, unit="img", desc=title, disable=rank != 0, mininterval=pause) as bar:

        def finish_one() -> None:
            (number, start, stop, last), item, tokens = started.popleft()
            shard.add(item, tokens())
            bar.update(stop - start)
            if last:
                writer.write(number, *shard.take())

        for span, item in zip(batches.spans, loader, strict=True):
            if isinstance(item, Exception):
                raise item
            for damaged in item["damaged"]:
                _say(f"damaged, left out: {damaged['name']}: {damaged['reason']}")
            started.append((span, item, encoder.start(item["pixels"])))
            if len(started) > 1:
                finish_one()
        while started:
            finish_one()


class _Batches(Dataset):
    """Consecutive images, cropped; a batch never spans two shards, so that it is always the same.

    An item is a dict: "pixels" uint8 [n * crops, S, S, 3], "images" (the n numbers of those that could be
    read), "damaged" (what the manifest says of the others); or the exception that ended reading.

    Args:
      images: the collection.
      numbers: of the shards to make.
      per_batch: images in an item.
      size: of the crops, pixels along one side.

    Attributes:
      spans: (shard, first image, image after the last, whether it is the shard's last batch) of each item.
    """

    def __init__(self, images: images_lib.Images, numbers: list[int], per_batch: int, size: int):
        self.images = images
        self.crops, self.crop = FLAGS.crops, FLAGS.crop
        self.size, self.seed = size, FLAGS.seed
        self.spans: list[tuple[int, int, int, bool]] = []
        for number in numbers:
            first = number * FLAGS.shard_size
            end = min(first + FLAGS.shard_size, len(images))
            for start in range(first, end, per_batch):
                stop = min(start + per_batch, end)
                self.spans.append((number, start, stop, stop == end))

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, index: int) -> dict[str, Any] | Exception:
        _, start, stop, _ = self.spans[index]
        crops, kept, damaged = [], [], []
        for image in range(start, stop):
            try:
                crops += self.read(image)
                kept.append(image)
            except images_lib.DamagedImage as error:
                damaged.append({"image": image, "name": error.name, "reason": error.reason})
            except (OSError, ValueError) as error:  # returned, as a loader buries it in a traceback
                return error
        shape = (0, self.size, self.size, 3)
        pixels = np.stack(crops) if crops else np.empty(shape, np.uint8)
        return {"pixels": torch.from_numpy(pixels), "images": kept, "damaged": damaged}

    def read(self, image: int) -> list[np.ndarray]:
        """The crops of one image."""
        picture = self.images.read(image)
        return [
            images_lib.crop(
                picture, self.size, self.crop, generator(self.seed, "crop", image, number)
            )
            for number in range(self.crops)
        ]


class _Shard:
    """What is known of the shard that is being made."""

    def __init__(self, images: images_lib.Images):
        self._images = images
        self._tokens: list[np.ndarray] = []
        self._kept: list[int] = []
        self._damaged: list[dict[str, Any]] = []

    def add(self, item: dict[str, Any], tokens: np.ndarray) -> None:
        """Adds a batch: what `_Batches` gave, and tokens [n * crops, h*w]."""
        self._tokens.append(tokens)
        self._kept += item["images"]
        self._damaged += item["damaged"]

    def take(self) -> tuple[np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Tokens, labels and damaged images; starts the next shard."""
        tokens = np.concatenate(self._tokens)
        tokens = tokens.reshape(len(self._kept), FLAGS.crops, tokens.shape[-1])
        result = tokens, self._images.labels[self._kept], self._damaged
        self.__init__(self._images)
        return result


def _save_preview(images: images_lib.Images, shards: TokenShards, encoder: Encoder) -> None:
    """Crops from all over the set, each beside its reconstruction."""
    path = Path(FLAGS.output) / PREVIEW_NAME
    count = min(FLAGS.preview, shards.num_images)
    if path.exists() or count == 0:
        return
    rows = np.linspace(0, shards.num_images - 1, count).astype(np.int64)
    damaged = [image["image"] for image in shards.damaged]
    numbers = np.delete(np.arange(len(images)), damaged)[rows]
    batches = _Batches(images, [], 1, shards.image_size)
    originals = torch.from_numpy(np.stack([batches.read(int(number))[0] for number in numbers]))
    originals = originals.movedim(-1, 1) / 255
    tokens = torch.from_numpy(shards.tokens(rows, np.zeros_like(rows)).astype(np.int64))
    rebuilt = encoder.decode(tokens.unflatten(1, shards.grid))
    pairs = torch.stack([originals, rebuilt], 1).flatten(0, 1)
    picture = visualize_images(pairs, columns=min(8, 2 * count), enlarge=True)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    write_file(path, buffer.getvalue())


def _summary(shards: TokenShards) -> str:
    damaged = f", {len(shards.damaged)} damaged ones left out" if shards.damaged else ""
    return (
        f"{shards.num_images} images of {shards.num_classes} classes{damaged}, {shards.crops} crops of "
        f"{shards.num_tokens} tokens each"
    )


def _say(text: str) -> None:
    tqdm.write(f"{PROGRAM}: {printable(text)}", file=sys.stderr)


def _batch_size(device: torch.device, image_size: int = 256) -> int:
    if FLAGS.batch_size or device.type != "cpu":
        return FLAGS.batch_size or 64
    return max(8, 4 * cpu_rows(image_size**2))  # so that several threads have a call each


def _cores() -> int:
    """For each of the processes on this machine."""
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def _workers(device: torch.device) -> int:
    if FLAGS.workers is not None:
        return FLAGS.workers
    return 1 if device.type == "cpu" else min(16, _cores())


def cli(argv: Sequence[str] | None = None) -> int:
    """Entry point of `maskgit-tokenize`."""
    return command_line.run(main, FLAGS, PROGRAM, USAGE, argv)


if __name__ == "__main__":
    sys.exit(cli())
