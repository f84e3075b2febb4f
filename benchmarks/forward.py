"""Times the networks' forward passes on the CPU: the official JAX code, jitted, against ours.

    python benchmarks/forward.py --official=CHECKOUT
    python benchmarks/forward.py --sizes=256,512 --batch_sizes=1 --dtypes=float32   # ours alone

CHECKOUT is a clone of github.com/google-research/maskgit; needs the extra 'jax'. The networks have
the published sizes and random weights (the time does not depend on them). Measured are

- transformer: class token and image tokens -> logits of the whole vocabulary;
- encode: images -> token indices; decode: token indices -> images.

JAX computes in float32 (its CPU default), compiled by `jax.jit` with the weights as arguments, and is
waited for. Ours is called eagerly, as a user would, under `torch.inference_mode`; --compile adds a
column for `torch.compile`. Both use as many threads as the machine offers.

Within a case all candidates take turns, one call each, so that a slower or faster minute of the
machine meets all of them alike; the order is drawn anew every round, and a short pause before each call
lets the threads of the one before come to rest. The table gives medians, their ratio to JAX (below 1:
ours is faster), and the share of the rate that this machine reaches on a plain matrix product of the
same dtype, timed in the same run. Repeat on a machine that does nothing else: a busy core shifts ratios.
"""

import random
import statistics
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path

import torch
from absl import flags

ROOT = str(Path(__file__).resolve().parent.parent)
sys.path[:] = [ROOT] + [path for path in sys.path if path != ROOT]  # runs from a plain checkout

from maskgit_pt import VQVAE, Transformer  # noqa: E402
from maskgit_pt import command_line as cl  # noqa: E402
from maskgit_pt.configs import maskgit_class_cond_config  # noqa: E402

FLAGS = flags.FlagValues()
flags.DEFINE_string(
    "official",
    None,
    "A checkout of google-research/maskgit; without it ours alone is timed.",
    flag_values=FLAGS,
)
flags.DEFINE_list("nets", ["transformer", "encode", "decode"], "What to time.", flag_values=FLAGS)
flags.DEFINE_list("sizes", ["256"], "Pixels along one side: 256, 512 or both.", flag_values=FLAGS)
flags.DEFINE_list("batch_sizes", ["1", "8"], "Samples in one call.", flag_values=FLAGS)
flags.DEFINE_list(
    "dtypes", ["float32", "bfloat16"], "Of our weights and activations.", flag_values=FLAGS
)
flags.DEFINE_integer("repeats", 15, "Timed calls per candidate.", 1, flag_values=FLAGS)
flags.DEFINE_bool("compile", False, "Time torch.compile as well.", flag_values=FLAGS)

# Multiplications and additions per sample, in units of 1e9.
GFLOP = {
    256: {"transformer": 92.9, "encode": 128.6, "decode": 186.5},
    512: {"transformer": 428.5, "encode": 514.5, "decode": 746.2},
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PAUSE = 0.02  # seconds; longer than either runtime's threads spin before they sleep

Call = Callable[[], object]


def main() -> None:
    nets = choices(FLAGS, "nets", GFLOP[256])
    sizes = [int(size) for size in choices(FLAGS, "sizes", [str(size) for size in GFLOP])]
    dtypes = choices(FLAGS, "dtypes", DTYPES)
    batch_sizes = [positive(text) for text in FLAGS.batch_sizes]
    rates = {dtype: _matrix_rate(DTYPES[dtype]) for dtype in dtypes}
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads; matrix product: "
        + ", ".join(f"{dtype} {rate / 1e9:.0f} GFLOP/s" for dtype, rate in rates.items())
    )
    print(
        f"{'case':<28} {'candidate':<22} {'ms':>9} {'x JAX':>7} {'of matrix rate':>15}", flush=True
    )
    for size in sizes:
        models = _our_models(size, dtypes)
        jax_nets = JaxNets(FLAGS.official, size) if FLAGS.official else None
        for net in nets:
            for batch_size in batch_sizes:
                inputs = _inputs(net, size, batch_size)
                candidates = {"JAX float32": jax_nets.call(net, inputs)} if jax_nets else {}
                candidates |= _our_calls(net, inputs, models)
                work = GFLOP[size][net] * 1e9 * batch_size
                _print_case(f"{net} {size} px, batch {batch_size}", candidates, work, rates)


def choices(values: flags.FlagValues, flag: str, accepted: Collection[str]) -> list[str]:
    """The values of a list flag; UsageError unless each is accepted."""
    for value in values[flag].value:
        if value not in accepted:
            raise cl.UsageError(f"--{flag}: {value!r}; accepted: {', '.join(accepted)}")
    return values[flag].value


def positive(text: str) -> int:
    """A batch size; UsageError unless it is a positive number."""
    if not text.isdecimal() or int(text) < 1:
        raise cl.UsageError(f"--batch_sizes: {text!r} is not a positive number")
    return int(text)


def config_of(size: int):
    config = maskgit_class_cond_config.get_config()
    config.image_size = size
    return config


