"""Command line: `maskgit-evaluate`, the published metrics of samples and of tokenizers."""

import copy
import functools
import os
import sys
from pathlib import Path

import torch
from absl import flags

from maskgit_pt import command_line, imagenet, launch, sample
from maskgit_pt.command_line import UsageError
from maskgit_pt.files import write_atomically
from maskgit_pt.launch import Processes
from maskgit_pt.pretrained import load_any, weights_fingerprint
from train.evaluation import METRICS, TOKENIZER_METRICS, Context, report
from train.evaluation.features import EXTRACTORS
from train.evaluation.reconstruction import LPIPS
from train.evaluation.reference import Reference, load_reference, save_reference
from train.evaluation.samples import evaluate
from train.evaluation.sources import (
    FirstImages,
    ModelSource,
    Source,
    open_source,
)
from train.evaluation.tokenizers import evaluate_tokenizer

PROGRAM = "maskgit-evaluate"
USAGE = """\
Compares samples with a reference: FID, Inception Score, precision, recall, density, coverage. Or images with
what a tokenizer makes of them: rFID, PSNR, SSIM, LPIPS, use of the codebook.

  maskgit-evaluate --samples=samples.npz --reference=VIRTUAL_imagenet256_labeled.npz
  maskgit-evaluate --model=maskgit256 --tokenizer=tokenizer256 --steps=8 --batch_size=64 \\
      --reference=VIRTUAL_imagenet256_labeled.npz
  maskgit-evaluate --tokenizer=tokenizer256 --images=imagenet/val --image_size=256
  maskgit-evaluate --reference=imagenet/train --image_size=256 --save_statistics=train256.npz

Writes evaluation.json and evaluation.md into --output, with the whole protocol, and prints the table. The
defaults are the conventions of the ADM evaluator: 50,000 samples, 3 nearest neighbours, 10 splits. Features
are remembered in --cache. Under torchrun (--no-python maskgit-evaluate ...) the processes share the images;
the result is that of one process."""

FLAGS = flags.FlagValues()
string = functools.partial(flags.DEFINE_string, flag_values=FLAGS)
integer = functools.partial(flags.DEFINE_integer, flag_values=FLAGS)
boolean = functools.partial(flags.DEFINE_bool, flag_values=FLAGS)
enum = functools.partial(flags.DEFINE_enum, flag_values=FLAGS)

_WHAT = "a folder, a checkpoint file of Google's, or a Hugging Face hub id"
string(
    "samples", None, "Images: a folder of PNG or JPEG, or an npz with arr_0 as uint8 [N, H, W, 3]."
)
string("model", None, f"Instead of --samples, generate them with this transformer ({_WHAT}, or a folder with "
       "both networks) without writing them.")  # fmt: skip
string("tokenizer", None, f"The tokenizer: {_WHAT}. With --images it is what is evaluated.")
string("images", None, "Images for the tokenizer: a folder, an npz, or WebDataset tar files.")
string("reference", None, "Images likewise (a folder is cropped to the samples' size), an ADM reference "
       "batch (npz), or statistics (npz). With --images, default: those images.")  # fmt: skip
string("metrics", None, f"Default: all that can be had. Samples: {', '.join(METRICS)}; tokenizers: "
       f"{', '.join(TOKENIZER_METRICS)}.")  # fmt: skip
integer("num_samples", None, "How many samples: the first of --samples (default: all), or generated "
        "(default: 50000). With --images: that many of them, evenly spread.", lower_bound=1)  # fmt: skip
integer("num_reference", None, "Of the reference's images, use this many, evenly spread. Default: all.",
        lower_bound=1)  # fmt: skip
integer("image_size", None, "Crop folders of images, except --samples, to this size (shorter side, then the "
        "middle). Default: the samples' size; with --images 256.", lower_bound=1)  # fmt: skip
enum("features", "inception", sorted(EXTRACTORS), "inception is what published numbers are made of; with the "
     "others, which need no weights, metrics have other names.")  # fmt: skip
