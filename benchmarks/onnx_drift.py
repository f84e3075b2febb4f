"""Measures how far ONNX graphs are from PyTorch in float32, at full size with seeded weights.

    python benchmarks/onnx_drift.py --folder=onnx_drift

Makes Google's networks for 256 px with seeded weights (`parity.seeded`), converts them, and decodes the
same images with PyTorch and with onnxruntime, from the same noise. The table gives, for each dtype,

- the largest difference of a logit, over all steps and from PyTorch's tokens, and the root mean square of
  the differences as a part of that of the logits;
- the share of equal tokens when every step starts from PyTorch's tokens;
- equal tokens and equal images when onnxruntime decodes all steps alone;
- for the tokenizer equal tokens of images of noise, and the largest difference of a pixel.

What is done is kept in the folder, and left out the next time. Needs the extra 'onnx'.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from absl import flags

ROOT = str(Path(__file__).resolve().parent.parent)
sys.path[:] = [ROOT] + [path for path in sys.path if path != ROOT]  # runs from a plain checkout

import convert  # noqa: E402
from convert import rules  # noqa: E402
from convert.formats import onnx_graphs  # noqa: E402
from convert.verification import ledger  # noqa: E402
from maskgit_pt import command_line as cl  # noqa: E402
from maskgit_pt.libml import parallel_decode  # noqa: E402
from parity import seeded  # noqa: E402

FLAGS = flags.FlagValues()
flags.DEFINE_string("folder", "onnx_drift", "For weights, graphs and results.", flag_values=FLAGS)
flags.DEFINE_list("dtypes", ["float32", "float16", "int8"], "Of the graphs.", flag_values=FLAGS)
flags.DEFINE_integer("images", 20, "To decode.", 1, flag_values=FLAGS)
flags.DEFINE_integer("batch_size", 2, "At a time.", 1, flag_values=FLAGS)
flags.DEFINE_integer("steps", 8, "Of decoding.", 1, flag_values=FLAGS)
flags.DEFINE_integer("pictures", 4, "For the tokenizer.", 1, flag_values=FLAGS)

Arrays = dict[str, np.ndarray]
CODES, TOKENS = 1024, 256


def main() -> None:
    folder = Path(FLAGS.folder)
    folder.mkdir(exist_ok=True)
    for kind in ("transformer", "tokenizer"):
        make_weights(folder / kind, kind)
    for dtype in FLAGS.dtypes:
        measure_transformer(folder, dtype)
        if dtype != "int8":
            measure_tokenizer(folder, dtype)
    for file in sorted(folder.glob("*.json")):
        print(file.stem, file.read_text())


def make_weights(folder: Path, kind: str) -> None:
    """Google's network for 256 px with seeded weights, as a folder of ours."""
    if not folder.exists():
        published = {"transformer": "google-transformer-256", "tokenizer": "google-tokenizer"}
        model = ledger.models()[published[kind]]
        what = model.model_type, model.config
        shapes = {piece.official: piece.official_shape for piece in rules.target(*what)[1]}
        network = rules.build(*what)
        network.load_state_dict(rules.to_torch(seeded.draw(what[0], shapes, 0), *what))
        network.save_pretrained(folder)


def sessions(folder: Path, kind: str, dtype: str, names: list[str]) -> list[Callable]:
    """Converts, unless that is done, and opens the graphs as functions of arrays by name."""
    output = folder / f"{kind}_{dtype}"
    if not output.exists():
        print(convert.convert(folder / kind, output, to="onnx", dtype=dtype).check, flush=True)
    opened = [onnxruntime.InferenceSession(output / f"{name}.onnx") for name in names]
    return [lambda session=session, **inputs: session.run(None, inputs) for session in opened]