def transformer_arguments(size: int) -> dict[str, int]:
    config = config_of(size)
    return {
        "vocab_size": config.vqvae.codebook_size + config.num_class + 1,
        "hidden_size": config.transformer.num_embeds,
        "num_hidden_layers": config.transformer.num_layers,
        "num_attention_heads": config.transformer.num_heads,
        "intermediate_size": config.transformer.intermediate_size,
        "max_position_embeddings": (size // config.transformer.patch_size) ** 2 + 1,
    }


def _inputs(net: str, size: int, batch_size: int) -> torch.Tensor:
    """Seeded input: ids int64 [B, N], images float32 [B, 3, H, W] or indices int64 [B, h, w]."""
    torch.manual_seed(0)
    side = size // 16
    if net == "transformer":
        return torch.randint(-1, 1024, (batch_size, side * side + 1))
    if net == "encode":
        return torch.rand(batch_size, 3, size, size)
    return torch.randint(0, 1024, (batch_size, side, side))


def _our_models(size: int, dtypes: list[str]) -> dict[str, dict[str, torch.nn.Module]]:
    models = {}
    for dtype in dtypes:
        transformer = Transformer(**transformer_arguments(size)).to(DTYPES[dtype]).eval()
        tokenizer = VQVAE(config_of(size)).to(DTYPES[dtype]).eval()
        models[dtype] = {"transformer": transformer, "tokenizer": tokenizer}
    return models


def _our_calls(net: str, inputs: torch.Tensor, models: dict) -> dict[str, Call]:
    calls = {}
    for dtype, model in models.items():
        x = inputs.to(DTYPES[dtype]) if net == "encode" else inputs
        function = {
            "transformer": model["transformer"],
            "encode": model["tokenizer"].encode_to_indices,
            "decode": model["tokenizer"].decode_from_indices,
        }[net]
        calls[f"ours {dtype}"] = _bind(function, x)
        if FLAGS.compile:
            calls[f"compiled {dtype}"] = _bind(torch.compile(function), x)
    return calls


def _bind(function: Callable, x: torch.Tensor) -> Call:
    def call() -> object:
        with torch.inference_mode():
            return function(x)

    return call


class JaxNets:
    """The official networks with random weights."""

    def __init__(self, checkout: str, size: int):
        import jax

        from parity import official

        code = official.load(checkout)
        self.transformer = code.transformer(transformer_arguments(size))
        self.tokenizer = code.tokenizer(config_of(size))
        # Small inputs: the weights' shapes do not depend on them.
        ids = jax.numpy.zeros((1, (size // 16) ** 2 + 1), int)
        self.transformer_weights = jax.jit(self.transformer.init)(jax.random.PRNGKey(0), ids)
        self.tokenizer_weights = jax.jit(self._init_tokenizer)(jax.random.PRNGKey(0))

    def _init_tokenizer(self, key):
        import jax.numpy as jnp

        def both(module):  # the official __call__ does not run
            return module.decode(module.encode({"image": jnp.zeros((1, 32, 32, 3))})[0])

        return self.tokenizer.init(key, method=both)

    def call(self, net: str, inputs: torch.Tensor) -> Call:
        import jax

        if net == "transformer":
            module, weights, method = self.transformer, self.transformer_weights, None
        else:
            method = {"encode": "encode_to_indices", "decode": "decode_from_indices"}[net]
            module, weights = self.tokenizer, self.tokenizer_weights
        x = inputs.permute(0, 2, 3, 1) if net == "encode" else inputs  # NHWC
        x = jax.numpy.asarray(x.contiguous().numpy())
        function = jax.jit(lambda weights, x: module.apply(weights, x, method=method))
        return lambda: function(weights, x).block_until_ready()


def _matrix_rate(dtype: torch.dtype, size: int = 2048) -> float:
    """Floating-point operations per second of the best of 10 square matrix products."""
    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
    times = [_seconds(lambda: a @ b) for _ in range(12)]
    return 2 * size**3 / min(times[2:])


def _seconds(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _medians(candidates: dict[str, Call], repeats: int) -> dict[str, float]:
    """Seconds by candidate, timed in turns."""
    for call in candidates.values():  # compiling, and the first pages of memory
        call()
        call()
    times = {name: [] for name in candidates}
    order = list(candidates)
    for _ in range(repeats):
        random.shuffle(order)
        for name in order:
            time.sleep(PAUSE)
            times[name].append(_seconds(candidates[name]))
    return {name: statistics.median(values) for name, values in times.items()}


def _print_case(case: str, candidates: dict[str, Call], work: float, rates: dict) -> None:
    medians = _medians(candidates, FLAGS.repeats)
    for name, seconds in medians.items():
        ratio = f"{seconds / medians['JAX float32']:.2f}" if "JAX float32" in medians else ""
        rate = rates.get(name.split()[1])
        share = f"{work / seconds / rate:.0%}" if rate else ""
        print(f"{case:<28} {name:<22} {seconds * 1e3:9.1f} {ratio:>7} {share:>15}", flush=True)


if __name__ == "__main__":
    sys.exit(cl.run(main, FLAGS, "python benchmarks/forward.py", __doc__))
