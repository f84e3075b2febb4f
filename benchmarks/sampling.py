"""Times sampling end to end: all decoding steps and the tokenizer's decoding, class ids -> pictures.

    python benchmarks/sampling.py                                      # ours alone, on the CPU
    python benchmarks/sampling.py --official=CHECKOUT --besnier=CHECKOUT
    python benchmarks/sampling.py --device=cuda --compile --batch_sizes=1,64 --sizes=256,512 \\
        --guidance=3 --official=CHECKOUT

The last one measures everything on a GPU: both resolutions, latency and throughput, both dtypes, eager
and compiled, with and without guidance, next to the official JAX code on the same GPU. Compiling takes
a minute or more a candidate; --seconds bounds the rest.

The networks have the published sizes and random weights (the time does not depend on them).

- ours: `MaskGIT.generate` with its own noise; with --guidance=W once without guidance and once with W,
  rising linearly. --compile adds `MaskGIT.compile()` (on a GPU: with CUDA graphs).
- JAX (--official: a clone of github.com/google-research/maskgit; needs the extra 'jax'): its
  `parallel_decode.decode` around its transformer, and its tokenizer, in one `jax.jit` with the weights
  as arguments, on whatever device JAX finds. It knows no guidance. In float32, which on a GPU means
  TensorFloat-32 products in JAX; in PyTorch it means so for convolutions only.
- Besnier (--besnier: a clone of github.com/valeoai/Maskgit-pytorch at tag v1.0, the code of the 2023
  report): its `MaskGIT.sample` on its networks, with the same guidance. It computes in float32 on a CPU and
  under float16 autocast (the transformer) on a GPU. Its transformer does the work of the official one, its
  tokenizer more, so that it gets no share of the matrix rate.

All end with the pictures in the host's memory. Candidates take turns, in an order drawn anew every round;
the table gives medians:

- images/s; ms of the call (at batch 1 the latency of an image); images/s divided by those of JAX;
- GiB, on a GPU: the candidate's weights and the most PyTorch allocated above them, in its warm-up; not
  known for JAX and on a CPU;
- the share of the rate that this machine reaches on a plain matrix product of the same dtype, the best of
  a few sizes, timed in the same run. Counted is the work of the published networks: 92.9 GFLOP a
  transformer pass at 256 px and 428.5 at 512 px, two passes a step where the guidance is not 0 (linear
  guidance starts at 0), 186.5 and 746.2 GFLOP for decoding the tokens.

Repeat on a machine that does nothing else: a busy core shifts ratios.
"""

import dataclasses
import gc
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from absl import flags
from torch import nn

ROOT = str(Path(__file__).resolve().parent.parent)
sys.path[:] = [ROOT] + [path for path in sys.path if path != ROOT]  # runs from a plain checkout

from benchmarks import besnier, forward  # noqa: E402
from maskgit_pt import VQVAE, Transformer  # noqa: E402
from maskgit_pt import command_line as cl  # noqa: E402
from maskgit_pt.pipeline import MaskGIT  # noqa: E402

FLAGS = flags.FlagValues()
flags.DEFINE_string(
    "official", None, "A checkout of google-research/maskgit, to be timed too.", flag_values=FLAGS
)
flags.DEFINE_string(
    "besnier", None, "A checkout of valeoai/Maskgit-pytorch at v1.0, likewise.", flag_values=FLAGS
)
flags.DEFINE_list("sizes", ["256"], "Pixels along one side: 256, 512 or both.", flag_values=FLAGS)
flags.DEFINE_list("batch_sizes", ["1", "8"], "Images in one call.", flag_values=FLAGS)
flags.DEFINE_integer(
    "steps", None, "Decoding steps; default 8 at 256 px, 15 at 512 px.", 1, 256, flag_values=FLAGS
)
flags.DEFINE_float(
    "guidance", 0.0, "Above 0: sample with this guidance too.", 0.0, flag_values=FLAGS
)
flags.DEFINE_list(
    "dtypes", ["float32", "bfloat16"], "Of our weights and activations.", flag_values=FLAGS
)
flags.DEFINE_bool("compile", False, "Time our compiled networks as well.", flag_values=FLAGS)
flags.DEFINE_string("device", "cpu", "Of ours and Besnier's: cpu or cuda.", flag_values=FLAGS)
flags.DEFINE_integer("repeats", 5, "Timed calls per candidate, at most.", 1, flag_values=FLAGS)
flags.DEFINE_float(
    "seconds",
    120.0,
    "A candidate that took so long in a case gets no further turns in it.",
    0.0,
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "threads", None, "Of PyTorch on the CPU; default: its own choice.", 1, flag_values=FLAGS
)

