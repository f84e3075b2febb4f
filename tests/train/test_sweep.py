"""Sweeps, whole, over a small model with random weights and real digits."""

import csv
import json
from pathlib import Path

import numpy as np
import processes
import pytest
import torch
from PIL import Image
from training import make_shards, run_here, tiny_config

from maskgit_pt import VQVAE, MaskGIT, Transformer
from maskgit_pt.decoding import resolve
from maskgit_pt.files import write_atomically
from train import sweep
from train.configs import digits_tokenizer
from train.demos.images import load_digits
from train.evaluation import ModelSource, evaluate
from train.sweeps import findings, report, run, studies
from train.sweeps.cells import Cell, CellFiles, Model, plan
from train.sweeps.report import draw, to_csv, to_json, to_markdown
from train.sweeps.sweep import Sweep

GRID = ["--grid=steps=2,4", "--grid=guidance=0,2"]


@pytest.fixture(autouse=True)
def same_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model and a tokenizer for digits, and 200 real digits."""
    folder = tmp_path_factory.mktemp("sweep")
    make_transformer(0).save_pretrained(folder / "model", metadata={"step": "200"})
    make_transformer(1).save_pretrained(folder / "earlier", metadata={"step": "100"})
    torch.manual_seed(2)
    config = digits_tokenizer.get_config()
    config.vqvae.filters = 32
    VQVAE(config).save_pretrained(folder / "tokenizer")
    images = load_digits(None, False, 0)["train"].images[:200]
    np.savez(folder / "digits.npz", arr_0=np.repeat(images[..., None], 3, -1))
    return folder


def make_transformer(seed: int) -> Transformer:
    torch.manual_seed(seed)
    return Transformer(
        256 + 10 + 1, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=17, initializer_range=0.5,
    )  # fmt: skip


@pytest.fixture
def call(folder, tmp_path, monkeypatch):
    """The command; its plot, which takes longer than a small grid, where a test looks at it."""

    def call(*args: str, plot: bool = False) -> int:
        with monkeypatch.context() as patch:
            if not plot:
                patch.setattr(report, "draw", lambda sweep, path: write_atomically(path, b""))
            return sweep.cli(arguments(folder, tmp_path) + list(args))

    return call


def arguments(folder: Path, output: Path) -> list[str]:
    return [
        f"--model={folder / 'model'}", f"--tokenizer={folder / 'tokenizer'}", "--features=pixels",
        f"--reference={folder / 'digits.npz'}", "--num_samples=30", "--batch_size=10", "--device=cpu",
        "--threads=1", "--cache=", f"--output={output}",
    ]  # fmt: skip


def cell_files(output: Path) -> list[Path]:
    return sorted((output / "cells").glob("*.json"))


def document(output: Path, name: str = "grid") -> dict:
    return json.loads((output / f"{name}.json").read_text())


def test_two_by_two(call, folder, tmp_path, capsys):
    """Table, plot and numbers of a grid; they are those of `evaluate` for the same settings."""
    assert call(*GRID, plot=True) == 0
    found = document(tmp_path)
    assert found["axes"] == {"steps": [2, 4], "guidance": [0, 2]}
    assert [cell["labels"] for cell in found["cells"]] == [
        {"steps": 2, "guidance": 0}, {"steps": 2, "guidance": 2},
        {"steps": 4, "guidance": 0}, {"steps": 4, "guidance": 2},
    ]  # fmt: skip
    assert len({cell["metrics"]["pixels_frechet_distance"] for cell in found["cells"]}) == 4
    model = MaskGIT.from_pretrained(folder / "model", folder / "tokenizer", dtype=torch.float32)
    source = ModelSource(model, 30, settings={"steps": 4, "guidance": 2.0})
    alone = evaluate(source, folder / "digits.npz", features="pixels", batch_size=10)
    assert alone.metrics == found["cells"][3]["metrics"]
    out = capsys.readouterr().out
    assert "cell 4 of 4: steps 4, guidance 2" in out and "images/s" in out and "left" in out
    text = (tmp_path / "grid.md").read_text()
    assert text in out and text.count("| this model |") == 4
    for part in ("pixels frechet distance", "no FID", "count 30", "seed 42", "digits.npz"):
        assert part in text
    assert "| FID |" not in text and "published:" not in text
    with open(tmp_path / "grid.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    for line, cell in zip(lines, found["cells"], strict=True):
        assert line["steps"] == str(cell["labels"]["steps"]) and line["sampler"] == "official"
        assert float(line["pixels_recall"]) == cell["metrics"]["pixels_recall"]
    with Image.open(tmp_path / "grid.png") as image:
        assert image.width > 1000 and len(image.convert("RGB").getcolors(2**24)) > 20


def test_goes_on_where_it_was(call, tmp_path, capsys, monkeypatch):
    """What is there is not computed again; what is missing or damaged is, and alike."""
    made = []
    evaluate_cell = run.Sweeping._evaluate

    def counted(self, cell, *others):
        made.append(str(cell))
        return evaluate_cell(self, cell, *others)

    monkeypatch.setattr(run.Sweeping, "_evaluate", counted)
    assert call(*GRID) == 0 and len(made) == 4
    files, first = cell_files(tmp_path), (tmp_path / "grid.json").read_bytes()
    assert len(files) == 4
    assert call(*GRID) == 0 and len(made) == 4
    assert (tmp_path / "grid.json").read_bytes() == first
    metrics = [cell["metrics"] for cell in document(tmp_path)["cells"]]
    files[0].write_text(files[0].read_text()[:100])
    files[1].write_text(files[1].read_text().replace("0.", "0.1", 1))
    files[2].unlink()
    capsys.readouterr()
    assert call(*GRID) == 0 and len(made) == 7
    assert capsys.readouterr().err.count("is damaged; it is made again") == 2
    assert [cell["metrics"] for cell in document(tmp_path)["cells"]] == metrics
    assert call("--grid=steps=2,3,4", GRID[1]) == 0
    assert made[7:] == ["steps 3, guidance 0", "steps 3, guidance 2"]


def test_interrupted(call, tmp_path, monkeypatch):
    """Cells done before an interruption stay."""
    evaluate_cell, made = run.Sweeping._evaluate, []

    def twice(self, cell, *others):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(str(cell))
        return evaluate_cell(self, cell, *others)

    monkeypatch.setattr(run.Sweeping, "_evaluate", twice)
    assert call(*GRID) == 130
    assert len(cell_files(tmp_path)) == 2 and not (tmp_path / "grid.md").exists()
    made.clear()
    assert call(*GRID) == 0
    assert made == ["steps 4, guidance 0", "steps 4, guidance 2"]


def test_what_a_result_depends_on(call, folder, tmp_path):
    """Each of these makes another cell; the machine's settings do not."""
    one = ["--grid=steps=2"]
    changes = [
        [], ["--seed=1"], ["--num_samples=20"], ["--labels=3"], ["--features=random"],
        ["--neighbours=2"], ["--num_reference=100"], ["--dtype=bfloat16"], ["--metrics=fid"],
        [f"--model={folder / 'earlier'}"], ["--choice_temperature=1"], ["--sampler=halton"],
    ]  # fmt: skip
    for number, change in enumerate(changes, 1):
        assert call(*one, *change) == 0
        assert len(cell_files(tmp_path)) == number, change
    images = np.load(folder / "digits.npz")["arr_0"][:150]
    np.savez(tmp_path / "other.npz", arr_0=images)
    assert call(*one, f"--reference={tmp_path / 'other.npz'}") == 0
    assert len(cell_files(tmp_path)) == len(changes) + 1
    np.savez_compressed(tmp_path / "moved.npz", arr_0=np.load(folder / "digits.npz")["arr_0"])
    for same in (
        ["--batch_size=7"], ["--choice_temperature=4.5"], ["--guidance_schedule=constant"],
        [f"--reference={tmp_path / 'moved.npz'}"],
    ):  # fmt: skip
        assert call(*one, *same) == 0
    assert len(cell_files(tmp_path)) == len(changes) + 1


