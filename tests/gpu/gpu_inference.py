"""Questions about noise, networks and sampling; see `gpu_parts`."""

import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from gpu_tools import (
    Report,
    Size,
    make_meta,
    make_model,
    milliseconds,
    no_waiting,
    on,
    peak_gib,
)
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from maskgit_pt import samplers
from maskgit_pt.libml import jax_random
from maskgit_pt.libml.rng import sample_noise
from maskgit_pt.pipeline import MaskGIT
from train.tasks.flops import count_operations, matrix_rate
from train.tasks.peaks import peak_of

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}


def versions_and_rates(device: torch.device, size: Size, _: Path) -> Report:
    """Versions, matrix rates beside published ones, and attention at head width 48 by backend."""
    report = Report({"python": sys.version.split()[0], "torch": torch.__version__})
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        report.figures |= {
            "card": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "memory GiB": round(properties.total_memory / 2**30, 1),
            "multiprocessors": properties.multi_processor_count,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "nccl": ".".join(map(str, torch.cuda.nccl.version())),
        }
        dtypes["float16"] = torch.float16
    for name, dtype in dtypes.items():
        rate = matrix_rate(device, dtype, 0.3 if device.type == "cuda" else 0.01)
        report.figures[f"{name} TFLOP/s"] = rate / 1e12
        if peak := peak_of(device, dtype):
            report.figures[f"{name} of published peak"] = rate / peak
            report.check(
                rate <= 1.02 * peak, f"{name}: {rate:.3g} is above the published {peak:.3g}"
            )
    report.check("TFLOP/s" in " ".join(report.figures), "no matrix rate")
    for tokens in (257, 1025) if size.is_full else (17,):
        for dropout in (0.0, 0.1):
            for name, backend in BACKENDS.items():
                found = _attention(device, size, tokens, dropout, backend)
                report.figures[f"attention {tokens} dropout {dropout:g} {name} ms"] = found
    tried = [value for name, value in report.figures.items() if name.startswith("attention")]
    report.check(any(isinstance(value, float) for value in tried), "no attention backend works")
    return report