def measure_transformer(folder: Path, dtype: str) -> None:
    """Decodes batch by batch with both; adds the numbers of each batch to a file."""
    file = folder / f"transformer_{dtype}.json"
    done = json.loads(file.read_text()) if file.exists() else []
    network = convert.load_checkpoint(folder / "transformer")
    model = rules.build(network[0], network[1]).eval()
    model.load_state_dict(network[2])
    transformer, step = sessions(folder, "transformer", dtype, ["transformer", "step"])
    for batch in range(len(done), FLAGS.images // FLAGS.batch_size):
        done.append(decode_both(model, transformer, step, batch, folder))
        file.write_text(json.dumps(done))
        print(dtype, batch, done[-1], flush=True)


def decode_both(
    model: torch.nn.Module, transformer: Callable, step: Callable, batch: int, folder: Path
) -> dict[str, float]:
    """Numbers of one batch."""
    size = FLAGS.batch_size
    labels = np.arange(size) * 37 + 90 + batch
    rng = np.random.default_rng(batch)
    theirs = forced = np.full((size, TOKENS), -1)
    total = {"largest": 0.0, "squares": 0.0, "of": 0.0, "forced": 0, "tokens": 0}
    path = folder / f"pytorch_{size}x{FLAGS.steps}_{batch}.npz"
    kept = dict(np.load(path)) if path.exists() else {}
    for number, options in enumerate(plan(size)):
        noise = {
            "token_noise": rng.gumbel(size=(size, TOKENS, CODES)).astype(np.float32),
            "choice_noise": rng.gumbel(size=(size, TOKENS)).astype(np.float32),
        }
        if f"logits{number}" not in kept:
            with torch.inference_mode():
                tensors = torch.from_numpy(forced), torch.from_numpy(labels)
                kept[f"logits{number}"] = model.code_logits(*tensors, CODES).numpy()
        expected = kept[f"logits{number}"]
        (found,) = transformer(tokens=forced, labels=labels)
        difference = np.abs(expected.astype(float) - found)
        total["largest"] = max(total["largest"], float(difference.max()))
        total["squares"] += float((difference**2).sum())
        total["of"] += float((expected.astype(float) ** 2).sum())
        forced_guess = step(tokens=forced, logits=found, **noise, **options)[0]
        same_input = np.array_equal(theirs, forced)
        logits = found if same_input else transformer(tokens=theirs, labels=labels)[0]
        guess, theirs = step(tokens=theirs, logits=logits, **noise, **options)
        ours, forced = pytorch_step(forced, expected, **noise, **options)
        total["forced"] += int((forced_guess == ours).sum())
        total["tokens"] += ours.size
    if not path.exists():
        np.savez(path, **kept)
    total |= {"equal": int((guess == ours).sum()), "images": int((guess == ours).all(1).sum())}
    return total


def plan(size: int) -> list[Arrays]:
    """What the steps get: how many tokens stay masked, and the temperature of the choice."""
    lengths, temperatures = parallel_decode.plan(torch.full((size,), TOKENS), FLAGS.steps, 4.5)
    return [
        {
            "mask_len": length.expand(size).numpy().copy(),
            "temperature": temperature.numpy().reshape(()),
        }
        for length, temperature in zip(lengths, temperatures, strict=True)
    ]


def pytorch_step(tokens: np.ndarray, logits: np.ndarray, **options: np.ndarray) -> list[np.ndarray]:
    """The step in PyTorch."""
    inputs = {name: torch.as_tensor(value) for name, value in options.items()}
    module = onnx_graphs.Step()
    return [x.numpy() for x in module(torch.tensor(tokens), torch.tensor(logits), **inputs)]


def measure_tokenizer(folder: Path, dtype: str) -> None:
    """Encodes and decodes with both."""
    file = folder / f"tokenizer_{dtype}.json"
    if file.exists():
        return
    model_type, config, state = convert.load_checkpoint(folder / "tokenizer")
    model = rules.build(model_type, config).eval()
    model.load_state_dict(state)
    encode, decode = sessions(folder, "tokenizer", dtype, ["encoder", "decoder"])
    rng = torch.Generator().manual_seed(0)
    equal = pixels = 0.0
    for _ in range(FLAGS.pictures):
        images = torch.rand(1, 3, 256, 256, generator=rng)
        with torch.inference_mode():
            tokens = model.encode_to_indices(images)
            decoded = model.decode_from_indices(tokens)
        equal += int((tokens.numpy() == encode(images=images.numpy())[0]).sum())
        found = decode(tokens=tokens.numpy())[0]
        pixels = max(pixels, float(np.abs(found - decoded.numpy()).max()))
    result = {"equal": equal, "tokens": FLAGS.pictures * TOKENS, "largest": pixels}
    file.write_text(json.dumps(result))
    print(dtype, result, flush=True)


if __name__ == "__main__":
    sys.exit(cl.run(main, FLAGS, "benchmarks/onnx_drift.py", __doc__))
