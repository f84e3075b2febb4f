"""Times JAX's noise in PyTorch against the network whose tokens it draws, on the CPU.

    python benchmarks/jax_random.py
    python benchmarks/jax_random.py --batch_size=1 --size=512 --dtypes=float32

A decoding step draws noise for every token and vocabulary entry, [batch, tokens, 1024], and once per
token for the confidences, and splits a key. Printed are medians of these together per layout of JAX's
random streams, their processor time (which other programs on the machine hardly change), and both
beside one forward pass of the transformer of the published size with random weights. Calls take turns.
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from absl import flags

ROOT = str(Path(__file__).resolve().parent.parent)
sys.path[:] = [ROOT] + [path for path in sys.path if path != ROOT]  # runs from a plain checkout

from maskgit_pt import Transformer  # noqa: E402
from maskgit_pt import command_line as cl  # noqa: E402
from maskgit_pt.libml import jax_random  # noqa: E402

FLAGS = flags.FlagValues()
flags.DEFINE_integer("batch_size", 8, "Samples in one call.", 1, flag_values=FLAGS)
flags.DEFINE_enum("size", "256", ["256", "512"], "Pixels along one side.", flag_values=FLAGS)
flags.DEFINE_multi_enum(
    "dtypes",
    ["float32", "bfloat16"],
    ["float32", "bfloat16"],
    "Of the network's weights.",
    flag_values=FLAGS,
)
flags.DEFINE_integer("repeats", 7, "Timed calls of each.", 1, flag_values=FLAGS)

CODEBOOK = 1024
VOCABULARY = CODEBOOK + 1000 + 1
Times = tuple[float, float]  # wall clock and processor, in seconds


def main() -> None:
    tokens = (int(FLAGS.size) // 16) ** 2 + 1
    calls = {
        f"noise, {name} layout": _noise((FLAGS.batch_size, tokens, CODEBOOK), partitionable)
        for name, partitionable in (("original", False), ("partitionable", True))
    }
    networks = {
        f"transformer {dtype}": _forward((FLAGS.batch_size, tokens), dtype)
        for dtype in FLAGS.dtypes
    }
    medians = _medians(calls | networks, FLAGS.repeats)
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, "
        f"batch {FLAGS.batch_size}, {FLAGS.size} px"
    )
    shares = "".join(f"{'of ' + name:>27}" for name in networks)
    print(f"{'':<28}{'ms':>9}{'CPU ms':>9}{shares}")
    for name, (wall, processor) in medians.items():
        shares = "".join(f"{wall / medians[network][0]:>27.1%}" for network in networks)
        print(f"{name:<28}{wall * 1e3:9.1f}{processor * 1e3:9.1f}{shares if name in calls else ''}")


def _noise(shape: tuple[int, ...], partitionable: bool) -> Callable[[], object]:
    """The random numbers of one step of decoding."""
    key = jax_random.PRNGKey(0, partitionable)

    def call() -> object:
        rng, sample_rng = jax_random.split(key)
        return jax_random.gumbel(sample_rng, shape), jax_random.gumbel(rng, shape[:-1])

    return call


def _forward(shape: tuple[int, int], dtype: str) -> Callable[[], object]:
    torch.manual_seed(0)
    network = Transformer(VOCABULARY, max_position_embeddings=shape[1])
    network = network.to(getattr(torch, dtype)).eval()
    tokens = torch.randint(-1, CODEBOOK, shape)

    def call() -> object:
        with torch.inference_mode():
            return network(tokens)

    return call


def _medians(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, Times]:
    times = {name: [] for name in calls}
    for repeat in range(repeats + 1):
        for name, call in calls.items():
            wall, processor = time.perf_counter(), time.process_time()
            call()
            if repeat:  # the first call warms up
                spent = time.perf_counter() - wall, time.process_time() - processor
                times[name].append(spent)
    return {
        name: tuple(statistics.median(column) for column in zip(*values, strict=True))
        for name, values in times.items()
    }


if __name__ == "__main__":
    sys.exit(cl.run(main, FLAGS, "python benchmarks/jax_random.py", __doc__))