STEPS = {256: 8, 512: 15}
JAX_NAME = "JAX float32"


@dataclasses.dataclass
class Candidate:
    """Something to time.

    Attributes:
      name: in the table.
      call: makes the pictures and hands them over on the host.
      weights: bytes of its PyTorch weights; None where memory cannot be told.
      gflop: work of one image; None where it is not known.
      dtype: whose matrix rate the work is compared with.
      warm_up: calls before it is timed.
    """

    name: str
    call: Callable[[], object]
    weights: int | None = None
    gflop: float | None = None
    dtype: str = ""
    warm_up: int = 1


def main() -> None:
    device = _device()
    sizes = [int(size) for size in forward.choices(FLAGS, "sizes", [str(size) for size in STEPS])]
    dtypes = forward.choices(FLAGS, "dtypes", forward.DTYPES)
    batch_sizes = [forward.positive(text) for text in FLAGS.batch_sizes]
    if FLAGS.threads:
        torch.set_num_threads(FLAGS.threads)
    rates = {dtype: _matrix_rate(forward.DTYPES[dtype], device) for dtype in dtypes}
    _print_conditions(device, rates)
    for size in sizes:
        jax_sampler = _JaxSampler(FLAGS.official, size) if FLAGS.official else None
        report = _BesnierSampler(FLAGS.besnier, size, device) if FLAGS.besnier else None
        models = {dtype: _our_model(size, forward.DTYPES[dtype], device) for dtype in dtypes}
        for batch_size in batch_sizes:
            candidates = list(_our_candidates(models, size, batch_size, device))
            if jax_sampler:
                candidates.insert(0, jax_sampler.candidate(batch_size))
            if report:
                candidates += report.candidates(batch_size)
            _print_case(size, batch_size, candidates, rates, device)


def _device() -> torch.device:
    if FLAGS.device not in ("cpu", "cuda"):
        raise cl.UsageError(f"--device: {FLAGS.device!r}; accepted: cpu, cuda")
    if FLAGS.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device=cuda: PyTorch finds no GPU; accepted here: cpu")
    return torch.device(FLAGS.device)


def _steps(size: int) -> int:
    return FLAGS.steps or STEPS[size]


def _guidances() -> list[float]:
    return [0.0, FLAGS.guidance] if FLAGS.guidance else [0.0]


def _labels(batch_size: int) -> list[int]:
    return [index * 37 % 1000 for index in range(batch_size)]


def _gflop(size: int, guidance: float = 0.0) -> float:
    """The work of one image."""
    steps = _steps(size)
    # Linear guidance is 0 in the first of several steps.
    guided = max(1, steps - 1) if guidance else 0
    return forward.GFLOP[size]["transformer"] * (steps + guided) + forward.GFLOP[size]["decode"]


def _our_model(size: int, dtype: torch.dtype, device: torch.device) -> MaskGIT:
    transformer = Transformer(**forward.transformer_arguments(size)).to(device, dtype)
    tokenizer = VQVAE(forward.config_of(size)).to(device, dtype)
    return MaskGIT(transformer, tokenizer).arrange()  # as `MaskGIT.from_pretrained` does


