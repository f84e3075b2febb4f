"""Times training steps of the transformer: ours, and a jitted JAX step of the same model on the same machine.

    python benchmarks/training.py                                # CPU: ours and the Flax reference
    python benchmarks/training.py --official=CHECKOUT            # JAX: Google's own transformer and loss
    python benchmarks/training.py --device=cuda --compile --nojax --precisions=bfloat16 \\
        --sizes=256,512 --batch_sizes=64,128

The last one measures throughput and MFU on a GPU. The network has the published size unless --layers or
--width say otherwise; tokens are random (the time does not depend on them).

- ours: `MaskedTokens.step` of the trainer, on batches from token shards: masking, forward, loss, backward,
  clipping, fused AdamW, moving average. float32, or bfloat16 autocast; --compile compiles the layers.
- JAX: the same model, loss, clipping, AdamW (optax) and moving average in one `jax.jit`, buffers donated,
  float32.

Beside JAX, ours draws attention dropout once for batch and heads, as Flax does by default; with --nojax
every element, as the recipes do, which lets a GPU use flash attention.

Candidates take turns, a step each; the table gives medians: images/s, seconds a step, images/s divided by
those of JAX, and MFU: the share of the rate that this machine reaches on a plain matrix product of the same
dtype, timed in the same run, counting 278.7 GFLOP an image at 256 px and 1,286 at 512 px (forward and
backward, multiply-adds as two). From the MFU follow the A100-hours of the 755,200 steps of 512 images of the
2023 report, at the same share of 312 TFLOP/s; its own run took 768.

Repeat on a machine that does nothing else: a busy core shifts ratios.
"""

import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from absl import flags

ROOT = str(Path(__file__).resolve().parent.parent)
sys.path[:] = [ROOT] + [path for path in sys.path if path != ROOT]  # runs from a plain checkout

from maskgit_pt import command_line as cl  # noqa: E402
from maskgit_pt.launch import Processes, pick_device  # noqa: E402
from train.configs import defaults  # noqa: E402
from train.data.tokens import ShardWriter  # noqa: E402
from train.tasks.flops import matrix_rate  # noqa: E402
from train.tasks.masked_tokens import MaskedTokens  # noqa: E402

FLAGS = flags.FlagValues()
flags.DEFINE_string("device", "cpu", "Of ours: cpu or cuda.", flag_values=FLAGS)
flags.DEFINE_list("sizes", ["256"], "Pixels along one side: 256, 512 or both.", flag_values=FLAGS)
flags.DEFINE_list("batch_sizes", ["4"], "Images a step.", flag_values=FLAGS)
flags.DEFINE_list("precisions", ["float32", "bfloat16"], "Of ours.", flag_values=FLAGS)
flags.DEFINE_integer("layers", 24, "Of the transformer.", 1, flag_values=FLAGS)
flags.DEFINE_integer("width", 768, "Of the transformer; a multiple of 16.", 16, flag_values=FLAGS)
flags.DEFINE_bool("compile", False, "Compile our layers.", flag_values=FLAGS)
flags.DEFINE_bool("jax", True, "Time the JAX step too.", flag_values=FLAGS)
flags.DEFINE_string(
    "official", None, "A checkout of google-research/maskgit for it.", flag_values=FLAGS
)
flags.DEFINE_integer("repeats", 7, "Timed steps per candidate.", 1, flag_values=FLAGS)
flags.DEFINE_integer("threads", None, "Of PyTorch on the CPU.", 1, flag_values=FLAGS)

JAX_NAME = "JAX float32"
A100, REPORT_IMAGES, REPORT_HOURS = 312e12, 755_200 * 512, 768
Step = Callable[[dict, int], object]


def main() -> None:
    if FLAGS.threads:
        torch.set_num_threads(FLAGS.threads)
    processes = Processes(pick_device(FLAGS.device, 0))
    try:
        rates = {p: matrix_rate(processes.device, getattr(torch, p), 2.0) for p in FLAGS.precisions}
        print(
            f"torch {torch.__version__}, {torch.get_num_threads()} threads; matrix product: "
            + ", ".join(f"{name} {rate / 1e12:.3g} TFLOP/s" for name, rate in rates.items())
        )
        for name in [name for name, rate in rates.items() if rate < max(rates.values()) / 10]:
            print(f"{name} is left out: this machine has no instructions for it")
            del rates[name]
        for size in map(int, FLAGS.sizes):
            for batch_size in map(int, FLAGS.batch_sizes):
                with tempfile.TemporaryDirectory() as folder:
                    _time_case(Path(folder), size, batch_size, processes, rates)
    finally:
        processes.close()


