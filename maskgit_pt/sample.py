"""Command line: `maskgit-sample`, pictures of ImageNet classes, and edited pictures."""

import contextlib
import dataclasses
import functools
import os
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import torch
from absl import flags
from torch import Tensor

from maskgit_pt import command_line, decoding, editing, imagenet, launch
from maskgit_pt.command_line import UsageError
from maskgit_pt.decoding import Decoding, Settings
from maskgit_pt.files import (
    check_folder,
    file_sha256,
    hold_folder,
    refuse_others,
    replacing,
)
from maskgit_pt.libml import jax_random
from maskgit_pt.libml.rng import Rng
from maskgit_pt.model_settings import ModelSettings
from maskgit_pt.progress import Progress
from maskgit_pt.sample_folder import Sample, SampleFolder, read_settings
from maskgit_pt.settings import define_flags, from_flags, setting

if TYPE_CHECKING:
    from maskgit_pt.pipeline import MaskGIT

PROGRAM = "maskgit-sample"
PATIENCE = 5.0  # seconds for another process in the folder, which may be about to end
USAGE = """\
Generates images of ImageNet classes with MaskGIT, or regenerates part of a picture.

  maskgit-sample --model=maskgit256 --tokenizer=tokenizer256 --labels=lorikeet,207
  maskgit-sample --model=maskgit256 --tokenizer=tokenizer256 --labels=all \\
      --num_samples=50000 --steps=8 --batch_size=64 --dtype=bfloat16 --compile
  maskgit-sample --model=maskgit512 --tokenizer=tokenizer512 --labels=345 \\
      --edit=photo.png --box=64,32,128,144

Writes into --output one PNG for each image, named by class and index (it holds label and tokens as text), a
grid, samples.npz as the ADM evaluator reads it, and tokens.npy. Labels take turns: sample i has label
i modulo their number. Interrupted, the same command goes on; with a larger --num_samples it adds to the
set. Under `torchrun --nproc_per_node=GPUS --no-python maskgit-sample ...` the processes share the work.

Sample i depends on --seed and i alone, not on the batch or the number of processes. With --rng=jax the
noise is that of the official JAX code instead, where it depends on the batch: every batch of --batch_size
is of one class and has its own key, split from PRNGKey(seed) in turn; the first batch of 8 samples of seed
42 with 16 steps is what the official notebook shows."""


@dataclasses.dataclass(frozen=True)
class SampleSettings:
    """What this program asks besides `ModelSettings` and the settings of sampling."""

    num_samples: int | None = setting(None, "Images in all. Default: 8 a label.", least=1)
    rng: str = setting(
        "index", "Noise by the sample's index, or that of the JAX code.", choices=("index", "jax")
    )
    partitionable: bool = setting(False, "With --rng=jax: the layout of JAX's streams since 0.5.")
    batch_size: int = setting(
        8, "Images at a time, in each process; on a CPU one, except with --rng=jax.", least=1
    )
    edit: str | None = setting(None, "An image of any size to regenerate part of.")
    box: str | None = setting(
        None, "With --edit: top,left,height,width in pixels, what to regenerate."
    )
    mask: str | None = setting(
        None, "With --edit: an image of its size, white where to regenerate."
    )
    extend: str | None = setting(
        None, "With --edit: top,right,bottom,left, pixels to add and fill in."
    )
    show_steps: bool = setting(
        False, "Also a strip (PNG) and an animation (GIF) of the steps, for each sample."
    )
    npz: bool = setting(True, "Write samples.npz.")
    output: str = setting("samples", "Folder for the images.")
    overwrite: bool = setting(False, "Replace samples made with other settings.")


FLAGS = flags.FlagValues()
define_flags(ModelSettings, FLAGS)
define_flags(SampleSettings, FLAGS)
decoding.define_flags(FLAGS, start_step=True)
FLAGS["steps"].help += " With --edit 12 (official)."
flags.mark_flag_as_required("model", FLAGS)


