"""Command line: `maskgit-sample`, pictures of ImageNet classes, and edited pictures."""

import functools
import os
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from absl import flags
from torch import Tensor

from maskgit_pt import command_line, imagenet, launch, samplers
from maskgit_pt.command_line import UsageError
from maskgit_pt.files import file_sha256, replacing
from maskgit_pt.libml import jax_random
from maskgit_pt.libml.rng import Rng, sample_noise
from maskgit_pt.pretrained import weights_fingerprint
from maskgit_pt.sample_folder import Sample, SampleFolder, read_settings

PROGRAM = "maskgit-sample"
USAGE = """\
Generates images of ImageNet classes with MaskGIT, or regenerates part of a picture.

  maskgit-sample --model=maskgit256 --tokenizer=tokenizer256 --labels=lorikeet,207
  maskgit-sample --model=maskgit256 --tokenizer=tokenizer256 --labels=all \\
      --num_samples=50000 --steps=8 --batch_size=64 --dtype=bfloat16 --compile
  maskgit-sample --model=maskgit512 --tokenizer=tokenizer512 --labels=345 \\
      --edit=photo.png --box=64,32,128,144

Writes into --output one PNG an image, named by class and index (it holds label and tokens as text), a grid,
samples.npz as the ADM evaluator reads it, and tokens.npy. Labels take turns: sample i has label i modulo
their number. Interrupted, the same command goes on; with a larger --num_samples it adds to the set. Under
`torchrun --nproc_per_node=GPUS --no-python maskgit-sample ...` the processes share the work.

Sample i depends on --seed and i alone, not on the batch or the number of processes. With --rng=jax the
noise is that of the official JAX code instead, where it depends on the batch: every batch of --batch_size
is of one class and has its own key, split from PRNGKey(seed) in turn; the first batch of 8 samples of seed
42 with 16 steps is what the official notebook shows."""

FLAGS = flags.FlagValues()
string = functools.partial(flags.DEFINE_string, flag_values=FLAGS)
integer = functools.partial(flags.DEFINE_integer, flag_values=FLAGS)
number = functools.partial(flags.DEFINE_float, flag_values=FLAGS)
boolean = functools.partial(flags.DEFINE_bool, flag_values=FLAGS)
enum = functools.partial(flags.DEFINE_enum, flag_values=FLAGS)

_WHAT = "a folder, a file of any format in 'maskgit-convert --list', or a Hugging Face hub id"
string("model", None, f"Transformer: {_WHAT}; or a folder with both networks.", required=True)
string("tokenizer", None, f"Tokenizer: {_WHAT}.")
string("labels", None, "Class ids, ranges, ImageNet names, or all: 90,200-205,golden retriever.")
integer("num_samples", None, "Images in all. Default: 8 a label.", lower_bound=1)
integer("seed", 42, "Seed of the noise.", lower_bound=0)
enum("rng", "index", ["index", "jax"], "Noise by the sample's index, or that of the JAX code.")
boolean("partitionable", False, "With --rng=jax: the layout of JAX's streams since 0.5.")
integer("batch_size", 8, "Images at a time, in each process.", lower_bound=1)
enum("sampler", "official", sorted(samplers.SAMPLERS), "How tokens are filled in.")
integer("steps", None, "Decoding steps. Default: 16 official (12 editing), 12 confidence, 32 random and "
        "halton, 64 remdm.", lower_bound=1)  # fmt: skip
string("schedule", None, "How fast tokens are decided. official: cosine (default), uniform, pow2.5, "
       "log, exp; confidence: arccos (default), root, linear, square, cosine; random and halton: arccos "
       "(default) or those of official.")  # fmt: skip
number("choice_temperature", None, "Noise in choosing tokens, official and confidence. Default: 4.5.",
       lower_bound=0)  # fmt: skip
enum("choice", None, ["linear", "warm_up", "random", "none"],
     "confidence: which randomness in choosing tokens. Default: linear.")  # fmt: skip
enum("remasking", None, ["rescale", "cap", "conf", "loop", "none"],
     "remdm: which tokens are masked again. Default: rescale.")  # fmt: skip
