"""Conversion of files: same bytes back, verification, whole or nothing."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from convert_samples import MINIATURE, seeded_flat, write_flax

import convert
from convert import flax_msgpack, formats, rules, tables
from convert.files import dtypes
from maskgit_pt import VQVAE, Transformer, files
from maskgit_pt.configs import vqgan_config

SMALL_TOKENIZER = {
    "vqvae": vqgan_config.get_config().vqvae.to_dict()
    | {
        "filters": 32,
        "channel_multipliers": [1, 2],
        "num_res_blocks": 1,
        "codebook_size": 8,
        "embedding_dim": 4,
        "norm_type": "BN",
    }
}


def there_and_back(google_file, tmp_path, **options) -> bytes:
    folder, back = tmp_path / "folder", tmp_path / "back"
    convert.convert(google_file, folder, **options)
    convert.convert(folder, back, to="flax")
    return back.read_bytes()


def test_google_file_there_and_back(google_file, tmp_path):
    assert there_and_back(google_file, tmp_path) == google_file.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["back", "folder"]
    files = sorted(p.name for p in (tmp_path / "folder").iterdir())
    assert files == ["README.md", "config.json", "model.safetensors"]


@pytest.mark.parametrize("seed", range(3))
def test_any_order_of_tensors(flat, model_type, tmp_path, seed):
    names = list(flat)
    np.random.default_rng(seed).shuffle(names)
    # Nesting brings names of one module together; what counts is the order in the file.
    shuffled = write_flax(tmp_path / "shuffled", {name: flat[name] for name in names})
    assert list(convert.read_flat(shuffled)) != sorted(flat)
    assert there_and_back(shuffled, tmp_path) == shuffled.read_bytes()


@pytest.mark.parametrize("chunk_bytes", [100, 1000])
def test_chunks(flat, tmp_path, chunk_bytes):
    file = tmp_path / "chunked"
    file.write_bytes(flax_msgpack.dumps(flax_msgpack.nest(flat), chunk_bytes))
    assert b"__msgpack_chunked_array__" in file.read_bytes()
    assert there_and_back(file, tmp_path) == file.read_bytes()


def test_chunks_written_by_flax(flat, tmp_path, monkeypatch):
    serialization = pytest.importorskip("flax.serialization", reason="needs the extra 'jax'")
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 1000)
    file = tmp_path / "chunked"
    file.write_bytes(serialization.to_bytes(flax_msgpack.nest(flat)))
    assert there_and_back(file, tmp_path) == file.read_bytes()


def test_large_arrays_are_chunked_on_export(google_file, tmp_path, monkeypatch):
    serialization = pytest.importorskip("flax.serialization", reason="needs the extra 'jax'")
    monkeypatch.setattr(flax_msgpack, "MAX_CHUNK_BYTES", 1000)
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 1000)
    back = there_and_back(google_file, tmp_path)
    assert back == serialization.to_bytes(serialization.from_bytes(None, google_file.read_bytes()))


def test_flax_reads_the_export(flat, google_file, tmp_path):
    serialization = pytest.importorskip("flax.serialization", reason="needs the extra 'jax'")
    data = there_and_back(google_file, tmp_path)
    target = flax_msgpack.nest({name: np.zeros_like(array) for name, array in flat.items()})
    restored = dict(flax_msgpack.flatten(serialization.from_bytes(target, data)))
    assert restored.keys() == flat.keys()
    for name, array in flat.items():
        np.testing.assert_array_equal(restored[name], array)


def test_folder_is_what_the_model_reads(google_file, model_type, flat, tmp_path):
    convert.convert(google_file, tmp_path / "folder")
    model = {"maskgit_transformer": Transformer, "maskgit_vqvae": VQVAE}[model_type]
    loaded = model.from_pretrained(tmp_path / "folder")
    again = rules.to_official(loaded.state_dict(), model_type, loaded.to_config())
    for name, array in flat.items():
        np.testing.assert_array_equal(again[name], array)
    found_type, config, state = convert.load_checkpoint(google_file)
    assert found_type == model_type and config == loaded.to_config()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(state[name], tensor)


def test_export_of_a_saved_model(model_type, google_file, flat, tmp_path):
    """Without our metadata the published order is used."""
    convert.convert(google_file, tmp_path / "folder")
    model = {"maskgit_transformer": Transformer, "maskgit_vqvae": VQVAE}[model_type]
    model.from_pretrained(tmp_path / "folder").save_pretrained(tmp_path / "saved")
    summary = convert.convert(tmp_path / "saved", tmp_path / "exported", to="flax")
    assert summary.verified and not summary.warnings
    exported = convert.read_flat(tmp_path / "exported")
    assert list(exported) == rules.published_order(flat)
    for name, array in flat.items():
        np.testing.assert_array_equal(exported[name], array)


def test_changed_model_keeps_the_order(miniature, tmp_path):
    convert.convert(miniature, tmp_path / "folder")
    path = tmp_path / "folder" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-8:] = np.array([2.0, 3.0], np.float32).tobytes()
    path.write_bytes(data)
    convert.convert(tmp_path / "folder", tmp_path / "back", to="flax")
    assert list(convert.read_flat(tmp_path / "back")) == list(convert.read_flat(miniature))
    assert (tmp_path / "back").read_bytes() != miniature.read_bytes()


@pytest.mark.parametrize("dtype", dtypes.FLOATS)
def test_dtype(google_file, model_type, flat, tmp_path, dtype):
    summary = convert.convert(google_file, tmp_path / "folder", dtype=dtype)
    assert summary.dtype == dtype and summary.verified
    _, _, state = convert.load_checkpoint(tmp_path / "folder")
    assert {tensor.dtype for tensor in state.values()} == {dtypes.torch_dtype(dtype)}
    convert.convert(tmp_path / "folder", tmp_path / "back", to="flax")
    again = convert.read_flat(tmp_path / "back")
    for name, array in flat.items():
        expected = torch.from_numpy(array.copy()).to(dtypes.torch_dtype(dtype))
        assert torch.equal(dtypes.to_tensor(again[name]), expected)
    convert.convert(tmp_path / "back", tmp_path / "again", to="flax")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "back").read_bytes()


def test_bfloat16_export_is_readable_by_flax(miniature, tmp_path):
    serialization = pytest.importorskip("flax.serialization", reason="needs the extra 'jax'")
    convert.convert(miniature, tmp_path / "out", to="flax", dtype="bfloat16")
    data = (tmp_path / "out").read_bytes()
    tree = serialization.from_bytes(None, data)
    assert {str(leaf.dtype) for _, leaf in flax_msgpack.flatten(tree)} == {"bfloat16"}
    assert flax_msgpack.dumps(tree) == data


def test_mixed_dtypes(miniature_flat, tmp_path):
    name = "params/Embed_0/embeddings_ln/bias"
    mixed = miniature_flat | {name: miniature_flat[name].astype(np.float16)}
    file = write_flax(tmp_path / "mixed", mixed)
    assert there_and_back(file, tmp_path) == file.read_bytes()
    assert convert.convert(file, tmp_path / "2").dtype == "float16, float32"
    name = "params/TransformerLayer_0/Attention_0/self_attention/key/bias"
    file = write_flax(tmp_path / "torn", mixed | {name: mixed[name].astype(np.float64)})
    with pytest.raises(ValueError, match=f"torn: tensor {name} is float64, .*--dtype"):
        convert.convert(file, tmp_path / "3")
    with pytest.raises(ValueError, match="--dtype"):
        convert.load_checkpoint(file)
    assert convert.convert(file, tmp_path / "3", dtype="float32").dtype == "float32"


def test_batch_norm_statistics(tmp_path):
    flat = seeded_flat("maskgit_vqvae", SMALL_TOKENIZER)
    assert any(name.startswith("batch_stats/") for name in flat)
    file = write_flax(tmp_path / "file", flat)
    assert there_and_back(file, tmp_path) == file.read_bytes()
    model = VQVAE.from_pretrained(tmp_path / "folder")
    mean = model.state_dict()["encoder.norm_out.running_mean"]
    np.testing.assert_array_equal(mean, flat["batch_stats/encoder/BatchNorm_0/mean"])
    (tmp_path / "folder" / "config.json").unlink()
    strip_metadata(tmp_path / "folder" / "model.safetensors")
    _, config, _ = convert.load_checkpoint(tmp_path / "folder")
    assert config["vqvae"]["norm_type"] == "BN"


def test_discriminator(tmp_path):
    # 512 channels wide at any size: shared zeros keep it small enough for a test.
    config = {"image_size": 4, "discriminator": {"channel_multiplier": 1, "blur_resample": True}}
    state = rules.build("maskgit_discriminator", config).state_dict()
    flat = rules.to_official(state, "maskgit_discriminator", config)
    file = write_flax(tmp_path / "file", flat)
    assert there_and_back(file, tmp_path) == file.read_bytes()


def test_bare_safetensors_file(miniature, tmp_path):
    convert.convert(miniature, tmp_path / "folder")
    bare = tmp_path / "weights.safetensors"
    shutil.copy(tmp_path / "folder" / "model.safetensors", bare)
    convert.convert(bare, tmp_path / "back", to="flax")
    assert (tmp_path / "back").read_bytes() == miniature.read_bytes()


def strip_metadata(path) -> None:
    import safetensors.torch

    tensors = {name: tensor.clone() for name, tensor in safetensors.torch.load_file(path).items()}
    safetensors.torch.save_file(tensors, path)


def test_bare_file_without_metadata(tmp_path):
    config = MINIATURE | {"hidden_size": 32, "num_attention_heads": 16}
    for heads, assumed in ((16, None), (4, 4)):
        flat = seeded_flat("maskgit_transformer", config | {"num_attention_heads": heads})
        file = write_flax(tmp_path / f"file{heads}", flat)
        convert.convert(file, tmp_path / "folder", overwrite=True)
        bare = tmp_path / "folder" / "model.safetensors"
        strip_metadata(bare)
        (tmp_path / "folder" / "config.json").unlink()
        output = tmp_path / f"back{heads}"
        summary = convert.convert(bare, output, to="flax", num_heads=assumed)
        assert output.read_bytes() == file.read_bytes()
        assert bool(summary.warnings) == (assumed is None)
    assert (
        "attention heads is not in the file: took 16"
        in convert.convert(bare, tmp_path / "other", to="flax").warnings[0]
    )


def test_configuration_is_checked_against_the_weights(miniature, tmp_path):
    folder = tmp_path / "folder"
    convert.convert(miniature, folder)
    config = json.loads((folder / "config.json").read_text())
    for key, value, reason in (
        ("num_hidden_layers", 10**12, "says num_hidden_layers 1000000000000, the weights show 1"),
        ("vocab_size", "many", "says vocab_size 'many', the weights show 5"),
        ("num_attention_heads", 3, "3 heads"),
        ("num_attention_heads", -2, "num_attention_heads is -2"),
        ("num_attention_heads", True, "num_attention_heads is True"),
        ("model_type", "maskgit_vqvae", "'maskgit_vqvae', the weights show 'maskgit_transformer'"),
        ("novelty", 1, "no maskgit_transformer configuration: .*novelty"),
        ("hidden_dropout_prob", "half", "no maskgit_transformer configuration"),
    ):
        (folder / "config.json").write_text(json.dumps(config | {key: value}))
        with pytest.raises(ValueError, match=reason) as caught:
            convert.convert(folder, tmp_path / "out", to="flax")
        assert str(caught.value).startswith(str(folder)) and "\n" not in str(caught.value)
    (folder / "config.json").write_text(json.dumps(config | {"hidden_dropout_prob": 0.25}))
    assert convert.load_checkpoint(folder)[1]["hidden_dropout_prob"] == 0.25


def test_summary(miniature, tmp_path):
    summary = convert.convert(miniature, tmp_path / "folder")
    assert (summary.model_type, summary.parameters, summary.dtype) == (
        "maskgit_transformer",
        200,
        "float32",
    )
    assert summary.resolution == "unknown, 2 tokens an image"
    assert summary.input_sha256 == files.file_sha256(miniature)
    assert summary.output_sha256 == files.file_sha256(tmp_path / "folder" / "model.safetensors")
    card = (tmp_path / "folder" / "README.md").read_text()
    assert summary.input_sha256 in card and "miniature_checkpoint" in card and "| 200 |" in card
    assert "from maskgit_pt.nets.maskgit_transformer import Transformer" in card


def test_deterministic(miniature, tmp_path):
    first = convert.convert(miniature, tmp_path / "1")
    assert convert.convert(miniature, tmp_path / "2").output_sha256 == first.output_sha256


def test_safetensors_library_reads_ours(google_file, tmp_path):
    import safetensors.torch

    convert.convert(google_file, tmp_path / "folder")
    _, _, state = convert.load_checkpoint(google_file)
    loaded = safetensors.torch.load_file(tmp_path / "folder" / "model.safetensors")
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


def test_not_finite_is_a_warning(miniature_flat, tmp_path):
    names = ["params/Embed_0/word_embeddings/embedding", "params/MlmLayer_0/mlm_bias/bias"]
    for name, value in zip(names, (np.nan, -np.inf), strict=True):
        miniature_flat[name].flat[1] = value
    file = write_flax(tmp_path / "file", miniature_flat)
    (warning,) = convert.convert(file, tmp_path / "folder").warnings
    assert warning == f"2 tensors hold NaN or infinity: {', '.join(names)}"
    convert.convert(tmp_path / "folder", tmp_path / "back", to="flax")
    assert (tmp_path / "back").read_bytes() == file.read_bytes()


def test_overflow_is_a_warning(miniature_flat, tmp_path):
    name = "params/MlmLayer_0/mlm_bias/bias"
    miniature_flat[name][0] = 1e6
    file = write_flax(tmp_path / "file", miniature_flat)
    assert not convert.convert(file, tmp_path / "1").warnings
    assert name in convert.convert(file, tmp_path / "2", dtype="float16").warnings[0]


class TestVerification:
    def test_forgotten_transpose_is_noticed(self, miniature, tmp_path, change_row):
        wrong = tables.Transform("wrong", lambda x: x, tables.DENSE.to_official)
        change_row("mlm_dense", leaves={"weight": ("params", "kernel", wrong)})
        output = tmp_path / "folder"
        with pytest.raises(ValueError) as caught:
            convert.convert(miniature, output)
        assert str(caught.value).startswith(f"{output}: verification failed, nothing was written")
        assert "params/MlmLayer_0/mlm_dense/kernel differs" in str(caught.value)
        assert [p.name for p in tmp_path.iterdir()] == [miniature.name]
        assert not convert.convert(miniature, output, verify=False).verified

    @pytest.mark.parametrize("to", ["safetensors", "flax"])
    def test_a_single_flipped_bit_is_noticed(self, miniature, tmp_path, monkeypatch, to):
        writer = formats.BY_NAME[to]
        original = writer.write

        def write(*args):
            weights = original(*args)
            data = bytearray(weights.read_bytes())
            data[-4] ^= 1
            weights.write_bytes(data)
            return weights

        monkeypatch.setattr(writer, "write", write)
        with pytest.raises(ValueError, match="verification failed.* tensor params/.* differs"):
            convert.convert(miniature, tmp_path / "output", to=to)
        assert not (tmp_path / "output").exists()

    def test_signs_of_zero_and_nan_payloads_count(self, miniature_flat, tmp_path, monkeypatch):
        bias = miniature_flat["params/MlmLayer_0/mlm_bias/bias"]
        bias[:2] = -0.0, np.nan
        file = write_flax(tmp_path / "file", miniature_flat)
        convert.convert(file, tmp_path / "folder")  # NaN equals itself
        original = formats.BY_NAME["safetensors"].write

        def write(*args):
            weights = original(*args)
            data = weights.read_bytes()
            weights.write_bytes(data.replace(bias.tobytes(), abs(bias).tobytes()))
            return weights

        monkeypatch.setattr(formats.BY_NAME["safetensors"], "write", write)
        with pytest.raises(ValueError, match="mlm_bias/bias differs"):
            convert.convert(file, tmp_path / "other")


class TestOutput:
    def test_existing_output_is_refused(self, miniature, tmp_path):
        for output, to in ((tmp_path / "folder", "safetensors"), (tmp_path / "file", "flax")):
            convert.convert(miniature, output, to=to)
            with pytest.raises(FileExistsError, match="exists already; --overwrite replaces it"):
                convert.convert(miniature, output, to=to)
            convert.convert(miniature, output, to=to, overwrite=True)

    def test_overwriting_a_folder_leaves_other_files(self, miniature, tmp_path):
        folder = tmp_path / "folder"
        folder.mkdir()
        convert.convert(miniature, folder)  # empty: nothing to lose
        (folder / "notes.txt").write_text("mine")
        convert.convert(miniature, folder, overwrite=True, dtype="bfloat16")
        assert (folder / "notes.txt").read_text() == "mine"
        assert convert.load_checkpoint(folder)[2]["mlm_layer.mlm_ln.bias"].dtype == torch.bfloat16
        assert len(list(tmp_path.iterdir())) == 2

    def test_folder_and_file_are_not_exchanged(self, miniature, tmp_path):
        (tmp_path / "folder").mkdir()
        with pytest.raises(ValueError, match="is a folder; this output is a file"):
            convert.convert(miniature, tmp_path / "folder", to="flax", overwrite=True)
        with pytest.raises(ValueError, match="is a file; this output is a folder"):
            convert.convert(miniature, miniature, overwrite=True)
        with pytest.raises(FileNotFoundError, match="there is no folder"):
            convert.convert(miniature, tmp_path / "missing" / "folder")

    @pytest.mark.parametrize(
        "name",
        [
            "pytorch_model.bin",
            "old.ckpt",
            "model.safetensors.index.json",
            "model-00001-of-00002.safetensors",
            "ema_model/model.safetensors",
        ],
    )
    def test_other_weights_would_stay(self, miniature, tmp_path, name):
        """And be read in place of the new ones."""
        other = tmp_path / "folder" / name
        other.parent.mkdir(parents=True)
        other.write_bytes(b"old")
        with pytest.raises(FileExistsError, match=rf"folder holds other weights \({name}\)"):
            convert.convert(miniature, tmp_path / "folder", overwrite=True)
        assert [path for path in other.parent.iterdir()] == [other]

    def test_a_folder_is_merged_whole_or_not_at_all(self, miniature, tmp_path):
        folder = tmp_path / "folder"
        (folder / "README.md").mkdir(parents=True)
        (folder / "config.json").write_text("old")
        with pytest.raises(OSError, match="README.md is a folder, to be replaced by a file"):
            convert.convert(miniature, folder, overwrite=True)
        assert (folder / "config.json").read_text() == "old" and len(list(folder.iterdir())) == 2
        assert sorted(tmp_path.iterdir()) == [folder, miniature]

    def test_what_is_neither_file_nor_folder_stays(self, miniature, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "link").symlink_to("nowhere")
        for name, to in (("pipe", "flax"), ("link", "flax"), ("link", "safetensors")):
            with pytest.raises(ValueError, match=f"{name} is neither a file nor a folder"):
                convert.convert(miniature, tmp_path / name, to=to, overwrite=True)
        assert (tmp_path / "pipe").is_fifo() and (tmp_path / "link").is_symlink()

    def test_onto_itself(self, miniature, tmp_path):
        before = miniature.read_bytes()
        convert.convert(miniature, miniature, to="flax", overwrite=True)
        assert miniature.read_bytes() == before

    @pytest.mark.parametrize("to", ["safetensors", "flax"])
    @pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
    def test_nothing_is_left_behind(self, miniature, tmp_path, to, error):
        def progress(done, total):
            raise error

        raised = error if error is KeyboardInterrupt else OSError
        with pytest.raises(raised) as caught:
            convert.convert(miniature, tmp_path / "output", to=to, progress=progress)
        if raised is OSError:
            expected = (str(tmp_path / "output"), "No space left on device")
            assert (caught.value.filename, caught.value.strerror) == expected
        assert [p.name for p in tmp_path.iterdir()] == [miniature.name]

    def test_progress_counts_bytes(self, miniature, tmp_path):
        calls = []
        convert.convert(miniature, tmp_path / "output", progress=lambda *call: calls.append(call))
        assert {total for _, total in calls} == {2 * 200 * 4}  # written and verified
        assert sum(done for done, _ in calls) == 2 * 200 * 4


def test_unknown_names(miniature, tmp_path):
    with pytest.raises(ValueError, match="cannot write 'coreml'; accepted: safetensors, flax"):
        convert.convert(miniature, tmp_path / "output", to="coreml")
    with pytest.raises(ValueError, match="cannot convert to 'int8'; accepted: float16"):
        convert.convert(miniature, tmp_path / "output", dtype="int8")
    with pytest.raises(ValueError, match="has 2 attention heads, not 4"):
        convert.convert(miniature, tmp_path / "output", num_heads=4)