def main() -> int:
    """Generates what the flags ask for."""
    job = Job(
        from_flags(ModelSettings, FLAGS),
        decoding.from_flags(FLAGS),
        from_flags(SampleSettings, FLAGS),
    )
    _check_usage(job)
    # A run that is taken up again keeps its number of threads.
    asked = job.asked
    earlier = None if asked.overwrite else read_settings(asked.output).get("threads")
    device = job.models.pick_device(earlier)
    advice = "try a smaller one, or --dtype=bfloat16"
    with launch.Processes() as processes:
        with launch.out_of_memory(device, f"--batch_size={asked.batch_size}", advice):
            return _generate(job, processes, device)


@dataclasses.dataclass(frozen=True)
class Job:
    """All that one call of this program asks for.

    Attributes:
      models: which networks, where, and the classes.
      decoding: of `MaskGIT.decoding`.
      asked: everything else.
    """

    models: ModelSettings
    decoding: Settings
    asked: SampleSettings


def _check_usage(job: Job) -> None:
    asked = job.asked
    parts = [name for name in ("box", "mask", "extend") if getattr(asked, name)]
    if asked.edit is None and parts:
        raise UsageError("--box, --mask and --extend belong to --edit=IMAGE")
    if asked.edit is not None and len(parts) != 1:
        raise UsageError("--edit needs one of --box, --mask, --extend")
    if asked.partitionable and asked.rng != "jax":
        raise UsageError("--partitionable belongs to --rng=jax")


def _generate(job: Job, processes: launch.Processes, device: torch.device) -> int:
    if processes.is_main:
        refuse_others(check_folder(job.asked.output), "samples")  # before the models are loaded
    model = job.models.load(device)
    if job.models.compile:
        model.compile()
    on_cpu, shown = device.type == "cpu", None if processes.is_main else False
    progress = functools.partial(Progress, by_step=on_cpu, shown=shown)
    count, new = fill(job, model, processes, progress)
    if processes.is_main:
        print(
            f"{count} images in {job.asked.output} ({new} of them new in this process), the first of each "
            "class in grid.png"
        )
    return 0


def fill(
    job: Job,
    model: "MaskGIT",
    processes: launch.Processes,
    progress: Callable[[int, int], Progress],
) -> tuple[int, int]:
    """Makes what a job asks for and its folder lacks.

    Args:
      job: what to make, and where.
      model: `job.models`, loaded.
      processes: they share the work.
      progress: makes what is told of it, from the number of missing images and the steps of each.

    Returns:
      How many images the set has, and how many this process made.

    Raises:
      ValueError, OSError: a setting out of range, an image that cannot be read, an output with other samples.
    """
    asked = job.asked
    if asked.edit is not None and job.models.labels is None and model.num_classes:
        raise UsageError("--edit needs --labels: the class of the new content")
    default = "90" if model.num_classes == imagenet.NUM_CLASSES else "0"
    labels = job.models.class_ids(model.classes, default)
    edit = _edit(model, asked)
    settings = job.decoding if edit is None else editing.with_defaults(job.decoding)
    options = model.decoding(**settings)
    described = _describe(job, labels, options, model.device)
    with contextlib.ExitStack() as stack:
        if processes.is_main:
            check_folder(asked.output)
            stack.enter_context(hold_folder(asked.output, "making samples", PATIENCE))
        folder = SampleFolder(asked.output, described, asked.overwrite, processes, model.classes)
        return _fill(job, model, processes, progress, folder, labels, edit, options)


def _fill(
    job: Job,
    model: "MaskGIT",
    processes: launch.Processes,
    progress: Callable[[int, int], Progress],
    folder: SampleFolder,
    labels: list[int],
    edit: editing.Edit | None,
    options: Decoding,
) -> tuple[int, int]:
    """The work of `fill` in a folder that is this process's own."""
    asked = job.asked
    processes.barrier()
    samples = _all_samples(labels, asked, processes.on_first(folder.count))
    on_cpu = model.device.type == "cpu"
    if asked.num_samples and len(samples) > asked.num_samples and processes.is_main:
        print(f"{asked.output} holds {len(samples)} images already: they all stay in the set")
    batches = _batches(job, samples, labels, processes, folder, on_cpu)
    total = sum(len(wanted) for _, wanted, _ in batches)
    bar = progress(total, options.sampler.steps - options.start_step)
    with bar, _Writer(folder, model if asked.show_steps else None) as writer:
        previous = None
        for batch, wanted, rng in batches:
            result = _sample(job, model, batch, rng, options, edit, bar)
            if previous:
                bar.finish(writer.save_all(*previous, edit))
            previous = batch, wanted, result
            if on_cpu:  # a GPU computes the next batch while this one is copied and written
                bar.finish(writer.save_all(*previous, edit))
                previous = None
        if previous:
            bar.finish(writer.save_all(*previous, edit))
    processes.barrier()
    folder.finish(samples, npz=asked.npz)
    return len(samples), total