def test_studies_on_another_size(call, tmp_path, capsys):
    """A study runs on any model; its values can be replaced."""
    assert call("--study=schedulers") == 0
    found = document(tmp_path, "schedulers")
    assert found["axes"] == {"schedule": ["root", "linear", "square", "cosine", "arccos"]}
    assert {cell["settings"]["sampler"] for cell in found["cells"]} == {"confidence"}
    assert call("--study=guidance", "--grid=guidance=1,2", "--steps=3", "--grid=seed=1,2") == 0
    found = document(tmp_path, "guidance")
    assert found["axes"] == {"guidance": [1, 2], "seed": [1, 2]}
    assert {cell["settings"]["steps"] for cell in found["cells"]} == {3}
    assert (
        call("--study=best") == 0 and "choice temperature 4.5" in (tmp_path / "best.md").read_text()
    )
    assert call("--study=steps", "--metrics=fid", "--num_samples=10") == 0
    assert document(tmp_path, "steps")["axes"] == {"steps": [4, 6, 8, 10, 12, 16]}
    assert "left out: 24, 32 steps; the model has 16 tokens" in capsys.readouterr().out
    assert call("--study=steps", "--grid=steps=4,24") == 1


def test_models_by_training_step(call, folder, tmp_path):
    """Exported models know their step."""
    both = f"--model={folder / 'model'},{folder / 'earlier'}"
    assert call("--study=training", both) == 0
    found = document(tmp_path, "training")
    assert found["axes"] == {"step": [100, 200]}
    weights = [cell["protocol"]["samples"]["weights"] for cell in found["cells"]]
    assert weights[0][0] != weights[1][0] and weights[0][1] == weights[1][1]
    assert call("--grid=steps=2,3", both) == 0
    assert document(tmp_path)["axes"] == {"steps": [2, 3], "step": [100, 200]}