def _our_candidates(
    models: dict[str, MaskGIT], size: int, batch_size: int, device: torch.device
) -> Iterator[Candidate]:
    # Every case compiles anew: PyTorch keeps but a few variants of a function, then stops compiling it.
    torch.compiler.reset()
    labels = _labels(batch_size)
    for dtype, model in models.items():
        modes = {"eager": model}
        if FLAGS.compile:
            modes["compiled"] = MaskGIT(model.transformer, model.tokenizer).compile()
        for mode, variant in modes.items():
            for guidance in _guidances():

                def call(model: MaskGIT = variant, guidance: float = guidance) -> object:
                    options = {"steps": _steps(size), "guidance": guidance}
                    return model.generate(labels, batch_size=batch_size, **options).images

                yield Candidate(
                    f"ours {dtype} {mode}{_with(guidance)}",
                    call,
                    weights=_weight_bytes(model.transformer, model.tokenizer),
                    gflop=_gflop(size, guidance),
                    dtype=dtype,
                    # CUDA graphs are recorded in the second call of a function, replayed from the third.
                    warm_up=3 if mode == "compiled" and device.type == "cuda" else 1,
                )


def _with(guidance: float) -> str:
    return f", guidance {guidance:g}" if guidance else ""


def _weight_bytes(*modules: nn.Module) -> int:
    return sum(
        tensor.nbytes for module in modules for tensor in [*module.parameters(), *module.buffers()]
    )