def _attention(
    device: torch.device, size: Size, tokens: int, dropout: float, backend: SDPBackend
) -> float | str:
    """Milliseconds of a layer's attention in bfloat16, backward pass included; or why there are none."""
    torch.manual_seed(0)
    shape = (size.batch, tokens, 3, size.heads, size.width // size.heads)
    qkv = torch.randn(shape, device=device, dtype=torch.bfloat16, requires_grad=True)

    def call() -> None:
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        with sdpa_kernel(backend):
            F.scaled_dot_product_attention(query, key, value, dropout_p=dropout).sum().backward()
        qkv.grad = None

    try:
        return milliseconds(call, device, size.repeats)
    except RuntimeError as error:  # memory, too
        if "CUDA error" in str(error):
            raise
        return f"cannot: {str(error).splitlines()[0][:80]}"


def noise(device: torch.device, size: Size, _: Path) -> Report:
    """JAX's bits, uniform and Gumbel numbers, and the streams of samples, against the CPU's: 0 differ."""
    report = Report()
    tokens = size.side**2 + 1
    for partitionable in (False, True):
        key = jax_random.PRNGKey(7, partitionable)
        for shape in [(8, tokens, size.codes), (8, tokens), (3, 5, 7)]:
            for function in (jax_random.random_bits, jax_random.uniform, jax_random.gumbel):
                here = function(key, shape)
                there = function(key, shape, device=device).cpu()
                differing = int((here != there).sum())
                layout = "partitionable" if partitionable else "original"
                name = f"{function.__name__} {layout} {'x'.join(map(str, shape))} differing"
                report.figures[name] = differing
                report.check(differing == 0, f"{name}: {differing} of {here.numel()}")
    keys = jax_random.fold_in_each(jax_random.PRNGKey(3), range(4))
    streams = [jax_random.uniform_stream(keys, 5, 5000, where).cpu() for where in ("cpu", device)]
    report.figures["uniform_stream differing"] = int((streams[0] != streams[1]).sum())
    report.check(torch.equal(*streams), "the streams of samples differ")
    return report


def networks(device: torch.device, size: Size, _: Path) -> Report:
    """Both networks without TensorFloat-32 against the CPU: logits, tokens of 8 steps, indices, images."""
    report = Report()
    tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        here = make_model(size)
        there = on(here, device)
        _compare_networks(report, here, there, device, size, torch.float32)
        # The same noise for both: that of JAX's key, bit-equal by the part before.
        labels = torch.arange(size.images) * 37 % size.classes
        settings = {"rng": jax_random.PRNGKey(11), "steps": 8, "return_steps": True}
        ours, theirs = here.generate(labels, **settings), there.generate(labels, **settings)
        same = (ours.guesses == theirs.guesses).flatten(1).all(1)
        report.figures["images whose tokens of all steps are equal"] = (
            f"{int(same.sum())} of {len(same)}"
        )
        report.check(
            bool(same.all()), f"tokens differ in {int((~same).sum())} of {len(same)} images"
        )
        error = (ours.images - theirs.images)[same].abs().max().item() if same.any() else None
        report.figures["largest difference of those images"] = error
        report.check(error is not None and error < 1e-3, f"images differ by {error}")
        half = on(here, device, torch.bfloat16)
        _compare_networks(report, here, half, device, size, torch.bfloat16)
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32
    return report


@torch.inference_mode()
def _compare_networks(
    report: Report,
    here: MaskGIT,
    there: MaskGIT,
    device: torch.device,
    size: Size,
    asked: torch.dtype,
) -> None:
    """Compares with networks of the dtype `asked`; a CPU may compute in another, on weights rounded to it."""
    torch.manual_seed(1)
    count = min(4, size.images)
    tokens = torch.randint(-1, size.codes, (count, size.side**2))
    labels = torch.arange(count)
    images = torch.rand(count, 3, size.image_size, size.image_size)
    dtype = there.tokenizer.get_codebook_funct().dtype
    wanted = here.transformer.code_logits(tokens, labels, size.codes)
    found = there.transformer.code_logits(tokens.to(device), labels.to(device), size.codes).cpu()
    error = ((found - wanted).abs().max() / wanted.std()).item()
    indices = here.tokenizer.encode_to_indices(images)
    their_indices = there.tokenizer.encode_to_indices(images.to(device, dtype)).cpu()
    pictures = here.tokenizer.decode_from_indices(indices)
    their_pictures = there.tokenizer.decode_from_indices(indices.to(device)).float().cpu()
    name = str(asked).removeprefix("torch.")
    figures = {
        "logits, largest difference over standard deviation": error,
        "most likely code equal": (found.argmax(-1) == wanted.argmax(-1)).double().mean().item(),
        "indices equal": (indices == their_indices).double().mean().item(),
        "images, largest difference": (pictures - their_pictures).abs().max().item(),
    }
    report.figures |= {f"{name}: {key}": value for key, value in figures.items()}
    bounds = (1e-4, 0.999, 0.999, 1e-3) if asked == torch.float32 else (0.5, 0.8, 0.8, 0.5)
    kept = [v <= b if "largest" in k or "images" in k else v >= b
            for (k, v), b in zip(figures.items(), bounds, strict=True)]  # fmt: skip
    for (key, value), bound, right in zip(figures.items(), bounds, kept, strict=True):
        report.check(right, f"{name}: {key}: {value:.3g}, bound {bound:g}")


def loops_without_waiting(device: torch.device, size: Size, _: Path) -> Report:
    """Every sampler with every kind of noise: from masked tokens on the host to the guess, nothing waits."""
    report, model = Report(), on(make_model(size), device)
    labels = torch.zeros(2, dtype=torch.int64, device=device)
    for name, kind in samplers.SAMPLERS.items():
        for source in (
            ("key", "generator", "samples") if device.type != "meta" else ("key", "samples")
        ):
            steps = 4 if size.is_full else 2
            sampler = kind(**({} if name == "dimo" else {"steps": steps}))  # that has one step
            if device.type != "cpu":  # makes what is kept for a device
                _run(model, sampler, labels, _source(source, device))
            try:
                with no_waiting(device):
                    guess = _run(model, sampler, labels, _source(source, device))
                report.figures[f"{name}, {source}"] = "never waits"
            except RuntimeError as error:
                report.figures[f"{name}, {source}"] = "waits"
                report.check(False, f"{name}, {source}: {str(error).splitlines()[0]}")
                continue
            whole = device.type == "meta" or int(guess.min()) >= 0
            report.check(whole, f"{name}, {source}: tokens are left open")
    return report


def _source(kind: str, device: torch.device) -> Any:
    if kind == "key":
        return jax_random.PRNGKey(3)
    if kind == "generator":
        return torch.Generator(device).manual_seed(3)
    return sample_noise(3, range(2))


@torch.inference_mode()
def _run(model: MaskGIT, sampler: Any, labels: Tensor, rng: Any) -> Tensor:
    def predict(tokens: Tensor, step: int) -> Tensor:
        return model.transformer.code_logits(tokens, labels, model.num_codes)

    tokens = torch.full((len(labels), model.num_tokens), -1)
    run = sampler.run(tokens, predict, rng, num_codes=model.num_codes, device=labels.device)
    for state in run:  # noqa: B007
        pass
    return state.guess


def compiled(device: torch.device, size: Size, _: Path) -> Report:
    """`compile()`: the tokens of eager calls, one compilation for any number of labels, reuse."""
    report, model = Report(), on(make_model(size), device)
    counts = (1, 2, 3, 5, size.batch)
    wanted = {n: model.generate(range(n), steps=4, batch_size=size.batch).tokens for n in counts}
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    fast = MaskGIT(model.transformer, model.tokenizer).compile()
    start = time.perf_counter()
    fast.generate(0, steps=4, batch_size=size.batch)
    report.figures["first call, s"] = time.perf_counter() - start
    first = _unique_graphs()
    for number in counts:
        found = fast.generate(range(number), steps=4, batch_size=size.batch).tokens
        equal = (found == wanted[number]).double().mean().item()
        report.figures[f"{number} labels: tokens equal to eager"] = equal
        report.check(
            equal > 0.99, f"{number} labels: {equal:.2%} of the tokens equal those of eager calls"
        )
    with torch.inference_mode():
        fast.generate([1, 2], steps=4, batch_size=size.batch)
    fast.transformer.code_logits(
        torch.zeros(1, size.side**2, dtype=torch.int64, device=device),
        torch.zeros(1, dtype=torch.int64, device=device), size.codes,
    ).sum().backward()  # the networks can still be trained  # fmt: skip
    breaks = sum(torch._dynamo.utils.counters["graph_break"].values())
    report.figures |= {
        "graphs": first,
        "graph breaks": breaks,
        "recompilations": _unique_graphs() - first,
    }
    report.check(breaks == 0, f"{breaks} graph breaks")
    report.check(_unique_graphs() == first, f"{_unique_graphs() - first} recompilations")
    return report


def _unique_graphs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def sampling_speed(device: torch.device, size: Size, _: Path) -> Report:
    """Milliseconds an image alone and images/s of a batch: eager and compiled, with guidance 3, 8 steps.

    float32 is eager alone: to compile it as well would take as long as everything else.
    """
    report, whole = Report(), make_model(size)
    for dtype in (torch.bfloat16, torch.float32):
        model = on(whole, device, dtype)
        name = str(dtype).removeprefix("torch.")
        work = sampling_work(size)
        both = size.is_full and dtype == torch.bfloat16  # at toy size see `compiled`
        for kind in ("eager", "compiled") if both else ("eager",):
            if kind == "compiled":
                torch._dynamo.reset()
                model = MaskGIT(model.transformer, model.tokenizer).compile()
            for batch in (1, size.batch):
                labels = [i % size.classes for i in range(batch)]

                def call(model: MaskGIT = model, labels: list = labels) -> None:
                    model.generate(labels, batch_size=len(labels), steps=8, guidance=3.0)

                taken = milliseconds(call, device, size.repeats)
                case = f"{name} {kind} batch {batch}"
                report.figures[f"{case}: ms"] = taken
                report.figures[f"{case}: images/s"] = 1e3 * batch / taken
                if peak := peak_of(device, dtype):
                    share = work * batch / (taken * 1e-3) / peak
                    report.figures[f"{case}: of published peak"] = share
                    report.check(
                        share <= 1, f"{case}: {share:.2f} of the peak: the work is miscounted"
                    )
    return report


def sampling_work(size: Size, steps: int = 8) -> float:
    """Operations of one image: linear guidance is 0 in the first step, two passes in the others."""
    with torch.device("meta"):
        model = make_meta(size)
        tokens = torch.zeros(1, size.side**2, dtype=torch.int64)
        labels = torch.zeros(1, dtype=torch.int64)
        one = count_operations(lambda: model[0].code_logits(tokens, labels, size.codes))
        grid = tokens.view(1, size.side, size.side)
        decode = count_operations(lambda: model[1].decode_from_indices(grid))
    return (2 * steps - 1) * one + decode


def memory_at_512_px(device: torch.device, size: Size, _: Path) -> Report:
    """Peak memory of a batch at twice the side, in bfloat16, eager."""
    report = Report()
    model = on(make_model(size, 2 * size.side), device, torch.bfloat16)
    for batch in (1, max(2, size.batch // 4)):

        def call(batch: int = batch) -> None:
            model.generate([0] * batch, batch_size=batch, steps=2, guidance=3.0)

        report.figures[f"{2 * size.image_size} px, batch {batch}: GiB"] = peak_gib(call, device)
    return report