string("inception_weights", None, "torch-fidelity's file. Default: downloaded once.")
string("lpips_weights", None, "Two files, VGG16,LINEAR. Default: no LPIPS.")
integer("neighbours", 3, "Which nearest neighbour makes a radius.", lower_bound=1)
integer("splits", 10, "Of the Inception Score.", lower_bound=1)
boolean(
    "shuffle",
    True,
    "Put samples in a fixed random order before splitting; the ADM evaluator does not.",
)
string("save_statistics", None, "Write the reference's statistics to this npz file; without samples, do "
       "nothing else.")  # fmt: skip
string("output", "evaluation", "Folder for evaluation.json and evaluation.md.")
string("name", None, "Of this row in the table. Default: the samples', model's or tokenizer's.")
string("cache", None, "Folder that remembers features. Default: maskgit_pt/evaluation in the user's cache "
       "folder; an empty --cache= for none.")  # fmt: skip

_SAMPLER_FLAGS = (
    "sampler", "steps", "schedule", "choice_temperature", "choice", "remasking", "eta", "shift",
    "softmax_temperature", "guidance", "guidance_schedule",
)  # fmt: skip
_SHARED_FLAGS = ("labels", "seed", "dtype", "device", "threads", "compile")
for _name in _SAMPLER_FLAGS + _SHARED_FLAGS:  # the same settings as in maskgit_pt.sample
    FLAGS[_name] = copy.deepcopy(sample.FLAGS[_name])
FLAGS["labels"].help += " They take turns; default: all classes."
integer("batch_size", 50, "Images at a time, in each process.", lower_bound=1)


def main() -> int:
    """Evaluates what the flags name."""
    _check_usage()
    device = launch.pick_device(FLAGS.device, FLAGS.threads)
    advice = launch.out_of_memory(device, f"--batch_size={FLAGS.batch_size}")
    with Processes() as processes, advice:
        return _run(device, processes)


def _check_usage() -> None:
    given = [name for name in ("samples", "model", "images") if FLAGS[name].value]
    if len(given) > 1:
        raise UsageError(f"--{given[0]} and --{given[1]} exclude each other")
    if not given and not (FLAGS.reference and FLAGS.save_statistics):
        raise UsageError(
            "what to evaluate is missing: --samples, --model, or --tokenizer and --images"
        )
    if FLAGS.images and not FLAGS.tokenizer:
        raise UsageError("--images needs --tokenizer")
    if FLAGS.samples and FLAGS.tokenizer:
        raise UsageError("--tokenizer belongs to --model or to --images")
    if FLAGS.save_statistics and not FLAGS.reference:
        raise UsageError("--save_statistics needs --reference")
    of_model = (*_SAMPLER_FLAGS, "labels", "seed", "compile")
    foreign = [] if FLAGS.model else [name for name in of_model if FLAGS[name].present]
    if foreign:
        raise UsageError(f"--{foreign[0]} belongs to --model")
    of_samples = ("num_reference", "save_statistics", "neighbours", "splits", "shuffle")
    foreign = [name for name in of_samples if FLAGS.images and FLAGS[name].present]
    if foreign:
        raise UsageError(f"--{foreign[0]} does not go with --images")


def _run(device: torch.device, workers: Processes) -> int:
    cache = cache_folder(FLAGS.cache)
    if workers.rank == 0:
        for folder in (FLAGS.output, cache, _parent(FLAGS.save_statistics)):
            if folder:
                Path(folder).mkdir(parents=True, exist_ok=True)  # complains before the work
    how = {
        "features": FLAGS.features, "inception_weights": FLAGS.inception_weights, "cache": cache,
        "device": device, "batch_size": FLAGS.batch_size, "progress": True, "workers": workers,
    }  # fmt: skip
    if FLAGS.images:
        return _finish(_evaluate_tokenizer(how), workers)
    samples = _samples(device) if FLAGS.samples or FLAGS.model else None
    context = Context.make(**how)
    reference = FLAGS.reference
    if FLAGS.save_statistics:
        reference = _save_statistics(context, samples)
    if samples is None:
        return 0
    result = evaluate(
        samples, reference, metrics=_metrics(), neighbours=FLAGS.neighbours, splits=FLAGS.splits,
        shuffle=FLAGS.shuffle, image_size=FLAGS.image_size, reference_count=FLAGS.num_reference,
        context=context,
    )  # fmt: skip
    return _finish(result, workers)


