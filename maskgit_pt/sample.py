"""Command line: `python -m maskgit_pt.sample`, class-conditional pictures from a converted model."""

import sys
from pathlib import Path

import torch
from absl import flags

from maskgit_pt import command_line

PROGRAM = "python -m maskgit_pt.sample"
USAGE = """\
Generates images of ImageNet classes with MaskGIT.

  python -m maskgit_pt.sample --model=maskgit256 --tokenizer=tokenizer256 --labels=90,207

writes one PNG an image, named by class and index, and grid.png with a row a class. With the default
--rng=jax each class is one batch with its own key, split from PRNGKey(seed) in the order of
--labels: the first class of seed 42 with 8 samples and 16 steps is what the official notebook
shows."""

FLAGS = flags.FlagValues()
flags.DEFINE_string(
    "model", None, "Transformer: a folder or Hugging Face hub id.", flag_values=FLAGS, required=True
)
flags.DEFINE_string(
    "tokenizer", None, "Tokenizer: a folder or hub id.", flag_values=FLAGS, required=True
)
flags.DEFINE_list("labels", ["90"], "Class ids, e.g. 90,207.", flag_values=FLAGS)
flags.DEFINE_integer("num_samples", 8, "Images a class.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("seed", 42, "Seed of the noise.", flag_values=FLAGS)
flags.DEFINE_integer("steps", 16, "Decoding steps.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_float(
    "choice_temperature", 4.5, "Noise in choosing tokens.", lower_bound=0, flag_values=FLAGS
)
flags.DEFINE_enum(
    "rng",
    "jax",
    ["jax", "torch"],
    "Whose noise: JAX's streams (its original layout), or PyTorch's own, which is faster.",
    flag_values=FLAGS,
)
flags.DEFINE_enum(
    "dtype", "float32", ["float32", "bfloat16"], "Dtype of both nets.", flag_values=FLAGS
)
flags.DEFINE_string(
    "device", None, "cpu, cuda, cuda:1, ...; default: cuda if there is one.", flag_values=FLAGS
)
flags.DEFINE_string("output", "samples", "Folder for the pictures.", flag_values=FLAGS)


def main() -> int:
    """Generates what the flags ask for."""
    from tqdm import tqdm

    from maskgit_pt.inference import ImageNet_class_conditional_generator
    from maskgit_pt.libml import jax_random
    from maskgit_pt.utils import to_pil, visualize_images

    device = FLAGS.device or ("cuda" if torch.cuda.is_available() else "cpu")
    generator = ImageNet_class_conditional_generator.from_pretrained(
        FLAGS.model, FLAGS.tokenizer, device=device, dtype=getattr(torch, FLAGS.dtype)
    )
    generator.maskgit_cf.eval_batch_size = FLAGS.num_samples
    generator.maskgit_cf.sample_choice_temperature = FLAGS.choice_temperature
    labels = [_label(text, generator.num_class) for text in FLAGS.labels]
    output = Path(FLAGS.output)
    output.mkdir(parents=True, exist_ok=True)
    key = jax_random.PRNGKey(FLAGS.seed)
    torch_rng = torch.Generator(device).manual_seed(FLAGS.seed)
    rows = []
    for label in tqdm(labels, unit="class", disable=None):
        key, sample_key = jax_random.split(key)
        images = generator.generate_samples(
            generator.create_input_tokens_normal(label),
            sample_key if FLAGS.rng == "jax" else torch_rng,
            num_iterations=FLAGS.steps,
        )
        rows.append(images.float().cpu())
        for index, image in enumerate(rows[-1]):
            to_pil(image).save(output / f"class{label:04d}_{index:05d}.png")
    visualize_images(torch.cat(rows), columns=FLAGS.num_samples).save(output / "grid.png")
    count = len(labels) * FLAGS.num_samples
    print(f"{count} images of {generator.image_size} px in {output}, all of them in grid.png")
    return 0


def _label(text: str, num_class: int) -> int:
    if not text.strip().isdigit() or int(text) >= num_class:
        raise ValueError(f"--labels: {text!r} is no class; accepted: 0 to {num_class - 1}")
    return int(text)


def cli() -> int:
    """Entry point of `maskgit-sample`."""
    return command_line.run(main, FLAGS, PROGRAM, USAGE)


if __name__ == "__main__":
    sys.exit(cli())