def _sample(job: Job, model, batch: list[Sample], rng: Rng, options: Decoding, edit, bar: Progress):
    """One batch; `rng` is None where the noise is the samples' own."""
    labels = torch.tensor([sample.label for sample in batch])
    others = {
        "tokens": None if edit is None else edit.tokens.expand(len(batch), -1),
        "return_steps": job.asked.show_steps,
        "clip": edit is None,
        "on_step": bar.on_step,
    }
    if rng is not None:
        return model.sample(labels, rng, options, **others)
    indices = [sample.index for sample in batch]
    seed, size = job.models.seed, job.asked.batch_size
    return model.sample_indices(labels, indices, seed, options, size, **others)


def _edit(model, asked: SampleSettings):
    """The image to edit, made ready; None if there is none."""
    if asked.edit is None:
        return None
    from maskgit_pt.utils import Bbox, four_numbers

    if asked.mask:
        return model.prepare_edit(asked.edit, mask=asked.mask)
    if asked.box:
        return model.prepare_edit(asked.edit, box=Bbox.parse(asked.box))
    margins = four_numbers(asked.extend, "--extend", "top,right,bottom,left")
    return model.prepare_edit(asked.edit, extend=margins)


def _describe(job: Job, labels: list[int], options: Decoding, device: torch.device) -> dict:
    """All that the samples depend on."""
    models, asked = job.models, job.asked
    described = {
        "weights": models.fingerprint(),
        "labels": labels,
        "seed": models.seed,
        "rng": asked.rng,
        "dtype": models.dtype,
    }
    described |= options.describe()
    if device.type == "cpu":
        described["threads"] = torch.get_num_threads()
    if asked.rng == "jax":
        described |= {"batch_size": asked.batch_size, "partitionable": asked.partitionable}
    if asked.edit is not None:
        mask = file_sha256(asked.mask) if asked.mask else None
        described["edit"] = [file_sha256(asked.edit), mask, asked.box, asked.extend]
    return described


def _all_samples(labels: list[int], asked: SampleSettings, present: int) -> list[Sample]:
    """The whole set, in the order of the indices: what is there already belongs to it."""
    count = max(asked.num_samples or 8 * len(labels), present)
    turn = asked.batch_size if asked.rng == "jax" else 1  # samples before the next label's turn
    return [Sample(i, labels[i // turn % len(labels)]) for i in range(count)]


def _batches(
    job: Job,
    samples: list[Sample],
    labels: list[int],
    processes: launch.Processes,
    folder: SampleFolder,
    on_cpu: bool,
) -> list[tuple[list[Sample], set[Sample], Rng]]:
    """What this process has to do: the samples of each batch, those wanted of it, the noise.

    The noise is None where it is the samples' own.
    """
    size, with_steps = job.asked.batch_size, job.asked.show_steps
    rank, world = processes.rank, processes.world_size
    if job.asked.rng == "index":
        missing = [s for s in samples[rank::world] if not folder.holds(s, with_steps)]
        if on_cpu:  # where a batch gains nothing: so images appear one by one
            size = 1
        groups = [missing[i : i + size] for i in range(0, len(missing), size)]
        return [(group, set(group), None) for group in groups]
    batches = []
    key = jax_random.PRNGKey(job.models.seed, partitionable=job.asked.partitionable)
    for number, start in enumerate(range(0, len(samples), size)):
        key, sample_key = jax_random.split(key)
        # A whole batch even if less of it is wanted: the noise hangs on its size.
        label = labels[number % len(labels)]
        group = [Sample(i, label) for i in range(start, start + size)]
        wanted = {s for s in samples[start : start + size] if not folder.holds(s, with_steps)}
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
