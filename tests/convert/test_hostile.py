"""Files that are wrong, by accident or by intent: one line, nothing left behind, nothing blown up."""

import gzip
import io
import json
import os
import pickle
import random
import struct
import zipfile

import fresh_python
import halton_files
import mage_files
import msgpack
import numpy as np
import pytest
import torch
from convert_samples import OFFICIAL, write_flax
from recorded import GOLDEN

import convert
from convert import flax_msgpack

EMBED = "embed.word_embeddings.weight"
EMBEDDING = "params/Embed_0/word_embeddings/embedding"
KERNEL = "params/TransformerLayer_0/Mlp_0/layer_output/kernel"


def refuse(path, tmp_path, *parts: str) -> str:
    """Converts, which must fail in one line that holds the file's name and `parts`."""
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises((ValueError, OSError)) as caught:
        convert.convert(path, tmp_path / "output")
    message = str(caught.value)
    assert str(path) in message and "\n" not in message and len(message) < 1000, message
    for part in parts:
        assert part in message
    assert sorted(tmp_path.rglob("*")) == before
    return message


def png() -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.new("RGB", (4, 4)).save(stream, "png")
    return stream.getvalue()


def zipped(**members: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in members.items():
            archive.writestr(name.replace("__", "/"), data)
    return stream.getvalue()


def torch_file() -> bytes:
    stream = io.BytesIO()
    torch.save({"a": torch.zeros(2)}, stream)
    return stream.getvalue()


STRANGERS = {
    "empty": (b"", "is empty (0 bytes)"),
    "png": (png(), "is a PNG image, not a checkpoint"),
    "jpeg": (b"\xff\xd8\xff\xe0" + bytes(100), "is a JPEG image"),
    "html": (b"\n <!DOCTYPE html>\n<html>", "is an HTML page (a download that failed?)"),
    "bom": (b"\xef\xbb\xbf<HTML><head>", "is an HTML page"),
    "refused": (b"<?xml version='1.0'?><Error><Code>AccessDenied", "is an XML document"),
    "json": (b'{"error": 1}', "is a JSON text"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid", "is a Git LFS pointer"),
    "text": (b"Not Found\r\nsorry", "is a text that begins with 'not found'"),
    "unicode": ("x" * 511 + "ü", "is a text"),
    "gzip": (gzip.compress(b"x"), "is gzip-compressed"),
    "torch": (torch_file(), "neither transformer nor tokenizer of a known format"),
    "npz": (zipped(**{"a.npy": b"x"}), "is a NumPy archive (.npz)"),
    "zip": (zipped(a=b"x"), "is a zip archive"),
    "broken_zip": (b"PK\x03\x04" + bytes(50), "is a damaged zip archive"),
    "pickle": (pickle.dumps({"a": 1}), "is a Python pickle"),
    "zeros": (bytes(1000), "zero bytes"),
    "random": (b"\xfa\x00\x01\x02" * 30, "is of no known format, it begins with"),
    "number": (b"\xcd\x01\x02", "is of no known format"),
    "list": (b"\xdc\x00\x01\x01", "is of no known format"),
}


@pytest.mark.parametrize("name", STRANGERS)
def test_strangers_are_recognised(name, tmp_path):
    data, reason = STRANGERS[name]
    file = tmp_path / "maskgit_imagenet256_checkpoint"
    file.write_bytes(data.encode() if isinstance(data, str) else data)
    message = refuse(file, tmp_path, reason)
    assert "accepted: " in message


def test_folders_and_missing_files(tmp_path):
    refuse(tmp_path / "missing", tmp_path, "no such file or folder")
    folder = tmp_path / "folder"
    folder.mkdir()
    refuse(folder, tmp_path, "is an empty folder")
    (folder / "pytorch_model.bin").write_bytes(b"x")
    refuse(folder, tmp_path, "is a folder without weights", "(it holds pytorch_model.bin)")
    os.mkfifo(tmp_path / "pipe")
    refuse(tmp_path / "pipe", tmp_path, "is neither a file nor a folder")


def test_truncated_anywhere(miniature, tmp_path):
    data = miniature.read_bytes()
    convert.convert(miniature, tmp_path / "folder")
    weights = tmp_path / "folder" / "model.safetensors"
    for file, data in ((miniature, miniature.read_bytes()), (weights, weights.read_bytes())):
        for length in [*range(0, len(data), 7), len(data) - 1]:
            file.write_bytes(data[:length])
            with pytest.raises(ValueError) as caught:
                convert.load_checkpoint(file)
            assert str(file) in str(caught.value) and "\n" not in str(caught.value)
    refuse(miniature, tmp_path, "truncated?")


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda flat: flat.pop(KERNEL), ("1 missing: " + KERNEL + " [3, 4]",)),
        (lambda flat: flat.pop(EMBEDDING), (f"tensor {EMBEDDING} is missing",)),
        (lambda flat: flat.update({"params/Novel_0/kernel": np.zeros(3)}), ("Novel_0/kernel [3]",)),
        (lambda flat: flat.update({"opt/mu": np.zeros(3)}), ("1 not known: opt/mu [3]",)),
        (lambda flat: flat.update({"params/step": 7}), ("params/step is a int",)),
        (lambda flat: flat.update({"params/empty": {}}), ("params/empty is an empty map",)),
        (
            lambda flat: flat.update({KERNEL.replace("kernel", "kernal"): flat.pop(KERNEL)}),
            ("1 missing: " + KERNEL, "1 not known: " + KERNEL.replace("kernel", "kernal")),
        ),
        (
            lambda flat: flat.update({KERNEL: flat[KERNEL].T}),
            (f"{KERNEL} is [4, 3] instead of [3, 4]",),
        ),
        (
            lambda flat: flat.update({EMBEDDING: flat[EMBEDDING][:, 0]}),
            (f"tensor {EMBEDDING} has shape [5]",),
        ),
        (
            lambda flat: flat.update({EMBEDDING: np.zeros((5, 0), np.float32)}),
            (f"tensor {EMBEDDING} has shape [5, 0]",),
        ),
        (
            lambda flat: flat.update({KERNEL: flat[KERNEL].astype(np.int32)}),
            (f"tensor {KERNEL} is int32; accepted for weights: float16, bfloat16, float32",),
        ),
        (
            lambda flat: flat.update({KERNEL: flat[KERNEL].astype(np.complex64)}),
            (f"tensor {KERNEL} is complex64",),
        ),
        (
            lambda flat: flat.update(
                {f"params/TransformerLayer_999999999/{i}": np.zeros(1) for i in range(3)}
            ),
            ("TransformerLayer_999999999",),
        ),
        (
            lambda flat: flat.update(
                {f"params/TransformerLayer_{i}/x": np.zeros(1, np.float32) for i in range(2000)}
            ),
            ("at most 1000",),
        ),
        (lambda flat: [flat.pop(name) for name in list(flat)[:-1]], ("is missing",)),
        (
            lambda flat: [flat.update({name.lower(): flat.pop(name)}) for name in list(flat)],
            ("neither transformer nor tokenizer", "params/embed_0"),
        ),
    ],
)
def test_wrong_tensors(miniature_flat, tmp_path, change, parts):
    change(miniature_flat)
    file = write_flax(tmp_path / "file", miniature_flat)
    refuse(file, tmp_path, *parts)


