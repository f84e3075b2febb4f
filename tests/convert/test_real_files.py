"""Files and folders as they come: runs, train states, shards, prefixes, hub ids, Orbax."""

import json
import shutil
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import wrong_files
from convert_samples import MINIATURE, OFFICIAL, seeded_flat, write_flax
from wrong_files import Attack

import convert
from convert import __main__ as command
from convert import flax_msgpack, inspection
from convert.formats.recognise import open_checkpoint
from maskgit_pt import VQVAE, MaskGIT, Transformer, hub
from maskgit_pt.pretrained import load_any

TRANSFORMER, TOKENIZER = (
    OFFICIAL / f"tiny_{kind}_checkpoint" for kind in ("transformer", "tokenizer")
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Our folder of a transformer with 2 heads, whose files never change."""
    path = tmp_path_factory.mktemp("folder")
    file = write_flax(path / "flax", seeded_flat("maskgit_transformer", MINIATURE))
    convert.convert(file, path / "ours")
    return path / "ours"


@pytest.fixture
def state(folder):
    return dict(convert.load_checkpoint(folder)[2])


def same(path, state, **options) -> bool:
    found = convert.load_checkpoint(path, **options)[2]
    return found.keys() == state.keys() and all(torch.equal(found[k], state[k]) for k in state)


def save(path, content, packing):
    if packing == "torch":
        torch.save(content, path)
    else:
        import safetensors.torch

        flat = {}
        for key, value in content.items():
            flat |= (
                {f"{key}.{k}": v for k, v in value.items()}
                if isinstance(value, dict)
                else {key: value}
            )
        safetensors.torch.save_file({k: v.clone().contiguous() for k, v in flat.items()}, path)
    return path


@pytest.mark.parametrize("packing", ["torch", "safetensors"])
@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "model.", "net."]
)
def test_prefixes_in_every_packing(prefix, packing, state, tmp_path):
    file = save(tmp_path / "file", {prefix + name: t for name, t in state.items()}, packing)
    assert same(file, state, num_heads=2)
    notes = open_checkpoint(file, 2).notes
    assert notes == ([f"left out: the names' prefix {prefix}"] if prefix else [])


@pytest.mark.parametrize("packing", ["torch", "safetensors"])
def test_raw_and_averaged(packing, state, tmp_path):
    average = {name: tensor + 1 for name, tensor in state.items()}
    content = {"model": state, "ema": average}
    if packing == "torch":
        content |= {"optimizer": {"state": {}, "param_groups": []}, "step": 7}
    file = save(tmp_path / "file", content, packing)
    assert same(file, state, num_heads=2)
    assert same(file, state, num_heads=2, weights="raw")
    assert same(file, average, num_heads=2, weights="ema")
    assert "took the raw weights (model); --weights=ema takes the averaged ones (ema)" in (
        open_checkpoint(file, 2).notes
    )
    assert not any("took" in note for note in open_checkpoint(file, 2, None, "ema").notes)
    only = save(tmp_path / "only", {"model": state, "other": torch.ones(2)}, "torch")
    with pytest.raises(ValueError, match=r"only: .*no averaged weights \(--weights=ema\)"):
        convert.load_checkpoint(only, 2, None, "ema")
    with pytest.raises(ValueError, match="weights is 'best'; accepted: ema, raw"):
        convert.load_checkpoint(file, weights="best")


def test_nested_dictionaries(state, tmp_path):
    torch.save({"checkpoint": {"model": {"state_dict": state}, "epoch": 3}}, tmp_path / "file")
    assert same(tmp_path / "file", state, num_heads=2)


def cut(state, folder, packing="safetensors"):
    """Shards and their index."""
    import safetensors.torch

    names, places = list(state), {}
    suffix = {
        "safetensors": "model-0000{}-of-00002.safetensors",
        "torch": "pytorch_model-0000{}-of-00002.bin",
    }
    for number, part in enumerate((names[:5], names[5:]), 1):
        file = suffix[packing].format(number)
        tensors = {name: state[name].clone() for name in part}
        if packing == "torch":
            torch.save(tensors, folder / file)
        else:
            safetensors.torch.save_file(tensors, folder / file)
        places |= dict.fromkeys(part, file)
    index = {
        "torch": "pytorch_model.bin.index.json",
        "safetensors": "model.safetensors.index.json",
    }[packing]
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder / index


@pytest.mark.parametrize("packing", ["safetensors", "torch"])
def test_shards(packing, state, folder, tmp_path):
    index = cut(state, tmp_path, packing)
    shutil.copy(folder / "config.json", tmp_path)
    heads = {} if packing == "safetensors" else {"num_heads": 2}
    assert same(tmp_path, state, **heads) and same(index, state, **heads)
    model = Transformer.from_pretrained(tmp_path, **heads)
    assert torch.equal(
        model.state_dict()["mlm_layer.mlm_bias.bias"], state["mlm_layer.mlm_bias.bias"]
    )
    tree = json.loads(index.read_text())
    for change, reason in (
        (lambda places: places.update(extra=places[next(iter(places))]), "index differ in extra"),
        (lambda places: places.update({next(iter(places)): "no.bin"}), "shard no.bin is missing"),
        (
            lambda places: places.update({next(iter(places)): "../x"}),
            "names '../x'; accepted: files beside",
        ),
    ):
        places = dict(tree["weight_map"])
        change(places)
        index.write_text(json.dumps({"weight_map": places}))
        with pytest.raises(ValueError, match=reason) as caught:
            convert.load_checkpoint(tmp_path)
        assert str(caught.value).startswith(str(tmp_path)) and "\n" not in str(caught.value)


def test_what_is_wrong_with_a_shard(state, folder, tmp_path):
    """A second copy of a tensor does not count, nor do shards escape the hash; errors name the shard."""
    index = cut(state, tmp_path, "torch")
    shutil.copy(folder / "config.json", tmp_path)
    shard = max(tmp_path.glob("*.bin"))
    tensors = torch.load(shard, weights_only=True)
    before = inspection.inspect(index, 2)["file sha256"]
    torch.save({name: tensor + 1 for name, tensor in tensors.items()}, shard)
    assert inspection.inspect(index, 2)["file sha256"] != before
    for content, reason in (
        (tensors | {next(iter(state)): torch.ones(2)}, f"its index differ in {next(iter(state))}"),
        (tensors | {7: torch.ones(2)}, "its index differ in 7"),
        ([1], "holds no tensors by name"),
        ({"a": Attack(tmp_path / "made")}, "pickle tries to run .*; nothing of it was run"),
    ):
        torch.save(content, shard)
        wrong_files.refused(index, f"its shard {shard.name}.*{reason}", tmp_path / "output")
    assert not (tmp_path / "made").exists()


def train_state(flat):
    params = flax_msgpack.nest({name.removeprefix("params/"): a for name, a in flat.items()})
    average = flax_msgpack.nest({n.removeprefix("params/"): a + 1 for n, a in flat.items()})
    return {
        "step": np.asarray(70, np.int32),
        "params": params,
        "opt_state": {"0": {"count": np.asarray(70, np.int32), "mu": params}},
        "ema_params": average,
    }


def test_flax_train_state(tmp_path, miniature_flat):
    """With parameters or variables in it; raw or averaged; and bare parameters."""
    tree = train_state(miniature_flat)
    for content in (tree, tree | {"params": {"params": tree["params"]}}):
        (tmp_path / "file").write_bytes(flax_msgpack.dumps(content))
        for weights, more in ((None, 0), ("raw", 0), ("ema", 1)):
            found = open_checkpoint(tmp_path / "file", weights=weights)
            assert found.step == 70
            name = "params/MlmLayer_0/mlm_bias/bias"
            assert np.array_equal(
                found.tensors[name].numpy(), miniature_flat[name] + np.float32(more)
            )
    summary = convert.convert(tmp_path / "file", tmp_path / "out", weights="ema")
    assert summary.input_layout == "Flax train state layout, under 'ema_params'"
    assert any("opt_state (a dict of 1)" in note for note in summary.warnings)
    odd = tree | {"step": np.complex64(3 + 1j)}
    (tmp_path / "odd").write_bytes(flax_msgpack.dumps(odd))
    assert any("step (a tensor [])" in note for note in open_checkpoint(tmp_path / "odd").notes)
    (tmp_path / "bare").write_bytes(flax_msgpack.dumps(tree["params"]))
    summary = convert.convert(tmp_path / "bare", tmp_path / "google", to="flax")
    assert summary.input_layout == "bare Flax parameters layout"
    assert convert.read_flat(tmp_path / "google").keys() == miniature_flat.keys()


def test_orbax(tmp_path, miniature, miniature_flat):
    """Written here, restored in JAX; a train state written in JAX, read here."""
    orbax = pytest.importorskip("orbax.checkpoint", reason="needs the extra 'jax'")
    summary = convert.convert(miniature, tmp_path / "orbax", to="orbax")
    assert summary.verified and summary.output_format == "orbax"
    with orbax.StandardCheckpointer() as checkpointer:
        restored = dict(flax_msgpack.flatten(checkpointer.restore(tmp_path / "orbax")))
        checkpointer.save(tmp_path / "state", train_state(miniature_flat))
    assert restored.keys() == miniature_flat.keys()
    assert all(np.array_equal(restored[name], miniature_flat[name]) for name in restored)
    convert.convert(tmp_path / "orbax", tmp_path / "again")
    assert same(tmp_path / "again", convert.load_checkpoint(miniature)[2])
    found = open_checkpoint(tmp_path / "state", weights="ema")
    name = "params/MlmLayer_0/mlm_bias/bias"
    assert np.array_equal(found.tensors[name].numpy(), miniature_flat[name] + np.float32(1))
    summary = convert.convert(tmp_path / "state", tmp_path / "raw")
    assert summary.input_layout == "Orbax (Flax train state) layout, under 'params'"
    with pytest.raises(FileExistsError, match="cannot be merged with: remove it first"):
        convert.convert(miniature, tmp_path / "orbax", to="orbax", overwrite=True)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "_METADATA").write_text("{")
    with pytest.raises(ValueError, match="damaged: .*Orbax cannot read it") as caught:
        convert.load_checkpoint(tmp_path / "damaged")
    assert "\n" not in str(caught.value)


def test_orbax_that_cannot_be_written(tmp_path, miniature, monkeypatch):
    """A disk that is full, and one that becomes so: nothing stays behind."""
    orbax = pytest.importorskip("orbax.checkpoint", reason="needs the extra 'jax'")

    def fail(self, path, tree):
        path.with_name(f"{path.name}.orbax-checkpoint-tmp").mkdir()
        raise ValueError("RESOURCE_EXHAUSTED:\n No space left on device")

    monkeypatch.setattr(orbax.StandardCheckpointer, "save", fail)
    output = tmp_path / "orbax"
    with pytest.raises(OSError, match="Orbax: ValueError RESOURCE_EXHAUSTED: No space") as caught:
        convert.convert(miniature, output, to="orbax")
    assert caught.value.filename == str(output)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(OSError, match=f"No space left on device: '{output}'"):
        convert.convert(miniature, output, to="orbax")
    assert list(tmp_path.iterdir()) == [miniature]


def test_orbax_gives_equal_logits(tmp_path):
    pytest.importorskip("orbax.checkpoint", reason="needs the extra 'jax'")
    import orbax.checkpoint as orbax

    from parity.reference import maskgit_transformer as reference

    convert.convert(TRANSFORMER, tmp_path / "orbax", to="orbax")
    _, config, _ = convert.load_checkpoint(TRANSFORMER)
    model = Transformer.from_pretrained(TRANSFORMER)
    ids = torch.randint(0, config["vocab_size"], (2, config["max_position_embeddings"]))
    with orbax.StandardCheckpointer() as checkpointer:
        variables = checkpointer.restore(tmp_path / "orbax")
    del config["broadcast_dropout"]
    theirs = reference.Transformer(**config).apply(variables, ids.numpy(), deterministic=True)
    with torch.inference_mode():
        np.testing.assert_allclose(model(ids).numpy(), np.asarray(theirs), atol=2e-4, rtol=0)


def test_folders_of_ours_that_are_no_models(tmp_path, folder):
    run = tmp_path / "run"
    step = run / "checkpoints" / "step_000000200"
    step.mkdir(parents=True)
    (run / "config.json").write_text('{"task": "x"}')
    (step / ".metadata").write_bytes(b"x")
    shutil.copy(folder / "model.safetensors", step / "__0_0.distcp")
    samples = tmp_path / "samples"
    samples.mkdir()
    (samples / "settings.json").write_text("{}")
    (samples / "class0001_000000.png").write_bytes(b"x")
    for path, reason in (
        (run, f"is a training run; maskgit-export {run} --output=FOLDER"),
        (step, f"maskgit-export {run} --step=200 --output=FOLDER"),
        (step / "__0_0.distcp", f"maskgit-export {run} --step=200 --output=FOLDER"),
        (samples, "holds samples, no model"),
    ):
        for read in (convert.load_checkpoint, Transformer.from_pretrained):
            with pytest.raises(ValueError) as caught:
                read(path)
            assert str(caught.value).startswith(str(path)) and reason in str(caught.value)
    for path in (run, samples):
        with pytest.raises(ValueError, match="stays as it is"):
            Transformer.from_pretrained(folder).save_pretrained(path)


def test_optimizer_files(tmp_path):
    moments = {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(2)}}
    optimizer = {"state": moments, "param_groups": [{"lr": 0.1, "params": [0]}]}
    torch.save(optimizer, tmp_path / "optimizer.bin")
    with pytest.raises(ValueError, match="holds an optimizer's state, no weights"):
        convert.load_checkpoint(tmp_path / "optimizer.bin")


def test_a_tokenizer_is_no_transformer(folder):
    with pytest.raises(ValueError, match="model_type is 'maskgit_vqvae'; accepted here"):
        Transformer.from_pretrained(TOKENIZER)
    with pytest.raises(ValueError, match="model_type is 'maskgit_transformer'; accepted here"):
        load_any(folder, [VQVAE])


def test_what_was_assumed_is_told(state, tmp_path, foreign_files):
    file = foreign_files / "formats" / "hmorimitsu_maskgit.ckpt"
    with pytest.warns(
        UserWarning, match="hmorimitsu_maskgit.ckpt: the number of attention heads is not"
    ):
        assert Transformer.from_pretrained(file).to_config()["num_attention_heads"] == 16
    model = Transformer.from_pretrained(file, num_heads=4)
    assert model.to_config()["num_attention_heads"] == 4
    both = MaskGIT.from_pretrained(file, TOKENIZER, num_heads=4)
    assert both.transformer.to_config()["num_attention_heads"] == 4
    model.save_pretrained(tmp_path / "ours")
    with pytest.raises(ValueError, match="config.json: says num_attention_heads 4, not 8"):
        Transformer.from_pretrained(tmp_path / "ours", num_heads=8)


def test_byte_order_mark(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "bom")
    config = tmp_path / "bom" / "config.json"
    config.write_bytes(b"\xef\xbb\xbf" + config.read_bytes())
    assert Transformer.from_pretrained(tmp_path / "bom").to_config()["num_attention_heads"] == 2
    assert convert.load_checkpoint(tmp_path / "bom")[1]["num_attention_heads"] == 2


def test_pixels(tmp_path):
    for name, expected in (("tokenizer_imagenet512_checkpoint", 512), ("tok512_from_256", None)):
        shutil.copy(TOKENIZER, tmp_path / name)
        convert.convert(tmp_path / name, tmp_path / f"{name}_ours")
        config = json.loads((tmp_path / f"{name}_ours" / "config.json").read_text())
        assert config["vqvae"].get("pixels") == expected
    summary = convert.convert(TOKENIZER, tmp_path / "said", pixels=256)
    assert summary.resolution == "256 x 256"
    assert VQVAE.from_pretrained(tmp_path / "said").to_config()["vqvae"]["pixels"] == 256
    convert.convert(tmp_path / "said", tmp_path / "back", to="flax")
    assert (tmp_path / "back").read_bytes() == TOKENIZER.read_bytes()
    with pytest.raises(ValueError, match="--pixels is for the official tokenizer"):
        convert.convert(TRANSFORMER, tmp_path / "x", pixels=256)


class Hub:
    """The hub in a folder: repository -> folder; remembers what was asked."""

    def __init__(self, monkeypatch, root):
        import huggingface_hub

        self.root, self.calls, self.uploads = root, [], []
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.download)
        monkeypatch.setattr(
            huggingface_hub.HfApi, "list_repo_files", lambda api, name, **_: self.names(name)
        )
        created = lambda api, repo_id, **_: SimpleNamespace(repo_id=repo_id)  # noqa: E731
        monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", created)
        monkeypatch.setattr(
            huggingface_hub.HfApi, "upload_folder", lambda api, **options: self.upload(**options)
        )

    def download(self, repository, allow_patterns, **options):
        self.calls.append((repository, options))
        copy = self.root / "cache" / repository
        for file in (self.root / repository).rglob("*"):
            name = str(file.relative_to(self.root / repository))
            if file.is_file() and any(fnmatch(name, pattern) for pattern in allow_patterns):
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, copy / name)
        copy.mkdir(parents=True, exist_ok=True)
        return str(copy)

    def names(self, repository):
        files = (self.root / repository).rglob("*")
        return sorted(
            str(file.relative_to(self.root / repository)) for file in files if file.is_file()
        )

    def upload(self, *, repo_id, folder_path, **_):
        self.uploads.append((repo_id, sorted(p.name for p in Path(folder_path).iterdir())))
        return f"https://hub/{repo_id}"


@pytest.fixture
def fake_hub(monkeypatch, tmp_path, folder, foreign_files, state):
    fake = Hub(monkeypatch, tmp_path / "hub")

    repository = tmp_path / "hub" / "owner"
    shutil.copytree(folder, repository / "ours")
    shutil.copytree(folder, repository / "both" / "transformer")
    convert.convert(TOKENIZER, tmp_path / "tokenizer")
    shutil.copytree(tmp_path / "tokenizer", repository / "both" / "tokenizer")
    shutil.copytree(foreign_files / "formats" / "open_muse", repository / "muse")
    shutil.copytree(foreign_files / "formats" / "open_muse", repository / "deep" / "a" / "b")
    shutil.copy(foreign_files / "formats" / "mage_vqgan.ckpt", repository / "deep" / "mage.ckpt")
    (repository / "cut").mkdir()
    cut(state, repository / "cut")
    shutil.copy(folder / "config.json", repository / "cut")
    (repository / "zips").mkdir()
    for name in ("README.md", "UnlockMGM_imagenet_256.zip", "UnlockMGM_imagenet_512.zip"):
        (repository / "zips" / name).write_bytes(b"")
    return fake


@pytest.mark.parametrize(
    ("name", "cls"),
    [
        ("owner/ours", Transformer),
        ("owner/ours@v1", Transformer),
        ("owner/both/transformer", Transformer),
        ("owner/both/tokenizer@abc", VQVAE),
        ("owner/muse", VQVAE),
        ("owner/deep/a/b", VQVAE),
        ("owner/deep/mage.ckpt", VQVAE),
        ("owner/cut", Transformer),
    ],
)
def test_hub_ids(name, cls, fake_hub):
    model = cls.from_pretrained(name, token="t", cache_dir="c", local_files_only=True)
    assert not model.training
    repository, options = fake_hub.calls[-1]
    assert repository == "/".join(name.partition("@")[0].split("/")[:2])
    assert options["revision"] == (name.partition("@")[2] or None)
    assert (options["token"], options["cache_dir"], options["local_files_only"]) == ("t", "c", True)


def test_hub_ids_that_do_not_work(fake_hub, tmp_path, monkeypatch):
    with pytest.raises(
        FileNotFoundError, match="owner/none: the repository holds no weights there$"
    ):
        Transformer.from_pretrained("owner/none")
    there = "it has UnlockMGM_imagenet_256.zip, UnlockMGM_imagenet_512.zip. A file of it is owner/zips/FILE"
    with pytest.raises(FileNotFoundError, match=f"holds no weights there; {there}"):
        Transformer.from_pretrained("owner/zips")
    with pytest.raises(ValueError, match="names a revision, and revision='b' another"):
        Transformer.from_pretrained("owner/ours@a", revision="b")
    with pytest.raises(FileNotFoundError, match="no such folder or file"):
        Transformer.from_pretrained(tmp_path / "missing")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", "/cache")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(
        FileNotFoundError, match="the cache /cache cannot be written; HF_HOME names"
    ):
        Transformer.from_pretrained("owner/ours")


def test_convert_from_the_hub(fake_hub, tmp_path):
    summary = convert.convert("owner/muse", tmp_path / "out")
    assert summary.input_format == "open-muse" and summary.verified


def test_push(fake_hub, folder, tmp_path, monkeypatch, capsys):
    Transformer.from_pretrained(folder).push_to_hub("owner/new")
    files = ["README.md", "config.json", "model.safetensors"]
    assert fake_hub.uploads == [("owner/new", files)]
    monkeypatch.setattr(
        "sys.argv",
        ["convert", f"--input={folder}", f"--output={tmp_path / 'out'}", "--push=owner/made"],
    )
    assert command.cli() == 0
    assert "uploaded:   https://hub/owner/made" in capsys.readouterr().out
    assert fake_hub.uploads[1:] == [("owner/made", files)]
    assert hub.locate(folder) == folder
