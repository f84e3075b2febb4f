"""`maskgit-parity check`: ours passes, mistakes are found and named, strangers get one line."""

import json
import shutil
from pathlib import Path

import fresh_python
import numpy as np
import pytest
import seeded_mistakes
import torch
from safetensors.numpy import save_file

from parity.packs import check, command, networks
from parity.packs.theirs import Theirs

OURS = Path(__file__).parents[2] / "examples" / "check_your_port" / "ours.py"
NAMES = [case.name for case in seeded_mistakes.cases(32, 10)]
SAMPLE = (
    "erf GELU",
    "erf GELU and LayerNorm 1e-5, logits alone",
    "output matrix of layer 1 transposed",
    "TF32",
    "GroupNorm 1e-5",
    "max pooling",
    "shortcut after the first convolution",
    "counts in float64",
    "<= in masking",
    "quick GELU, logits alone",
    "16 groups",
)


def call(capsys, *arguments):
    code = command.run("check", [str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def everything(networks_of_pack, opened) -> dict[str, np.ndarray]:
    transformer, tokenizer = networks_of_pack
    return {
        **networks.transformer_arrays(transformer, opened.whole("ids")),
        **networks.encoder_arrays(tokenizer, opened.whole("images")),
        **networks.decoder_arrays(tokenizer, opened.whole("tokenizer.indices")),
    }


def test_ours_passes_by_its_functions(pack_folder, capsys, tmp_path):
    code, out, _ = call(capsys, pack_folder, f"--code={OURS}", f"--report={tmp_path}")
    assert code == 0 and "PASS: all" in out and "FAIL" not in out
    assert "transformer layer 1" in out and "editing.partitionable" in out
    assert "not checked: transformer: loss" in out and "tokenizer: decoder" in out
    found = json.loads((tmp_path / "check.json").read_text())
    assert found["passed"] and found["first_difference"] is None
    page = (tmp_path / "index.html").read_text()
    assert "<h1>PASS</h1>" in page and "Not checked" in page and "<script" not in page


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_ours_passes_by_a_dump(networks_of_pack, opened, pack_folder, layout, capsys, tmp_path):
    arrays = everything(networks_of_pack, opened)
    if layout == "NCHW":
        arrays = {
            name: np.moveaxis(value, -1, 1) if opened.entries[name].axes.endswith("C") else value
            for name, value in arrays.items()
        }
    np.save(tmp_path / "transformer.logits.npy", arrays.pop("transformer.logits"))
    arrays = {name: np.array(value, order="C") for name, value in arrays.items()}
    save_file(arrays | {"mine": np.zeros(1)}, tmp_path / "mine.safetensors")
    code, out, _ = call(capsys, pack_folder, f"--dump={tmp_path}", f"--layout={layout}")
    assert code == 0, out
    assert "note: not known in this pack: mine" in out
    other = {"NHWC": "NCHW", "NCHW": "NHWC"}[layout]
    code, out, _ = call(capsys, pack_folder, f"--dump={tmp_path}", f"--layout={other}")
    assert code == 1 and "shape" in out


def run_case(name, opened, networks_of_pack):
    case = next(c for c in seeded_mistakes.cases(32, 10) if c.name == name)
    report = check.check(opened, seeded_mistakes.theirs(case, opened, *networks_of_pack))
    assert not report.passed and report.first is not None
    return case, report


def named(report) -> str:
    """All causes that were named, with those that explain the same; "" if all are unknown."""
    return "; ".join(str(cause) for cause in report.causes if cause.names)


def found_at(report, case) -> bool:
    """Whether the first difference is where the mistake is; in decoding any run may show it first."""
    first = report.first.name.split(",")[0]
    if case.part == "decoding":
        return first.startswith("decoding.") and first.rpartition(".")[2] == case.first
    return first == case.first


@pytest.mark.parametrize("name", SAMPLE)
def test_a_mistake_is_located_and_named(name, opened, networks_of_pack):
    case, report = run_case(name, opened, networks_of_pack)
    assert found_at(report, case)
    names = named(report)
    if case.cause is None:
        assert not names and "unknown" in str(report.causes[0])
    else:
        assert all(word in names for word in case.cause), names


@pytest.mark.slow
def test_all_mistakes(opened, networks_of_pack):
    located = 0
    for name in NAMES:
        case, report = run_case(name, opened, networks_of_pack)
        located += found_at(report, case)
        names = named(report)
        assert all(word in names for word in case.cause or ()), (name, names)
        assert case.cause is not None or not names, (name, names)
    assert len(NAMES) >= 40 and located >= len(NAMES) - 2


def test_bfloat16_passes_if_it_is_declared(opened, networks_of_pack):
    transformer, tokenizer = networks_of_pack
    from parity.packs import rounding

    with rounding.in_bfloat16(transformer), rounding.in_bfloat16(tokenizer):
        theirs = Theirs(everything(networks_of_pack, opened))
    assert check.check(opened, theirs, "bfloat16").passed
    report = check.check(opened, theirs)
    assert not report.passed and report.first.name == "transformer.embed"


def test_an_error_between_the_strides_is_found(opened, networks_of_pack):
    """One element that the pack does not keep is off: the sums show it and where it is."""
    name = "tokenizer.encoder.res_blocks.0"
    arrays = everything(networks_of_pack, opened)
    flat = arrays[name].reshape(-1)
    place = opened.entries[name].stride * 7 + 1
    flat[place] += 0.5
    theirs = Theirs({name: flat.reshape(arrays[name].shape)})
    report = check.check(opened, theirs)
    where = np.unravel_index(place, arrays[name].shape)
    assert not report.passed and report.first.where == tuple(map(int, where))
    assert "a sum is off" in report.first.message


def test_every_step_from_our_state(opened):
    """A step function is given recorded states and logits, and its mistake is found in its step."""
    from types import SimpleNamespace

    from parity.packs import decoding
    from parity.packs.theirs import Caller, run_of

    runs = [run_of(row) for row in opened.manifest["decoding"]]

    def step(tokens, logits, key, step, num_iter, masked_at_start, partitionable):
        run = next(r for r in runs if r.partitionable == partitionable)
        rules = decoding.Rules(inclusive=step == 3)
        found, _ = decoding.one_step(
            run, rules, torch.from_numpy(tokens), torch.from_numpy(logits),
            decoding.Key.from_words(list(key), partitionable), step, torch.tensor(masked_at_start),
        )  # fmt: skip
        return found["sampled"], found["next"]

    theirs = Caller(SimpleNamespace(step=step), opened, "NHWC").collect()
    report = check.check(opened, theirs)
    assert not theirs.troubles and not report.passed
    assert report.first.name == "decoding.generation.original.next"
    assert check.step_of(opened, report.first) == 3


def test_what_their_code_raises_is_a_finding(pack_folder, capsys, tmp_path):
    (tmp_path / "theirs.py").write_text(
        "def logits(ids):\n    raise KeyError('no weights')\n"
        "def decode(indices):\n    return indices[:1]\n"
    )
    code, out, _ = call(capsys, pack_folder, f"--code={tmp_path / 'theirs.py'}")
    assert code == 1 and "could not run: KeyError: 'no weights'" in out
    assert "shape [1, 6, 6]; recorded [2, 24, 24, 3]" in out


def damaged(tmp_path, pack_folder, change):
    folder = tmp_path / "damaged"
    shutil.copytree(pack_folder, folder)
    change(folder)
    return folder


def rewrite(folder, **changes):
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def flip(folder):
    path = folder / "decoding.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def cut(folder):
    path = folder / "decoding.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def rename(folder):
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"transformer.embed"', '"transformer.other"'))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), "there is no manifest.json"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "not JSON"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "format is 'list'"),
        (lambda folder: rewrite(folder, format="zip"), "format is 'zip'"),
        (lambda folder: rewrite(folder, version=99), "version 99"),
        (lambda folder: rewrite(folder, arrays=[{"name": "x"}]), "fields are missing"),
        (lambda folder: rewrite(folder, files={"../x": {"bytes": 1}}), "outside the pack"),
        (lambda folder: (folder / "tokenizer.safetensors").unlink(), "missing from the pack"),
        (rename, "tensor transformer.other is not as the manifest says"),
        (flip, "damaged"),
        (cut, "truncated?"),
    ],
)
def test_a_damaged_or_foreign_pack_takes_one_line(change, message, pack_folder, tmp_path, capsys):
    folder = damaged(tmp_path, pack_folder, change)
    code, _, error = call(capsys, folder, f"--dump={tmp_path}")
    assert code == 1 and message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["{pack}"], 2, "either --dump or --code"),
        (["--dump=x"], 2, "name one pack"),
        (["{pack}", "--dump=nowhere"], 1, "nowhere: no such folder"),
        (["{pack}", "--code=nowhere.py"], 1, "no such Python file"),
        (["{pack}", "--dump={empty}"], 1, "nothing was given"),
        (["nowhere", "--dump=x"], 1, "no pack"),
    ],
)
def test_wrong_usage_takes_one_line(arguments, code, message, pack_folder, tmp_path, capsys):
    places = {"pack": pack_folder, "empty": tmp_path}
    found, _, error = call(capsys, *(argument.format(**places) for argument in arguments))
    assert found == code and message in error and error.count("\n") == 1


def test_weights_of_another_model_are_refused(pack_folder, networks_of_pack, tmp_path, capsys):
    np.save(tmp_path / "transformer.logits.npy", np.zeros((2, 37, 43), np.float32))
    wrong = pack_folder / "weights" / "tokenizer_checkpoint"
    code, _, error = call(capsys, pack_folder, f"--dump={tmp_path}", f"--transformer={wrong}")
    assert code == 1 and "recorded were weights of fingerprint" in error


def test_checking_needs_no_jax():
    script = (
        "import sys; sys.modules['jax'] = None\n"
        "import parity.packs.command, parity.packs.check, parity.report, parity.packs.theirs"
    )
    assert fresh_python.run(script).returncode == 0
