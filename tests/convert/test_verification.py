"""The ledger of published weights, and `maskgit-convert --verify`."""

import json
import math

import numpy as np
import pytest
import torch
from convert_samples import write_flax
from recorded import GOLDEN

import convert
from convert import __main__ as command
from convert import formats, inspection, rules
from convert.verification import ledger, verify


@pytest.fixture
def run(monkeypatch, capsys):
    """Calls the command; returns its exit code, its lines by heading, and standard error."""

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["maskgit-convert", *arguments])
        code = command.cli()
        out, err = capsys.readouterr()
        rows = dict(line.split(":", 1) for line in out.splitlines())
        return code, {name: text.strip() for name, text in rows.items()}, err

    return call


@pytest.fixture
def known(monkeypatch, miniature):
    """A ledger with one entry more: a published file of the miniature's shapes."""
    tree = json.loads(json.dumps(ledger._read()))
    model_type, config, _ = convert.load_checkpoint(miniature)
    tree["models"]["small"] = {
        "model_type": model_type,
        "config": config,
        "tensors": 0,
        "parameters": 0,
    }
    entry = {
        "model": "small",
        "file": "small_checkpoint",
        "format": "flax",
        "where": "",
        "licence": "",
    }
    tree["files"]["Someone small_checkpoint"] = entry
    monkeypatch.setattr(ledger, "_read", lambda: tree)
    return entry


def test_every_entry_fits_the_code():
    """Kinds, configurations, counts and formats are those of the code; nothing is measured by nobody."""
    for model in ledger.models().values():
        pieces = {
            p.official: p.official_shape for p in rules.target(model.model_type, model.config)[1]
        }
        assert len(pieces) == model.tensors
        counted = [s for name, s in pieces.items() if name != "quantize.codebook_used"]
        assert sum(map(math.prod, counted)) == model.parameters
        assert model.ranges.keys() <= pieces.keys()
        assert ledger.entries_of(model), model.name
        assert ledger.model_of(model.model_type, model.complete()).name == model.name
    entries = ledger.entries()
    for entry in entries.values():
        assert formats.BY_NAME[entry.format].can_write(
            entry.model.model_type, entry.model.complete()
        )
        assert entry.where and entry.licence
        assert entry.copy_of is None or entries[entry.copy_of].model == entry.model
        assert (entry.fingerprint is None) == (entry.sha256 is None) == (entry.measured_by is None)
    assert len({model.name for model in ledger.models().values()}) == len(ledger.models())


def test_of_no_published_file(run, miniature):
    code, rows, err = run(f"--verify={miniature}")
    assert (code, err) == (1, "")
    assert rows["shapes"].startswith(
        "of no published file; nearest is google-transformer-256, but for "
    )
    assert "hidden_size 4, not 768" in rows["shapes"]
    assert rows["verdict"] == "PROBLEMS: no published file has these shapes"
    assert rows["values"].startswith("finite") and "gains of norms" in rows["values"]


def test_the_line_fills_the_ledger(run, miniature, known, tmp_path):
    code, rows, _ = run(f"--verify={miniature}")
    assert code == 0 and rows["ledger"] == "nobody has measured Someone small_checkpoint yet"
    assert rows["verdict"].startswith("nothing speaks against Someone small_checkpoint")
    line = json.loads(rows["ledger line"])
    assert line["could_be"] == ["Someone small_checkpoint"] and line["problems"] == []
    assert line["fingerprint"] == inspection.fingerprint(miniature)
    known |= {name: line[name] for name in ("sha256", "fingerprint")} | {"measured_by": "a reader"}
    code, rows, _ = run(f"--verify={miniature}")
    text = "the file, byte for byte of Someone small_checkpoint, measured by a reader"
    assert (code, rows["ledger"]) == (0, text)
    copy = tmp_path / "copy.ckpt"
    convert.convert(miniature, copy, to="hmorimitsu")
    code, rows, _ = run(f"--verify={copy}", "--num_heads=2")
    assert code == 0 and rows["ledger"].startswith("the weights of Someone small_checkpoint")
    assert rows["verdict"] == "these are the weights of Someone small_checkpoint"


def test_other_weights_of_known_shapes(run, miniature, miniature_flat, known, tmp_path):
    known |= {"sha256": "0" * 64, "fingerprint": "0" * 64, "measured_by": "a reader"}
    code, rows, _ = run(f"--verify={miniature}")
    assert code == 1 and "its fingerprint is none of those that are known" in rows["verdict"]


def test_named_as_something_else(run, miniature, known, tmp_path):
    file = tmp_path / "maskgit_imagenet256_checkpoint"
    file.write_bytes(miniature.read_bytes())
    code, rows, _ = run(f"--verify={file}")
    assert code == 1 and "named as Google maskgit_imagenet256_checkpoint" in rows["verdict"]


@pytest.mark.parametrize(
    "name, change, problem",
    [
        ("MlmLayer_0/mlm_bias/bias", lambda x: x * np.nan, "not all numbers are finite"),
        ("MlmLayer_0/mlm_bias/bias", lambda x: x.byteswap(), "numbers beyond 1000"),
        ("MlmLayer_0/mlm_ln/scale", lambda x: -abs(x), "gains of norms outside 0 to 100"),
        ("MlmLayer_0/mlm_ln/scale", lambda x: 200 * abs(x) + 200, "gains of norms outside"),
        ("MlmLayer_0/mlm_dense/kernel", lambda x: 0 * x, "1 matrices are one number throughout"),
    ],
)
def test_values_that_no_training_gives(run, miniature_flat, known, tmp_path, name, change, problem):
    flat = miniature_flat
    flat[f"params/{name}"] = change(flat[f"params/{name}"]).astype(np.float32)
    code, rows, _ = run(f"--verify={write_flax(tmp_path / 'file', flat)}")
    assert code == 1 and problem in rows["values"] and problem in rows["verdict"]


