"""Questions about training; see `gpu_parts`."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import ml_collections
import torch
from gpu_tools import ROOT, Report, Size, milliseconds, peak_gib, tokenizer_config
from torch.profiler import ProfilerActivity, profile

from maskgit_pt.launch import Processes
from train.configs import defaults, tokenizer_defaults
from train.run import checkpoints
from train.run.metrics import read_metrics
from train.tasks import networks
from train.tasks.flops import matrix_rate
from train.tasks.masked_tokens import MaskedTokens
from train.tasks.peaks import peak_of

sys.path.append(str(ROOT / "tests" / "train"))
from training import RECIPE, make_shards  # noqa: E402


def _config(size: Size, shards: Path, batch: int, **changes: object) -> ml_collections.ConfigDict:
    """The recipe's defaults at this size."""
    config = defaults.get_config()
    config.update(batch_size=batch, num_class=size.classes, image_size=size.image_size)
    config.transformer.update(
        num_layers=size.layers, num_embeds=size.width, intermediate_size=4 * size.width,
        num_heads=size.heads,
    )  # fmt: skip
    config.data.update(tokens=str(shards), num_workers=0)
    config.compile = size.is_full  # of the toy size the compilation alone would be timed
    config.update_from_flattened_dict(changes)
    return config


def transformer_steps(device: torch.device, size: Size, folder: Path) -> Report:
    """Steps of the transformer in bfloat16: ms, images/s, shares, memory, and the longest kernels."""
    report = Report()
    shards = make_shards(
        folder / "tokens", images=max(size.train_batches), crops=1, side=size.side, codes=size.codes,
        classes=size.classes, image_size=size.image_size,
    )  # fmt: skip
    dtype = torch.bfloat16
    measured = matrix_rate(device, dtype, 0.5 if device.type == "cuda" else 0.01)
    with Processes(device) as processes:
        for batch in size.train_batches:
            torch._dynamo.reset()
            task = MaskedTokens(_config(size, shards, batch), processes)
            data = task.batches[0]
            step = _Steps(lambda data=data, task=task, number=0: task.step(data, number))
            case = f"batch {batch}"
            try:
                taken = milliseconds(step, device, size.repeats)
            except torch.OutOfMemoryError as error:
                report.figures[f"{case}: ms"] = f"out of memory: {str(error).splitlines()[0]}"
                continue
            report.figures |= {f"{case}: ms": taken, f"{case}: images/s": 1e3 * batch / taken}
            rate = task.work_per_image * batch / (taken * 1e-3)
            report.figures[f"{case}: of measured rate"] = rate / max(rate, measured)
            if peak := peak_of(device, dtype):
                report.figures[f"{case}: of published peak"] = rate / peak
                report.check(rate <= peak, f"{case}: above the published peak: work is miscounted")
            report.figures[f"{case}: GiB"] = peak_gib(step, device)
            modelled = networks.memory_of_training(task.config, size.codes, size.side**2)
            expected = (modelled.fixed + batch * modelled.an_image) / 2**30
            report.figures[f"{case}: GiB, modelled"] = expected
            if report.figures[f"{case}: GiB"]:
                high = report.figures[f"{case}: GiB"] / expected
                report.check(high < 1.25, f"{case}: {high:.2f} times the modelled memory")
            value = float(task.step(data, 3))
            report.check(value == value, f"{case}: the loss is not a number")
            if batch == size.train_batches[len(size.train_batches) // 2]:
                report.figures |= _longest_kernels(step, device)
            del task, step
    return report


class _Steps:
    """Calls a function of a step."""

    def __init__(self, function):
        self.function = function

    def __call__(self) -> None:
        self.function()


def _longest_kernels(step: _Steps, device: torch.device) -> dict[str, str]:
    """The ten names that take the most time of a step, with their shares."""
    activity = ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU
    with profile(activities=[activity]) as found:
        step()
    key = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    rows = sorted(found.key_averages(), key=lambda row: -getattr(row, key))
    total = sum(getattr(row, key) for row in rows) or 1
    return {
        f"kernel {number}": f"{getattr(row, key) / total:.1%} {row.count} x {row.key[:90]}"
        for number, row in enumerate(rows[:10], 1)
    }


def tokenizer_steps(device: torch.device, size: Size, folder: Path) -> Report:
    """A step of tokenizer and discriminator, without and with R1."""
    from train.tasks.autoencoding import Autoencoding

    report = Report()
    pictures = _pictures(folder / "images", size.image_size)
    batch = 8 if size.is_full else 2
    with Processes(device) as processes:
        for penalty in ("none", "r1"):
            torch._dynamo.reset()
            config = tokenizer_defaults.get_config()
            config.update(
                batch_size=batch, image_size=size.image_size, perceptual_weights="off",
                eval_features="off", compile=size.is_full,
            )  # fmt: skip
            config.vqvae.update(tokenizer_config(size).vqvae.to_dict())
            config.vqvae.channel_multipliers = size.multipliers
            config.vqgan.gradient_penalty = penalty
            config.data.update(images=str(pictures), num_workers=0)
            task = Autoencoding(config, processes)
            data = task.batches[0]
            step = _Steps(lambda task=task, data=data: task.step(data, 0))
            report.figures[f"{penalty}: ms"] = milliseconds(step, device, size.repeats)
            report.figures[f"{penalty}: GiB"] = peak_gib(step, device)
            value = float(task.step(data, 1))
            report.check(value == value, f"{penalty}: the loss is not a number")
    ratio = report.figures["r1: ms"] / report.figures["none: ms"]
    report.figures["R1 takes so many times as long"] = ratio
    report.check(not size.is_full or ratio < 2, f"with R1 a step takes {ratio:.1f} times as long")
    return report


def _pictures(folder: Path, side: int) -> Path:
    from PIL import Image

    (folder / "class").mkdir(parents=True)
    for number in range(8):
        image = torch.randint(0, 256, (side, side, 3), dtype=torch.uint8).numpy()
        Image.fromarray(image).save(folder / "class" / f"{number}.png")
    return folder


def torchrun(device: torch.device, size: Size, folder: Path) -> Report:
    """Under torchrun, one process a GPU: stopped by SIGTERM, resumed, then DDP, then FSDP."""
    report = Report()
    tokens = make_shards(folder / "tokens")
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    report.figures["processes"] = count

    def command(run: str, *arguments: str) -> list[str]:
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone",
                 f"--nproc_per_node={count}"]  # fmt: skip
        return [*start, "-m", "train", f"--config={RECIPE}", f"--output={folder / run}",
                f"--device={device.type}", "--threads=1", f"--config.data.tokens={tokens}",
                "--config.batch_size=8", "--config.transformer.dropout_rate=0.0", *arguments]  # fmt: skip

    run = folder / "ddp"
    # One reading process, and steps shorter than its work: the loop waits for data when the signal comes.
    long = ("--config.num_train_steps=100000", "--config.checkpoint_every_steps=100000",
            "--config.data.num_workers=1")  # fmt: skip
    stopped, seconds = _stop_after_a_line(command("ddp", *long), run)
    report.figures["stopped: exit code, s"] = f"{stopped}, {seconds:.1f}"
    saved = checkpoints.steps(run)
    report.check(len(saved) == 1, f"after SIGTERM the checkpoints are {saved}, not one")
    done = saved[-1] if saved else 0
    last = {"ddp": done + 6, "fsdp": 6, "again": 6}
    for name, more in (("ddp", long[1:]), ("again", ()), ("fsdp", ("--config.parallel=fsdp",))):
        result = subprocess.run(
            command(name, f"--config.num_train_steps={last[name]}", *more),
            cwd=ROOT, capture_output=True, text=True, timeout=100,
        )  # fmt: skip
        report.check(
            result.returncode == 0, f"{name}: exit code {result.returncode}: {result.stderr[-500:]}"
        )
        lines = read_metrics(folder / name)
        report.figures[f"{name}: last step"] = lines[-1]["step"] if lines else None
        report.check(
            bool(lines) and lines[-1]["step"] == last[name], f"{name}: did not reach its end"
        )
    losses = [[line["loss"] for line in read_metrics(folder / name)] for name in ("again", "fsdp")]
    if all(losses):
        error = max(abs(a - b) for a, b in zip(*losses, strict=False))
        report.figures["FSDP against DDP, largest difference of the loss"] = error
        report.check(error < 1e-5, f"FSDP and DDP differ by {error:.3g}")
    return report


def _stop_after_a_line(command: list[str], run: Path) -> tuple[int, float]:
    """Sends SIGTERM after the first metrics; the exit code, and how long the end took."""
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 90
    while process.poll() is None and not read_metrics(run) and time.monotonic() < end:
        time.sleep(0.02)
    start = time.monotonic()
    process.send_signal(signal.SIGTERM)
    try:
        return process.wait(40), time.monotonic() - start
    except subprocess.TimeoutExpired:
        process.kill()  # its processes end with it
        return process.wait(), time.monotonic() - start
