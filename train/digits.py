"""Command line: the whole method on handwritten digits, in minutes on two CPU cores.

scikit-learn brings 1,797 real digits of 8 x 8 pixels. Four of five are for training: a tokenizer, then
the transformer on its tokens. A classifier trained on the real digits then says how many of 1,000
generated ones are the class that was asked for, and distances to the nearest training digit show that they
are no copies.
"""

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags
from PIL import Image, ImageDraw

from maskgit_pt import command_line as cl
from maskgit_pt.files import write_atomically

PROGRAM = "maskgit-digits"
USAGE = """
maskgit-digits [--output=digits]

Writes digits as images, trains a tokenizer and a transformer on them, generates 1,000 digits, and scores
them: digits.png, report.json. Every step is one of the project's commands, printed as one would type it.
Interrupted, the same command goes on.
"""

FLAGS = flags.FlagValues()
flags.DEFINE_string("output", "digits", "Folder for everything.", flag_values=FLAGS)
flags.DEFINE_integer("seed", 0, "Of the split, the training and the samples.", 0, flag_values=FLAGS)
flags.DEFINE_list(
    "tokenizer_config", [], "Changed settings, e.g. num_train_steps=100,batch_size=32.", flag_values=FLAGS
)  # fmt: skip
flags.DEFINE_list("config", [], "Likewise, of the transformer.", flag_values=FLAGS)
flags.DEFINE_integer("num_samples", 1000, "Digits to generate.", 10, flag_values=FLAGS)

CONFIGS = Path(__file__).parent / "configs"
HELD_OUT = 360
CLASSES = 10
SIDE = 8  # pixels
SHIFTS = ((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0))


def main() -> int:
    """Runs the program on parsed flags."""
    start = time.perf_counter()
    folder = Path(FLAGS.output)
    write_images(folder / "images", FLAGS.seed)
    for command in commands(folder):
        print("$ python " + shlex.join(command), flush=True)
        if run(command):
            raise ValueError("the command above failed; see its message")
    report = score(folder) | {"seconds": round(time.perf_counter() - start, 1)}
    write_atomically(folder / "report.json", (json.dumps(report, indent=2) + "\n").encode())
    for name, value in report.items():
        print(f"{name}: {value}")
    print(f"see {folder / 'digits.png'}")
    return 0


def run(command: list[str]) -> int:
    """Runs one of `commands`; returns its exit code."""
    return subprocess.run([sys.executable, *command]).returncode


def commands(folder: Path) -> list[list[str]]:
    """All steps, as arguments of python."""
    tokenizer, transformer = folder / "tokenizer_run", folder / "transformer_run"
    seed = f"--config.seed={FLAGS.seed}"
    # Networks this small gain little from a second thread, and lose much where another program wants
    # its core.
    one = "--threads=1"
    return [
        ["-m", "train", f"--config={CONFIGS / 'digits_tokenizer.py'}", f"--output={tokenizer}",
         f"--config.data.images={folder / 'images' / 'shifted'}", "--config.eval_features=off",
         f"--config.eval_images={folder / 'images' / 'test'}", one, seed,
         *(f"--config.{setting}" for setting in FLAGS.tokenizer_config)],
        ["-m", "train.export", f"{tokenizer}", "--overwrite", f"--output={folder / 'tokenizer'}"],
        ["-m", "train.tokenize", f"--images={folder / 'images' / 'train'}", "--crops=1", "--crop=center",
         f"--image_size={SIDE}", f"--tokenizer={folder / 'tokenizer'}", f"--output={folder / 'tokens'}"],
        ["-m", "train", f"--config={CONFIGS / 'digits.py'}", f"--output={transformer}",
         f"--config.data.tokens={folder / 'tokens'}", f"--config.tokenizer={folder / 'tokenizer'}",
         one, seed, *(f"--config.{setting}" for setting in FLAGS.config)],
        ["-m", "train.export", f"{transformer}", "--overwrite", f"--output={folder / 'transformer'}"],
        ["-m", "train.plot", f"{transformer}"],
        ["-m", "maskgit_pt.sample", f"--model={folder / 'transformer'}",
         f"--tokenizer={folder / 'tokenizer'}", f"--labels=0-{CLASSES - 1}",
         f"--num_samples={FLAGS.num_samples}", "--steps=8", "--guidance=1", f"--seed={FLAGS.seed}",
         f"--output={folder / 'samples'}", one],
    ]  # fmt: skip