@pytest.mark.parametrize(
    "file, name",
    [
        ("hmorimitsu", "tok_emb.weight"),
        ("besnier", "tok_emb.weight"),
        ("halton", "tok_emb.weight"),
        ("mage", "token_emb.word_embeddings.weight"),
        ("mage", "decoder_embed.weight"),
        ("ours", EMBED),
    ],
)
def test_one_number_where_a_width_is_read(file, name, miniature, foreign_files, tmp_path):
    published = {
        "hmorimitsu": lambda: _loaded(foreign_files / "formats/hmorimitsu_maskgit.ckpt"),
        "besnier": lambda: _loaded(GOLDEN / "besnier/tiny_maskgit.pth"),
        "halton": lambda: _loaded(io.BytesIO(halton_files.published_bytes("transformer_A.pth"))),
        "mage": mage_files.published,
        "ours": lambda: convert.load_checkpoint(miniature)[2],
    }
    state = dict(published[file]())
    assert name in state
    torch.save(state | {name: torch.tensor(1.0)}, tmp_path / "file")
    refuse(tmp_path / "file", tmp_path)


def _loaded(file) -> dict:
    tree = torch.load(file, weights_only=True)
    return next((tree[key] for key in ("state_dict", "model_state_dict") if key in tree), tree)


def test_tokenizer_of_impossible_sizes(tmp_path):
    data = (OFFICIAL / "tiny_tokenizer_checkpoint").read_bytes()
    flat = dict(flax_msgpack.flatten(flax_msgpack.loads(data)))
    fewer = {name: array for name, array in flat.items() if "encoder/ResBlock_3" not in name}
    refuse(write_flax(tmp_path / "fewer", fewer), tmp_path, "3 residual blocks", "3 levels")
    name = "params/encoder/Conv_0/kernel"
    odd = flat | {name: np.zeros((3, 3, 3, 31), np.float32)}
    refuse(write_flax(tmp_path / "odd", odd), tmp_path, "no multiple of the 31 filters")