def test_checkpoints_of_a_run(call, tmp_path, capsys):
    config = tiny_config(make_shards(tmp_path / "tokens"), keep_checkpoints=5)
    run_here(config, tmp_path / "run")
    config = digits_tokenizer.get_config()
    config.vqvae.update(codebook_size=16, filters=32, channel_multipliers=(1, 1, 1))
    VQVAE(config).save_pretrained(tmp_path / "tokenizer")
    images = np.random.default_rng(0).integers(0, 255, (50, 16, 16, 3), np.uint8)
    np.savez(tmp_path / "reference.npz", arr_0=images)
    args = ["--model=", f"--run={tmp_path / 'run'}", f"--tokenizer={tmp_path / 'tokenizer'}",
            f"--reference={tmp_path / 'reference.npz'}", "--study=training", "--steps=4"]  # fmt: skip
    assert call(*args) == 0
    whole = document(tmp_path, "training")
    assert whole["axes"] == {"step": [4, 8, 12]}
    distances = [cell["metrics"]["pixels_frechet_distance"] for cell in whole["cells"]]
    assert len(set(distances)) == 3
    assert call(*args, "--grid=step=4,12") == 0
    assert document(tmp_path, "training")["axes"] == {"step": [4, 12]}
    assert len(cell_files(tmp_path)) == 3
    assert call(*args, "--noaverage", "--grid=step=12") == 0
    assert len(cell_files(tmp_path)) == 4
    capsys.readouterr()
    assert call(*args, "--grid=step=5") == 1
    assert "no checkpoint of step 5; found: 4, 8, 12" in capsys.readouterr().err


def test_two_processes(folder, tmp_path):
    """Two processes give the numbers of one."""
    args = [*arguments(folder, tmp_path / "one"), "--grid=steps=2,3"]
    assert sweep.cli(args) == 0
    argv = [*args, f"--output={tmp_path / 'two'}"]
    group = processes.run(sweep.cli, argv, logs=tmp_path / "logs", count=2)
    one, two = (document(tmp_path / name)["cells"] for name in ("one", "two"))
    assert [cell["metrics"] for cell in one] == [cell["metrics"] for cell in two]
    assert [p.name for p in cell_files(tmp_path / "one")] == [
        p.name for p in cell_files(tmp_path / "two")
    ]
    assert group.text().count("cell 1 of 2") == 1