def test_published_ranges():
    """Of a retrained model of Google's sizes the shapes fit and the values do not."""
    model = next(iter(ledger.models().values()))
    ranges = dict(model.ranges)
    assert ledger.out_of_range(model, ranges, "float32") == []
    ranges["params/MlmLayer_0/mlm_ln/scale"] = (0.5, 1.9)
    assert len(ledger.out_of_range(model, ranges, "float32")) == 1


def test_gains_are_found_in_every_kind():
    model_types = {model.model_type: model for model in ledger.models().values()}
    counts = {
        model_type: len(verify.norm_gains(model_type, model.config))
        for model_type, model in model_types.items()
    }
    assert (
        counts["maskgit_transformer"] == 50
        and counts["maskgit_vqvae"] == 50
        and min(counts.values()) > 20
    )


class TestAgainst:
    def test_another_format(self, run, miniature, known, tmp_path):
        convert.convert(miniature, tmp_path / "copy.ckpt", to="hmorimitsu")
        code, rows, _ = run(
            f"--verify={miniature}", f"--against={tmp_path / 'copy.ckpt'}", "--num_heads=2"
        )
        total = len(convert.api.open_checkpoint(miniature).tensors)
        assert code == 0 and rows["agreement"].startswith(f"{total} of {total} tensors are equal")

    def test_rounded(self, run, miniature, known, tmp_path):
        convert.convert(miniature, tmp_path / "copy", dtype="bfloat16")
        for files in ((miniature, tmp_path / "copy"), (tmp_path / "copy", miniature)):
            code, rows, _ = run(f"--verify={files[0]}", f"--against={files[1]}")
            assert code == 0 and "are equal when rounded to the other's dtype" in rows["agreement"]

    def test_one_number_differs(self, run, miniature, miniature_flat, known, tmp_path):
        name = "params/MlmLayer_0/mlm_dense/kernel"
        miniature_flat[name][1, 2] += 0.25
        other = write_flax(tmp_path / "other", miniature_flat)
        code, rows, _ = run(f"--verify={miniature}", f"--against={other}")
        assert code == 1 and f"1 differ, by at most 0.25 in {name}" in rows["agreement"]
        miniature_flat[name][1, 2] = np.nan
        other = write_flax(tmp_path / "other", miniature_flat)
        code, rows, _ = run(f"--verify={miniature}", f"--against={other}")
        assert code == 1 and f"by at most nan in {name}" in rows["agreement"]

    def test_other_sizes(self, run, miniature, known):
        other = GOLDEN / "official" / "tiny_tokenizer_checkpoint"
        code, rows, err = run(f"--verify={miniature}", f"--against={other}")
        assert (code, rows) == (1, {}) and err.count("\n") == 1 and "nothing to compare" in err

    def test_a_frozen_part(self, tmp_path):
        """UnlockMGM's model is a second source of Google's file."""
        whole = GOLDEN / "unlockmgm" / "tiny"
        convert.convert(whole, tmp_path / "frozen", to="flax")
        for files in ((whole, tmp_path / "frozen"), (tmp_path / "frozen", whole)):
            rows = verify.verify(*files).rows
            assert "tensors are equal bit for bit" in rows["agreement"]
            assert "differ" not in rows["agreement"] and "not the same" not in rows["verdict"]

    def test_missing_and_extra(self, miniature):
        first, second = (convert.api.open_checkpoint(miniature) for _ in range(2))
        name = "params/MlmLayer_0/mlm_bias/bias"
        second.tensors["params/more"] = second.tensors.pop(name)
        third = "params/MlmLayer_0/mlm_ln/bias"
        second.tensors[third] = second.tensors[third][:3]
        found = verify.compare(first, second)
        assert (found.missing, found.extra) == ((name,), ("params/more",)) and not found.agrees
        assert list(found.misshapen) == [third]
        assert "missing in the other: params/MlmLayer_0/mlm_bias/bias" in str(found)
        assert torch.equal(first.tensors[third][:3], second.tensors[third])


def test_an_average_against_weights_alone(run, miniature, tmp_path):
    """--weights chooses where there is something to choose."""
    state = convert.load_checkpoint(miniature)[2]
    average = {name: tensor + 1 for name, tensor in state.items()}
    torch.save({"model": state, "ema": average}, tmp_path / "both")
    torch.save(average, tmp_path / "alone")
    flags = ("--weights=ema", "--num_heads=2")
    files = (f"--verify={tmp_path / 'both'}", f"--against={tmp_path / 'alone'}")
    assert " of 25 tensors are equal" in run(*files, *flags)[1]["agreement"]
    code, _, err = run(f"--verify={tmp_path / 'alone'}", *flags)
    assert code == 1 and "alone: has no averaged weights (--weights=ema)" in err


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (["--against=x"], "--against is for --verify=FILE"),
        (["--verify=x", "--against="], "--against is empty"),
        (["--verify="], "--verify is empty"),
        (["--verify=x", "--input=y"], "--input, --list, --inspect and --verify exclude each other"),
    ],
)
def test_usage(run, arguments, reason):
    code, _, err = run(*arguments)
    assert code == 2 and reason in err