def test_duplicate_tensor(miniature, tmp_path):
    data = miniature.read_bytes()
    packed = msgpack.packb("query")
    assert data.count(packed) == 1
    miniature.write_bytes(data.replace(packed, msgpack.packb("value")))
    refuse(miniature, tmp_path, "self_attention/value", "occurs twice")


def safetensors_bytes(header, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8)) -> dict:
    return {EMBED: {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (safetensors_bytes(b"{" * 2000), "not JSON"),
        (safetensors_bytes(b'{"a":' + b"[" * 100_000), "nested too deeply"),
        (safetensors_bytes(b'{"\xff"}'), "not UTF-8"),
        (safetensors_bytes(b"{}x"), "not JSON: Extra data"),
        (struct.pack("<Q", 2**40) + b"{" + bytes(100), "header takes 1,099,511,627,776 bytes"),
        (safetensors_bytes(b'{"a":1,"a":1}'), "has a twice"),
        (safetensors_bytes({"__metadata__": {"a": 1}}), "metadata is no map"),
        (safetensors_bytes({"__metadata__": {"maskgit_config": "["}} | entry(), bytes(8)), "JSON"),
        (safetensors_bytes({"a": 1}), "tensor a must have"),
        (safetensors_bytes(entry(dtype="F8_E4M3"), bytes(8)), "dtype 'F8_E4M3'"),
        (safetensors_bytes(entry(dtype=["F32"]), bytes(8)), "is not supported"),
        (safetensors_bytes(entry(dtype="I32"), bytes(8)), f"{EMBED} is int32"),
        (safetensors_bytes(entry(shape=(3,)), bytes(8)), "float32 [3] takes 12 bytes"),
        (safetensors_bytes(entry(shape=(-2,)), bytes(8)), "whole numbers"),
        (safetensors_bytes(entry(shape=(2.0,)), bytes(8)), "whole numbers"),
        (safetensors_bytes(entry(shape=(2**60, 2**60)), bytes(8)), "whole numbers"),
        (safetensors_bytes(entry(shape=(2**48, 2**48, 0), offsets=(0, 0))), "is absurdly large"),
        (safetensors_bytes(entry(offsets=(4, 12)), bytes(12)), "starts at byte 4"),
        (safetensors_bytes(entry(), bytes(7)), "truncated?"),
        (safetensors_bytes(entry(), bytes(9)), "take 8 bytes, its data 9"),
        (safetensors_bytes({}), "neither transformer nor tokenizer"),
        (safetensors_bytes(entry(), bytes(8)), "its width is 2, no multiple of 16"),
        (
            safetensors_bytes({"embed.x": entry()[EMBED]}, bytes(8)),
            "neither transformer nor tokenizer of a known format: a file in safetensors layout with 1 "
            "tensors (embed.x [2]); closest: none",
        ),
    ],
)
def test_wrong_safetensors(data, reason, tmp_path):
    file = tmp_path / "file.safetensors"
    file.write_bytes(data)
    refuse(file, tmp_path, reason)


def test_wrong_config(miniature, tmp_path):
    folder = tmp_path / "folder"
    convert.convert(miniature, folder)
    for text, reason in (
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "JSON list"),
        ('{"num_attention_heads": 2, "vqvae": 3}', "no maskgit_transformer configuration"),
        (f'{{"num_attention_heads": {10**30}}}', f"does not fit .* {10**30} heads"),
        ('{"a": "' + "x" * 2**20 + '"}', "bytes; accepted"),
    ):
        (folder / "config.json").write_text(text)
        with pytest.raises(ValueError, match=reason):
            convert.convert(folder, tmp_path / "output", to="flax")
        assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    "setting, reason",
    [
        ({"norm_type": []}, "norm_type is []; accepted: GN, LN, BN"),
        ({"norm_type": {}}, "norm_type is {}; accepted: GN, LN, BN"),
        ({"norm_groups": 0}, "no maskgit_vqvae configuration"),
    ],
)
def test_wrong_tokenizer_config(setting, reason, tmp_path):
    convert.convert(OFFICIAL / "tiny_tokenizer_checkpoint", tmp_path / "folder")
    config = json.loads((tmp_path / "folder" / "config.json").read_text())
    config["vqvae"] |= setting
    (tmp_path / "folder" / "config.json").write_text(json.dumps(config))
    refuse(tmp_path / "folder", tmp_path, reason)