def test_bad_input(call, folder, tmp_path, capsys):
    def error(*args: str, code: int = 2) -> str:
        capsys.readouterr()
        assert call(*args) == code
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and lines[0].startswith("maskgit-sweep: error: ")
        return lines[0]

    assert "--study=scheduler: unknown; did you mean schedulers?" in error("--study=scheduler")
    assert "studies: best, comparison" in error()
    assert "no setting 'step'; did you mean steps?" in error("--grid=step=1,2")
    assert "did you mean guidance?" in error("--grid=guidence=1")
    assert "go into --model=A,B" in error("--grid=model=a,b")
    assert "no values" in error("--grid=steps")
    assert "no values" in error("--grid=steps=")
    assert "--grid=steps=two" in error("--grid=steps=two")
    assert "--grid=steps=0" in error("--grid=steps=0")
    assert "there twice" in error("--grid=steps=1", "--grid=steps=2")
    assert "exclude each other" in error("--grid=steps=1", "--steps=2")
    assert "--reference is missing" in error("--grid=steps=1", "--reference=")
    assert "one of --model and --run" in error("--grid=steps=1", "--run=somewhere")
    assert "needs --run=RUN" in error("--study=training")
    assert "steps 20: steps is 20; accepted: 1 to 16" in error("--grid=steps=4,20", code=1)
    assert "schedule is 'sine'" in error("--grid=schedule=cosine,sine", code=1)
    assert "has no eta" in error("--grid=eta=1,2", code=1)
    assert "nowhere.npz: no such file" in error(*GRID, "--reference=nowhere.npz", code=1)
    assert "metric 'kad' is unknown" in error(*GRID, "--metrics=kad", code=1)
    assert "--labels" in error(*GRID, "--labels=10", code=1)
    assert "nowhere" in error(*GRID, f"--model={tmp_path / 'nowhere'}", code=1)
    assert not cell_files(tmp_path)


def test_foreign_files_stay_without_overwrite(call, tmp_path, capsys):
    """Told before any cell is computed; `--overwrite` replaces them, and a sweep replaces a sweep."""
    for suffix, text in ((".json", "{}"), (".md", "mine"), (".csv", "mine"), (".png", "mine")):
        path = tmp_path / f"grid{suffix}"
        path.write_text(text)
        assert call("--grid=steps=2") == 1
        assert f"{path} is there and is no sweep" in capsys.readouterr().err
        assert path.read_text() == text and not cell_files(tmp_path)
        path.unlink()
    path.write_text("mine")
    assert call("--grid=steps=2", "--overwrite") == 0
    assert path.read_bytes() != b"mine"
    assert call("--grid=steps=2") == 0


def test_list(capsys):
    assert sweep.cli(["--list"]) == 0
    out = capsys.readouterr().out
    for name in studies.STUDIES:
        assert f"{name}: " in out


@pytest.mark.parametrize("name", studies.STUDIES)
@pytest.mark.parametrize("size", [256, 512])
def test_studies_can_be_sampled(name, size):
    """All settings are valid, and best settings are a cell of each study over one of them."""
    cells = make_sweep(name, size, "inception").cells
    assert cells and all(cell.resolved["steps"] for cell in cells)
    best = resolve(studies.BEST_256 if size == 256 else studies.BEST_512)
    assert (best in [cell.resolved for cell in cells]) is not (name == "schedulers" and size == 512)


def make_sweep(name: str, size: int, features: str) -> Sweep:
    """A study with invented results."""
    study = studies.STUDIES[name]
    models = [
        Model(1000 * i, f"m{i}", None, str) for i in range(1, 4 if study.over_training else 2)
    ]
    axes, cells = plan(*study.at(size), models, "step", 42, study.over_training)
    prefix = "" if features == "inception" else f"{features}_"
    names = ("fid", "inception_score", "inception_score_std", "precision")
    results = [
        {
            "metrics": {prefix + name: 1.5 + i for name in names},
            "protocol": {
                "samples": {"count": 50_000, "size": f"{size} x {size}", "settings": cell.resolved},
                "features": {"name": features},
            },
            "images_per_second": 10.0,
        }
        for i, cell in enumerate(cells)
    ]
    return Sweep(name, study.title, axes, cells, results, size)


