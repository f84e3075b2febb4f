"""Times the data path: rows from token shards in random order, and the parts of tokenizing.

    python benchmarks/data.py                                    # needs 1.4 GB of disk for a minute
    python benchmarks/data.py --device=cuda --dtype=bfloat16 --batch_size=64 --crops_encoded=2048

Shards: a seeded set of the size of ImageNet (1.28M images x 2 crops of 256 tokens) is written, opened and
read in random order by one thread, each row against its checksum. Memory is what the process holds beside
its imports at the end. The set has just been written: with enough memory the system still caches it, as it
does in training after the first epoch.

Tokenizing: reading (JPEG decoding and two crops, one process; 500 x 375 pixels, ImageNet's median) and
encoding (the published tokenizer with random weights), each alone. With R images/s read by one process and
E encoded, E / R workers are needed for either not to wait.
"""

import io
import os
import sys
import tempfile
import time
from pathlib import Path

import ml_collections
import numpy as np
import torch
from absl import flags
from PIL import Image

ROOT = str(Path(__file__).resolve().parent.parent)
sys.path[:] = [ROOT] + [path for path in sys.path if path != ROOT]  # runs from a plain checkout

from maskgit_pt import command_line as cl  # noqa: E402
from maskgit_pt.configs import vqgan_config  # noqa: E402
from maskgit_pt.nets.vqgan_tokenizer import VQVAE  # noqa: E402
from train.data import images as images_lib  # noqa: E402
from train.data.encoding import Encoder  # noqa: E402
from train.data.image_base import decode  # noqa: E402
from train.data.tokens import ShardWriter, TokenShards  # noqa: E402
from train.randomness import generator  # noqa: E402

FLAGS = flags.FlagValues()
flags.DEFINE_integer("images", 1_280_000, "Images of the set of shards.", 1, flag_values=FLAGS)
flags.DEFINE_integer("image_size", 256, "Pixels along one side.", 16, flag_values=FLAGS)
flags.DEFINE_string("folder", None, "Where to put it. Default: the system's.", flag_values=FLAGS)
flags.DEFINE_float("seconds", 5.0, "For each figure.", 0.1, flag_values=FLAGS)
flags.DEFINE_integer("crops_encoded", 4, "Crops to encode; 0 for none.", 0, flag_values=FLAGS)
flags.DEFINE_integer("batch_size", 8, "Crops in one call.", 1, flag_values=FLAGS)
flags.DEFINE_string("device", "cpu", "cpu or cuda.", flag_values=FLAGS)
flags.DEFINE_enum(
    "dtype", "float32", ["float32", "bfloat16"], "Of the tokenizer.", flag_values=FLAGS
)

_PER_SHARD, _CROPS = 10_000, 2


def main() -> int:
    """Prints one line a figure."""
    with tempfile.TemporaryDirectory(dir=FLAGS.folder) as folder:
        _time_shards(folder)
    _time_reading()
    if FLAGS.crops_encoded:
        _time_encoding()
    return 0


def _show(what: str, value: float, unit: str) -> None:
    print(f"{what:<58}{value:>12,.1f} {unit}", flush=True)


def _memory() -> float:
    """MB that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def _time_shards(folder: str) -> None:
    rng = np.random.default_rng(0)
    side = FLAGS.image_size // 16
    start = time.perf_counter()
    writer = ShardWriter(
        folder, grid=(side, side), crops=_CROPS, codebook_size=1024, image_size=FLAGS.image_size,
        class_names=[str(i) for i in range(1000)], tokenizer="0" * 64,
    )  # fmt: skip
    counts = [_PER_SHARD] * (FLAGS.images // _PER_SHARD) + [FLAGS.images % _PER_SHARD]
    counts = [count for count in counts if count]
    for number, count in enumerate(counts):
        tokens = rng.integers(0, 1024, (count, _CROPS, side * side), dtype=np.uint16)
        writer.write(number, tokens, rng.integers(0, 1000, count))
    writer.finish(len(counts))
    del tokens
    _show(
        f"{FLAGS.images:,} images x {_CROPS} crops: made and written",
        time.perf_counter() - start,
        "s",
    )
    before, start = _memory(), time.perf_counter()
    shards = TokenShards.open(folder)
    _show("opened", 1e3 * (time.perf_counter() - start), "ms")
    start = time.perf_counter()
    shards.labels([0])
    _show("all labels read and checked", 1e3 * (time.perf_counter() - start), "ms")
    for size in (64, 256, 2048):
        rows, start = 0, time.perf_counter()
        while time.perf_counter() - start < FLAGS.seconds:
            images = rng.integers(0, shards.num_images, size)
            shards.tokens(images, rng.integers(0, _CROPS, size))
            shards.labels(images)
            rows += size
        speed = rows / (time.perf_counter() - start)
        _show(f"random rows and labels, {size} a call", speed, "rows/s")
    _show("memory beside the imports", _memory() - before, "MB")
    start = time.perf_counter()
    shards.verify(progress=False)
    _show("every byte verified", time.perf_counter() - start, "s")


def _time_reading() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (24, 32, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((500, 375), Image.Resampling.BICUBIC).save(
        buffer, "JPEG", quality=95
    )
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < FLAGS.seconds:
        picture = decode(buffer.getvalue(), "picture")
        for number in range(_CROPS):
            images_lib.crop(
                picture, FLAGS.image_size, "random+flip", generator(0, "crop", count, number)
            )
        count += 1
    speed = count / (time.perf_counter() - start)
    _show(f"reading: images decoded and cropped {_CROPS} times", speed, "images/s, one process")


def _time_encoding() -> None:
    config: ml_collections.ConfigDict = vqgan_config.get_config()
    tokenizer = VQVAE(config).eval().to(FLAGS.device, getattr(torch, FLAGS.dtype))
    encoder = Encoder(tokenizer, FLAGS.batch_size, len(os.sched_getaffinity(0)))
    size = FLAGS.image_size
    images = torch.randint(0, 256, (FLAGS.crops_encoded, size, size, 3), dtype=torch.uint8)
    encoder.start(images[: FLAGS.batch_size])()
    start = time.perf_counter()
    for part in images.split(FLAGS.batch_size):
        encoder.start(part)()
    speed = len(images) / (time.perf_counter() - start)
    _show(f"encoding, {FLAGS.device} {FLAGS.dtype}", speed, "crops/s")
    _show(f"  = images with {_CROPS} crops", speed / _CROPS, "images/s")


if __name__ == "__main__":
    sys.exit(cl.run(main, FLAGS, "python benchmarks/data.py", __doc__))
