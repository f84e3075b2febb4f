"""UnlockMGM's folders and zip archives: in, out, Google's file out of them, wrong ones, all the way."""

import dataclasses
import io
import json
import pickle
import shutil
import stat
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import wrong_files
from recorded import OFFICIAL
from self_guidance_files import FOLDER, NETWORKS, published, recorded, text, zipped
from wrong_files import FAULTS, Attack, mutated

import convert
from convert import flax_msgpack, formats, infer, inspection, rules
from convert.checkpoint import Given
from convert.files import archive
from convert.formats.recognise import open_checkpoint, recognise, writers
from convert.formats.state_dicts import StateDict
from convert.verification import ledger
from maskgit_pt import MaskGIT, files

FORM = formats.BY_NAME["unlockmgm"]
TINY = FOLDER / "tiny"
WEIGHTS = "pytorch_model.bin"
METHODS = {"stored": zipfile.ZIP_STORED, "deflated": zipfile.ZIP_DEFLATED}
FOLDERS = ("results/checkpoint-50000/ema_model", "results/checkpoint-50000/unwrapped_model")


def load(folder) -> dict:
    return torch.load(folder / WEIGHTS, weights_only=True)


def same(a: dict, b: dict) -> bool:
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def written(folder: Path, state: dict, **config) -> Path:
    """A folder with these tensors and the configuration of the tiny network, changed."""
    folder.mkdir(exist_ok=True)
    torch.save(state, folder / WEIGHTS)
    stated = json.loads((TINY / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(stated))
    return folder


@pytest.fixture(scope="module")
def google_bytes() -> bytes:
    """Google's file with the recorded values, in the order of Google's files."""
    flat = recorded("google_names")
    ordered = {name: flat[name] for name in rules.published_order(flat)}
    return flax_msgpack.dumps(flax_msgpack.nest(ordered))


# In and out --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS)
def test_there_and_back(network, tmp_path):
    """Tensors and configuration return as they were; what the moving average says is kept."""
    source = FOLDER / network
    summary = convert.convert(source, tmp_path / "ours")
    assert summary.input_format == "unlockmgm" and summary.verified
    assert summary.warnings == (infer.GELU_NOTE,)
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert config["model_type"] == "self_guided_transformer" and config["gelu"] == "erf"
    convert.convert(tmp_path / "ours", tmp_path / "back", to="unlockmgm")
    assert same(load(tmp_path / "back"), published(network))
    there, back = source / "config.json", tmp_path / "back" / "config.json"
    assert back.read_bytes() == there.read_bytes()


def test_the_frozen_part_is_google_s_file(google_bytes, tmp_path):
    """From their folder, and from ours, byte for byte."""
    summary = convert.convert(TINY, tmp_path / "flax", to="flax")
    assert (tmp_path / "flax").read_bytes() == google_bytes
    assert summary.model_type == "maskgit_transformer" and summary.verified
    (warning,) = summary.warnings
    assert "took the frozen maskgit_transformer alone" in warning and "14 tensors" in warning
    assert "predicts otherwise" not in warning
    convert.convert(TINY, tmp_path / "ours")
    convert.convert(tmp_path / "ours", tmp_path / "again", to="flax")
    assert (tmp_path / "again").read_bytes() == google_bytes
    model_type, config, _ = convert.load_checkpoint(TINY)
    assert {"flax", "hmorimitsu", "unlockmgm"} <= set(writers(model_type, config))


def test_a_head_of_its_own_is_told(tmp_path):
    state = published()
    state["mlm_layer.to_logits.weight"] = state["mlm_layer.to_logits.weight"].clone()
    state["mlm_layer.to_logits.weight"][[3, 7]] += 1
    source = written(tmp_path / "own", state)
    notes = open_checkpoint(source).notes
    assert any("to_logits.weight differs from embed.word" in n and "2 of 43" in n for n in notes)
    summary = convert.convert(source, tmp_path / "flax", to="flax")
    assert any("in 2 rows: this predicts otherwise" in warning for warning in summary.warnings)
    assert all("\n" not in warning for warning in summary.warnings)


def test_gelu(tmp_path):
    summary = convert.convert(TINY, tmp_path / "ours", gelu="tanh")
    assert summary.config["gelu"] == "tanh" and summary.warnings == ()
    model = MaskGIT.from_pretrained(tmp_path / "ours", OFFICIAL / "tiny_tokenizer_checkpoint")
    assert model.transformer.to_config()["gelu"] == "tanh"
    assert not model.transformer.layers[0].mlp.erf_gelu
    summary = convert.convert(tmp_path / "ours", tmp_path / "back", to="unlockmgm")
    assert summary.warnings == (
        "files of unlockmgm cannot say that the GELU is the tanh form; its code runs erf",
    )
    for source, to, gelu, message in (
        (TINY, "flax", "erf", "this is a maskgit_transformer"),
        (
            OFFICIAL / "tiny_transformer_checkpoint",
            "safetensors",
            "erf",
            "this is a maskgit_transformer",
        ),
        (TINY, "safetensors", "relu", "'relu'; accepted: erf, tanh"),
    ):
        with pytest.raises(ValueError, match=message):
            convert.convert(source, tmp_path / "out", to=to, gelu=gelu)


def test_safetensors_and_bare_files(tmp_path):
    import safetensors.torch

    convert.convert(TINY, tmp_path / "out", to="unlockmgm", safetensors=True)
    found = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
    state = published()
    assert found.keys() == state.keys() and all(torch.equal(found[n], state[n]) for n in found)
    model_type, config, ours = convert.load_checkpoint(tmp_path / "out")
    expected = convert.load_checkpoint(TINY)
    assert (model_type, config) == expected[:2] and same(ours, expected[2])
    # Without the configuration the heads are told.
    bare = open_checkpoint(TINY / WEIGHTS, num_heads=3)
    assert bare.model_type == model_type and bare.config["num_attention_heads"] == 3
    with pytest.raises(ValueError, match="config.json says 3 attention heads, not 4"):
        open_checkpoint(TINY, num_heads=4)


@pytest.mark.parametrize("pixels", ["256", "512"])
def test_full_size_names(pixels):
    """The manifest of the authors' class, and Google's names in it; nothing has values."""
    manifest = text("full_size_manifest")
    shapes = dict(manifest["transformer_with_guidance_256"])
    if pixels == "512":
        shapes |= manifest["transformer_with_guidance_512_differs_in"]
    meta = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    rows = FORM.rows_of_file({name: tuple(shape) for name, shape in shapes.items()}, {})
    assert list(rows) == list(shapes) and len(rows) == 450
    stated = FORM.stated_config(manifest["expected_config_256"])
    heads = stated["num_attention_heads"]
    pieces = rules.pieces_of(rows, {name: tuple(shape) for name, shape in shapes.items()}, heads)
    official = {piece.official: piece.official_shape for piece in pieces}
    model_type, config = infer.infer_config(official, heads)
    assert model_type == "self_guided_transformer"
    if pixels == "256":
        assert config | stated == config | {"broadcast_dropout": False}
    total = sum(tensor.numel() for tensor in meta.values())
    assert (
        total == manifest["parameters"][pixels] == {"256": 215_806_201, "512": 216_396_025}[pixels]
    )
    expected = set()
    for google, (theirs, _) in manifest["google_name_to_name"]["map"].items():
        for layer in range(24) if "{i}" in google else (0,):
            name = theirs.replace("{i}", str(layer))
            expected.add(name)
            assert rows[name].officials == (google.replace("{i}", str(layer)),)
    frozen = {name for name, row in rows.items() if row.officials[0].startswith("params/")}
    assert frozen == expected and len(frozen) == 393
    published = ledger.describe(model_type, config, {}, "float32")
    assert f"UnlockMGM_imagenet_{pixels}.zip" in published


# Archives ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_zip_as_downloaded(method, google_bytes, tmp_path):
    """Both sets of weights in it: the average is taken, as the authors' scripts do."""
    path = zipped(tmp_path / "UnlockMGM_imagenet_256.zip", TINY, FOLDERS, METHODS[method])
    expected = convert.load_checkpoint(TINY)
    found = recognise(path)
    assert found.format is FORM and f"zip archive ({FOLDERS[0]}), PyTorch" in found.layout
    said = inspection.inspect(path)
    assert said["file sha256"] == files.file_sha256(path) and said["heads"] == "3"
    assert "can become" in said and "unlockmgm" in said["format"]
    convert.convert(path, tmp_path / "flax", to="flax")
    assert (tmp_path / "flax").read_bytes() == google_bytes
    unpacked = Path(found.container.unpacked.name)
    assert unpacked.is_dir()
    for weights in (None, "ema", "raw"):
        checkpoint = open_checkpoint(path, weights=weights)
        assert checkpoint.path == path and checkpoint.config == expected[1]
        # The files are gone, what is mapped stays.
        assert same(checkpoint.state_dict(), expected[2])
        other = FOLDERS[0] if weights == "raw" else FOLDERS[1]
        assert any(f"{other}/{WEIGHTS} (other weights in" in note for note in checkpoint.notes)
    del found, checkpoint
    assert not unpacked.exists()


def test_folders_of_the_archive_unpacked(tmp_path):
    path = zipped(tmp_path / "file.zip", TINY, FOLDERS, zipfile.ZIP_STORED)
    with zipfile.ZipFile(path) as opened:
        opened.extractall(tmp_path / "unpacked")
    (tmp_path / "unpacked" / FOLDERS[0]).parent.joinpath("optimizer.bin").write_bytes(b"x")
    expected = convert.load_checkpoint(TINY)[2]
    part = tmp_path / "unpacked" / "results" / "checkpoint-50000"
    for folder in (tmp_path / "unpacked", part, part / "ema_model"):
        assert same(convert.load_checkpoint(folder)[2], expected)
    found = recognise(part, "raw").container.path.parent.name
    assert found == "unwrapped_model"
    assert recognise(part, "ema").container.path.parent.name == "ema_model"
    shutil.rmtree(part / "unwrapped_model")
    with pytest.raises(ValueError, match=r"no raw weights \(--weights=raw\); it has ema_model"):
        recognise(part, "raw")
    # A folder with nothing but the archive, as a repository of the hub.
    (tmp_path / "hub").mkdir()
    path.rename(tmp_path / "hub" / "UnlockMGM_imagenet_256.zip")
    assert same(convert.load_checkpoint(tmp_path / "hub")[2], expected)


def test_other_members_do_not_count(tmp_path):
    path = zipped(tmp_path / "file.zip", TINY, ("model",), zipfile.ZIP_STORED)
    with zipfile.ZipFile(path, "a") as opened:
        opened.writestr("__MACOSX/model/._pytorch_model.bin", b"x")
        opened.writestr("model/.DS_Store", b"x")
        opened.writestr("optimizer.bin", b"x" * 1000)
        opened.writestr("random_states_0.pkl", b"x")
        opened.writestr("metadata.json", b"{}")
    checkpoint = open_checkpoint(path)
    assert checkpoint.config["num_attention_heads"] == 3
    assert not any("left out" in note for note in checkpoint.notes)


def refused(path, message) -> None:
    """Opening a file must fail in one line that begins with it."""
    with pytest.raises(ValueError, match=message) as error:
        open_checkpoint(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_two_models_in_an_archive(tmp_path):
    path = zipped(tmp_path / "a.zip", TINY, ("a", "b"), zipfile.ZIP_STORED)
    refused(path, r"weights in 2 files \(a/pytorch_model.bin, b/pytorch_model.bin\); unpack it")


@pytest.mark.parametrize(
    "folder, weights",
    [("./model", WEIGHTS), ("model/", WEIGHTS), ("model", WEIGHTS.upper())],
)
def test_odd_names_in_an_archive(folder, weights, tmp_path):
    with zipfile.ZipFile(tmp_path / "file.zip", "w") as opened:
        opened.write(TINY / "config.json", f"{folder}/config.json")
        opened.write(TINY / WEIGHTS, f"{folder}/{weights}")
    expected = convert.load_checkpoint(TINY)[2]
    assert same(convert.load_checkpoint(tmp_path / "file.zip")[2], expected)


def inner_archive() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as opened:
        opened.write(TINY / WEIGHTS, WEIGHTS)
    return stream.getvalue()


@pytest.mark.parametrize(
    "members, message",
    [
        ({"readme.pth.txt": b"x"}, "without weights; accepted: names ending in .bin"),
        ({WEIGHTS: inner_archive()}, f"{WEIGHTS} is a zip archive in an archive: unpack the outer"),
        ({WEIGHTS: None, "config.json": b"{"}, "file.zip.*/config.json: not JSON"),
        ({"x" * 300 + ".bin": None}, r"x{100} cannot be unpacked: File name too long"),
        ({f"m/{WEIGHTS}": b"", f"m/./{WEIGHTS}": b""}, "two members of one name"),
    ],
)
def test_odd_members_of_an_archive(members, message, tmp_path):
    """The archive is named, never the folder that it was unpacked into."""
    path = tmp_path / "file.zip"
    with zipfile.ZipFile(path, "w") as opened:
        for name, data in members.items():
            opened.writestr(name, (TINY / WEIGHTS).read_bytes() if data is None else data)
    with pytest.raises(ValueError, match=message) as error:
        open_checkpoint(path)
    assert str(error.value).startswith(str(path)) and "maskgit-convert-" not in str(error.value)


def _rename(info: zipfile.ZipInfo, name: str) -> zipfile.ZipInfo:
    info.filename = info.orig_filename = name
    return info


@pytest.mark.parametrize("name", ["../ema_model/pytorch_model.bin", "/etc/pytorch_model.bin",
                                  "a/../../pytorch_model.bin", "..\\pytorch_model.bin",
                                  "C:/pytorch_model.bin"])  # fmt: skip
def test_paths_out_of_the_archive(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "file.zip", "w") as opened:
        opened.writestr("model/config.json", b"{}")
        info = zipfile.ZipInfo("x")
        info.filename = name
        opened.writestr(info, (TINY / WEIGHTS).read_bytes())
    before = sorted(tmp_path.parent.rglob("*"))
    refused(tmp_path / "file.zip", "leads out of the archive")
    assert sorted(tmp_path.parent.rglob("*")) == before


def test_bombs_and_odd_members(tmp_path):
    path = tmp_path / "file.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr(f"model/{WEIGHTS}", bytes(2**26))
    refused(path, "would become 67,108,864 bytes out of")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as opened:
        opened.writestr(f"model/{WEIGHTS}", b"x")
    refused(path, "is compressed by method 14; accepted: stored, deflated")
    with zipfile.ZipFile(path, "w") as opened:
        info = zipfile.ZipInfo(f"model/{WEIGHTS}")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        opened.writestr(info, b"/etc/passwd")
    refused(path, "is a link, no file")
    with pytest.warns(UserWarning), zipfile.ZipFile(path, "w") as opened:
        opened.writestr(f"model/{WEIGHTS}", b"x")
        opened.writestr(f"model/{WEIGHTS}", b"y")
    refused(path, "two members of one name")
    with zipfile.ZipFile(path, "w") as opened:
        opened.writestr(f"model/{WEIGHTS}", b"x" * 50)
    data = bytearray(path.read_bytes())
    at = data.rfind(b"PK\x01\x02")
    flags = struct.unpack_from("<H", data, at + 8)[0] | 1
    struct.pack_into("<H", data, at + 8, flags)
    path.write_bytes(data)
    refused(path, "is encrypted")
    struct.pack_into("<H", data, at + 8, flags ^ 1)
    struct.pack_into("<L", data, at + 20, 2**30)  # bytes that it would take in the file
    path.write_bytes(data)
    refused(path, "members that overlap")


def test_many_members(tmp_path, monkeypatch):
    path = zipped(tmp_path / "file.zip", TINY, ("a", "b"), zipfile.ZIP_STORED)
    monkeypatch.setattr(archive, "_MAX_MEMBERS", 3)
    refused(path, "has 4 members; accepted: 3")


def test_no_room(tmp_path, monkeypatch):
    path = zipped(tmp_path / "file.zip", TINY, ("a",), zipfile.ZIP_STORED)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    refused(path, "has 1 free; the environment variable TMPDIR names another folder")


@pytest.mark.parametrize("method", METHODS)
def test_damaged_archives(method, tmp_path):
    path = zipped(tmp_path / "file.zip", TINY, FOLDERS[:1], METHODS[method])
    data = path.read_bytes()
    for part in (0.001, 0.1, 0.5, 0.999):
        path.write_bytes(data[: int(part * len(data))])
        refused(path, "zip")
    rng = np.random.default_rng(0)
    expected = convert.load_checkpoint(TINY)[2]
    for _ in range(12):  # bits of the members, and of the directory
        at = int(rng.integers(len(data) - 400 if rng.random() < 0.5 else 0, len(data)))
        path.write_bytes(data[:at] + bytes([data[at] ^ (1 << rng.integers(8))]) + data[at + 1 :])
        try:
            found = open_checkpoint(path)
        except ValueError as error:
            assert str(error).startswith(str(path)) and "\n" not in str(error)
        else:  # a date, an attribute
            assert same(found.state_dict(), expected)


# What is wrong is named --------------------------------------------------------------------------------


KEY = "transformer_layers.1.attention.key.weight"


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", [KEY, "cls_anchor_gen.mlp_t.weight"])
def test_mutations(tmp_path, name, fault):
    folder = written(tmp_path / "folder", mutated(published(), name, fault))
    message = f"1 missing: {name}" if fault == "missing" else FAULTS[fault]
    wrong_files.refused(folder, message, tmp_path / "ours")


def test_a_head_of_another_dtype(tmp_path):
    """It is not compared with the embeddings, and that is said."""
    name = "mlm_layer.to_logits.weight"
    folder = written(tmp_path / "folder", published() | {name: published()[name].half()})
    notes = open_checkpoint(folder).notes
    assert any(
        f"tensor {name} is float16, embed.word_embeddings.weight float32" in n for n in notes
    )


@pytest.mark.parametrize("name", [KEY, KEY.replace("key", "value")])
def test_parts_of_one_tensor_have_one_dtype(tmp_path, name):
    state = published()
    folder = written(tmp_path / "folder", state | {name: state[name].half()})
    wrong_files.refused(folder, "is float16, but what goes into", tmp_path / "ours")


@pytest.mark.parametrize(
    "config, message",
    [
        ({"layer_norm_eps": 1e-5}, "says layer_norm_eps 1e-05; accepted: 1e-12"),
        ({"use_blank_second": False}, "says use_blank_second False; accepted: True"),
        ({"norm_type": "rmsnorm"}, "norm_type 'rmsnorm'; accepted: 'layernorm'"),
        ({"hidden_size": 64}, "says hidden_size 64, the weights show 48"),
        ({"mask_token_id": 41}, "says mask_token_id 41, the weights show 42"),
        ({"codebook_size": 31}, "says codebook_size 31, the weights show 32"),
        ({"num_attention_heads": "3"}, "num_attention_heads is '3'"),
        ({"num_attention_heads": 5}, "5 heads"),
        ({"num_classes": 42}, "43 ids are too few for 42 classes"),
    ],
)
def test_configurations(tmp_path, config, message):
    folder = written(tmp_path / "folder", published(), **config)
    with pytest.raises(ValueError, match=message) as error:
        convert.convert(folder, tmp_path / "ours")
    assert "\n" not in str(error.value) and str(folder) in str(error.value)


def test_every_tensor_is_needed():
    container, state = recognise(TINY).container, published()
    for missing in state:
        rest = {name: value for name, value in state.items() if name != missing}
        with pytest.raises(ValueError):
            FORM.open(dataclasses.replace(container), StateDict(None, rest), Given())


def test_truncated(tmp_path):
    data = (TINY / WEIGHTS).read_bytes()
    shutil.copy(TINY / "config.json", tmp_path)
    for part in (0.1, 0.5, 0.999):
        (tmp_path / WEIGHTS).write_bytes(data[: int(part * len(data))])
        refused(tmp_path, "damaged|truncated")


def test_attacks(tmp_path):
    """What would act when unpickled does nothing, in an archive neither."""
    folder = written(tmp_path / "folder", published() | {"x": Attack(tmp_path / "made")})
    path = zipped(tmp_path / "file.zip", folder, ("ema_model",), zipfile.ZIP_DEFLATED)
    for source in (folder, path):
        refused(source, "not read: its pickle tries to run .*mkdir.*; nothing of it was run")
    (folder / WEIGHTS).write_bytes(pickle.dumps(Attack(tmp_path / "made")))
    with pytest.raises(ValueError):
        open_checkpoint(folder)
    assert not (tmp_path / "made").exists()


# All the way -------------------------------------------------------------------------------------------


def test_three_commands(tmp_path, run_command):
    """Published archive -> our folder -> images -> published folder, on the command line."""
    from convert import __main__ as command
    from maskgit_pt import sample

    path = zipped(tmp_path / "UnlockMGM_imagenet_256.zip", TINY, FOLDERS, zipfile.ZIP_DEFLATED)
    tokenizer, model = OFFICIAL / "tiny_tokenizer_checkpoint", tmp_path / "model"
    run_command(command, f"--input={path}", f"--output={model}", "--gelu=erf")
    threads = torch.get_num_threads()
    run_command(
        sample,
        f"--model={model}", f"--tokenizer={tokenizer}", "--labels=1,7", "--num_samples=2", "--threads=1",
        "--sampler=self-guidance", "--steps=4", "--self_guidance=1", "--choice_temperature=10",
        f"--output={tmp_path / 'samples'}",
    )  # fmt: skip
    torch.set_num_threads(threads)
    images = {file.name: file.read_bytes() for file in (tmp_path / "samples").glob("class*.png")}
    assert len(images) >= 2
    both = MaskGIT.from_pretrained(model, tokenizer)
    settings = {"sampler": "self-guidance", "steps": 4, "choice_temperature": 10.0}
    guided = both.generate([1, 7], **settings).tokens
    assert not torch.equal(guided, both.generate([1, 7], self_guidance=0.0, **settings).tokens)
    back = tmp_path / "back"
    run_command(command, f"--input={model}", f"--output={back}", "--to=unlockmgm")
    assert same(load(back), published())
    assert (back / "config.json").read_bytes() == (TINY / "config.json").read_bytes()
