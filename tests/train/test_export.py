import pytest
import torch
from training import make_shards, one_process, run_here, tiny_config

from convert import api, inspection
from maskgit_pt import Transformer
from maskgit_pt.pretrained import load_any
from train import export, loop, plot
from train.tasks import networks


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    tokens = make_shards(folder / "tokens")
    state = run_here(tiny_config(tokens, keep_checkpoints=5), folder / "run")
    return folder / "run", state


def test_the_averaged_weights_of_the_newest_checkpoint(trained, tmp_path):
    run, state = trained
    assert export.cli([str(run), f"--output={tmp_path}"]) == 0
    model = Transformer.from_pretrained(tmp_path)
    for name, value in state.averages["transformer"].state_dict().items():
        assert torch.equal(model.state_dict()[name], value)


def test_the_names_of_the_classes_go_along(trained, tmp_path):
    run, _ = trained
    assert export.cli([str(run), f"--output={tmp_path / 'model'}"]) == 0
    model = Transformer.from_pretrained(tmp_path / "model")
    assert model.class_names == [f"class {i}" for i in range(5)] and model.image_size == 16
    rows = inspection.inspect(tmp_path / "model")
    assert rows["classes"] == "5: class 0, class 1, class 2, class 3, class 4"
    assert rows["pixels"] == "16 x 16"  # of 4 x 4 tokens: 4 pixels each, not 16
    summary = api.convert(tmp_path / "model", tmp_path / "file", to="flax")
    left_out = "class_names, image_size, tokenizer_fingerprint: left out"
    assert f"files of flax have no place for {left_out}" in summary.warnings
    api.convert(tmp_path / "model", tmp_path / "again")
    assert Transformer.from_pretrained(tmp_path / "again").class_names == model.class_names
    api.convert(tmp_path / "file", tmp_path / "back")
    assert Transformer.from_pretrained(tmp_path / "back").class_names is None
    assert inspection.inspect(tmp_path / "back")["pixels"] == "unknown, 4 x 4 tokens an image"


def test_a_run_does_not_go_on_with_other_classes(tmp_path):
    """As many classes with other names, or tokens of another tokenizer, leave the run as it is."""
    run = tmp_path / "run"
    for name, names, tokenizer in (
        ("tokens", list("abcde"), "0" * 64),
        ("others", list("abcdf"), "0" * 64),
        ("another", list("abcde"), "1" * 64),
    ):
        make_shards(tmp_path / name, names=names, tokenizer=tokenizer)
    run_here(tiny_config(tmp_path / "tokens", num_train_steps=2), run)
    before = (run / export.NETWORKS_NAME).read_bytes()
    for name, field in (("others", "class_names"), ("another", "tokenizer_fingerprint")):
        with pytest.raises(ValueError, match=f"this run has the {field} .*, the data has "):
            run_here(tiny_config(tmp_path / name, num_train_steps=3), run)
        assert (run / export.NETWORKS_NAME).read_bytes() == before
    assert run_here(tiny_config(tmp_path / "tokens", num_train_steps=3), run).step == 3


def test_other_weights(trained, tmp_path):
    run, state = trained
    last, step = export.load(run, average=False)
    assert step == 12
    for name, value in state.models["transformer"].state_dict().items():
        assert torch.equal(last.state_dict()[name], value)
    early, step = export.load(run, step=4)
    assert step == 4
    assert not torch.equal(early.embed.word_embeddings.weight, last.embed.word_embeddings.weight)


def test_a_run_becomes_a_file_of_google_format_and_comes_back(trained, tmp_path):
    run, _ = trained
    assert export.cli([str(run), f"--output={tmp_path / 'folder'}"]) == 0
    api.convert(tmp_path / "folder", tmp_path / "file", to="flax")
    back = load_any(tmp_path / "file", [Transformer])
    model = Transformer.from_pretrained(tmp_path / "folder")
    for name, value in model.state_dict().items():
        assert torch.equal(back.state_dict()[name], value)


def test_nothing_is_written_over_a_run_or_anything_else(trained, tmp_path, capsys):
    run, state = trained
    before = (run / "config.json").read_bytes()
    assert export.cli([str(run), f"--output={run}", "--overwrite"]) == 1
    assert f"{run} holds a training run, which stays as it is" in capsys.readouterr().err
    model = state.models["transformer"]
    with pytest.raises(ValueError, match="holds a training run"):
        model.save_pretrained(run)
    assert (run / "config.json").read_bytes() == before
    for name, content, found in (
        ("settings.json", "{}", "samples"),
        ("manifest.json", "{}", "token shards"),
        ("config.json", '{"model_type": "maskgit-vqgan"}', "a model of type 'maskgit-vqgan'"),
        ("config.json", "{}", "the settings of something else"),
    ):
        folder = tmp_path / name / found.replace(" ", "")
        folder.mkdir(parents=True)
        (folder / name).write_text(content)
        with pytest.raises(ValueError, match=f"holds {found}, which stays as it is"):
            model.save_pretrained(folder)
        assert [path.name for path in folder.iterdir()] == [name]
    assert export.cli([str(run), f"--output={tmp_path / 'model'}"]) == 0
    assert export.cli([str(run), f"--output={tmp_path / 'model'}", "--step=4"]) == 1
    assert "exists already; --overwrite replaces the model" in capsys.readouterr().err
    assert export.cli([str(run), f"--output={tmp_path / 'model'}", "--step=4", "--overwrite"]) == 0
    with (
        one_process() as processes,
        pytest.raises(ValueError, match="holds a model, not a training"),
    ):
        loop.train(tiny_config("x"), tmp_path / "model", processes)
    assert plot.cli([str(run), f"--output={run / 'config.json'}"]) == 2