class _JaxSampler:
    """The official sampling on the official networks with random weights."""

    def __init__(self, checkout: str, size: int):
        # JAX would otherwise take most of a GPU's memory for itself.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        import jax

        from parity import official

        self.size = size
        self.config = forward.config_of(size)
        self.nets = forward.JaxNets(checkout, size)
        self.decode = official.load(checkout).parallel_decode.decode
        self.function = jax.jit(self._sample)
        self.on_cpu = jax.default_backend() == "cpu"
        print(f"jax {jax.__version__} on {jax.devices()[0]}", flush=True)

    def _sample(self, transformer_weights, tokenizer_weights, tokens, key):
        nets, codes = self.nets, self.config.vqvae.codebook_size

        def tokens_to_logits(ids):
            logits = nets.transformer.apply(transformer_weights, ids, deterministic=True)
            return logits[..., :codes]

        steps = self.decode(
            tokens,
            key,
            tokens_to_logits,
            num_iter=_steps(self.size),
            choice_temperature=self.config.sample_choice_temperature,
        )
        side = self.size // 16
        grid = steps[:, -1, 1:].reshape(-1, side, side)
        return nets.tokenizer.apply(tokenizer_weights, grid, method="decode_from_indices")

    def candidate(self, batch_size: int) -> Candidate:
        import jax

        tokens = torch.full((batch_size, (self.size // 16) ** 2 + 1), -1, dtype=torch.int32)
        tokens[:, 0] = torch.tensor(_labels(batch_size)) + self.config.vqvae.codebook_size
        tokens = jax.numpy.asarray(tokens.numpy())
        weights = self.nets.transformer_weights, self.nets.tokenizer_weights

        def call() -> object:
            images = self.function(*weights, tokens, jax.random.PRNGKey(42))
            return jax.device_get(images.block_until_ready())

        # On a GPU it multiplies in a precision of its own.
        dtype = "float32" if self.on_cpu else ""
        return Candidate(JAX_NAME, call, gflop=_gflop(self.size), dtype=dtype)


class _BesnierSampler:
    """The sampling of the 2023 report's code on its networks with random weights."""

    def __init__(self, checkout: str, size: int, device: torch.device):
        if FLAGS.steps == 1:
            raise cl.UsageError(
                "--besnier: its sampling divides by steps - 1; accepted: --steps=2 on"
            )
        sampler = besnier.sampler(Path(checkout), size, device)
        self.sampler, self.size, self.device = sampler, size, device

    def candidates(self, batch_size: int) -> list[Candidate]:
        labels = torch.tensor(_labels(batch_size), device=self.device)
        precision = "float16" if self.device.type == "cuda" else "float32"
        weights = _weight_bytes(self.sampler.vit, self.sampler.ae)

        def call(guidance: float) -> object:
            options = {"w": guidance, "step": _steps(self.size), "r_temp": 4.5}
            return self.sampler.sample(nb_sample=batch_size, labels=labels, **options)[0].cpu()

        return [
            Candidate(
                f"Besnier {precision}{_with(guidance)}",
                lambda guidance=guidance: call(guidance),
                weights=weights,
            )
            for guidance in _guidances()
        ]


def _matrix_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Floating-point operations per second of the best of some square matrix products."""
    best = 0.0
    for size in (4096, 8192, 16384) if device.type == "cuda" else (1024, 2048, 3072):
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        times = [_seconds(lambda a=a, b=b: a @ b, device) for _ in range(2)]  # the first warms up
        if times[1] < 1.0:  # else it is emulated, and no size is faster
            times += [_seconds(lambda a=a, b=b: a @ b, device) for _ in range(6)]
        best = max(best, 2 * size**3 / min(times[1:]))
        if min(times[1:]) > 1.0:
            break
    return best


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    _synchronize(device)
    start = time.perf_counter()
    call()
    _synchronize(device)
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _warm_up(candidate: Candidate, device: torch.device) -> int | None:
    """Makes a candidate ready; returns its peak memory in bytes, None where that cannot be told."""
    if device.type != "cuda" or candidate.weights is None:
        for _ in range(candidate.warm_up):
            candidate.call()
        return None
    gc.collect()
    torch.cuda.empty_cache()  # JAX cannot use what PyTorch keeps
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()  # the weights of all candidates, and older CUDA graphs
    for _ in range(candidate.warm_up):
        candidate.call()
    torch.cuda.synchronize()
    return candidate.weights + torch.cuda.max_memory_allocated() - before


def _medians(candidates: list[Candidate], device: torch.device) -> dict[str, float]:
    """Seconds by candidate, timed in turns."""
    times: dict[str, list[float]] = {candidate.name: [] for candidate in candidates}
    order = list(candidates)
    for _ in range(FLAGS.repeats):
        random.shuffle(order)
        for candidate in order:
            taken = times[candidate.name]
            if taken and sum(taken) >= FLAGS.seconds:
                continue
            time.sleep(forward.PAUSE)
            taken.append(_seconds(candidate.call, device))
    return {name: statistics.median(values) for name, values in times.items()}


def _print_conditions(device: torch.device, rates: dict[str, float]) -> None:
    where = f"{torch.get_num_threads()} threads"
    if device.type == "cuda":
        where = torch.cuda.get_device_name()
    products = ", ".join(f"{dtype} {rate / 1e12:.3g} TFLOP/s" for dtype, rate in rates.items())
    print(f"torch {torch.__version__}, {where}; matrix product: {products}", flush=True)


def _print_case(
    size: int,
    batch_size: int,
    candidates: list[Candidate],
    rates: dict[str, float],
    device: torch.device,
) -> None:
    print(f"\n{size} px, {_steps(size)} steps, batch {batch_size}")
    head = f"{'images/s':>9} {'ms a call':>10} {'x JAX':>6} {'GiB':>6} {'of matrix rate':>15}"
    print(f"{'candidate':<38} {head}", flush=True)
    memory = {candidate.name: _warm_up(candidate, device) for candidate in candidates}
    medians = _medians(candidates, device)
    for candidate in candidates:
        seconds, peak = medians[candidate.name], memory[candidate.name]
        ratio = f"{medians[JAX_NAME] / seconds:.2f}" if JAX_NAME in medians else "-"
        gib = "-" if peak is None else f"{peak / 2**30:.2f}"
        rate, share = rates.get(candidate.dtype), "-"
        if candidate.gflop and rate:
            share = f"{candidate.gflop * 1e9 * batch_size / seconds / rate:.0%}"
        print(
            f"{candidate.name:<38} {batch_size / seconds:9.3g} {seconds * 1e3:10.1f} {ratio:>6} "
            f"{gib:>6} {share:>15}",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(cl.run(main, FLAGS, "python benchmarks/sampling.py", __doc__))
