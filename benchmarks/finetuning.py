"""How soon a model of six classes of clothes learns the other four from fifty pictures of each.

    python benchmarks/finetuning.py --output=FOLDER
    python benchmarks/finetuning.py --output=FOLDER --tokenizer=TOKENIZER --base_steps=600

Fashion-MNIST (its four IDX files: see `maskgit-demo`). The commands of docs/finetune.md, one after the other:

- a classifier of all ten classes, the judge; a tokenizer of the first six, unless one is given
- base: the recipe `fashion` on all pictures of the first six classes
- finetune: the recipe `finetune` from the base, on --images pictures of each of the last four
- rehearsal: the same, on those and as many of each old class that the base draws itself
- anew: the recipe `fashion` from nothing on the four classes' pictures

After every --every steps, --num_samples a class are drawn (guidance 2, 8 steps) and asked about: the share
that is recognised as asked, of the four new classes and of the six old ones. finetuning.json holds it all,
with the first step at which the new classes reach --goal. Interrupted, the same command goes on.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from absl import flags

ROOT = str(Path(__file__).resolve().parent.parent)
sys.path[:] = [ROOT] + [path for path in sys.path if path != ROOT]  # runs from a plain checkout

from maskgit_pt import MaskGIT, Transformer  # noqa: E402
from maskgit_pt import command_line as cl  # noqa: E402
from maskgit_pt.files import write_atomically  # noqa: E402
from maskgit_pt.networks import TOKENIZERS  # noqa: E402
from maskgit_pt.pretrained import load_any  # noqa: E402
from train import export  # noqa: E402
from train.demos import pace  # noqa: E402
from train.demos.images import DATA_SETS, FASHION_CLASSES, Part, load_fashion, write_tar  # noqa: E402
from train.evaluation.classifiers import Classifier  # noqa: E402
from train.run import checkpoints  # noqa: E402

FLAGS = flags.FlagValues()
flags.DEFINE_string("output", None, "Folder for everything.", flag_values=FLAGS)
flags.DEFINE_string("files", None, "Folder with the IDX files.", flag_values=FLAGS)
flags.DEFINE_string("tokenizer", None, "A trained tokenizer, 28 px.", flag_values=FLAGS)
flags.DEFINE_integer("base_steps", 1500, "Of the base.", 1, flag_values=FLAGS)
flags.DEFINE_integer("steps", 200, "Of the two ways to fine-tune.", 1, flag_values=FLAGS)
flags.DEFINE_integer("anew_steps", 1000, "Of the training anew.", 1, flag_values=FLAGS)
flags.DEFINE_integer("every", 25, "Steps between two scores.", 1, flag_values=FLAGS)
flags.DEFINE_integer("images", 50, "Of each new class.", 2, flag_values=FLAGS)
flags.DEFINE_integer("num_samples", 50, "Of each class for a score.", 1, flag_values=FLAGS)
flags.DEFINE_float("goal", 0.85, "Share of the new classes' samples.", 0, 1, flag_values=FLAGS)
flags.DEFINE_integer("seed", 0, "Of all of it.", 0, flag_values=FLAGS)
flags.DEFINE_list("config", [], "Changed settings of all transformers.", flag_values=FLAGS)
flags.DEFINE_list("finetune", [], "Changed settings of the recipe finetune.", flag_values=FLAGS)
OLD, NEW = FASHION_CLASSES[:6], FASHION_CLASSES[6:]
GUIDANCE, STEPS = 2.0, 8


def command(module: str, output: Path, *arguments: str) -> None:
    """Runs a command of the project whose output is not there yet."""
    if not (output / "config.json").exists() and not (output / "manifest.json").exists():
        subprocess.run([sys.executable, "-m", module, f"--output={output}", *arguments], check=True)


def train(run: Path, recipe: str, tokens: Path, *arguments: str) -> None:
    """Trains a transformer to its end, or goes on with it."""
    every = FLAGS.every
    changes = [f"--config.{setting}" for setting in FLAGS.config]
    subprocess.run(
        [sys.executable, "-m", "train", f"--config={recipe}", f"--output={run}", "--threads=1",
         *precision(), f"--config.data.tokens={tokens}", f"--config.tokenizer={folder('tokenizer')}",
         f"--config.checkpoint_every_steps={every}", "--config.keep_checkpoints=1000", "--config.num_class=0",
         f"--config.seed={FLAGS.seed}", "--config.image_size=28", *arguments, *changes],
        check=True,
    )  # fmt: skip


def precision() -> list[str]:
    """The flag for a CPU without units for bfloat16, on which the recipes' own precision is slow."""
    return [] if pace.bfloat16_units() else ["--config.precision=float32"]


def folder(name: str) -> Path:
    """A folder of this benchmark."""
    given = {"tokenizer": FLAGS.tokenizer}.get(name)
    return Path(given or Path(FLAGS.output) / name)


def tokens(name: str) -> Path:
    """Tokens of a tar file of images; made if they are not there."""
    output, images = folder(f"tokens_{name}"), folder("images") / f"{name}.tar"
    crop = ["--crops=1", "--crop=center", "--image_size=28"]
    command(
        "train.tokenize", output, f"--images={images}", f"--tokenizer={folder('tokenizer')}", *crop
    )
    return output


