"""Command line: takes a network out of a training run, as a folder for `from_pretrained`."""

import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch.distributed.checkpoint as dcp
from absl import flags
from torch import nn

from maskgit_pt import command_line as cl
from maskgit_pt.files import check_destination, write_atomically
from maskgit_pt.nets.besnier_transformer import BesnierTransformer
from maskgit_pt.nets.mage import Mage
from maskgit_pt.nets.maskgit_transformer import Transformer
from maskgit_pt.nets.vqgan_tokenizer import VQVAE
from train import settings
from train.run import checkpoints
from train.run.state import AVERAGES, MODELS

PROGRAM = "maskgit-export"
USAGE = """
maskgit-export RUN --output=FOLDER [--step=N] [--noaverage] [--overwrite]

Takes the averaged weights (EMA) of a run's newest checkpoint. The folder is one for from_pretrained and
for every other command; maskgit-convert --input=FOLDER --output=FILE --to=flax makes the file that
Google's code loads.
"""
NETWORKS_NAME = "networks.json"
CLASSES = {cls.model_type: cls for cls in (Transformer, BesnierTransformer, Mage, VQVAE)}

# What a network's configuration says of the tokens that it was trained on.
_OF_THE_DATA = ("class_names", "tokenizer_fingerprint")

FLAGS = flags.FlagValues()
flags.DEFINE_string("output", None, "Folder to write.", flag_values=FLAGS)
flags.DEFINE_integer("step", None, "Of the checkpoint; default: the newest.", 0, flag_values=FLAGS)
flags.DEFINE_bool(
    "average", True, "The averaged weights; --noaverage: those of the last step.", flag_values=FLAGS
)
flags.DEFINE_bool("overwrite", False, "Replace a model that exists.", flag_values=FLAGS)
_RUNS: list[str] = []


def main() -> int:
    """Runs the program on parsed flags."""
    if len(_RUNS) != 1 or not FLAGS.output:
        raise cl.UsageError("name the folder of one run, and --output=FOLDER")
    run = Path(_RUNS[0])
    model, step = load(run, FLAGS.step, FLAGS.average)
    output = Path(FLAGS.output)
    check_destination(output, model.model_type)
    if output.is_dir() and any(output.iterdir()) and not FLAGS.overwrite:
        raise FileExistsError(f"{output} exists already; --overwrite replaces the model in it")
    model.save_pretrained(FLAGS.output, metadata={"step": str(step)})
    print(f"{FLAGS.output}: {type(model).__name__} of step {step}")
    return 0


def note_networks(run: Path, models: dict[str, nn.Module]) -> None:
    """Writes down what the networks of a run are, so that they can be built again.

    Raises:
      ValueError: its checkpoints are of other classes, or of tokens of another tokenizer.
    """
    known = {
        name: model.full_config()
        for name, model in models.items()
        if getattr(model, "model_type", None) in CLASSES
    }
    path = run / NETWORKS_NAME
    before = json.loads(path.read_text("utf-8")) if path.exists() and checkpoints.steps(run) else {}
    for name, network in known.items():
        for field in _OF_THE_DATA:
            old, new = before.get(name, {}).get(field), network.get(field)
            if old and new and old != new:
                raise ValueError(
                    f"{path}: this run has the {field} {_short(old)}, the data has {_short(new)}; continue "
                    "with the same data, or name another --output"
                )
    write_atomically(path, (json.dumps(known, indent=2) + "\n").encode())


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:60] + " ..."


def load(
    run: Path, step: int | None = None, average: bool = True
) -> tuple[Transformer | BesnierTransformer | Mage | VQVAE, int]:
    """Loads the trained network of a run, in evaluation mode, on the CPU.

    Args:
      run: its folder.
      step: of the checkpoint; None: the newest.
      average: the averaged weights, where the run kept an average.

    Returns:
      The network, and the step.

    Raises:
      FileNotFoundError, ValueError: no run, no such checkpoint, or one that cannot be read.
    """
    config = settings.read(run)
    found = checkpoints.steps(run)
    if not found:
        raise FileNotFoundError(f"{run}: the run has no checkpoint yet")
    if step not in (None, *found):
        listed = ", ".join(map(str, found))
        raise FileNotFoundError(f"{run}: no checkpoint of step {step}; found: {listed}")
    step = found[-1] if step is None else step
    ((name, network),) = json.loads((run / NETWORKS_NAME).read_text()).items()
    model = CLASSES[network["model_type"]].from_full_config(network)
    if model.image_size is None:  # a run of an earlier version
        model.image_size = config.get("image_size")
    group = AVERAGES if average and config.polyak_decay > 0 else MODELS
    weights = {group: {name: model.state_dict()}}
    folder = checkpoints.folder_of(run, step)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dcp.load(weights, checkpoint_id=folder, no_dist=True)
    except (Exception, dcp.CheckpointException) as error:  # pickle, sizes, missing files, ...
        raise ValueError(f"{folder}: cannot be read ({checkpoints.reason(error)})") from error
    model.load_state_dict(weights[group][name])
    return model.eval(), step


def cli(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return cl.run(main, FLAGS, PROGRAM, USAGE, argv, arguments=_RUNS)


if __name__ == "__main__":
    sys.exit(cli())