def test_published_numbers(tmp_path):
    """They stand beside cells of the same settings and size, as published, with their source."""
    table = to_markdown(make_sweep("schedulers", 512, "inception"))
    assert "| Besnier & Chen 2023 [1] | root | 8.21 | 252.96 |  |" in table
    assert "| Besnier & Chen 2023 [1] | linear | 7.80 | 238.21 |  |" in table
    assert table.count("| this model |") == table.count("| Besnier & Chen 2023 [1] |") == 5
    assert "[1] arXiv 2310.14400, Table 4; " in table
    for name in ("best", "gumbel", "steps", "guidance", "training"):
        table = to_markdown(make_sweep(name, 256, "inception"))
        assert table.count("6.80 | 214 | 0.82") == 1, name
        assert "7.26 | 223 | 0.85" in to_markdown(make_sweep(name, 512, "inception"))
    table = to_markdown(make_sweep("comparison", 256, "inception"))
    for number in ("6.80", "6.18", "6.06", "4.86", "4.45"):
        assert f"| {number} |" in table
    lines = list(csv.reader(to_csv(make_sweep("comparison", 256, "inception")).splitlines()))
    assert len(lines) == 1 + 4 + 5 and {len(line) for line in lines} == {len(lines[0])}
    draw(make_sweep("comparison", 256, "inception"), tmp_path / "plot.png")
    draw(make_sweep("training", 256, "inception"), tmp_path / "lines.png")


def test_other_features_are_not_compared(tmp_path):
    for sweep_ in (make_sweep("schedulers", 512, "pixels"), make_sweep("best", 256, "random")):
        table = to_markdown(sweep_)
        assert "Besnier" not in table and "no FID" in table and "| FID |" not in table
        assert json.loads(to_json(sweep_))["published"] == []


def test_settings_that_are_the_same():
    default = resolve({})
    assert resolve({"sampler": "official", "steps": 16, "guidance": 0}) == default
    # Without guidance its schedule has no effect.
    assert resolve({"guidance_schedule": "constant"}) == default
    assert resolve({"guidance": 1}) == resolve({"guidance": 1.0}) != default
    with pytest.raises(ValueError, match="has no eta"):
        resolve({"eta": 1.0})


def test_cell_files(tmp_path):
    files = CellFiles(tmp_path / "cells")
    key = files.key({"a": 1})
    assert key != files.key({"a": 2}) and files.load(key) == (None, False)
    files.store(key, {"metrics": {"x": 0.1}})
    assert files.load(key) == ({"metrics": {"x": 0.1}}, False)
    for damage in ("", "[]", "{}", "null", '{"result": 1, "checksum": 2}'):
        files.path(key).write_text(damage)
        assert files.load(key) == (None, True)
    other = files.key({"a": 2})
    files.store(key, {"metrics": {}})
    files.path(key).rename(files.path(other))  # of other settings
    assert files.load(other) == (None, True)


def fake(name: str, curves: dict[int, dict], metric: str = "pixels_frechet_distance") -> Sweep:
    """A sweep whose numbers are given: seed -> value of the axis -> metric."""
    along = {"gumbel": "choice_temperature", "schedulers": "schedule", "training": "step"}.get(
        name, name
    )
    cells, results = [], []
    protocol = {
        "features": {"name": "pixels"}, "samples": {"count": 10, "size": "8 x 8"},
    }  # fmt: skip
    for seed, curve in curves.items():
        for value, number in curve.items():
            settings = {} if along == "step" else {along: value, "sampler": "confidence"}
            cells.append(Cell({along: value, "seed": seed}, settings, 0, seed))
            metrics = {metric: number}
            results.append({"metrics": metrics, "protocol": protocol, "images_per_second": 1.0})
    axes = {along: list(next(iter(curves.values()))), "seed": list(curves)}
    return Sweep(name, name, axes, cells, results, 8)