number("eta", None, "remdm: strength of remasking. Default: 0.05.", lower_bound=0)
boolean("shift", None, "halton: start each sample at a random place of the order.")
number("softmax_temperature", 1.0, "The logits are divided by it.")
number("guidance", 0.0, "Classifier-free guidance w: logits = (1 + w) conditional - w unconditional. For "
       "weights trained with dropped labels, which Google's are not.", lower_bound=0)  # fmt: skip
string("guidance_schedule", "linear", "constant, linear (in the steps), linear-r (in the share of decided "
       "tokens), power-cosine4 (any power).")  # fmt: skip
integer("start_step", None, "First step. Default: 0; editing with the official sampler: 2.",
        lower_bound=0)  # fmt: skip
string("edit", None, "A picture of any size to regenerate part of.")
string("box", None, "With --edit: top,left,height,width in pixels, what to regenerate.")
string("mask", None, "With --edit: a picture of its size, white where to regenerate.")
string("extend", None, "With --edit: top,right,bottom,left, pixels to add and fill in.")
boolean(
    "show_steps", False, "Also a strip (PNG) and an animation (GIF) of the steps, for each sample."
)
boolean("npz", True, "Write samples.npz.")
enum("dtype", "float32", ["float32", "bfloat16"], "Dtype of both networks. On a CPU without bfloat16 "
     "units they compute in float32, with weights rounded to bfloat16.")  # fmt: skip
string("device", None, "cpu, cuda, cuda:1, ... Default: cuda if there is one.")
integer("threads", None, "On a CPU; the last bits depend on it. Default: all cores.", lower_bound=1)
boolean("compile", False, "torch.compile, with CUDA graphs on a GPU: slow to start, then faster.")
string("output", "samples", "Folder for the pictures.")
boolean("overwrite", False, "Replace samples made with other settings.")


def main() -> int:
    """Generates what the flags ask for."""
    _check_usage()
    device = _device()
    advice = "try a smaller one, or --dtype=bfloat16"
    with launch.Processes() as processes:
        with launch.out_of_memory(device, f"--batch_size={FLAGS.batch_size}", advice):
            return _generate(processes, device)


def _check_usage() -> None:
    if FLAGS.edit is None and (FLAGS.box or FLAGS.mask or FLAGS.extend):
        raise UsageError("--box, --mask and --extend belong to --edit=PICTURE")
    if FLAGS.edit is not None and sum(map(bool, (FLAGS.box, FLAGS.mask, FLAGS.extend))) != 1:
        raise UsageError("--edit needs one of --box, --mask, --extend")
    if FLAGS.edit is not None and FLAGS.labels is None:
        raise UsageError("--edit needs --labels: the class of the new content")
    if FLAGS.partitionable and FLAGS.rng != "jax":
        raise UsageError("--partitionable belongs to --rng=jax")


def _device() -> torch.device:
    # A run that is taken up again keeps its number of threads.
    earlier = None if FLAGS.overwrite else read_settings(FLAGS.output).get("threads")
    return launch.pick_device(FLAGS.device, FLAGS.threads or earlier)


def _generate(processes: launch.Processes, device: torch.device) -> int:
    from tqdm import tqdm

    from maskgit_pt.pipeline import MaskGIT

    _make_output()  # complains before the models are loaded
    model = MaskGIT.from_pretrained(
        FLAGS.model, FLAGS.tokenizer, device=device, dtype=getattr(torch, FLAGS.dtype)
    )
    labels = _labels(model.num_classes)
    edit = _edit(model)
    options = model.decoding(**_decoding(is_edit=edit is not None))
    if FLAGS.compile:
        model.compile()
    folder = SampleFolder(
        FLAGS.output, _settings(labels, options, device), FLAGS.overwrite, processes.is_main
    )
    processes.barrier()
    samples = _all_samples(labels)
    batches = _batches(samples, labels, processes, folder)
    total = sum(len(wanted) for _, wanted, _ in batches)
    bar = tqdm(total=total, unit="img", disable=None if processes.is_main else True)
    with bar, _Writer(folder, model if FLAGS.show_steps else None) as writer:
        # One batch behind: a GPU computes the next while this one is copied and written.
        previous = None
        for batch, wanted, rng in batches:
            result = _sample(model, batch, rng, options, edit)
            if previous:
                bar.update(writer.save_all(*previous, edit))
            previous = batch, wanted, result
        if previous:
            bar.update(writer.save_all(*previous, edit))
    processes.barrier()
    if processes.is_main:
        folder.finish(samples, npz=FLAGS.npz)
        print(
            f"{len(samples)} images in {FLAGS.output} ({total} of them new in this process), the first "
            "of each class in grid.png"
        )
    return 0