def make_images() -> None:
    """Tar files: all ten classes, the six old ones, and a few images of the four new ones."""
    parts = load_fashion(FLAGS.files, False, FLAGS.seed)
    train_part, labels = parts["train"], parts["train"].labels
    old = labels < len(OLD)
    few = np.concatenate(
        [np.flatnonzero(labels == c)[: FLAGS.images] for c in range(len(OLD), len(FASHION_CLASSES))]
    )
    parts |= {"old": Part(train_part.images[old], labels[old])}
    parts |= {"new": Part(train_part.images[few], labels[few])}
    folder("images").mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        write_tar(folder("images") / f"{name}.tar", part, FASHION_CLASSES)


def make_rehearsal() -> Path:
    """The new classes' images, and as many of each old class as the base draws them."""
    path = folder("images") / "rehearsal.tar"
    if not path.exists():
        parts = load_fashion(FLAGS.files, False, FLAGS.seed)["train"]
        images = [draw(folder("base"), OLD, FLAGS.images).float().mean(1).round().byte().numpy()]
        labels = [np.repeat(np.arange(len(OLD)), FLAGS.images)]
        for c in range(len(OLD), len(FASHION_CLASSES)):
            images.append(parts.images[parts.labels == c][: FLAGS.images])
            labels.append(np.full(len(images[-1]), c))
        write_tar(path, Part(np.concatenate(images), np.concatenate(labels)), FASHION_CLASSES)
    return path


def draw(model: Path | torch.nn.Module, names: tuple[str, ...], count: int) -> torch.Tensor:
    """Samples uint8 [names * count, 3, 28, 28] of the named classes, in their order."""
    if isinstance(model, Path):
        model = Transformer.from_pretrained(model)
    both = MaskGIT(model, load_any(folder("tokenizer"), TOKENIZERS))
    labels = [both.transformer.class_names.index(name) for name in names for _ in range(count)]
    images = both.generate(labels, seed=FLAGS.seed, steps=STEPS, guidance=GUIDANCE).images
    return (images * 255).round().byte()


def score(model: Path | torch.nn.Module, names: tuple[str, ...]) -> dict[str, float]:
    """The share of samples that the classifier takes for what was asked for: of each class, and of all."""
    classifier, count = Classifier(folder("classifier")), FLAGS.num_samples
    found = classifier(draw(model, names, count))["logits"].argmax(1).view(len(names), count)
    wanted = torch.tensor([classifier.class_names.index(name) for name in names])
    shares = (found == wanted[:, None]).double().mean(1)
    by_class = dict(zip(names, shares.tolist(), strict=True))
    return by_class | {"all": float(shares.mean())}


def curve(run: Path, old: bool) -> list[dict]:
    """Scores of all checkpoints of a run; of the old classes too, where it has them."""
    lines = []
    for step in checkpoints.steps(run):
        model, _ = export.load(run, step)
        line = {"step": step, "new": score(model, NEW)} | (
            {"old": score(model, OLD)} if old else {}
        )
        lines.append(line)
        shares = ", ".join(f"{kind} {line[kind]['all']:.1%}" for kind in line if kind != "step")
        print(f"{run.name} step {step}: {shares}", flush=True)
    return lines


def main() -> int:
    """Runs what is still to be done, and prints the table."""
    if not FLAGS.output:
        raise cl.UsageError("--output=FOLDER is needed")
    torch.set_num_threads(1)
    images = folder("images")
    if not (images / "new.tar").exists():
        make_images()
    command("train.classifier", folder("classifier"), f"--images={images / 'train.tar'}",
            f"--test={images / 'test.tar'}", "--flip", "--threads=1")  # fmt: skip
    if not FLAGS.tokenizer and not folder("tokenizer").exists():
        run = folder("tokenizer_run")
        recipe = DATA_SETS["fashion"].tokenizer_recipe
        subprocess.run([sys.executable, "-m", "train", f"--config={recipe}", f"--output={run}", "--threads=1",
                        *precision(), f"--config.data.images={images / 'old.tar'}",
                        "--config.eval_every_steps=0"], check=True)  # fmt: skip
        command("train.export", folder("tokenizer"), str(run))

    base, plain = folder("base_run"), ["--config.eval_every_steps=0"]
    train(base, "fashion", tokens("old"), f"--config.num_train_steps={FLAGS.base_steps}", *plain)
    command("train.export", folder("base"), str(base))
    start = [f"--config.init_from={folder('base')}", f"--config.num_train_steps={FLAGS.steps}",
             "--config.early_stop_evals=0", *(f"--config.{s}" for s in FLAGS.finetune)]  # fmt: skip
    make_rehearsal()
    train(folder("finetune_run"), "finetune", tokens("new"), *start)
    train(folder("rehearsal_run"), "finetune", tokens("rehearsal"), *start)
    train(folder("anew_run"), "fashion", tokens("new"), "--config.optimizer.lr_schedule=constant",
          f"--config.num_train_steps={FLAGS.anew_steps}", *plain)  # fmt: skip
    result = {"base": {"old": score(folder("base"), OLD)}}
    for name in ("finetune", "rehearsal", "anew"):
        lines = curve(folder(f"{name}_run"), old=name != "anew")
        reached = next((line for line in lines if line["new"]["all"] >= FLAGS.goal), None)
        result[name] = {"goal reached at": reached and reached["step"], "scores": lines}
    write_atomically(
        Path(FLAGS.output) / "finetuning.json", (json.dumps(result, indent=1) + "\n").encode()
    )
    print(f"base: old classes {result['base']['old']['all']:.1%}")
    for name in ("finetune", "rehearsal", "anew"):
        print(
            f"{name}: {FLAGS.goal:.0%} of the new classes at step {result[name]['goal reached at']}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(cl.run(main, FLAGS, "python benchmarks/finetuning.py", __doc__))