def load_digits(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The real digits.

    Args:
      seed: of the split.

    Returns:
      images uint8 [n, 8, 8] and labels [n] for training, and those held out.

    Raises:
      ImportError: scikit-learn is missing.
    """
    try:
        from sklearn import datasets, model_selection
    except ImportError:
        raise ImportError(
            "scikit-learn is not installed; it comes with the extra 'train': pip install 'maskgit_pt[train]'"
        ) from None
    digits = datasets.load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    train, test, train_labels, test_labels = model_selection.train_test_split(
        images, digits.target, test_size=HELD_OUT, stratify=digits.target, random_state=seed
    )
    return train, train_labels, test, test_labels


def write_images(folder: Path, seed: int) -> None:
    """Writes the digits as image folders: {train,test,shifted}/CLASS/NUMBER.png.

    `shifted` holds the training digits five times, four of them shifted by a pixel: the tokenizer, with few
    images to learn from, then gives unseen ones back better (by 2 dB).
    """
    train, train_labels, test, test_labels = load_digits(seed)
    shifted = np.concatenate([shift(train, *by) for by in SHIFTS])
    sets = {
        "train": (train, train_labels),
        "test": (test, test_labels),
        "shifted": (shifted, np.tile(train_labels, len(SHIFTS))),
    }
    for split, (images, labels) in sets.items():
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = folder / split / str(label) / f"{number:04d}.png"
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(path)


def shift(images: np.ndarray, down: int, right: int) -> np.ndarray:
    """Moves images [n, H, W] by at most a pixel; black comes in."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)))
    return padded[:, 1 - down : 1 - down + SIDE, 1 - right : 1 - right + SIDE]


def score(folder: Path) -> dict[str, float]:
    """Scores the samples, and draws them.

    Args:
      folder: with `samples`, `tokenizer` and `images`.
    """
    from sklearn.svm import SVC

    train, train_labels, test, test_labels = load_digits(FLAGS.seed)
    classifier = SVC(gamma=0.001, C=10).fit(_flat(train) * 16, train_labels)
    with np.load(folder / "samples" / "samples.npz", allow_pickle=False) as file:
        generated = file["arr_0"].mean(-1)  # gray [n, 8, 8]
    labels = np.arange(len(generated)) % CLASSES  # as --labels=0-9 takes turns
    _draw(generated, labels).save(folder / "digits.png")
    guesses = classifier.predict(_flat(generated) * 16)
    near, near_real = _to_nearest(generated, train), _to_nearest(test, train)
    psnr, used = reconstruction(folder / "tokenizer", train, test)
    return {
        "classifier_accuracy_on_held_out_digits": float(classifier.score(_flat(test) * 16, test_labels)),
        "generated_digits": len(generated),
        "recognised_as_asked": float((guesses == labels).mean()),
        "recognised_by_class": [float((guesses == labels)[labels == c].mean()) for c in range(CLASSES)],
        "nearest_training_digit_median_distance": float(np.median(near)),
        "nearest_training_digit_5_percent": float(np.quantile(near, 0.05)),
        "same_for_held_out_digits_median": float(np.median(near_real)),
        "same_for_held_out_digits_5_percent": float(np.quantile(near_real, 0.05)),
        "different_generated_digits": len(np.unique(generated.reshape(len(generated), -1), axis=0)),
        "tokenizer_psnr_on_held_out_digits": psnr,
        "codebook_usage": used,
    }  # fmt: skip


def reconstruction(path: Path, train: np.ndarray, test: np.ndarray) -> tuple[float, float]:
    """PSNR in dB of the held-out digits, and the share of codes that the training digits use."""
    import torch

    from maskgit_pt import VQVAE

    tokenizer = VQVAE.from_pretrained(path)

    def as_images(digits: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(digits).float().div(255)[:, None].expand(-1, 3, -1, -1)

    with torch.inference_mode():
        images = as_images(test)
        back = tokenizer(images).clamp(0, 1)
        codes = tokenizer.encode_to_indices(as_images(train))
    error = (back - images).square().mean().item()
    return -10 * float(np.log10(error)), len(codes.unique()) / tokenizer.config.vqvae.codebook_size


def _flat(images: np.ndarray) -> np.ndarray:
    """[n, 8, 8] of 0 ... 255 -> [n, 64] of 0 ... 1."""
    return images.reshape(len(images), -1) / 255


def _to_nearest(images: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Euclidean distance from each image to the nearest of the others, pixels in 0 ... 1."""
    a, b = _flat(images), _flat(others)
    return np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1)).min(1)


def _draw(images: np.ndarray, labels: np.ndarray, columns: int = 20, zoom: int = 4) -> Image.Image:
    """A row of digits for each class, with its label in front."""
    cell = SIDE * zoom + 2
    picture = Image.new("L", (cell * (columns + 1), cell * CLASSES), 255)
    pen = ImageDraw.Draw(picture)
    for c in range(CLASSES):
        pen.text((cell // 3, c * cell + cell // 4), str(c), fill=0)
        for column, image in enumerate(images[labels == c][:columns]):
            digit = Image.fromarray(image.round().astype(np.uint8)).resize((SIDE * zoom,) * 2, 0)
            picture.paste(digit, ((column + 1) * cell, c * cell))
    return picture


def cli(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return cl.run(main, FLAGS, PROGRAM, USAGE, argv)


if __name__ == "__main__":
    sys.exit(cli())