def _make_output() -> None:
    folder = Path(FLAGS.output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        reason = "" if os.access(folder, os.W_OK | os.X_OK) else "it cannot be written"
    except OSError as error:
        reason = error.strerror or str(error)
    if reason:
        raise ValueError(f"--output={folder}: {reason}; accepted: a folder, made if missing")


def _sample(model, batch: list[Sample], rng: Rng, options, edit):
    """One batch, filled up to one shape where compiled code and equal rounding want that."""
    count = len(batch)
    if model.device.type != "cpu" and FLAGS.rng == "index":
        batch = batch + batch[-1:] * (FLAGS.batch_size - count)
    return model.sample(
        torch.tensor([sample.label for sample in batch]),
        rng or sample_noise(FLAGS.seed, [sample.index for sample in batch]),
        options,
        tokens=None if edit is None else edit.tokens.expand(len(batch), -1),
        return_steps=FLAGS.show_steps,
        clip=edit is None,
    )


def _labels(num_classes: int) -> list[int]:
    text = FLAGS.labels
    if text is None:
        text = "90" if num_classes == imagenet.NUM_CLASSES else "0"
    try:
        return imagenet.parse_labels(text, num_classes)
    except ValueError as error:
        raise ValueError(f"--labels: {error}") from None


def _edit(model):
    """The picture to edit, made ready; None if there is none."""
    if FLAGS.edit is None:
        return None
    from PIL import Image

    from maskgit_pt.utils import Bbox

    if FLAGS.mask:
        with Image.open(FLAGS.mask) as file:
            return model.prepare_edit(FLAGS.edit, mask=file.convert("L"))
    if FLAGS.box:
        return model.prepare_edit(FLAGS.edit, box=Bbox.parse(FLAGS.box))
    parts = FLAGS.extend.split(",")
    if len(parts) != 4 or not all(part.strip().isdigit() for part in parts):
        raise ValueError(
            f"--extend is {FLAGS.extend!r}; accepted: top,right,bottom,left in pixels, 0 or more"
        )
    return model.prepare_edit(FLAGS.edit, extend=[int(part) for part in parts])


def _decoding(is_edit: bool) -> dict:
    """The arguments of `MaskGIT.decoding`."""
    from maskgit_pt import editing

    names = (
        "sampler", "steps", "schedule", "choice_temperature", "choice", "remasking", "eta", "shift",
        "softmax_temperature", "guidance", "guidance_schedule", "start_step",
    )  # fmt: skip
    given = {name: FLAGS[name].value for name in names if FLAGS[name].value is not None}
    return editing.with_defaults(given) if is_edit else given


def _settings(labels: list[int], options, device: torch.device) -> dict:
    """All that the samples depend on."""
    settings = {
        "weights": weights_fingerprint(*filter(None, (FLAGS.model, FLAGS.tokenizer))),
        "labels": labels,
        "seed": FLAGS.seed,
        "rng": FLAGS.rng,
        "dtype": FLAGS.dtype,
        "sampler": FLAGS.sampler,
    }
    settings |= vars(options.sampler) | vars(options) | {"sampler": FLAGS.sampler}
    if device.type == "cpu":
        settings["threads"] = torch.get_num_threads()
    if FLAGS.rng == "jax":
        settings |= {"batch_size": FLAGS.batch_size, "partitionable": FLAGS.partitionable}
    if FLAGS.edit is not None:
        mask = file_sha256(FLAGS.mask) if FLAGS.mask else None
        settings["edit"] = [file_sha256(FLAGS.edit), mask, FLAGS.box, FLAGS.extend]
    return settings


def _all_samples(labels: list[int]) -> list[Sample]:
    """The whole set, in the order of the indices."""
    count = FLAGS.num_samples or 8 * len(labels)
    turn = FLAGS.batch_size if FLAGS.rng == "jax" else 1  # samples before the next label's turn
    return [Sample(i, labels[i // turn % len(labels)]) for i in range(count)]


def _batches(
    samples: list[Sample], labels: list[int], processes: launch.Processes, folder: SampleFolder
) -> list[tuple[list[Sample], set[Sample], Rng]]:
    """What this process has to do: the samples of each batch, those wanted of it, the noise.

    The noise is None where it is the samples' own.
    """
    size, rank, world = FLAGS.batch_size, processes.rank, processes.world_size
    if FLAGS.rng == "index":
        missing = [
            sample for sample in samples[rank::world] if not folder.holds(sample, FLAGS.show_steps)
        ]
        groups = [missing[i : i + size] for i in range(0, len(missing), size)]
        return [(group, set(group), None) for group in groups]
    batches = []
    key = jax_random.PRNGKey(FLAGS.seed, partitionable=FLAGS.partitionable)
    for number, start in enumerate(range(0, len(samples), size)):
        key, sample_key = jax_random.split(key)
        # A whole batch even if less of it is wanted: the noise hangs on its size.
        label = labels[number % len(labels)]
        group = [Sample(i, label) for i in range(start, start + size)]
        wanted = {s for s in samples[start : start + size] if not folder.holds(s, FLAGS.show_steps)}
        if number % world == rank and wanted:
            batches.append((group, wanted, sample_key))
    return batches


class _Writer:
    """Writes samples beside the computation.

    Args:
      folder: where to.
      model: decodes the guesses of the steps for pictures of them; None for none.
    """

    _WAITING = 256  # images at most

    def __init__(self, folder: SampleFolder, model):
        self.folder, self.model = folder, model
        self.threads = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
        self.futures: list[Future] = []

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *error) -> None:
        self.threads.shutdown(wait=True)
        if error[0] is None:
            self._collect(0)

    def save_all(self, batch: list[Sample], wanted: set[Sample], result, edit) -> int:
        """Hands the wanted samples of a batch to the threads; returns how many they are."""
        result.wait()
        for row, sample in enumerate(batch):
            if sample in wanted:
                self._collect(self._WAITING)
                if self.model is not None:
                    self._save_steps(sample, result.masks[row], result.guesses[row])
                work = (self._save, sample, result.images[row], result.tokens[row], edit)
                self.futures.append(self.threads.submit(*work))
        return len(wanted)

    def _save(self, sample: Sample, image: Tensor, tokens: Tensor, edit) -> None:
        self.folder.save(sample, edit.finish(image) if edit else image, tokens)

    def _collect(self, waiting: int) -> None:
        """Passes on what went wrong in the threads; returns when at most `waiting` images wait."""
        while len(self.futures) > waiting:
            self.futures.pop(0).result()

    def _save_steps(self, sample: Sample, masks: Tensor, guesses: Tensor) -> None:
        """Before the sample itself, so that a resumed run lacks none."""
        from maskgit_pt import step_pictures

        images = self.model.tokens_to_images(guesses)
        picture = step_pictures.strip(masks, images)
        path = self.folder.path(sample, "_steps.png")
        with replacing(path) as temporary:
            picture.save(temporary, "PNG")
        frames = step_pictures.animation(masks, images)
        path = self.folder.path(sample, "_steps.gif")
        with replacing(path) as temporary:
            step_pictures.save_gif(frames, temporary)


def cli() -> int:
    """Entry point of `maskgit-sample`."""
    return command_line.run(main, FLAGS, PROGRAM, USAGE)


if __name__ == "__main__":
    sys.exit(cli())