def _time_case(
    folder: Path, size: int, batch_size: int, processes: Processes, rates: dict[str, float]
) -> None:
    _make_shards(folder, size)
    steps: dict[str, Step] = {}
    for precision in rates:
        task = MaskedTokens(_config(folder, size, batch_size, precision), processes)
        steps[f"ours {precision}"] = _timed_step(task)
    batches = task.batches
    if FLAGS.jax:
        steps[JAX_NAME] = _jax_step(task)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_number in range(-2, FLAGS.repeats):  # two rounds to warm up
        for name in random.sample(list(steps), len(steps)):
            batch = batches[round_number + 2]
            start = time.perf_counter()
            steps[name](batch, round_number + 2)
            if round_number >= 0:
                seconds[name].append(time.perf_counter() - start)
    print(f"\n{size} px, batch {batch_size}: {task.work_per_image / 1e9:.1f} GFLOP an image")
    print(
        f"{'candidate':<18} {'images/s':>9} {'s a step':>9} {'x JAX':>7} {'MFU':>6} {'A100-hours':>11}"
    )
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, median in medians.items():
        speed = batch_size / median
        versus = f"{medians[JAX_NAME] / median:.2f}" if JAX_NAME in medians else "-"
        rate = rates.get(name.split()[-1])
        mfu = speed * task.work_per_image / rate if rate else 0.0
        hours = REPORT_IMAGES * task.work_per_image / (mfu * A100) / 3600 if mfu else 0.0
        told = f"{hours:.0f}" if size == 256 and hours else "-"
        print(
            f"{name:<18} {speed:>9.3f} {median:>9.3f} {versus:>7} {mfu:>6.0%} {told:>11}",
            flush=True,
        )


def _make_shards(folder: Path, size: int) -> None:
    side, images = size // 16, 1024
    writer = ShardWriter(
        folder,
        grid=(side, side),
        crops=1,
        codebook_size=1024,
        class_names=[str(i) for i in range(1000)],
        image_size=size,
        tokenizer="none",
    )
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 1024, (images, 1, side * side))
    writer.write(0, tokens, rng.integers(0, 1000, images))
    writer.finish(1)


def _config(folder: Path, size: int, batch_size: int, precision: str):
    config = defaults.get_config()
    config.update(
        batch_size=batch_size, image_size=size, precision=precision, compile=FLAGS.compile
    )
    config.data.update(tokens=str(folder), num_workers=0)
    config.transformer.update(
        num_layers=FLAGS.layers,
        num_embeds=FLAGS.width,
        intermediate_size=4 * FLAGS.width,
        broadcast_dropout=FLAGS.jax,  # the same noise as Flax draws
    )
    return config


def _timed_step(task: MaskedTokens) -> Step:
    def step(batch: dict, number: int) -> object:
        return float(task.step(batch, number))  # waits for the device

    return step


def _jax_step(task: MaskedTokens) -> Step:
    """The same training step in JAX: Flax model, optax, one `jax.jit`."""
    import jax
    import jax.numpy as jnp
    import optax

    from parity import jax_code, official

    config, codes = task.config, task.num_codes
    code = official.load(FLAGS.official) if FLAGS.official else jax_code.load_reference()
    model = code.transformer(task.model.to_config())
    ids = jnp.zeros((1, task.num_tokens + 1), jnp.int32)
    variables = jax.jit(model.init)({"params": jax.random.PRNGKey(0)}, ids)["params"]
    settings = config.optimizer
    optimizer = optax.chain(
        optax.clip_by_global_norm(settings.clip_norm),
        optax.adamw(
            optax.linear_schedule(0.0, settings.lr, settings.warmup_steps),
            settings.beta1,
            settings.beta2,
            settings.epsilon,
            weight_decay=settings.weight_decay,
        ),
    )

    def loss_of(params, ids, labels, weights, rng):
        logits = model.apply({"params": params}, ids, deterministic=False, rngs={"dropout": rng})
        return code.losses.weighted_sequence_cross_entropy_loss(
            labels=labels,
            logits=logits[:, 1:, :codes],
            weights=weights,
            label_smoothing=config.label_smoothing,
        )

    def update(state, ids, labels, weights, rng):
        params, average, moments = state
        loss, gradients = jax.value_and_grad(loss_of)(params, ids, labels, weights, rng)
        changes, moments = optimizer.update(gradients, moments, params)
        params = optax.apply_updates(params, changes)
        average = optax.incremental_update(params, average, 1 - config.polyak_decay)
        return loss, (params, average, moments)

    compiled = jax.jit(update, donate_argnums=0)
    average = jax.tree.map(jnp.copy, variables)
    state = (variables, average, optimizer.init(variables))
    print(f"jax {jax.__version__} on {jax.devices()[0]}: {code.title}")

    def step(batch: dict, number: int) -> object:
        nonlocal state
        codes_in = batch["codes"].numpy()
        masked, labels = batch["masked"].numpy(), batch["labels"].numpy()
        classes = np.where(labels < 0, -1, labels + codes)
        ids = np.concatenate([classes[:, None], np.where(masked, -1, codes_in)], 1)
        arguments = (ids.astype(np.int32), codes_in.astype(np.int32), masked.astype(np.float32))
        loss, state = compiled(state, *arguments, jax.random.PRNGKey(number))
        jax.block_until_ready(state)
        return float(loss)

    return step


if __name__ == "__main__":
    sys.exit(cl.run(main, FLAGS, "python benchmarks/training.py", __doc__))