def _metrics() -> list[str] | None:
    if FLAGS.metrics is None:
        return None
    return [name.strip() for name in FLAGS.metrics.split(",") if name.strip()]


def _samples(device: torch.device) -> Source:
    if FLAGS.samples:
        source = open_source(FLAGS.samples)
        return source if FLAGS.num_samples is None else FirstImages(source, FLAGS.num_samples)
    from maskgit_pt.pipeline import MaskGIT

    dtype = getattr(torch, FLAGS.dtype)
    model = MaskGIT.from_pretrained(FLAGS.model, FLAGS.tokenizer, device=device, dtype=dtype)
    settings = {n: FLAGS[n].value for n in _SAMPLER_FLAGS if FLAGS[n].value is not None}
    try:
        labels = imagenet.parse_labels(FLAGS.labels or "all", model.num_classes)
    except ValueError as error:
        raise ValueError(f"--labels: {error}") from None
    source = ModelSource(
        model,
        FLAGS.num_samples or 50_000,
        labels,
        FLAGS.seed,
        settings,
        _weights(),
        short_name(FLAGS.model),
    )
    if FLAGS.compile:
        model.compile()
    return source


def _weights() -> str:
    return weights_fingerprint(*filter(None, (FLAGS.model, FLAGS.tokenizer)))


def _save_statistics(context: Context, samples: Source | None) -> Reference:
    reference = load_reference(
        FLAGS.reference, context, samples, image_size=FLAGS.image_size, count=FLAGS.num_reference
    )
    if context.is_first:
        save_reference(reference, context.extractor, FLAGS.save_statistics)
        print(f"{FLAGS.save_statistics}: {report.protocol_text(reference.protocol)}")
    return reference


def _evaluate_tokenizer(how: dict) -> report.Evaluation:
    from maskgit_pt.pipeline import TOKENIZERS

    size, device = FLAGS.image_size or 256, how["device"]
    images = open_source(FLAGS.images, size)
    if FLAGS.num_samples is not None:
        images = FirstImages(images, FLAGS.num_samples, spread=True)
    dtype = getattr(torch, FLAGS.dtype)
    tokenizer = load_any(FLAGS.tokenizer, TOKENIZERS, device=device, dtype=dtype)
    lpips = LPIPS.from_flag(FLAGS.lpips_weights, device) if FLAGS.lpips_weights else None
    return evaluate_tokenizer(
        tokenizer, images, FLAGS.reference, metrics=_metrics(), lpips=lpips, image_size=size,
        name=short_name(FLAGS.tokenizer), weights=_weights(), **how,
    )  # fmt: skip


def _finish(result: report.Evaluation, workers: Processes) -> int:
    if workers.rank == 0:
        name = FLAGS.name or short_name(FLAGS.samples or FLAGS.model or FLAGS.tokenizer)
        folder = Path(FLAGS.output)
        write_atomically(folder / "evaluation.json", result.to_json(name).encode())
        write_atomically(folder / "evaluation.md", result.to_markdown(name).encode())
        print(result.to_markdown(name), end="")
    return 0


def short_name(path: str) -> str:
    """The last part of a path; a hub id whole."""
    return Path(path).absolute().name if Path(path).exists() else path


def cache_folder(given: str | None) -> str | None:
    """Where features are remembered, from `--cache`; None for nowhere."""
    if given is not None:
        return given or None
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return str(Path(base) / "maskgit_pt" / "evaluation")


def _parent(path: str | None) -> Path | None:
    return Path(path).parent if path else None


def cli() -> int:
    """Entry point of `maskgit-evaluate`."""
    return command_line.run(main, FLAGS, PROGRAM, USAGE)


if __name__ == "__main__":
    sys.exit(cli())
