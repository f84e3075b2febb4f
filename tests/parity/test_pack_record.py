"""`maskgit-parity record`: what it writes can be checked, and our port passes whatever was recorded."""

import dataclasses
import functools
import os

import pytest

jax = pytest.importorskip("jax", reason="needs the extra 'jax'")

import torch  # noqa: E402

from maskgit_pt.libml import jax_random, parallel_decode  # noqa: E402
from parity import jax_code, pairs, subjects  # noqa: E402
from parity.packs import (  # noqa: E402
    check,
    command,
    models,
    networks,
    pack,
    record,
    record_decoding,
    rounding,
)
from parity.packs.theirs import Theirs, run_of  # noqa: E402

CHECKOUT = os.environ.get("MASKGIT_OFFICIAL_CHECKOUT")


def ours(opened: pack.Pack) -> Theirs:
    """Everything that our port computes for the inputs of a pack."""
    found = Theirs()
    transformer = models.load(opened, "transformer")
    found.arrays |= networks.transformer_arrays(transformer, opened.whole("ids"))
    for row in opened.manifest["decoding"]:
        run = run_of(row)
        with torch.inference_mode():
            found.guesses[run.name] = parallel_decode.decode(
                torch.tensor(opened.whole(f"{run.prefix}state")[0]),
                jax_random.Key.from_words(list(run.key), run.partitionable),
                functools.partial(transformer, num_logits=run.codes),
                num_iter=run.num_iter,
                start_iter=run.start_iter,
                choice_temperature=run.temperature,
            ).numpy()
    if "images" in opened.entries:
        found.arrays |= tokenizer_arrays(models.load(opened, "tokenizer"), opened)
    return found


def tokenizer_arrays(model, opened):
    indices = opened.whole("tokenizer.indices")
    return networks.encoder_arrays(model, opened.whole("images")) | networks.decoder_arrays(
        model, indices
    )


def test_a_transformer_alone(tmp_path, monkeypatch):
    quick = functools.partial(
        jax.jit,
        compiler_options={
            "xla_backend_optimization_level": 0,
            "xla_disable_hlo_passes": "constant_folding",
        },
    )
    for module in (pairs, record, record_decoding):
        monkeypatch.setattr(module, "jit", quick)
    subject = subjects.seeded(jax_code.load_reference(), "pack", tmp_path, seed=3)
    checkpoints = {"transformer": subject.checkpoints["transformer"]}
    subject = dataclasses.replace(subject, tokenizer=None, checkpoints=checkpoints)
    options = record_decoding.Options(batch_size=1, num_iter=3, seed=3)
    folder = tmp_path / "pack"
    folder.mkdir()
    record.record(subject, folder, None, options, {"drawn": {"size": "small", "seed": 3}})
    opened = pack.read(folder)
    assert "tokenizer.indices" not in opened.entries and "transformer.loss" in opened.entries
    report = check.check(opened, ours(opened))
    assert report.passed and len(report.results) == 9
    assert (folder / "weights" / "transformer_checkpoint").is_file()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "--output is missing"),
        (["--output={used}"], 1, "is not an empty folder"),
        (["--output={new}", "--size=256", "--transformer=x"], 2, "--size is for seeded weights"),
        (["--output={new}", "--transformer=nowhere"], 1, "nowhere: no such file (--transformer)"),
        (["--output={new}", "--official=/"], 1, "no checkout of google-research/maskgit"),
        (["--output={new}", "--steps=2"], 2, "steps"),
    ],
)
def test_wrong_usage_takes_one_line(arguments, code, message, tmp_path, capsys):
    (tmp_path / "file").touch()
    places = {"used": tmp_path, "new": tmp_path / "new"}
    arguments = [argument.format(**places) for argument in arguments]
    assert command.run("record", arguments) == code
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "batch"), [(1, 1), (2, 2), (3, 3), (4, 2), (5, 5)])
def test_no_false_alarm(seed, batch, tmp_path):
    """Four clean runs each, of other seeds and batches: two numbers of threads, two dtypes."""
    output = tmp_path / "pack"
    assert (
        command.run("record", [f"--output={output}", f"--seed={seed}", f"--batch_size={batch}"])
        == 0
    )
    assert sum(path.stat().st_size for path in output.rglob("*") if path.is_file()) < 6e6
    opened = pack.read(output)
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            report = check.check(opened, ours(opened))
        finally:
            torch.set_num_threads(before)
        assert report.passed and not report.causes, report.first
    networks_of_pack = [models.load(opened, kind) for kind in ("transformer", "tokenizer")]
    for context in (rounding.in_bfloat16, rounding.autocast):
        transformer, tokenizer = networks_of_pack
        with context(transformer):
            arrays = networks.transformer_arrays(transformer, opened.whole("ids"))
        with context(tokenizer):
            arrays |= tokenizer_arrays(tokenizer, opened)
        report = check.check(opened, Theirs(arrays), "bfloat16")
        assert report.passed and not report.causes, report.first


@pytest.mark.slow
@pytest.mark.skipif(CHECKOUT is None, reason="set MASKGIT_OFFICIAL_CHECKOUT")
def test_googles_own_code(tmp_path):
    output = tmp_path / "pack"
    assert command.run("record", [f"--output={output}", f"--official={CHECKOUT}"]) == 0
    opened = pack.read(output)
    assert opened.manifest["recorded_from"]["official"]
    assert check.check(opened, ours(opened)).passed