FID, IS = "pixels_frechet_distance", "pixels_class_score"
GOOD = {  # of each finding a curve that agrees with it, and one that does not
    "noise in the confidence lowers FID": ({0.0: 9, 4.5: 5, 10.0: 8}, {0.0: 5, 4.5: 6, 10.0: 4}),
    "FID hardly improves after 12 steps": ({4: 20, 8: 12, 12: 10, 32: 9.5}, {4: 20, 8: 19, 12: 18, 32: 9}),
    "the Inception Score rises with the steps": ({4: 1, 8: 2, 12: 3}, {4: 3, 8: 1, 12: 2}),
    "FID is lowest at a weight between none and the largest": (
        {0.0: 9, 2.0: 5, 9.0: 8}, {0.0: 9, 2.0: 8, 9.0: 7}),
    "FID is lowest at weight 3": ({2.0: 7, 3.0: 6, 4.0: 8}, {2.0: 5, 3.0: 6, 4.0: 8}),
    "the Inception Score rises with the weight": ({0.0: 1, 2.0: 2, 9.0: 3}, {0.0: 3, 2.0: 2, 9.0: 1}),
    "root and linear have the highest Inception Scores": (
        {"root": 5, "linear": 4, "square": 3}, {"root": 5, "linear": 3, "square": 4}),
    "root and linear have the highest FID": (
        {"root": 5, "linear": 4, "square": 3}, {"root": 5, "linear": 3, "square": 4}),
    "square has the lowest FID at 12 steps": ({"root": 5, "square": 3}, {"root": 2, "square": 3}),
    "FID falls along the training": ({1: 9, 2: 7, 3: 5}, {1: 5, 2: 9, 3: 7}),
    "the Inception Score rises along the training": ({1: 1, 2: 2, 3: 3}, {1: 3, 2: 1, 3: 2}),
}  # fmt: skip


@pytest.mark.parametrize("finding", findings.FINDINGS, ids=lambda finding: finding.text)
def test_each_finding_can_hold_and_fail(finding):
    """Seeds that agree, that do not, and that disagree; a curve without the values is not judged."""
    good, bad = GOOD[finding.text]
    metric = FID if finding.metric == "fid" else IS
    for curves, verdict in (
        ({0: good, 1: good}, findings.HOLDS),
        ({0: bad, 1: bad}, findings.FAILS),
        ({0: good, 1: bad}, findings.UNDECIDED),
    ):
        judged = findings.judge(fake(finding.study, curves, metric))
        assert [v.verdict for v in judged if v.finding is finding] == [verdict]
    first = dict([next(iter(good.items()))])
    judged = findings.judge(fake(finding.study, {0: first, 1: first}, metric))
    assert finding not in [v.finding for v in judged] or finding.text.startswith("root")


def test_seeds_are_averaged_and_findings_told(tmp_path):
    sweep_ = fake("guidance", {0: {0.0: 9, 3.0: 5, 9.0: 8}, 1: {0.0: 11, 3.0: 6, 9.0: 7}})
    text = to_markdown(sweep_)
    assert "| this model | 3 | 5.5 ± 0.71 | 1 |" in text and "over 2 seeds" in text
    assert "| FID is lowest at weight 3 | holds | 2 of 2 | 0: 10, 3: 5.5, 9: 7.5 |" in text
    found = json.loads(to_json(sweep_))
    assert len(found["cells"]) == 6 and found["findings"][1]["verdict"] == "holds"
    draw(sweep_, tmp_path / "guidance.png")
    draw(
        fake("schedulers", {0: {"root": 3, "arccos": 4}, 1: {"root": 4, "arccos": 5}}),
        tmp_path / "s.png",
    )
    assert Image.open(tmp_path / "s.png").width > 300
    assert studies.published_curve("schedulers", 512)["square"]["fid"] == 7.50


def test_each_seed_has_its_own_model(call, folder, tmp_path, capsys):
    """{seed} in a name: the cells of a seed are those of its model alone."""
    for seed in (0, 1):
        make_transformer(seed).save_pretrained(folder / f"trained_{seed}")
    own = f"--model={folder / 'trained_{seed}'}"
    assert call(own, "--grid=guidance=0,2", "--grid=seed=0,1") == 0
    together = document(tmp_path)["cells"]
    assert [cell["labels"] for cell in together] == [
        {"guidance": 0, "seed": 0}, {"guidance": 0, "seed": 1},
        {"guidance": 2, "seed": 0}, {"guidance": 2, "seed": 1},
    ]  # fmt: skip
    assert call(f"--model={folder / 'trained_1'}", "--grid=guidance=0,2", "--grid=seed=1") == 0
    assert "2 cells, 2 remembered" in capsys.readouterr().out
    alone = document(tmp_path)["cells"]
    assert [c["metrics"] for c in alone] == [together[1]["metrics"], together[3]["metrics"]]
