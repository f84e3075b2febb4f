"""Command line: `maskgit-evaluate`, the published metrics of samples and of tokenizers."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from absl import flags

from maskgit_pt import command_line, decoding, launch
from maskgit_pt.command_line import UsageError
from maskgit_pt.decoding import Settings
from maskgit_pt.files import check_folder, check_replaceable, write_atomically
from maskgit_pt.launch import Processes
from maskgit_pt.model_settings import ModelSettings
from maskgit_pt.networks import size_for
from maskgit_pt.settings import define_flags, from_flags, setting
from train.evaluation import Context, ModelSource, report
from train.evaluation.reconstruction import LPIPS
from train.evaluation.reference import Reference, is_statistics, save_reference
from train.evaluation.settings import EvaluationSettings
from train.evaluation.sources import FirstImages, Source, open_source
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

JSON_NAME, MARKDOWN_NAME = "evaluation.json", "evaluation.md"


@dataclasses.dataclass(frozen=True)
class EvaluateSettings:
    """What this program asks besides `ModelSettings`, `EvaluationSettings` and the settings of sampling."""

    samples: str | None = setting(
        None, "Images: a folder of PNG or JPEG, or an npz with arr_0 as uint8 [N, H, W, 3]."
    )
    images: str | None = setting(
        None, "Images for the tokenizer: a folder, an npz, or WebDataset tar files."
    )
    num_samples: int | None = setting(
        None,
        "How many samples: the first of --samples (default: all), or generated (default: 50000). With "
        "--images: that many of them, evenly spread.",
        least=1,
    )
    image_size: int | None = setting(
        None,
        "Crop folders of images, except --samples, to this size (shorter side, then the middle). Default: "
        "the samples' size; with --images that of the tokenizer.",
        least=1,
    )
    lpips_weights: str | None = setting(None, "Two files, VGG16,LINEAR. Default: no LPIPS.")
    save_statistics: str | None = setting(
        None,
        "Write the reference's statistics to this npz file; without samples, do nothing else.",
    )
    output: str = setting("evaluation", "Folder for evaluation.json and evaluation.md.")
    overwrite: bool = setting(
        False, "Replace files in the way that are no results of this program."
    )
    name: str | None = setting(
        None, "Of this row in the table. Default: the samples', model's or tokenizer's."
    )


FLAGS = flags.FlagValues()
for _settings in (EvaluateSettings, ModelSettings, EvaluationSettings):
    define_flags(_settings, FLAGS)
decoding.define_flags(FLAGS)
FLAGS["model"].help = f"Instead of --samples, generate them. {FLAGS['model'].help}"
FLAGS["tokenizer"].help += " With --images it is what is evaluated."


@dataclasses.dataclass(frozen=True)
class Job:
    """All that one call of this program asks for.

    Attributes:
      models: which networks, where, and the classes.
      decoding: of `MaskGIT.decoding`.
      measure: what is measured, and how.
      asked: everything else.
    """

    models: ModelSettings
    decoding: Settings
    measure: EvaluationSettings
    asked: EvaluateSettings


def main() -> int:
    """Evaluates what the flags name."""
    job = Job(
        from_flags(ModelSettings, FLAGS),
        decoding.from_flags(FLAGS),
        from_flags(EvaluationSettings, FLAGS),
        from_flags(EvaluateSettings, FLAGS),
    )
    _check_usage(job, {name for name in FLAGS if FLAGS[name].present})
    device = job.models.pick_device()
    advice = launch.out_of_memory(device, f"--batch_size={job.measure.batch_size}")
    with Processes() as processes, advice:
        return _run(job, device, processes)


def _check_usage(job: Job, given: set[str]) -> None:
    asked, models, measure = job.asked, job.models, job.measure
    subjects = {"samples": asked.samples, "model": models.model, "images": asked.images}
    named = [name for name, value in subjects.items() if value]
    if len(named) > 1:
        raise UsageError(f"--{named[0]} and --{named[1]} exclude each other")
    if not named and not (measure.reference and asked.save_statistics):
        raise UsageError(
            "what to evaluate is missing: --samples, --model, or --tokenizer and --images"
        )
    if asked.images and not models.tokenizer:
        raise UsageError("--images needs --tokenizer")
    if asked.samples and models.tokenizer:
        raise UsageError("--tokenizer belongs to --model or to --images")
    if asked.save_statistics and not measure.reference:
        raise UsageError("--save_statistics needs --reference")
    of_model = [*decoding.NAMES, "strategy", "labels", "seed", "compile"]
    foreign = [name for name in of_model if name in given and not models.model]
    if foreign:
        raise UsageError(f"--{foreign[0]} belongs to --model")
    of_samples = ("num_reference", "save_statistics", "neighbours", "splits", "shuffle")
    foreign = [name for name in of_samples if name in given and asked.images]
    if foreign:
        raise UsageError(f"--{foreign[0]} does not go with --images")


def _run(job: Job, device: torch.device, workers: Processes) -> int:
    asked, measure = job.asked, job.measure
    if workers.rank == 0:
        _check_outputs(asked)  # complains before the work
    how = measure.how(device, workers)
    if asked.images:
        return _finish(job, _evaluate_tokenizer(job, how), workers)
    samples = _samples(job, device) if asked.samples or job.models.model else None
    context = Context.make(**how)
    reference = measure.reference
    if asked.save_statistics:
        reference = _save_statistics(job, context, samples)
    if samples is None:
        return 0
    result = measure.evaluate(samples, reference, context, asked.image_size)
    return _finish(job, result, workers)


def _check_outputs(asked: EvaluateSettings) -> None:
    folder = check_folder(asked.output)
    for name in (JSON_NAME, MARKDOWN_NAME):
        ours = report.is_evaluation(folder / JSON_NAME)
        check_replaceable(folder / name, ours, asked.overwrite, "evaluation")
    if asked.save_statistics:
        path = Path(asked.save_statistics)
        path.parent.mkdir(parents=True, exist_ok=True)
        check_replaceable(path, is_statistics(path), asked.overwrite, "statistics")


def _samples(job: Job, device: torch.device) -> Source:
    asked, models = job.asked, job.models
    if asked.samples:
        source = open_source(asked.samples)
        return source if asked.num_samples is None else FirstImages(source, asked.num_samples)
    model = models.load(device)
    source = ModelSource(
        model,
        asked.num_samples or 50_000,
        models.class_ids(model.classes),
        models.seed,
        job.decoding,
        models.fingerprint(),
        short_name(models.model),
    )
    if models.compile:
        model.compile()
    return source


def _save_statistics(job: Job, context: Context, samples: Source | None) -> Reference:
    reference = job.measure.load_reference(context, samples, job.asked.image_size)
    if context.is_first:
        path = job.asked.save_statistics
        save_reference(reference, context.extractor, path)
        print(f"{path}: {report.protocol_text(reference.protocol)}")
    return reference


def _evaluate_tokenizer(job: Job, how: dict) -> report.Evaluation:
    asked, models = job.asked, job.models
    device = how["device"]
    tokenizer = models.load_tokenizer(device)
    size = size_for(tokenizer, models.tokenizer, asked.image_size)
    images = open_source(asked.images, size)
    if asked.num_samples is not None:
        images = FirstImages(images, asked.num_samples, spread=True)
    lpips = LPIPS.from_flag(asked.lpips_weights, device) if asked.lpips_weights else None
    return evaluate_tokenizer(
        tokenizer, images, job.measure.reference, metrics=job.measure.metric_names, lpips=lpips,
        image_size=size, name=short_name(models.tokenizer), weights=models.fingerprint(), **how,
    )  # fmt: skip


def _finish(job: Job, result: report.Evaluation, workers: Processes) -> int:
    if workers.rank == 0:
        asked, models = job.asked, job.models
        name = asked.name or short_name(asked.samples or models.model or models.tokenizer)
        folder = Path(asked.output)
        # Names of files may hold bytes that are no text.
        texts = {JSON_NAME: result.to_json(name), MARKDOWN_NAME: result.to_markdown(name)}
        for file, text in texts.items():
            write_atomically(folder / file, text.encode("utf-8", "surrogateescape"))
        print(result.to_markdown(name), end="")
    return 0


def short_name(path: str) -> str:
    """The last part of a path; a hub id whole."""
    return Path(path).absolute().name if Path(path).exists() else path


def cli(argv: Sequence[str] | None = None) -> int:
    """Entry point of `maskgit-evaluate`."""
    return command_line.run(main, FLAGS, PROGRAM, USAGE, argv)


if __name__ == "__main__":
    sys.exit(cli())