def test_no_such_run_or_step(trained, tmp_path, capsys):
    run, _ = trained
    assert export.cli([str(run), f"--output={tmp_path}", "--step=5"]) == 1
    assert "no checkpoint of step 5; found: 4, 8, 12" in capsys.readouterr().err
    assert export.cli([str(tmp_path), f"--output={tmp_path}"]) == 1
    assert "is not the folder of a training run" in capsys.readouterr().err
    assert export.cli([]) == 2


def test_curves(trained, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="needs the extra 'train'")
    from PIL import Image

    run, _ = trained
    assert plot.cli([str(run)]) == 0
    assert Image.open(run / "curves.png").width > 500
    assert plot.cli([str(run), str(run), f"--output={tmp_path / 'both.png'}", "--smooth=0.5"]) == 0
    assert plot.cli([str(tmp_path)]) == 1
    assert "no metrics.jsonl" in capsys.readouterr().err


def test_starting_from_a_smaller_grid(trained, tmp_path):
    """Position embeddings grow from 4 x 4 to 8 x 8 and the class; everything else is copied."""
    run, _ = trained
    assert export.cli([str(run), f"--output={tmp_path / 'small'}"]) == 0
    small = Transformer.from_pretrained(tmp_path / "small")
    tokens = make_shards(tmp_path / "tokens", side=8)
    config = tiny_config(tokens, init_from=str(tmp_path / "small"), num_train_steps=1)
    with one_process() as processes:
        task = loop.make_task(config, processes)
        model = task.state.models["transformer"]
    old = small.embed.position_embeddings.weight
    new = model.embed.position_embeddings.weight
    assert new.shape == (65, 32)
    assert torch.equal(new[0], old[0])
    grid = new[1:].view(8, 8, -1)
    torch.testing.assert_close(grid[0, 0], old[1])  # corners stay
    torch.testing.assert_close(grid[-1, -1], old[-1])
    # Two new places lie symmetrically around an old one's place, between it and its neighbours.
    wanted = 0.75 * old[1] + 0.25 * old[2]
    torch.testing.assert_close(grid[0, 1], wanted)
    assert torch.equal(model.embed.word_embeddings.weight, small.embed.word_embeddings.weight)


def test_starting_from_another_size_is_refused(trained, tmp_path):
    run, _ = trained
    assert export.cli([str(run), f"--output={tmp_path / 'small'}"]) == 0
    tokens = make_shards(tmp_path / "tokens")
    config = tiny_config(tokens, init_from=str(tmp_path / "small"))
    config.transformer.num_embeds = 48
    with one_process() as processes, pytest.raises(ValueError, match="init_from: .* does not fit"):
        loop.make_task(config, processes)


def test_besnier_networks_train_too(tmp_path):
    tokens = make_shards(tmp_path / "tokens")
    changes = {"model": "besnier_transformer", "compute_loss_for_all": True}
    changes |= {"mask_scheduling_method": "arccos", "independent_masks": True, "polyak_decay": 0.0}
    state = run_here(tiny_config(tokens, **changes), tmp_path / "run")
    assert type(state.models["transformer"]).__name__ == "BesnierTransformer"
    assert export.cli([str(tmp_path / "run"), f"--output={tmp_path / 'folder'}"]) == 0
    assert load_any(tmp_path / "folder", [type(state.models["transformer"])]).num_tokens == 16


def test_work_of_the_published_networks():
    from train.configs import official256, official512

    small = networks.work_per_image(official256.get_config(), 1024, 256)
    large = networks.work_per_image(official512.get_config(), 1024, 1024)
    assert round(small / 1e9, 1) == 278.7 and round(large / 1e12, 2) == 1.29


def test_parameters_of_the_published_networks():
    from train.configs import besnier256, official256

    with torch.device("meta"):
        official = networks.make_model(official256.get_config(), 1024, 256)
        besnier = networks.make_model(besnier256.get_config(), 1024, 256)
    count = [sum(p.numel() for p in m.parameters()) for m in (official, besnier)]
    assert count == [172_457_193, 174_160_874]