@pytest.mark.parametrize(
    "name, content",
    [
        ("file", flax_msgpack.dumps({"step": 1})),
        ("model.safetensors.index.json", b'{"weight_map": {}}'),
    ],
)
def test_no_tensors_at_all(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    refuse(tmp_path / name, tmp_path, f"{name}: holds no tensors")


# Each claims gigabytes in a file of a few bytes, or would need them to be read naively.
BOMBS = {
    "map": b"\xdf\xff\xff\xff\xff\xa1a\x01",
    "list": b"\x81\xa1a\xdd\xff\xff\xff\xff",
    "lists": b"\x81\xa1a" + b"\xdd\x00\x0f\xff\xff" * 40 + b"\xc0" * 2**20,
    "many": b"\x81\xa1a\xdd\x03\x00\x00\x00" + b"\xc0" * (3 * 2**24),
    "maps": b"\x81\xa1a\xdd\x02\x00\x00\x00" + b"\x80" * 2**25,
    "bytes": b"\x81\xa1a\xc6\xff\xff\xff\xff",
    "extension": b"\x81\xa1a\xc9\xff\xff\xff\xff\x01\x93",
    "text": b"\x81\xa1a\xdb\x06\x00\x00\x00" + b"\xc3\xbc" * (3 * 2**24),
    "array": msgpack.packb(
        {"a": msgpack.ExtType(1, msgpack.packb(([2**31, 2**31], "float64", b"")))}
    ),
    "deep": b"\x81\xa1a" * 2**20,
    "header": safetensors_bytes(b'{"a":[' + b"0," * 2**25),
    "nested": safetensors_bytes(b'{"a":' + b"[" * 2**23),
}

LIMITED = """
import resource, sys
import convert
with open("/proc/self/statm") as statm:
    used = int(statm.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 384 * 2**20,) * 2)
for path in sys.argv[1:]:
    try:
        convert.load_checkpoint(path)
    except ValueError as error:
        print(str(error))
"""


def test_no_memory_blow_up(tmp_path):
    files = []
    for name, data in BOMBS.items():
        files.append(tmp_path / name)
        files[-1].write_bytes(data)
    done = fresh_python.run(LIMITED, *files)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert len(lines) == len(BOMBS)
    for file, line in zip(files, lines, strict=True):
        assert line.startswith(f"{file}: not a usable")


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Flips, sets, removes, inserts, repeats, swaps or cuts off bytes, once to three times."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        at, length = rng.randrange(len(data) + 1), rng.choice((1, 1, 2, 4, 9, 40))
        how = rng.randrange(7)
        chosen = data[at : at + length]
        if how == 0:
            chosen = bytes(byte ^ (1 << rng.randrange(8)) for byte in chosen)
        elif how == 1:
            chosen = bytes(rng.choice((0, 0x7F, 0x80, 0xC1, 0xDF, 0xFF)) for _ in chosen)
        elif how == 2:
            chosen = b""
        elif how == 3:
            chosen += rng.randbytes(length)
        elif how == 4:
            chosen += chosen
        elif how == 5:
            other = rng.randrange(len(data) + 1)
            chosen = data[other : other + length]
        else:
            return data[:at]
        data = data[:at] + chosen + data[at + length :]
    return data


@pytest.mark.parametrize("part", range(5))
def test_5000_mutations(miniature, tmp_path, part):
    """Half of them Flax, half safetensors; each is converted or refused in one line."""
    convert.convert(miniature, tmp_path / "folder")
    weights = (tmp_path / "folder" / "model.safetensors").read_bytes()
    originals = (miniature.read_bytes(), weights)
    rng = random.Random(part)
    file = tmp_path / "mutated"
    accepted = 0
    for number in range(1000):
        file.write_bytes(mutate(originals[number % 2], rng))
        try:
            if number % 10 < 2:
                convert.convert(file, tmp_path / "output", to="flax", overwrite=True)
            else:
                convert.load_checkpoint(file)
            accepted += 1
        except (ValueError, OSError) as error:
            message = str(error)
            assert message.startswith(str(file)) and "\n" not in message, message
            assert len(message) < 2000
    assert 20 < accepted < 600  # some changes touch numbers only
    names = {path.name for path in tmp_path.iterdir()}
    assert names <= {miniature.name, "folder", "mutated", "output"}
