"""Folders: what is saved comes back, and what does not fit is named."""

import json
import subprocess
import sys

import pytest
import safetensors.torch
import torch
from recorded import load_tiny

from maskgit_pt import VQVAE, Transformer, pretrained

CLASSES = {"transformer": Transformer, "tokenizer": VQVAE}


@pytest.fixture(params=CLASSES)
def kind(request):
    return request.param


@pytest.fixture
def folder(tmp_path, kind):
    load_tiny(kind).save_pretrained(tmp_path / "model", metadata={"note": "kept"})
    return tmp_path / "model"


def test_round_trip(kind, folder):
    saved, loaded = load_tiny(kind), CLASSES[kind].from_pretrained(folder)
    assert not loaded.training
    assert loaded.to_config() == saved.to_config()
    for name, value in saved.state_dict().items():
        other = loaded.state_dict()[name]
        assert torch.equal(value, other), name
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]
    with safetensors.safe_open(folder / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "note": "kept"}


def test_channels_last_is_saved_in_plain_order(kind, folder, tmp_path):
    model = CLASSES[kind].from_pretrained(folder).to(memory_format=torch.channels_last)
    model.save_pretrained(tmp_path / "again")
    first, again = (
        safetensors.torch.load_file(path / "model.safetensors")
        for path in (folder, tmp_path / "again")
    )
    assert first.keys() == again.keys()
    assert all(torch.equal(value, again[name]) for name, value in first.items())


def test_dtype(kind, folder):
    loaded = CLASSES[kind].from_pretrained(folder, dtype=torch.bfloat16)
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    loaded.save_pretrained(folder)
    loaded = CLASSES[kind].from_pretrained(folder)  # as stored
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}


def _edit(folder, change):
    path = folder / "model.safetensors"
    state = safetensors.torch.load_file(path)
    change(state, sorted(state)[0])
    safetensors.torch.save_file(state, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state, name: state.pop(name), "missing"),
        (lambda state, name: state.update(intruder=torch.zeros(1)), "extra intruder"),
        (
            lambda state, name: state.update({name: torch.zeros(1, 2, 3)}),
            r"misshapen .*\[1, 2, 3\]",
        ),
    ],
)
def test_tensors_that_do_not_fit(kind, folder, change, message):
    _edit(folder, change)
    with pytest.raises(ValueError, match=rf"model\.safetensors: does not fit.*{message}"):
        CLASSES[kind].from_pretrained(folder)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"model_type": "bert"}', "[" * 100_000, '{"model_type": "%s"}', "\xff"]
)
def test_bad_config(kind, folder, text):
    text = text.replace("%s", CLASSES[kind].model_type)
    (folder / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"config\.json: ") as error:
        CLASSES[kind].from_pretrained(folder)
    assert "\n" not in str(error.value)


def test_unknown_field(kind, folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"surprise": 1}))
    if kind == "transformer":
        with pytest.raises(ValueError, match="surprise"):
            CLASSES[kind].from_pretrained(folder)


@pytest.mark.parametrize("value", [-1, 10**30])
def test_impossible_sizes(tmp_path, monkeypatch, value):
    monkeypatch.setattr(pretrained._WithoutInitialValues, "_MOST_CALLS", 2000)
    load_tiny("transformer").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    for name in ("vocab_size", "hidden_size", "num_hidden_layers"):
        path.write_text(json.dumps(config | {name: value}))
        with pytest.raises(ValueError) as error:
            Transformer.from_pretrained(tmp_path)
        assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_missing_and_broken_files(kind, folder, tmp_path):
    (folder / "model.safetensors").write_bytes(b"\x10" * 40)
    with pytest.raises(ValueError, match=r"model\.safetensors: not a safetensors file"):
        CLASSES[kind].from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors: missing"):
        CLASSES[kind].from_pretrained(folder)
    with pytest.raises(ValueError, match="is a JSON text, not a checkpoint; .*maskgit-convert"):
        CLASSES[kind].from_pretrained(folder / "config.json")


def test_no_such_model(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match="no/such: no such folder"):
        Transformer.from_pretrained("no/such")


def test_failed_save_leaves_the_old_file(folder, kind, monkeypatch):
    before = (folder / "model.safetensors").read_bytes()

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        load_tiny(kind).save_pretrained(folder)
    assert (folder / "model.safetensors").read_bytes() == before
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_import_is_light():
    """`import maskgit_pt` pulls in none of the optional or slow packages."""
    heavy = ["jax", "flax", "torchvision", "PIL", "matplotlib"]
    code = f"import sys, maskgit_pt; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr
